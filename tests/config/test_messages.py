"""Every wrong value of a setting: its name as it is typed, the value, where it came from, and what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist.config.describe import settings
from seam_dist.config.load import ConfigError, from_tree, load_config

OVERRIDES = [
    (
        "infer_cam.scales=[0.5,.nan]",
        "infer_cam.scales=[0.5, nan] (command line): entry 2 (nan): expected a finite number",
    ),
    ("train_seg.scale=[-.inf,1]", "train_seg.scale=[-inf, 1] (command line): entry 1 (-inf): expected a finite number"),
    ("train_seam.schedule.lr=nan", "train_seam.schedule.lr='nan' (command line): expected a finite number"),
    ("train_seam.schedule.lr=1e400", "train_seam.schedule.lr='1e400' (command line): expected a finite number"),
    ("train_seam.schedule.lr=-1", "train_seam.schedule.lr='-1' (command line): expected a number above 0"),
    (
        "train_seam.schedule.momentum=1",
        "train_seam.schedule.momentum='1' (command line): expected a number less than 1",
    ),
    ("run.threads=0", "run.threads='0' (command line): expected a number that is at least 1"),
    ("source.num_classes=255", "source.num_classes='255' (command line): expected a number that is at most 254"),
    ("train_seg.scale=[1,2,3]", "train_seg.scale=[1, 2, 3] (command line): expected 2 entries, not 3"),
    ("train_seg.scale=[]", "train_seg.scale=[] (command line): expected 2 entries, not 0"),
    ("train_affinity.channels=[8]", "train_affinity.channels=[8] (command line): expected 3 entries, not 1"),
    ("model.pcm_channels=[1,-2]", "model.pcm_channels=[1, -2] (command line): entry 2 (-2): expected a number above 0"),
    (
        "infer_cam.crf_alphas=[4,0]",
        "infer_cam.crf_alphas=[4, 0] (command line): entry 2 (0): expected a number above 0",
    ),
    ("train_seg.scale=0.5,1", "train_seg.scale='0.5,1' (command line): expected a list: write [0.5,1]"),
    ("data.splits=train", "data.splits='train' (command line): expected a list: write [train]"),
    (
        "data.splits=[train,2]",
        "data.splits=['train', 2] (command line): entry 2 (2): expected text: put it in quotes, '2'",
    ),
    ("train_seg.scale={a: 1}", "train_seg.scale={a: 1}: expected a list"),
    ("train_seam.schedule.lr=[1]", "train_seam.schedule.lr=[1] (command line): expected a number, not a list"),
    ("train_seam.schedule.lr=fast", "train_seam.schedule.lr='fast' (command line): expected a number"),
    (
        "train_seam.schedule.lr=0,01",
        "train_seam.schedule.lr='0,01' (command line): expected a number with a point, 0.01",
    ),
    ("train_seam.schedule.lr=null", "train_seam.schedule.lr=null (command line): expected a number, not null"),
    ("train_seam.schedule.lr=true", "train_seam.schedule.lr='true' (command line): expected a number"),
    (
        "train_seam.schedule.max_steps=1.5",
        "train_seam.schedule.max_steps='1.5' (command line): expected a whole number",
    ),
    ("train_seam.schedule.max_steps=1e4", "schedule.max_steps='1e4' (command line): expected a whole number, 10000"),
    ("run.seed=٣", "run.seed='٣' (command line): expected a whole number"),
    ("run.overwrite=maybe", "run.overwrite='maybe' (command line): expected true or false"),
    ("run.overwrite=null", "run.overwrite=null (command line): expected true or false, not null"),
    ("run.name=a b", "run.name='a b' (command line): expected letters, digits, _, . and -, without spaces and slashes"),
    ("run.name=", "run.name= has no value: give one, or null to unset it"),
    ("run.dir=null", "run.dir=null (command line): expected a path, not null"),
    (
        "source.kind=vocc",
        "source.kind='vocc' (command line): expected one of voc, coco, folder, synthetic (did you mean voc?)",
    ),
    (
        "source.kind=VOC",
        "source.kind='VOC' (command line): expected one of voc, coco, folder, synthetic (did you mean voc?)",
    ),
    ("model.output_stride=4", "model.output_stride='4' (command line): expected one of 8, 16"),
    (
        "model.backbone=resnet38",
        "model.backbone='resnet38' (command line): expected resnet38d, lite0 or timm:NAME (did you",
    ),
    ("augment.resize_long=[9,3]", "is not a range: give [smallest, largest] (augment.resize_long: command line)"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES, ids=lambda value: value[:40])
def test_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, [override])
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  name: 7\n", "run.name=7 (FILE:2): expected text: put it in quotes, '7'"),
        ("run:\n  dir: 2024\n", "run.dir=2024 (FILE:2): expected a path: put it in quotes, '2024'"),
        ("run:\n  seed: yes\n", "run.seed=true (FILE:2): expected a number, not true or false"),
        (
            "infer_cam:\n  scales: [1, on]\n",
            "infer_cam.scales=[1, true] (FILE:2): expected a list of numbers, not true",
        ),
        ("train_seam:\n  schedule:\n    lr: .inf\n", "train_seam.schedule.lr=inf (FILE:3): expected a finite number"),
        ("data:\n  splits:\n", "data.splits=null (FILE:2): expected a list, not null"),
        ("deepspeed: 3\n", "deepspeed=3 (FILE:1): expected a mapping of names to values"),
        (
            "source: {kind: folders}\n",
            "source.kind='folders' (FILE:1): expected one of voc, coco, folder, synthetic (did you",
        ),
    ],
)
def test_wrong_value_of_a_file_is_explained_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert message.replace("FILE", str(path)) in str(refusal.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, ["run.threads=x", "train_seam.schedule.lr=0", "train_affinity.channels=[x,y,1]"])
    assert str(refusal.value).count("expected") == 4


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, [f"run.threads={'9' * 500}x"])
    assert len(str(refusal.value)) < 200


def test_words_for_true_and_false_of_yaml_stay_booleans() -> None:
    assert from_tree({"run": {"overwrite": True}}).run.overwrite
    assert load_config(None, ["run.overwrite=yes", "infer_cam.flip=off"]).config.run.overwrite
    assert from_tree({"deepspeed": {"zero_optimization": {"overlap_comm": True}}}).deepspeed


FLOATS = [setting.key for setting in settings() if "float" in setting.type_name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "nan", "-Infinity"], ids=str)
@pytest.mark.parametrize("key", FLOATS)
def test_no_float_setting_takes_a_number_that_is_not_finite(key: str, value: object) -> None:
    setting = next(setting for setting in settings() if setting.key == key)
    given = [value] * max(2, len(setting.default or ())) if setting.type_name.startswith(("tuple", "list")) else value
    tree: object = given
    for part in reversed(key.split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    with pytest.raises(ConfigError, match=r"expected (a finite number|a number)") as refusal:
        from_tree(tree)
    assert str(refusal.value).startswith(f"{key}=")


@pytest.mark.parametrize(
    "value", [[], {}, {"a": 1}, [[1]], None, True, -1, 0, 1.5, "x", "", "nan", "1,2", "~", "\x00"], ids=repr
)
def test_no_message_of_the_validator_reaches_the_user(value: object) -> None:
    """Every setting with every sort of value: it is taken, or refused by the setting's name in our own words."""
    for setting in settings():
        tree: object = value
        for part in reversed(setting.key.split(".")):
            tree = {part: tree}
        assert isinstance(tree, dict)
        try:
            from_tree(tree)
        except ConfigError as error:
            text = str(error)
            assert setting.key in text
            assert "nput should" not in text
            assert "something else" not in text
            assert "pydantic" not in text
            assert "\n" not in text
