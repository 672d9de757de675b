"""A bank: K clients' adapters and heads over one frozen backbone, trained in one pass.

A batch holds the K clients' images one after another, (K·b, …). It goes through each frozen weight as one matrix
product, and through the adapters as K batched products, as the kind of adapters says (fedinit/adapters/lora.py for
y = x Wᵀ + bias + s · (x Aᵀ) Bᵀ, core.py, dora.py, vera.py). A client alone is K = 1.
The backbone's tensors are shared by every bank of the process; only the adapters and heads are a bank's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedinit.adapters.contract import Frozen, Kind
from fedinit.adapters.kinds import KINDS, trained_as
from fedinit.crossing import crossed
from fedinit.factors import Factors, leading
from fedinit.models.attention import back_in_float32
from fedinit.models.backbone import Backbone, share
from fedinit.models.class_token import end_in_class_token, every_token


class BankLinear(nn.Module):
    """One frozen linear layer with K adapters, of which those of the clients `rows` take part in a forward pass.

    As long as no adapters are loaded it is the plain layer, over the base or over one folded weight.
    """

    def __init__(self, linear: nn.Linear, scale: float, dropout: float, exact: Tensor | None = None) -> None:
        """
        linear: the backbone's layer, whose weight W0 (d, k) and bias (d,) are shared, not copied.
        exact: W0 in float32, where the layer's own is rounded; None: the layer's own.
        scale: s, what every product of factors is multiplied by.
        dropout: probability with which an entry of the adapters' input is zero while training.
        """
        super().__init__()
        self.own = Frozen(linear.weight, linear.bias, exact)
        self.weight, self.bias, self.scale, self.dropout = self.own.exact, linear.bias, scale, dropout
        self.base = self.own  # what the adapters sit on
        self.folded: Tensor | None = None  # (d, k): base and one adapter, for its evaluation; None: the base
        self.kind: Kind = KINDS["lora"]
        self.leaves: dict[str, Tensor] = {}  # {part: (K, …)} of the clients' adapters, as their kind stacks them
        self.ranks: list[int] = []  # of the K clients
        self.offset: tuple[Tensor, ...] = ()  # frozen (K, r', k), (K, d, r'): part of each client's base, or nothing
        self.rows = slice(0, 0)
        self.generators: Sequence[torch.Generator] = ()  # one a client, for dropout

    def clear(self, folded: Tensor | None = None) -> None:
        """Leave out the clients' adapters.

        folded: the weight (d, k) to use in place of the base's; None: the base's own.
        """
        self.folded, self.leaves, self.offset = None if folded is None else folded.to(self.dtype), {}, ()

    @property
    def dtype(self) -> torch.dtype:
        """What the layer computes in."""
        return self.own.weight.dtype

    def stack(
        self,
        products: Sequence[Factors],
        offsets: Sequence[Factors],
        trainable: frozenset[str],
        rooms: tuple[int, int],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K clients' factors of this layer, padded to one rank, as `load` takes them once they are on the device.

        products: the factors, one a client.
        offsets: the client's own part of its base, one product a client; empty: all sit on the shared base.
        trainable: the parts that learn; a core or vectors that do not are absorbed into B.
        rooms: the least rank to pad factors to, and offsets.
        """
        self.kind, products = trained_as(products, trainable)
        self.ranks = [p.rank for p in products]
        leaves = self.kind.stack(products, rooms[0], trainable)
        return leaves, KINDS["lora"].stack([o.absorb() for o in offsets], rooms[1], trainable) if offsets else {}

    def load(self, leaves: Mapping[str, Tensor], offset: Mapping[str, Tensor]) -> None:
        """Take the clients' factors {part: (K, …)}, and their own part of the base, or nothing."""
        self.clear()
        self.leaves, self.offset = dict(leaves), tuple(value.to(self.dtype) for value in offset.values())

    def clients(self, leaves: Mapping[str, Tensor]) -> list[Factors]:
        """The clients' factors, each at its own rank, as views of leaves such as this layer's."""
        room, padded = max(self.ranks), self.kind.clients(leaves, len(self.ranks))
        return [f if r == f.rank == room else leading(f, r) for f, r in zip(padded, self.ranks, strict=True)]

    def parameter_counts(self, part: str) -> list[int]:
        """How many numbers each client trains in the leaf `part`, padding left out."""
        of_rank = {rank: self.kind.parameter_count(part, rank, self.leaves) for rank in set(self.ranks)}
        return [of_rank[rank] for rank in self.ranks]

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (n·b, …, k) of the n clients `rows`, one after another, to outputs (n·b, …, d)."""
        if not self.leaves:
            return F.linear(x, self.base.weight if self.folded is None else self.folded, self.bias)
        clients = x.reshape(self.rows.stop - self.rows.start, -1, x.shape[-1])  # (n·b, …, k) -> (n, b·t, k)
        mask = self._mask(clients) if self.dropout and self.generators else None
        y = self.kind.forward(clients, mask, self.base, self._leaves(), self.scale)
        if self.offset:
            low, high = (part[self.rows] for part in self.offset)
            y = torch.baddbmm(y, clients @ low.mT, high.mT, alpha=self.scale)
        # As F.linear ends itself: another shape of the same memory, which a model may add to in place (NaFlexViT does),
        # where autograd forbids that on a view of what a Function of ours gives.
        return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], y.shape[-1]])

    def _leaves(self) -> Mapping[str, Tensor]:
        """The leaves whose first are those of the clients `rows`; what all share has one row."""
        if not self.rows.start:
            return self.leaves
        return {part: leaf if len(leaf) == 1 else leaf[self.rows] for part, leaf in self.leaves.items()}

    def _mask(self, clients: Tensor) -> Tensor:
        """Inverted dropout, each client's slice drawn from that client's generator."""
        mask = torch.empty_like(clients)
        for slice_, generator in zip(mask, self.generators[self.rows], strict=True):
            slice_.bernoulli_(1 - self.dropout, generator=generator)
        return mask.div_(1 - self.dropout)


class Bank:
    """K adapters and K heads over a backbone whose tensors it shares.

    A Bank is used by one thread at a time; make one a lane and load clients into it, again and again. What `load`
    returns are the trainable leaves, each with K in front.
    """

    def __init__(
        self,
        backbone: Backbone,
        targets: Mapping[str, tuple[int, int]],
        scale: float,
        dropout: float = 0.0,
        exact: Mapping[str, Tensor] = MappingProxyType({}),
        rank: int = 0,
    ) -> None:
        """
        backbone: whose parameters and buffers are shared; its module tree is copied, so that layers can be replaced.
        targets: {layer: (d, k)} of the layers that get adapters.
        scale: s, what every product of factors is multiplied by.
        dropout: probability on the adapters' input, while training.
        exact: {layer: W0 (d, k) in float32} of a backbone whose weights are rounded to another dtype.
        rank: that lower ones are filled up to, so that no client's rounding depends on its mates' ranks; 0: to the
            largest of those that are loaded.
        """
        self.rank, self.features, self.dropout = rank, backbone.features, dropout
        self.module = share(backbone.module)
        first = next(backbone.module.parameters())
        self.device, self.dtype = first.device, first.dtype  # what the backbone computes in; heads compute in float32
        self._bases: Mapping[str, Tensor] = {}
        self.layers: dict[str, BankLinear] = {}
        for name in targets:
            parent, _, leaf = name.rpartition(".")
            layer = BankLinear(cast(nn.Linear, self.module.get_submodule(name)), scale, dropout, exact.get(name))
            setattr(self.module.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        end_in_class_token(self.module)
        back_in_float32(self.module)
        self.head: dict[str, Tensor] = {}

    def load(
        self,
        adapters: Sequence[Mapping[str, Factors]],
        heads: Sequence[Mapping[str, Tensor]],
        trainable: frozenset[str] = frozenset({"A", "B"}),
        offsets: Sequence[Mapping[str, Factors]] | None = None,
        generators: Sequence[torch.Generator] = (),
        room: Mapping[str, int] = MappingProxyType({}),
        beneath: int = 2,
    ) -> dict[str, Tensor]:
        """Take K clients' factors and heads; return the leaves to train, {"<layer>/A": (K, r, k), …, "head/weight"}.

        adapters: {layer: factors} of each client, on any device.
        heads: {"weight": (classes, features), "bias": (classes,)} of each client; empty for a model without a head.
        trainable: the parts of the factors that learn, and BLOCK_SCALES (core.py) for a scale a block of R, which
            starts at one and is multiplied into R in the end; the head always learns. A core, or vectors, that do not
            learn are absorbed into B.
        offsets: {layer: product} of each client, its own part of its base; None: nobody has one.
        generators: one a client, for dropout; none for no dropout.
        room: {layer: rank} to pad factors and offsets to, where the clients' largest is below.
        beneath: how many times the bank's own rank offsets are padded to; 2: they are differences of two products.

        Raises ValueError for vectors around different A or B.
        """
        stacks: list[dict[str, Tensor]] = []
        for name, layer in self.layers.items():
            (d, k), under = layer.weight.shape, offsets if offsets is not None and any(offsets) else []
            nothing = Factors(torch.zeros(0, k), torch.zeros(d, 0))
            least = room.get(name, 0)
            rooms = max(self.rank, least), max(beneath * self.rank, least)
            own_bases = [offset.get(name, nothing) for offset in under]
            stacks += layer.stack([a[name] for a in adapters], own_bases, trainable, rooms)
        alike = all(head is heads[0] for head in heads)
        stacks.append({k: _repeated(v, len(heads)) if alike else torch.stack([h[k] for h in heads])
                       for k, v in heads[0].items()})  # fmt: skip
        *placed, self.head = _copied(stacks, self.device)
        leaves: dict[str, Tensor] = {}
        for (name, layer), own, offset in zip(self.layers.items(), placed[::2], placed[1::2], strict=True):
            layer.load(own, offset)
            layer.generators = generators
            leaves |= {f"{name}/{part}": layer.leaves[part].requires_grad_(True) for part in sorted(trainable)}
        for value in self.head.values():
            value.requires_grad_(True)
        return leaves | {f"head/{key}": value for key, value in self.head.items()}

    def leaf(self, name: str) -> Tensor:
        """The leaf of this name, as `load` returned it: "<layer>/<part>" or "head/<key>"."""
        layer, _, part = name.rpartition("/")
        return self.head[part] if layer == "head" else self.layers[layer].leaves[part]

    @contextmanager
    def as_examples(self, count: int, generators: Sequence[torch.Generator] = ()) -> Iterator[dict[str, Tensor]]:
        """Within, the one client that is loaded is `count` clients of the same values, each of which is given one
        example: {leaf: (count, …)}, in `load`'s order, whose gradients are those of each example by itself, whatever
        the kind of adapters. What moves the client is still `load`'s leaves. generators: one an example, for dropout;
        none for no dropout."""
        held, head, rows = [(n, x, x.leaves, x.offset) for n, x in self.layers.items()], self.head, {}
        try:
            for name, layer, leaves, offset in held:
                layer.leaves = {part: _as_rows(value, count) for part, value in leaves.items()}
                layer.offset = tuple(_repeated(value[0], count) for value in offset)
                layer.generators = generators
                rows |= {f"{name}/{k}": v for k, v in sorted(layer.leaves.items()) if v.requires_grad}
            self.head = {key: _as_rows(value, count) for key, value in head.items()}
            yield rows | {f"head/{key}": value for key, value in self.head.items()}
        finally:
            self.head = head
            for _, layer, leaves, offset in held:
                layer.leaves, layer.offset, layer.generators = leaves, offset, ()

    def bare(self) -> None:
        """Leave out the adapters of all layers, so that `forward` is the base alone. The head stays."""
        for layer in self.layers.values():
            layer.clear()

    def owned(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{leaf: (K,) int64}: how many of a leaf's numbers each client has, without the padding of lower ranks."""
        counts = {}
        for name, leaf in leaves.items():
            layer, _, part = name.rpartition("/")
            sizes = [leaf[0].numel()] * len(leaf)
            if layer in self.layers:
                sizes = self.layers[layer].parameter_counts(part)
            counts[name] = torch.tensor(sizes)
        return counts

    def rebase(self, bases: Mapping[str, Tensor]) -> None:
        """Put the adapters on other frozen weights.

        bases: {layer: W0 + s·O, (d, k) in float32}; a layer that is not named sits on W0 itself.
        """
        if bases is self._bases:
            return
        self._bases = bases
        for name, layer in self.layers.items():
            weight = bases.get(name)
            layer.base = layer.own if weight is None else Frozen(weight.to(layer.dtype), layer.bias, weight)

    def fold(self, adapter: Mapping[str, Factors], head: Mapping[str, Tensor]) -> None:
        """Take one adapter and head for evaluation; each layer's effective weight is computed once, not per batch."""
        tensors = [value for name in self.layers for value in adapter[name].parts.values()]
        if any(value.device != self.device for value in tensors):
            tensors = crossed(tensors, self.device)  # of which the products are made where the weights are
        there = iter(tensors)
        for name, layer in self.layers.items():
            own = adapter[name].map(lambda _: next(there))
            layer.clear(own.fold(layer.base.exact, layer.scale))
        self.head = {key: value[None].to(self.device) for key, value in head.items()}

    def fold_like(self, other: Bank) -> None:
        """Share the folded weights of another lane's bank."""
        for name, layer in self.layers.items():
            layer.clear(other.layers[name].folded)
        self.head = other.head

    def every_token(self) -> AbstractContextManager[None]:
        """Within, all layers are given all tokens, also those that the features do not depend on."""
        return every_token(self.module)

    def forward(self, images: Tensor, count: int, first: int = 0) -> Tensor:
        """Logits (count, b, classes) of the clients from the row `first` on, for their images (count·b, c, h, w)."""
        for layer in self.layers.values():
            layer.rows = slice(first, first + count)
        return self.classify(self.embed(images), count, first)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (n, features) of images (n, c, h, w), in float32 where the backbone computes in less."""
        return self.module(images.to(self.dtype)).to(self.exact_dtype)

    @property
    def exact_dtype(self) -> torch.dtype:
        """What heads, losses and sums are computed in: float32, or more where the backbone has more."""
        return torch.promote_types(self.dtype, torch.float32)

    def classify(self, features: Tensor, count: int, first: int = 0) -> Tensor:
        """Logits (count, b, classes) from pooled features (count·b, features), of clients as in `forward`; without a
        head, the features themselves, (count, b, features)."""
        if not self.head:
            return features.view(count, -1, features.shape[-1])
        weight, bias = (self.head[key][first : first + count] for key in ("weight", "bias"))
        return torch.baddbmm(bias[:, None], features.reshape(count, -1, features.shape[-1]), weight.mT)

    def unload(self) -> tuple[list[dict[str, Factors]], list[dict[str, Tensor]]]:
        """({layer: factors} of each of the K clients, at its own rank; each one's head), on the CPU: views of one copy
        that is nobody else's."""
        *leaves, head = _copied([*(layer.leaves for layer in self.layers.values()), self.head], torch.device("cpu"))
        layers = [layer.clients(own) for layer, own in zip(self.layers.values(), leaves, strict=True)]
        adapters = [dict(zip(self.layers, factors, strict=True)) for factors in zip(*layers, strict=True)]
        rows = [value.unbind() for value in head.values()]
        heads = [dict(zip(head, values, strict=True)) for values in zip(*rows, strict=True)] or [{} for _ in adapters]
        return adapters, heads


def _repeated(value: Tensor, count: int) -> Tensor:
    """(count, …), one client's tensor for each of them, which is copied where it is needed."""
    return value.expand(count, *value.shape)


def _as_rows(leaf: Tensor, count: int) -> Tensor:
    """(count, …), views of a leaf (1, …), which have gradients of their own where it has one."""
    return _repeated(leaf.detach()[0], count).requires_grad_(leaf.requires_grad)


def _copied(groups: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    """Copies (K, …) on the device; what crosses over does so in one piece, and of what is repeated once."""
    tensors = [value.detach() for group in groups for value in group.values()]
    repeated = [value.ndim > 0 and len(value) > 1 and value.stride(0) == 0 for value in tensors]
    sent = [value[:1] if once else value for value, once in zip(tensors, repeated, strict=True)]
    moved = crossed(sent, device) if any(value.device != device for value in sent) else sent
    left = iter(
        [
            there.repeat(len(value), *[1] * (value.ndim - 1)) if once
            # Memory of its own on the device, since products round differently by where their inputs begin.
            else there.clone() if there is own or device.type != "cpu" else there
            for there, own, value, once in zip(moved, sent, tensors, repeated, strict=True)
        ]
    )  # fmt: skip
    return [{name: next(left) for name in group} for group in groups]
