"""The last block of a ViT whose features are its class token: computed for that token alone.

The other tokens of the last block give it their keys and values and are read by nobody: their queries, projections and
MLP are 10/12 of the block's products of matrices, and of its way back. Features, and the gradients of whatever an
adapter trains, are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


def end_in_class_token(module: nn.Module) -> None:
    """Let the module's last block compute the class token alone, where that is all that the features are made of.

    module: a backbone, whose own tree is changed; one of another kind, or other pooling, is left as it is.
    """
    block = _last_block(module)
    if block is not None:
        vars(block)["forward"] = partial(_forward, block)


@contextmanager
def every_token(module: nn.Module) -> Iterator[None]:
    """Within, the last block computes all of its tokens, for who looks at them and not at the features alone."""
    block = _last_block(module)
    short = None if block is None else vars(block).pop("forward", None)
    try:
        yield
    finally:
        if block is not None and short is not None:
            vars(block)["forward"] = short


def _last_block(module: nn.Module) -> Block | None:
    """The last block, where it and what comes after it are known to treat every token by itself."""
    if type(module) is not VisionTransformer or module.global_pool != "token" or module.attn_pool is not None:
        return None
    block = module.blocks[-1]
    known = type(block) is Block and type(block.attn) is Attention and not block.training
    return cast(Block, block) if known else None


def _forward(block: Block, tokens: Tensor) -> Tensor:
    """(n, t, D) to the first of the tokens that timm's Block gives, (n, 1, D)."""
    first = tokens[:, :1] + block.ls1(_attended(cast(Attention, block.attn), block.norm1(tokens)))
    return first + block.ls2(block.mlp(block.norm2(first)))


def _attended(attention: Attention, tokens: Tensor) -> Tensor:
    """(n, t, D) to what the first token attends to, (n, 1, D)."""
    first, heads = tokens[:, :1], (attention.num_heads, -1)
    if type(attention.qkv) is nn.Linear:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        width = len(weight) // 3
        q = F.linear(first, weight[:width], None if bias is None else bias[:width])
        k, v = F.linear(tokens, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=2)
    else:  # adapted, as a whole
        q, k, v = attention.qkv(tokens).chunk(3, dim=2)
        q = q[:, :1]
    q, k, v = (value.unflatten(2, heads).transpose(1, 2) for value in (q, k, v))  # (n, heads, t, D/heads)
    # Scores are kept in float32, as torch's own attention keeps them, and not rounded to bf16 before their softmax.
    exact = torch.promote_types(v.dtype, torch.float32)
    # Keys lie as they are multiplied, since a product rounds by where its inputs begin, which would be another place
    # for every image before an image's own.
    k = attention.k_norm(k).to(exact).contiguous()
    scores = (attention.q_norm(q) * attention.scale).to(exact) @ k.mT  # (n, heads, 1, t)
    y = scores.softmax(-1).to(v.dtype) @ v
    y = attention.norm(y.transpose(1, 2).flatten(2))
    gate = getattr(attention, "gate", None)  # of newer timm
    return attention.proj(y if gate is None else y * gate(first).sigmoid())
