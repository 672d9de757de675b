"""`flwr run`: this project in Flower's own simulation, with real processes and Ray.

Needs the [ray] extra and about a minute: pytest -m slow tests/test_flwr_run.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from clients.cohort import Cohort
from clients.site import Site
from fedinit.cli import main
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import WORDS, small_config

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra: pip install -e '.[ray]'"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def superlink(tmp_path):
    """A simulation SuperLink on a port and in a Flower home of its own; yields the environment for `flwr`."""
    port = free_port()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").write_text(
        f'[superlink]\ndefault = "sim"\n[superlink.sim]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    with open(tmp_path / "superlink.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield environment
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def flwr(environment, *words: str) -> str:
    return subprocess.run(
        ["flwr", *words], env=environment, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_two_rounds_in_flowers_simulation_equal_run_sim(superlink, tmp_path):
    """Three simulated SuperNodes, two rounds; the final adapter is the one of the in-process engine, bit for bit."""
    words = [*WORDS, "engine.clients_per_bank=1", f"output_dir={tmp_path / 'out'}"]
    assert main(["deploy", "app", str(tmp_path / "app"), *words]) == 0
    size = "num-supernodes=3 client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    app, options = str(tmp_path / "app"), ["--federation-config", size]
    run_id = json.loads(flwr(superlink, "run", app, "sim", "--format", "json", *options))["run-id"]
    deadline = time.monotonic() + 240
    status = ""
    while not status.startswith("finished") and time.monotonic() < deadline:
        time.sleep(2)
        status = json.loads(flwr(superlink, "list", "sim", "--run-id", run_id, "--format", "json"))["runs"][0]["status"]
    # `flwr run --stream` exits with 0 also when the run failed, so the status is what counts.
    assert status == "finished:completed", flwr(superlink, "log", run_id, "sim", "--show")[-3000:]
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == 2 and summary["clients"] == 3

    config = small_config("engine.clients_per_bank=1", "evaluation=clients")
    site = Site(config)
    ours = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
    assert ours.final_hash == summary["final_hash"]
    assert ours.score.by_domain == summary["accuracy_by_domain"]


def test_flower_bundle_carries_no_code_and_no_data(tmp_path):
    """The FAB holds the project file and the licence: each site runs the fedinit that is installed there."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(ROOT / "strategies", project / "strategies")
    shutil.copytree(ROOT / "clients", project / "clients")
    environment = os.environ | {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    subprocess.run([str(BIN / "flwr"), "build"], cwd=project, env=environment, check=True, capture_output=True)
    (bundle,) = project.glob("*.fab")
    names = zipfile.ZipFile(bundle).namelist()
    assert "LICENSE" in names and not [n for n in names if n.endswith(".py")]
    assert bundle.stat().st_size < 100_000
