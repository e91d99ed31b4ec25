"""How a training job ends early: asked to by a signal, or by a watchdog when a step never returns."""

from __future__ import annotations

import faulthandler
import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Takes SIGINT and SIGTERM while it is entered, and only notes them: the loop stops after the step in progress.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signum == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or number


class Watchdog:
    """Ends the process with exit code 1, all stacks on stderr, when it is not fed for `timeout_s` seconds.

    The timer is a thread of C: it fires also while the interpreter is stuck in a collective or a kernel.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def feed(self) -> None:
        """Restart the countdown."""
        # sys.__stderr__: pytest and progress bars replace sys.stderr by objects without a file descriptor.
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=sys.__stderr__ or 2)

    def __enter__(self) -> Watchdog:
        self.feed()
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()
