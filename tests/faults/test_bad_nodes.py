"""Bad replies over a real SuperLink, with TLS and registered keys: `pytest -m slow -s tests/faults/test_bad_nodes.py`.

Two honest SuperNodes are processes of their own; the other sites' nodes are played by this one, and answer whatever
they like.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedinit.config.schema import Config
from fedinit.deploy import layout
from fedinit.deploy.local import LocalFederation
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.faults import bad_nodes
from tests.faults.hostile import BYTES, SECONDS
from tests.support import federations

HONEST, RUDE, POLITE = (0, 1), range(2, 6), range(6, 18)
BAD = (*RUDE, *POLITE)
SITES = len(HONEST) + len(BAD)
ROUNDS = 4
WORDS = ("partition=iid", f"partition.clients={SITES}", "evaluation=clients", "quorum=2")
WORDS += ("init=eva", "init.sketch=exact", "init.examples=32", "adapter.targets=[attn.qkv]")
REFUSED = ("refused", "evaluation_failed")


class Ledger(Observer):
    """What a run in this process tells of."""

    def __init__(self) -> None:
        self.lines: list[dict] = []

    def event(self, kind, facts):
        self.lines.append({"kind": kind, **facts})


class Watched:
    """What a program takes: `peak` bytes of memory, processor `seconds`, as of its last moments."""

    def __init__(self) -> None:
        self.peak = self.seconds = 0.0

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        if "VmHWM:" in status:
            self.peak = max(self.peak, 1024.0 * int(status.partition("VmHWM:")[2].split()[0]))
        self.seconds = max(self.seconds, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"))


@contextmanager
def watched(found: Callable[[], list[int]]) -> Iterator[Watched]:
    """Of the processes that `found` finds, again and again."""
    seen, ended = Watched(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.3):
            for pid in found():
                seen.look(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def deployed(made: LocalFederation, config: Config, answer: bad_nodes.Answer) -> Watched:
    """A run of which the bad sites' nodes answer so; what the ServerApp took."""
    layout.write_app(made.server.app, config)
    nodes, stop = bad_nodes.start(BAD, made.folder, f"127.0.0.1:{made.port}", answer)
    try:
        with watched(lambda: federations.server_apps(made)) as seen:
            assert federations.finish(made, made.server.start_run(), config, starts=1) == 0
        assert all(node.is_alive() for node in nodes), "a node of the test's own ended"
    finally:
        stop.set()
        for node in nodes:
            node.join(30)
    return seen


def left_out(lines: list[dict]) -> Counter:
    """{(kind of line, round, client): how often}, of answers that were refused."""
    return Counter((line["kind"], line["round"], line["client"]) for line in lines if line["kind"] in REFUSED)


@pytest.mark.slow
def test_a_hundred_bad_replies_over_a_superlink_end_no_run(tmp_path):
    """Which ends as the same run does in this process, with the same answers, and is given by name who sent which."""
    honest = federations.config_of(tmp_path, *WORDS, "rounds=1")  # what a server takes at the least
    spoilt = federations.config_of(tmp_path, *WORDS, f"rounds={ROUNDS}")
    bad = bad_nodes.Bad(bad_nodes.Honest(spoilt), 0, BAD, POLITE, wired=True)
    with federations.federation(tmp_path, honest, sites=SITES, secure=True) as made:
        made.start_superlink()
        made.server.register()
        for site in HONEST:
            made.start_supernode(site)
        without = deployed(made, honest, bad_nodes.Honest(honest))
        under = deployed(made, spoilt, bad)

    same = bad_nodes.Bad(bad_nodes.Honest(spoilt), 0, BAD, POLITE, wired=False)
    grid = LocalGrid(lambda pairs: [same(int(c.node_config["partition-id"]), m) for m, c in pairs], SITES)
    ledger = Ledger()
    expected = federate(spoilt, grid, same.honest.cohort.site.backbone, observers=[ledger])

    asked, lines = Counter(kind for _, kind, _ in bad.faults), federations.ledger(spoilt)
    refused, nodes = left_out(lines), sum(line["kind"] == "node_refused" for line in lines)
    more, seconds = under.peak - without.peak, (under.seconds - without.seconds) / len(bad.faults)
    print(f"\n{len(bad.faults)} bad replies: {dict(asked)}; refused: {refused.total() + nodes}")
    print(f"ServerApp: {more / 1e6:+.0f} MB on {without.peak / 1e6:.0f} MB, {seconds:+.3f} s of processor a bad reply")
    assert bad.faults.keys() == same.faults.keys() and len(bad.faults) >= 100
    assert refused == left_out(ledger.lines) and not {client for _, _, client in refused} & {*HONEST}
    assert federations.summary(spoilt)["final_hash"] == expected.final_hash
    assert more < BYTES and seconds < SECONDS
