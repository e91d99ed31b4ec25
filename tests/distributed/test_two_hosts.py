"""Two hosts for real: network namespaces with an sshd in each, and the DeepSpeed launcher with a hostfile over pdsh.

Needs root, iproute2, pdsh and openssh-server (Debian's packages).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seam_dist.config.schema import STAGES

TOOLS = ("ip", "pdsh", "sshd", "ssh-keygen")
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
ADDRESSES = {"seam-host-1": "10.77.31.1", "seam-host-2": "10.77.31.2"}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool, path=SEARCH_PATH) is None]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or bool(missing_tools()), reason=f"needs root and {', '.join(TOOLS)}"),
]


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two namespaces on one virtual cable, an sshd in each; yields the hostfile."""
    monkeypatch.setenv("PATH", SEARCH_PATH)
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    (tmp_path / "authorized").write_text((tmp_path / "key.pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    servers: list[subprocess.Popen[bytes]] = []
    one, two = ADDRESSES
    try:
        for name in ADDRESSES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "seam-veth-1", "netns", one, "type", "veth", "peer", "seam-veth-2", "netns", two)
        for number, (name, address) in enumerate(ADDRESSES.items(), start=1):
            device = f"seam-veth-{number}"
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            options = ("AuthorizedKeysFile", tmp_path / "authorized"), ("HostKey", key), ("PermitRootLogin", "yes")
            arguments = [
                word for k, v in (*options, ("StrictModes", "no"), ("UsePAM", "no")) for word in ("-o", f"{k}={v}")
            ]
            command = ["ip", "netns", "exec", name, shutil.which("sshd", path=SEARCH_PATH) or "", "-D", "-e"]
            servers.append(subprocess.Popen([*command, "-f", "/dev/null", *arguments], stderr=subprocess.DEVNULL))
        # The launcher probes each host with plain `ssh`, and pdsh calls it too: this one knows the key.
        wrapper = tmp_path / "bin" / "ssh"
        wrapper.parent.mkdir()
        options_of_ssh = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        alive = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o ConnectTimeout=2"
        real = shutil.which("ssh", path=SEARCH_PATH)
        wrapper.write_text(f'#!/bin/sh\nexec {real} -i {key} {options_of_ssh} {alive} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{wrapper.parent}:{SEARCH_PATH}")
        deadline = time.monotonic() + 20
        probe = ["ip", "netns", "exec", one, str(wrapper), ADDRESSES[two], "true"]
        while subprocess.run(probe, capture_output=True, timeout=30).returncode and time.monotonic() < deadline:
            pass
        hostfile = tmp_path / "hosts"
        hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES.values()))
        yield hostfile
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=10)
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)


CONFIG = """
run: {{name: two-hosts, dir: {runs}, world_size: {world_size}, threads: 1, timeout_s: 120}}
source: {{kind: synthetic, num_images: [16, 4], num_classes: 2, image_size: [64, 48]}}
data: {{streams: 2, samples_per_shard: 8}}
augment: {{resize_long: [48, 64], crop_size: 48}}
model: {{backbone: resnet38d, width: 0.0625}}
loss: {{second_view_scale: 0.5}}
train_seam: {{schedule: {{global_batch_size: 4, max_steps: 3, log_every: 1}}}}
infer_cam: {{scales: [1.0], flip: false}}
train_affinity: {{schedule: {{global_batch_size: 4, max_steps: 3, log_every: 1}}, crop_size: 48, radius: 3}}
random_walk: {{num_steps: 8}}
train_seg:
  {{schedule: {{global_batch_size: 4, max_steps: 3, log_every: 1}}, crop_size: 48, width: 16, freeze_batchnorm: true}}
infer_seg: {{scales: [1.0], flip: false}}
deepspeed: {{zero_optimization: {{stage: 2}}}}
"""


def launch(hosts: Path, config: Path) -> subprocess.CompletedProcess[str]:
    one, address = next(iter(ADDRESSES.items()))
    command = [
        *("ip", "netns", "exec", one, sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts)),
        *("--master_addr", address, "--module", "seam_dist.cli", "--config", str(config)),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_all_stages_run_on_two_hosts_and_share_the_work(hosts: Path, tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(CONFIG.format(runs=tmp_path / "runs", world_size=2))
    result = launch(hosts, config)
    assert (tmp_path / "runs/two-hosts/report/report.html").is_file(), result.stdout[-4000:] + result.stderr[-4000:]
    lines = (tmp_path / "runs/two-hosts/train_seam/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    for stage in STAGES:
        assert (tmp_path / "runs/two-hosts" / stage / "manifest.json").is_file(), stage


def test_launch_with_fewer_ranks_than_configured_stops(hosts: Path, tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(CONFIG.format(runs=tmp_path / "runs", world_size=2))
    # The launcher only warns about a hostfile that is not there, and starts one local rank.
    result = launch(tmp_path / "no-such-hosts", config)
    assert not (tmp_path / "runs/two-hosts/train_seam").exists()
    assert "world_size" in result.stdout + result.stderr
