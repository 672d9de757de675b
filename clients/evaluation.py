"""How good one adapter and head are, with the adapter folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import MetricRecord
from torch import Tensor

from clients import batches
from clients.engine.threads import Lanes
from fedinit.adapters.bank import Bank
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.scores import Score


def judge(
    lanes: Lanes,
    data: Dataset,
    indices: Tensor,
    adapter: Mapping[str, Factors],
    head: Mapping[str, Tensor],
    batch_size: int,
    features: Tensor | None = None,
) -> dict[int, tuple[float, float]]:
    """{domain: the two sums of a score} over `indices` (n,) of the data set, its batches spread over the lanes: correct
    predictions and images, or Σ‖ŷ − y‖² and Σ‖y‖² where the targets are numbers.

    features: (len(data), D) of the frozen backbone, used instead of the images when no adapter is in play.
    """
    folded: dict[torch.device, Bank] = {}
    for bank in lanes.banks:
        device = next(bank.module.parameters()).device
        if device in folded:
            bank.fold_like(folded[device])
        else:
            bank.fold(adapter, head)
            folded[device] = bank

    @torch.inference_mode()
    def work(bank: Bank, chunk: Tensor) -> Tensor:
        device = next(bank.module.parameters()).device
        if features is not None:
            logits = bank.classify(features[chunk].to(device), 1)
        else:
            logits = bank.forward(batches.normalise(data.images[chunk], lanes.input, device), 1)
        return score(logits[0].cpu(), data.labels[chunk])

    score = sums_of_numbers if data.is_regression else sums_of_classes
    sums = torch.cat(lanes.map(work, indices.split(batch_size)), dim=1)  # (2, n)
    domains = data.domains[indices]
    return {int(d): tuple(sums[:, domains == d].sum(1).tolist()) for d in domains.unique(sorted=True)}


def sums_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """(2, n) int64: whether each prediction is correct, and one for each; outputs (n, classes), labels (n,)."""
    hits = (outputs.argmax(-1) == labels).long()
    return torch.stack([hits, torch.ones_like(hits)])


def sums_of_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    """(2, n) float64: ‖ŷ − y‖² and ‖y‖² of each; both (n, outputs)."""
    outputs, targets = outputs.double(), targets.double()
    return torch.stack([(outputs - targets).square().sum(-1), targets.square().sum(-1)])


def sums_record(sums: Mapping[int, tuple[float, float]], score: type[Score]) -> MetricRecord:
    """{domain: two sums} as it travels: three lists of numbers."""
    part, whole = ([row[i] for row in sums.values()] for i in range(2))
    return MetricRecord({"domains": list(sums), score.wire[0]: part, score.wire[1]: whole})


def frozen_features(lanes: Lanes, data: Dataset, batch_size: int) -> Tensor:
    """(len(data), D) pooled features of the backbone without any adapter."""
    for bank in lanes.banks:
        bank.bare()

    @torch.inference_mode()
    def work(bank: Bank, chunk: Tensor) -> Tensor:
        device = next(bank.module.parameters()).device
        return bank.module(batches.normalise(data.images[chunk], lanes.input, device)).cpu()

    # A clone, since an inference tensor could not take part in training the heads.
    return torch.cat(lanes.map(work, torch.arange(len(data)).split(batch_size))).clone()
