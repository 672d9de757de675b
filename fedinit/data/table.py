"""Tables that a person writes: CSV files with a line of column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from fedinit.errors import InputError


def read_table(where: str, content: bytes, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(the line that it ends on, {column: value}) of every row. The delimiter is the one of ",;tab" that the first line
    has most of; the columns are in small letters, and blanks about names and values are left out.

    where: what errors begin with. needed: columns that must be there.

    Raises InputError for what is no CSV file in UTF-8, a needed column that is absent, one that is there twice, and a
    row that is not whole.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: cannot be read ({error}); expected a CSV file in UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    columns: list[str] = []
    end = 0  # the last line that was understood
    try:
        for row in reader:
            end, values = reader.line_num, [value.strip() for value in row]
            if not columns:
                columns = [value.lower() for value in values]
                _refuse_columns(where, columns, needed)
            elif any(values[len(columns) :]):
                raise InputError(
                    f"{where}: line {end} has {len(values)} values for {len(columns)} columns; put what has a "
                    "delimiter in it between quotes"
                )
            elif values:
                yield end, dict.fromkeys(columns, "") | dict(zip(columns, values, strict=False))
    except csv.Error as error:
        raise InputError(f"{where}: the row that begins on line {end + 1} cannot be read ({error}); mend it") from error
    if not columns:
        _refuse_columns(where, columns, needed)


def _refuse_columns(where: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    if not set(needed) <= set(columns):
        there = f"has the columns {', '.join(columns)}" if columns else "is empty"
        raise InputError(f"{where}: {there}; expected {' and '.join(needed)} among them")
    for column in columns:
        if column and columns.count(column) > 1:
            raise InputError(f"{where}: has the column {column} {columns.count(column)} times; expected it once")
