"""Attention of a ViT in bf16 on the CPU: torch's own forward, and its way back in float32.

In bf16 torch's fused attention (2.14) takes up to seven times as long back as in float32, of 65 tokens more than all
the rest of a training step. Numbers that are bf16 lose nothing by being widened, and gradients come nearer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Attended(torch.autograd.Function):
    """q, k, v (n, heads, t, D) to softmax(s·qkᵀ)v, of the same shape, s = D^−½."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, out, logsumexp = ctx.saved_tensors
        wide = (value.float() for value in (gradient, q, k, v, out))
        return tuple(value.to(q.dtype) for value in _backward(*wide, logsumexp, 0.0, False))


def back_in_float32(module: nn.Module) -> None:
    """Let the attention of a module whose weights are bf16 on the CPU go back in float32.

    module: a backbone, whose own tree is changed; of another dtype or device, or with other attention than timm's
        plain one, it is left as it is.
    """
    weight = next(module.parameters(), None)
    if weight is None or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return
    for part in module.modules():
        if type(part) is Attention and part.fused_attn and not part.training:
            vars(part)["forward"] = partial(_attention, part)


def _attention(
    attention: Attention, tokens: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """(n, t, D) to (n, t, D) as timm's Attention, which does what has a mask."""
    if attn_mask is not None or is_causal:
        return Attention.forward(attention, tokens, attn_mask, is_causal)
    n, t, _ = tokens.shape
    gate = getattr(attention, "gate", None)  # of newer timm
    opened = None if gate is None else gate(tokens).sigmoid()
    heads = attention.qkv(tokens).reshape(n, t, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    y = cast(Tensor, _Attended.apply(attention.q_norm(q), attention.k_norm(k), v))
    y = attention.norm(y.transpose(1, 2).flatten(2))
    return attention.proj(y if opened is None else y * opened)
