"""The port at which ranks meet, found taken before they wait for each other."""

from __future__ import annotations

import socket

import pytest

from seam_dist.config.load import ConfigError
from seam_dist.preflight.machine import check_port


def launched(port: int | str, rank: int = 0, size: int = 2, **more: str) -> dict[str, str]:
    place = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    return {**place, "MASTER_PORT": str(port), **more}


def test_a_port_in_use_is_found_by_the_rank_that_would_open_it() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"MASTER_PORT={port} cannot be opened on this host .*--master_port"):
            check_port(launched(port))
        check_port(launched(port, rank=1))
        check_port(launched(port, size=1))
        # torchrun's own process holds the store that all ranks use.
        check_port(launched(port, TORCHELASTIC_USE_AGENT_STORE="True"))
    check_port(launched(port))


def test_a_process_without_a_launcher_has_no_port() -> None:
    check_port({})


def test_variables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="MASTER_PORT=99999 is no port"):
        check_port(launched(99999))
