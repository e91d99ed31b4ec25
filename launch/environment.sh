# Sourced by the other scripts: activates a virtual environment with the project installed, making it when needed.
# An active environment (VIRTUAL_ENV, CONDA_PREFIX) is used as it is. SEAM_DIST_PYTHON names another interpreter.

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
            echo "No Python 3.10 to 3.13 was found: install one, or set SEAM_DIST_PYTHON to its path." >&2
            exit 2
        fi
        echo "Making a virtual environment in .venv with $($base --version)"
        if ! "$base" -m venv "$environment"; then
            rm -rf "$environment"
            echo "The environment could not be made (on Debian and Ubuntu: apt-get install python3-venv)." >&2
            exit 2
        fi
    fi
    . "$environment/bin/activate"
    python="$environment/bin/python"
fi

# A stamp for each extra holds what was installed from, so that an unchanged checkout is not installed twice.
stamp="$($python -c 'import sys; print(sys.prefix)')/.seam-dist-$1"
wanted="$root $(cat "$root/setup.py" "$root/launch/constraints.txt" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing seam-dist and what it needs (a few minutes, once)"
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" setuptools wheel
    # torch comes first: with it in place no other package draws a second build of it.
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" torch
    $python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" \
        -e "$root[$1]"
    echo "$wanted" >"$stamp"
fi
