"""fedinit completion: TAB in bash, zsh and fish, for commands, options, groups, choices and keys.

The shell asks `fedinit completion --line …` what could stand at the end of what is typed; nothing that takes long is
imported for the answer.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console

from fedinit.commands import COMMANDS
from fedinit.commands.parsing import Parser
from fedinit.config import groups

ABOUT = """Print the lines that make a shell complete fedinit's words.

  eval "$(fedinit completion bash)"              in ~/.bashrc
  eval "$(fedinit completion zsh)"               in ~/.zshrc, after compinit
  fedinit completion fish | source               in ~/.config/fish/config.fish"""

# bash ends a word at = and :, so what it completes is what stands behind the last of them.
BASH = """_fedinit() {
    local line="${COMP_LINE:0:$COMP_POINT}" current word
    current="${line##* }"
    COMPREPLY=()
    while IFS= read -r word; do
        case "$COMP_WORDBREAKS" in *=*) word="${word#"${current%"${current##*=}"}"}" ;; esac
        COMPREPLY+=("$word")
    done < <(fedinit completion --line "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]]; then compopt -o nospace; fi
}
complete -o default -o bashdefault -F _fedinit fedinit"""
ZSH = """_fedinit() {
    local -a found
    found=("${(@f)$(fedinit completion --line "${LBUFFER}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -Q -S '' -- "${found[@]}"; else _files; fi
}
compdef _fedinit fedinit"""
FISH = """complete -c fedinit -a '(fedinit completion --line (commandline -cp) 2>/dev/null)'"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
TAKES_WORDS = (["run"], ["deploy", "init"], ["deploy", "up"])  # of run_sim.py


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT)
    made.add_argument("shell", nargs="?", choices=sorted(SHELLS), help="whose lines")
    made.add_argument("--line", help=argparse.SUPPRESS)
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Print them, or what completes a line; the exit code."""
    made = parser(name)
    options = made.parse_args(words)
    if options.line is not None:
        for word in complete(options.line):
            print(word)
        return 0
    if options.shell is None:
        made.error("which shell? bash, zsh or fish")
    print(SHELLS[options.shell])
    return 0


def complete(line: str) -> list[str]:
    """What the last word of a command line, `fedinit …`, could become; nothing where that is a file's name."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        return []
    current = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
    while words[1:2] and words[1] in ("-q", "--quiet", "-v", "--verbose"):  # which may stand before the command
        del words[1]
    return sorted({word for word in _candidates(words[1:], current) if word.startswith(current) and word != current})


def _candidates(before: Sequence[str], current: str) -> Iterable[str]:
    if not before:
        return [*COMMANDS, "--help", "--version"]
    if before[0] not in COMMANDS:
        return []
    made: argparse.ArgumentParser = importlib.import_module(COMMANDS[before[0]].module).parser(before[0])
    path = [before[0]]
    for word in before[1:]:
        inside = _subcommands(made)
        if word in inside:
            made, path = inside[word], [*path, word]
    chosen = next((a for a in made._actions if before[-1] in a.option_strings and a.choices), None)
    if chosen is not None:
        return [str(choice) for choice in chosen.choices or ()]
    if current.startswith("-"):
        return [name for action in made._actions for name in action.option_strings if name.startswith("--")]
    found = list(_subcommands(made))
    if path in TAKES_WORDS:
        found += _words(before, current)
    return [*found, *(str(c) for a in made._actions if not a.option_strings and not found for c in a.choices or ())]


def _subcommands(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _words(before: Sequence[str], current: str) -> list[str]:
    """Groups and keys with a =, then the choices of a group; with a dot, the keys of the choices that were made."""
    known = groups.groups()
    group, equals, _ = current.partition("=")
    if equals:
        return [f"{group}={choice}" for choice in known.get(group, ())]
    names = [*known, *groups.keys()]
    inside, dot, _ = current.partition(".")
    if dot and inside in known:
        chosen = groups.defaults() | dict(word.split("=", 1) for word in before if "=" in word)
        names = [f"{inside}.{key}" for key in groups.keys_of(inside, chosen.get(inside, ""))]
    return [f"{name}=" for name in names]
