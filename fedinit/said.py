"""Words of others on a screen and in a log: of clients at the server, of a server at its clients, of files anywhere.

Whoever writes them may be hostile. A terminal does what control characters say, so none reaches one, and a text has a
length at which it is cut, so that nobody fills a disk with a line.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal

SAID = 500  # characters that one client gets to say
LONGEST = 4 * SAID  # of a text around it
# Not allowed in HTML or SVG, or invisible where they turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def printable(value: object) -> str:
    """The value as a text of one line that any file can hold: no control characters, no lone surrogates."""
    return _UNSEEN.sub("\ufffd", str(value).encode("utf-8", "replace").decode("utf-8"))


def one_line(value: object) -> str:
    """The value as a printable line, all of it: with a space for a line's end."""
    return printable(" ".join(str(value).splitlines()))


def said(value: object, most: int = SAID) -> str:
    """The value as one printable line of `most` characters, with single spaces; "…" is the end of one that was cut."""
    text = str(value)
    line = printable(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"


def first_ten(values: Sequence[object]) -> str:
    """The first ten, with commas between, and "…" where there are more."""
    return ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "")


def upwards(value: float, digits: int = 3) -> str:
    """A bound to so many significant digits, never below it: of 7.9924 ``8``."""
    if not math.isfinite(value):
        return f"{value:g}"
    # Of its shortest digits, so that 0.1, which is a little more as a float, stays 0.1.
    kept = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(Decimal(repr(float(value))))
    return f"{float(kept):.{digits}g}"


def no_formula(name: str) -> str:
    """A name for a spreadsheet, which would compute one that begins like a formula: an apostrophe makes it text."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def csv_row(values: Sequence[object]) -> str:
    """A row of CSV. Python's writer quotes no carriage return on its own, which its reader takes for the row's end."""
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if any("\r" in str(value) for value in values) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(values)
    return text.getvalue()
