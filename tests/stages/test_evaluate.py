"""Stage evaluate: what is scored, skipped and scored again, and what is printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kit import run_config
from stage_kit import WRONG_PIXELS, prepared_run, run_on_two_ranks, write_cams_from_masks, write_labels_from_masks

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.artifacts.stage import StageError
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import Config
from seam_dist.evaluation import label_scores
from seam_dist.stages import evaluate, shard


def make_config(root: Path, **sections: dict[str, object]) -> Config:
    return run_config(root, base={"evaluate": {"num_thresholds": 10}}, **sections)


prepared, root = prepared_run(make_config, shard.run)


@pytest.fixture
def cfg(root: Path) -> Config:
    """Shards, CAMs and the labels of the random walk and the final network."""
    cfg = make_config(root)
    write_cams_from_masks(cfg)
    write_labels_from_masks(cfg)
    return cfg


def written(cfg: Config) -> dict[str, int]:
    """When each score was written, by path."""
    folder = cfg.stage_dir("evaluate")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*.json")}


def test_everything_made_is_scored_in_a_folder_of_its_own_under_one_manifest(cfg: Config) -> None:
    evaluate.run(cfg)
    folder = cfg.stage_dir("evaluate")
    manifest = read_json(folder / "manifest.json")
    assert list(manifest["inputs"]) == ["cam", *WRONG_PIXELS]
    assert manifest["inputs"]["walk"] == read_json(folder / "walk" / "manifest.json")["fingerprint"]
    for name in manifest["inputs"]:
        assert {f"{name}/train.json", f"{name}/val.json", f"{name}/val-images.csv"} <= set(manifest["outputs"])


def test_what_is_scored_is_left_alone(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(cfg)
    before = written(cfg), (cfg.stage_dir("evaluate") / "manifest.json").stat().st_mtime_ns
    evaluate.run(cfg)
    assert (written(cfg), (cfg.stage_dir("evaluate") / "manifest.json").stat().st_mtime_ns) == before
    assert "done already" in capsys.readouterr().out


def test_rerun_cams_lose_their_scores_and_no_others_do(cfg: Config, tmp_path: Path) -> None:
    evaluate.run(cfg)
    before = written(cfg)
    rerun = make_config(tmp_path / "root", infer_cam={"cam_stride": 4})
    write_cams_from_masks(rerun, "plain")
    evaluate.run(rerun)
    assert read_json(cfg.stage_dir("evaluate") / "cam" / "val.json")["map"] == "plain"
    after = written(cfg)
    assert {path for path in before if after[path] != before[path]} == {path for path in before if path[:4] == "cam/"}


def test_rerun_labels_lose_their_scores_and_no_others_do(cfg: Config, tmp_path: Path) -> None:
    evaluate.run(cfg)
    before = written(cfg)
    shutil.rmtree(cfg.stage_dir("infer_seg"))
    names = [name for name in WRONG_PIXELS if LABEL_TYPES[name].stage == "infer_seg"]
    other_seed = make_config(tmp_path / "root", run={"seed": 1})
    write_labels_from_masks(other_seed, {name: WRONG_PIXELS[name] for name in names})
    evaluate.run(cfg)
    after = written(cfg)
    assert {path.split("/")[0] for path in before if after[path] != before[path]} == set(names)


def test_other_thresholds_change_the_scores_of_cams_only(cfg: Config, tmp_path: Path) -> None:
    evaluate.run(cfg)
    before = written(cfg)
    evaluate.run(make_config(tmp_path / "root", evaluate={"num_thresholds": 5}))
    after = written(cfg)
    assert {path.split("/")[0] for path in before if after[path] != before[path]} == {"cam"}


def test_an_interrupted_evaluation_has_no_manifest_and_keeps_what_is_scored(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(cfg)
    shutil.rmtree(cfg.stage_dir("evaluate") / "seg")
    before = written(cfg)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(label_scores, "count_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(cfg)
    assert not (cfg.stage_dir("evaluate") / "manifest.json").exists()
    evaluate.run(cfg)
    assert (cfg.stage_dir("evaluate") / "manifest.json").is_file()
    assert {path: time for path, time in written(cfg).items() if path in before} == before


def test_labels_are_scored_without_any_cam(cfg: Config) -> None:
    shutil.rmtree(cfg.stage_dir("infer_cam"))
    evaluate.run(cfg)
    assert list(read_json(cfg.stage_dir("evaluate") / "manifest.json")["inputs"]) == list(WRONG_PIXELS)


def test_inference_must_be_finished(prepared: Path) -> None:
    with pytest.raises(StageError, match=r"stage infer_cam is not finished there: run `--only infer_cam` first"):
        evaluate.run(make_config(prepared))


def test_the_tables_name_splits_maps_thresholds_and_labels(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(cfg)
    lines = capsys.readouterr().out.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("split"))
    assert lines[header].split()[:3] == ["split", "map", "images"]
    assert [line.split()[:3] for line in lines[header + 1 : header + 5]] == [
        ["train", "refined", "5"],
        ["train", "plain", "5"],
        ["val", "refined", "3"],
        ["val", "plain", "3"],
    ]
    best = read_json(cfg.stage_dir("evaluate") / "cam" / "val.json")["best"]
    assert f"{100 * best['miou']:.2f} at {best['threshold']:.2f}" in lines[header + 3]
    miou = [read_json(cfg.stage_dir("evaluate") / "walk" / f"{split}.json")["miou"] for split in ("train", "val")]
    assert lines[header + 5].split() == ["labels", "train", "val"]
    assert lines[header + 6].split() == ["random", "walk", *(f"{100 * value:.2f}" for value in miou)]


@pytest.mark.slow
def test_two_ranks_find_the_same_scores(cfg: Config, tmp_path: Path) -> None:
    evaluate.run(cfg)
    alone = tmp_path / "alone"
    shutil.move(cfg.stage_dir("evaluate"), alone)
    (tmp_path / "config.yaml").write_text(dump_yaml(cfg))
    run_on_two_ranks("evaluate", tmp_path / "config.yaml")
    scores = [path for path in alone.glob("*/*") if path.name.startswith(("train", "val"))]
    assert len(scores) == 6 + 4 * len(WRONG_PIXELS)
    for path in scores:
        assert (cfg.stage_dir("evaluate") / path.relative_to(alone)).read_bytes() == path.read_bytes()
