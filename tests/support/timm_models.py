"""timm models as backbones, without weights of their own, and what a bank over one does to its clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedinit.adapters.bank import Bank
from fedinit.config.schema import ModelConfig
from fedinit.factors import Factors
from fedinit.models import Backbone, build_backbone

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 12}  # of the ViT-like classes


def settings(name: str, **fields: Any) -> ModelConfig:
    """`model.<field>=` of a model without weights, with these fields set."""
    unset = {"kwargs": {}, "checkpoint": None, "pretrained": False, "image_size": None, "mean": None, "std": None}
    return ModelConfig(name=name, **{**unset, **fields})


def backbone_of(name: str, kwargs: Mapping[str, Any] = SMALL, **fields: Any) -> Backbone:
    """The backbone, random weights."""
    return build_backbone(settings(name, kwargs=kwargs, **fields))


def leak(backbone: Backbone, targets: Mapping[str, tuple[int, int]]) -> float:
    """How far one client's features in a bank of three move when only the others' adapters change, relative."""
    spec, draw = backbone.input, torch.Generator().manual_seed(0)
    images = torch.randn(3, spec.channels, spec.height, spec.width, generator=draw)

    def drawn() -> dict[str, Factors]:
        shapes = targets.items()
        return {
            name: Factors(torch.randn(2, k, generator=draw) / k**0.5, torch.randn(d, 2, generator=draw))
            for name, (d, k) in shapes
        }

    bank, mine, features = Bank(backbone, targets, 1.0), drawn(), []
    for _ in range(2):
        bank.load([mine, drawn(), drawn()], [{}] * 3)
        features.append(bank.forward(images, 3)[0].detach())
    return float((features[1] - features[0]).norm() / features[0].norm())


def saved(folder: Path, weights: Mapping[str, Tensor]) -> str:
    """The path of a safetensors file of them."""
    path = folder / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return str(path)
