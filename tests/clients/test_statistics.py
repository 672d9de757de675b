"""What a client holds while it measures, and what it counts."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from clients.resident import Resident
from clients.statistics import inputs, measure
from fedinit.adapters.bank import Bank
from fedinit.data.dataset import Dataset
from fedinit.models import Backbone, select_targets
from fedinit.statistics import Request, Sampling
from fedinit.statistics.gram import about_mean


def _request(targets: dict[str, tuple[int, int]]) -> Request:
    sampling = Sampling(examples=None, min_examples=1)
    return Request(source="inputs", layers=dict.fromkeys(targets, "gram"), shapes=targets, seed=0, sampling=sampling)


def test_the_inputs_of_one_layer_are_held_at_a_time(tiny_vit: Backbone) -> None:
    targets = select_targets(tiny_vit.module, ("mlp.fc2",), 2)
    bank, spec, held, seen = Bank(tiny_vit, targets, 1.0), tiny_vit.input, [], []

    def see(layer: str, values: Tensor, other: Tensor | None = None) -> None:
        assert all(before() is None for before in held)
        held.append(weakref.ref(values))
        seen.append(layer)

    images = torch.randn(2, spec.channels, spec.height, spec.width)
    inputs(bank, _request(targets), images, torch.zeros(2), see)
    assert seen == list(targets) and len(seen) == 2


class Twice(nn.Module):
    """Its one layer is gone through twice, the second time by one row of an image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.layer(images.flatten(2).mT)  # (b, h·w, 1)
        return self.layer(tokens.mean(1, keepdim=True))[:, 0]


def test_a_layer_that_is_reached_twice_counts_once(tiny_vit: Backbone, tiny_data: Dataset) -> None:
    """By the last of its inputs, and in every batch."""
    backbone, targets = Backbone(Twice(), 1, tiny_vit.input), {"layer": (1, 1)}
    bank = Bank(backbone, targets, 1.0)
    found = measure(
        bank, _request(targets), torch.arange(7), 0, Resident(tiny_data, bank.device), tiny_vit.input, 3, ""
    )
    assert float(found.sums["layer/count"]) == 7.0


def test_sums_about_the_mean_are_those_of_one_sum_over_all_columns() -> None:
    """They are taken over some columns at a time, which changes no bit."""
    rows = 100 * torch.randn(513, 200, generator=torch.Generator().manual_seed(0)) + 7
    about, centre, total = about_mean(rows)
    expected = (rows.sum(0, dtype=torch.float64) / 513).float()
    assert torch.equal(centre, expected.double()) and torch.equal(about, rows - expected)
    assert torch.equal(total, about.sum(0, dtype=torch.float64))
