"""Attention in bf16 on the CPU goes back in float32: values are torch's own, and gradients nearer to float64's than its
own are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from fedinit.models.attention import _Attended, back_in_float32
from tests.support.timm_models import backbone_of

SHAPES = [(3, 2, 5, 4), (2, 3, 65, 16), (1, 2, 197, 64), (4, 1, 7, 8)]  # n, heads, t, D
KINDS: list[dict[str, Any]] = [{}, {"qk_norm": True, "norm_layer": nn.LayerNorm}, {"gated": True}, {"qkv_bias": True}]
KINDS += [{"scale_norm": True, "norm_layer": nn.LayerNorm}, {"attn_head_dim": 12}]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that bf16 holds, in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


def softmax_by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    scores = (scale * torch.einsum("nhtd,nhsd->nhts", q, k)).exp()
    return torch.einsum("nhts,nhsd->nhtd", scores / scores.sum(-1, keepdim=True), v)


def gradients(attended: Any, given: list[Tensor], back: Tensor, dtype: torch.dtype) -> list[Tensor]:
    leaves = [value.detach().to(dtype, copy=True).requires_grad_() for value in given]
    attended(*leaves).backward(back.to(dtype))
    return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]


def off(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_formula_in_float64_but_for_rounding(shape: tuple[int, ...]) -> None:
    given, back = [drawn(*shape, seed=i) for i in range(3)], drawn(*shape, seed=9)
    scale = shape[-1] ** -0.5
    exact = gradients(lambda q, k, v: softmax_by_hand(q, k, v, scale), given, back, torch.float64)
    ours = gradients(_Attended.apply, given, back, torch.bfloat16)
    own = gradients(nn.functional.scaled_dot_product_attention, given, back, torch.bfloat16)
    wrong = gradients(lambda q, k, v: softmax_by_hand(q, k, v, 1.1 * scale), given, back, torch.float64)
    # bf16 has 8 bits, 2^-9 a rounding: one of the gradient, one of the output, of which a row's own sum is made.
    limit = 2.0**-7
    assert max(off(ours, exact)) < limit
    assert sum(off(ours, exact)) <= 1.05 * sum(off(own, exact))
    assert max(off(wrong, exact)) > 3 * limit


def test_values_are_the_bits_of_torch() -> None:
    q, k, v = (drawn(2, 3, 65, 16, seed=i).bfloat16() for i in range(3))
    assert torch.equal(_Attended.apply(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_timms_attention_of_any_kind_gives_the_same_bits_and_gradients_as_near(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = Attention(32, 4, **kind).eval()
    for value in plain.parameters():
        value.data = (value.data + torch.randn(value.shape) / 5).bfloat16().float()
    exact, ours, own = (Attention(32, 4, **kind).eval() for _ in range(3))
    for one, dtype in ((exact, torch.float64), (ours, torch.bfloat16), (own, torch.bfloat16)):
        one.load_state_dict(plain.state_dict())
        one.to(dtype)
    back_in_float32(ours)
    assert "forward" in vars(ours)
    tokens, back = drawn(3, 9, 32), drawn(3, 9, 32, seed=1)
    assert torch.equal(ours(tokens.bfloat16()), own(tokens.bfloat16()))
    wanted = gradients(exact, [tokens], back, torch.float64)
    errors = [off(gradients(one, [tokens], back, torch.bfloat16), wanted)[0] for one in (ours, own)]
    assert errors[0] <= 1.1 * errors[1] and errors[0] < 0.03  # the layers around it round as well


def test_a_mask_is_timms_own_matter() -> None:
    torch.manual_seed(0)
    ours, own = (Attention(8, 2).eval().bfloat16() for _ in range(2))
    own.load_state_dict(ours.state_dict())
    back_in_float32(ours)
    tokens, mask = drawn(2, 5, 8).bfloat16(), torch.ones(5, 5).tril().bool()
    assert torch.equal(ours(tokens, attn_mask=mask), own(tokens, attn_mask=mask))
    assert torch.equal(ours(tokens, is_causal=True), own(tokens, is_causal=True))
    assert not torch.equal(ours(tokens), own(tokens, attn_mask=mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_numbers_and_other_attention_are_left_alone(dtype: torch.dtype) -> None:
    module = backbone_of(
        "vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
    ).module.to(dtype)
    back_in_float32(module)
    back_in_float32(nn.Identity())
    mixer = backbone_of("mixer_s32_224", {"img_size": 32}).module.bfloat16()
    back_in_float32(mixer)
    assert not [part for whole in (module, mixer) for part in whole.modules() if "forward" in vars(part)]
