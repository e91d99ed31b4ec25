"""The Python API behind `import seam_dist as seam`: networks that take images and class names.

    model = seam.load("runs/pets", part="seam")
    cam = model.cam("cat.jpg", classes=["cat"])     # {"cat": (H, W) float32 in 0..1}
    mask = seam.load("runs/pets").segment("cat.jpg")  # (H, W) uint8 class ids

A class is given by its name or by its id, from 1 in the order of `model.classes`. In masks 0 is the background; it has
no CAM. Every error is a ValueError that says what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from seam_dist.config.inference import LARGEST_SCALE, check_scales
from seam_dist.config.load import from_tree
from seam_dist.config.messages import nearest
from seam_dist.config.paths import user_path
from seam_dist.config.schema import DataConfig, InferCamConfig, InferSegConfig, SourceConfig, Stage
from seam_dist.data.image_files import read_image_file
from seam_dist.data.images import BadImageError
from seam_dist.inference.batching import network_input
from seam_dist.inference.cam import infer_cams
from seam_dist.inference.segmentation import infer_labels
from seam_dist.models import SEAM, DeepLab, SEAMOutput, build_seam, find_trained, load_deeplab, load_seam
from seam_dist.models.weights.trained import WEIGHTS, Trained

AnyImage: TypeAlias = "NDArray[np.uint8] | Image.Image | Tensor | str | Path"
"""(H, W, 3) uint8 RGB, a PIL image, (3, H, W) uint8 or floating point in 0..1, or the path of an image file."""
AnyClass: TypeAlias = "str | int"
"""Name of a class, or its id from 1."""

Device: TypeAlias = "str | torch.device | None"
"""None is a GPU if there is one."""
Part: TypeAlias = Literal["seam", "final"]

_Settings: TypeAlias = InferCamConfig | InferSegConfig
_STAGES: dict[Part, Stage] = {"seam": "train_seam", "final": "train_seg"}
# No setting of a model conflicts with this crop size; nothing is cropped here.
_CROP_SIZE = 449


class _Model:
    """A network in eval mode on its device, the names of its classes, and how images go through it."""

    network: SEAM | DeepLab
    classes: tuple[str, ...]

    def _set(
        self,
        network: SEAM | DeepLab,
        classes: tuple[str, ...],
        device: Device,
        align: int | None,
        inference: _Settings,
        source: SourceConfig,
    ) -> None:
        self.network = network.to(_device(device)).eval()
        self.classes = classes
        self._pixel_range = source.pixel_range
        self._settings = {"scales": inference.scales, "flip": inference.flip, "align": align}

    @contextmanager
    def _inference(self, **given: Any) -> Iterator[dict[str, Any]]:
        """Switch dropout off in the block; yield the settings of inference with those given (not None)."""
        was_training = self.network.training
        _check_settings(given)
        self.network.eval()
        try:
            yield self._settings | {name: value for name, value in given.items() if value is not None}
        finally:
            self.network.train(was_training)


class SEAMModel(_Model):
    """SEAM, which localizes classes that an image is known to show. In the API its name is `seam.SEAM`.

    network: the torch module, for training; classes: names, the first has id 1.
    """

    network: SEAM

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        classes: Sequence[str] | None = None,
        backbone: str = "resnet38d",
        pretrained: str | Path | None = None,
        device: Device = None,
        **model: Any,
    ) -> None:
        """Build a new network for `num_classes` foreground classes, or for those named.

        pretrained: a weight file, "package" (ImageNet weights from the backbone's Python package) or None for random
        weights from torch's generator. `model` are other settings of the section `model` of a config, for example
        output_stride=16. Without weights nothing is frozen.
        """
        names = _class_names(num_classes, classes)
        if pretrained is None:
            model = {"freeze_batchnorm": False, "freeze_stem": False, **model}
        model.update(backbone=backbone, pretrained=None if pretrained is None else str(pretrained))
        cfg = from_tree({"model": model, "augment": {"crop_size": _CROP_SIZE}})
        align = cfg.model.output_stride if cfg.model.align_grid else None
        self._set(build_seam(cfg, len(names))[0], names, device, align, cfg.infer_cam, cfg.source)

    @classmethod
    def from_run(cls, run: str | Path, device: Device = None) -> SEAMModel:
        """Return the network of a run's train_seam; see `load`."""
        trained = find_trained(_path(run, "run"), "train_seam")
        inference = InferCamConfig(**trained.recorded("infer_cam", ("scales", "flip", "cam")))
        model = cls.__new__(cls)
        model._set(load_seam(trained), trained.classes, device, trained.align, inference, _recorded_source(trained))
        model.network.pcm = model.network.pcm and inference.cam == "refined"
        return model

    def __call__(self, images: Tensor) -> SEAMOutput:
        """Return the CAMs of a batch (B, 3, H, W), uint8 or floating point in 0..1, as `seam_loss` takes them."""
        _check_tensor(images, "images", "(B, 3, H, W)", dim=4)
        output: SEAMOutput = self.network(
            network_input(self.network, images if images.dtype == torch.uint8 else images * 255)
        )
        return output

    def cam(
        self,
        image: AnyImage,
        classes: Sequence[AnyClass] | AnyClass,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the CAM (H, W) of each class, float32 in 0..1 at the image's size, by class name.

        classes: what the image shows, names or ids from 1; without any there is no CAM. Maps are scaled to 0..1 for
        each class, so that of a class that the image does not show means nothing. scales and flip: sizes relative to
        the image, whose maps are summed, and whether mirror images are added; unset: as configured in the run.
        """
        ids = _class_ids(classes, self.classes)
        pixels = read_image(image, self._pixel_range)
        with self._inference(scales=scales, flip=flip) as settings:
            (maps,) = infer_cams(self.network, [pixels], [ids], **settings)
        values = maps.cam.clamp(0, 1).float().cpu().numpy()
        return {self.classes[index - 1]: values[place].copy() for place, index in enumerate(ids)}

    def segment(self, image: AnyImage, **settings: Any) -> NDArray[np.uint8]:
        """Raise ValueError: SEAM needs to know the classes, the final network does not."""
        raise ValueError('SEAM makes no masks: use cam(image, classes), or segment of seam.load(run, part="final")')


class Segmenter(_Model):
    """The final network of a run, which needs an image alone.

    network: the torch module; classes: names, the first has id 1.
    """

    network: DeepLab

    def __init__(self, run: str | Path, device: Device = None) -> None:
        """Load the network of a run's train_seg; see `load`."""
        trained = find_trained(_path(run, "run"), "train_seg")
        inference = InferSegConfig(**trained.recorded("infer_seg", ("scales", "flip")))
        self._set(load_deeplab(trained), trained.classes, device, trained.align, inference, _recorded_source(trained))

    def segment(
        self, image: AnyImage, *, scales: Sequence[float] | None = None, flip: bool | None = None
    ) -> NDArray[np.uint8]:
        """Return the class ids (H, W) uint8 of all pixels: 0 the background, k the class `classes[k - 1]`.

        scales and flip: sizes relative to the image, whose logits are averaged, and whether mirror images are added;
        unset: as configured in the run.
        """
        pixels = read_image(image, self._pixel_range)
        with self._inference(scales=scales, flip=flip) as settings:
            return infer_labels(self.network, [pixels], **settings)[0]

    def cam(self, image: AnyImage, classes: Sequence[AnyClass] | AnyClass, **settings: Any) -> dict[str, Any]:
        """Raise ValueError: only SEAM has CAMs."""
        raise ValueError('the final network has no CAMs: load SEAM of the run with seam.load(run, part="seam")')


@overload
def load(run: str | Path, part: Literal["seam"], *, device: Device = None) -> SEAMModel: ...
@overload
def load(run: str | Path, part: Literal["final"], *, device: Device = None) -> Segmenter: ...
@overload
def load(run: str | Path, part: Part | None = None, *, device: Device = None) -> SEAMModel | Segmenter: ...
def load(run: str | Path, part: Part | None = None, *, device: Device = None) -> SEAMModel | Segmenter:
    """Return a trained network of a run: its final network (train_seg) if that is finished, else SEAM (train_seam).

    run: the folder of a run; with `part` also the folder of the stage, or its weight file. Raises ValueError when there
    is no such network.
    """
    folder = _path(run, "run")
    if part is None:
        finished = [name for name, stage in _STAGES.items() if (folder / stage / "final" / WEIGHTS).is_file()]
        if not finished:
            raise ValueError(
                f"{folder} holds neither train_seg/final nor train_seam/final: give the folder of a run whose training "
                'is finished, or a weight file with part="seam" or part="final"'
            )
        part = finished[-1]
    if part not in tuple(_STAGES):
        raise ValueError(f"part={part!r} is not a network of a run: expected 'seam' or 'final'")
    return Segmenter(folder, device) if part == "final" else SEAMModel.from_run(folder, device)


def read_image(image: AnyImage, pixel_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB. Raises ValueError.

    A file is turned as its EXIF orientation says; a PIL image is taken as its pixels lie.

    pixel_range: values that are black and white in files of more than 8 bits, as in `source.pixel_range`.
    """
    if isinstance(image, str | Path):
        try:
            return read_image_file(_path(image, "image"), max_pixels=DataConfig().max_pixels, pixel_range=pixel_range)
        except OSError as error:
            raise ValueError(f"image {image} cannot be read ({error.strerror}): give the path of an image") from None
        except BadImageError as error:
            raise ValueError(f"image {image} cannot be used: {error}") from None
    if isinstance(image, Tensor):
        _check_tensor(image, "image", "(3, H, W)", dim=3)
        pixels = image if image.dtype == torch.uint8 else (image.float() * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(
                f"image is a PIL image of mode {image.mode}, expected 8 bits a channel: give the path of its file, or "
                "scale it to 8 bits"
            )
        try:
            return np.array(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"image cannot be decoded ({error}): copy or download it again") from None
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}, expected a numpy array, PIL image, tensor or path")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}, expected uint8 RGB of shape (H, W, 3)")
    return np.ascontiguousarray(image)


def _path(path: Any, name: str) -> Path:
    """Return a path with `~` expanded."""
    if not isinstance(path, str | Path):
        raise ValueError(f"{name} is a {type(path).__name__}, expected a path")
    return user_path(path)


def _device(device: Device) -> torch.device:
    """Return a device that torch has here; None is a GPU if there is one."""
    has_gpu = torch.cuda.is_available()
    try:
        chosen = torch.device(device if device is not None else "cuda" if has_gpu else "cpu")
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device!r} is no device of torch: give 'cpu' or 'cuda'") from None
    if chosen.type == "cuda" and not has_gpu:
        raise ValueError(f"device={device!r} but torch sees no GPU: give 'cpu', or install a GPU build of torch")
    return chosen


def _check_settings(given: Mapping[str, Any]) -> None:
    """Raise ValueError for scales and flip that inference cannot use; None is unset."""
    scales, flip = given.get("scales"), given.get("flip")
    if scales is not None:
        numbers = not isinstance(scales, str) and isinstance(scales, Iterable)
        if not numbers or not all(isinstance(scale, int | float | np.number) for scale in scales):
            raise ValueError(f"scales={scales!r}: expected a list of numbers, for example [0.5, 1.0]")
        check_scales(scales, "scales")
        if max(scales) > LARGEST_SCALE:
            raise ValueError(f"scales={scales!r}: expected at most {LARGEST_SCALE}, which memory can hold")
    if flip is not None and not isinstance(flip, bool | np.bool_):
        raise ValueError(f"flip={flip!r}: expected True or False")


def _recorded_source(trained: Trained) -> SourceConfig:
    """Return how the images of the training were read."""
    return SourceConfig(**trained.recorded("source", ("pixel_range",)))


def _check_tensor(image: Tensor, name: str, shape: str, *, dim: int) -> None:
    """Raise ValueError for anything but RGB in uint8, or in floating point between 0 and 1."""
    if not isinstance(image, Tensor):
        raise ValueError(f"{name} is a {type(image).__name__}, expected a tensor of shape {shape}")
    if image.dim() != dim or image.shape[-3] != 3 or 0 in image.shape:
        raise ValueError(f"{name} is a tensor of shape {tuple(image.shape)}, expected RGB of shape {shape}")
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise ValueError(f"{name} is a tensor of {image.dtype}, expected uint8, or floating point in 0..1")
    low, high = float(image.detach().min()), float(image.detach().max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name} has values from {low:g} to {high:g}, expected 0..1, before any normalization")


def _class_names(num_classes: int | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        if not isinstance(num_classes, int | np.integer) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: give the number of foreground classes, or their names")
        return tuple(f"class_{index}" for index in range(1, num_classes + 1))
    names = tuple(classes)
    if (
        isinstance(classes, str)
        or not names
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) != len(names)
    ):
        raise ValueError(f"classes={classes!r} are not names of classes: give a list of different names")
    if num_classes not in (None, len(names)):
        raise ValueError(f"num_classes={num_classes}, but classes has {len(names)} names: give one of them")
    return names


def _class_ids(classes: Sequence[AnyClass] | AnyClass, names: tuple[str, ...]) -> list[int]:
    """Return the ids from 1 of classes that are given by name or id, each once, in their order."""
    if not isinstance(classes, Iterable):
        classes = [classes]
    given = [classes] if isinstance(classes, str) else list(classes)
    return list(dict.fromkeys(_class_id(entry, names) for entry in given))


def _class_id(entry: AnyClass, names: tuple[str, ...]) -> int:
    known = f"expected some of {', '.join(names)}, or their ids 1 to {len(names)}"
    if isinstance(entry, bool) or not isinstance(entry, str | int | np.integer):
        raise ValueError(f"class {entry!r} is a {type(entry).__name__}, expected a name or an id: {known}")
    if isinstance(entry, str) and entry in names:
        return names.index(entry) + 1
    if entry in ("background", 0):
        raise ValueError(f"class {entry!r} is the background, which has no CAM: {known}")
    if isinstance(entry, str):
        raise ValueError(f"class {entry!r} is not one of the model's{nearest(entry, names)}: {known}")
    if not 1 <= entry <= len(names):
        raise ValueError(f"class id {entry} is not one of the model's: {known}")
    return int(entry)
