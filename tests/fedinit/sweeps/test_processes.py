"""Runs side by side: each once, one that dies takes nothing else with it, and no process outlives the sweep."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fedinit.config.compose import compose_config, sweep
from fedinit.config.schema import load, to_dict
from fedinit.errors import InputError
from fedinit.sweeps import processes
from fedinit.sweeps.processes import CORES, environments, side_by_side
from fedinit.threads import cores
from tests.support.small import WORDS

# As fedinit.sweeps.worker speaks, in no time. A seed of 1 dies by a signal, of 2 with a code, of 3 never ends.
STAND_IN = """
    import json, os, signal, sys, time
    open(os.path.join(sys.argv[1], f"pid-{os.getpid()}"), "w").close()
    for line in sys.stdin:
        run = json.loads(line)
        seed = run["config"]["seed"]
        print(f"at seed {seed}", file=sys.stderr, flush=True)
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 2:
            sys.exit(7)
        with open(os.path.join(sys.argv[1], "runs"), "a") as file:
            file.write(f"{seed} {os.getpid()}\\n")
        if seed == 3:
            time.sleep(60)
        cap = os.environ["FEDINIT_CORES"]
        print(json.dumps({"words": run["words"], "summary": {"seed": seed, "cores": cap}}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(processes, "WORKER", [sys.executable, str(script), str(tmp_path)])
    return tmp_path


def runs(*words: str) -> list:
    return [(run.words, run.config) for run in sweep(words)]


def alive(root: Path) -> list[int]:
    pids = [int(path.name.partition("-")[2]) for path in root.glob("pid-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_one_that_dies_is_told_and_the_others_are_done(stand_in):
    found = {outcome.words: outcome for outcome in side_by_side(runs("seed=0,1,2,4,5"), [{CORES: "3"}] * 2)}
    assert {w: o.why for w, o in found.items() if o.why} == {
        "seed=1": "run failed: its process was ended by SIGKILL, as the system does where memory runs out; fewer jobs "
        "need less",
        "seed=2": "run failed: its process ended with exit code 7",
    }
    assert found["seed=1"].trace == "  at seed 1\n" and found["seed=4"].summary == {"seed": 4, "cores": "3"}
    assert len(found) == 5


def test_no_process_is_left_when_the_sweep_is_stopped(stand_in):
    began = time.monotonic()
    outcomes = side_by_side(runs("seed=0,3"), [{CORES: "1"}] * 2)
    assert next(outcomes).words == "seed=0"
    while "3 " not in (stand_in / "runs").read_text():
        time.sleep(0.01)
    outcomes.close()
    assert len(list(stand_in.glob("pid-*"))) >= 1 and not alive(stand_in)
    assert time.monotonic() - began < 20


def test_runs_of_one_folder_are_done_by_one_process(stand_in):
    """Keys that count for nothing in a result: the second finds the first's folder done."""
    same = runs("engine.lanes=1,2,3", "seed=0,4")
    assert len(list(side_by_side(same, [{CORES: "1"}] * 3))) == 6
    of_seed: dict[str, set[str]] = {}
    for line in (stand_in / "runs").read_text().splitlines():
        seed, pid = line.split()
        of_seed.setdefault(seed, set()).add(pid)
    assert {seed: len(pids) for seed, pids in of_seed.items()} == {"0": 1, "4": 1}


def test_each_process_has_its_share(monkeypatch):
    configs = [compose_config(["engine.device=cpu"])] * 5
    monkeypatch.setattr("fedinit.threads.cores", lambda: 8)
    assert [e[CORES] for e in environments(configs, None)] == ["1"] * 5
    assert [e[CORES] for e in environments(configs, 2)] == ["4", "4"]
    assert len(environments(configs[:1], 4)) == 1
    monkeypatch.setattr("fedinit.memory.free_memory", lambda: 1001)
    assert [e["FEDINIT_MEMORY"] for e in environments(configs, 2)] == ["500", "500"]
    monkeypatch.setattr("fedinit.memory.free_memory", lambda: None)
    assert not any("FEDINIT_MEMORY" in e for e in environments(configs, 2))
    monkeypatch.setattr("fedinit.threads.cores", lambda: 64)
    assert len(environments(configs * 9, None)) == processes.MOST


def test_each_gpu_has_a_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    configs = [compose_config([])] * 5
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(configs, None)] == ["0", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(configs, 3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(configs, None)] == ["5", "3"]
    assert not any("CUDA_VISIBLE_DEVICES" in e for e in environments([compose_config(["engine.device=cuda:1"])], 1))
    # A number is that among all; and no eight processes are on one of them unasked.
    for words, count in (
        ([["engine.device=cuda:0"]], 1),
        ([["engine.device=cuda:0"], ["engine.device=cuda:1"], ["engine.device=cpu"]], 2),
        ([["server_device=cuda:1"]], 1),
    ):
        places = environments([compose_config(each) for each in words] * 5, None)
        assert len(places) == count and not any("CUDA_VISIBLE_DEVICES" in e for e in places)
    mixed = [compose_config(["engine.device=cpu"]), *configs]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(mixed, None)] == ["5", "3"]


def test_a_share_of_the_cores_is_a_process_own(monkeypatch):
    there = cores()
    monkeypatch.setenv(CORES, "1")
    assert cores() == 1
    monkeypatch.setenv(CORES, "")
    assert cores() == there
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv(CORES, wrong)
        with pytest.raises(InputError, match=f"^FEDINIT_CORES={wrong}: expected a whole number of cores, 1 or more"):
            cores()


def test_a_configuration_travels_as_json():
    for words in ([], ["strategy=flora", "adapter.ranks=[2,4,8]", "partition=dirichlet", "evaluation.rounds=[1,2]"]):
        config = compose_config(words)
        assert load(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.slow
def test_real_processes_end_as_a_run_alone(tmp_path):
    """Two at a time, and again: what is done is skipped, to the same hash as in this process."""
    import run_sim

    words = (*WORDS, "rounds=1", "client.max_steps=1", f"output_dir={tmp_path / 'a'}")
    asked = runs("seed=0,1", *words)
    first = {o.words: o.summary for o in side_by_side(asked, environments([c for _, c in asked], 2))}
    again = {o.words: o.summary for o in side_by_side(asked, environments([c for _, c in asked], 2))}
    assert run_sim.main([*words, "seed=1", f"output_dir={tmp_path / 'b'}"]) == 0
    (alone,) = (tmp_path / "b" / "digits").iterdir()
    hashes = {w: s["final_hash"] for w, s in first.items() if s}
    assert hashes["seed=1"] == json.loads((alone / "summary.json").read_text())["final_hash"]
    assert all(s and s["done_before"] and s["final_hash"] == hashes[w] for w, s in again.items()) and len(again) == 2
