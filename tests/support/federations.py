"""Federations of real processes on this machine, for the tests; every process is ended by its own id."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.schema import Config
from fedinit.deploy import layout
from fedinit.deploy.local import LocalFederation
from fedinit.deploy.processes import DeployFailed, descendants
from fedinit.runs import folder as run_folder
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

LIMIT = 900.0  # seconds for anything: other work may share the machine


def config_of(root: Path, *words: str) -> Config:
    """Two sites, banks of one, no evaluation; `words` on top. The run's folder goes under `root`."""
    two = ("data.domains=[plain,inverted]", "engine.clients_per_bank=1", "evaluation=none", "quorum=1.0")
    return small_config(*two, f"output_dir={root / 'out'}", f"reply_timeout={LIMIT:g}", *words)


def simulated(config: Config) -> str:
    """The final hash of the same run in this process."""
    site = Site(config)
    return federate(config, LocalGrid(Cohort(site), len(site.partitions)), site.backbone).final_hash


def summary(config: Config) -> dict:
    done = run_folder.finished(run_folder.place(config))
    assert done is not None, "the run left no summary"
    return done


def ledger(config: Config) -> list[dict]:
    text = (run_folder.place(config) / "ledger.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def federation(root: Path, config: Config, sites: int = 2, secure: bool = False) -> Iterator[LocalFederation]:
    """Its processes, not started yet; they are ended with all that they started, also when a test fails."""
    made = LocalFederation(root / "federation", config, sites, secure)
    try:
        yield made
    finally:
        made.stop()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"not in {LIMIT:g} s: {what}"
        time.sleep(0.1)


def asked_to_train(made: LocalFederation, site: int) -> int:
    """How often the site's SuperNode received a message of this type, in its whole log."""
    log = made.folder / f"site-{site}" / "supernode.log"
    return len(re.findall("Receiving: train message", log.read_text())) if log.exists() else 0


def rounds_saved(config: Config) -> int:
    return max((int(p.name[6:]) for p in run_folder.place(config).glob("checkpoints/round-*")), default=-1)


def server_apps(made: LocalFederation) -> list[int]:
    """Process ids of the ServerApp, among what this SuperLink started."""
    found = []
    for pid in descendants(made.superlink.pid):
        try:
            if b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def kill(made: LocalFederation, victim: str) -> None:
    """As a power cut does it: "superlink" with its ServerApp, "serverapp", or the number of a site."""
    if victim == "superlink":
        made.superlink.kill()
    elif victim == "serverapp":
        for pid in server_apps(made):
            os.kill(pid, signal.SIGKILL)
    else:
        made.supernodes[int(victim)].kill()


def bring_back(made: LocalFederation, victim: str) -> None:
    if victim == "superlink":
        made.start_superlink()
    elif victim != "serverapp":
        start_again(made, int(victim))


def start_again(made: LocalFederation, site: int) -> None:
    """Start a SuperNode until it is let in, as systemd does: after a kill the SuperLink takes it to be online, and
    refuses it, until two of its heartbeats are missing (a minute)."""

    def let_in() -> bool:
        log = made.folder / f"site-{site}" / "supernode.log"
        before = log.read_text().count("SuperNode ID")
        made.start_supernode(site)
        process = made.supernodes[site]._process
        until(lambda: process.poll() is not None or log.read_text().count("SuperNode ID") > before, "started or not")
        if process.poll() is not None:
            made.supernodes.pop(site).stop()
            time.sleep(5)
        return process.poll() is None

    until(let_in, f"SuperNode {site} is let in again")


def finish(made: LocalFederation, run: str, config: Config, starts: int = 3) -> int:
    """Wait for the run, and start it again where it was cut off, as its operator would; returns how often that was."""
    for again in range(starts):
        if run_folder.finished(run_folder.place(config)) is not None:
            return again
        try:
            _wait(made, run)
            return again
        except DeployFailed:
            if again == starts - 1:
                raise
            run = made.server.start_run()
    raise AssertionError("not reached")


def _wait(made: LocalFederation, run: str) -> None:
    deadline = time.monotonic() + LIMIT

    def check() -> None:
        made.check()
        if time.monotonic() > deadline:
            raise AssertionError(f"the run hangs:\n{made.server.log_tail(run, 40)}")

    made.server.wait(run, check)


def campaign(root: Path, seed: int, count: int, words: Sequence[str] = (), say=print) -> Counter:
    """`count` runs in one federation with TLS; in each, one process is killed after a random share of a run's time and
    brought back after a few seconds. {"same": ended in the hash of the undisturbed run, "other", "hit": the run was not
    over when the process was killed, "started again": by the operator, and the victims}."""
    draw, tally = random.Random(f"deployment/{seed}"), Counter()
    base = config_of(root, *words)
    with federation(root, base, secure=True) as made:
        made.start()
        began = time.monotonic()
        finish(made, made.server.start_run(), base)
        length = time.monotonic() - began
        for i in range(count):
            config = dataclasses.replace(base, seed=1000 * (seed + 1) + i)
            layout.write_app(made.server.app, config)
            victim = draw.choice(["0", "1", "superlink", "serverapp"])
            pause, away = draw.uniform(0.1, 0.9) * length, draw.uniform(0, 5)
            run = made.server.start_run()
            time.sleep(pause)
            tally["hit"] += run_folder.finished(run_folder.place(config)) is None
            kill(made, victim)
            time.sleep(away)
            bring_back(made, victim)
            tally["started again"] += finish(made, run, config)
            same = summary(config)["final_hash"] == simulated(config)
            tally["same" if same else "other"] += 1
            tally[f"victim {victim if not victim.isdigit() else 'supernode'}"] += 1
            say(f"{i + 1}/{count}: {victim} at {pause:.0f} of {length:.0f} s, {dict(tally)}", flush=True)
    return tally
