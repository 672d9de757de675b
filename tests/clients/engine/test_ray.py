"""Real Ray: the bytes of a run are those of threads, and nothing of it is left, however the run ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import actors
from tests.faults.processes import rounds_done
from tests.support.small import WORDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the [ray] extra"),
]
ROOT = Path(__file__).resolve().parents[3]
LONG = (*WORDS, "rounds=1000", "evaluation.every=1000", "client.max_steps=20")


def hash_of(folder: Path) -> str:
    (done,) = folder.rglob("DONE.json")
    return json.loads(done.read_text())["final_hash"]


def start(*words: str, **variables: str) -> subprocess.Popen[str]:
    """python run_sim.py, in a process group of its own, as a shell starts it. variables: of its environment."""
    command, pipe = [sys.executable, "run_sim.py", *words], subprocess.PIPE
    environment = {key: value for key, value in {**os.environ, **variables}.items() if value}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True
    )


def descendants(process: int) -> set[int]:
    """The processes that this one started, and those that they did."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        parents.setdefault(parent, []).append(pid)
    found, ahead = set(), [process]
    while ahead:
        ahead += (fresh := set(parents.get(ahead.pop(), [])) - found)
        found |= fresh
    return found


def left(processes: set[int], seconds: float) -> set[int]:
    """Those that are still there after so many seconds, or none as soon as that is so."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        time.sleep(0.2)
        processes = {p for p in processes if Path(f"/proc/{p}").exists() and "Z" not in _state(p)}
    return processes


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_embedded_run_has_the_bytes_of_threads(tmp_path: Path) -> None:
    """The default model and data, with augmentation and DoRA's magnitudes, in fewer rounds."""
    words = ("rounds=2", "client.augment=flip", "adapter=dora", "logger=none", "engine.device=cpu")
    hashes = {}
    for engine in ("threads", "ray"):
        process = start(*words, f"engine={engine}", f"output_dir={tmp_path / engine}")
        said, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        assert engine == "threads" or "actors of Ray on CPU, fp32" in said
        hashes[engine] = hash_of(tmp_path / engine)
    assert hashes["threads"] == hashes["ray"]


def test_what_actors_find_damaged_is_told_once_as_inline_tells_it(tmp_path: Path) -> None:
    """The bodies of a kept prefix, of training and test images, before each of the runs."""
    words = (*WORDS, "adapter.blocks=last:1", "engine.prefix_cache=true", "engine.device=cpu")
    hashes, lines = set(), {}
    for run, engine in (("whole", "inline"), ("inline", "inline"), ("ray", "ray"), ("mended", "ray")):
        for path in tmp_path.rglob("*.prefix") if run in ("inline", "ray") else ():
            start_of = 4096 - (-4 * json.loads(path.read_bytes()[:4096])["count"] // 4096) * 4096
            with path.open("r+b") as file:
                file.seek(start_of)
                file.write(os.urandom(path.stat().st_size - start_of))
        place = f"output_dir={tmp_path / run}"
        process = start(*words, f"engine={engine}", place, XDG_CACHE_HOME=str(tmp_path / "cache"))
        _, lines[run] = process.communicate(timeout=300)
        assert process.returncode == 0, lines[run]
        hashes.add(hash_of(tmp_path / run))
    assert len(hashes) == 1 and lines["whole"] == ""
    assert lines["ray"] == lines["inline"] and lines["ray"].count("is damaged (checksums differ)") == 1
    assert "is damaged" not in lines["mended"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process(number: int, tmp_path: Path) -> None:
    place = f"output_dir={tmp_path}"
    process = start(*LONG, "engine=ray", "engine.device=cpu", place)
    try:
        while rounds_done(tmp_path) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        there = descendants(process.pid)
        assert len(there) >= 3  # raylet, its GCS, an actor or more
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert errors.startswith("stopped; the last whole checkpoint is kept"), errors
    assert not left(there, 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [2.0, 4.0])
def test_a_run_is_stopped_while_ray_starts(number: int, seconds: float, tmp_path: Path) -> None:
    """Ray starts for some four seconds, then the actors do; the same command goes on."""
    words = (*WORDS, "rounds=1", "engine=ray", "engine.device=cpu", f"output_dir={tmp_path}")
    process = start(*words, PYTHONUNBUFFERED="1")
    try:
        assert process.stdout is not None
        assert any("engine: Ray starts" in line for line in process.stdout)
        time.sleep(seconds)
        there = descendants(process.pid)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (128 + number, "stopped; there was no checkpoint yet, so nothing is kept\n")
    assert there and not left(there, 60)
    again = start(*words)
    assert again.communicate(timeout=300)[1] == "" and again.returncode == 0


def test_by_rays_own_handler_a_stopped_run_ends_in_a_trace(tmp_path: Path) -> None:
    """The negative control."""
    words = (*LONG, "engine=ray", "engine.device=cpu", f"output_dir={tmp_path}")
    process = start(*words, RAY_DISABLE_FAILURE_SIGNAL_HANDLER="0")
    try:
        while rounds_done(tmp_path) < 1:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "*** SIGTERM received" in errors and not errors.startswith("stopped;")


def test_kills_change_no_byte_and_lose_no_reply() -> None:
    tally = actors.campaign(seed=0, kills=20)
    assert tally["kills"] == 20 and tally["same"] == tally["runs"], tally
    assert tally["deaths"] >= 5, tally  # in the midst of a job, or found there by it


def test_without_the_jobs_given_again_the_campaign_goes_red() -> None:
    """The negative control: one death is a failure of the job's client."""
    tally = actors.campaign(seed=1, kills=6, limit=1)
    assert tally["same"] < tally["runs"], tally


SERVING = """
import sys
import ray
from ray.util.client.server import server

ray.init(address="local", num_cpus=2, include_dashboard=False)
served = server.serve("127.0.0.1", int(sys.argv[1]))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_a_running_cluster_is_joined_and_left_as_it_was(tmp_path: Path) -> None:
    """By the address of its head, as the one that is there, and as a Ray client."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    command, pipe = [sys.executable, "-c", SERVING, str(port)], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    try:
        assert head.stdout is not None
        gcs = head.stdout.readline().strip()
        hashes = {}
        for name, address in {"threads": "", "gcs": gcs, "auto": "auto", "client": f"ray://127.0.0.1:{port}"}.items():
            words = ["engine=ray", f"engine.address={address}"] if address else []
            run = start(*WORDS, *words, f"output_dir={tmp_path / name}", RAY_ADDRESS=gcs if name == "auto" else "")
            errors = run.communicate(timeout=300)[1]
            assert run.returncode == 0, errors
            hashes[name] = hash_of(tmp_path / name)
            assert head.poll() is None
        assert len({*hashes.values()}) == 1, hashes
    finally:
        there = descendants(head.pid)
        head.terminate()
        head.wait(60)
        assert not left(there, 30)
