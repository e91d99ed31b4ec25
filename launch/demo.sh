#!/usr/bin/env bash
# Shows the whole method on synthetic scenes: shards, a CAM-only network, full SEAM, mIoU of both, an HTML report.
# Words go to seam-dist, for example `bash launch/demo.sh run.seed=1`. Outputs lie in runs/demo-*.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
. launch/environment.sh lite
started=$(date +%s)
seam() {
    $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" --config configs/demo.yaml "$@"
}
seam --stage shard --stage train_seam --stage infer_cam --stage evaluate run.name=demo-cam loss.ablation=cam "$@"
seam run.name=demo-seam "report.compare=[runs/demo-cam]" "$@"
echo "Done in $(($(date +%s) - started)) s."
