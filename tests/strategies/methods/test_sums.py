"""What methods say their rules are sums of (Aggregator.sums): the clients exchanged for others with the same sums.

Six clients, (d, k) = (9, 12), in float64. Sums are kept by changes from the null space of the conditions on them, so
they agree to rounding; aggregates are compared with rtol 1e-7, room for the conditioning of small eigenproblems. The
negative controls keep fewer sums, or exchange the clients of a method whose rule is no sum.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.factors import Factors, leading, stack
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Aggregator, Update

D, K, RANK, EXAMPLES = 9, 12, 3, (1, 2, 3, 4, 5, 6)
P = [n / sum(EXAMPLES) for n in EXAMPLES]
EQUAL, MIXED = (RANK,) * 6, (3, 1, 2, 3, 2, 3)
TABLE = Path(__file__).resolve().parents[3] / "docs" / "methods.md"
PLAIN = {"weighting": "examples", "diagnostics": False}
VARIANTS = [
    *((name, {}) for name in sorted(AGGREGATORS)),
    ("ffa_lora", {"frozen": "B"}),
    ("fedrot_lora", {"align": "joint"}),
    ("lora_fair", {"side": "A", "lam_scale": "absolute"}),
    ("lora_fair", {"side": "both"}),
    ("lora_fair", {"phases": 2}),
    ("lora_fair", {"solver": "gram_sgd", "steps": 20}),
    ("lora_fair", {"solver": "dense_sgd", "steps": 20}),
]


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def make(method: Aggregator, round: int, ranks: tuple[int, ...]) -> tuple[Factors, list[Factors]]:
    """The start, and what clients of a method send: the start's factors where they do not train them."""
    draw, trained = torch.Generator().manual_seed(round), method.trainable(round) - method.personal
    A, B = normal(draw, RANK, K), normal(draw, D, RANK)
    start = method.adopt(CoreFactors(A, B, normal(draw, RANK, RANK)))
    made = []
    for rank in ranks:
        own = leading(start, rank).parts
        made.append(type(start)(**{n: normal(draw, *v.shape) if n in trained else v for n, v in own.items()}))
    return start, made


def changes(lefts: list[Tensor], columns: int, draw: torch.Generator) -> list[Tensor]:
    """D_i (r_i, columns), not zero, with Σ p_i L_i D_i = 0; lefts: L_i (m, r_i)."""
    conditions = torch.cat([p * left for p, left in zip(P, lefts, strict=True)], 1)
    singular = torch.linalg.svd(conditions)
    free = singular.Vh[int((singular.S > 1e-10 * singular.S[0]).sum()) :]
    assert len(free)
    return list((free.T @ normal(draw, len(free), columns)).split([left.shape[1] for left in lefts]))


def padding(rank: int) -> Tensor:
    """What pads r_i rows to the full rank."""
    return torch.eye(RANK, dtype=torch.float64)[:, :rank]


def exchanged(clients: list[Factors], sums: tuple[str, ...], B: Tensor) -> list[Factors]:
    """Other clients with the same sums. B: the one that "(B̄ᵀB)A" is taken with."""
    draw, pads = torch.Generator().manual_seed(99), [padding(f.rank) for f in clients]
    if sums == ("BA",):  # the components of the sum, dealt out
        U, S, Vh = torch.linalg.svd(stack(clients, P).dense(), full_matrices=False)
        low, made = 0, []
        for p, f in zip(P, clients, strict=True):
            part = slice(low, low + f.rank)
            missing = f.rank - len(S[part])
            A, wide = Vh[part], U[:, part] * S[part] / p
            A = torch.cat([A, normal(draw, missing, K)])
            made.append(Factors(A, torch.cat([wide, wide.new_zeros(D, missing)], 1)))
            low += f.rank
        assert low >= len(S)
        return made
    if sums == ("R",):  # by one entry, which every core has
        moved = changes([torch.ones(1, 1, dtype=torch.float64)] * 6, 1, draw)
        cores = [f.parts["R"].clone() for f in clients]
        for core, d in zip(cores, moved, strict=True):
            core[(0,) * core.ndim] += float(d)
        return [CoreFactors(f.A, f.B, core) for f, core in zip(clients, cores, strict=True)]
    A = [f.A for f in clients]
    wide = [f.B for f in clients]
    if "A" in sums:
        conditions = list(pads)
        if "BA" in sums:
            conditions = [torch.cat([c, f.B]) for c, f in zip(conditions, clients, strict=True)]
        if "(B̄ᵀB)A" in sums:
            conditions = [torch.cat([c, B.T @ f.B]) for c, f in zip(conditions, clients, strict=True)]
        moved = changes(conditions, K, draw)
        if "B(AĀᵀ)" in sums:
            mean = sum(p * pad @ f.A for p, pad, f in zip(P, pads, clients, strict=True))
            outside = torch.eye(K, dtype=torch.float64) - torch.linalg.pinv(mean) @ mean
            moved = [d @ outside for d in moved]
        A = [a + d for a, d in zip(A, moved, strict=True)]
    if sums in (("B",), ("A", "B")):
        wide = [b + d.T for b, d in zip(wide, changes(list(pads), D, draw), strict=True)]
    return [Factors(a, b) for a, b in zip(A, wide, strict=True)]


def aggregate(method: Aggregator, clients: list[Factors], start: Factors, round: int) -> Aggregate:
    updates = [Update(i, n, {"l": f}, {}) for i, (n, f) in enumerate(zip(EXAMPLES, clients, strict=True))]
    return method.aggregate(updates, round, Aggregate(layers={"l": start}))


def gap(ours: Aggregate, theirs: Aggregate, factors: bool) -> float:
    """The largest relative difference of the products, residuals included; of the factors too, if asked for."""
    pairs = [(ours.layers["l"].dense(), theirs.layers["l"].dense())]
    pairs += [(f.dense(), theirs.residual[n].dense()) for n, f in ours.residual.items()]
    if factors:
        pairs += [(v, theirs.layers["l"].parts[n]) for n, v in ours.layers["l"].parts.items()]
    return max(float((a - b).norm() / a.norm().clamp(min=1e-300)) for a, b in pairs)


def cases() -> list:
    """Every method in a round of either kind; with clients of mixed ranks where it takes them. One head of Ravan's, as
    whole blocks are its ranks."""
    made = []
    for name, options in VARIANTS:
        options = {"heads": 1} if name == "ravan" else options
        mixed = AGGREGATORS[name].mixed_ranks and name != "ravan"
        for round, ranks in ((1, EQUAL), (2, EQUAL), *([(1, MIXED), (2, MIXED)] if mixed else [])):
            label = "-".join([name, *map(str, options.values()), str(round), "mixed" if ranks is MIXED else "equal"])
            made.append(pytest.param(name, options, round, ranks, id=label))
    return made


@pytest.mark.parametrize(("name", "options", "round", "ranks"), cases())
def test_the_aggregate_is_a_function_of_the_declared_sums(name, options, round, ranks) -> None:
    method = create_aggregator(name, **options, **PLAIN)
    start, clients = make(method, round, ranks)
    made, sums = aggregate(method, clients, start, round), method.sums(round)
    if method.no_sum and not sums:
        others = exchanged(clients, ("A", "B"), made.layers["l"].B)
        assert gap(made, aggregate(method, others, start, round), factors=False) > 1e-3
        return
    if not sums:  # nothing that clients could send is looked at
        others = make(create_aggregator("fedit"), 3, ranks)[1]
    else:
        others = exchanged(clients, sums, made.layers["l"].B)
    assert all(gap_of(f, g) > 1e-2 for f, g in zip(clients, others, strict=True) if f.rank == RANK)
    # Of FLoRA's stack the product is a function of the sum, the factors are the clients' own.
    assert gap(made, aggregate(method, others, start, round), factors=name != "flora") < 1e-7


def gap_of(one: Factors, other: Factors) -> float:
    return float((one.dense() - other.dense()).norm() / one.dense().norm())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("fedit", ("BA",)),
        ("rbla", ("BA",)),
        ("flexlora", ("A", "B")),
        ("flora", ("A", "B")),
        ("fedex_lora", ("A", "B")),
        ("fedex_lora", ("BA",)),
        ("lora_fair", ("A", "B")),  # the first phase alone
        ("florist", ("A", "B")),
        ("spectral", ("A", "B")),
    ],
)
def test_other_sums_do_not_determine_it(name, kept) -> None:
    """The negative control: with fewer sums kept, or others, the aggregate is another one."""
    method = create_aggregator(name, **PLAIN)
    start, clients = make(method, 1, EQUAL)
    made = aggregate(method, clients, start, 1)
    others = exchanged(clients, kept, made.layers["l"].B)
    assert gap(made, aggregate(method, others, start, 1), factors=False) > 1e-3


@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "fedex_lora", "flexlora"])
def test_the_same_of_veras_vectors(name) -> None:
    """Their sums are those of the pairs b, dᵀ, and "BA" that of M = b dᵀ, here as its rows: more clients than rows."""
    method = create_aggregator(name, **PLAIN)
    draw = torch.Generator().manual_seed(0)
    A, B, b, d = normal(draw, RANK, K), normal(draw, 2, RANK), normal(draw, 2), normal(draw, RANK)
    start, trained = VeRAFactors(A, B, b=b, d=d), method.trainable(1)
    clients = [
        VeRAFactors(A, B, b=normal(draw, 2) if "B" in trained else b, d=normal(draw, RANK) if "A" in trained else d)
        for _ in EXAMPLES
    ]
    sums, one = method.sums(1), torch.ones(1, 1, dtype=torch.float64)
    lefts = [torch.cat([one, *([f.b[:, None]] if "BA" in sums else [])]) for f in clients]
    on_b = [torch.zeros(1, 2, dtype=torch.float64)] * 6 if "BA" in sums else changes([one] * 6, 2, draw)
    on_d = changes(lefts, RANK, draw) if "A" in trained else [torch.zeros(1, RANK, dtype=torch.float64)] * 6
    others = [VeRAFactors(A, B, f.b + x[0], f.d + y[0]) for f, x, y in zip(clients, on_b, on_d, strict=True)]
    assert all(gap_of(f, g) > 1e-2 for f, g in zip(clients, others, strict=True))
    assert gap(aggregate(method, clients, start, 1), aggregate(method, others, start, 1), factors=True) < 1e-7


def test_the_documentation_says_the_same() -> None:
    """docs/methods.md has a row for every method, with its sums."""
    text = TABLE.read_text().split("| sums over clients of |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()[2:]]
    documented = {name.strip("`"): said for name, said in rows}
    declared = {}
    for name in AGGREGATORS:
        method = create_aggregator(name)
        rounds = dict.fromkeys(", ".join(method.sums(round)) for round in (1, 2))
        declared[name] = f"none: {method.no_sum}" if method.no_sum else " / ".join(rounds) or "–"
    assert documented == declared
