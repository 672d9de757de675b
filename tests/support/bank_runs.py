"""A bank over one linear layer, or over a backbone in float64, and how near its results must be."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from fedinit.adapters.bank import Bank
from fedinit.models import Backbone, InputSpec


def close64(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def one_layer(d: int, k: int, bias: bool = True, scale: float = 1.7, dropout: float = 0.0) -> tuple[Bank, nn.Linear]:
    """A bank over a backbone that is a single linear layer of float64, named "0"."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear = nn.Linear(k, d, bias=bias, dtype=torch.float64).requires_grad_(False)
    spec = InputSpec(channels=1, height=1, width=k, mean=(0.0,), std=(1.0,))
    return Bank(Backbone(nn.Sequential(linear), d, spec), {"0": (d, k)}, scale, dropout), linear


def no_head(count: int) -> list[dict[str, Tensor]]:
    return [{"weight": torch.zeros(1, 1), "bias": torch.zeros(1)} for _ in range(count)]


def in_float64(backbone: Backbone) -> Backbone:
    return dataclasses.replace(backbone, module=copy.deepcopy(backbone.module).double())


def run_layer(bank: Bank, x: Tensor, active: int) -> Tensor:
    bank.layers["0"].rows = slice(0, active)
    return bank.layers["0"](x)
