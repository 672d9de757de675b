"""A bank: K clients' adapters and heads over one frozen backbone, trained in one pass.

A batch holds the K clients' images one after another, (K·b, …). It goes through each frozen weight as one matrix
product, and through the adapters as K batched products:

    y = x Wᵀ + bias + s · (x Aᵀ) Bᵀ          x: (K, b·t, k)   A: (K, r, k)   B: (K, d, r)   W: (d, k)

with s = α/r (LoRA, Hu et al. 2022, arXiv 2106.09685) or α/√r (rsLoRA). A client alone is K = 1.
Clients of lower rank are padded with zeros: a zero row of A and zero column of B give each other no gradient, so they
stay exactly zero. Where a core is trained, s · ((x Aᵀ) Rᵀ) Bᵀ with R of h blocks, (K, h, r/h, r/h); one full core is
h = 1. Where VeRA's vectors are trained, s · b∘((d∘(x Aᵀ)) Bᵀ) with b (K, d) and d (K, r) around one A and one B, which
the bank holds once, whatever K is. With DoRA's magnitudes m (K, d), y = m/‖W + s·BA‖ ∘ (x Wᵀ + s · (x Aᵀ) Bᵀ) + bias,
the norms by rows from Gram matrices and without a gradient.
The backbone's tensors are shared by every bank of the process; only the adapters and heads are a bank's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedinit.adapters.row_norms import FLOOR, row_norms
from fedinit.factors import Factors, leading, pad
from fedinit.models.backbone import Backbone


class Adapted(torch.autograd.Function):
    """y = x Wᵀ + bias + s · (m∘x Aᵀ) Rᵀ Bᵀ of n clients, with the adapters added in place, forward and backward.

    What autograd would make of that formula, except that it would write each large array once more either way.
    x: (n, t, k), m: mask of x's shape or None, W: (d, k), A: (n, r, k), B: (n, d, r), R: (n, h, r/h, r/h), the blocks
    of a block-diagonal core, or None for the identity; returns (n, t, d).
    """

    @staticmethod
    def forward(ctx, x, mask, weight, bias, A, B, R, scale):
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
    def backward(ctx, grad):
        dropped, mask, low, turned, weight, A, B, R = ctx.saved_tensors
        needs_x, *_, needs_A, needs_B, needs_R, _ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_R = None
        grad_low = (grad @ B).mul_(ctx.scale)  # (n, t, d) @ (n, d, r) -> (n, t, r)
        if needs_B:
            grad_B = (turned.mT @ grad).mul_(ctx.scale).mT  # (n, r, t) @ (n, t, d) -> (n, r, d)
        if R is not None:
            grad_turned = _split(grad_low, R)
            if needs_R:
                grad_R = grad_turned.mT @ _split(low, R)  # (n, h, r/h, t) @ (n, h, t, r/h)
            grad_low = _joined(grad_turned @ R)
        if needs_A:
            grad_A = grad_low.mT @ dropped  # (n, r, t) @ (n, t, k) -> (n, r, k)
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


class BankLinear(nn.Module):
    """One frozen linear layer with K adapters. `active` clients of the bank take part in a forward pass."""

    def __init__(self, frozen: nn.Linear, scale: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale, self.dropout = frozen.weight, frozen.bias, scale, dropout
        self.merged: Tensor | None = None  # (d, k): W + s·O, where something was merged into the base
        self.folded: Tensor | None = None  # (d, k): base + s·BA, for evaluation of one adapter
        self.A: Tensor | None = None  # (K, r, k); (1, r, k) with vectors
        self.B: Tensor | None = None  # (K, d, r); (1, d, r) with vectors
        self.b: Tensor | None = None  # (K, d), only where vectors are trained
        self.d: Tensor | None = None  # (K, r)
        self.m: Tensor | None = None  # (K, d), only where the adapters have magnitudes
        self.squares: Tensor | None = None  # (d,): ‖W_j‖² of the base's rows, for the magnitudes
        self.R: Tensor | None = None  # (K, h, r/h, r/h), only where it is trained
        self.scales: Tensor | None = None  # (K, h), what each block of R is multiplied by, only where they are trained
        self.full_core = True  # R came as (r, r), not as blocks
        self.ranks: list[int] = []  # of the K clients
        self.offset: tuple[Tensor, Tensor] | None = None  # frozen (K, r', k), (K, d, r'): part of each client's base
        self.active = 0
        self.generators: Sequence[torch.Generator] = ()  # one a client, for dropout

    @property
    def base(self) -> Tensor:
        """The weight that the adapters sit on, (d, k)."""
        return self.weight if self.merged is None else self.merged

    @property
    def core(self) -> Tensor | None:
        """What stands between A and B: R, each block times its scale."""
        return self.R if self.scales is None else self.R * self.scales[..., None, None]

    def numbers(self, part: str, rank: int) -> int:
        """How many numbers a client of this rank has in a trained part."""
        d, k = self.weight.shape
        if part in ("A", "B"):
            return rank * (k if part == "A" else d)
        if part in ("b", "d", "m"):
            return rank if part == "d" else d
        if self.full_core:
            return rank * rank if part == "R" else 1
        width = self.R.shape[-1]
        return rank * width if part == "R" else rank // width

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is not None:
            return F.linear(x, self.folded, self.bias)
        if self.A is None:
            return F.linear(x, self.base, self.bias)
        n = self.active
        clients = x.reshape(n, -1, x.shape[-1])  # (n·b, …, k) -> (n, b·t, k)
        mask = self._mask(clients) if self.dropout and self.generators else None
        if self.b is not None:
            return self._by_vectors(clients, mask).view(*x.shape[:-1], -1)
        core = self.core
        core = None if core is None else core[:n]
        bias = self.bias if self.m is None else None
        y = Adapted.apply(clients, mask, self.base, bias, self.A[:n], self.B[:n], core, self.scale)
        if self.m is not None:
            y = y * (self.m[:n] / self._norms(n))[:, None]
            y = y if self.bias is None else y + self.bias
        if self.offset is not None:
            low, high = self.offset
            y = torch.baddbmm(y, clients @ low[:n].mT, high[:n].mT, alpha=self.scale)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def _norms(self, n: int) -> Tensor:
        """(n, d): ‖W + s·BA‖ by rows."""
        if self.squares is None:
            self.squares = self.base.square().sum(1)
        return row_norms(self.base, self.squares, self.A[:n], self.B[:n], self.scale)

    def _by_vectors(self, clients: Tensor, mask: Tensor | None) -> Tensor:
        """(n, t, k) -> (n, t, d)."""
        n = self.active
        low = F.linear(clients if mask is None else clients * mask, self.A[0]) * self.d[:n, None]  # (n, t, r)
        high = F.linear(low, self.B[0]) * self.b[:n, None]  # (n, t, d)
        return torch.add(F.linear(clients, self.base, self.bias), high, alpha=self.scale)

    def _mask(self, clients: Tensor) -> Tensor:
        """Inverted dropout, each client's slice drawn from that client's generator."""
        mask = torch.empty_like(clients)
        for slice_, generator in zip(mask, self.generators[: self.active], strict=True):
            slice_.bernoulli_(1 - self.dropout, generator=generator)
        return mask.div_(1 - self.dropout)


class Bank:
    """K adapters and K heads over a backbone whose tensors it shares.

    targets: {layer: (d, k)}. scale: s. A Bank is used by one thread at a time; make one a lane and load clients
    into it, again and again. After `load`, `parameters` names the trainable leaves, each with K in front.
    """

    def __init__(self, backbone: Backbone, targets: Mapping[str, tuple[int, int]], scale: float, dropout: float = 0.0):
        self.features = backbone.features
        self.module = _share(backbone.module)
        self.layers: dict[str, BankLinear] = {}
        for name in targets:
            parent, _, leaf = name.rpartition(".")
            layer = BankLinear(self.module.get_submodule(name), scale, dropout)
            setattr(self.module.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        self.head: dict[str, Tensor] = {}

    def load(
        self,
        adapters: Sequence[Mapping[str, Factors]],
        heads: Sequence[Mapping[str, Tensor]],
        trainable: frozenset[str] = frozenset({"A", "B"}),
        offsets: Sequence[Mapping[str, Factors]] | None = None,
        generators: Sequence[torch.Generator] = (),
        room: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Take K clients' factors and heads; return the leaves to train, {"<layer>/A": (K, r, k), …, "head/weight"}.

        trainable: which of "A", "B" and "R" learn, and "scales" for a scale a block of R, which starts at one and is
        multiplied into R in the end; or which of VeRA's "b" and "d"; and "m"; the head always learns. A core, or
        vectors, that do not learn are absorbed into B. Raises ValueError for vectors around different A or B. offsets:
        factors that belong to each client's base. generators: one a client for dropout, none for no dropout.
        room: ranks to pad each layer's factors and offsets to, where the largest of the clients' is below.
        """
        device = next(self.module.parameters()).device
        leaves: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            layer.folded = layer.R = layer.scales = layer.b = layer.d = layer.m = None
            products = [a[name] for a in adapters]
            if "R" in trainable:
                layer.R = _padded_cores(products, room.get(name, 0)).to(device)
                layer.full_core = products[0].R.ndim == 2
            if "scales" in trainable:
                layer.scales = torch.ones(layer.R.shape[:2], dtype=layer.R.dtype, device=device)
            if products[0].m is not None:
                layer.m = torch.stack([p.m for p in products]).to(device)
            if trainable & {"b", "d"}:
                layer.A, layer.B, layer.b, layer.d = (t.to(device) for t in _vectors(products))
            else:
                products = [Factors(p.A, p.B) if "R" in trainable else p.absorb() for p in products]
                layer.A, layer.B = (t.to(device) for t in _padded(products, room.get(name, 0)))
            layer.ranks = [p.rank for p in products]
            layer.offset = None
            if offsets is not None and any(offsets):
                nothing = Factors(torch.zeros(0, layer.A.shape[-1]), torch.zeros(layer.B.shape[1], 0))
                low, high = _padded([o.get(name, nothing).absorb() for o in offsets], room.get(name, 0))
                layer.offset = (low.to(device), high.to(device))
            layer.generators = generators
            for part in sorted(trainable):
                leaves[f"{name}/{part}"] = getattr(layer, part).requires_grad_(True)
        self.head = {k: torch.stack([h[k] for h in heads]).to(device).requires_grad_(True) for k in heads[0]}
        return leaves | {f"head/{key}": value for key, value in self.head.items()}

    def leaf(self, name: str) -> Tensor:
        """A tensor that `load` gave, by the name it gave it."""
        layer, _, part = name.rpartition("/")
        return self.head[part] if layer == "head" else getattr(self.layers[layer], part)

    def bare(self) -> None:
        """Leave out the adapters: the base alone."""
        for layer in self.layers.values():
            layer.folded = layer.A = layer.B = layer.b = layer.d = layer.m = layer.offset = None

    def owned(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{leaf: (K,) how many of its numbers are each client's own, and not padding of a lower rank}."""
        made = {}
        for name, leaf in leaves.items():
            layer, _, part = name.rpartition("/")
            own = [leaf[0].numel()] * len(leaf)
            if layer in self.layers:
                own = [self.layers[layer].numbers(part, rank) for rank in self.layers[layer].ranks]
            made[name] = torch.tensor(own)
        return made

    def rebase(self, bases: Mapping[str, Tensor]) -> None:
        """Use these effective weights W + s·O, (d, k), where given, and W itself elsewhere."""
        for name, layer in self.layers.items():
            layer.merged, layer.squares = bases.get(name), None

    def fold(self, adapter: Mapping[str, Factors], head: Mapping[str, Tensor]) -> None:
        """Take one adapter for evaluation, W + s·BA computed once per layer instead of per batch."""
        for name, layer in self.layers.items():
            product, m = adapter[name].dense().to(layer.weight.device), adapter[name].m
            layer.folded = torch.add(layer.base, product, alpha=layer.scale)
            if m is not None:
                norms = layer.folded.norm(dim=1).clamp(min=FLOOR)
                layer.folded = (m.to(norms.device) / norms)[:, None] * layer.folded
        self.head = {key: value[None].to(next(self.module.parameters()).device) for key, value in head.items()}

    def fold_like(self, other: Bank) -> None:
        """Share the folded weights of another lane's bank."""
        for name, layer in self.layers.items():
            layer.folded = other.layers[name].folded
        self.head = other.head

    def forward(self, images: Tensor, active: int) -> Tensor:
        """Logits (active, b, classes) of the first `active` clients for their images (active·b, c, h, w)."""
        for layer in self.layers.values():
            layer.active = active
        return self.classify(self.module(images), active)

    def classify(self, features: Tensor, active: int) -> Tensor:
        """Logits (active, b, classes) from pooled features (active·b, features), which they are without a head."""
        if not self.head:
            return features.view(active, -1, features.shape[-1])
        weight, bias = self.head["weight"][:active], self.head["bias"][:active]
        return torch.baddbmm(bias[:, None], features.reshape(active, -1, features.shape[-1]), weight.mT)

    def unload(self) -> tuple[list[dict[str, Factors]], list[dict[str, Tensor]]]:
        """The K clients' factors, at their own ranks, and heads, on the CPU."""
        count = len(next(iter(self.layers.values())).ranks)
        adapters = [{name: _row(layer, i) for name, layer in self.layers.items()} for i in range(count)]
        heads = [{k: _taken(v[i]) for k, v in self.head.items()} for i in range(count)]
        return adapters, heads


def _row(layer: BankLinear, i: int) -> Factors:
    """Client i's factors of a layer, at its own rank."""
    core = layer.core
    if core is not None:
        core = core[i, 0] if layer.full_core else core[i]
    if layer.b is not None:
        own = Factors(layer.A[0], layer.B[0], b=layer.b[i], d=layer.d[i])
    else:
        own = Factors(layer.A[i], layer.B[i], core, m=None if layer.m is None else layer.m[i])
    return Factors(**{part: _taken(value) for part, value in leading(own, layer.ranks[i]).parts.items()})


def _taken(value: Tensor) -> Tensor:
    """A copy on the CPU that belongs to nobody's graph."""
    return value.detach().cpu().clone()


def _padded(products: Sequence[Factors], room: int) -> tuple[Tensor, Tensor]:
    """(K, r, k) and (K, d, r) at the highest rank of the bank, or `room`."""
    rank = max(room, *(p.rank for p in products))
    parts = [pad(p, rank) for p in products]
    return torch.stack([p.A for p in parts]), torch.stack([p.B for p in parts])


def _vectors(products: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(1, r, k), (1, d, r), (K, d), (K, r): the A and B of all clients, and their vectors."""
    first = products[0]
    if not all(torch.equal(p.A, first.A) and torch.equal(p.B, first.B) for p in products):
        raise ValueError("clients with vectors b and d around different A or B")
    return first.A[None], first.B[None], torch.stack([p.b for p in products]), torch.stack([p.d for p in products])


def _padded_cores(products: Sequence[Factors], room: int) -> Tensor:
    """(K, h, r/h, r/h) at the highest rank of the bank, or `room`."""
    rank = max(room, *(p.rank for p in products))
    return torch.stack([pad(p, rank).blocks for p in products])


def _share(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the very tensors of the original."""
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo=tensors)
