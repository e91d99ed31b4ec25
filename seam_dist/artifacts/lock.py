"""The lock of a stage: one process at a time runs it, and other commands see which.

The lock is the kernel's, on runs/<name>/.running/<stage>, so it ends with its process however that ends. The file holds
who has it. It lies outside of the stage's folder, which a rerun empties.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seam_dist.artifacts.stage import StageError

FOLDER = ".running"
_held: set[Path] = set()


@contextlib.contextmanager
def stage_lock(run_dir: Path, stage: str) -> Iterator[None]:
    """Hold a stage of a run for this process: it shows as running until the block, or the process, ends.

    A process that holds it already enters at once. Raises StageError when another process holds it.
    """
    path = (run_dir / FOLDER / stage).absolute()
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _is_running(run_dir, stage, lock_holder(run_dir, stage) or {}) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, file)
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)
            # Removed while it is held: who waits for it meets a file without a name, or none.
            path.unlink(missing_ok=True)


def check_unlocked(run_dir: Path, stage: str) -> None:
    """Raise StageError when a process runs the stage now."""
    if (holder := lock_holder(run_dir, stage)) is not None:
        raise _is_running(run_dir, stage, holder)


def _is_running(run_dir: Path, stage: str, holder: dict[str, Any]) -> StageError:
    return StageError(
        f"stage {stage} of {run_dir} is running already (process {holder.get('pid', 'unknown')} on "
        f"{holder.get('host', 'an unknown host')}): wait for it or end it, or give this run another run.name"
    )


def lock_holder(run_dir: Path, stage: str) -> dict[str, Any] | None:
    """Return process, host and start time (`pid`, `host`, `since`) of who runs the stage now; None when nobody does."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(run_dir / FOLDER / stage) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(ValueError):
                return dict(json.load(file))
            return {}
    return None
