"""Actors of Ray that are killed while runs go on: every run must end as it does where nobody is killed.

python -m tests.faults.actors 200        # kills; prints the tally
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

from clients.cohort import Cohort
from clients.engine import cluster, dispatch
from clients.engine.ray import RayEngine
from clients.site import Site
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer, RoundReport
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

ACTORS = 4  # more than a machine of two cores would be given, so that some are there while others start
RUN = ("engine.device=cpu", "strategy=flora", "rounds=4", "client.max_steps=60", "engine.clients_per_bank=1")


class Trained(Observer):
    """Who was aggregated, round by round."""

    def __init__(self) -> None:
        self.clients: list[list[int]] = []

    def round_done(self, report: RoundReport) -> None:
        self.clients.append([client.client for client in report.clients])


class Killer(threading.Thread):
    """Kills one of the engine's actors after another, at random moments, as long as others are there."""

    def __init__(self, engine: RayEngine, draw: random.Random, kills: int, rest: float) -> None:
        """rest: seconds between two kills, at the most."""
        super().__init__(daemon=True)
        self.engine, self.draw, self.kills, self.rest = engine, draw, kills, rest
        self.killed: set[int] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.kills and not self.ended.wait(self.draw.uniform(0, self.rest)):
            alive = [r.process for r in list(self.engine.dispatch.said.values()) if r.process not in self.killed]
            if len(alive) > 1:
                process = self.draw.choice(alive)
                os.kill(process, signal.SIGKILL)
                self.killed.add(process)


@contextmanager
def ray_site(*words: str) -> Iterator[Site]:
    """A site whose engine has ACTORS actors, however few cores there are."""
    with patch.object(cluster, "cores", lambda: ACTORS):
        site = Site(small_config(*RUN, "engine=ray", *words))
    try:
        yield site
    finally:
        site.close()


def outcome(site: Site) -> tuple[str, list[list[int]]]:
    """(final hash, who was aggregated in every round) of a whole run."""
    trained = Trained()
    done = federate(site.config, LocalGrid(Cohort(site), 3), site.backbone, observers=[trained])
    return done.final_hash, trained.clients


def campaign(seed: int, kills: int, rest: float = 0.5, limit: int = 10**6) -> Counter[str]:
    """{"kills", "runs", "same": runs as they are on threads, "deaths": kills in the midst of a job}.

    limit: deaths at one job after which the run has failed; more than a run has, since these kills hit one job
    as often as it happens.
    """
    expected, tally = outcome(Site(small_config(*RUN))), Counter[str]()
    with ray_site() as site, patch.object(dispatch, "DEATHS", limit):
        assert isinstance(site.engine, RayEngine)
        deaths: list[str] = []
        site.emit = lambda kind, facts: deaths.append(kind)
        killer = Killer(site.engine, random.Random(seed), kills, rest)
        killer.start()
        while killer.is_alive():
            tally["runs"] += 1
            with suppress(RunFailed):  # by the limit
                tally["same"] += outcome(site) == expected
        tally["kills"], tally["deaths"] = len(killer.killed), deaths.count("actor_died")
    return tally


if __name__ == "__main__":
    began = time.monotonic()
    print(dict(campaign(0, int(sys.argv[1]))), f"{time.monotonic() - began:.0f} s")
