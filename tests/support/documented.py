"""The code blocks of README.md, CONTRIBUTING.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "sh", "console")
PROGRAMS = "python|python3|fedinit|pytest|pip|flwr|mkdocs"


class Block(NamedTuple):
    """A fenced block. place: page:line of its first line. kind: what stands after the fence."""

    place: str
    kind: str
    text: str


class Command(NamedTuple):
    """One command. place: page:line. words: with the assignments that stand before it. text: as it stands."""

    place: str
    words: tuple[str, ...]
    text: str


def pages() -> list[Path]:
    """Every page that has commands for a reader."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, also those that are indented."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 2
        yield Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2])


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page's shell blocks, and those amid its sentences that are more than a name: with an option, a
    key=value or a script; what has
    an … in it, or COMMAND, is no command."""
    for block in blocks(page):
        if block.kind in SHELLS:
            name, line = block.place.split(":")
            for number, text in logical_lines(block.text, int(line)):
                yield from split(text, f"{name}:{number}")
    prose = re.sub(
        r"^ *```.*?^ *```", lambda m: "\n" * m[0].count("\n"), page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for match in re.finditer(rf"`((?:{PROGRAMS}) [^`]*)`", prose):
        text = match[1].replace("\n", " ")
        if re.search(r" -|=|^pip|\.py", text) and not re.search(r"…|\bCOMMAND\b", text):
            yield from split(text, f"{page.relative_to(ROOT)}:{prose.count(chr(10), 0, match.start()) + 1}")


def logical_lines(text: str, first: int) -> Iterator[tuple[int, str]]:
    r"""(number, text) of each line that is neither empty nor a comment; one that ends in \ goes on in the next."""
    begun, start = "", first
    for number, line in enumerate(text.splitlines(), first):
        start = start if begun else number
        begun += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if begun.strip() and not begun.lstrip().startswith("#"):
            yield start, begun.strip().removeprefix("$ ")
        begun = ""


def split(text: str, place: str) -> Iterator[Command]:
    """The commands of a line of shell, those within $(…) first."""
    for inner in re.findall(r"\$\(([^()]*)\)", text):
        yield from split(inner, place)
    outer = re.sub(r"\$\([^()]*\)", "INNER", text)
    outer = re.sub(r"\s\d?>&?\s?[\w./-]+", "", outer)  # where its output goes
    lexer = shlex.shlex(outer, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            if words:
                yield Command(place, tuple(words), text)
            words = []
        else:
            words.append(word)
