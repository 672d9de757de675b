"""The clients' side of the base offset: received as merges or whole, kept between rounds.

Clients of one process that hold the same base share one copy of it: the key is a hash chain over the merges, so equal
keys mean equal offsets. In a deployment each message meets a new process, and the offset is kept in the Context.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor

from fedinit import wire
from fedinit.state import base_offset as base
from fedinit.state.checkpoint import State

KEY = "base-key"  # in the Context: which base this client holds
OFFSET = "base-offset"  # in the Context, where it must outlive the process: the offset itself


def held_key(context: Context) -> str:
    """The key of the base that this client holds."""
    return wire.value(wire.record(context.state, KEY, ConfigRecord), "key", str) if KEY in context.state else base.EMPTY


class Bases:
    """The base offsets that this process's clients hold.

    known: {key: offset}, of every base that a client holds.
    """

    def __init__(self, persistent: bool) -> None:
        """persistent: keep each client's offset in its Context too."""
        self.persistent = persistent
        self.known: dict[str, dict[str, Tensor]] = {base.EMPTY: {}}
        self._held: dict[int, str] = {}  # node id -> key

    def snapshot(self) -> State:
        """The offsets that clients of this process hold, and who holds which."""
        tensors = {f"{key}/{name}": value for key, offset in self.known.items() for name, value in offset.items()}
        return State(tensors, {"held": {str(node): key for node, key in self._held.items()}})

    def restore(self, state: State) -> None:
        """Put back what a `snapshot` said."""
        for name, value in state.tensors.items():
            key, _, layer = name.partition("/")
            self.known.setdefault(key, {})[layer] = value
        self._held = {int(node): key for node, key in state.facts["held"].items()}

    def receive(self, message: Message, tensors: dict[str, Tensor], context: Context) -> str:
        """Bring this client's base up to the message's; returns its key, under which `known` has the offset.

        tensors: those that came with the message, merges or a whole offset.
        Raises LookupError when what was sent does not lead from the base this client holds to the one it should have;
        the server then sends it whole.
        """
        config = wire.config(message)
        wanted, how = wire.value(config, "base-key", str), wire.value(config, "base-update", str)
        key = held = held_key(context)
        if wanted == base.EMPTY:  # of a server that starts anew
            context.state.pop(KEY, None)
            key = wanted
        elif how == "dense":
            self.known[wanted] = tensors
            key = wanted
        elif how == "merges" and key != wanted:  # it is there when the message is given again
            key = self._advance(held, tensors, context)
        if key != wanted:
            raise LookupError("this client's base is out of step with the server's")
        self._keep(key, context)
        return key

    def _advance(self, key: str, tensors: dict[str, Tensor], context: Context) -> str:
        """The key after the merges in `tensors`, {"<version>/<layer>/<part>": tensor}, on top of the base `key`."""
        merges: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            version, _, rest = name.partition("/")
            merges.setdefault(version, {})[rest] = tensor
        for version in sorted(merges):
            merge, _ = wire.from_tensors(merges[version])
            reached = base.next_key(key, merge)
            if reached not in self.known:
                self.known[reached] = base.advance(self._offset(key, context), merge)
            key = reached
        return key

    def _offset(self, key: str, context: Context) -> dict[str, Tensor]:
        if key in self.known:
            return self.known[key]
        if OFFSET in context.state:
            return wire.decode(wire.record(context.state, OFFSET, ArrayRecord))
        raise LookupError("this client lost its base")

    def _keep(self, key: str, context: Context) -> None:
        if key == base.EMPTY:
            return
        if key not in self.known:
            self.known[key] = self._offset(key, context)
        if self.persistent and held_key(context) != key:
            context.state[OFFSET] = wire.encode(self.known[key])
        context.state[KEY] = ConfigRecord({"key": key})
        self._held[context.node_id] = key
        in_use = {base.EMPTY, *self._held.values()}
        self.known = {k: v for k, v in self.known.items() if k in in_use}
