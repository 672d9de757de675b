"""Client optimisers, one a file; a name here is `client=<name>`; what each reads is in
fedinit/config/client.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from clients.optimizers.adamw import AdamW
from clients.optimizers.contract import BankOptimizer
from clients.optimizers.sgd import SGD
from clients.optimizers.sgd_sai import SGDSaI
from fedinit.config.client import ClientConfig

OPTIMIZERS: dict[str, type[BankOptimizer[Any]]] = {"adamw": AdamW, "sgd": SGD, "sgd_sai": SGDSaI}


def create_optimizer(
    leaves: Mapping[str, Tensor],
    settings: ClientConfig,
    owned: Mapping[str, Tensor] | None = None,
    step_scales: Sequence[Mapping[str, float]] = (),
) -> BankOptimizer[Any]:
    """The optimiser that `client=` chose; arguments as in BankOptimizer."""
    return OPTIMIZERS[settings.optimizer](leaves, settings, owned, step_scales)
