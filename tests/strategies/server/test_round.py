"""One round on the server: what it makes is finite, or it ends by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit.errors import RunFailed
from fedinit.factors import Factors
from fedinit.transport.local import LocalGrid
from strategies.aggregator import Aggregate, Update
from strategies.methods.fedit import FedIT
from strategies.server.collecting import Admitted
from strategies.server.federation import federate
from strategies.server.round import advance, combined, refuse_not_finite
from strategies.server.weighing import weigh
from strategies.server_opt import create_server_optimizer
from tests.support.serving import method_of, registered
from tests.support.small import small_config


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["layers", "head", "residual"])
def test_what_is_not_finite_is_refused_by_name(where, bad):
    layer = Factors(torch.ones(2, 3), torch.ones(4, 2))
    spoilt = Factors(torch.ones(2, 3), torch.full((4, 2), bad))
    good = {"layers": {"l": layer}, "residual": {"l": layer}, "head": {"bias": torch.ones(3)}}
    refuse_not_finite(Aggregate(**good), "round 1: the aggregate")  # the control
    spoiling = {"head": {"bias": torch.tensor([1.0, bad])}}.get(where, {"l": spoilt})
    name = "head/bias" if where == "head" else "l/B"
    with pytest.raises(RunFailed, match=f"round 1: the aggregate holds NaN or infinity in {name}, though every update"):
        refuse_not_finite(Aggregate(**{**good, where: spoiling}), "round 1: the aggregate")


def test_an_aggregate_that_is_not_finite_is_not_sent(site, monkeypatch):
    """The run ends in round 1 with the method's name, and does not blame client.lr for it."""
    merge = FedIT.merge

    def overflowing(self, products, weights, start):
        return merge(self, [dataclasses.replace(p, B=p.B.double() * 1e300) for p in products], weights, start)

    monkeypatch.setattr(FedIT, "merge", overflowing)
    with pytest.raises(RunFailed) as failed:
        federate(small_config("strategy=fedit"), LocalGrid(Cohort(site), 3), site.backbone)
    assert str(failed.value).startswith("round 1: the aggregate of strategy=fedit holds NaN or infinity in blocks.0.")
    assert "client.lr" not in str(failed.value)


def test_a_state_that_failed_is_still_there(site):
    """Rounds are functions of the state: a step of the server optimiser leaves the old state's moments as they were."""
    exchange, state = registered(site)
    method = method_of(server_optimizer=create_server_optimizer("momentum"))
    layers = {name: dataclasses.replace(f, B=torch.ones_like(f.B)) for name, f in state.model.layers.items()}
    updates = [Update(0, 5, layers, state.model.head)]
    admitted, weighed = Admitted(updates), weigh(updates, method, state.model)
    state, aggregate = combined(state, method, exchange, admitted, weighed)
    after = advance(state, method, admitted, weighed, aggregate)
    assert state.moments == {} and state.round == 0 and not any(f.B.any() for f in state.model.layers.values())
    assert after.round == 1 and after.moments and after.mirror(0).accepted == 1 and state.mirror(0).accepted == 0
