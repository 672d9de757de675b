"""The table that a run ends with: domains in columns while a terminal has room for them, else in rows."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.runs.summary import summary_of
from fedinit.runs.table import print_summary
from fedinit.scores import judged_on

USUAL = compose_config([])
WHOLE: dict[str, Any] = {"score": "accuracy", "accuracy": 50.0, "accuracy_by_domain": {"a": 1.0}, "final_hash": "f"}
WHOLE |= {"strategy": "fedit", "data": "digits", "model": "vit", "rounds": 1, "clients": 2, "seconds": 1.0}
WHOLE |= {"trainable_parameters": 1, "bytes_up": 1, "bytes_down": 1}


def printed(domains: int, names: Sequence[str] = (), config: Config = USUAL, **more: Any) -> list[str]:
    scores = {name: float(i) for i, name in enumerate(names or [f"domain{i}" for i in range(domains)])}
    figures = {"score": "accuracy", "accuracy": 50.0, "accuracy_by_domain": scores}
    head = {"accuracy": 25.0, "accuracy_by_domain": dict.fromkeys(scores, 99.0)}
    what = {"strategy": "fedit", "data": "digits", "model": "vit", "rounds": 1, "clients": 2, "seconds": 1.0}
    sent = {"trainable_parameters": 1, "bytes_up": 1, "bytes_down": 1, "head_alone": head}
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    with console.capture() as captured:
        print_summary(console, figures | what | sent | more, "outputs/x", config)
    return captured.get().splitlines()


@pytest.mark.parametrize("domains", [1, 8])
def test_few_domains_are_columns(domains):
    row = next(line for line in printed(domains) if "fedit" in line and "│" in line)
    assert row.count("│") == domains + 3


@pytest.mark.parametrize("domains", [9, 40])
def test_many_domains_are_rows(domains):
    lines = printed(domains)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [[f"domain{i}", "99.0", f"{i:.1f}"] for i in range(domains)] + [["average", "25.0", "50.0"]]
    heads = [[cell.strip() for cell in line.strip("┃").split("┃")] for line in lines if line.startswith("┃")]
    assert heads == [["test accuracy, %", "head alone", "fedit"]]


def test_a_head_alone_that_was_scored_on_other_domains_has_its_cells(tmp_path):
    """An evaluation of one of the two runs failed, or all of them did."""
    alone = {"accuracy": 30.0, "accuracy_by_domain": {"domain1": 30.0, "other": 31.0}}
    lines = printed(9, head_alone=alone)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells[:2] == [["domain0", "", "0.0"], ["domain1", "30.0", "1.0"]]
    assert cells[-2:] == [["other", "31.0", ""], ["average", "30.0", "50.0"]]
    whole = {**WHOLE, "head_alone": alone}
    nothing = {**WHOLE, "head_alone": {"accuracy": None, "accuracy_by_domain": {}}}
    for values, is_one in ((whole, True), (nothing, True), ({**WHOLE, "head_alone": {"accuracy": "x"}}, False)):
        (tmp_path / "summary.json").write_text(json.dumps(values))
        assert (summary_of(tmp_path) is not None) == is_one


@pytest.mark.parametrize("more", [0, 9])
def test_a_domain_has_its_name_whatever_it_is(more):
    """It is that of a folder: brackets are no style, a line's end is no line."""
    names = ["[red]", "a [/b]", "[/x]", "c\\", "d\ne", *map(str, range(more))]
    text = "\n".join(printed(0, names))
    assert all(name in text for name in ("[red]", "a [/b]", "[/x]", "c\\", "d\ufffde"))


def test_what_the_score_is_without_and_what_was_spent_is_said():
    spent = {"unit": "example", "epsilon": 7.993, "delta": 1e-5, "epsilon_by_client": {"0": 7.993, "1": 3.0}}
    lines = printed(2, not_scored=["sketch", "photo"], privacy=spent)
    assert "not scored: sketch, photo; the average is without them" in lines
    assert "privacy of examples: ε 8 at δ 1e-05, the most of 2 clients" in lines
    assert "scored" not in "".join(printed(2)) and "privacy" not in "".join(printed(2))  # the control


@pytest.mark.parametrize(
    "damage",
    [{"untrained": "x"}, {"not_scored": "x"}, {"not_scored": [3]}, {"privacy": "no"}, {"privacy": {"unit": "example"}},
     {"privacy": {"unit": "example", "epsilon": "much", "delta": 1e-5, "epsilon_by_client": {}}}],
)  # fmt: skip
def test_a_summary_that_cannot_be_shown_is_none(tmp_path: Path, damage: dict[str, Any]):
    for values, is_one in ((WHOLE, True), (WHOLE | damage, False)):
        (tmp_path / "summary.json").write_text(json.dumps(values))
        assert (summary_of(tmp_path) is not None) == is_one


def test_a_last_round_that_no_client_could_evaluate_is_said():
    lost = {"accuracy": None, "accuracy_by_domain": {}, "head_alone": None}
    told = "not scored: the last round, which no client could evaluate; fedinit evaluate FOLDER does"
    assert told in printed(2, **lost, left_out={"evaluation_failed": {"0": 1}})
    assert told not in printed(2, **lost) and told not in printed(2, left_out={"evaluation_failed": {"0": 1}})


def test_figures_of_validation_images_are_called_so():
    for words, kind in (([], "test"), (["data.validation_fraction=0.2"], "validation")):
        heads = "".join(printed(9, config=compose_config(words)))
        assert f"{kind} accuracy, %" in heads and ("test accuracy" in heads) == (kind == "test")
    assert judged_on({"evaluate_on": "val"}) == "validation" and judged_on({"evaluate_on": "auto"}) == "test"


def test_a_share_of_the_clients_that_evaluates_is_said():
    told = "scored by a share of 0.5 of the clients, evaluation.participation"
    share = compose_config(["evaluation=clients", "evaluation.participation=0.5"])
    assert told in printed(2, config=share) and told not in printed(2)
    assert told not in printed(2, config=share, accuracy=None, accuracy_by_domain={}, head_alone=None)
