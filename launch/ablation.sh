#!/usr/bin/env bash
# Runs the ablation study of the paper on one data set and prints mean and standard deviation of the mIoU of the CAMs.
#   bash launch/ablation.sh --config folder source.root=/data/photos
# ABLATIONS and SEEDS choose the runs (default: all five with seed 0; cam and full also with seeds 1 and 2).
# Finished stages are skipped, interrupted ones resume. Outputs: runs/ablation-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh" lite
runs=()
run() {
    local name="ablation-$1-s$2"
    runs+=("runs/$name")
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" "${@:3}" \
        "run.name=$name" run.dir=runs data.shards=runs/ablation-shards "loss.ablation=$1" "run.seed=$2" \
        infer_cam.crf=false --only shard --only train_seam --only infer_cam --only evaluate
}
if [ -n "${ABLATIONS:-}${SEEDS:-}" ]; then
    for seed in ${SEEDS:-0}; do for ablation in ${ABLATIONS:-cam er pcm ecr full}; do run "$ablation" "$seed" "$@"; done; done
else
    for ablation in cam er pcm ecr full; do run "$ablation" 0 "$@"; done
    for seed in 1 2; do for ablation in cam full; do run "$ablation" "$seed" "$@"; done; done
fi
$python -m seam_dist.report.seeds "${runs[@]}"
