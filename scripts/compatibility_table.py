"""Which choices go together: ``python scripts/compatibility_table.py > docs/compatibility.md``.

Every pair of choices is asked of the rules that a run is checked by (strategies/server/compatibility.py), each with the
other settings left out of account.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from fedinit.config.compatibility import objections
from fedinit.config.compose import compose_config
from fedinit.config.groups import groups
from fedinit.config.schema import Config
from fedinit.errors import InputError
from strategies import AGGREGATORS
from strategies.reinit import REINITS
from strategies.server.compatibility import RULES
from strategies.server.components import Components

# {the key that rules are about: its choices, as words of a command line}
AXES: dict[str, list[str]] = {
    "strategy": [f"strategy={name}" for name in sorted(AGGREGATORS)],
    "reinit": [f"reinit={name}" for name in sorted(REINITS)],
    **{
        group: [f"{group}={name}" for name in groups()[group]]
        for group in ("init", "head", "adapter", "server_opt", "robust", "attack", "privacy", "secure_aggregation")
    },
    "engine": [f"engine={name}" for name in groups()["engine"]],
    "adapter.ranks": ["adapter.ranks=halving"],
    "evaluation": ["evaluation=server", "evaluation=clients"],
    "diagnostics": ["diagnostics=init"],
    "weighting": [f"weighting={name}" for name in ("examples", "uniform", "norm")],
    "strategy.phases": ["strategy.phases=2"],
    "participation": ["participation=0.5"],
    "start_participation": ["start_participation=0.5"],
    "client.lr_ratio_b": ["client.lr_ratio_b=4"],
    "client.gsnr_scope": ["client=sgd_sai client.gsnr_scope=global_once"],
    "client.loss": [f"client.loss={name}" for name in ("cross_entropy", "l1", "l2")],
    "client.augment": ["client.augment=flip"],
    "engine.prefix_cache": ["engine.prefix_cache=true"],
    "data": [f"data={name}" for name in groups()["data"]],
    "deployment": ["flwr run"],
}
TABLES: list[tuple[str, Sequence[str]]] = [
    ("strategy", ("reinit",)),
    ("strategy", ("init",)),
    ("strategy", ("adapter", "adapter.ranks", "client.lr_ratio_b", "client.gsnr_scope")),
    ("strategy", ("server_opt", "robust", "head", "evaluation", "diagnostics", "privacy", "secure_aggregation")),
    ("init", ("adapter", "adapter.ranks", "head")),
    ("reinit", ("adapter", "adapter.ranks", "server_opt")),
    ("adapter", ("adapter.ranks", "client.lr_ratio_b", "diagnostics")),
    ("adapter.ranks", ("client.gsnr_scope", "attack")),
    ("data", ("head", "client.loss", "client.augment", "attack")),
    ("engine.prefix_cache", ("client.augment", "diagnostics")),
    ("privacy", ("init", "head", "evaluation", "diagnostics", "client.gsnr_scope")),
    ("participation", ("robust",)),
    ("start_participation", ("init",)),
    ("privacy", ("reinit", "init", "head", "evaluation", "robust", "adapter.ranks", "client.gsnr_scope", "weighting")),
    ("strategy.phases", ("adapter", "robust")),
    ("secure_aggregation", ("reinit", "robust", "attack", "adapter.ranks", "weighting", "privacy", "strategy.phases")),
    ("deployment", ("evaluation", "diagnostics", "attack", "engine")),
]


@functools.cache
def composed(words: str) -> Config:
    return compose_config([word for word in words.split() if "=" in word])


def together(left: str, right: str) -> Components:
    """What two choices build; choices of one group are composed together, others put side by side."""
    group = right.partition("=")[0].partition(".")[0]
    if left.partition("=")[0].partition(".")[0] == group:
        config = composed(f"{left} {right}")
    else:
        config = dataclasses.replace(composed(left), **{group: getattr(composed(right), group)})
    return Components.of(config, under_flower="flwr run" in (left, right))


def reason(rows: str, left: str, column: str, right: str) -> str:
    """Why two choices do not go together; empty where they do."""
    concerned = [rule for rule in RULES if set(rule.about) == {rows, column}]
    try:
        why = next((str(one) for one in objections(together(left, right), concerned)), "")
    except InputError as error:
        why = str(error)
    for axis, words in ((rows, left), (column, right)):  # one note for all choices that it holds for
        value = words.split()[-1]
        why = why.replace(value, f"{axis}=…") if axis in AXES and "." not in axis else why
    return why


def label(word: str, axis: str) -> str:
    value = word.partition("=")[2] or word
    return value if axis in ("strategy", "reinit", "init", "adapter", "data") else word.split()[-1]


def table(rows: str, columns: Sequence[str], notes: dict[str, int]) -> Iterable[str]:
    """One Markdown table, "·" where a pair goes together, a note's number where it does not."""
    heads = [(axis, word) for axis in columns for word in AXES[axis]]
    titles = [label(word, axis) if axis in ("init", "reinit") else word.split()[-1] for axis, word in heads]
    yield f"| {rows} | " + " | ".join(f"`{title}`" for title in titles) + " |"
    yield "|---" * (len(heads) + 1) + "|"
    for left in AXES[rows]:
        cells = []
        for axis, right in heads:
            why = reason(rows, left, axis, right)
            cells.append(f"[{notes.setdefault(why, len(notes) + 1)}](#reasons)" if why else "·")
        yield f"| `{label(left, rows)}` | " + " | ".join(cells) + " |"


def page() -> str:
    """The whole of docs/compatibility.md."""
    notes: dict[str, int] = {}
    lines = [
        "# What goes together",
        "",
        "Made by `python scripts/compatibility_table.py > docs/compatibility.md` from the rules that every run is",
        "checked by before it begins (strategies/server/compatibility.py); a test holds this page to them. `·` goes; a",
        "number is the reason why not, and the line that such a run ends with.",
    ]
    for rows, columns in TABLES:
        lines += ["", f"## {rows} × {', '.join(columns)}", "", *table(rows, columns, notes)]
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {why}" for why, number in notes.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
