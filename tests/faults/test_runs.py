"""Whole runs, by their hash: on any number of lanes, again and again, with late replies, on a disk that is full."""

from __future__ import annotations

import builtins
import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

import run_sim
from clients.cohort import Cohort
from clients.site import Site
from fedinit.runs import folder as run_folder
from fedinit.runs import written
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.faults.processes import outcome
from tests.support.small import WORDS, small_config


class Watch(Observer):
    def __init__(self):
        self.refused, self.trained = [], {}

    def round_done(self, numbers):
        self.trained[numbers.round] = {c.client: (c.examples, c.steps) for c in numbers.clients}

    def event(self, kind, facts):
        if kind == "refused":
            self.refused.append((facts["round"], facts["client"], facts["code"]))


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("client.max_steps=1"))


def test_lanes_change_no_hash():
    """Banks of one, so that up to three are there for the lanes to share."""
    hashes = {}
    for words in (*(f"engine.lanes={n}" for n in (1, 2, 4, 8)), "seed=1"):
        config = small_config("rounds=1", "client.max_steps=1", "engine.clients_per_bank=1", words)
        site = Site(config)
        hashes[words] = federate(config, LocalGrid(Cohort(site), 3), site.backbone).final_hash
    control = hashes.pop("seed=1")
    assert len(set(hashes.values())) == 1 and control not in hashes.values(), hashes


def test_ten_runs_give_one_hash(site):
    config = small_config("client.max_steps=1", "rounds=1", "evaluation=none")
    assert len({federate(config, LocalGrid(Cohort(site), 3), site.backbone).final_hash for _ in range(10)}) == 1


@pytest.mark.parametrize("answers", [True, False], ids=["beside", "instead"])
def test_a_reply_that_comes_a_round_late_counts_for_nothing(site, answers):
    """Client 1's update of round 1, beside its update of round 2 or in its place: the run is the one in which the late
    one never came."""

    class Late(LocalGrid):
        def __init__(self, deliver: bool) -> None:
            super().__init__(Cohort(site), 3)
            self.deliver, self.late = deliver, []

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.message_type != "train":
                return replies
            round, late = messages[0].content["config"]["round"], list(self.late)
            if round == 1:
                self.late = [replies.pop(1)]
            elif round == 2 and not answers:
                replies.pop(1)
            return replies + (late if self.deliver and round == 2 else [])

    config, found = small_config("client.max_steps=1", "rounds=3"), []
    for deliver in (False, True):
        watch = Watch()
        found.append((federate(config, Late(deliver), site.backbone, observers=[watch]).final_hash, watch.refused))
    assert found[0][0] == found[1][0]
    assert (2, 1, "misdirected") in found[1][1] and (2, 1, "misdirected") not in found[0][1]


def test_a_client_of_one_image_trains_like_any_other(tmp_path):
    draw, rows = np.random.default_rng(0), ["path,split"]
    for domain, count in {"x": 1, "y": 8, "z": 8}.items():
        for i in range(count + 2):
            path = tmp_path / domain / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
            rows.append(f"{path.relative_to(tmp_path)},{'train' if i < count else 'test'}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    words = ["data=image_folder", f"data.root={tmp_path}", "data.classes=[a,b]", "data.domains=[x,y,z]"]
    config, watch = small_config(*words, "evaluation=clients", "rounds=2", "client.epochs=2"), Watch()
    found = Site(config)
    result = federate(config, LocalGrid(Cohort(found), 3), found.backbone, observers=[watch])
    assert watch.refused == [] and list(result.score.whole) == ["x", "y", "z"]
    assert [watch.trained[round][0] for round in (1, 2)] == [(1, 2)] * 2  # an epoch of one image is one step


def test_a_disk_full_under_a_table_or_the_ledger_ends_in_a_line_and_loses_nothing(tmp_path, monkeypatch, capsys):
    """First a row of the table is cut short, then, as the run goes on, the line that says so."""
    words = [*WORDS, "rounds=3", "client.max_steps=1", "evaluation=none"]
    assert run_sim.main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0

    def full(name: str, after: int):
        """The disk takes `after` more openings of this file, and half of what is written then."""
        left = [after]

        def limited(path, mode="r", **options):
            file = builtins.open(path, mode, **options)
            if os.path.basename(path) == name and "a" in mode:
                left[0] -= 1
                if left[0] < 0:
                    write = file.write

                    class Full:
                        def __enter__(self):
                            return self

                        def __exit__(self, *_):
                            file.close()

                        def __getattr__(self, key):
                            return getattr(file, key)

                        def write(self, content):
                            write(content[: len(content) // 2])
                            file.flush()
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                    return Full()
            return file

        return limited

    command = [*words, f"output_dir={tmp_path / 'full'}"]
    for module, name, after in ((written, "clients.csv", 1), (run_folder, "ledger.jsonl", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "open", full(name, after), raising=False)
            capsys.readouterr()
            assert run_sim.main(command) == 1
        said = capsys.readouterr().err.strip()
        assert said.startswith("run failed: No space left on device") and "\n" not in said
    assert run_sim.main(command) == 0
    assert outcome(tmp_path / "full") == outcome(tmp_path / "whole")
    (folder,) = (tmp_path / "full" / "digits").iterdir()
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"kind": "resumed", "round": 1} and not any("damaged" in line for line in lines)
