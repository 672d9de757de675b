"""The kinds of adapters: which `adapter=` names, and which a bank trains given factors as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedinit.adapters.contract import Kind
from fedinit.adapters.core import Core, CoreFactors
from fedinit.adapters.dora import DoRA
from fedinit.adapters.lora import LoRA
from fedinit.adapters.vera import VeRA
from fedinit.factors import Factors

KINDS: dict[str, Kind] = {"dora": DoRA(), "lora": LoRA(), "vera": VeRA()}
EVERY_KIND = tuple(KINDS)
PRODUCT_KINDS = ("lora", "dora")  # of those a method gets B A, of rank r, which it can stack, split, cut or rotate
LORA_ALONE = ("lora",)
CORE, BLOCKS = Core(full=True), Core(full=False)  # `adapter=lora` under methods that train a core
_products: dict[frozenset[str], type[Factors]] = {}  # by the names of their tensors, as they were asked for


def kind_of(factors: Factors) -> Kind:
    """The kind that factors are of. Raises StopIteration for a class of factors that no kind has."""
    if isinstance(factors, CoreFactors):
        return CORE if factors.R.ndim == 2 else BLOCKS
    return next(kind for kind in KINDS.values() if kind.product is type(factors))


def trained_as(clients: Sequence[Factors], trainable: frozenset[str]) -> tuple[Kind, Sequence[Factors]]:
    """The kind that a bank trains clients' factors as, and the factors in its form.

    That is their own kind, where `trainable` names a tensor that only it has; else LoRA, with all other tensors
    absorbed into B.
    """
    kind = kind_of(clients[0])
    return (kind, clients) if kind.learns(trainable) else (KINDS["lora"], [f.absorb() for f in clients])


def of_parts(parts: Mapping[str, Tensor]) -> Factors:
    """Factors from their tensors by name (fedinit.factors.PARTS).

    Raises ValueError for names that no kind has together, and for shapes that do not fit.
    """
    names = frozenset(parts)
    if names not in _products:
        products = (kind.product for kind in (*KINDS.values(), CORE))
        found = next((product for product in products if names == set(product.__dataclass_fields__)), None)
        if found is None:
            raise ValueError(f"no kind of adapters has the tensors {', '.join(parts)} together")
        _products[names] = found
    return _products[names](**parts)
