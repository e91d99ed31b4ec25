#!/usr/bin/env bash
# Runs the paper's ablation over several seeds on one data set and prints mean and spread of CAM mIoU.
#   bash launch/ablation.sh --config configs/folder.yaml source.root=/data/photos
# ABLATIONS and SEEDS choose the runs (default: all five with seed 0, cam and full with seeds 1 and 2 as well).
# Runs that are done are skipped, one that was cut short goes on. Outputs lie in runs/ablation-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh" lite
runs=()
run() {
    local name="ablation-$1-s$2"
    runs+=("runs/$name")
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" "${@:3}" \
        "run.name=$name" run.dir=runs data.shards=runs/ablation-shards "loss.ablation=$1" "run.seed=$2" infer_cam.crf=false \
        --stage shard --stage train_seam --stage infer_cam --stage evaluate
}
if [ -n "${ABLATIONS:-}${SEEDS:-}" ]; then
    for seed in ${SEEDS:-0}; do for ablation in ${ABLATIONS:-cam er pcm ecr full}; do run "$ablation" "$seed" "$@"; done; done
else
    for ablation in cam er pcm ecr full; do run "$ablation" 0 "$@"; done
    for seed in 1 2; do for ablation in cam full; do run "$ablation" "$seed" "$@"; done; done
fi
$python -m seam_dist.report.seeds "${runs[@]}"
