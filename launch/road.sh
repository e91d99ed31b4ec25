#!/usr/bin/env bash
# Runs the whole pipeline over several seeds on one data set, CAM-only training beside it, and prints mean and spread of
# mIoU of every stage on every split with masks.
#   bash launch/road.sh --config configs/folder.yaml source.root=/data/photos
# SEEDS chooses the seeds (default: 0 1 2). What is done is skipped, what was cut short goes on. Outputs lie in runs/road-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh" lite,crf
seam() {
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" "$@"
}
runs=()
for seed in ${SEEDS:-0 1 2}; do
    shared=(run.dir=runs "run.seed=$seed" data.shards=runs/road-shards)
    seam "$@" "${shared[@]}" "run.name=road-cam-s$seed" loss.ablation=cam infer_cam.crf=false \
        --only shard --only train_seam --only infer_cam --only evaluate
    seam "$@" "${shared[@]}" "run.name=road-seam-s$seed" "report.compare=[runs/road-cam-s$seed]"
    runs+=("runs/road-cam-s$seed" "runs/road-seam-s$seed")
done
$python -m seam_dist.report.seeds "${runs[@]}"
