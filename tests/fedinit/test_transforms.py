"""Transforms: out in order, back in the opposite order, and what each of them takes out is put back or stays away."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fedinit import slots, transforms, wire
from fedinit.factors import Factors
from fedinit.statistics import Request, create_statistics
from fedinit.transforms import ChosenSlots, HalfPrecision, Malformed, Payload, Personal, UpdateTransform


@dataclass(frozen=True)
class Asked:
    client: int = 0
    round: int = 1
    adapter: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    trainable: frozenset[str] = frozenset({"B"})
    personal: frozenset[str] = frozenset()
    slots: int | None = None

    @property
    def sent(self) -> dict[str, Tensor]:
        return wire.to_tensors(self.adapter, self.head)

    @property
    def trained(self) -> frozenset[str]:
        return frozenset(n for n in self.sent if n.startswith("head/") or n[-1] in self.trainable - self.personal)


def layers(seed: int) -> dict[str, Factors]:
    draw = torch.Generator().manual_seed(seed)
    return {n: Factors(torch.randn(4, 6, generator=draw), torch.randn(5, 4, generator=draw)) for n in ("a", "b")}


HEAD = {"bias": torch.arange(3.0)}
CHOSEN = {"a": torch.tensor([1, 2]), "b": torch.tensor([], dtype=torch.long)}


class Marking(UpdateTransform):
    """Writes down its name as it passes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_client(self, task, result):
        return dataclasses.replace(result, tensors={**result.tensors, self.name: torch.ones(1)})

    def received(self, asked, tensors):
        assert list(tensors)[-1] == self.name  # the last that was put on is the first taken off
        return {name: value for name, value in tensors.items() if name != self.name}

    def on_server(self, aggregate, admitted):
        return [*aggregate, self.name]


def test_a_chain_goes_out_in_order_and_back_in_the_opposite_one():
    chain, asked = [Marking("one"), UpdateTransform(), Marking("two")], Asked()
    sent = transforms.leave(chain, asked, Payload({"x": torch.zeros(1)}))
    assert list(sent.tensors) == ["x", "one", "two"]
    assert list(transforms.receive(chain, asked, sent.tensors)) == ["x"]
    assert transforms.settle(chain, [], []) == ["two", "one"]
    with pytest.raises(AssertionError):
        transforms.receive(chain[::-1], asked, sent.tensors)


def test_personal_factors_stay_away():
    task = Asked(adapter=layers(0), head=HEAD, trainable=frozenset("AB"), personal=frozenset("B"))
    kept = Personal().on_client(task, Payload(task.sent)).tensors
    assert kept.keys() == task.trained == {"a/A", "b/A", "head/bias"}
    everything = dataclasses.replace(task, personal=frozenset())
    assert Personal().on_client(everything, Payload(task.sent)).tensors == task.sent


def test_chosen_slots_come_back_whole_and_the_rest_is_the_starts():
    asked, trained = Asked(adapter=layers(0), head=HEAD, slots=2), layers(1)
    wanted = {f"{n}/B": slots.fill(f, "B", CHOSEN[n], trained[n].B[:, CHOSEN[n]]).B for n, f in asked.adapter.items()}
    payload = Payload({n: v for n, v in wire.to_tensors(trained, HEAD).items() if n[-1] != "A"}, CHOSEN)
    sent = transforms.leave(transforms.UPDATES, asked, payload).tensors
    assert sent.keys() == {"a/B", "a/slots", "head/bias"} and sent["a/B"].shape == (5, 2)
    back = transforms.receive(transforms.UPDATES, asked, sent)
    assert back.keys() == asked.trained and all(torch.equal(back[n], wanted[n]) for n in wanted)
    with pytest.raises(Malformed, match="2 slots, more than the 1 allowed") as refused:
        ChosenSlots().received(dataclasses.replace(asked, slots=1), sent)
    assert refused.value.code == "slots"


def test_without_a_choice_nothing_is_cut():
    asked = Asked(adapter=layers(0), head=HEAD)
    assert transforms.leave(transforms.UPDATES, asked, Payload(asked.sent)).tensors == asked.sent
    assert transforms.receive(transforms.UPDATES, asked, asked.sent) == asked.sent


def test_half_precision_is_right_to_its_rounding():
    """2⁻¹¹ of an entry of the centred sketch, down to 2⁻¹⁴ of its column's largest; what is not halved, to float32."""
    request = Request(seed=0, source="inputs", layers={"l": "nystrom"}, shapes={"l": (5, 12)}, options={"width": 6})
    statistics = create_statistics(request)
    draw = torch.Generator().manual_seed(0)
    sums = {f"l/{k}": v for k, v in statistics["l"].measure(torch.randn(40, 12, generator=draw)).items()}
    sent = HalfPrecision(statistics).on_client(Asked(), Payload(sums)).tensors
    back = HalfPrecision(statistics).received(None, sent)
    assert sent["l/sketch"].dtype == torch.float16 and sent["l/sketch.scale"].shape == (6,)
    assert back.keys() == sums.keys() and not torch.equal(back["l/sketch"].float(), sums["l/sketch"])
    for name, value in sums.items():
        rtol, atol = (2**-11, float(value.abs().max()) * 2**-11) if name == "l/sketch" else (1e-7, 0)
        torch.testing.assert_close(back[name].double(), value.double(), rtol=rtol, atol=atol)
