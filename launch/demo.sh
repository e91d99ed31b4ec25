#!/usr/bin/env bash
# Shows the whole pipeline on synthetic scenes: shards, a CAM-only network, SEAM, affinities, random walk, the final network,
# mIoU of every stage, an HTML report.
# Words go to seam-dist, for example `bash launch/demo.sh run.seed=1`. Outputs lie in runs/demo-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
. launch/environment.sh lite,crf
started=$(date +%s)
seam() {
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" --config configs/demo.yaml "$@"
}
seam --only shard --only train_seam --only infer_cam --only evaluate run.name=demo-cam loss.ablation=cam infer_cam.crf=false "$@"
seam run.name=demo-seam "report.compare=[runs/demo-cam]" "$@"
echo "Done in $(($(date +%s) - started)) s."
