#!/usr/bin/env bash
# Runs the whole pipeline on synthetic scenes, and a CAM-only training to compare with; prints the mIoU of every stage
# and writes an HTML report. Arguments go to seam-dist, for example `bash launch/demo.sh run.seed=1`.
# Outputs: runs/demo-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
. launch/environment.sh lite,crf
started=$(date +%s)
seam() {
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" --config demo "$@"
}
seam run.name=demo-cam loss.ablation=cam infer_cam.crf=false \
    --only shard --only train_seam --only infer_cam --only evaluate "$@"
seam run.name=demo-seam "report.compare=[runs/demo-cam]" "$@"
echo "Done in $(($(date +%s) - started)) s."
