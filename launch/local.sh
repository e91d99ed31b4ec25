#!/usr/bin/env bash
# Runs seam-dist through the DeepSpeed launcher on all devices of this machine: one rank a GPU, or two CPU ranks.
#   bash launch/local.sh --config configs/voc12.yaml source.root=/data/VOC2012
# SEAM_DIST_RANKS sets another number of ranks. Exit code 0 means that the last stage asked for wrote its outputs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh" lite
exec $python -m seam_dist.cli --ranks "${SEAM_DIST_RANKS:-auto}" "$@"
