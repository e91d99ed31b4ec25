"""Processes that work beside this one: they start without the running program and end when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

from seam_dist.cluster.signals import StopRequest


@contextmanager
def main_hidden() -> Iterator[None]:
    """Keep new processes from importing the running program: it is the command with everything behind it.

    multiprocessing imports it so that functions of the program itself can be called; here there are none.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back in the block, which starts processes, and act on them at its end.

    A fork server that starts in it stays deaf to Ctrl-C: it would end in the middle of importing torch.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = StopRequest()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with stop:
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if stop.signum:
            signal.raise_signal(stop.signum)


def follow_parent() -> None:
    """Make this process deaf to Ctrl-C, which its parent handles, and end it when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        # The queue that this process waits at stays open without the parent: it would wait forever.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
