"""Checksums, versions, and the memory that a stage took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seam_dist.artifacts import provenance


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert provenance.sha256_file(tmp_path / "a") == expected


def test_fingerprint_does_not_depend_on_the_order_of_keys_but_on_values() -> None:
    assert provenance.fingerprint({"a": 1, "b": [2, 3]}) == provenance.fingerprint({"b": [2, 3], "a": 1})
    assert provenance.fingerprint({"a": 1}) != provenance.fingerprint({"a": 2})


def test_versions_name_python_torch_and_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"python", "torch", "numpy", "seam-dist"} <= provenance.versions().keys()

    def nothing(name: str) -> str:
        raise provenance.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance.metadata, "version", nothing)
    assert provenance.versions()["torch"] == "not installed"


def test_peak_memory_is_that_since_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    provenance.reset_peak_memory()
    before = provenance.machine()
    assert before["world_size"] == 3
    if before["host_peak_gib"] is None:
        pytest.skip("the system does not say how much memory a process has held")
    block = np.ones(2**27, np.uint8)  # 128 MiB
    assert provenance.machine()["host_peak_gib"] >= before["host_peak_gib"] + 0.1
    del block
