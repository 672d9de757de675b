"""A model with its head: the same logits as the head behind the bare model, whatever timm's classifier is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedinit.models.head import with_head
from tests.support.timm_models import SMALL, backbone_of

MAMBA = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}


@pytest.mark.parametrize(
    ("name", "kwargs", "as_classifier"),
    [
        ("vit_tiny_patch16_224", SMALL, True),
        ("deit_tiny_distilled_patch16_224", SMALL, True),
        ("mambaout_femto", MAMBA, True),
        ("levit_128s", {}, False),
    ],
)
def test_logits_are_the_heads_behind_the_bare_model(name, kwargs, as_classifier):
    backbone, draw = backbone_of(name, kwargs), torch.Generator().manual_seed(0)
    spec = backbone.input
    images = torch.randn(2, spec.channels, spec.height, spec.width, generator=draw)
    head = {"weight": torch.randn(5, backbone.features, generator=draw), "bias": torch.randn(5, generator=draw)}
    with torch.no_grad():
        wanted = nn.functional.linear(backbone.module(images), head["weight"], head["bias"])
        model = with_head(backbone, head)
        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-5)
    assert isinstance(model, nn.Sequential) != as_classifier
