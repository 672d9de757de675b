"""What a client's training reads (`client=`): a dataclass an optimiser, whose steps are in clients/optimizers/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import at_least, positive, within


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """What every client reads, whatever its optimiser."""

    optimizer: str
    lr: float
    lr_ratio_b: float = 1.0  # LoRA+: the learning rate of B as a multiple of lr
    prox: float = 0.0  # FedProx: adds prox/2·‖θ − θ_start‖² over adapter and head to the loss
    clip_norm: float | None = 10.0  # global norm over one client's adapters and head; null: none
    batch_size: int = 20
    epochs: int = 2
    max_steps: int | None = None  # batches a client and round, at most; null: no cap
    augment: Literal["none", "flip", "crop_flip"] = "none"
    loss: Literal["auto", "cross_entropy", "l2", "l1"] = "auto"  # auto: cross_entropy for classes, l2 for numbers

    def __post_init__(self) -> None:
        positive("client.lr", self.lr)
        positive("client.lr_ratio_b", self.lr_ratio_b)
        within("client.prox", self.prox, 0, math.inf, open_high=True)
        if self.clip_norm is not None:
            positive("client.clip_norm", self.clip_norm)
        at_least("client.batch_size", self.batch_size, 1)
        at_least("client.epochs", self.epochs, 1)
        if self.max_steps is not None:
            at_least("client.max_steps", self.max_steps, 1)

    def steps(self, examples: int) -> int:
        """How many batches a client with so many examples trains on in a round; one at least."""
        count = self.epochs * -(-examples // self.batch_size)
        return max(1, count if self.max_steps is None else min(count, self.max_steps))


@dataclass(frozen=True, kw_only=True)
class SGDConfig(ClientConfig):
    """`client=sgd`: SGD with momentum and weight decay."""

    optimizer: Literal["sgd"] = "sgd"
    lr: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("client.weight_decay", self.weight_decay, 0, math.inf, open_high=True)
        within("client.momentum", self.momentum, 0, 1, open_high=True)


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(ClientConfig):
    """`client=adamw`: Adam with decoupled weight decay."""

    optimizer: Literal["adamw"] = "adamw"
    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        within("client.weight_decay", self.weight_decay, 0, math.inf, open_high=True)
        for beta in self.betas:
            within("client.betas", beta, 0, 1, open_high=True)


@dataclass(frozen=True, kw_only=True)
class SGDSaIConfig(ClientConfig):
    """`client=sgd_sai`: SGD with a step scale a block, fixed by its first gradient (fedinit/step_scale.py)."""

    optimizer: Literal["sgd_sai"] = "sgd_sai"
    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 0.01
    gsnr_scope: Literal["client_once", "global_once", "per_round"] = (
        "client_once"  # who fixes a block's scale, how often
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        within("client.weight_decay", self.weight_decay, 0, math.inf, open_high=True)
        within("client.momentum", self.momentum, 0, 1, open_high=True)


CLIENTS: dict[str, type[ClientConfig]] = {"adamw": AdamWConfig, "sgd": SGDConfig, "sgd_sai": SGDSaIConfig}
