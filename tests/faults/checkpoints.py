"""Checkpoints that are torn, flipped, incomplete or never finished, and a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from fedinit.state import disk
from fedinit.state.checkpoint import Checkpoints, State

PAGE = 4096


def state(round: int) -> dict[str, State]:
    """Some ten pages of tensors and a page of facts."""
    draw = torch.Generator().manual_seed(round)
    tensors = {f"layer{i}/{part}": torch.randn(8, 160, generator=draw) for i in range(5) for part in "AB"}
    facts = {"round": round, "rows": [[round, i, i / 7] for i in range(400)]}
    return {"server": State(tensors, facts), "clients": State({"1/B": torch.ones(3)}, {"1": {"arrays": ["B"]}})}


def equal(one: dict[str, State], other: dict[str, State]) -> bool:
    return one.keys() == other.keys() and all(
        a.facts == b.facts
        and list(a.tensors) == list(b.tensors)
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        for a, b in ((one[part], other[part]) for part in one)
    )


class Store:
    """Two checkpoints on disk; `judge` says what is loaded after the newer one was tampered with, and mends it."""

    def __init__(self, folder: Path) -> None:
        self.keeper, self.tally = Checkpoints(folder / "checkpoints", {"rounds": 3}), Counter()
        for round in (1, 2):
            self.keeper.save(round, state(round))
        self.newest = folder / "checkpoints" / "round-000002"
        shutil.copytree(self.newest, folder / "good")
        self.good = folder / "good"

    def files(self) -> list[Path]:
        return sorted(self.newest.iterdir())

    def judge(self) -> None:
        """Tallies "older" (the damage was found), "same" (it changed nothing that is read) or "bad"."""
        loaded = self.keeper.load()
        if loaded.round == 1 and loaded.passed_over and equal(loaded.states, state(1)):
            self.tally["older"] += 1
        elif loaded.round == 2 and equal(loaded.states, state(2)):
            self.tally["same"] += 1
        else:
            self.tally["bad"] += 1
        shutil.rmtree(self.newest)
        shutil.copytree(self.good, self.newest)


def torn(folder: Path, every: int = PAGE) -> Counter:
    """Each file cut at every `every` bytes, missing, and empty."""
    store = Store(folder)
    for file in store.files():
        for length in range(0, file.stat().st_size, every):
            os.truncate(file, length)
            store.judge()
        file.unlink()
        store.judge()
    return store.tally


def flipped(folder: Path, seed: int, count: int) -> Counter:
    """One bit of one file each."""
    store, draw = Store(folder), random.Random(seed)
    for _ in range(count):
        file = draw.choice(store.files())
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        store.judge()
    return store.tally


@contextlib.contextmanager
def full_after(room: int) -> Iterator[None]:
    """The disk takes `room` more bytes through fedinit.state.disk, then has no space left."""
    left, write = [room], os.write

    def limited(file: int, data) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(file, bytes(data[: left[0]]))
        left[0] -= done
        return done

    class Limited:
        def __getattr__(self, name: str):
            return limited if name == "write" else getattr(os, name)

    disk.os = Limited()
    try:
        yield
    finally:
        disk.os = os


def full(folder: Path, seed: int, count: int) -> Counter:
    """A disk that is full at `count` bytes of a save: what was there stays whole, and the next save succeeds."""
    draw, tally = random.Random(seed), Counter()
    keeper = Checkpoints(folder, {})
    keeper.save(1, state(1))
    size = sum(file.stat().st_size for file in (folder / "round-000001").iterdir())
    for _ in range(count):
        with full_after(draw.randrange(size)):
            try:
                keeper.save(2, state(2))
            except OSError as error:
                tally["said"] += error.errno == errno.ENOSPC and "round-000002" in str(error.filename)
        loaded = keeper.load()
        tally["damaged"] += not (loaded.round == 1 and not loaded.passed_over and equal(loaded.states, state(1)))
    keeper.save(2, state(2))
    tally["damaged"] += keeper.load().round != 2
    return tally
