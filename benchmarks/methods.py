"""Server seconds, and bytes up and down for one client and round, of every aggregation method.

    python -m benchmarks.methods [--quick]

ViT-B/16 with the paper's targets, global rank 16, float32; equal ranks, and ranks 4, 8, 16 dealt in turn. Updates are
drawn as in benchmarks.aggregation. A method's round is its aggregation, its own re-initialisation and the merge into
the base; diagnostics are off. One turn each, except where a round takes under two seconds: then the best of three.

up, down     bytes of one client's adapter in a round, on average over the clients, serialised as Flower sends them; a
             client that took part in the round before, so what it holds is not sent again. The head is left out.
counted      the same by the method's formula in FORMULAS, 4 bytes a number; no tensor is looked at.
"""

from __future__ import annotations

import dataclasses
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence

import torch
from flwr.app import RecordDict

from benchmarks import machine
from benchmarks.aggregation import RANK, SEED, SHAPES, draw_updates
from fedinit import slots, wire
from fedinit.adapters.core import CoreFactors
from fedinit.factors import Factors, leading
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Aggregator, Update
from strategies.methods.choosing import Choosing
from strategies.reinit import ReinitContext, Start, create_reinit
from strategies.server.base_ledger import BaseLedger

MIXED = (4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a formula of a layer is made of: d, k, the global rank r, the client's own r_i."""

    d: int
    k: int
    r: int
    own: int

    @property
    def u(self) -> int:
        """A client's own A and B."""
        return self.own * (self.d + self.k)


HEADS = 4  # of ravan, by default
SHARE = 0.5  # of lora_a2, by default

# {method: the rank of what is merged into the base in a round}: all clients' products side by side; their residual,
# Σ p_i(B_i − B̄)(A_i − Ā); what was learned, and the principal components that become the new start.
MERGED: dict[str, Callable[[Sequence[int]], int]] = {
    "flora": sum,
    "fedex_lora": sum,
    "frlora": lambda ranks: 2 * max(ranks),
}

# {method: (numbers up, numbers down) of a layer for one client, a merge apart, in a round of B
# where factors take turns}
FORMULAS: dict[str, tuple[Callable[[Sizes], float], Callable[[Sizes], float]]] = {
    **{
        name: (lambda s: s.u, lambda s: s.u)
        for name in ("fedit", "lora_fair", "flexlora", "hetlora", "rbla", "florist", "spectral", "fedrot_lora", *MERGED)
    },
    **{name: (lambda s: s.d * s.r, lambda s: s.d * s.r) for name in ("ffa_lora", "rolora")},
    "fedsvd": (lambda s: s.d * s.r, lambda s: s.u),
    "fedsa_lora": (lambda s: s.k * s.r, lambda s: s.k * s.r),
    "fed_sb": (lambda s: s.own**2, lambda s: s.own**2),
    # Of h heads with (r/h)² numbers each the client's own share, and their places; all of them down.
    "ravan": (
        lambda s: max(1, s.own * HEADS // s.r) * (s.r / HEADS) ** 2 + (s.own < s.r) * max(1, s.own * HEADS // s.r),
        lambda s: s.r**2 / HEADS,
    ),
    # Of r columns of B on average over the layers the client's share, and their places; all of B down.
    "lora_a2": (lambda s: SHARE * s.own * (s.d + 1), lambda s: s.d * s.r),
}


def counted(name: str, shapes: Sequence[tuple[int, int]], ranks: Sequence[int]) -> tuple[float, float]:
    """(bytes up, bytes down) of all clients together, by the formulas. shapes: (d, k) of each layer.

    A merge goes down as factors, or as the d×k matrices of all layers where those are smaller together.
    """
    up, down = FORMULAS[name]
    sizes = [Sizes(d, k, max(ranks), own) for d, k in shapes for own in ranks]
    rank = MERGED[name](ranks) if name in MERGED else 0
    merge = min(sum(rank * (d + k) for d, k in shapes), sum(d * k for d, k in shapes))
    return 4 * sum(map(up, sizes)), 4 * (sum(map(down, sizes)) + len(ranks) * merge)


def suited(updates: Sequence[Update], method: Aggregator, ranks: Sequence[int]) -> list[Update]:
    """The updates as this method's clients would make them: at their ranks, with the frozen factors shared; a core is
    the client's own. Clients that choose slots have the whole rank."""
    trained = method.trainable(1)
    first = updates[0].layers
    made = []
    for update, rank in zip(updates, ranks, strict=True):
        layers = {}
        for name, f in update.layers.items():
            A, B = (getattr(f if p in trained else first[name], p) for p in ("A", "B"))
            own = CoreFactors(A, B, f.A[:, :RANK].contiguous()) if method.cores else Factors(A, B)
            own = method.adopt(own)
            layers[name] = own if isinstance(method, Choosing) else leading(own, rank)
        made.append(dataclasses.replace(update, layers=layers, head={}))
    return made


def sent_back(update: Update, method: Aggregator, rank: int, largest: int) -> dict[str, torch.Tensor]:
    """The factors of a client's reply by wire name, where it chooses slots those with the largest product."""
    (*parts,) = method.trainable(1) & {"A", "B", "R"} - method.personal
    back = {n: t for n, t in wire.to_tensors(update.layers, {}).items() if n[-1] in parts}
    share = method.portion(rank, largest) if isinstance(method, Choosing) else 1.0
    if share < 1:
        scores = {n: slots.norms(f, parts[0]) for n, f in update.layers.items()}
        budget = max(1, int(share * sum(map(len, scores.values())) + 0.5))
        back = slots.pack(back, parts[0], slots.leading(scores, budget))
    return back


def serve(method: Aggregator, updates: Sequence[Update], ground: ReinitContext) -> tuple[Start, BaseLedger]:
    """One round on the server."""
    previous = Aggregate(layers=_widest(updates).layers)
    if method.inits:  # a start whose product is not zero is taken out of the base again
        drawn = {name: Factors(f.A.flip(0), f.B.flip(1)) for name, f in _widest(updates).layers.items()}
        ground = dataclasses.replace(ground, draw=lambda round: drawn)
    start = create_reinit(method.reinits[0]).start(method.aggregate(updates, 1, previous), 1, ground)
    return start, BaseLedger().merged(start.merge)


def measure(name: str, updates: Sequence[Update], ranks: Sequence[int], ground: ReinitContext) -> dict[str, object]:
    method = create_aggregator(name, diagnostics=False)
    mine = suited(updates, method, ranks)
    seconds = []
    while not seconds or (min(seconds) < 2 and len(seconds) < 3):
        began = time.perf_counter()
        start, ledger = serve(method, mine, ground)
        seconds.append(time.perf_counter() - began)
    merge, _ = ledger.catch_up(0)  # the same for every client
    merge_bytes = wire.nbytes([RecordDict({"base": wire.encode(merge)})])
    up = down = 0
    changed = {p for p in ("A", "B", "R") if _changed(start, mine, p)} - method.personal
    for update, rank in zip(mine, ranks, strict=True):
        back = sent_back(update, method, rank, max(ranks))
        whole = isinstance(method, Choosing)
        own = wire.to_tensors({n: f if whole else leading(f, rank) for n, f in start.layers.items()}, {})
        out = {n: t for n, t in own.items() if n[-1] in changed}
        up += wire.nbytes([RecordDict({wire.STATE: wire.encode(back)})])
        down += wire.nbytes([RecordDict({wire.STATE: wire.encode(out)})]) + merge_bytes
    count = len(mine)
    shapes = [(f.B.shape[0], f.A.shape[1]) for f in start.layers.values()]
    counted_up, counted_down = counted(name, shapes, ranks)
    return {
        "method": name,
        "clients": count,
        "ranks": "mixed" if len(set(ranks)) > 1 else "equal",
        "server_seconds": min(seconds),
        "up_MB": up / count / 1e6,
        "up_counted_MB": counted_up / count / 1e6,
        "down_MB": down / count / 1e6,
        "down_counted_MB": counted_down / count / 1e6,
    }


def _changed(start: Start, updates: Sequence[Update], part: str) -> bool:
    """Whether a factor differs from what the clients trained with, so that it has to be sent."""
    name = next(iter(start.layers))
    given, held = start.layers[name].parts.get(part), _widest(updates).layers[name].parts.get(part)
    if given is None or held is None:
        return False  # no core
    return given.shape != held.shape or not torch.equal(given, held)


def _widest(updates: Sequence[Update]) -> Update:
    return max(updates, key=lambda u: next(iter(u.layers.values())).rank)


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("methods", __doc__)
    words.add_argument("--quick", action="store_true", help="six clients only")
    return words


def main() -> None:
    arguments = parser().parse_args()
    draw = torch.Generator().manual_seed(SEED)
    frozen = {name: torch.randn(shape, generator=draw) / shape[1] ** 0.5 for name, shape in SHAPES.items()}

    def redraw(round: int) -> dict[str, Factors]:
        return {n: Factors(torch.randn(RANK, k) / k**0.5, torch.zeros(d, RANK)) for n, (d, k) in SHAPES.items()}

    ground = ReinitContext(dict.fromkeys(SHAPES, RANK), 2.0, redraw, frozen.__getitem__)
    rows = []
    for count in (6,) if arguments.quick else (6, 30, 100):
        updates = draw_updates(count)
        for mixed in (False, True):
            ranks = [MIXED[i % 3] if mixed else RANK for i in range(count)]
            names = [n for n in sorted(AGGREGATORS) if n != "head_alone"]
            for name in names:
                if not mixed or AGGREGATORS[name].mixed_ranks:
                    rows.append(measure(name, updates, ranks, ground))
                    print(f"{name}, {count} clients: {rows[-1]['server_seconds']:.2f} s", flush=True)
    machine.publish(machine.named("methods", parser(), arguments), rows, dtype="float32", seed=SEED)


if __name__ == "__main__":
    main()
