"""report.html: one file that asks nobody, says what a run recorded, and is the same for the same folder."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from fedinit.errors import InputError
from fedinit.report.figures.curves import MARKED, Axis, Series, curves
from fedinit.report.figures.frame import Ticks, beyond
from fedinit.report.figures.heat import heat
from fedinit.report.figures.svg import MARKERS, colour_of, dash_of, marker_of
from fedinit.report.page import PANELS, render
from fedinit.report.panels import aggregation, clients, domains
from fedinit.report.panels.aggregation import BIAS, matrix
from fedinit.report.panels.panel import SHAPES, legend
from fedinit.report.recording import recorder
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import Table, read
from fedinit.report.writing import write_report
from tests.support.recorded_runs import config, write_run

EVIL = "<script>alert(1)</script>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    values = config(rounds=3, data__name=EVIL)
    return write_run(
        tmp_path_factory.mktemp("page") / "run", values, domains=(EVIL, "b\x00\u202ec"), classes=(EVIL, "x")
    )


@pytest.fixture(scope="module")
def page(folder) -> str:
    return render([read(folder)])


def test_it_holds_nothing_that_asks_or_runs(page):
    """No address, no attribute that is code or style, one script and one style sheet, both as the policy has them."""
    elements = Elements(page)
    assert (
        "http:" not in page
        and "https:" not in page
        and "//"
        not in re.sub(r"^ *//.*$", "", page, flags=re.M)
        .replace("base64,//", "")
        .replace("data:image/jpeg;base64,/9j/", "")
        .split("<body>")[0]
    )
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), (tag, attributes)
    (policy,) = [a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind, name in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_names_are_text(page):
    assert EVIL not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert "\x00" not in page and "\u202e" not in page and "b\ufffd\ufffdc" in page


def test_every_figure_is_told_and_has_a_unique_name(page):
    elements = Elements(page).found
    plots = [attributes for tag, attributes in elements if tag == "svg" and attributes.get("class") == "plot"]
    assert len(plots) > 15 and all(a["role"] == "img" for a in plots)
    names = [a["id"] for _, a in elements if "id" in a]
    assert len(names) == len(set(names))
    labels = " ".join(str(a["aria-labelledby"]) for a in plots).split()
    assert set(labels) <= set(names) and len(labels) == 2 * len(plots)
    assert all(a.get("alt") for tag, a in elements if tag == "img")
    told = re.findall(r"<desc[^>]*>(.*?)</desc>", page)
    assert len(told) == len(plots) and all(len(text) > 20 for text in told)
    used = re.findall(r'(?:href="|url\()#([\w-]+)', page)
    assert set(used) <= set(names)


def test_every_panel_is_there_with_its_link(page):
    elements = Elements(page)
    sections = [a["id"] for tag, a in elements.found if tag == "section"]
    links = [a["href"] for tag, a in elements.found if tag == "a"]
    assert links == [f"#{name}" for name in sections] and len(sections) == len(PANELS) - 1 == 10
    assert "trust" not in sections  # of runs without privacy and bad clients there is none
    for said in ("norm", "ecc55b1d", "2.14.1", "run_sim.py rounds=5", "blocks.3.mlp.fc2", "worst domain"):
        assert said in elements.text


def test_the_same_folder_gives_the_same_bytes(folder, page, tmp_path):
    write_report([read(folder)], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_run_that_recorded_nothing_says_how_to(tmp_path):
    page = render([read(write_run(tmp_path / "run", config(rounds=2), recorded=False))])
    text = Elements(page).text
    assert (
        text.count("Not recorded in this run.") >= 2 and "report=full" in text and "strategy.diagnostics=true" in text
    )
    assert "diagnostics=init measures" in text and "Seconds by phase: not recorded" in text


@pytest.mark.parametrize("reached", [0, 2])
def test_an_unfinished_run_is_shown_as_far_as_it_came(tmp_path, reached):
    folder = write_run(tmp_path / "run", config(rounds=5), reached=reached, recorded=reached > 0)
    with open(folder / "metrics.csv", "a") as file:
        file.write("3,1.2,6,0.")  # a crash cut this line short
    text = Elements(render([read(folder)])).text
    assert f"not done, round {reached} of 5" in text and f"{reached} of 5" in text


@pytest.mark.parametrize("damage", ["{", "[" * 100_000], ids=["cut", "deep"])
def test_damaged_files_are_no_traceback(tmp_path, damage):
    folder = write_run(tmp_path / "run", config(rounds=2))
    for name in ("summary.json", "record/partition.json", "record/provenance.json"):
        (folder / name).write_text(damage)
    lines = damage.encode() + b'\n\xff\xfe{"kind": 3}\n[1]\n{"kind": "x", "round": null}\n'
    (folder / "ledger.jsonl").write_bytes(lines)
    (folder / "record" / "spectra.csv").write_text("round,layer\nnonsense,\n")
    (folder / "record" / "layers.csv").write_text("")
    text = Elements(render([read(folder)])).text
    assert "unreadable line" in text and "not done" in text


def test_layers_are_put_where_they_belong():
    rows = Table(("round", "layer", "bias"), [["1", "a", "0.1"], ["2", "b", "0.4"], ["1", "b", "x"]])
    values, layers, rounds = matrix(rows, rows.numbers("bias"))
    assert layers == ["a", "b"] and rounds == [1, 2]
    assert values[0, 0] == 0.1 and values[1, 1] == 0.4 and values[1, 0] != values[1, 0]


def test_many_classes_are_no_table(tmp_path):
    classes = tuple(f"class {i}" for i in range(500))
    run = read(write_run(tmp_path / "run", config(rounds=1), classes=classes, layers=1))
    body = clients.panel(methods([run])).body
    assert "All counts are in" in body and len(body) < 100_000


def test_fifty_rounds_of_24_layers_are_small_and_quick(tmp_path):
    """Under 1.5 MB; the time is of this process alone, whatever else the machine does."""
    write_run(tmp_path / "run", config(rounds=50), layers=24)
    runs = find([tmp_path])
    began = time.process_time()
    page = render(runs)
    assert time.process_time() - began < 3 and len(page.encode()) < 1_500_000


def test_a_place_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fedinit.report.page.render", lambda runs: "")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match="file/report.html: cannot be written .*; fedinit report … --output FILE"
    ) as refused:
        write_report([read(folder)], tmp_path / "file" / "report.html")
    assert "\n" not in str(refused.value)


def test_a_yaml_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"strategy": "x"}))
    with pytest.raises(InputError, match="its config.yaml is of something else"):
        read(tmp_path)


def test_a_line_that_lies_on_another_hides_nothing_of_it():
    """Neighbours differ in colour, dashes and marker, and the legend draws what the figure does."""
    kinds = [(colour_of(k), dash_of(k), marker_of(k)) for k in range(140)]
    assert len(set(kinds)) == 140 and len(SHAPES) == len(MARKERS)
    assert all(a != b for one, other in zip(kinds, kinds[1:], strict=False) for a, b in zip(one, other, strict=True))
    for points in (5, 60):
        x = np.arange(points, dtype=float)
        lines = [Series(name, x, x, kind) for kind, name in enumerate(("below", "above"))]
        drawn = curves(f"two of {points}", "", lines, Axis("round", "y"))
        assert "stroke-dasharray" in drawn and "var(--s0)" in drawn and "var(--s1)" in drawn
        places = re.findall(r'<use href="#(\w+)" x="([\d.]+)"', drawn)
        assert len({mark for mark, _ in places}) == 2, "markers of two shapes"
        if points > MARKED:
            below, above = ({x for mark, x in places if mark == shape} for shape in dict.fromkeys(m for m, _ in places))
            assert below and above and not below & above, "of many points they stand apart"
    shown = legend(["a", "b"])
    assert 'class="s1 d1"' in shown and 'class="f1"' in shown and shown.count("<path") == 2
    assert "<path" not in legend(["a", "b"], lines=False) and "d1" not in legend(["a", "b"], lines=False)


@pytest.mark.slow
def test_an_engine_is_named_for_the_rounds_that_a_run_still_has(tmp_path):
    """Of one whose rounds were done again by another there is nothing left; one that went on as it stopped is one."""

    def shown(*events: tuple[str, object]) -> str:
        lines = [
            {"kind": "engine", "engine": x, "detail": EVIL} if k == "on" else {"kind": k, "round": x} for k, x in events
        ]
        (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        page = Elements(render([read(folder)]))
        return page.text.replace(f": {EVIL}", "")

    folder = write_run(tmp_path / "run", config(rounds=9))
    again = ("resumed", 4)
    assert "engineinline; threads (from round 5 on)" in shown(("on", "inline"), ("on", "threads"), again)
    assert "enginethreads; inline (from round 5 on)" in shown(
        ("on", "inline"), ("on", "threads"), ("on", "inline"), again
    )
    assert "engineinline" in (text := shown(("on", "inline"), ("on", "inline"), again)) and "from round" not in text
    assert "threads" not in shown(("on", "inline"), ("on", "threads"), ("resumed", 9))  # it only wrote the summary
    assert "Nothing was refused, missing or damaged." in shown(("on", "inline"))
    starts = [("inline", 0), ("threads", 4), ("ray", 4)]  # the second ended before its first round
    lines = [{"kind": "engine", "round": done, "engine": name, "detail": "here"} for name, done in starts]
    (folder / "ledger.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "resumed", "round": 4}])
    )
    assert "engineinline: here; ray: here (from round 5 on)" in Elements(render([read(folder)])).text


def test_what_is_said_of_clients_holds_for_every_run_of_a_page(tmp_path):
    """Of the first alone it would be wrong of a method with other clients."""
    first = write_run(tmp_path / "first", config(rounds=2))

    def page(*folders) -> str:
        shown = methods([read(folder) for folder in folders])
        return str(domains.panel(shown).body) + str(clients.panel(shown).body)

    alone = page(first)
    assert "the worst domain is the worst client." in alone and "Otherwise shared out" not in alone
    partition = json.loads((first / "record" / "partition.json").read_text())
    partition["clients"].pop(1)  # of a domain of partition.test_domains nobody is
    (first / "record" / "partition.json").write_text(json.dumps(partition))
    assert "so of all but inverted, which nobody holds, the worst domain is the worst client." in page(first)
    shared = write_run(tmp_path / "shared", config(rounds=2, strategy={"name": "fedit"}))
    partition = json.loads((shared / "record" / "partition.json").read_text())
    partition["clients"][0]["domain"] = None
    (shared / "record" / "partition.json").write_text(json.dumps(partition))
    both = page(first, shared)
    assert "the worst domain is the worst client" not in both and "Clients share domains" in both
    assert "Otherwise shared out in fedit, seed 0." in both


def test_a_private_runs_page_says_why_it_has_no_pictures(tmp_path):
    for name, told in (("clients", "page has none."), ("none", "`report=full` keeps one")):
        folder = write_run(tmp_path / name, config(rounds=2, privacy={"name": name}))
        shutil.rmtree(folder / "record" / "samples")
        assert told.replace("`report=full`", "<code>report=full</code>") in str(
            clients.panel(methods([read(folder)])).body
        )


def test_what_is_repaired_of_a_small_bias_is_in_the_digits_that_are_recorded():
    """A method that changes nothing repairs nothing, however small the bias: with nine digits this was 99 %."""
    bias = 1.2345678e-5
    # Orthogonal to what is merged: ‖ΔW‖² = ‖merged‖² + ‖C‖².
    figures = {BIAS: bias, "correctable": 1.0, "cosine": math.sqrt(1 - bias**2), "norm_ratio": math.sqrt(1 - bias**2)}
    exact, short = (
        Table(tuple(figures), [texts])
        for texts in ([f"{v:.17g}" for v in figures.values()], [f"{v:.9g}" for v in figures.values()])
    )
    assert recorder._shown(figures) == list(exact.rows[0])
    assert aggregation._repaired(exact)[0] == 0, "no 1e-06, which rounding leaves"
    assert abs(aggregation._repaired(short)[0]) > 50, "the control"


def test_shares_that_are_all_alike_have_one_colour_and_long_numbers_their_place():
    values = np.array([[-0.0008, 0.0004], [0.0, 0.0002]])
    narrow, wide = (heat("a", "b", values, "xy", "12", ("round", "%"), span=span) for span in (0.0, 1.0))
    assert "−0.0006" in narrow and "−0.0006" not in wide and "−0.50" in wide


def test_a_turned_text_is_behind_the_longest_number():
    long, short = Ticks([0.0], ["−0.00015"]), Ticks([0.0], ["10"])
    assert beyond(long, 41.0) >= 8 * 5.9 + 6 and beyond(short, 41.0) == 41.0


def test_with_one_domain_the_worst_client_is_shown_too(tmp_path):
    run = read(write_run(tmp_path / "run", config(rounds=2), domains=("plain",)))
    panel = domains.panel(methods([run]))
    assert "The worst client: largest training loss" in panel.body and "worst domain" not in panel.body
    assert panel.lead == "The model on its domain, and the client that it serves worst."


def test_a_bias_of_rounding_is_no_pattern(tmp_path):
    folder = write_run(tmp_path / "run", config(rounds=2))
    header, *rows = (folder / "record/layers.csv").read_text().splitlines()
    at = header.split(",").index("bias")
    cells = [row.split(",") for row in rows]
    tiny = [",".join([*row[:at], f"{i}e-25", *row[at + 1 :]]) for i, row in enumerate(cells)]
    (folder / "record/layers.csv").write_text("\n".join([header, *tiny]) + "\n")
    body = str(aggregation.panel(methods([read(folder)])).body)
    assert "e-25</text>" not in body and "e-07</text>" in body
