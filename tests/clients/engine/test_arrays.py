"""What is packed and unpacked is what it was: every bit, every shape, every kind of value, every identity."""

from __future__ import annotations

import pickle
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from clients.engine.arrays import ALIGNMENT, Laid, pack, put_together, take_apart, unpack
from clients.task import Job, Task
from fedinit.factors import Factors
from fedinit.models.backbone import Backbone

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


class Pair(NamedTuple):
    left: Tensor
    right: int


def travelled(value: object) -> object:
    """As Ray carries it: buffers beside the pickle, which nobody can write to, at any address."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[memoryview(b"." + bytes(b.raw()))[1:] for b in buffers])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (5, 7)])
@pytest.mark.parametrize("form", [Laid.copy, Laid.view])
def test_a_tensor_keeps_its_bits(dtype, shape, form) -> None:
    tensor = torch.randint(-9, 9, shape).to(dtype) if dtype != torch.bool else torch.rand(shape) > 0.5
    back = unpack(travelled(pack(tensor)), form)
    assert back.dtype == dtype and back.shape == tensor.shape and torch.equal(back, tensor)
    assert back.numel() == 0 or back.data_ptr() % ALIGNMENT == 0


def test_not_a_number_and_signs_of_zero_stay() -> None:
    odd = torch.tensor([float("nan"), -0.0, float("inf")])
    back = unpack(travelled(pack(odd)))
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_slices_and_transposes_keep_their_values() -> None:
    whole = torch.arange(24.0).view(4, 6)
    for part in (whole[:, 2:4], whole.T, whole[1:3], whole[:1].expand(3, 6)):
        assert torch.equal(unpack(travelled(pack(part))), part)


def test_a_copy_is_nobody_elses_and_can_be_written() -> None:
    tensor = torch.zeros(4)
    packed = pack({"a": tensor})
    unpack(packed)["a"].add_(1)
    assert torch.equal(tensor, torch.zeros(4))
    assert unpack(packed, Laid.view)["a"].data_ptr() == tensor.data_ptr()  # the control: where it is in its place


def test_a_job_comes_back_as_it_was() -> None:
    head = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    tasks = tuple(
        Task(c, 1, torch.arange(c), MappingProxyType({"layer": Factors(torch.rand(2, 3), torch.rand(4, 2))}), head,
             frozenset("AB"), step_scales={"layer/A": 0.5})
        for c in range(3)
    )  # fmt: skip
    job = Job("train", "base", "", tasks)
    back = unpack(travelled(pack(job)))
    assert isinstance(back, Job) and (back.work, back.base, len(back.tasks)) == ("train", "base", 3)
    for there, here in zip(back.tasks, tasks, strict=True):
        assert there.client == here.client and torch.equal(there.examples, here.examples)
        assert there.trainable == here.trainable and there.step_scales == here.step_scales
        assert isinstance(there.adapter["layer"], Factors)
        assert torch.equal(there.adapter["layer"].B, here.adapter["layer"].B)
        assert there.head is back.tasks[0].head  # what the clients share they share there too
    assert torch.is_tensor(job.tasks[0].head["bias"])  # the job itself is as it was


def test_sequences_keep_their_kind() -> None:
    value = [Pair(torch.ones(2), 3), (torch.zeros(1), [torch.ones(1)]), "text", None]
    back = unpack(travelled(pack(value)))
    assert isinstance(back[0], Pair) and isinstance(back[1], tuple) and isinstance(back[1][1], list)
    assert torch.equal(back[0].left, torch.ones(2)) and back[2:] == ["text", None]


def test_a_backbone_is_put_together_again(tiny_vit: Backbone) -> None:
    frame, numbers = take_apart(tiny_vit.module)
    assert len(pickle.dumps(frame)) < sum(laid.array.nbytes for _, laid in numbers)  # it has no numbers in it
    module = put_together(*travelled((frame, numbers)))
    theirs, ours = module.state_dict(), tiny_vit.module.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert not any(value.requires_grad for value in module.parameters())
    images = torch.rand(2, tiny_vit.input.channels, tiny_vit.input.height, tiny_vit.input.width)
    assert torch.equal(module(images), tiny_vit.module(images))


def test_what_is_tied_stays_tied_and_buffers_without_a_place_in_the_state_come_along() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module.register_buffer("hidden", torch.arange(3), persistent=False)
    back = put_together(*travelled(take_apart(module.requires_grad_(False))))
    assert back[1].weight is back[0].weight and torch.equal(back.hidden, torch.arange(3))
    assert isinstance(back[0].weight, nn.Parameter) and not isinstance(back.hidden, nn.Parameter)
