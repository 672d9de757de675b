"""Weights from files that others wrote: what timm's own loader makes of them, to the bit, or a refusal in one line."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

import run_sim
from fedinit.errors import InputError
from fedinit.models import backbone, build_backbone
from fedinit.models.creation import create
from fedinit.runs.made_of import MadeOf
from tests.support.small import WORDS, small_config
from tests.support.timm_models import saved, settings

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 64}
Weights = dict[str, Tensor]


def weights_of(name: str, seed: int = 1, **kwargs: Any) -> Weights:
    """The state of a timm model with every number drawn anew, so that nothing is equal by its start."""
    draw = torch.Generator().manual_seed(seed)
    state = timm.create_model(name, num_classes=3, **{**VIT, **kwargs}).state_dict()
    return {k: torch.randn(v.shape, generator=draw) if v.is_floating_point() else v for k, v in state.items()}


def loaded(name: str, path: str, **kwargs: Any) -> Weights:
    return build_backbone(settings(name, kwargs={**VIT, **kwargs}, checkpoint=path)).module.state_dict()


def by_timm(name: str, path: str, **kwargs: Any) -> Weights:
    """What timm's loader makes of the file."""
    model = timm.create_model(name, True, pretrained_cfg_overlay={"file": path}, num_classes=0, **{**VIT, **kwargs})
    return model.state_dict()


def equal(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def headless(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith("head.")}


def open_clip(weights: Weights) -> Weights:
    """As open_clip saves a model with a timm tower."""
    text = {"logit_scale": torch.ones(1), "text.transformer.weight": torch.ones(2)}
    return text | {f"visual.trunk.{k}": v for k, v in headless(weights).items()}


def dinov2(weights: Weights) -> Weights:
    """As Facebook saves DINOv2 with registers: the class token has a position of its own."""
    weights = headless(weights)
    weights["register_tokens"] = weights.pop("reg_token")
    weights["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.25), weights["pos_embed"]], 1)
    return weights | {"mask_token": torch.zeros(1, 24)}


FILES = {
    "plain": ("vit_tiny_patch16_224", {}, {}, dict),
    "DataParallel": ("vit_tiny_patch16_224", {}, {}, lambda w: {f"module.{k}": v for k, v in w.items()}),
    "compiled": ("vit_tiny_patch16_224", {}, {}, lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}),
    "both": ("vit_tiny_patch16_224", {}, {}, lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()}),
    "open_clip": ("vit_base_patch16_clip_224", {}, {}, open_clip),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, {"img_size": 56}, dinov2),
    "DINOv2, another size": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, {"img_size": 84}, dinov2),
    "BEiT, another window": ("beit_base_patch16_224", {"img_size": 96}, {}, dict),
    "other patches": ("vit_tiny_patch16_224", {"patch_size": 8}, {}, dict),
    "another size": ("vit_tiny_patch16_224", {"img_size": 128}, {}, dict),
    "a grid that is not square": ("vit_tiny_patch16_224", {}, {"img_size": (96, 160)}, dict),
    "one channel": ("vit_tiny_patch16_224", {}, {"in_chans": 1}, dict),
    "five channels": ("vit_tiny_patch16_224", {}, {"in_chans": 5}, dict),
    "DINOv3": ("vit_small_patch16_dinov3", {}, {"img_size": 96}, headless),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_read_as_timm_reads_it(case, tmp_path):
    name, theirs, ours, convert = FILES[case]
    path = saved(tmp_path, convert(weights_of(name, **theirs)))
    assert equal(loaded(name, path, **ours), by_timm(name, path, **ours))


def test_another_models_weights_are_not_equal(tmp_path):
    """The negative control."""
    ours = loaded("vit_tiny_patch16_224", saved(tmp_path, weights_of("vit_tiny_patch16_224")))
    other = saved(tmp_path, weights_of("vit_tiny_patch16_224", seed=2))
    assert not equal(ours, by_timm("vit_tiny_patch16_224", other))


@pytest.mark.parametrize("prefixed", [dict, open_clip])
def test_as_many_positions_in_another_grid(prefixed, tmp_path):
    """64 positions of a square image in a grid of 4x16: resampled, where their number alone would let them pass."""
    weights = weights_of("vit_tiny_patch16_224", img_size=128)
    path = saved(tmp_path, prefixed(weights))
    positions = loaded("vit_tiny_patch16_224", path, img_size=(64, 256))["pos_embed"]
    expected = resample_abs_pos_embed(weights["pos_embed"], [4, 16], [8, 8], num_prefix_tokens=1)
    assert torch.equal(positions, expected) and torch.equal(positions[:, 0], weights["pos_embed"][:, 0])
    assert not torch.allclose(positions, weights["pos_embed"], atol=0.1)  # negative: the file's, in their order


@pytest.mark.parametrize(
    ("theirs", "grid", "ours"),
    [
        ((32, 128), (2, 8), (32, 128)),  # a file of this very model
        ((64, 96), (4, 6), (96, 64)),
        ((64, 96), (4, 6), 128),
        ((32, 128), (2, 8), 64),
        ((112, 448), (7, 28), (112, 448)),  # as many as timm's own weights have, which its filter takes them for
    ],
)
def test_positions_of_a_file_whose_grid_is_said(theirs, grid, ours, tmp_path):
    weights, name = weights_of("vit_tiny_patch16_224", img_size=theirs), "vit_tiny_patch16_224"
    kwargs = {key: value for key, value in VIT.items() if key != "img_size"}
    model = settings(name, kwargs=kwargs, image_size=ours, checkpoint=saved(tmp_path, weights), checkpoint_grid=grid)
    positions = build_backbone(model).module.state_dict()["pos_embed"]
    high, wide = (ours, ours) if isinstance(ours, int) else ours
    expected = resample_abs_pos_embed(weights["pos_embed"], [high // 16, wide // 16], list(grid), num_prefix_tokens=1)
    assert torch.equal(positions, expected)
    assert torch.equal(positions, weights["pos_embed"]) == (theirs == ours)


def test_as_many_positions_are_resampled_with_a_word(tmp_path, caplog):
    """Of a square image, without a word of another; that they are of the model's grid is for the user to say."""
    for size, said in (((32, 128), "16 positions .* 4x4.*checkpoint_grid=.2,8."), ((112, 448), "196 .* 14x14")):
        caplog.clear()
        weights = weights_of("vit_tiny_patch16_224", img_size=size)
        positions = loaded("vit_tiny_patch16_224", saved(tmp_path, weights), img_size=size)["pos_embed"]
        (side, grid) = (4, [2, 8]) if size == (32, 128) else (14, [7, 28])
        once = resample_abs_pos_embed(weights["pos_embed"], grid, [side, side], num_prefix_tokens=1)
        assert torch.equal(positions, once) and re.search(said, caplog.text)


def test_as_many_positions_of_no_square_are_refused(tmp_path):
    """24 of a 4x6 grid are no 6x4."""
    path = saved(tmp_path, weights_of("vit_tiny_patch16_224", img_size=(64, 96)))
    with pytest.raises(InputError, match=r"24 positions are of no square image.*checkpoint_grid=\[6,4\]"):
        loaded("vit_tiny_patch16_224", path, img_size=(96, 64))


def test_a_grid_of_other_positions_than_the_file_has_is_refused(tmp_path):
    path = saved(tmp_path, weights_of("vit_tiny_patch16_224"))
    with pytest.raises(
        InputError, match=r"checkpoint_grid=\[9,9\]: the file has 17 positions in pos_embed, expected 81"
    ):
        build_backbone(settings("vit_tiny_patch16_224", kwargs=VIT, checkpoint=path, checkpoint_grid=(9, 9)))


@pytest.mark.parametrize("ours", [128, (64, 160)])
def test_positions_of_no_square_are_refused_with_the_key_that_says_their_grid(ours, tmp_path):
    path = saved(tmp_path, weights_of("vit_tiny_patch16_224", img_size=(64, 96)))
    model = settings("vit_tiny_patch16_224", kwargs=VIT, image_size=ours, checkpoint=path)
    with pytest.raises(InputError, match=r"24 positions are of no square.*model.checkpoint_grid=\[rows,columns\]"):
        build_backbone(model)
    build_backbone(dataclasses.replace(model, checkpoint_grid=(4, 6)))  # as it says


HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
MIXER = {"patch_size": 8, "embed_dim": 24, "num_blocks": 1}


@pytest.mark.parametrize(
    ("name", "kwargs", "theirs", "ours"),
    [("hiera_tiny_224", HIERA, (64, 64), (32, 128)), ("MlpMixer", MIXER, (64, 96), (96, 64))],
)
def test_weights_of_one_grid_are_taken_where_the_grid_is_said_and_is_the_models(name, kwargs, theirs, ours, tmp_path):
    """Hiera's positions lie in a grid that no name tells, so that they are not resampled."""
    path = saved(tmp_path, build_backbone(settings(name, kwargs=kwargs, image_size=theirs)).module.state_dict())
    for grid in (None, theirs):
        with pytest.raises(InputError, match=f"of {theirs[0]}x{theirs[1]}|square image"):
            build_backbone(settings(name, kwargs=kwargs, image_size=ours, checkpoint=path, checkpoint_grid=grid))
    build_backbone(settings(name, kwargs=kwargs, image_size=theirs, checkpoint=path, checkpoint_grid=theirs))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("MlpMixer", {"patch_size": 8, "embed_dim": 24, "num_blocks": 1}),
        ("levit_128s", {}),
    ],
)
def test_weights_of_one_grid_are_refused_for_another_of_as_many_tokens(name, kwargs, tmp_path):
    """A Mixer's token mixing and LeViT's table of distances cannot be resampled."""
    square = build_backbone(settings(name, kwargs={**kwargs, "img_size": 128})).module.state_dict()
    path = saved(tmp_path, square)
    build_backbone(settings(name, kwargs={**kwargs, "img_size": 128}, checkpoint=path))
    with pytest.raises(InputError, match="256x64: .* square image of as many"):
        build_backbone(settings(name, kwargs=kwargs, image_size=(256, 64), checkpoint=path))


def test_timms_own_weights_of_as_many_positions_are_refused(monkeypatch):
    """Some of timm's filters resample 14x14 for 7x28, others pass them on as they are. 64 are resampled by all."""
    monkeypatch.setattr(backbone, "create", lambda name, kwargs, weights: create(name, kwargs, "none"))
    kwargs = {key: value for key, value in VIT.items() if key != "img_size"}
    model = settings("vit_tiny_patch16_224", kwargs=kwargs, pretrained=True, image_size=(64, 256))
    build_backbone(model)
    for grid in (None, (7, 28)):  # which is a file's, and there is none
        with pytest.raises(InputError, match=r"112x448: pos_embed .* square image .*model\.image_size=\[224,224\]"):
            build_backbone(dataclasses.replace(model, image_size=(112, 448), checkpoint_grid=grid))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("blocks.1.mlp.fc2.bias"), r"blocks\.1\.mlp\.fc2\.bias is missing \(1 missing, 0 unknown"),
        (lambda w: w.update(odd=torch.ones(1)), r"odd is not in the model \(0 missing, 1 unknown"),
        (lambda w: w.update({"norm.bias": torch.ones(5)}), r"norm\.bias is \(5,\), expected \(24,\)"),
        (lambda w: w.update(pos_embed=w["pos_embed"][:, :12]), r"does not fit the model"),
        (lambda w: w.update({"patch_embed.proj.weight": torch.ones(24, 7, 16, 16)}), r"is \(24, 7, 16, 16\), expected"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, said, tmp_path):
    weights = weights_of("vit_tiny_patch16_224")
    change(weights)
    with pytest.raises(InputError, match=said) as caught:
        loaded("vit_tiny_patch16_224", saved(tmp_path, weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "state_dict.", "teacher.backbone.", "encoder."])
def test_a_prefix_of_all_names_is_named(prefix, tmp_path):
    weights = {f"{prefix}{key}": value for key, value in headless(weights_of("vit_tiny_patch16_224")).items()}
    weights["teacher.head.mlp.weight"] = torch.ones(1)
    with pytest.raises(InputError, match=f"is missing .*; its names begin with '{re.escape(prefix)}': save it without"):
        loaded("vit_tiny_patch16_224", saved(tmp_path, weights))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["norm.bias", "pos_embed"])
def test_numbers_that_are_none_are_refused_by_name(name, value, tmp_path):
    weights = weights_of("vit_tiny_patch16_224")
    weights[name].flatten()[3] = value
    with pytest.raises(InputError, match=rf"{re.escape(name)} holds numbers that are NaN or infinite"):
        loaded("vit_tiny_patch16_224", saved(tmp_path, weights))


def test_the_home_of_nobody_is_refused():
    """In one line, also where a run first asks what it is made of."""
    model = settings("vit_tiny_patch16_224", kwargs=VIT, checkpoint="~nobodyx/weights.safetensors")
    config = dataclasses.replace(small_config(), model=model)
    for ask in (lambda: MadeOf.of(config), lambda: build_backbone(model)):
        with pytest.raises(InputError, match="~nobodyx/weights.safetensors: there is no home folder ~nobodyx"):
            ask()


def test_weights_of_another_family_are_refused(tmp_path):
    path = saved(tmp_path, weights_of("beit_base_patch16_224"))
    with pytest.raises(InputError, match="does not fit the model"):
        loaded("vit_tiny_patch16_224", path)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (100, r"model\.image_size=100x100: .* patches of 16x16 pixels; expected multiples .*\[96,96\]"),
        ((96, 150), r"model\.image_size=96x150: .*\[96,144\]"),
        (8, r"model\.image_size=8x8: .*\[16,16\]"),
    ],
)
def test_a_size_that_patches_do_not_fill_is_refused(size, said):
    kwargs = {key: value for key, value in VIT.items() if key != "img_size"}
    with pytest.raises(InputError, match=said):
        build_backbone(settings("vit_tiny_patch16_224", kwargs=kwargs, image_size=size))


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 0},
        {"num_heads": 0},
        {"depth": "x"},
        {"img_size": []},
        {"norm_layer": "nonesuch"},
        {"embed_dim": {}},
    ],
)
def test_arguments_that_no_model_can_have_are_refused_in_one_line(change):
    with pytest.raises(InputError, match=r"model\.name=vit_tiny_patch16_224: timm refuses") as caught:
        build_backbone(settings("vit_tiny_patch16_224", kwargs={**VIT, **change}))
    assert "\n" not in str(caught.value)


def test_a_size_that_a_model_takes_no_argument_for():
    """PVT v2 and MetaFormers take images of any size, and have no img_size."""
    small = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 1, 1)}
    # MetaFormers refuse arguments in words of their own.
    for name, kwargs in (("pvt_v2_b0", small), ("poolformer_s12", {})):
        spec = build_backbone(settings(name, kwargs=kwargs, image_size=(64, 96))).input
        assert (spec.height, spec.width) == (64, 96)
        with pytest.raises(InputError, match=f"model.name={name}: timm refuses .*odd"):
            build_backbone(settings(name, kwargs={**kwargs, "odd": 1}, image_size=64))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_two_sets_of_weights_that_become_one_are_refused(tmp_path, prefix):
    """Beside each other, such as a network and its moving average: one of them had silently won."""
    weights = headless(weights_of("vit_tiny_patch16_224"))
    path = saved(tmp_path, {**weights, **{prefix + name: value + 1 for name, value in weights.items()}})
    with pytest.raises(InputError, match=f"holds two sets of weights, one of them as '{prefix}blocks.0"):
        loaded("vit_tiny_patch16_224", path)


def test_quantised_weights_are_refused(tmp_path):
    """Cast to float they are other weights, by a factor a tensor."""
    weights = headless(weights_of("vit_tiny_patch16_224"))
    path = saved(tmp_path, {**weights, "blocks.1.mlp.fc2.weight": torch.ones(24, 96, dtype=torch.int8)})
    with pytest.raises(InputError, match=r"blocks.1.mlp.fc2.weight holds whole numbers \(torch.int8\)"):
        loaded("vit_tiny_patch16_224", path)


def test_a_run_on_images_that_are_not_square(tmp_path, capsys):
    for domain in ("photo", "sketch"):
        for kind in ("cat", "dog"):
            (tmp_path / "data" / domain / kind).mkdir(parents=True)
            for i in range(6):
                Image.new("L", (40 + i, 20), 30 * i).save(tmp_path / "data" / domain / kind / f"{i}.png")
    words = [w for w in WORDS if not w.startswith(("model.kwargs", "data."))]
    words += ["model.kwargs={patch_size: 8, embed_dim: 24, depth: 1, num_heads: 3, in_chans: 1}"]
    words += ["data=image_folder", f"data.root={tmp_path / 'data'}", "data.test_fraction=0.5", "rounds=1"]
    words += ["model.image_size=[16,40]", f"output_dir={tmp_path / 'out'}"]
    assert run_sim.main(words) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "out").glob("*/*")
    assert run_sim.main([f"resume={folder}"]) == 0  # shown: the configuration it keeps is read again
    assert "this run is done" in capsys.readouterr().out
