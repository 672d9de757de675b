"""The table of results for a spreadsheet, a Markdown page and a paper."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedinit.report.markup import printable, whole
from fedinit.report.panels.results import (
    absence,
    heads_ahead,
    in_full,
    over_seeds,
    remarks,
    rounds_reached,
    seeds_not_scored,
    unfinished,
    unscored,
)
from fedinit.report.runs.results import AVERAGE, Results, Row
from fedinit.report.runs.significance import p_said
from fedinit.said import csv_row, no_formula
from fedinit.scores import SCORES

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # OT1 has other glyphs there
_LATEX |= {"…": r"\textellipsis{}"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")
TEST = "paired t-test by seed on the average, against the best, Holm-corrected"
CSV_COLUMNS = ("method", "column", "mean", "std", "seeds", "best")
CSV_COLUMNS += ("against_best", "half_interval_95", "p_holm", "beyond_noise", "not_scored", "early", "usual")


def csv_text(found: Results, shown: Callable[[str], str] = str) -> str:
    """A row a method and column: mean, standard deviation, seeds, and of the average the difference from the best
    and the domains that it is without; and what most methods have, which no name says. shown: what a name becomes; for
    a terminal `printable`."""
    lines = [csv_row(CSV_COLUMNS)]
    for row in found.rows:
        for column in found.columns:
            sample = row.figures[column]
            difference = found.against.get(row.label) if column == AVERAGE and not row.reference else None
            figures = ["", "", "", ""]
            if difference is not None:
                beyond = found.beyond_noise(row)
                figures = [_plain(difference.mean), _plain(difference.half), _plain(difference.p)]
                figures.append("" if beyond is None else str(beyond).lower())
            known = [_plain(sample.mean), _plain(sample.std), " ".join(map(str, sample.seeds))]
            cells = [no_formula(shown(whole(row.label))), no_formula(shown(found.title(column))), *known]
            missing = seeds_not_scored(row) if column == AVERAGE else []
            unscored_in = shown("; ".join(f"{seeds}: {', '.join(names)}" for seeds, names in missing))
            lines.append(
                csv_row(
                    [
                        *cells,
                        str(found.is_best(row, column)).lower(),
                        *figures,
                        unscored_in,
                        shown(rounds_reached(row)),
                        no_formula(shown(found.usual)),
                    ]
                )
            )
    return "".join(lines)


def markdown(found: Results) -> str:
    """A table of GitHub's Markdown."""
    seeds = [] if found.even else ["seeds"]
    lines = [["method", *seeds, *map(found.title, found.columns), "against the best", "p"]]
    for row in found.rows:
        cells = [_MARKDOWN.sub(r"\\\1", printable(row.label)), *_seeds(found, row)]
        for column in found.columns:
            shown = found.shown(row.figures[column])
            cells.append(f"**{shown}**" if found.is_best(row, column) else shown)
        lines.append([*cells, *_against(found, row, "±")])
    lines[0] = [_MARKDOWN.sub(r"\\\1", printable(name)) for name in lines[0]]
    ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
    notes = [_MARKDOWN.sub(r"\\\1", printable(line)) for line in [*_notes(found), *unscored(found)]]
    return "\n\n".join([body, _caption(found), *notes]) + "\n"


def latex(found: Results) -> str:
    """A tabular with booktabs' rules, as papers set it; the best of each column in bold."""
    said = [_caption(found), *map(printable, _notes(found))]
    lines = [r"% needs \usepackage{booktabs}", *(f"% {line}" for line in said)]
    seeds = [] if found.even else ["seeds"]
    lines += [r"\begin{tabular}{l" + "l" * len(seeds) + "r" * (len(found.columns) + 1) + "}", r"\toprule"]
    heads = ["method", *seeds, *map(_tex, map(found.title, found.columns)), "against best"]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    for i, row in enumerate(found.rows):
        if i and found.rows[i - 1].reference and not row.reference:
            lines.append(r"\midrule")
        cells = [_tex(row.label), *_seeds(found, row)]
        for column in found.columns:
            shown = found.shown(row.figures[column]).replace("±", r"$\pm$")
            cells.append(rf"\textbf{{{shown}}}" if found.is_best(row, column) else shown)
        said, p = _against(found, row, r"$\pm$")
        star = "$^{*}$" if found.beyond_noise(row) and not row.reference else ""
        lines.append(" & ".join([*cells, (said.replace("−", "$-$") + star) if p or said else ""]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"% *: beyond noise at the 5 % level"]
    lines += [rf"\par{{\footnotesize {_tex(sentence)}\par}}" for sentence in unscored(found)]
    return "\n".join(lines) + "\n"


def _against(found: Results, row: Row, plus_minus: str) -> tuple[str, str]:
    """("−1.1 ± 0.3", "0.012") of a row's average against the best one's; empty where there is nothing to say."""
    difference = None if row.reference else found.against.get(row.label)
    if difference is None or difference.mean != difference.mean:
        return "", ""
    half = "" if difference.half is None else f" {plus_minus} {found.show(difference.half)}"
    p = "" if difference.p is None else p_said(difference.p).removeprefix("p ").removeprefix("= ")
    return f"{found.signed(difference.mean)}{half}", p


def _seeds(found: Results, row: Row) -> list[str]:
    """The cell of a row's seeds, where rows differ in them."""
    return [] if found.even else [", ".join(map(str, row.seeds))]


def _caption(found: Results) -> str:
    return (
        f"{found.judged_on.capitalize()} {SCORES[found.score].title}, mean ± standard deviation over "
        f"{over_seeds(found)}. Against the best: mean difference over the seeds in common ± half its 95 % interval; "
        f"p: {TEST}."
    )


def _notes(found: Results) -> list[str]:
    """What else is to be known of the table, a sentence each."""
    return [*in_full(found), *heads_ahead(found), *unfinished(found), *remarks(found), *absence(found)]


def _tex(value: object) -> str:
    return "".join(_LATEX.get(c, c) for c in printable(value))


def _plain(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.10g}"
