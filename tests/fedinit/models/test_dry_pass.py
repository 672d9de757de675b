"""Which layers can carry an adapter: called as a module, once a pass, with the rows of one image after the other's."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from flwr.app import Context, RecordDict
from torch import nn

import run_sim
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError
from fedinit.models import adapted_layers, select_targets
from fedinit.models.dry_pass import dry_pass
from strategies import server_app
from tests.support.small import WORDS, small_config
from tests.support.timm_models import SMALL, backbone_of, leak

PAPER = ["attn.proj", "mlp.fc2"]
TABLE = "is given the same 27 rows for one image and for two"
UNCALLED = "is not called in a forward pass"


@pytest.mark.parametrize(
    ("name", "kwargs", "targets", "layer", "fault"),
    [
        ("vit_relpos_base_patch16_224", SMALL, PAPER, "blocks.0.attn.rel_pos.mlp.fc2", TABLE),
        ("vit_srelpos_medium_patch16_224", SMALL, PAPER, "shared_rel_pos.mlp.fc2", TABLE),
        ("beit_base_patch16_224", SMALL, ["attn.qkv"], "blocks.0.attn.qkv", UNCALLED),
        ("eva02_tiny_patch14_224", SMALL, ["attn.qkv", "attn.proj"], "blocks.0.attn.qkv", UNCALLED),
        ("vit_small_patch16_dinov3_qkvb", {**SMALL, "img_size": 64}, ["attn.qkv"], "blocks.0.attn.qkv", UNCALLED),
        (
            "swinv2_tiny_window8_256",
            {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
            ["attn.qkv"],
            "layers.0.blocks.0.attn.qkv",
            UNCALLED,
        ),
    ],
)
def test_a_layer_that_cannot_carry_an_adapter_is_refused_by_name_with_what_can(name, kwargs, targets, layer, fault):
    backbone = backbone_of(name, kwargs)
    with pytest.raises(InputError, match=f"{re.escape(layer)} .*{fault}") as caught:
        adapted_layers(backbone, targets, 2)
    advised = str(caught.value).rpartition("adapter.targets=[")[2].rstrip("]").split(",")
    layers = adapted_layers(backbone, advised, 1)
    assert layers and layer not in layers
    assert leak(backbone, layers) <= 1e-5


def test_the_table_of_offsets_would_leak_from_client_to_client():
    """The negative control: what is refused moves a client's features when only its mates' adapters change."""
    backbone = backbone_of("vit_relpos_base_patch16_224", {**SMALL, "init_values": 1.0})
    assert leak(backbone, select_targets(backbone.module, PAPER, 2)) > 1e-2


class Odd(nn.Module):
    """(n, 3, 4, 4) images to (n, 12) features, by a layer that is used in an odd way."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use, self.layer, self.plain = use, nn.Linear(12, 12), nn.Linear(12, 12)
        self.idle = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(2).transpose(1, 2).reshape(len(images), 4, 12)  # (n, 4, 12)
        if self.use == "twice":
            x = self.layer(self.layer(x))
        elif self.use == "tokens in front":
            x = self.layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (4, len(images))).transpose(0, 1)
        elif self.use == "windows":
            x = self.layer(x.reshape(-1, 2, 12)).view_as(x)
        elif self.use == "its weight":
            x = F.linear(x, self.layer.weight)
        elif self.use == "a mean over the batch":
            x = self.layer(x - x.mean(0))
        return self.plain(x).mean(1)


@pytest.mark.parametrize(
    ("use", "fault"),
    [
        ("twice", "is called 2 times"),
        ("tokens in front", "is not given the rows of one image after those of the other"),
        ("a mean over the batch", "is not given the rows of one image after those of the other"),
        ("its weight", UNCALLED),
        ("windows", None),
    ],
)
def test_what_a_pass_shows(use, fault):
    torch.manual_seed(0)
    seen = dry_pass(Odd(use), (3, 4, 4))
    assert seen.output == (1, 12)
    assert "plain" not in seen.faults or use == "a mean over the batch"
    assert UNCALLED in seen.faults["idle"]
    assert fault is None if "layer" not in seen.faults else fault in seen.faults["layer"]


def test_windows_of_one_image_lie_together():
    """Swin deals an image out over windows, which are rows of their own; the clients stay apart."""
    shape = {"img_size": 64, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
    backbone = backbone_of("swin_tiny_patch4_window7_224", shape)
    layers = adapted_layers(backbone, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "reduction"], 1)
    assert len(layers) == 13
    assert leak(backbone, layers) <= 1e-5


def test_features_are_as_many_as_the_model_gives():
    """MambaOut says 288 and gives 1152; a head for 288 would fail in round 1."""
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}
    backbone = backbone_of("mambaout_femto", small, image_size=None)
    spec = backbone.input
    with torch.no_grad():
        features = backbone.module(torch.zeros(2, spec.channels, spec.height, spec.width))
    assert backbone.features == features.shape[1] != backbone.module.num_features


def test_a_model_that_gives_tokens_is_refused():
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224: gives \(1, 196, 48\).*global_pool=avg"):
        backbone_of("vit_tiny_patch16_224", {**SMALL, "global_pool": "", "class_token": False})


def test_a_pooling_block_is_not_adapted_beside_the_blocks():
    backbone = backbone_of("vit_base_patch16_siglip_224")
    assert list(adapted_layers(backbone, None, 2)) == [f"blocks.{i}.{n}" for i in (0, 1) for n in PAPER]
    with pytest.raises(InputError, match=r"'mlp\.fc2' names attn_pool\.mlp\.fc2.*use blocks\.\?\.mlp\.fc2"):
        adapted_layers(backbone, PAPER, 2)
    named = adapted_layers(backbone, ["blocks.?.mlp.fc2", "attn_pool.mlp.fc2", "attn_pool.proj"], 2)
    assert list(named)[-2:] == ["attn_pool.proj", "attn_pool.mlp.fc2"]
    assert leak(backbone, named) <= 1e-5


BEIT = (
    "model.name=beit_base_patch16_224",
    "model.kwargs={img_size: 32, patch_size: 8, depth: 1, in_chans: 1}",
    "adapter.targets=[attn.qkv]",
)


def test_a_run_is_refused_before_its_folder_is_made(tmp_path, capsys):
    assert run_sim.main([*WORDS, *BEIT, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "blocks.0.attn.qkv is not called" in error
    assert not list(tmp_path.iterdir())


def test_a_deployed_server_refuses_it_before_its_folder_too(tmp_path):
    """A client's Site is the simulation's, which the test before has."""
    run_config = to_run_config(small_config(*BEIT, "evaluation=clients", f"output_dir={tmp_path}"))
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv is not called"):
        server_app.app(RefusingGrid(), Context(1, 1, {}, RecordDict(), run_config))
    assert not list(tmp_path.iterdir())


class RefusingGrid:
    """A grid that nobody may ask for anything."""
