"""The report's section on privacy and bad clients: what a run wrote of ε, weights, attackers and refusals."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

import fedinit
from fedinit.report.page import render
from fedinit.report.panels import trust
from fedinit.report.panels.domains import _row
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import read
from tests.support.recorded_runs import config, unscore, write_run
from tests.support.small import WORDS

SHORT = [*WORDS, "rounds=2", "client.max_steps=1", "evaluation.head_alone=false", "logger=none"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an attacker and a rule, one private for clients, one for images."""
    place = tmp_path_factory.mktemp("trust")
    words = {
        "attacked": ["strategy=fedit", "attack=sign_flip", "attack.clients=[1]", "robust=bounded"],
        "clients": ["strategy=fedit", "privacy=clients", "privacy.epsilon=null", "privacy.noise=2"],
        "images": ["strategy=fedit", "privacy=examples", "privacy.noise=2"],
    }
    return {
        name: read(fedinit.run(*SHORT, *more, "evaluation=server", f"output_dir={place / name}").folder)
        for name, more in words.items()
    }


def test_a_run_without_any_of_it_has_no_such_section(tmp_path):
    run = read(write_run(tmp_path / "run", config(rounds=3), domains=("plain", "noise"), classes=("a", "b")))
    assert trust.panel(methods([run])) is None
    assert "Privacy and bad clients" not in render([run])


def test_who_attacked_and_what_everybody_counted_for(runs):
    run = runs["attacked"]
    assert trust.attackers(run) == {1}
    (event,) = [event for event in run.ledger if event["kind"] == "attackers"]
    assert event == {"kind": "attackers", "attack": "sign_flip", "clients": [1]}
    shown = trust.panel(methods([run]))
    assert shown is not None and "attack=sign_flip by client 1, robust=bounded" in shown.lead
    with open(run.folder / "clients.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    weights = np.array([[float(row["weight"]) for row in rows if row["client"] == str(c)] for c in range(3)])
    values, clients, rounds = trust._weights(run)
    assert clients == [0, 1, 2] and rounds == [1, 2] and np.array_equal(values, weights)
    share = 100 * weights[1].sum() / weights.sum()
    assert f"Attackers had {share:.1f} % of all weight" in shown.body and "1 attacks" in shown.body
    assert "Privacy and bad clients" in render([run])


def test_refusals_are_counted_by_client(runs, tmp_path):
    run = runs["attacked"]
    lines = [{"kind": "refused", "round": r, "client": 2, "code": "factor_norm", "detail": "x"} for r in (1, 2)]
    run.__dict__.pop("ledger", None)
    with open(run.folder / "ledger.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*lines, {"kind": "refused", "client": [1]}])
    shown = trust.panel(methods([read(run.folder)]))
    assert shown is not None
    row = shown.body[shown.body.rindex(">2</th>") :]
    assert row[: row.index("</tr>")].rstrip().endswith('data-sort="2">2</td>')


@pytest.mark.parametrize(
    ("name", "unit", "compares"),
    [
        ("clients", "a client&#x27;s images", "with and without one client"),
        ("images", "an image", "with and without one image"),
    ],
)
def test_privacy_that_was_spent_is_that_of_the_summary(runs, name, unit, compares):
    run = runs[name]
    epsilon = trust._epsilon(run)
    assert len(epsilon) == len(run.metrics) and epsilon[-1] == pytest.approx(run.summary["privacy"]["epsilon"])
    assert np.all(np.diff(epsilon[np.isfinite(epsilon)]) > 0)
    shown = trust.panel(methods([run]))
    assert shown is not None and unit in shown.body and compares in shown.body
    assert f"{epsilon[-1]:.4g}" in shown.body and "Privacy spent by round" in shown.body
    assert "whoever has the weights finds by trying" in shown.body
    run.summary["privacy"]["noise_drawn_by"] = "secret"  # the control
    secret = trust.panel(methods([run]))
    run.summary["privacy"]["noise_drawn_by"] = "seed"
    assert secret is not None and "finds by trying" not in secret.body


@pytest.mark.parametrize("privacy", [(), ("privacy=examples", "privacy.noise=2")], ids=["none", "examples"])
def test_a_private_runs_folder_has_no_pictures_of_its_clients(privacy, tmp_path):
    """They were in its report, beside an ε."""
    words = ("strategy=fedit", "rounds=1", "report=full", f"output_dir={tmp_path}", *privacy)
    folder = fedinit.run(*SHORT, *words).folder
    assert (folder / "record" / "samples").exists() == (not privacy)
    assert ("data:image/jpeg" in (folder / "report.html").read_text(encoding="utf-8")) == (not privacy)


def test_several_methods_are_told_apart(runs):
    shown = trust.panel(methods([runs["clients"], runs["images"]]))
    assert shown is not None and shown.body.count("<tr") > 4


@pytest.mark.parametrize("told", [None, "text", [1, "x", None], {"clients": 3}])
def test_a_damaged_ledger_names_nobody_else(runs, tmp_path, told):
    run = runs["attacked"]
    run.__dict__["ledger"] = [{"kind": "attackers", "clients": told}]
    assert trust.attackers(run) == ({1} if told == [1, "x", None] else set())
    assert trust.panel(methods([run])) is not None


def test_what_an_image_has_spent_is_told_for_every_client_and_is_no_fault(runs):
    shown = trust.panel(methods([runs["images"]]))
    spent = runs["images"].summary["privacy"]["epsilon_by_client"]
    assert len(spent) == 3 and shown is not None and "ε of each client that trained" in shown.body
    for client, epsilon in spent.items():
        assert f">{client}<" in shown.body and f"{epsilon:.4g}" in shown.body
    of_clients = trust.panel(methods([runs["clients"]]))
    assert of_clients is not None and "ε of each client" not in of_clients.body
    for name in ("clients", "attacked"):
        assert {event["kind"] for event in runs[name].ledger} <= {"privacy", "attackers", "engine"}
        assert "Nothing was refused, missing or damaged." in render([runs[name]])


def test_clients_without_an_update_are_told(runs, tmp_path):
    folder = shutil.copytree(runs["attacked"].folder, tmp_path / "run")
    shutil.rmtree(folder / "record", ignore_errors=True)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "clients": 7}))
    assert "<dt>clients</dt><dd>7</dd>" in render([read(folder)])


def test_a_domain_without_a_score_is_neither_best_nor_worst_and_its_round_is_told(tmp_path):
    run = read(write_run(tmp_path / "run", config(rounds=3), domains=("plain", "noise", "thick")))
    whole = render([run])
    assert "Averages of other domains" not in whole
    unscore(tmp_path / "run", "plain")
    page = render([read(tmp_path / "run")])
    assert "seed 0: of round 3." in page
    (method,) = methods([read(tmp_path / "run")])
    assert [str(cell) for cell in _row(method, method.first, "accuracy")[2:6:2]] == ["thick", "noise"]
    (before,) = methods([run])
    assert "plain" in [str(cell) for cell in _row(before, run, "accuracy")[2:6:2]], "the control: it was the best"


def test_noise_of_the_systems_entropy_gives_another_hash(runs):
    assert "but where noise is of the system" in render([runs["images"]])
    assert "same final hash again, on the same versions." in render([runs["attacked"]])
