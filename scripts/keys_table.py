"""Every key of a run, with its default and its meaning: ``python scripts/keys_table.py > docs/keys.md``.

Read from conf/, where what a key means stands beside it; the dataclasses of fedinit/config/ hold the same names and
defaults (tests/fedinit/config/test_choices.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedinit.config.groups import CONF_DIR

KEY = re.compile(r"^( *)([a-z_0-9]+):(?: +([^#]*?))?(?: *# (.*))?$")
HIDDEN = {"defaults"}  # Hydra's own, of how the files are put together


def rows(path: Path, group: str) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of a file of conf/, its keys as one writes them on the command line."""
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = KEY.match(line)
        if match is None:
            continue
        indent, name, value, said = match.groups()
        above = [*above[: len(indent) // 2], name]
        if above[0] in HIDDEN or (not value and not said):
            continue
        key = ".".join([group, *above] if group else above)
        yield key, (value or "").strip(), (said or "").strip()


def table(found: list[tuple[str, str, str]]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    lines = ["| key | default | meaning |", "|---|---|---|"]
    return [
        *lines,
        *(f"| `{key}` | {f'`{cell(value)}`' if value else ''} | {cell(said)} |" for key, value, said in found),
    ]


def page() -> str:
    lines = [
        "# Every key",
        "",
        "Made by `scripts/keys_table.py` from `conf/`. A key is given on the command line, `client.lr=0.01`; a group's",
        "choice is `group=choice`. `python run_sim.py --help` lists the groups, `--cfg job` shows what would be run.",
        "",
        "## A run",
        "",
        *table([row for row in rows(CONF_DIR / "config.yaml", "") if not row[0].startswith("defaults")]),
    ]
    for folder in sorted(p for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in ("experiment", "hydra")):
        lines += ["", f"## `{folder.name}=`"]
        for path in sorted(folder.glob("*.yaml")):
            first = path.read_text(encoding="utf-8").splitlines()[0]
            lines += ["", f"### `{folder.name}={path.stem}`", ""]
            if first.startswith("# ") and not first.startswith("# @"):
                lines += [first[2:], ""]
            lines += table([*rows(path, folder.name)])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
