"""Label flip: an honest training on wrong labels, C − 1 − c in place of c.

Fang et al., USENIX Security 2020, arXiv 1911.11815, section 7.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from clients.attacks.contract import Attack, Change, Seen
from fedinit.config.attack import LabelFlipConfig
from fedinit.data.dataset import Dataset
from fedinit.data.shares import Partition


class LabelFlip(Attack[LabelFlipConfig]):
    """What its training on wrong labels made of it, as it is."""

    def forge(self, seen: Seen) -> Change:
        return seen.own


def flipped(data: Dataset, attackers: Iterable[Partition]) -> Dataset:
    """The data set with the labels of these clients' training images turned round; test images keep theirs."""
    labels = data.labels.clone()
    for partition in attackers:
        labels[partition.train] = len(data.class_names) - 1 - labels[partition.train]
    return dataclasses.replace(data, labels=labels)
