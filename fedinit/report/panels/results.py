"""The headline table, and what of it is beyond noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedinit.report.markup import Cell, Cut, Markup, behind, joined, table, tag
from fedinit.report.panels.panel import Panel
from fedinit.report.runs.damage import damage
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun
from fedinit.report.runs.results import AVERAGE, Results, Row, results
from fedinit.report.runs.significance import p_said, paired, sampling_error
from fedinit.runs import code
from fedinit.runs.ended import standing
from fedinit.said import first_ten
from fedinit.scores import SCORES, without

FAILED = "evaluation_failed"  # in `left_out` of a summary


def panel(methods: Sequence[Method]) -> Panel:
    found = results(methods)
    seeds = sorted({seed for row in found.rows for sample in row.figures.values() for seed in sample.by_seed})
    title = SCORES[found.score].title
    over = f"mean ± standard deviation over {over_seeds(found)}" if len(seeds) > 1 else "one seed"
    lead = f"{found.judged_on.capitalize()} {title}, by domain and on average over domains; {over}."
    body = [_table(found, lead)] if found.rows else []
    if found.cut:
        names = [Markup(tag("dt", label) + tag("dd", full)) for label, full in found.cut.items()]
        body.append(behind("the methods' names in full", tag("dl", *names, class_="facts")))
    body += [
        tag("p", sentence, class_="note") for sentence in [*judged(found), *heads_ahead(found), *_alone(found, methods)]
    ]
    body += [tag("p", sentence, class_="note") for sentence in [*unscored(found), *_other_rounds(methods)]]
    early = unfinished(found)
    doubts = [
        *early,
        *(["Figures by round have these as far as they came."] if early else []),
        *remarks(found),
        *other_code(methods),
        *absence(found),
        *damage(run for method in methods for run in method.runs),
    ]
    body += [tag("p", sentence, class_="warning") for sentence in doubts]
    return Panel("results", "Results", lead, joined(body))


def unfinished(found: Results) -> list[str]:
    """Lines of the runs without figures of their end, or none."""
    lines = []
    for at_end, what in ((True, "In no mean, as it is not at its end"), (False, "As far as it came, and not judged")):
        told = [f"{row.label}, {rounds_reached(row)}" for row in found.rows if row.early and row.judged is at_end]
        lines += [f"{what}: {'; '.join(told)}."] if told else []
    return lines


def rounds_reached(row: Row) -> str:
    """``seed 0: round 1 of 3, seed 1: round 2 of 3`` of a row's runs without figures of their end; empty where all have
    them."""
    return ", ".join(f"seed {seed}: round {at} of {rounds}" for seed, (at, rounds) in row.early.items())


def unscored(found: Results) -> list[str]:
    """Which domains the averages of the table are without, a sentence for all methods and seeds that are without the
    same ones."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        for seeds, missing in seeds_not_scored(row):
            alike.setdefault((seeds, without(missing)), []).append(row.label)
    return [f"Not scored in {' and '.join(labels)}, {seeds}: {told}." for (seeds, told), labels in alike.items()]


def seeds_not_scored(row: Row) -> list[tuple[str, tuple[str, ...]]]:
    """(``seeds 1, 2``, the domains that their averages are without) of a row, for those that are without any."""
    by_missing: dict[tuple[str, ...], list[int]] = {}
    for seed, missing in row.not_scored.items():
        by_missing.setdefault(missing, []).append(seed)
    return [(seeds_said(seeds), missing) for missing, seeds in by_missing.items() if missing]


def _other_rounds(methods: Sequence[Method]) -> list[str]:
    """Which rounds of a run have averages of other domains than its others, in sentences."""
    runs = [(method.label, run, _partly_scored(run)) for method in methods for run in method.runs]
    return [
        f"Averages of other domains than elsewhere in {label}, seed {run.seed}: of round {first_ten(partly)}."
        for label, run, partly in runs
        if partly
    ]


def _partly_scored(run: RecordedRun) -> list[int]:
    """The evaluated rounds in which a domain that is scored in another one is not."""
    domains = np.array([run.metrics.numbers(f"{run.score}_{domain}") for domain in run.domains])
    if not len(domains):
        return []
    there = np.isfinite(domains)
    kept = there[there.any(axis=1)]
    partly = kept.any(axis=0) & ~kept.all(axis=0)
    return [int(round) for round in run.metrics.numbers("round")[partly] if np.isfinite(round)]


def judged(found: Results) -> list[str]:
    """What can be said of the best method against the others, in sentences."""
    best = found.best
    if best is None:
        rivals = [row for row in found.rows if not row.reference and row.judged]
        apart = "No method is the best one: there is no seed that all have a run of, over the same domains."
        return [] if found.even or len(rivals) < 2 else [apart]
    groups: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for label, difference in found.against.items():
        row = next(row for row in found.rows if row.label == label)
        said = label if difference.mean != difference.mean else f"{label} ({found.signed(difference.mean)}"
        if difference.half == 0:  # as where what sets them apart is a key that nothing reads
            said = f"{label} (the same as the best in every seed"
        elif difference.half is not None and difference.p is not None:
            said += f" ± {found.show(difference.half)}, {p_said(difference.p)}"
        groups[found.beyond_noise(row)].append(said + (")" if "(" in said[len(label) :] else ""))
    first = " and ".join([best.label, *(row.label for row in found.also_best)])
    average, over = best.figures[AVERAGE], ""
    if not found.even:
        average = average.over(found.shared)
        over = f" over {seeds_said(found.shared)}, which all have over the same domains"
    several = len({best.not_scored[seed] for seed in found.shared}) > 1
    differing = ", which is of other domains from seed to seed" if several else ""
    has = "have" if found.also_best else "has"
    sentences = [f"{first} {has} the best average{over}, {found.shown(average)}{differing}."]
    test = "paired t-test by seed on the average, Holm-corrected, 5 % level"
    if groups[True]:
        sentences.append(f"Beyond noise ({test}), against the best: {'; '.join(groups[True])}.")
    if groups[False]:
        sentences.append(f"Not beyond noise ({test}), against the best: {'; '.join(groups[False])}.")
    if groups[None]:
        sentences.append(
            f"Nothing is said of noise for {'; '.join(groups[None])}: that takes two seeds or more that it and the "
            "best both have, seed=0,1,2, and whose differences are not all the same."
        )
    return sentences


def heads_ahead(found: Results) -> list[str]:
    """A line of every head that, trained alone, is better than the best method (or the only one), over the seeds that
    both have of the same domains; none where the figures shown are the same."""
    methods = [row for row in found.rows if not row.reference]
    leading = found.best or (methods[0] if len(methods) == 1 else None)
    if leading is None or not leading.judged:
        return []
    lines = []
    for row in found.rows:
        common = row.common(leading)
        if not row.reference or not common:
            continue
        alone, trained = row.figures[AVERAGE].over(common), leading.figures[AVERAGE].over(common)
        if found.sign * (alone.mean - trained.mean) <= 0 or found.show(alone.mean) == found.show(trained.mean):
            continue
        apart = paired(alone, trained)
        half = "" if apart.half is None else f" ± {found.show(apart.half)}"
        over = "" if found.even else f" over {seeds_said(common)}"
        lines.append(
            f"{row.label} is better than {'the best method, ' * (found.best is not None)}{leading.label}{over}: "
            f"{found.show(alone.mean)} against {found.show(trained.mean)} ({found.signed(apart.mean)}{half})."
        )
    return lines


def in_full(found: Results) -> list[str]:
    """A line of what labels do not say, and one of every label that was cut."""
    return [*unsaid(found.usual), *(f"{label} is {full}" for label, full in found.cut.items())]


def unsaid(usual: str) -> list[str]:
    """A line of what holds where a label says nothing else, if there is anything."""
    return [f"Where a method's name says nothing else: {usual}"] if usual else []


def remarks(found: Results, whole_path: bool = False) -> list[str]:
    """A line of every run in a row whose figures are not from where they should be. whole_path: of its folder."""
    return [
        f"{label} seed {run.seed} in {run.folder if whole_path else run.folder.name}: {text}."
        for label, run, text in found.remarked
    ]


def other_code(methods: Sequence[Method]) -> list[str]:
    """A line of the runs that were begun by other code than most; none where all were by the same, or do not say."""
    by_code: dict[str, list[str]] = {}
    for method in methods:
        for run in method.runs:
            if run.code:
                text = repr(sorted(map(str, run.code.items())))
                by_code.setdefault(text, []).append(f"{method.label} seed {run.seed}")
    few = sorted(by_code.values(), key=len)[:-1]
    told = "; ".join(first_ten(runs) for runs in few)
    return [f"Begun by other code than the other runs (made_of.json): {told}."] if few else []


def old_code(methods: Sequence[Method]) -> list[str]:
    """A line of the runs that were begun by other code than is here now, for who is where they are; none where all were
    by this, or do not say."""
    old = [f"{method.label} seed {run.seed}" for method in methods for run in method.runs if code.other_code(run.code)]
    every = len(old) == sum(len(method.runs) for method in methods)
    return [f"Begun by other code than is here now: {'all runs' if every else first_ten(old)}."] if old else []


def absence(found: Results, whole_path: bool = False) -> list[str]:
    """A line of the runs that are in no row, with how they stand; none where all are. whole_path: of their folders, for
    who is where they are."""
    by_state: dict[str, list[str]] = {}
    for label, run in found.absent:
        state = standing(run.folder) if run.summary is None else "done, without a figure in its metrics.csv"
        if run.summary is not None and not run.judged:
            state = "done; evaluation=none scores no round, evaluation=server does, and so does fedinit evaluate"
        state = f"done; {run.remark}" if run.summary is not None and run.remark else state
        where = run.folder if whole_path else run.folder.name
        by_state.setdefault(state, []).append(f"{label} seed {run.seed} in {where}")
    if not by_state:
        return []
    told = "; ".join(f"{', '.join(runs)}: {state}" for state, runs in by_state.items())
    return [f"In no row, since no round was evaluated: {told}."]


def seeds_said(seeds: Sequence[int]) -> str:
    """``seed 0``, ``seeds 0, 1, 2``."""
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def over_seeds(found: Results) -> str:
    """Over which seeds the figures are, for a caption."""
    if found.even:
        return seeds_said(next((row.seeds for row in found.rows if row.seeds), ()))
    if any(found.is_best(row, AVERAGE) for row in found.rows):
        return "the seeds that each row names"
    return "the seeds that each row names, and no average is marked as the best, since these or their domains differ"


def _alone(found: Results, methods: Sequence[Method]) -> list[str]:
    """Of a single run: how far it is from the head alone, against what drawing the test images makes of a figure."""
    if len(methods) != 1 or len(methods[0].runs) != 1 or len(found.rows) != 2 or found.score != "accuracy":
        return []
    reference, row = found.rows
    if row.early or not (seeds := row.common(reference)):
        return []
    domains = [name for name in found.columns[:-1] if name not in row.not_scored[seeds[0]]]
    gap = row.figures[AVERAGE].mean - reference.figures[AVERAGE].mean
    run = methods[0].first
    tested = (run.partition or {}).get("test_by_domain") if _whole(run) else None
    said = f"{row.label} is {found.signed(gap)} points from the head alone. "
    if not isinstance(tested, dict) or not all(map(tested.get, domains)):
        return [f"{said}One seed says nothing of noise; seed=0,1,2 does."]
    images = [tested[domain] for domain in domains]
    errors = [sampling_error([r.figures[d].mean for d in domains], images) for r in (reference, row)]
    half = 1.96 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    verdict = "beyond" if abs(gap) > half else "within"
    return [
        f"{said}That is {verdict} ±{half:.1f}, what drawing {sum(images):,} {found.judged_on} images moves such a "
        "difference by (95 %, taking the two as independent); what another seed moves it by takes more seeds, "
        "seed=0,1,2."
    ]


def _whole(run: RecordedRun) -> bool:
    """Whether the figures of a run that is done, and of its head alone, are of all its test images: which a share of
    the clients has is not recorded, nor which a client had whose evaluation failed."""
    settings = run.config.get("evaluation")
    share = settings.get("participation", 1) if isinstance(settings, Mapping) else 1
    return share == 1 and all(FAILED not in (of.get("left_out") or {}) for of in (run.summary or {}, run.head_alone))


def _table(found: Results, caption: str) -> Markup:
    rows = []
    for row in found.rows:
        cells: list[Cell] = [Cell(_named(row), None, "reference" if row.reference else "method")]
        if not found.even:
            cells.append(Cell(", ".join(map(str, row.seeds)), None, "number"))
        cells += [_cell(found, row, column) for column in found.columns]
        rows.append(cells)
    heads = ["method", *([] if found.even else ["seeds"]), *map(found.title, found.columns)]
    return table(heads, rows, caption=caption, kind="headline")


def _named(row: Row) -> Markup:
    """A row's label with its options set back."""
    name, space, options = row.label.partition(" (" if row.reference else " ")
    rest = [" ", tag("small", space[1:] + options)] if options else []
    return tag("span", name, *rest, title=row.label.whole if isinstance(row.label, Cut) else None)


def _cell(found: Results, row: Row, column: str) -> Cell:
    sample = row.figures[column]
    best = found.is_best(row, column)
    kinds = ["number", *(["best"] if best else []), *(["average"] if column == AVERAGE else [])]
    shown: object = found.shown(sample) or "–"
    if best:
        shown = tag("strong", shown)
    elif column == AVERAGE and found.beyond_noise(row) is False:
        shown = Markup(f"{shown}{tag('sup', '≈', title='not beyond noise against the best')}")
    return Cell(shown, None if sample.mean != sample.mean else sample.mean, " ".join(kinds))
