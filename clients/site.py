"""What a client process holds besides its messages: data, partition, backbone, lanes. Built once, then shared."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from clients.engine.threads import Lanes
from clients.evaluation import frozen_features, judge, sums_record
from fedinit import wire
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.partition import Partition
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.losses import choose_loss
from fedinit.models import Backbone, build_backbone, select_targets
from fedinit.scores import Accuracy, RecoveryError, Score
from fedinit.state.base_offset import EMPTY, NAME, Offset
from fedinit.state.digest import of_tensors


class Site:
    """Data, backbone and lanes for one configuration. Raises InputError for what cannot be used.

    client: of a site that is one client's: where the partition goes by domain and the domains are named, it reads, and
    need hold, the images of its own domain alone.
    """

    def __init__(self, config: Config, client: int | None = None) -> None:
        self.config = config
        self.backbone: Backbone = build_backbone(config.model)
        self.targets = select_targets(self.backbone.module, config.adapter.targets, config.adapter.rank)
        spec = self.backbone.input
        own = None if client is None else config.partition.domain_of(client, config.data.known_domains)
        self.data: Dataset = config.data.load(spec.channels, (spec.height, spec.width), config.seed, own)
        _check_task(config, self.data, self.backbone.features)
        self.partitions: tuple[Partition, ...] = config.partition.cut(self.data, config.seed)
        self.lanes = Lanes(
            self.backbone,
            self.targets,
            scale=config.adapter.scale,
            dropout=config.adapter.dropout,
            device=config.engine.device,
            lanes=config.engine.lanes,
        )

    def partition(self, index: int) -> Partition:
        """The data of partition id `index`; raises InputError when there are fewer partitions."""
        if not 0 <= index < len(self.partitions):
            raise InputError(
                f"partition-id={index}: this run has {len(self.partitions)} partitions, 0 to "
                f"{len(self.partitions) - 1}; start as many clients, or change partition.clients"
            )
        return self.partitions[index]

    @property
    def score(self) -> type[Score]:
        """What models are judged by."""
        return RecoveryError if self.data.is_regression else Accuracy

    @cached_property
    def features(self) -> Tensor:
        """(n, D) pooled features of every image under the bare backbone, for rounds without adapters."""
        self.lanes.set_base(EMPTY, {})
        return frozen_features(self.lanes, self.data, self.config.evaluation.batch_size)

    def judge(
        self,
        indices: Tensor,
        adapter: Mapping[str, Factors],
        head: Mapping[str, Tensor],
        key: str = EMPTY,
        offset: Offset = MappingProxyType({}),
    ) -> dict[int, tuple[float, float]]:
        """{domain: the score's two sums} over `indices` (n,) of an adapter and head over the base W + s·O, where `key`
        names O; from cached features where adapter and offset are still zero."""
        features = self.features if is_zero(adapter) and key == EMPTY else None
        self.lanes.set_base(key, offset)
        size = self.config.evaluation.batch_size
        return judge(self.lanes, self.data, indices, adapter, head, size, features)

    def evaluate_round(self, round: int, arrays: ArrayRecord) -> MetricRecord:
        """Every domain's test split in one pass; the evaluate_fn of a strategy in this process."""
        tensors = wire.decode(arrays)
        offset = {n[len(NAME) :]: tensors.pop(n) for n in list(tensors) if n.startswith(NAME)}
        adapter, head = wire.from_tensors(tensors)
        key = of_tensors(offset) if offset else EMPTY
        indices = self.data.test.nonzero().flatten()
        return sums_record(self.judge(indices, adapter, head, key, offset), self.score)


def _check_task(config: Config, data: Dataset, features: int) -> None:
    """Raise InputError for a loss, a head or an augmentation that the data's targets do not go with."""
    choose_loss(config.client.loss, data.is_regression)
    if data.is_regression and config.head.name != "none":
        raise InputError(f"head={config.head.name}: data={config.data.name} is about the model's output; use head=none")
    if data.is_regression and config.client.augment != "none":
        raise InputError(f"client.augment={config.client.augment}: data={config.data.name} has no images; use none")
    if config.head.name == "none" and features != len(data.class_names):
        raise InputError(
            f"head=none: the model has {features} outputs, the data {len(data.class_names)}; use head=random, or a "
            "model with as many"
        )


def is_zero(adapter: Mapping[str, Factors]) -> bool:
    """Whether every layer is as it was for want of a factor, as it is before the first training."""
    return all(f.is_zero for f in adapter.values())
