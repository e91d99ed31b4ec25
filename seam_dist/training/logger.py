"""What training says about itself: a progress bar, metrics.jsonl, TensorBoard scalars and pictures; main rank only."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from seam_dist.artifacts.atomic import atomic_write
from seam_dist.cluster.distributed import World
from seam_dist.cluster.progress import progress_bar
from seam_dist.config.schema import ScheduleConfig
from seam_dist.losses.seam import max_norm

_NUM_PICTURES = 4


class TrainLogger:
    """Writes metrics.jsonl and tensorboard/ in `folder`; on other ranks than the main one every method does nothing.

    `step` is the number of steps done so far. Lines and scalars beyond it, left by a run that was interrupted after its
    last checkpoint, are dropped: the run takes those steps again.
    """

    def __init__(
        self, folder: Path, world: World, stage: str, schedule: ScheduleConfig, max_steps: int, step: int = 0
    ) -> None:
        self.world = world
        self.schedule = schedule
        self.max_steps = max_steps
        if not world.is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        time_s = drop_lines_after(folder / "metrics.jsonl", step)
        self._file: IO[str] = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        # Imported here: it takes a second, and other ranks do without it.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._bar = progress_bar(stage, max_steps, "step", initial=step)
        self._start = time.perf_counter() - time_s
        self._last = (step, time.perf_counter())

    def log(self, step: int, losses: Mapping[str, float], *, lr: float) -> None:
        """Take note of a finished step; write the losses of its global batch every `log_every` steps and last."""
        if not self.world.is_main:
            return
        self._bar.update(1)
        if step % self.schedule.log_every and step != self.max_steps:
            return
        now = time.perf_counter()
        last_step, last_time = self._last
        self._last = (step, now)
        images_per_s = (step - last_step) * self.schedule.global_batch_size / (now - last_time)
        named = {f"loss/{'total' if name == 'loss' else name}": value for name, value in losses.items()}
        record = {
            "step": step,
            "time_s": round(now - self._start, 3),
            "images_per_s": round(images_per_s, 2),
            "lr": lr,
            **named,
            "memory/peak_gib": round(_peak_gib(self.world.device), 3),
        }
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        shown = {name.removeprefix("loss/"): f"{value:.3f}" for name, value in named.items()}
        self._bar.set_postfix({"images/s": f"{images_per_s:.1f}", **shown}, refresh=False)
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, images: Tensor, cam: Tensor, cam_refined: Tensor | None, label: Tensor) -> None:
        """Add rows of image, CAM and refined CAM to TensorBoard; images (B, 3, H, W) with values in 0..1."""
        if not self.world.is_main:
            return
        self._writer.add_image("cam", cam_rows(images, cam, cam_refined, label), step, dataformats="HWC")
        self._writer.flush()

    def __enter__(self) -> TrainLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.world.is_main:
            self._bar.close()
            self._file.close()
            self._writer.close()


def drop_lines_after(path: Path, step: int) -> float:
    """Keep the whole lines of a metrics file up to `step`; return the time_s of the last one, 0 without any."""
    if not path.exists():
        return 0.0
    kept, time_s = [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a process that was killed while it wrote.
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
            time_s = float(record["time_s"])
    atomic_write(path, "".join(kept))
    return time_s


def cam_rows(images: Tensor, cam: Tensor, cam_refined: Tensor | None, label: Tensor) -> np.ndarray[Any, Any]:
    """Return uint8 (rows * H, columns * W, 3): a row an image, with the image, its CAM and its refined CAM.

    A map shows the largest normalized value over the classes of the label, from black over red and yellow to white.
    """
    maps = [cam] if cam_refined is None else [cam, cam_refined]
    rows = []
    for index in range(min(_NUM_PICTURES, images.shape[0])):
        image = images[index].float().clamp(0, 1).cpu()
        row = [image]
        for each in maps:
            # [C + 1, H, W] -> [H, W]; the background channel has no label.
            shown = max_norm(each[index : index + 1].float())[0, 1:] * label[index].float()[:, None, None]
            heat = shown.amax(dim=0).clamp(0, 1).cpu()
            colors = torch.stack([(3 * heat - channel).clamp(0, 1) for channel in range(3)])
            row.append(0.4 * image + 0.6 * colors)
        rows.append(torch.cat(row, dim=2))
    grid = (torch.cat(rows, dim=1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(grid.permute(1, 2, 0).numpy())


def _peak_gib(device: torch.device) -> float:
    """Return the peak memory of this process: on its GPU, or its resident set in host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
