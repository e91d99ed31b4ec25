#!/usr/bin/env bash
# Runs the whole pipeline with several seeds on one data set, each beside a CAM-only training, and prints mean and
# standard deviation of the mIoU of every stage on every split with masks.
#   bash launch/pipeline.sh --config folder source.root=/data/photos
# SEEDS chooses the seeds (default: 0 1 2). Finished stages are skipped, interrupted ones resume.
# Outputs: runs/pipeline-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh" lite,crf
seam() {
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" "$@"
}
runs=()
for seed in ${SEEDS:-0 1 2}; do
    shared=(run.dir=runs "run.seed=$seed" data.shards=runs/pipeline-shards)
    seam "$@" "${shared[@]}" "run.name=pipeline-cam-s$seed" loss.ablation=cam infer_cam.crf=false \
        --only shard --only train_seam --only infer_cam --only evaluate
    seam "$@" "${shared[@]}" "run.name=pipeline-seam-s$seed" "report.compare=[runs/pipeline-cam-s$seed]"
    runs+=("runs/pipeline-cam-s$seed" "runs/pipeline-seam-s$seed")
done
$python -m seam_dist.report.seeds "${runs[@]}"
