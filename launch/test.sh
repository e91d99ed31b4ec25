#!/usr/bin/env bash
# Checks the whole project: style, types, tests. `bash launch/test.sh --slow` also runs the slow tests; other arguments
# go to pytest, for example `bash launch/test.sh tests/losses`. SEAM_DIST_TEST_PROCESSES (2) sets the number of worker
# processes, SEAM_DIST_TEST_LIMIT_S (1800, with --slow 7200) ends a run that takes longer.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
selection=(-m "not slow") limit_s=1800
if [ "${1:-}" = --slow ]; then
    selection=() limit_s=7200
    shift
fi
. launch/environment.sh dev
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
export OMP_NUM_THREADS=1
# worksteal notices a worker that dies, and tests/conftest.py names its test; loadfile may wait for the worker forever.
exec timeout --foreground --kill-after=30 "${SEAM_DIST_TEST_LIMIT_S:-$limit_s}" \
    $python -m pytest "${selection[@]}" -n "${SEAM_DIST_TEST_PROCESSES:-2}" --dist worksteal "$@"
