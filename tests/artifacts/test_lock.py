"""The lock of a stage, between processes and within one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seam_dist.artifacts.lock import lock_holder, stage_lock
from seam_dist.artifacts.stage import StageError

HOLD = """
import sys, time
from pathlib import Path
from seam_dist.artifacts.lock import stage_lock
with stage_lock(Path(sys.argv[1]), "random_walk"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = pytest.raises(StageError, match=f"running already \\(process {holder.pid}")
        with refused, stage_lock(tmp_path, "random_walk"):
            pass
        with stage_lock(tmp_path, "infer_cam"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with stage_lock(tmp_path, "random_walk"):
        held = lock_holder(tmp_path, "random_walk")
        assert held is not None
        assert held["pid"] == os.getpid()
        assert held["since"] <= time.time()
    assert lock_holder(tmp_path, "random_walk") is None


def test_the_process_that_holds_it_may_enter_again_and_keeps_it(tmp_path: Path) -> None:
    with stage_lock(tmp_path, "train_seam"):
        with stage_lock(tmp_path, "train_seam"):
            pass
        assert lock_holder(tmp_path, "train_seam") is not None
    assert lock_holder(tmp_path, "train_seam") is None


def test_a_stage_that_fails_is_free_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage_lock(tmp_path, "train_seam"):
        raise RuntimeError("out of memory")
    assert lock_holder(tmp_path, "train_seam") is None
    with stage_lock(tmp_path, "train_seam"):
        assert lock_holder(tmp_path, "train_seam") is not None
