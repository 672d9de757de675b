"""A server that lies: it asks sites that insist on masks for what it likes, and takes masks off as a server does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.secagg import masks, secrets
from fedinit.secagg.fixed_point import FixedPoint, unflat
from fedinit.secagg.messages import MASKED, QUERY, RECORD
from fedinit.state import base_offset, digest
from fedinit.transport.local import LocalGrid
from tests.support.serving import registered

Ask = tuple[str, Mapping[str, object], Mapping[str, Tensor]]  # type of a message, its settings, its tensors
POINT = FixedPoint(64.0, 32)


class Refusing(Exception):
    """A site's words."""


class Lying:
    """Asks sites, each with its own folder, in a process that holds all of them."""

    def __init__(self, site: Site, folder: Path | None, **own: object) -> None:
        """own: settings of every site, with _ for -."""
        LocalGrid(lambda pairs: [], 1)
        self.folder, self.own = folder, {"require-secure-aggregation": True}
        self.own |= {key.replace("_", "-"): value for key, value in own.items()}
        model = registered(site)[1].model
        self.start = wire.to_tensors(model.layers, model.head)
        self.base: Mapping[str, Tensor] = {}  # sent whole with every training
        self.restart(site)

    def restart(self, site: Site) -> None:
        """Every SuperNode anew, in a Flower run of its own; all that is left is on the sites' disks."""
        self.site, self.cohort = site, Cohort(site, persistent=True, deployed=True)
        self.contexts = []
        for client in range(len(site.partitions)):
            place = {} if self.folder is None else {"state-dir": str(self.folder / str(client))}
            node = {"partition-id": client, **place, **self.own}
            self.contexts.append(Context(1, client, node, RecordDict(), {}))

    def ask(
        self,
        client: int,
        kind: str,
        settings: Mapping[str, object],
        tensors: Mapping[str, Tensor] | None = None,
        entries: Mapping[str, bytes] | None = None,
    ) -> RecordDict:
        """A site's answer. Raises Refusing."""
        config = {"backbone": self.site.backbone.digest, **settings}
        content = RecordDict({wire.CONFIG: ConfigRecord(config)})  # type: ignore[arg-type]
        if tensors is not None:
            content[wire.STATE] = wire.encode(tensors)
        if self.base and kind == "train":
            content[base_offset.RECORD] = wire.encode(self.base)
        if entries is not None:
            content[RECORD] = ConfigRecord({**entries})
        (reply,) = self.cohort([(Message(content, client, kind), self.contexts[client])])
        if reply.has_error():
            raise Refusing(reply.error.reason)
        return reply.content

    def question(self, round: int, start: Mapping[str, Tensor] | None = None, **others: object) -> dict[str, object]:
        """The settings of a training from `start`, as a server of masked updates has them. others: with _ for -."""
        given = {"trainable": ["A", "B"], "keep": [], "personal": [], "own-factors": False, "accepted": 0, "weight": 1}
        given |= {"base-key": "", "base-update": "merges", "round": round}
        given["start-digest"] = digest.of_tensors(self.start if start is None else start)
        return given | {key.replace("_", "-"): value for key, value in others.items()}

    def sum(
        self,
        round: int,
        clients: Collection[int],
        left: Collection[int] | None = None,
        start: Mapping[str, Tensor] | None = None,
        by_client: Mapping[int, Mapping[str, object]] = {},
        by: Collection[int] | None = None,
        **settings: object,
    ) -> dict[str, Tensor]:
        """{name: Σ of the updates}, of those that are `left` of clients, all of which have trained from `start`.

        settings: of every training. by_client: further ones of some, and under "start" one of its own. by: of
        those that are left, who is asked to unmask; None: all. Raises Refusing, as soon as one site refuses."""
        start = self.start if start is None else start
        asks = {}
        for client in clients:
            own = {"start": start, "round": round, **settings, **by_client.get(client, {})}
            asks[client] = "train", self.question(**own), own["start"]
        names = wire.trained_names(*wire.from_tensors(start), frozenset("AB"))
        return self._sum(clients if left is None else left, {name: start[name] for name in names}, asks, by)

    def images(self, round: int, clients: Collection[int], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: Σ of the answers to a second phase}, as `sum`."""
        about = {"round": round, "weight": 1}
        like = {wire.image_name(n[:-2]): torch.zeros_like(v) for n, v in means.items() if n.endswith("/B")}
        return self._sum(clients, like, dict.fromkeys(clients, ("query.project", about, means)))

    def _sum(
        self,
        left: Collection[int],
        like: Mapping[str, Tensor],
        asks: Mapping[int, Ask],
        by: Collection[int] | None = None,
    ) -> dict[str, Tensor]:
        """Σ of what is in the shapes of `like`. asks: {client: the third stage's message}."""
        clients, threshold = sorted(asks), len(asks) // 2 + 1
        stage = lambda c, name, entries=None, **more: self.ask(  # noqa: E731
            c, QUERY, {"round": asks[c][1]["round"], "stage": name, **more}, entries=entries
        )[RECORD]
        keys = {c: stage(c, "keys") for c in clients}
        public = {str(c): keys[c]["public"] for c in clients}
        sealed = {c: stage(c, "shares", public, threshold=threshold) for c in clients}
        words = {}
        for c, (kind, settings, tensors) in asks.items():
            reply = self.ask(c, kind, settings, tensors, {str(other): sealed[other][str(c)] for other in clients})
            words[c] = wire.decode(reply[wire.STATE])[MASKED].numpy().view(np.uint64)
        shares = {c: stage(c, "unmask", left=sorted(left)) for c in (left if by is None else by)}
        total = sum((words[c] for c in left), np.zeros_like(words[clients[0]]))
        for c in clients:
            given, mine = {h: s[str(c)] for h, s in shares.items()}, keys[c]["public"][: secrets.PUBLIC]
            if c in left:
                right = lambda s, c=c: masks.commitment(s) == keys[c]["commitment"]  # noqa: E731
                total -= masks.expand(secrets.joined(given, threshold, right)[0], total.size)
            else:
                right = lambda s, mine=mine: secrets.public_bytes(secrets.private_key(s)) == mine  # noqa: E731
                key = secrets.private_key(secrets.joined(given, threshold, right)[0])
                others = {o: secrets.public_key(public[str(o)][: secrets.PUBLIC]) for o in left}
                total += masks.pairwise(c, key, others, total.size)
        return unflat(POINT.decode(total, 1)[:-2], like)
