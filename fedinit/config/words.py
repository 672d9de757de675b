"""One word of the command line as Hydra's parser has it, and what is said of one that it cannot have.

Hydra's grammar has no `~`, `=`, `(`, `&`, no letter beyond ASCII and no apostrophe in a value that is not quoted. Such
a value is taken as it stands, as if it were in quotes, by itself or inside a list, a mapping or a sweep. What cannot
have been meant so is refused: quotes and brackets that are not closed, a comma with nothing after it, a function that
fails.
"""

from __future__ import annotations

import functools
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from fedinit.errors import InputError

BRACKETS = {"[": "]", "{": "}", "(": ")"}
KEY = re.compile(r"(?:~|\+\+?)?[A-Za-z_$][\w$./@:-]*", re.ASCII)
EXPECTED = "expected key=value, such as rounds=3"


def parse(word: str) -> Override:
    """The word as an override; its `input_line` is what Hydra takes. Raises InputError, one line."""
    key, equals, value = word.partition("=")
    if not KEY.fullmatch(key):
        raise InputError(f"{word}: {EXPECTED}")
    if not equals and not key.startswith("~"):
        raise InputError(f"{word}: {EXPECTED}; a blank ends a word")
    override = _parsed(word) or _parsed(f"{key}={_quoted(value, word)}")
    if override is None:
        raise InputError(f"{word}: {EXPECTED}")
    return override


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _parsed(word: str) -> Override | None:
    try:
        return _parser().parse_overrides([word])[0]
    except HydraException:
        return None


def _quoted(value: str, word: str) -> str:
    """A value that Hydra can read, in which what it cannot is in quotes. word: of which it is, for what is said."""
    if _parsed(f"key={value}"):
        return value
    pieces = _pieces(value, ",", word)
    if len(pieces) > 1:
        if not all(piece.strip() for piece in pieces):
            raise InputError(f"{word}: nothing stands between two commas, or after one; a blank ends a word")
        return ",".join(_quoted(piece, word) for piece in pieces)
    inside = value.strip()
    if inside[0] == "[" and inside[-1] == "]":
        return f"[{_quoted(inside[1:-1], word)}]"
    if inside[0] == "{" and inside[-1] == "}":
        pairs = [pair.partition(":") for pair in _pieces(inside[1:-1], ",", word)]
        if not all(colon for _, colon, _ in pairs):
            raise InputError(f"{word}: braces hold key: value pairs, such as {{depth: 3}}")
        return "{" + ",".join(f"{key}:{_quoted(entry, word)}" for key, _, entry in pairs) + "}"
    name, _, arguments = inside.partition("(")
    if name in _parser().functions.functions and inside[-1] == ")":
        call = f"{name}({_quoted(arguments[:-1], word)})"
        if _parsed(f"key={call}"):
            return call
        raise InputError(f"{word}: {_reason(f'key={call}')}")
    return QuotedString(inside, Quote.single).with_quotes()


def _pieces(text: str, mark: str, word: str) -> list[str]:
    """The text cut at every `mark` that stands in no brackets and no quotes.

    A quote opens only where an element begins; elsewhere it is an apostrophe. Raises InputError for one that is not
    closed, and for a bracket that has no other.
    """
    pieces, opened, quote = [""], [], ""
    for sign in text:
        begins = not pieces[-1].strip() or pieces[-1].rstrip()[-1] in "[{(,:"
        if quote:
            quote = "" if sign == quote and not pieces[-1].endswith("\\") else quote
        elif sign in "'\"" and begins:
            quote = sign
        elif sign in BRACKETS:
            opened.append(sign)
        elif sign in BRACKETS.values() and (not opened or BRACKETS[opened.pop()] != sign):
            raise InputError(f"{word}: {sign} closes no bracket; {_in_quotes(word)}")
        if sign == mark and not opened and not quote:
            pieces.append("")
        else:
            pieces[-1] += sign
    if quote or opened:
        raise InputError(f"{word}: {quote or opened[-1]} is not closed; {_in_quotes(word)}")
    return pieces


def _in_quotes(word: str) -> str:
    key, _, value = word.partition("=")
    example = "" if set(value) & set('"$`\\!') else f', "{key}={QuotedString(value, Quote.single).with_quotes()}"'
    return f"a value that is to have it stands in quotes{example}"


def _reason(word: str) -> str:
    """What Hydra says of a word that it refuses, without the word."""
    try:
        _parser().parse_overrides([word])
    except HydraException as error:
        lines = str(error).splitlines()
        return " ".join(lines[1:2] or lines)
    return EXPECTED
