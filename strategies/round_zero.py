"""Round 0: what the clients measure becomes the start that round 1 begins from.

The server asks every client for the statistics of a request, judges each answer on its own, adds up those it lets in
(in client order, in float64) and gives the sum to the initialiser, which makes the start or asks again. A client that
is missing, or that erred, costs its own part and nothing else; the summary says so.
"""

from __future__ import annotations

import dataclasses
import time

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedinit import wire
from fedinit.initializers import Initializer
from fedinit.initializers.initializer import Setting, StartState, run
from fedinit.metrics import ClientRound
from fedinit.statistics import Request, Statistics, add_up, wire_shapes
from strategies.federated_lora import FederatedLora, RunFailed
from strategies.gate import Refusal, admit_statistics


def begin(
    strategy: FederatedLora, grid: Grid, initializer: Initializer, setting: Setting, timeout: float
) -> StartState:
    """The start, with the round's costs in its notes. The strategy has met its clients.

    Raises RunFailed when no client's statistics can be used.
    """
    began, up = time.perf_counter(), strategy.bytes_up
    measured: dict[int, int] = {}  # client -> examples
    lost: dict[int, str] = {}  # client -> code

    def ask(request: Request) -> Statistics:
        head = {wire.HEAD + key: value for key, value in setting.head.items()} if request.source == "gradients" else {}
        content = RecordDict(
            {
                wire.CONFIG: ConfigRecord({"request": request.to_json(), "backbone": strategy.backbone_digest}),
                wire.STATE: wire.encode(head),
                wire.ASKED: wire.encode(request.tensors),
            }
        )
        shapes, found = wire_shapes(request), {}
        answers = strategy.ask(grid, content, "query.statistics", timeout)
        for client in strategy.roster.examples:
            if client not in answers:
                judged = Refusal(client, "no_reply", "nothing came in time")
            else:
                judged = admit_statistics(answers[client], client, shapes)
            if isinstance(judged, Refusal):
                lost[client] = judged.code
                strategy.refused(0, judged)
            else:
                found[client] = judged
                measured[client] = judged.examples
        if not found:
            raise RunFailed(f"round 0: no usable statistics from any client ({judged.code}: {judged.detail})")
        return add_up(list(found.values()))

    made = run(initializer, setting, ask)
    notes = dict(made.notes)
    if measured:
        notes |= {"clients": len(measured), "seconds": time.perf_counter() - began, "bytes_up": strategy.bytes_up - up}
    if lost:
        notes["lost"] = {str(client): code for client, code in sorted(lost.items())}
    strategy.round_zero_clients = [ClientRound(c, n, steps=0, loss=None) for c, n in sorted(measured.items())]
    return dataclasses.replace(made, notes=notes)

