"""What a person is told of the engine: on what it computes, and which numbers of the words have no effect."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from clients.engine import hardware
from clients.engine.arrays import pack, take_apart
from clients.engine.ray import BankActor, Goods
from clients.engine.worker import Settings
from clients.site import Site
from fedinit.data.image_cache import ImageFile, MappedImages
from fedinit.errors import InputError, RunFailed
from tests.support.small import small_config


def said(*words: str, client: int | None = None) -> list[str]:
    """The lines about the engine."""
    console = Console(record=True, file=io.StringIO(), width=60)
    with contextlib.closing(Site(small_config("engine.device=cpu", *words), client, console=console)):
        return [line for line in console.export_text().splitlines() if not line.startswith("data")]


def test_the_size_of_a_bank_is_that_of_the_clients_there_are() -> None:
    """Three clients: where a word says more, both numbers are there, since that one is in the run's identity."""
    assert said() == ["engine: 1 lane on CPU, fp32, banks of up to 3 clients"]
    assert said("engine.clients_per_bank=1") == ["engine: 1 lane on CPU, fp32, banks of up to 1 client"]
    many = "engine: 1 lane on CPU, fp32, banks of up to 3 clients, all there are (engine.clients_per_bank=100000)"
    assert said("engine.clients_per_bank=100000") == [many]
    assert said(client=1) == ["engine: 1 lane on CPU, fp32, one client"], "a site that is one client's"


def test_lanes_that_one_bank_leaves_idle_are_told() -> None:
    lanes = "engine=threads", "engine.lanes=2", "engine.device=cpu"
    idle = "engine.clients_per_bank=3: a round's 3 clients are one bank, which keeps one lane busy; 2 is faster, and"
    assert idle in " ".join(" ".join(said(*lanes, "engine.clients_per_bank=3")).split())
    for words in ([*lanes, "engine.clients_per_bank=2"], ["engine.clients_per_bank=3"], [*lanes, "privacy=examples"]):
        assert not [line for line in said(*words) if "busy" in line], words


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("adapter.dropout=0.3",), "adapter.dropout=0.3 draws in them, which torch's compiler cannot follow"),
        (("strategy=fedit", "privacy=examples"), "privacy=examples takes a gradient an example"),
        (("strategy=head_alone",), "heads alone are trained, on features that are kept"),
        (
            ("client.batch_size=500",),
            "whole batches alone are, of client.batch_size=500, and no client has more than 239 images",
        ),
        ((), None),
    ],
)
def test_what_cannot_be_compiled_is_said(words, why) -> None:
    """It passed for compiled, and `auto` gave such a run another name."""
    engine, told = said("engine.compile=true", *words)
    if why is None:
        assert told.startswith("engine: steps are compiled") and "compiled" in engine
    else:
        assert told == f"engine.compile=true: steps are taken as they are, since {why}" and "compiled" not in engine


@pytest.mark.parametrize(
    ("cores", "words", "expected"),
    [
        (2, ("engine.lanes=9",), "engine.lanes=9: this machine has 2 cores; more lanes are no faster"),
        (4, ("engine.lanes=3", "engine.threads=2"), "engine.lanes=3: this machine has 4 cores, 2 for each; more lanes"),
        (2, ("engine.lanes=2",), None),
        (2, (), None),
        (2, ("engine=inline",), None),
    ],
)
def test_more_lanes_than_cores_are_said(cores, words, expected, monkeypatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    *more, _ = said("engine.clients_per_bank=1", *words)  # before they are made
    assert len(more) == (expected is not None)
    if expected is not None:
        assert more[0].startswith(expected) and more[0].endswith("use engine.lanes=2, or null")


def test_lanes_beyond_reason_are_refused_before_anything_is_read(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    hardware.resolved(small_config("engine.device=cpu", f"engine.lanes={2 * hardware.LANES}"))
    with pytest.raises(InputError, match="^engine.lanes=33: this machine has 2 cores; .* use engine.lanes=2"):
        hardware.resolved(small_config("engine.device=cpu", "engine.lanes=33"))


@pytest.mark.parametrize("error", [None, RunFailed("no memory")])
def test_what_an_actor_logs_and_prints_at_a_job_goes_with_its_answer(error, monkeypatch) -> None:
    """From WARNING on, as in a process where nobody has set up logging."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setattr(logging.root, "handlers", [])

    def do(job: object) -> object:
        logging.getLogger("fedinit.data").warning("%s is damaged", "a row")
        logging.getLogger("fedinit.data").info("a row is read")  # the control
        print("made again", file=sys.stderr)
        if error is not None:
            raise error
        return "answers"

    actor: Any = BankActor()
    actor._worker = SimpleNamespace(do=do)
    assert actor.do("job", (), []) == ("a row is damaged\nmade again\n", error or "answers")


def test_an_actor_without_the_file_of_images_says_so_at_its_start(tmp_path, tiny_vit, tiny_data, client_config) -> None:
    """In the midst of a run too, where one takes the place of another: it is what ends the run, and no trace is."""
    file = ImageFile(tmp_path / "x.images", "key", 60, (1, 16, 16))
    images = MappedImages(torch.arange(60), file.shape, functools.partial(_read, file))
    data = dataclasses.replace(tiny_data, images=images)
    frame, numbers = take_apart(tiny_vit.module)
    settings = Settings(client=client_config(), seed=0, scale=1.0)
    goods = Goods(frame, numbers, tiny_vit.features, tiny_vit.input, {}, pack(data), settings, False)
    file.path.unlink()
    before = torch.get_num_threads()
    _, ready = BankActor().ready(pickle.loads(pickle.dumps(goods)))
    torch.set_num_threads(before)
    assert isinstance(ready, InputError) and str(ready).startswith(f"{file.path}: the images are in this file, which ")


def _read(file: ImageFile, rows: np.ndarray) -> torch.Tensor:
    return file.read(rows)[0]
