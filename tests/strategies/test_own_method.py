"""What a method or a start of one's own gives wrong is one line, which names it and the layer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedinit.config.build import create
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.initializers.initializer import LayerWise
from strategies import AGGREGATORS
from strategies.aggregator import Aggregator, Update
from strategies.one_layer import aggregate

D, K, R = 5, 7, 3
WRONG = {
    "a pair": lambda f: (f.A, f.B),
    "nothing": lambda f: None,
    "a column short": lambda f: Factors(f.A[:, :-1], f.B),
    "transposed": lambda f: Factors(f.B.T, f.A.T),
}


@dataclass(frozen=True, kw_only=True)
class Own(Aggregator):
    wrong: str = ""

    def sums(self, round):
        return ()

    def merge(self, products, weights, start):
        if self.wrong == "nan":
            return products[0].map(lambda part: part * torch.nan)
        return WRONG.get(self.wrong, lambda f: f)(products[0])


@dataclass(frozen=True, kw_only=True)
class OwnStart(LayerWise):
    wrong: str = ""

    def draw(self, d, k, rank, generator, weight):
        drawn = Factors(torch.ones(rank, k), torch.zeros(d, rank))
        return {"rank": lambda f: f.at_rank(rank - 1),
                "nan": lambda f: f.map(lambda part: part + torch.nan), **WRONG,
                "": lambda f: f}[self.wrong](drawn)  # fmt: skip


def updates() -> list[Update]:
    return [Update(client=c, examples=1, layers={"fc": Factors(torch.ones(R, K), torch.ones(D, R))}, head={})
            for c in range(2)]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_merge_gives_wrong_is_told_of_its_layer(wrong) -> None:
    with pytest.raises(RunFailed, match=r"^Own makes of fc .*, expected (Factors\(A, B\)|A \(r, 7\) and B \(5, r\))"):
        Own(wrong=wrong).aggregate(updates(), 1)
    assert Own().aggregate(updates(), 1).layers["fc"].shape == (D, K), "in float32, as the updates are"


def test_one_layer_of_nan_is_told(monkeypatch) -> None:
    monkeypatch.setitem(AGGREGATORS, "own", Own)
    A, B = [torch.ones(R, K)] * 2, [torch.ones(D, R)] * 2
    with pytest.raises(RunFailed, match="^own: A holds NaN or infinity, though what was given is finite"):
        aggregate("own", A, B, wrong="nan")
    assert torch.equal(aggregate("own", A, B).delta, B[0] @ A[0])


@pytest.mark.parametrize("wrong", ["rank", "nan", *WRONG])
def test_what_a_start_draws_wrong_is_told_of_its_layer(wrong) -> None:
    with pytest.raises(RunFailed, match="^OwnStart draws for fc .*, expected "):
        OwnStart(wrong=wrong).start({"fc": (D, K)}, R, 0)
    assert OwnStart().start({"fc": (D, K)}, R, 0)["fc"].rank == R


def test_a_method_that_lacks_what_every_method_has_is_refused_by_name():
    @dataclass(frozen=True, kw_only=True)
    class Short(Aggregator):
        def merge(self, products, weights, start):
            return products[0]

    with pytest.raises(InputError, match=r"strategy: tests.strategies.test_own_method.Short lacks sums \(CONTRIBUTING"):
        create("strategy", {"short": Short}, "short")
    assert isinstance(create("strategy", {"own": Own}, "own"), Own)
