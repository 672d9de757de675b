"""The server's side of the base offset: what was merged, and what each client lacks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedinit import wire
from fedinit.factors import Factors
from fedinit.state import base_offset, digest
from fedinit.state.checkpoint import State

UNKNOWN = -1  # the version of a client of whom nothing is taken for granted: it is sent the whole offset


@dataclass(frozen=True)
class BaseLedger:
    """A value: the offset, the key of every version of it, and the merges that led to the last ones.

    A client is sent the merges it lacks as factors, or the whole offset where that is smaller; older merges than any
    client would be sent are dropped.

    offset: {layer: (d, k) float32}, the sum of all merges.
    keys: of version 0, 1, …, each a hash of the merges up to it.
    merges: {version that it leads to: {layer: its product}}.
    """

    offset: Mapping[str, Tensor] = field(default_factory=dict)
    keys: tuple[str, ...] = (base_offset.EMPTY,)
    merges: Mapping[int, base_offset.Merge] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """How many merges there were."""
        return len(self.keys) - 1

    @property
    def key(self) -> str:
        """The key of the offset as it is."""
        return self.keys[-1]

    def merged(self, products: Mapping[str, Factors]) -> BaseLedger:
        """The ledger with these products, {layer: factors}, added to the offset; the same one where there are none."""
        if not products:
            return self
        offset = base_offset.advance(self.offset, products)
        merges = {**self.merges, self.version + 1: products}
        total, dense = 0, sum(t.numel() * t.element_size() for t in offset.values())
        for version in sorted(merges, reverse=True):
            total += base_offset.nbytes(merges[version])
            if total > dense:
                del merges[version]
        return replace(self, offset=offset, keys=(*self.keys, base_offset.next_key(self.key, products)), merges=merges)

    def catch_up(self, since: int) -> tuple[dict[str, Tensor], str]:
        """The named tensors that bring a client up to date, and how to read them: "merges", "dense" or "none".

        since: the version that the client holds, or UNKNOWN.
        """
        if since == self.version or self.version == 0:  # nothing was merged: nobody lacks anything
            return {}, "none"
        wanted = range(since + 1, self.version + 1)
        if all(version in self.merges for version in wanted):  # those kept are together no larger than the offset
            tensors = {}
            for version in wanted:
                parts = digest.named_parts(self.merges[version])
                tensors |= {f"{version:06d}/{name}": tensor for name, tensor in parts.items()}
            return tensors, "merges"
        return dict(self.offset), "dense"

    def is_key_of(self, version: int, key: str) -> bool:
        """Whether a client that was sent this version holds what it says it holds."""
        return 0 <= version <= self.version and self.keys[version] == key

    def snapshot(self) -> State:
        """The ledger as a checkpoint keeps it."""
        tensors = {base_offset.NAME + name: value for name, value in self.offset.items()}
        for version, merge in self.merges.items():
            tensors |= {f"merge/{version}/{name}": t for name, t in digest.named_parts(merge).items()}
        return State(tensors, {"keys": list(self.keys)})

    @staticmethod
    def restored(state: State) -> BaseLedger:
        """The inverse of `snapshot`."""
        offset: dict[str, Tensor] = {}
        merges: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.tensors.items():
            kind, _, rest = name.partition("/")
            if kind + "/" == base_offset.NAME:
                offset[rest] = tensor
            else:
                version, _, part = rest.partition("/")
                merges.setdefault(int(version), {})[part] = tensor
        products = {version: wire.from_tensors(tensors)[0] for version, tensors in merges.items()}
        return BaseLedger(offset, tuple(state.facts["keys"]), products)
