"""The table that papers print: methods by domains, mean and standard deviation over seeds, the best marked, and which
differences from the best are beyond noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedinit.report.markup import Cut, whole
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun, number_of
from fedinit.report.runs.significance import LEVEL, Difference, Sample, holm, paired
from fedinit.said import first_ten
from fedinit.scores import AVERAGE as ITS_NAME
from fedinit.scores import SCORES, average_among, judged_on


class Overall(str):
    """The name of a column that no domain has, whatever it is called: it is like itself alone."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


AVERAGE = Overall(ITS_NAME)
SMALLER_IS_BETTER = ("recovery_error",)


@dataclass(frozen=True)
class Row:
    """A method's line.

    figures: {column: sample}, all of one round. reference: whether it is the head alone, which is never the best.
    early: {seed: (last evaluated round, rounds of the run)} of the runs without figures of their end, which are in no
    mean. judged: False where those are all there are: then the figures are of those that came furthest.
    """

    label: str
    figures: Mapping[str, Sample]
    reference: bool = False
    early: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    judged: bool = True

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that its average is over."""
        return self.figures[AVERAGE].seeds

    @property
    def not_scored(self) -> dict[int, tuple[str, ...]]:
        """{seed: the domains that its average is without, since they have no figure}."""
        return {
            seed: tuple(name for name, sample in self.figures.items() if name != AVERAGE and seed not in sample.seeds)
            for seed in self.seeds
        }

    def common(self, other: Row) -> list[int]:
        """The seeds whose averages are over the same domains in both."""
        return sorted(seed for seed, _ in self.not_scored.items() & other.not_scored.items())


@dataclass(frozen=True)
class Results:
    """score: what it is in, a key of SCORES. columns: the domains, then `AVERAGE`. rows: references first.
    against: {label: the difference of its average from the best row's}; p in it is corrected (Holm).
    absent: (label of its method, run) of those without an evaluated round, which are in no row. remarked: of those in a
    row, with what there is to remark. usual: of the methods. judged_on: the images that the figures are of, "test" or
    "validation"."""

    score: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    against: Mapping[str, Difference]
    absent: tuple[tuple[str, RecordedRun], ...] = ()
    remarked: tuple[tuple[str, RecordedRun, str], ...] = ()
    usual: str = ""
    judged_on: str = "test"

    @property
    def cut(self) -> dict[str, str]:
        """{label: all of it} of the methods whose label is not all."""
        labels = [*(row.label for row in self.rows if not row.reference), *(label for label, _ in self.absent)]
        return {str(label): label.whole for label in labels if isinstance(label, Cut)}

    def title(self, column: str) -> str:
        """What a column is called, no two the same."""
        return average_among(self.columns[:-1]) if column is AVERAGE else column

    @property
    def even(self) -> bool:
        """Whether all rows are over the same seeds, and by seed over the same domains, so that one caption names
        them."""
        return len({tuple(row.not_scored.items()) for row in self.rows if row.seeds}) < 2

    @property
    def shared(self) -> tuple[int, ...]:
        """The seeds that all methods that are done have over the same domains, which the best one is found over."""
        rows = self._judged(AVERAGE)
        return tuple(sorted(set.intersection(*(set(row.common(rows[0])) for row in rows)))) if rows else ()

    @property
    def best(self) -> Row | None:
        """The method with the best average over the shared seeds; None where there is no other to be better than, or
        no seed that all have."""
        rows, seeds = self._judged(AVERAGE), self.shared
        if len(rows) < 2 or not seeds:
            return None
        return max(rows, key=lambda row: self.sign * row.figures[AVERAGE].over(seeds).mean)

    def is_best(self, row: Row, column: str) -> bool:
        """Whether a figure is the best of its column as it is shown, among several methods over the same seeds, an
        average by seed over the same domains too; ties all are, but what is beyond noise from the best is none."""
        rows = self._judged(column)
        over = {tuple(each.not_scored.items()) if column == AVERAGE else each.figures[column].seeds for each in rows}
        if len(rows) < 2 or row not in rows or len(over) > 1 or (column is AVERAGE and self.beyond_noise(row)):
            return False
        leading = max(rows, key=lambda each: self.sign * each.figures[column].mean)
        return self.show(row.figures[column].mean) == self.show(leading.figures[column].mean)

    @property
    def also_best(self) -> list[Row]:
        """The methods whose average over the shared seeds is shown as the best one's is, this one apart."""
        best, seeds = self.best, self.shared
        if best is None:
            return []
        shown = self.show(best.figures[AVERAGE].over(seeds).mean)
        rows = (row for row in self._judged(AVERAGE) if row is not best and not self.beyond_noise(row))
        return [row for row in rows if self.show(row.figures[AVERAGE].over(seeds).mean) == shown]

    def show(self, value: float) -> str:
        """A figure as tables have it."""
        return "" if value != value else SCORES[self.score].show(value)

    def signed(self, value: float) -> str:
        """A difference as tables have it; one that is shown as zero has no sign."""
        shown = self.show(abs(value))
        return shown if not shown or not float(shown) else ("−" if value < 0 else "+") + shown

    def shown(self, sample: Sample) -> str:
        """``86.4 ± 0.5``; without the deviation for one seed."""
        std = sample.std
        return self.show(sample.mean) + ("" if std is None else f" ± {self.show(std)}")

    @property
    def sign(self) -> int:
        """1 where more is better, −1 where less is."""
        return -1 if self.score in SMALLER_IS_BETTER else 1

    def beyond_noise(self, row: Row) -> bool | None:
        """Whether the row's average differs from the best one's at the 5 % level; None where too few seeds say."""
        p = self.against[row.label].p if row.label in self.against else None
        return None if p is None else p < LEVEL

    def _judged(self, column: str) -> list[Row]:
        """The methods with a figure that are done, of which one may be the best."""
        rows = (row for row in self.rows if not row.reference and row.judged)
        return [row for row in rows if len(row.figures[column].values)]


def results(methods: Sequence[Method]) -> Results:
    """The table of these methods, each by its last evaluated round, a run that is not done as far as it came; one that
    has no such round is in no row."""
    absent = tuple((method.label, run) for method in methods for run in method.runs if not run.evaluated)
    score = methods[0].first.score
    domains = next((m.first.domains for m in methods if m.first.domains), ())
    columns = (*domains, AVERAGE)
    seen = [method for method in methods if method.evaluated]
    rows = [_row(method, score, columns) for method in seen]
    said = [(m.label, run, text) for m in seen for run in m.runs for text in (run.remark, _disagreement(run, m.others))]
    remarked = tuple(each for each in said if each[1].evaluated and each[2])
    lines, images = (*_references(seen, score, columns), *rows), judged_on(methods[0].first.config["data"])
    table = Results(score, columns, lines, {}, absent, remarked, methods[0].usual, images)
    best = table.best
    if best is None:
        return table
    others = [row for row in rows if row is not best and row.judged]
    raw = [paired(row.figures[AVERAGE].over(row.common(best)), best.figures[AVERAGE]) for row in others]
    corrected = holm([difference.p for difference in raw])
    against = {
        row.label: Difference(d.mean, d.seeds, d.half, p) for row, d, p in zip(others, raw, corrected, strict=True)
    }
    return dataclasses.replace(table, against=against)


def _disagreement(run: RecordedRun, others: Sequence[RecordedRun]) -> str:
    """Which others of its seed came to another result, as half a sentence; empty where none did. Of one configuration
    there is one, on one kind of machine."""
    of_seed = [other for other in others if other.seed == run.seed and run.summary is not None]
    odd = [str(other.folder) for other in of_seed if _hash(other) != _hash(run)]
    return (
        f"another run of this configuration and seed ended otherwise and is left out, {first_ten(odd)}" if odd else ""
    )


def _hash(run: RecordedRun) -> object:
    return None if run.summary is None else run.summary["final_hash"]


def last_scores(run: RecordedRun) -> tuple[int, dict[str, float]]:
    """(the last evaluated round, {column: figure}) of a run; (0, {}) of one that was not evaluated yet."""
    table, score = run.metrics, run.score
    average, rounds = table.numbers(score), table.numbers("round")
    scored = [i for i in range(len(table)) if average[i] == average[i] and rounds[i] == rounds[i]]
    if not scored:
        return 0, {}
    last = scored[-1]
    figures = {domain: float(table.numbers(f"{score}_{domain}")[last]) for domain in run.domains}
    return int(rounds[last]), {**figures, AVERAGE: float(average[last])}


def _row(method: Method, score: str, columns: Sequence[str]) -> Row:
    scores, early = compared(method)
    return Row(method.label, _samples(scores, columns), False, early, not early.keys() & scores.keys())


def compared(method: Method) -> tuple[dict[int, dict[str, float]], dict[int, tuple[int, int]]]:
    """({seed: {column: figure}} of a method's runs at their end, or where none is there of those that came furthest;
    {seed: (last evaluated round, rounds)} of those that are not there). So that no mean is over figures of several
    rounds."""
    runs = [run for run in method.runs if run.evaluated]
    scores = {run.seed: last_scores(run) for run in runs}
    early = {
        run.seed: (scores[run.seed][0], run.rounds)
        for run in runs
        if run.summary is None or scores[run.seed][0] < run.rounds
    }
    furthest = max((at for at, _ in early.values()), default=0)
    shown = scores.keys() - early.keys() or {seed for seed, (at, _) in early.items() if at == furthest}
    return {run.seed: scores[run.seed][1] for run in runs if run.seed in shown}, early


def _references(methods: Sequence[Method], score: str, columns: Sequence[str]) -> list[Row]:
    """The head alone beside each method, once where it is the same."""
    rows: list[Row] = []
    for method in methods:
        found = {run.seed: figures for run in method.runs if run.evaluated and (figures := _head_alone(run, score))}
        samples = _samples(found, columns)
        if found and all(row.figures != samples for row in rows):
            label = f"head alone ({method.label})"
            full = f"head alone ({whole(method.label)})"
            rows.append(Row(label if label == full else Cut(label, full), samples, True))
    if len(rows) == 1:
        rows = [Row("head alone", rows[0].figures, True)]
    return rows


def _head_alone(run: RecordedRun, score: str) -> dict[str, float]:
    values: Any = run.head_alone
    try:
        if values[score] is None:
            return {}
        by_domain = {str(k): number_of(v) for k, v in values[f"{score}_by_domain"].items()}
        return by_domain | {AVERAGE: number_of(values[score])}
    except (KeyError, TypeError, AttributeError):
        return {}


def _samples(scores: Mapping[int, Mapping[str, float]], columns: Sequence[str]) -> dict[str, Sample]:
    return {
        column: Sample({seed: figures[column] for seed, figures in scores.items() if column in figures})
        for column in columns
    }
