"""The server's side of the base offset: what was merged, and what each client lacks of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedinit import wire
from fedinit.factors import Factors
from fedinit.state import base_offset as base
from fedinit.state import digest
from fedinit.state.checkpoint import State


class BaseLedger:
    """Keeps the offset, the merges that made it, and how far each client is.

    A client is sent the merges it lacks as factors, or the whole offset where that is smaller; older merges than any
    client would be sent are dropped.
    """

    def __init__(self) -> None:
        self.offset: dict[str, Tensor] = {}
        self.key = base.EMPTY
        self.version = 0
        self._merges: dict[int, base.Merge] = {}  # version it leads to -> merge
        self._client_version: dict[int, int] = {}
        self._keys: dict[int, str] = {0: base.EMPTY}  # version -> key

    def snapshot(self) -> State:
        tensors = {base.NAME + name: value for name, value in self.offset.items()}
        for version, merge in self._merges.items():
            tensors |= {f"merge/{version}/{name}": t for name, t in digest.named_parts(merge).items()}
        clients = {str(client): version for client, version in self._client_version.items()}
        return State(tensors, {"keys": [self._keys[v] for v in range(self.version + 1)], "clients": clients})

    def restore(self, state: State) -> None:
        self._keys = dict(enumerate(state.facts["keys"]))
        self.version = len(self._keys) - 1
        self.key = self._keys[self.version]
        self._client_version = {int(client): version for client, version in state.facts["clients"].items()}
        merges: dict[int, dict[str, Tensor]] = {}
        self.offset = {}
        for name, tensor in state.tensors.items():
            kind, _, rest = name.partition("/")
            if kind + "/" == base.NAME:
                self.offset[rest] = tensor
            else:
                version, _, part = rest.partition("/")
                merges.setdefault(int(version), {})[part] = tensor
        self._merges = {version: wire.from_tensors(tensors)[0] for version, tensors in merges.items()}

    def confirm(self, client: int, key: str) -> None:
        """What this client says it holds; it is forgotten when that is not what it was sent."""
        if self._keys.get(self._client_version.get(client, 0)) != key:
            self.forget(client)

    def merge(self, products: Mapping[str, Factors]) -> None:
        """Add a product to each layer's offset."""
        if not products:
            return
        self.offset = base.advance(self.offset, products)
        self.key = base.next_key(self.key, products)
        self.version += 1
        self._merges[self.version], self._keys[self.version] = products, self.key
        total, dense = 0, self._dense_bytes()
        for version in sorted(self._merges, reverse=True):
            total += base.nbytes(self._merges[version])
            if total > dense:
                del self._merges[version]

    def catch_up(self, client: int) -> tuple[dict[str, Tensor], str]:
        """The named tensors that bring a client up to date, and how to read them: "merges", "dense" or "none".

        The client counts as up to date from here on; `forget` it when it turns out not to be.
        """
        since = self._client_version.get(client, 0)
        self._client_version[client] = self.version
        if since == self.version or self.version == 0:  # nothing was merged: also a forgotten client lacks nothing
            return {}, "none"
        wanted = range(since + 1, self.version + 1)
        if all(v in self._merges for v in wanted):  # those kept are together no larger than the offset
            tensors = {}
            for version in wanted:
                parts = digest.named_parts(self._merges[version])
                tensors |= {f"{version:06d}/{name}": tensor for name, tensor in parts.items()}
            return tensors, "merges"
        return dict(self.offset), "dense"

    def forget(self, client: int) -> None:
        """Take nothing for granted about this client any more: next time it is sent the whole offset."""
        self._client_version[client] = -1

    def _dense_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.offset.values())
