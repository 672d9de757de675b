"""Correct predictions of one adapter and head, with the adapter folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import MetricRecord
from torch import Tensor

from clients import batches
from clients.lanes import Lanes
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.lora import Bank


def count_correct(
    lanes: Lanes,
    data: Dataset,
    indices: Tensor,
    adapter: Mapping[str, Factors],
    head: Mapping[str, Tensor],
    batch_size: int,
    features: Tensor | None = None,
) -> dict[int, tuple[int, int]]:
    """{domain: (correct, images)} over `indices` (n,) of the data set, its batches spread over the lanes.

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
        return logits[0].argmax(-1).cpu() == data.labels[chunk]

    hits = torch.cat(lanes.map(work, indices.split(batch_size)))
    domains = data.domains[indices]
    return {
        int(d): (int(hits[domains == d].sum()), int((domains == d).sum())) for d in domains.unique(sorted=True)
    }


def counts_record(counts: Mapping[int, tuple[int, int]]) -> MetricRecord:
    """{domain: (correct, images)} as it travels: three lists of whole numbers."""
    return MetricRecord(
        {
            "domains": list(counts),
            "correct": [correct for correct, _ in counts.values()],
            "num-examples": [images for _, images in counts.values()],
        }
    )


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
