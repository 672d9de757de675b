"""The linear classifier on top of the backbone's pooled features: trained by every client, and averaged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedinit.models.backbone import Backbone
from fedinit.seeding import torch_generator


def init_head(kind: str, classes: int, features: int, seed: int) -> dict[str, Tensor]:
    """{"weight": (classes, features), "bias": (classes,)} in float32.

    ``random`` is U(−1/√features, 1/√features) for both, PyTorch's default for a linear layer, drawn from the run's
    seed so that every client starts with the same; ``zero`` gives the adapters no gradient at the first step.
    """
    if kind == "zero":
        return {"weight": torch.zeros(classes, features), "bias": torch.zeros(classes)}
    bound = features**-0.5
    draw = torch_generator(seed, "head")
    return {
        "weight": torch.empty(classes, features).uniform_(-bound, bound, generator=draw),
        "bias": torch.empty(classes).uniform_(-bound, bound, generator=draw),
    }


@torch.no_grad()
def with_head(backbone: Backbone, head: Mapping[str, Tensor]) -> nn.Module:
    """The model with this head: images (n, channels, height, width) to logits (n, classes).

    It is timm's module with the head as its classifier where that makes the same logits; where its classifier is more
    than a linear layer behind the features (LeViT, CAFormer, VOLO), the two one after the other, "backbone" and "head".
    backbone: whose module is changed. head: {"weight": (classes, features), "bias": (classes,)}.
    """
    module: Any = backbone.module  # with what timm adds to a module
    classes, features = head["weight"].shape
    shape = backbone.input.channels, backbone.input.height, backbone.input.width
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # new classifiers are drawn, and then filled
        behind = nn.Linear(features, classes)
        behind.load_state_dict(dict(head))
        wanted = behind(module(images))
        module.reset_classifier(classes)
        if _fill(module, head) and torch.allclose(module.eval()(images), wanted, rtol=1e-4, atol=1e-5):
            return module
        module.reset_classifier(0)
    return nn.Sequential(OrderedDict(backbone=module, head=behind))


def _fill(module: Any, head: Mapping[str, Tensor]) -> bool:
    """Put the head in the place of the module's classifier, or of each of several; whether they take it."""
    classifiers = module.get_classifier()
    try:
        for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
            classifier.load_state_dict(dict(head))
    except RuntimeError:
        return False
    return True
