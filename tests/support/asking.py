"""A server's questions to one deployed client, and the refusal that is expected."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import Code
from fedinit.statistics import Request, Sampling
from fedinit.transport.local import LocalGrid

LAYER = "blocks.0.attn.proj"


class Asker:
    """Asks one deployed client, whose Context lasts from question to question."""

    def __init__(self, site: Site, **own: object) -> None:
        LocalGrid(lambda pairs: [], 1)
        self.site, self.cohort = site, Cohort(site, persistent=True, deployed=True)
        node = {key.replace("_", "-"): value for key, value in own.items()}
        self.context = Context(1, 1000, {"partition-id": 0, "noise-secret": "s", **node}, RecordDict(), {})

    def __call__(self, source: str = "inputs", name: str = "gram", seed: int = 0, **sampling: object) -> Message:
        layer, shape = ("head", (10, 24)) if source == "features" else (LAYER, (24, 24))
        given = Sampling(**sampling)  # type: ignore[arg-type]
        request = Request(source=source, layers={layer: name}, shapes={layer: shape}, seed=seed, sampling=given)  # type: ignore[arg-type]
        return self.ask(request.to_json(), {})

    def ask(self, request: str, head: Mapping[str, torch.Tensor]) -> Message:
        config = ConfigRecord({"request": request, "backbone": self.site.backbone.digest})
        content = RecordDict({"state": wire.encode(head), "asked": wire.encode({}), "config": config})
        return self.send(content, "query.statistics")

    def send(self, content: RecordDict, kind: str) -> Message:
        (reply,) = self.cohort([(Message(content, 1000, kind), self.context)])
        return reply

    def sums(self, **given: object) -> dict[str, torch.Tensor]:
        reply = self(**given)  # type: ignore[arg-type]
        assert reply.has_content(), reply.error.reason
        return wire.decode(reply.content["state"])


def refused(reply: Message, said: str, code: Code = Code.limit) -> None:
    assert reply.has_error() and reply.error.code == code and said in reply.error.reason, reply
