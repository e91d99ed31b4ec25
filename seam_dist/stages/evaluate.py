"""Stage evaluate: scores of all that the run has made so far against the masks.

The stored CAMs are scored by `seam_dist.evaluation.cam_scores`, label images (CAM + CRF, random walk, final network) by
`seam_dist.evaluation.label_scores`, each into a folder of its own. What has scores already is skipped, so the stage may
run after each of the others.
"""

from __future__ import annotations

from seam_dist.artifacts.layout import CAM, LABEL_TYPES
from seam_dist.artifacts.stage import input_fingerprint
from seam_dist.cluster.distributed import init_world, on_main
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.evaluation.cam_scores import evaluate_cams, format_cam_scores
from seam_dist.evaluation.label_scores import evaluate_labels, format_label_scores
from seam_dist.evaluation.score_folders import finish_evaluation, scorable
from seam_dist.evaluation.splits import remarks, splits_with_masks
from seam_dist.evaluation.text_table import aligned


def run(cfg: Config) -> None:
    """Evaluate cfg.evaluate.splits, the split that chooses the threshold first; print tables on the main rank.

    Splits without masks are left out with a line each; without any masks the stage is finished and has no scores.
    Raises ValueError (StageError, ShardError) when infer_cam is not finished and there are no labels, and for what
    is missing or cannot be read.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    names = on_main(lambda: scorable(cfg), world)
    if not names:
        input_fingerprint(cfg.stage_dir("infer_cam"), "infer_cam")  # it is missing: this raises
    # Predictions of another run's network can be scored without any CAM.
    cams = evaluate_cams(cfg, manifest, world) if CAM in names else []
    label_types = [LABEL_TYPES[name] for name in names if name != CAM]
    labels = evaluate_labels(cfg, manifest, label_types, world)
    on_main(lambda: finish_evaluation(cfg, names), world)
    if world.is_main:
        if cams:
            print(aligned(format_cam_scores(cams)))
        if labels:
            print(aligned(format_label_scores(labels)))
        masked = splits_with_masks(cfg, manifest)
        new = cams or labels
        lines = [*masked.lines, *remarks((*cams, *labels), manifest)] if new or not masked.splits else []
        if masked.splits:
            lines.append(f"{'in' if new else 'done already, see'} {cfg.stage_dir('evaluate')}")
        else:
            lines.append("no split has masks, so there is nothing to score")
        print("\n".join(f"evaluate: {line}" for line in lines), flush=True)
