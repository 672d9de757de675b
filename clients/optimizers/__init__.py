"""Client optimisers, one a file; a name here is `client.optimizer=<name>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from clients.optimizers.adamw import AdamW
from clients.optimizers.contract import BankOptimizer
from clients.optimizers.sgd import SGD
from clients.optimizers.sgd_sai import SGDSaI
from fedinit.config.schema import ClientConfig
from fedinit.errors import choose

OPTIMIZERS: dict[str, type[BankOptimizer]] = {"adamw": AdamW, "sgd": SGD, "sgd_sai": SGDSaI}


def create_optimizer(
    leaves: Mapping[str, Tensor],
    settings: ClientConfig,
    owned: Mapping[str, Tensor] | None = None,
    scales: Sequence[Mapping[str, float]] = (),
) -> BankOptimizer:
    """The optimiser that `client.optimizer` names; arguments as in BankOptimizer. Raises InputError for an unknown
    name."""
    made = OPTIMIZERS[choose("client.optimizer", settings.optimizer, OPTIMIZERS)]
    return made(leaves, settings, owned, scales)
