"""Dense CRFs beside the network: a pool of processes, and the labels that the stages make of the refined scores.

A CRF takes about a second an image on one core, so the pool's processes work while the network does. Only the classes
of an image and the background go into its CRF. Whatever is made of the refined scores (labels, affinity labels, the
authors' files) is made in the process that computed them: scores at full size would be 4 MB an image on the way back.

The processes come from a fork server, which imports torch and the kernels once for all of them; they import neither the
program that started them nor the training stack, run one thread each, and end when their rank does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from seam_kernels import dense_crf

from seam_dist.artifacts.authors_files import read_crf_dict, stack_maps, write_crf_dict
from seam_dist.cluster.processes import follow_parent, main_hidden, signals_held
from seam_dist.config.packages import require_package
from seam_dist.config.schema import IGNORE_INDEX, Config, CrfConfig
from seam_dist.inference.pseudo_labels import Pixels, Scores, background_score, block_means, choose_classes

P = ParamSpec("P")
T = TypeVar("T")

_NO_SCORE = 1e-5  # blocks without a larger score than this are ignored (PARITY.md section 5)
_WAITING = 2  # images a process that wait for it; more would only hold memory


class CamLabels(NamedTuple):
    """Labels (H, W) of CAM + CRF, and affinity labels (ceil(H / s), ceil(W / s)) where they were asked for; uint8."""

    labels: Pixels
    affinity: Pixels | None


def check_crf(cfg: CrfConfig) -> None:
    """Raise ValueError when the CRF that `cfg` asks for cannot run here."""
    if cfg.impl == "lattice":
        try:
            require_package("pydensecrf.densecrf", extra="crf", needed_by="crf.impl=lattice")
        except ValueError as error:
            raise ValueError(
                f"{error}, or set crf.impl=torch (slow on large images), or infer_cam.crf, random_walk.crf and "
                "infer_seg.crf to false"
            ) from None
    if cfg.impl == "lattice" and cfg.source_stride != 1:
        raise ValueError(
            f"crf.source_stride={cfg.source_stride} has no effect on crf.impl=lattice: set it to 1, or crf.impl=torch"
        )
    if cfg.impl == "triton" and not torch.cuda.is_available():
        raise ValueError("crf.impl=triton needs a GPU and torch sees none: set crf.impl=lattice or crf.impl=torch")


def crf_workers(cfg: Config) -> int:
    """Return the number of CRF processes of this rank: crf.num_workers, else its threads; 0 where a GPU does the work.

    Call it after init_world, which settles the threads.
    """
    if crf_device(cfg).type == "cuda":
        return 0
    if cfg.crf.num_workers is not None:
        return cfg.crf.num_workers
    return cfg.run.threads or torch.get_num_threads()


def crf_device(cfg: Config) -> torch.device:
    """Return where the CRFs of this rank run: on its GPU with impl triton, and with auto where there is one."""
    on_gpu = cfg.crf.impl in ("triton", "auto") and cfg.run.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def with_background(cam: Scores, alpha: float) -> Scores:
    """Return scores (K + 1, H, W): the background (1 - max over classes)^alpha, then the map (K, H, W) itself.

    Without a class the background is 1. PARITY.md section 3.
    """
    strongest = cam.max(axis=0, keepdims=True) if len(cam) else np.zeros((1, *cam.shape[1:]), np.float32)
    return np.concatenate([background_score(strongest, alpha), cam])


def affinity_labels(low: Scores, high: Scores, classes: Sequence[int], stride: int) -> Pixels:
    """Return affinity labels from the scores (K + 1, H, W) of both CRFs, that of the smaller alpha first.

    Block means, then argmax, then: `low` is background -> 255; `high` is background -> 0; no score of either reaches
    1e-5 -> 255; in this order. What is left has the class of `low`. PARITY.md section 5.
    """
    low, high = (block_means(torch.from_numpy(scores), stride).numpy() for scores in (low, high))
    labels = choose_classes(low, classes)
    labels[labels == 0] = IGNORE_INDEX
    labels[high.argmax(axis=0) == 0] = 0
    labels[np.maximum(low.max(axis=0), high.max(axis=0)) < _NO_SCORE] = IGNORE_INDEX
    return labels


class CrfPool(AbstractContextManager["CrfPool"]):
    """`workers` processes that compute dense CRFs with the settings `cfg`; 0 computes at once, in the caller.

    A context manager. `submit` waits when two images a process are waiting already, so that a fast network does not
    fill the memory. An error in a process, or its death, is raised by the future's result().
    """

    def __init__(self, cfg: CrfConfig, workers: int, *, device: torch.device | None = None) -> None:
        check_crf(cfg)
        self._cfg, self._device = cfg, device or torch.device("cpu")
        self._places = threading.BoundedSemaphore(max(1, workers * (1 + _WAITING)))
        self._executor: ProcessPoolExecutor | None = None
        if workers > 0:  # processes start with the first CRFs
            context = multiprocessing.get_context("forkserver")
            # torch imports its compiler, 2 s of work, when the first operation of seam_kernels is called.
            exact = [] if cfg.impl == "lattice" else ["torch._dynamo"]
            context.set_forkserver_preload([__name__, *exact])
            self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def submit(
        self, function: Callable[Concatenate[CrfConfig, torch.device, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Return the future result of a function of this module, called with settings, device and the arguments."""
        if self._executor is None:
            done: Future[T] = Future()
            done.set_result(function(self._cfg, self._device, *args, **kwargs))
            return done
        self._places.acquire()
        try:
            with main_hidden(), signals_held():
                future = self._executor.submit(function, self._cfg, self._device, *args, **kwargs)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return future


def _start_worker() -> None:
    """One thread, deaf to Ctrl-C, which the rank handles, and gone when the rank is."""
    torch.set_num_threads(1)
    follow_parent()


def refine(
    cfg: CrfConfig, device: torch.device, image: Pixels, scores: Scores, num_iters: int, bilateral_sxy: float
) -> Scores:
    """Return the probabilities (C, H, W) of scores (C, H, W) on an image (H, W, 3)."""
    if len(scores) == 1:  # background alone: whatever its scores, nothing else is probable
        return np.ones(scores.shape, np.float32)
    refined = dense_crf(
        torch.from_numpy(np.ascontiguousarray(scores, np.float32))[None].to(device),
        torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None],
        num_iters=num_iters,
        gaussian_sxy=cfg.gaussian_sxy,
        gaussian_compat=cfg.gaussian_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=cfg.bilateral_srgb,
        bilateral_compat=cfg.bilateral_compat,
        source_stride=cfg.source_stride,
        impl=cfg.impl,
    )
    return refined[0].cpu().numpy()


def refine_labels(
    cfg: CrfConfig,
    device: torch.device,
    image: Pixels,
    scores: Scores,
    classes: Sequence[int],
    num_iters: int,
    bilateral_sxy: float,
) -> Pixels:
    """Return the labels (H, W): the most probable of background and `classes`; scores are (K + 1, H, W)."""
    return choose_classes(refine(cfg, device, image, scores, num_iters, bilateral_sxy), classes)


def refine_cam(
    cfg: CrfConfig,
    device: torch.device,
    image: Pixels,
    cam: Scores,
    classes: Sequence[int],
    alphas: tuple[float, float],
    stride: int | None = None,
    dicts: tuple[Path, Path] | None = None,
) -> CamLabels:
    """Return the labels of a normalized CAM (K, H, W) from the CRFs of both backgrounds.

    stride: affinity labels are made as well, in blocks of stride x stride pixels. dicts: the authors' CRF files to
    write, one for each alpha. With neither, the first CRF alone is computed.
    """
    used = alphas if stride is not None or dicts is not None else alphas[:1]
    settings = cfg.num_iters, cfg.bilateral_sxy
    refined = [refine(cfg, device, image, with_background(cam, alpha), *settings) for alpha in used]
    if dicts is not None:
        for path, scores in zip(dicts, refined, strict=True):
            write_crf_dict(path, classes, scores)
    return _cam_labels(refined, classes, stride)


def read_refined(
    cfg: CrfConfig,
    device: torch.device,
    paths: tuple[Path, Path],
    size: tuple[int, int],
    classes: Sequence[int],
    stride: int | None,
) -> CamLabels:
    """Return what `refine_cam` does, for an image (height, width) whose CRFs are the authors' CRF dicts."""
    used = paths if stride is not None else paths[:1]
    return _cam_labels([stack_maps(path, read_crf_dict(path), (0, *classes), size) for path in used], classes, stride)


def _cam_labels(refined: Sequence[Scores], classes: Sequence[int], stride: int | None) -> CamLabels:
    affinity = None if stride is None else affinity_labels(refined[0], refined[1], classes, stride)
    return CamLabels(choose_classes(refined[0], classes), affinity)
