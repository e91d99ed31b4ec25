"""Speed, memory and time by part of a SEAM training step, against the published form of the step on the same machine.

published: float32, contiguous memory, PCM from dense N x N matrices, the losses as PARITY.md section 2 reads.
fused: bf16 autocast, channels_last, fused PCM of the channels that the losses read, `seam_dist.losses.seam`.
fused-high: the same with torch.set_float32_matmul_precision("high"), that is PCM's products in tf32.
fused-compiled: fused, the network through torch.compile.

All on ResNet38d with random weights and images, frozen as in training, SGD with momentum. `mfu` is the flops of the
network (convolutions and matrix products of the published form, forward and backward, counted by torch) over the
step's time and over the rate of large matrix products in bf16 (CPU: float32) measured just before. The parts are timed
in a second pass of steps that is cut at their borders, so their sum is a little above the step. Needs no DeepSpeed and
no data. Times are wall time on a GPU and process time on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from seam_dist.bench.published import PublishedSEAM, published_loss
from seam_dist.config.schema import ScheduleConfig
from seam_dist.losses.seam import seam_loss
from seam_dist.models import SEAM, SEAMOutput, parameter_groups
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.grid import resize
from seam_dist.models.seam import present_channels

FORMS = ("published", "fused", "fused-high", "fused-compiled")
PARTS = (
    "backbone_forward", "classifier_forward", "pcm_forward", "losses", "pcm_backward", "classifier_backward",
    "backbone_backward", "optimizer",
)  # fmt: skip
COLUMNS = (
    *("form", "batch", "crop", "scale", "width", "classes", "images_per_s", "step_ms", "tflop_per_image", "mfu"),
    *("peak_gib", *(f"{part}_ms" for part in PARTS), "matrix_tflops", "device", "torch"),
)


class Step:
    """One form of the training step on a fixed random batch."""

    def __init__(self, args: argparse.Namespace, form: str, device: torch.device) -> None:
        self.device = device
        self.fused = form != "published"
        torch.manual_seed(0)
        with device:
            backbone = ResNet38d(width=args.width)
            backbone.freeze(batchnorm=True, stem=True)
            self.model = (SEAM if self.fused else PublishedSEAM)(backbone, args.classes)
            self.image = torch.randn(args.batch, 3, args.crop, args.crop)
        self.model.train()
        generator = torch.Generator().manual_seed(0)
        label = (torch.rand(args.batch, args.classes, generator=generator) < 1.5 / args.classes).float()
        self.channels = present_channels(label).to(device) if self.fused else None
        self.label = label.to(device)
        self.second_side = max(1, int(args.crop * args.scale))
        if self.fused:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.image = self.image.contiguous(memory_format=torch.channels_last)
        self.run: nn.Module = torch.compile(self.model) if form == "fused-compiled" else self.model  # type: ignore[assignment]
        # Noise teaches nothing: a small rate keeps the weights finite.
        groups = parameter_groups(self.model, ScheduleConfig(lr=1e-9))
        self.optimizer = torch.optim.SGD(groups, lr=1e-9, momentum=0.9)

    def autocast(self) -> torch.autocast:
        """Return the context of the network's forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.fused)

    def views(self) -> tuple[Tensor, Tensor]:
        """Return the images of both views."""
        return self.image, resize(self.image, (self.second_side, self.second_side))

    def loss(self, first: SEAMOutput, second: SEAMOutput) -> Tensor:
        """Return the total loss."""
        if self.fused:
            return seam_loss(first, second, self.label)["loss"]
        return published_loss(first, second, self.label)

    def forward(self) -> Tensor:
        """Return the total loss of both views."""
        with self.autocast():
            first, second = (self.run(view, self.channels) for view in self.views())
        return self.loss(first, second)

    def __call__(self) -> Tensor:
        """Train one step."""
        loss = self.forward()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def parts(self, clock: Callable[[], float]) -> dict[str, float]:
        """Train one step, cut at the borders of PARTS, and return the seconds of each."""
        times = [clock()]
        model, views = self.model, self.views()
        with self.autocast():
            features = [model.backbone(view) for view in views]
        times.append(clock())
        leaves = [f.conv6.detach().requires_grad_() for f in features]
        cams = [model.fc8(model.dropout7(leaf)) for leaf in leaves]
        times.append(clock())
        refined = [
            model._refine(cam.detach(), f, view.float(), self.channels)
            for cam, f, view in zip(cams, features, views, strict=True)
        ]
        times.append(clock())
        grids = [[x.detach().requires_grad_() for x in pair] for pair in zip(cams, refined, strict=True)]
        sizes = [(view.shape[2], view.shape[3]) for view in views]
        full = [SEAMOutput(*(resize(x, size) for x in pair)) for pair, size in zip(grids, sizes, strict=True)]
        torch.autograd.backward(self.loss(full[0], full[1]))
        times.append(clock())
        torch.autograd.backward(refined, [pair[1].grad for pair in grids])
        times.append(clock())
        torch.autograd.backward(cams, [pair[0].grad for pair in grids])
        times.append(clock())
        torch.autograd.backward([f.conv6 for f in features], [leaf.grad for leaf in leaves])
        times.append(clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(clock())
        return {part: end - begin for part, (begin, end) in zip(PARTS, pairwise(times), strict=True)}


def count_flops(args: argparse.Namespace) -> int:
    """Return the flops of a forward and backward pass of the published form, counted without computing it."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        step = Step(args, "published", torch.device("cpu"))
        torch.autograd.backward(step.forward())
    return int(counter.get_total_flops())


def read_clock(device: torch.device) -> float:
    """Return seconds: of the process and a thread, or on the wall once the GPU is idle."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device) -> float:
    """Return the flops a second of large products, bf16 on a GPU and float32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):
        begin = read_clock(device)
        a @ a
        seconds.append(read_clock(device) - begin)
    return 2 * side**3 / statistics.median(seconds[2:])


def measure_form(args: argparse.Namespace, form: str, flops: int, rate: float) -> dict[str, Any]:
    """Return the row of a form."""
    device = torch.device(args.device)
    clock = partial(read_clock, device)
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("high" if form == "fused-high" else "highest")
    step = Step(args, form, device)
    for _ in range(args.warmup):
        step()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = clock()
    for _ in range(args.steps):
        step()
    seconds = (clock() - begin) / args.steps
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.3f}" if is_gpu else ""
    parts = [step.parts(clock) for _ in range(1 + args.steps)][1:]
    row = {"form": form, **{name: getattr(args, name) for name in ("batch", "crop", "scale", "width", "classes")}}
    row |= {"images_per_s": f"{args.batch / seconds:.4g}", "step_ms": f"{seconds * 1e3:.4g}"}
    row |= {"tflop_per_image": f"{flops / args.batch / 1e12:.4g}", "mfu": f"{flops / seconds / rate:.3f}"}
    row["peak_gib"] = peak
    row |= {f"{part}_ms": f"{statistics.median(entry[part] for entry in parts) * 1e3:.4g}" for part in PARTS}
    row["matrix_tflops"] = f"{rate / 1e12:.4g}"
    return row | {"device": torch.cuda.get_device_name() if is_gpu else "cpu", "torch": torch.__version__}


def check_csv(path: Path | None) -> None:
    """Raise ValueError when there is a file to which rows cannot be added: one that is no table of this benchmark."""
    if path is None or not path.exists():
        return
    found = path.read_text(errors="replace").partition("\n")[0].rstrip("\r") if path.is_file() else "a folder"
    if found and found != ",".join(COLUMNS):
        raise ValueError(
            f"--csv {path} is no table of this benchmark: expected the columns {','.join(COLUMNS)}, found "
            f"{found[:200]!r}: give another file"
        )


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each form, and what the fused forms gain; add the rows to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS[:3]))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=448, help="side of the first view, pixels")
    parser.add_argument("--scale", type=float, default=0.3, help="side of the second view over that of the first")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the network's channels")
    parser.add_argument("--classes", type=int, default=20, help="foreground classes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="file that the rows are added to")
    args = parser.parse_args(arguments)
    try:
        check_csv(args.csv)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cpu":
        torch.set_num_threads(1)
    flops, rate = count_flops(args), matrix_rate(torch.device(args.device))
    rows = []
    for form in args.forms:
        try:
            rows.append(measure_form(args, form, flops, rate))
        except torch.cuda.OutOfMemoryError:
            print(f"{form}: out of memory at batch {args.batch}", flush=True)
            continue
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items() if value != ""), flush=True)
    published = next((row for row in rows if row["form"] == "published"), None)
    for row in rows:
        if published and row is not published:
            faster = float(row["images_per_s"]) / float(published["images_per_s"])
            line = f"{row['form']}: {faster:.2f} x the images/s of the published form"
            if row["peak_gib"]:
                line += f", {float(row['peak_gib']) / float(published['peak_gib']):.2f} x its peak memory"
            print(line, flush=True)
    if args.csv and rows:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
