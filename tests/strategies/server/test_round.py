"""One round on the server: what it makes is finite, or it ends by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from flwr.app import Message, RecordDict

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
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
    refuse_not_finite(Aggregate(**good), "round 1: the aggregate", method_of())  # the control
    spoiling = {"head": {"bias": torch.tensor([1.0, bad])}}.get(where, {"l": spoilt})
    name = "head/bias" if where == "head" else "l/B"
    with pytest.raises(RunFailed, match=f"round 1: the aggregate holds NaN or infinity in {name}, though every update"):
        refuse_not_finite(Aggregate(**{**good, where: spoiling}), "round 1: the aggregate", method_of())


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


@pytest.mark.parametrize(("size", "held"), [(1e18, True), (1e19, False), (3e38, False)])
@pytest.mark.parametrize("where", ["layers", "residual"])
def test_factors_whose_product_float32_does_not_hold_are_refused_by_name(where, size, held):
    layer, large = (
        Factors(torch.ones(2, 3), torch.ones(4, 2)),
        Factors(torch.full((2, 3), size), torch.full((4, 2), size)),
    )
    aggregate = Aggregate(**{"layers": {"l": layer}, "residual": {"l": layer}, "head": {}, where: {"l": large}})
    if held:
        refuse_not_finite(aggregate, "round 1: the aggregate", method_of())
        return
    with pytest.raises(RunFailed, match="round 1: the aggregate has a product in l that float32 does not hold; change"):
        refuse_not_finite(aggregate, "round 1: the aggregate", method_of())


class Large:
    """A handler that answers as a cohort does, but for one client, whose updates hold one large number everywhere."""

    def __init__(self, cohort, value):
        self.cohort, self.value = cohort, value

    def __call__(self, deliveries):
        return [
            self.enlarged(message, reply) if context.node_config["partition-id"] == 1 else reply
            for reply, (message, context) in zip(self.cohort(deliveries), deliveries, strict=True)
        ]

    def enlarged(self, message, reply):
        if not message.metadata.message_type.startswith("train") or reply.has_error():
            return reply
        state = {name: torch.full_like(v, self.value) for name, v in wire.decode(reply.content["state"]).items()}
        return Message(RecordDict({**reply.content, "state": wire.encode(state)}), reply_to=message)


@pytest.mark.parametrize("value", [3.4e38, 1e20])
@pytest.mark.parametrize("strategy", ["fedex_lora", "flora", "lora_fair", "fedit"])
def test_with_the_gate_off_large_updates_end_in_a_line_that_names_it(strategy, value):
    """Never in a model that float32 does not hold, nor in a word about a server that sent NaN."""
    config = small_config(f"strategy={strategy}", "gate.enabled=false", "rounds=3", "evaluation=none")
    site = Site(config)
    with pytest.raises(RunFailed) as failed:
        federate(config, LocalGrid(Large(Cohort(site), value), 3), site.backbone)
    said = str(failed.value)
    assert said.startswith("round 1: ") and "gate.enabled=true refuses" in said and "client 0" not in said
    gated = small_config(f"strategy={strategy}", "rounds=1", "evaluation=none")
    federate(gated, LocalGrid(Large(Cohort(site), value), 3), site.backbone)  # the advice: the others go on
