#!/usr/bin/env bash
# Runs on a GPU machine all that needs one: tests of the kernels, their benchmark and its plots. Works offline.
#
#   bash launch/gpu_check.sh [OUTPUT FOLDER] [FOLDER OF WHEELS]
#
# Wheels (made beforehand with `pip download`) are installed into a throw-away folder; without them the packages of the
# machine serve: torch with a GPU, triton, pytest; matplotlib for the plots. Each part runs even when one before fails;
# the exit code is that of the first failure, and OUTPUT/summary.txt says what ran.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-$root/runs/gpu_check}"
wheels="${2:-}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
if [ -n "$wheels" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
cd "$root" || exit 1
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
status=0
: >"$out/summary.txt"

part() { # name, seconds, command...
    local name="$1" seconds="$2" code
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    code="${PIPESTATUS[0]}"
    echo "$name exit $code" | tee -a "$out/summary.txt"
    if [ "$status" -eq 0 ]; then status="$code"; fi
}

if ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU is visible to torch: nothing to check" >&2
    exit 1
fi
python3 - <<'PYTHON' | tee "$out/machine.txt"
import torch
import triton

properties = torch.cuda.get_device_properties(0)
print(properties.name, f"{properties.total_memory / 2**30:.0f} GiB", properties.multi_processor_count, "multiprocessors")
print("torch", torch.__version__, "triton", triton.__version__)
PYTHON

rm -f "$out/gpu.csv"
pytest_options=(-q -p no:cacheprovider -o addopts=--import-mode=importlib)
# The files by name: those of the other operations' CPU paths need no GPU.
part tests 500 python3 -m pytest "${pytest_options[@]}" tests/kernels/interpreted
bench=(python3 kernels/bench.py --device cuda --csv "$out/gpu.csv" --repeats 20)
part pcm 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls published compiled triton --shapes voc448 coco
part pcm_large 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls published triton --batch 2 --shapes multiscale
part pcm_huge 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls triton --batch 1 --shapes multiscale cityscapes
part edges 240 "${bench[@]}" --ops edges --dtype bfloat16 --impls published compiled triton --shapes voc448
part walk 240 "${bench[@]}" --ops walk --classes 3 --impls triton triton-chebyshev --batch 64 --shapes coco
part walk_published 240 "${bench[@]}" --ops walk --classes 3 --impls published --batch 1 --shapes coco \
    --directions forward
part walk_long 240 "${bench[@]}" --ops walk --classes 3 --steps 256 --impls triton triton-chebyshev --batch 64 \
    --shapes coco
part crf 240 "${bench[@]}" --ops crf --impls triton lattice --batch 1 --shapes image --directions forward --repeats 5
for stride in 2 4; do
    part "crf_stride$stride" 240 "${bench[@]}" --ops crf --impls triton --batch 1 --shapes image --stride "$stride" \
        --directions forward
done
part plot 120 python3 kernels/bench.py --csv "$out/gpu.csv" --plot "$out/gpu.png"
exit "$status"
