"""The report in a real browser: it asks nobody, complains of nothing, sorts, and takes names for names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedinit.report.runs.finding import find
from fedinit.report.writing import write_report
from tests.support.browser import EXECUTABLE, Browser
from tests.support.recorded_runs import config, write_run

pytestmark = [  # .ci/run runs it: a browser takes longer to begin than most tests to end
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two methods over two seeds, with a class, a domain and an event of hostile names."""
    root = tmp_path_factory.mktemp("runs")
    domains = (EVIL, 'a "b" & $x$ _c', "plain")
    for method, more in (("fedit", 0.0), ("lora_fair", 2.0)):
        for seed in (0, 1):
            values, gain = config(strategy__name=method, seed=seed, rounds=3), more * (1 + seed / 100)
            folder = write_run(
                root / f"{method}-{seed}",
                values,
                gain=gain * (1 + seed / 100),
                domains=domains,
                classes=(EVIL, "b"),
                layers=2,
            )
            with open(folder / "ledger.jsonl", "a") as file:
                file.write('{"kind": "refused", "client": "<img src=x onerror=alert(1)>"}\n')
    write_report(find([root]), root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_it_asks_nobody_and_complains_of_nothing(page, browser, tmp_path, width, dark):
    browser.events.clear()
    browser.open(page, width, dark=dark)
    # REPORT_SHOTS keeps the pictures, for people to look at.
    shots = Path(os.environ.get("REPORT_SHOTS", tmp_path))
    image = Image.open(browser.screenshot(shots / f"report-{width}{'-dark' * dark}.png"))
    assert browser.requests() == [page.as_uri()] and browser.complaints() == []
    assert image.size[0] == width and image.size[1] > 2 * width
    corner = np.asarray(image.convert("L"))[:20, :20].mean()
    assert corner < 60 if dark else corner > 200
    assert browser.value("document.documentElement.scrollWidth") <= width, "the page is wider than its window"
    assert browser.value("document.querySelectorAll('svg.plot path').length") > 20
    inside = "Array.from(document.querySelectorAll('nav a'), a => a.getBoundingClientRect().right <= innerWidth)"
    assert browser.value(f"{inside}.every(Boolean)"), "the navigation is cut"
    assert browser.value("document.querySelector('nav ul').scrollWidth <= document.querySelector('nav ul').clientWidth")


def test_a_complaint_and_a_request_would_be_seen(page, browser, tmp_path):
    """The negative control: the same page with a style attribute, a script and an image from elsewhere."""
    text = page.read_text().replace("<main>", '<main><p style="color:red"><img src="https://localhost:1/x.png">')
    bad = tmp_path / "bad.html"
    bad.write_text(text)
    browser.events.clear()
    browser.open(bad, 1280)
    told = " ".join(browser.complaints())
    assert "style-src" in told and "img-src" in told
    browser.events.clear()
    bad.write_text('<img src="https://localhost:1/x.png"><script>console.error("seen")</script>')
    browser.open(bad, 1280)
    assert "https://localhost:1/x.png" in browser.requests() and "seen" in " ".join(browser.complaints())


def test_names_stay_text(page, browser):
    browser.open(page, 1280)
    assert (
        browser.value("document.scripts.length") == 1
        and browser.value("document.querySelectorAll('[onerror]').length") == 0
    )
    assert EVIL in browser.value("document.querySelector('.headline thead').textContent")
    assert "$x$ _c" in browser.value("document.querySelector('#domains').textContent")
    assert f"{EVIL}" in browser.value("document.querySelector('#clients').textContent")


def test_a_column_sorts_both_ways(page, browser):
    browser.open(page, 1280)
    rows = (
        "Array.from(document.querySelectorAll('.headline tbody tr'), r => parseFloat(r.lastElementChild.dataset.sort))"
    )
    click = "document.querySelector('.headline thead th:last-child button').click()"
    before = browser.value(rows)
    browser.value(click)
    assert browser.value(rows) == sorted(before, reverse=True) != before
    browser.value(click)
    assert browser.value(rows) == sorted(before)
    assert browser.value("document.querySelector('.headline thead th:last-child').ariaSort") == "ascending"
    browser.value("document.querySelector('.headline thead th:first-child button').click()")
    names = browser.value("Array.from(document.querySelectorAll('.headline tbody th'), h => h.textContent)")
    assert names == sorted(names)


def test_it_reads_without_scripts(page, browser):
    browser.events.clear()
    browser.open(page, 1280, scripts=False)
    assert browser.requests() == [page.as_uri()]
    assert browser.value("document.querySelectorAll('thead button').length") == 0
    assert "Beyond noise" in browser.value("document.querySelector('main').innerText")
