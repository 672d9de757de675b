"""The hot path of a bank: frozen layer and adapters in one autograd function, forward and backward in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Adapted(torch.autograd.Function):
    """y = x Wᵀ + bias + s · (m∘x Aᵀ) Rᵀ Bᵀ of n clients, with the adapters added in place, forward and backward.

    The gradients are those of that formula; autograd would get them too, and write each large array once more in either
    direction.

    x: (n, t, k), t rows of each client.
    mask: m, of x's shape, dropout on the adapters' input; None: no dropout.
    weight: W (d, k), one for all clients, without a gradient.
    bias: (d,), or None.
    A, B: (n, r, k) and (n, d, r), of any dtype; the products are computed in x's, the gradients are in theirs.
    R: (n, h, r/h, r/h), the h blocks of a block-diagonal core, likewise; None: the identity.
    scale: s.

    Returns y (n, t, d).
    """

    @staticmethod
    def forward(ctx, x, mask, weight, bias, A, B, R, scale):
        ctx.dtype = A.dtype
        A, B, R = A.to(x.dtype), B.to(x.dtype), None if R is None else R.to(x.dtype)
        y = F.linear(x, weight, bias)
        dropped = x if mask is None else x * mask
        low = dropped @ A.mT  # (n, t, k) @ (n, k, r) -> (n, t, r)
        turned = low if R is None else _joined(_split(low, R) @ R.mT)  # (n, h, t, r/h) @ (n, h, r/h, r/h)
        y.baddbmm_(turned, B.mT, alpha=scale)  # (n, t, r) @ (n, r, d) -> (n, t, d)
        ctx.save_for_backward(dropped, mask, low, turned, weight, A, B, R)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]  # what the decorator makes is untyped
        dropped, mask, low, turned, weight, A, B, R = ctx.saved_tensors
        needs_x, *_, needs_A, needs_B, needs_R, _ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_R = None
        grad_low = (grad @ B).mul_(ctx.scale)  # (n, t, d) @ (n, d, r) -> (n, t, r)
        if needs_B:
            grad_B = (turned.mT @ grad).mul_(ctx.scale).mT.to(ctx.dtype)  # (n, r, t) @ (n, t, d) -> (n, r, d)
        if R is not None:
            grad_turned = _split(grad_low, R)
            if needs_R:
                grad_R = (grad_turned.mT @ _split(low, R)).to(ctx.dtype)  # (n, h, r/h, t) @ (n, h, t, r/h)
            grad_low = _joined(grad_turned @ R)
        if needs_A:
            grad_A = (grad_low.mT @ dropped).to(ctx.dtype)  # (n, r, t) @ (n, t, k) -> (n, r, k)
        if needs_x:
            grad_x = grad @ weight  # (n, t, d) @ (d, k) -> (n, t, k)
            if mask is None:
                grad_x.baddbmm_(grad_low, A)
            else:
                grad_x.addcmul_(grad_low @ A, mask)
        return grad_x, None, None, None, grad_A, grad_B, grad_R, None


def _split(low: Tensor, R: Tensor) -> Tensor:
    """(n, t, r) -> (n, h, t, r/h), the part that each block of R works on."""
    return low.unflatten(2, R.shape[1:3]).transpose(1, 2)


def _joined(parts: Tensor) -> Tensor:
    """The inverse of `_split`."""
    return parts.transpose(1, 2).flatten(2)
