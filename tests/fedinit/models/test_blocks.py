"""Default targets: the layers by which attention and the MLP of each block give to the residual stream."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from torch import nn

from fedinit.errors import InputError
from fedinit.models import adapted_layers, select_targets
from fedinit.models.blocks import default_layers
from tests.support.timm_models import SMALL, backbone_of, leak

ROOT = Path(__file__).resolve().parents[3]
PAPER = ("attn.proj", "mlp.fc2")
TWO = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in PAPER]
SWIN = {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


@pytest.mark.parametrize(
    ("name", "kwargs", "layers"),
    [
        ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}, TWO),
        ("eva02_tiny_patch14_224", SMALL, TWO),
        ("beit_base_patch16_224", SMALL, TWO),
        ("vit_relpos_base_patch16_224", SMALL, TWO),
        ("vit_srelpos_medium_patch16_224", SMALL, TWO),
        ("vit_base_patch16_siglip_224", SMALL, TWO),
        ("naflexvit_base_patch16_gap", SMALL, TWO),
        ("samvit_base_patch16", {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64}, TWO),
        (
            "cait_xxs24_224",
            {"embed_dim": 48, "depth": 1, "depth_token_only": 1, "num_heads": 4, "img_size": 64},
            [f"{blocks}.0.{layer}" for blocks in ("blocks_token_only", "blocks") for layer in PAPER],
        ),
        (
            "xcit_nano_12_p16_224",
            {"embed_dim": 48, "depth": 1, "cls_attn_layers": 1, "num_heads": 4, "img_size": 64},
            [f"{blocks}.0.{layer}" for blocks in ("blocks", "cls_attn_blocks") for layer in PAPER],
        ),
        ("swin_tiny_patch4_window7_224", SWIN, [f"layers.{i}.blocks.0.{layer}" for i in (0, 1) for layer in PAPER]),
        (
            "vit_pwee_patch16_reg1_gap_256",
            {**SMALL, "num_heads": 4},
            [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn_out_proj", "mlp_out_proj")],
        ),
    ],
)
def test_where_adapters_sit_and_that_clients_stay_apart(name, kwargs, layers):
    backbone = backbone_of(name, kwargs)
    targets = adapted_layers(backbone, None, 2)
    assert sorted(targets) == sorted(layers)
    assert leak(backbone, targets) <= 1e-5


class Part(nn.Module):
    """Linear layers by name, in this order: {name: (inputs, outputs)}."""

    def __init__(self, **layers: tuple[int, int]) -> None:
        super().__init__()
        for name, (inputs, outputs) in layers.items():
            self.add_module(name, nn.Linear(inputs, outputs))


def blocks(**parts: nn.Module) -> nn.Module:
    """A model of one block of these."""
    block, model = nn.Module(), nn.Module()
    for name, part in parts.items():
        block.add_module(name, part)
    model.blocks = nn.Sequential(block)
    return model


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (blocks(attn=Part(qkv=(8, 24), proj=(8, 8), proj_l=(2, 2), proj_w=(2, 2))), ["attn.proj"]),  # CaiT
        (blocks(attn_downsample=Part(kv=(8, 24), q=(8, 8), proj=(8, 16))), ["attn_downsample.proj"]),  # LeViT
        (blocks(mlp=Part(w0=(8, 32), w1=(8, 32), w2=(32, 8))), ["mlp.w2"]),  # ViTamin
        (blocks(linear_tokens=nn.Linear(16, 16), mlp_channels=Part(fc1=(8, 32), fc2=(32, 8))),
         ["linear_tokens", "mlp_channels.fc2"]),  # ResMLP
        (blocks(attn=Part(qkv=(8, 24), proj=(8, 8)), proj=nn.Linear(8, 16)), ["attn.proj"]),  # Hiera's, in between
        (blocks(attn=Part(qkv=(8, 24)), shared_rel_pos=nn.Sequential(Part(fc1=(2, 8)))), ["attn.qkv"]),
        (blocks(conv=nn.Conv2d(1, 1, 1)), []),
    ],
)  # fmt: skip
def test_the_rule(model, layers):
    assert default_layers(model) == [f"blocks.0.{layer}" for layer in layers]


def test_a_model_without_such_layers_is_told_what_it_has():
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(
        InputError, match=r"Sequential has no default targets; set adapter\.targets=\[\.\.\.\] to some of"
    ):
        select_targets(model, None, 1)
    with pytest.raises(InputError, match="none of its layers can carry an adapter: choose another model"):
        select_targets(nn.Sequential(nn.Conv2d(1, 1, 1)), None, 1)


def rows() -> dict[str, list[str]]:
    """{model: the cells after it} of docs/models.md."""
    lines = (ROOT / "docs/models.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name.strip("`"): rest for _, name, *rest in cells[2:]}


def script():
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "scripts/models_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_scripts_models():
    assert list(rows()) == script().NAMES
    assert sum(works == "yes" for *_, works in rows().values()) > 60


@pytest.mark.parametrize("name", ["pit_ti_224", "efficientvit_m0"])
def test_the_page_is_what_the_script_says(name):
    assert list(script().row(name)) == rows()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(rows()) if (ROOT / "docs/models.md").exists() else [])
def test_every_row_of_the_page(name):
    assert list(script().row(name)) == rows()[name]
