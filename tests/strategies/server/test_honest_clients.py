"""No honest client is refused, whatever its rank, its optimiser and the factors that it starts from."""

from __future__ import annotations

from typing import Any

import pytest

from clients.cohort import Cohort
from clients.site import Site
from fedinit.runs.observer import Observer, RoundReport
from fedinit.transport.local import LocalGrid
from strategies.server import federation, gate
from strategies.server.federation import federate
from strategies.server.outcome import Outcome
from tests.support.small import slow, small_config


class Refused(Observer):
    """Keeps whom the server refuses, and what the others' optimisers kept in the last round."""

    def __init__(self) -> None:
        self.refused: list[tuple[int, str]] = []
        self.kept: list[int] = []

    def round_done(self, report: RoundReport) -> None:
        self.kept = [client.optimizer_state or 0 for client in report.clients]

    def event(self, kind: str, fields: Any) -> None:
        if kind == "refused":
            self.refused.append((fields["round"], f"client {fields['client']}: {fields['code']} {fields['detail']}"))


def run(*words: str) -> tuple[Outcome, Refused]:
    """A run of three clients, and whom it refused."""
    site, seen = Site(small_config("evaluation=none", "client.batch_size=8", *words)), Refused()
    grid = LocalGrid(Cohort(site), len(site.partitions))
    return federate(site.config, grid, site.backbone, observers=[seen]), seen


RANKED = ("adapter.rank=8", "adapter.ranks=[1,4,8]", "client.prox=0.1")


@pytest.mark.parametrize(
    "words",
    [
        ("client=adamw",),
        ("client=sgd", "client.momentum=0.9"),
        ("client=sgd_sai",),
        ("client=adamw", "strategy=hetlora"),
        ("client=adamw", "adapter=dora"),
    ],
)
def test_of_a_low_rank_beside_a_high_one(words) -> None:
    """What its optimiser keeps is counted without the zeros that its bank fills it up with."""
    assert run(*RANKED, *words)[1].refused == []


def test_what_a_low_rank_keeps_is_its_own() -> None:
    kept = run(*RANKED, "client=adamw", "rounds=1")[1].kept
    assert 0 < kept[0] < kept[1] < kept[2]


SMALL = ("strategy=flexlora", "reinit=local", "client.lr=0.01", "rounds=8", "quorum=1", "client.max_steps=1")


@pytest.mark.parametrize("words", [SMALL, (*SMALL, "adapter.ranks=[1,2,4]", "reinit=local_on_global")])
def test_that_goes_on_from_its_own_factors(words, monkeypatch) -> None:
    """Its factors are held against no start that is not its own; with that limit, the control, it is refused."""
    assert run(*words)[1].refused == []
    limited = lambda **options: gate.Gate(**{**options, "own_starts": False})  # noqa: E731
    monkeypatch.setattr(federation, "Gate", limited)
    held = run(*words)[1].refused
    assert held and all("factor_norm" in said for _, said in held)


@pytest.mark.parametrize("strategy", ["hetlora", *slow("fedit")])
def test_its_bytes_are_its_own_in_every_bank(strategy: str) -> None:
    """Its part of the base is padded to what the largest would be, whoever its mates are. (At a width of 24 products
    round alike without that.)"""
    wide = "model.kwargs={img_size: 32, patch_size: 4, embed_dim: 96, depth: 2, num_heads: 3, in_chans: 1}"
    words = (
        wide,
        "adapter.rank=8",
        "adapter.ranks=[2,4,8]",
        "reinit=local_on_global",
        f"strategy={strategy}",
        "rounds=3",
    )
    hashes = {run(*words, f"engine.clients_per_bank={size}")[0].final_hash for size in (1, 2, 3)}
    assert len(hashes) == 1
    assert run(*words, "seed=1")[0].final_hash not in hashes
