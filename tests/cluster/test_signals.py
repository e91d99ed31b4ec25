"""How a training job ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from seam_dist.cluster.processes import signals_held
from seam_dist.cluster.signals import StopRequest


def test_second_interrupt_does_not_wait() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_watchdog_ends_a_hanging_process_with_its_stacks() -> None:
    code = (
        "import threading\n"
        "from seam_dist.cluster.signals import Watchdog\n"
        "def stuck_in_a_step():\n"
        "    threading.Event().wait()\n"
        "with Watchdog(0.2) as watchdog:\n"
        "    watchdog.feed()\n"
        "    stuck_in_a_step()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "stuck_in_a_step" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_start(number: signal.Signals) -> None:
    events: list[str] = []
    before = signal.signal(number, lambda *_: events.append("stopped"))
    try:
        with signals_held():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            signal.raise_signal(number)
            events.append("started")
    finally:
        signal.signal(number, before)
    assert events == ["started", "stopped"]
