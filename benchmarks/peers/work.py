"""The work that every contestant does: data, model, local steps and the average are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients import batches
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.models import build_backbone, select_targets

RATE = 0.02
MODELS = {  # {`model=`: further words}
    "glyph_vit": (),
    "vit_tiny": ("model.pretrained=false",),  # at 224 px, of random weights
}


@dataclass(frozen=True)
class Work:
    """clients train `steps` batches of `batch` images a round, or as many as their images make, all of them in every
    round.

    steps: 0: nobody trains, so that a round is what the framework itself takes.
    model: one of MODELS. device: cpu or cuda, for every contestant.
    """

    clients: int
    rounds: int
    steps: int
    batch: int
    model: str = "glyph_vit"
    device: str = "cpu"

    @property
    def place(self) -> torch.device:
        """Where every contestant trains."""
        return torch.device(self.device)

    def words(self) -> list[str]:
        """What fedinit is told."""
        return [
            "strategy=fedit",
            f"model={self.model}",
            *MODELS[self.model],
            "partition=iid",
            f"partition.clients={self.clients}",
            f"rounds={self.rounds}",
            "client=sgd",
            f"client.lr={RATE}",
            f"client.batch_size={self.batch}",
            "client.epochs=1",  # where a client has fewer images than `steps` batches, nobody takes them twice
            f"client.max_steps={max(self.steps, 1)}",
            "evaluation=none",
            "evaluation.head_alone=false",
            "strategy.diagnostics=false",
            "report=none",
            "logger=none",
            f"engine.device={self.device}",
            # Of the small model the fastest here; of a larger one what fedinit takes by itself.
            f"engine.clients_per_bank={5 if (self.model, self.device) == ('glyph_vit', 'cpu') else 'auto'}",
        ]

    def config(self, *words: str) -> Config:
        """words: further ones."""
        return compose_config([*self.words(), *words])


class LoraLinear(nn.Module):
    """W x + s·B A x with W frozen."""

    def __init__(self, inner: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.A = nn.Parameter(torch.empty(rank, inner.in_features))
        self.B = nn.Parameter(torch.zeros(inner.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.scale * F.linear(F.linear(x, self.A), self.B)


class Model(nn.Module):
    """The backbone with adapters and a head, as one writes it in plain torch. pfl-research asks for `loss` and
    `metrics`."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = work.config()
        backbone = build_backbone(config.model)
        self.body = backbone.module.requires_grad_(False).eval()
        self.input = backbone.input
        for name in select_targets(self.body, config.adapter.targets, config.adapter.rank):
            parent, _, last = name.rpartition(".")
            holder = self.body.get_submodule(parent)
            setattr(holder, last, LoraLinear(getattr(holder, last), config.adapter.rank, config.adapter.scale))
        self.head = nn.Linear(backbone.features, 10)
        self.place = work.place
        self.to(self.place)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, c, h, w) -> logits (n, 10)"""
        return self.head(self.body(batches.normalise(images, self.input, self.place)))

    def loss(self, images: Tensor, labels: Tensor, is_eval: bool = False) -> Tensor:
        return F.cross_entropy(self(images), labels.to(self.place))

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        return {}

    def trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.trained().items():
            value.copy_(values[name])


def parts(work: Work) -> list[tuple[Tensor, Tensor]]:
    """Every client's images, uint8 (n, c, h, w), and labels (n,), as many as it trains on in a round."""
    config = work.config()
    spec = build_backbone(config.model).input
    data = config.data.load(spec.channels, (spec.height, spec.width), config.seed)
    most = max(work.steps, 1) * work.batch
    chosen = [part.train[:most] for part in config.partition.cut(data, config.seed)]
    return [(data.images[i].to(work.place), data.labels[i].to(work.place)) for i in chosen]


def train(model: Model, part: tuple[Tensor, Tensor], work: Work) -> None:
    """One client's local steps."""
    optimizer = torch.optim.SGD([*model.trained().values()], lr=RATE)
    order = torch.randperm(len(part[0]))
    for chosen in order.split(work.batch)[: work.steps]:
        optimizer.zero_grad()
        model.loss(part[0][chosen], part[1][chosen]).backward()
        optimizer.step()


def average(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([u[name] for u in updates]).mean(0) for name in updates[0]}
