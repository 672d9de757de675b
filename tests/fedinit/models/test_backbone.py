"""Backbones: the embedded checkpoints, real weights where they are, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from torch import nn

from fedinit.config.compose import compose_config
from fedinit.data.digits import load_digits
from fedinit.errors import InputError
from fedinit.models import build_backbone, creation
from fedinit.models.backbone import share
from fedinit.models.checkpoint import EMBEDDED_DIR

VIT_TINY = Path(__file__).resolve().parents[4] / "shared/data/vit_tiny_patch16_224/vit_tiny_patch16_224.safetensors"

embedded = pytest.mark.parametrize("name", ["glyph_vit", "glyph_mixer"])


def settings(name: str, **changes):
    return dataclasses.replace(compose_config([f"model={name}"]).model, **changes)


@embedded
def test_embedded_checkpoints_are_small_half_precision_and_say_how_they_were_made(name):
    path = EMBEDDED_DIR / f"{name}.safetensors"
    assert path.stat().st_size < 2_000_000
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118
        assert {"command", "provenance", "probe_trained", "probe_untrained"} <= file.metadata().keys()


@pytest.mark.slow
@embedded
def test_embedded_features_know_glyphs(name):
    """Nearest class mean on plain digits: at least 20 points above the same network untrained (measured: 40 and 26)."""
    digits = load_digits()
    plain = digits.domains == 0
    accuracy = {}
    for label, checkpoint in (("trained", settings(name).checkpoint), ("untrained", None)):
        backbone = build_backbone(settings(name, checkpoint=checkpoint))
        with torch.inference_mode():
            x = backbone.module((digits.images[plain].float() / 255 - 0.5) / 0.5)
        y, test = digits.labels[plain], digits.test[plain]
        means = torch.stack([x[~test & (y == c)].mean(0) for c in range(10)])
        accuracy[label] = float((torch.cdist(x[test], means).argmin(1) == y[test]).float().mean())
    assert accuracy["trained"] > accuracy["untrained"] + 0.2, accuracy


@embedded
def test_a_backbone_is_frozen_and_its_digest_is_its_weights(name):
    one, again = build_backbone(settings(name)), build_backbone(settings(name))
    other = build_backbone(settings(name, checkpoint=None))
    assert one.digest == again.digest != other.digest
    assert not any(p.requires_grad for p in one.module.parameters()) and not one.module.training
    assert one.module(torch.zeros(2, 1, 32, 32)).shape == (2, one.features)


def test_untrained_weights_do_not_depend_on_what_was_drawn_before():
    torch.manual_seed(1)
    one = build_backbone(settings("glyph_vit", checkpoint=None)).digest
    torch.manual_seed(2)
    assert build_backbone(settings("glyph_vit", checkpoint=None)).digest == one


@pytest.mark.skipif(not VIT_TINY.exists(), reason="needs the ViT-Tiny weights beside the checkout, which a clone lacks")
def test_real_weights_load_and_their_positions_are_resampled():
    """At 224 px every tensor is the file's; at 128 px the position grid shrinks from 14×14 to 8×8 and the class
    token's position stays. Mean and std are the augreg weights' own, 0.5."""
    from safetensors.torch import load_file

    words = settings("vit_tiny", checkpoint=str(VIT_TINY))
    whole = build_backbone(words)
    found = load_file(VIT_TINY)
    assert all(torch.equal(value, found[key]) for key, value in whole.module.state_dict().items())
    small = build_backbone(dataclasses.replace(words, image_size=128))
    assert small.input.height == 128 and small.input.mean == (0.5, 0.5, 0.5) == small.input.std
    assert small.module.pos_embed.shape == (1, 65, 192)
    torch.testing.assert_close(small.module.pos_embed[:, 0], found["pos_embed"][:, 0])


def test_a_pretrained_name_without_a_network_is_refused_in_one_line(monkeypatch):
    """timm's own weights come from a hub; where it cannot be reached, the message says what to give instead."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("cannot reach the hub\nand more lines")

    monkeypatch.setattr(creation, "_reach", lambda name: None)
    monkeypatch.setattr(creation.timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"weights of vit_tiny.* could not be fetched \(cannot reach the hub\); give"):
        build_backbone(settings("vit_tiny"))


@pytest.mark.parametrize("listening", [True, False])
def test_a_hub_that_does_not_answer_is_given_up_on_at_once(listening, monkeypatch):
    """timm's own attempts took most of a minute. One hub takes the call and says nothing, one takes none."""
    monkeypatch.setattr(creation, "PATIENCE", 0.3)
    monkeypatch.setattr(creation.timm, "create_model", lambda *a, **k: pytest.fail("timm tries to fetch the weights"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listening:
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
        began = time.monotonic()
        with pytest.raises(InputError, match=r"weights of vit_tiny.* could not be fetched .*give a safetensors file"):
            build_backbone(settings("vit_tiny"))
    assert time.monotonic() - began < 2


class Referring(nn.Module):
    """What a module may hold: one of its own twice, a reference that is not registered, values, a tensor in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.again, self.absent, self.beside = self.first[0], None, (self.first[1],)
        self.register_buffer("seen", torch.zeros(2))
        self.sizes, self.kept = {"a": [1, 2]}, [torch.ones(2)]


def test_a_shared_copy_is_a_deep_copy_whose_weights_are_the_originals():
    module = Referring()
    shared, deep = share(module), copy.deepcopy(module)
    theirs = {**dict(shared.named_parameters()), **dict(shared.named_buffers())}
    assert all(theirs[name] is t for name, t in [*module.named_parameters(), *module.named_buffers()])
    assert str(shared) == str(deep) and shared.sizes == deep.sizes and list(vars(shared)) == list(vars(deep))
    assert not {id(m) for m in shared.modules()} & {id(m) for m in module.modules()}
    assert shared.again is shared.first[0] and shared.beside[0] is shared.first[1] and shared.absent is None
    assert shared.sizes["a"] is not module.sizes["a"] and shared.kept[0] is not module.kept[0]
    shared.first[0].register_forward_hook(lambda *_: None)
    shared.first[1].eval()
    assert not module.first[0]._forward_hooks and module.first[1].training
    assert module.first[0].weight is shared.first[0].weight and deep.first[0].weight is not module.first[0].weight


def test_a_size_of_null_is_the_models_own():
    mixer = settings("vit_tiny", pretrained=False, kwargs={"img_size": None})
    spec = build_backbone(dataclasses.replace(mixer, name="mixer_s32_224")).input
    assert (spec.height, spec.width) == (224, 224)
