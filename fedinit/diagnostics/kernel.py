"""The neural tangent kernel of the adapters (Jacot et al. 2018, arXiv 1806.07572) in closed form, and alignments.

With y = x Wᵀ + s·x Aᵀ Rᵀ Bᵀ, an example's inputs X (t, k) of a layer and the gradient G (t, d) of one model output by y
give the Jacobians

    ∂f/∂A = s (BR)ᵀ Gᵀ X      ∂f/∂B = s Gᵀ X (RA)ᵀ      ∂f/∂R = s Bᵀ Gᵀ X Aᵀ

and K[i, j] sums their inner products over outputs and layers. At B = 0 the block of A is zero: A does not move yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.factors import Factors


def jacobian(part: str, inputs: Tensor, gradients: Tensor, product: Factors, scale: float) -> Tensor:
    """(n, numbers of the part): the Jacobian of one output of n examples by A, B or R.

    inputs: (n, t, k). gradients: (n, t, d), of that output by the layer's. A block-diagonal core has its blocks alone.
    """
    if part == "A":
        jacobians = (gradients @ product.absorb().B).mT @ inputs  # (n, r, t) @ (n, t, k)
    elif part == "B":
        jacobians = gradients.mT @ (inputs @ _turned(product).mT)  # (n, d, t) @ (n, t, r)
    else:
        jacobians = (gradients @ product.B).mT @ (inputs @ product.A.mT)  # (n, r, t) @ (n, t, r)
        if isinstance(product, CoreFactors) and product.R.ndim == 3:
            count, width = product.R.shape[:2]
            blocks = jacobians.unflatten(2, (count, width)).unflatten(1, (count, width))  # (n, h, w, h, w)
            jacobians = torch.einsum("nhahb->nhab", blocks)
    return scale * jacobians.flatten(1)


def _turned(product: Factors) -> Tensor:
    """R A, (r, k)."""
    return torch.block_diag(*product.blocks) @ product.A if isinstance(product, CoreFactors) else product.A


def gram(rows: Tensor) -> Tensor:
    """(n, n) inner products of the rows, in float64."""
    rows = rows.double()
    return rows @ rows.T


def directions(outputs: int, most: int, generator: torch.Generator) -> Tensor:
    """(q, outputs): which combinations of the outputs the kernel sums over. All of them; or, where there are more than
    `most`, as many Gaussian ones with E[DᵀD] = 1, so that the sum over outputs is right on average."""
    if outputs <= most:
        return torch.eye(outputs)
    return torch.randn(most, outputs, generator=generator) * most**-0.5


def alignment(left: Tensor, right: Tensor) -> float:
    """Centred alignment of two kernels (n, n): ⟨HKH, HLH⟩/(‖HKH‖‖HLH‖), H = 1 − 11ᵀ/n (Cortes et al. 2012); 0 where one
    is constant. Of two Gram matrices X Xᵀ, Y Yᵀ it is linear CKA (Kornblith et al. 2019, arXiv 1905.00414), which no
    rotation or scaling of X changes."""
    left, right = _centred(left), _centred(right)
    size = float(left.norm() * right.norm())
    return float((left * right).sum()) / size if size > 0 else 0.0


def _centred(kernel: Tensor) -> Tensor:
    rows = kernel.double() - kernel.double().mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)
