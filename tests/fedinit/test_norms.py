"""Norms of many tensors at once are those of each, and what is not finite is found by name."""

from __future__ import annotations

import math

import pytest
import torch

from fedinit.norms import first_not_finite, norms


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_norms_are_those_of_every_tensor(dtype):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"{i}": torch.randn(shape, generator=draw).to(dtype) for i, shape in enumerate([(3, 4), (5,), (2, 3, 3)])
    }
    tensors |= {"empty": torch.zeros(0, 4, dtype=dtype), "one": torch.tensor(-2.0, dtype=dtype)}
    expected = {name: math.sqrt(sum(float(v) ** 2 for v in value.flatten())) for name, value in tensors.items()}
    assert norms(tensors) == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)
    assert norms({}) == {}


def test_what_is_not_finite_is_found_and_what_only_overflows_is_not():
    """The norm of finite values may be past what their dtype holds: then the values themselves are looked at."""
    large = {"a": torch.full((4,), 3e38), "h": torch.full((9,), 60_000.0).half(), "n": torch.tensor([2**62])}
    assert norms({"a": large["a"]}) == {"a": math.inf}
    assert first_not_finite(large) is None and first_not_finite({}) is None
    for odd in (math.nan, math.inf, -math.inf):
        assert first_not_finite({**large, "b": torch.tensor([1.0, odd]), "c": torch.tensor([odd])}) == "b"
    known = norms({name: large[name] for name in "ah"})
    assert first_not_finite({name: large[name] for name in "ah"}, known) is None
