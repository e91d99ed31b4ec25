"""Settings of a process that decodes images beside others."""

from __future__ import annotations

import cv2
import torch


def single_thread(_: int = 0) -> None:
    """Keep this process to one thread: many decode side by side, and OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
