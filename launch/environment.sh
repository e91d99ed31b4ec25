# Sourced by the other scripts with the extras that they need. Installs the project, with the versions of
# constraints.txt, into the active environment (VIRTUAL_ENV, CONDA_PREFIX) or else into .venv, which it creates with
# SEAM_DIST_PYTHON or the first fitting Python that it finds.

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    python=python
else
    environment="$root/.venv"
    if [ ! -x "$environment/bin/python" ]; then
        base=""
        for candidate in ${SEAM_DIST_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
            if command -v "$candidate" >/dev/null &&
                "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
                base=$candidate
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "Found no Python 3.10 to 3.13: install one, or set SEAM_DIST_PYTHON to its path." >&2
            exit 2
        fi
        echo "Creating a virtual environment in .venv with $($base --version)"
        was_there=$([ -e "$environment" ] && echo yes || true)
        if ! "$base" -m venv "$environment"; then
            [ -n "$was_there" ] || rm -rf "$environment"
            echo "Cannot create a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)." >&2
            exit 2
        fi
    fi
    . "$environment/bin/activate"
    python="$environment/bin/python"
fi

# A stamp file remembers what was installed, so that an unchanged checkout is not installed again.
stamp="$($python -c 'import sys; print(sys.prefix)')/.seam-dist-$1"
wanted="$root $(cat "$root/setup.py" "$root/launch/constraints.txt" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing seam-dist and its dependencies (a few minutes, once)"
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" setuptools wheel
    # torch first: otherwise another package may pull in a second build of it.
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" torch
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" \
        -e "$root[$1]"
    echo "$wanted" >"$stamp"
fi
