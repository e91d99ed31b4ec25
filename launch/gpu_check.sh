#!/usr/bin/env bash
# Runs everything that needs a GPU: tests of the kernels, their benchmark with plots, the benchmark of the SEAM step.
#
#   bash launch/gpu_check.sh [OUTPUT FOLDER] [FOLDER OF WHEELS] [--only PART...] [--list]
#
# Works offline. It has parts, each with a time limit (--list prints them); without --only all of them run, one after
# another. Where a command is limited to ten minutes, run a few at a time with the same OUTPUT FOLDER:
#
#   bash launch/gpu_check.sh out --only tests errors
#   bash launch/gpu_check.sh out --only pcm pcm_large pcm_huge
#
# Wheels (downloaded beforehand with `pip download`) are installed into a temporary folder. Without them the packages of
# the machine are used: torch for GPUs, triton, pytest; pydantic and safetensors for the step; pydensecrf2 for the
# lattice; matplotlib for the plots. A part that fails does not stop the others; the exit code is that of the first
# failure. OUTPUT/summary.txt lists what ran; OUTPUT/gpu.csv and step.csv have the rows of all calls.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="" wheels="" list=0
only=()
while [ $# -gt 0 ]; do
    case "$1" in
        --only)
            shift
            while [ $# -gt 0 ] && [[ "$1" != --* ]]; do
                only+=("$1")
                shift
            done
            if [ "${#only[@]}" -eq 0 ]; then
                echo "--only has no part: --list prints them" >&2
                exit 2
            fi
            ;;
        --list)
            list=1
            shift
            ;;
        --*)
            echo "$1 is unknown: expected --only PART... or --list" >&2
            exit 2
            ;;
        *)
            if [ -z "$out" ]; then out="$1"; elif [ -z "$wheels" ]; then wheels="$1"; else
                echo "$1 is one folder too many: expected OUTPUT and WHEELS" >&2
                exit 2
            fi
            shift
            ;;
    esac
done

names=() limits=() commands=()
part() { # name, seconds, command...
    names+=("$1")
    limits+=("$2")
    shift 2
    commands+=("$(printf '%q ' "$@")")
}

pytest=(python3 -m pytest -q -p no:cacheprovider -o addopts=--import-mode=importlib)
bench=(python3 kernels/bench.py --device cuda --csv OUT/gpu.csv --repeats 20)
step=(python3 -m seam_dist.bench.train_step --device cuda --csv OUT/step.csv)
part tests 540 "${pytest[@]}" tests/kernels/interpreted
part errors 240 python3 kernels/errors.py --impls reference torch triton
part pcm 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls published compiled triton --shapes voc448 coco
part pcm_float32 240 "${bench[@]}" --ops pcm --impls published triton --shapes voc448
part pcm_large 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls published triton --batch 2 --shapes multiscale
part pcm_huge 240 "${bench[@]}" --ops pcm --dtype bfloat16 --impls triton --batch 1 --shapes multiscale cityscapes
part pcm_coco 240 "${bench[@]}" --ops pcm --dtype bfloat16 --classes 81 --impls published triton --shapes coco
part edges 240 "${bench[@]}" --ops edges --dtype bfloat16 --impls published compiled triton --shapes voc448
part walk 240 "${bench[@]}" --ops walk --classes 3 --impls triton triton-chebyshev --batch 64 --shapes coco
part walk_published 240 "${bench[@]}" --ops walk --classes 3 --impls published --batch 1 --shapes coco \
    --directions forward
part walk_long 240 "${bench[@]}" --ops walk --classes 3 --steps 256 --impls triton triton-chebyshev --batch 64 \
    --shapes coco
part walk_long_published 240 "${bench[@]}" --ops walk --classes 3 --steps 256 --impls published --batch 1 \
    --shapes coco --directions forward
part crf 240 "${bench[@]}" --ops crf --impls triton --batch 1 --shapes image --directions forward --repeats 5
part crf_lattice 240 "${bench[@]}" --ops crf --impls lattice --batch 1 --shapes image --directions forward --repeats 3
for stride in 2 4 8; do
    part "crf_stride$stride" 240 "${bench[@]}" --ops crf --impls triton --batch 1 --shapes image --stride "$stride" \
        --directions forward
done
part step 420 "${step[@]}" --forms published fused fused-high
part step_compiled 420 "${step[@]}" --forms fused-compiled
part step_large 420 "${step[@]}" --forms fused fused-high --batch 16
part plot 120 python3 kernels/bench.py --csv OUT/gpu.csv --plot OUT/gpu.png --ratios

for name in "${only[@]}"; do
    case " ${names[*]} " in
        *" $name "*) ;;
        *)
            echo "$name is not a part: expected some of ${names[*]}" >&2
            exit 2
            ;;
    esac
done
if [ "$list" -eq 1 ]; then
    for i in "${!names[@]}"; do printf '%-20s %4d s\n' "${names[$i]}" "${limits[$i]}"; done
    exit 0
fi

out="${out:-$root/runs/gpu_check}"
if [ -e "$out" ] && [ ! -e "$out/.gpu_check" ] && [ -n "$(ls -A "$out")" ]; then
    echo "$out holds other files, which would be overwritten: give a new or an empty folder" >&2
    exit 2
fi
mkdir -p "$out" && touch "$out/.gpu_check" || exit 2
out="$(cd "$out" && pwd)"
if [ -n "$wheels" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
cd "$root" || exit 1
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
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

status=0
for i in "${!names[@]}"; do
    name="${names[$i]}"
    if [ "${#only[@]}" -gt 0 ]; then
        case " ${only[*]} " in *" $name "*) ;; *) continue ;; esac
    fi
    # printf %q left OUT/ in the commands above as it is.
    command="${commands[$i]//OUT\//$(printf '%q' "$out")/}"
    echo "== $name: $command"
    SECONDS=0
    timeout "${limits[$i]}" bash -c "exec $command" 2>&1 | tee "$out/$name.log"
    code="${PIPESTATUS[0]}"
    echo "$name exit $code ${SECONDS} s" | tee -a "$out/summary.txt"
    if [ "$status" -eq 0 ]; then status="$code"; fi
done
exit "$status"
