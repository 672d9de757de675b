"""Every command that README, CONTRIBUTING and docs/ show is one that there is, with words that it takes.

What federates is composed and checked as before a run; other commands of the project go through their own parsers;
what belongs to others is known by name. The slow test runs those that a fresh clone can run by itself.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fedinit.commands import COMMANDS, deploy
from fedinit.commands.run import configurations
from fedinit.config import arguments
from strategies.server.compatibility import check_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(?:bash|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python run_sim\.py|python -m benchmarks|fedinit|pytest|pip install) [^`]+)`", re.DOTALL)
PLACEHOLDER = re.compile(r"<[^<>|]+>")
RUNS = (("python", "run_sim.py"), ("fedinit", "run"))
OTHERS = {  # programs that are not the project's, and shell words
    "chown", "cp", "eval", "export", "flwr", "git", "pre-commit", "pyright", "rm", "ruff", "scp", "sha256sum", "source",
    "systemctl", "tail", "useradd",
}  # fmt: skip


class Shown(NamedTuple):
    """A command as a page shows it. where: "README.md:12". words: of it alone, without what is before and after.
    named: it stands in a sentence, where its name alone may be meant."""

    where: str
    words: tuple[str, ...]
    named: bool

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words)}"


def shown(page: Path, fenced: bool = True, inline: bool = True) -> Iterator[Shown]:
    text = page.read_text(encoding="utf-8")
    for pattern in [FENCED] * fenced + [INLINE] * inline:
        for found in pattern.finditer(text):
            lines = found[1].replace("\\\n", " ")
            if pattern is INLINE:
                lines = " ".join(lines.split())
            line = text.count("\n", 0, found.start(1)) + 1
            for offset, one in enumerate(lines.splitlines()):
                for words in separate(PLACEHOLDER.sub("PLACE", one)):
                    yield Shown(f"{page.relative_to(ROOT)}:{line + offset}", words, pattern is INLINE)


def separate(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of shell, without comments, assignments and redirections; "$(…)" is taken apart too."""
    for inner in re.findall(r"\$\(([^()]+)\)", line):
        yield from separate(inner)
    line = re.sub(r"\$\([^()]+\)", "PLACE", line).replace("2>&1", "")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            while words and re.match(r"^[A-Za-z_]+=", words[0]):
                words.pop(0)
            kept = words[: words.index(">")] if ">" in words else words
            if kept:
                yield tuple(kept)
            words = []
        else:
            words.append(word)


class Taken(Exception):
    """A parser took the words."""


@pytest.fixture
def parsed_only(monkeypatch):
    """Commands end, by Taken, as soon as their words are parsed."""
    real = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def federates(words: list[str]) -> None:
    """Raises InputError for what a run would not begin with; of a sweep's seeds one stands for all."""
    said = arguments.read([re.sub(r"^seed=.*", "seed=0", word) for word in words])
    if not said.shows and not {"-h", "--help"} & set(words):
        for swept in configurations(said):
            check_method(swept.config)


def try_out(words: tuple[str, ...], monkeypatch) -> None:
    """Raises for a command that there is not, or that does not take these words."""
    program, *rest = words
    if (program, *rest[:1]) in RUNS:
        federates(rest[1:])
    elif program == "fedinit":
        one_of_ours(rest)
    elif program == "pytest" or words[:3] == ("python", "-m", "pytest"):
        for word in rest:
            assert word.startswith("-") or not word.startswith("tests") or (ROOT / word.split("::")[0]).exists(), word
    elif "pip" in Path(program).name:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in rest:
            asked = re.search(r"(?:^\.|^fedinit)\[(.+)\]", word)
            assert asked is None or set(asked[1].split(",")) <= extras.keys(), word
    elif words[:2] == ("python", "-m"):
        if rest[1].startswith("benchmarks"):
            name = rest[1] if (ROOT / f"{rest[1].replace('.', '/')}.py").exists() else f"{rest[1]}.__main__"
            monkeypatch.setattr(sys, "argv", [rest[1], *rest[2:]])
            with pytest.raises(Taken):
                importlib.import_module(name).main()
    elif words[:1] in (("python",), ("python3",)):
        script = next((word for word in rest if word.endswith(".py")), None)
        assert script is None or (ROOT / script).exists(), script
    else:
        assert program in OTHERS, f"{program}: a program that nobody knows"


def one_of_ours(rest: list[str]) -> None:
    from rich.console import Console

    name, *rest = rest
    if name in ("--help", "--version"):
        return
    assert name in COMMANDS, name
    if name == "deploy" and not {"-h", "--help"} & set(rest):
        options, words = deploy.parser(name).parse_known_args(rest)
        assert all("=" in word for word in words), words
        if words:
            federates(words)
        return
    with pytest.raises((Taken, SystemExit)):
        importlib.import_module(COMMANDS[name].module).main(name, rest, Console(quiet=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_taken(page, monkeypatch, parsed_only):
    wrong = []
    for command in shown(page):
        if re.search(r"…|\[[A-Z]+\]|\bCOMMAND\b", " ".join(command.words)):
            continue  # a form, not a command
        try:
            try_out(command.words, monkeypatch)
        except Exception as error:  # noqa: BLE001 (each is told)
            if command.named and "arguments are required" in str(error):
                continue
            wrong.append(f"{command}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "python run_sim.py strategy=nosuch",
        "python run_sim.py -m strategy=fedit,flora adapter.ranks=[2] rounds=0",
        "fedinit export RUN --format nosuch",
        "fedinit nosuch",
        "fedinit deploy up rounds=-1",
        "python -m benchmarks.bank --nosuch",
        "python -m benchmarks.nosuch",
        "pytest tests/nosuch",
        'pip install -e ".[nosuch]"',
        "nosuch",
    ],
)
def test_a_wrong_command_is_found(line, monkeypatch, parsed_only):
    """The control."""
    (words,) = separate(line)
    with pytest.raises((Exception, SystemExit)) as raised:
        try_out(words, monkeypatch)
    assert not isinstance(raised.value, Taken)


def test_what_a_page_shows_is_seen():
    """The control of the reader."""
    seen = [" ".join(command.words) for page in PAGES for command in shown(page)]
    for known in ("python run_sim.py strategy=fedit", "pytest -n 2", "fedinit compare outputs/quick"):
        assert known in seen
    assert len(seen) > 80
    assert list(separate('A=1 x=$(fedinit run -q) && fedinit export "$x" > out  # why')) == [
        ("fedinit", "run", "-q"),
        ("fedinit", "export", "$x"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        command
        for command in shown(ROOT / "README.md", inline=False)
        if command.words[:2] == ("python", "run_sim.py") and "data" not in " ".join(command.words)
    ],
    ids=str,
)
def test_the_readmes_runs_run(command, tmp_path):
    """All that need no data of one's own; one round, as long as what they say about methods and models."""
    words = [sys.executable, *command.words[1:], "rounds=1", "client.max_steps=2", f"output_dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("summary.json"))
