"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of the B factors is λ times the others',
`client.lr_ratio_b` = λ. Decoupled weight decay, which goes with the learning rate, goes with it too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def ratios(leaves: Mapping[str, Tensor], of_b: float) -> Tensor:
    """(P,): the learning rate of every number of the leaves {name: (clients, …)}, as a multiple of client.lr."""
    parts = [torch.full((leaf[0].numel(),), of_b if n.endswith("/B") else 1.0) for n, leaf in leaves.items()]
    return torch.cat(parts)
