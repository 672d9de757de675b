"""What each client holds of all that it was sent, so that nothing is sent twice.

Clients keep what they are sent, unless it passes through (what they train, and send back) or their message was
refused. What they say they hold, when they introduce themselves, is compared with what they were sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fedinit.state import digest
from strategies.server.base_ledger import BaseLedger


class Holdings:
    """base: the base offset, and how far each client is with it. accepted: {partition id: the last round whose update
    of it was let in}, from which a client goes on with what it keeps of its own."""

    def __init__(self) -> None:
        self.base = BaseLedger()
        self.accepted: dict[int, int] = {}
        self._held: dict[int, dict[str, str]] = {}  # partition id -> {tensor: digest}

    def believe(self, client: int, held: Mapping[str, str], base_key: str) -> None:
        """Of what the client was sent before, count only on what it says it still holds."""
        sent = self._held.get(client, {})
        self._held[client] = {name: mark for name, mark in sent.items() if held.get(name) == mark}
        self.base.confirm(client, base_key)

    def forget(self, client: int) -> None:
        """Take nothing that this client was sent for granted any more."""
        self._held.pop(client, None)
        self.base.forget(client)

    def lacking(
        self, starts: Mapping[int, Mapping[str, Tensor]], passing: Collection[str]
    ) -> dict[int, dict[str, Tensor]]:
        """{client: the tensors of its start but those it holds as they are}. The rest counts as held from here on, but
        for the names in `passing`."""
        marks: dict[tuple[str, torch.Size], str] = {}  # by shape: of one rank all have the same
        lacking: dict[int, dict[str, Tensor]] = {}
        for client, start in starts.items():
            held, lacking[client] = self._held.setdefault(client, {}), {}
            for name, tensor in start.items():
                if name in held or name not in passing:
                    place = (name, tensor.shape)
                    if place not in marks:
                        marks[place] = digest.of_tensors({name: tensor})
                    if held.get(name) == marks[place]:
                        continue
                    if name not in passing:
                        held[name] = marks[place]
                lacking[client][name] = tensor
        return lacking

    def facts(self) -> dict[str, Any]:
        """For a checkpoint, the base apart."""
        return {
            "held": {str(client): marks for client, marks in self._held.items()},
            "accepted": {str(client): round for client, round in self.accepted.items()},
        }

    def recall(self, facts: Mapping[str, Any]) -> None:
        self._held = {int(client): dict(marks) for client, marks in facts["held"].items()}
        self.accepted = {int(client): round for client, round in facts["accepted"].items()}
