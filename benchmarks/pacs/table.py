"""What a table has for rows, in which settings it is run, and by what its learning rates are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedinit.initializers import INITIALIZERS


@dataclass(frozen=True)
class Row:
    """One line of a table: its label, and the overrides that make it."""

    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """settings: {name: overrides} that every row is run in; the first is the one that rates are chosen on, in
    `selected_after` rounds. per_round: {setting: clients in a round}, for the centralised reference."""

    name: str
    experiment: str
    image_size: int  # pixels a side
    rows: tuple[Row, ...]
    settings: Mapping[str, tuple[str, ...]]
    per_round: Mapping[str, int]
    rounds: int
    evaluated: tuple[int, ...]
    reference: str  # the row that the others are compared with
    grid: tuple[float, ...]  # of learning rates
    selected_after: int
    seeds: int = 3  # 0, 1, …
    ratio: float | None = None  # of one rate to the next where the grid goes on beyond its edges
    timed: bool = False  # whether the CPU seconds of a run are shown


METHODS = Table(
    name="methods",
    experiment="pacs_vit_tiny",
    image_size=96,
    rows=tuple(
        Row(label, (f"strategy={name}",))
        for label, name in {
            "FFA-LoRA": "ffa_lora",
            "FedIT": "fedit",
            "FLoRA": "flora",
            "FlexLoRA": "flexlora",
            "FedEx-LoRA": "fedex_lora",
            "RoLoRA": "rolora",
            "LoRA-FAIR": "lora_fair",
        }.items()
    )
    + (Row("centralised", ("strategy=fedit", "partition=pooled")),),
    settings={
        "4 clients by domain": ("partition=domain",),
        "12 clients, label skew": (
            "partition=dirichlet",
            "partition.clients=12",
            "partition.alpha=0.5",
            "participation=0.6",
        ),
    },
    per_round={"4 clients by domain": 4, "12 clients, label skew": 7},
    rounds=5,
    evaluated=(2, 5),
    reference="LoRA-FAIR",
    grid=(0.02, 0.05, 0.125),
    selected_after=5,
    seeds=5,
    ratio=2.5,
)

# For trained cores, for VeRA, and for a model whose weight is zero.
ELSEWHERE = {"random_core", "vera", "gaussian_pair"}

INITS = Table(
    name="inits",
    experiment="inits_pacs",
    image_size=80,
    rows=tuple(Row(name, (f"init={name}",)) for name in sorted(INITIALIZERS.keys() - ELSEWHERE)),
    settings={"LoRA-FAIR": ("strategy=lora_fair",), "FedIT": ("strategy=fedit",)},
    per_round={},
    rounds=10,
    evaluated=(1, 2, 5, 10),
    reference="kaiming",
    grid=(0.005, 0.02, 0.05),
    selected_after=3,
    timed=True,
)

TABLES = {table.name: table for table in (METHODS, INITS)}
