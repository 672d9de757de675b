"""A start that too few clients can measure is refused before anybody is asked."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from clients.cohort import Cohort
from clients.site import Site
from fedinit.errors import InputError
from fedinit.transport.local import LocalGrid
from run_sim import simulate
from strategies.server.federation import federate
from strategies.server.measuring import refuse_few_images
from tests.support.small import small_config

SIZES = {0: 20, 1: 5, 2: 16, 3: 40}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("init=eva", "quorum=4"),
            "init.min_examples=16: 3 of 4 clients .* 4 or more .* init=eva; set init.min_examples=5",
        ),
        (("init=eva", "init.min_examples=30"), "init.min_examples=30: 1 of 4 .* 2 or more .* set init.min_examples=20"),
        (
            ("head=ncm", "head.min_examples=41"),
            "head.min_examples=41: 0 of 4 .* head=ncm .all have 5 or more.; set head.min_examples=20",
        ),
    ],
)
def test_too_few_are_told_the_key_and_a_value_that_holds(words, said):
    config = small_config(*words)
    with pytest.raises(InputError, match=f"^{said}, or have fewer clients$"):
        refuse_few_images(config, SIZES)
    key, _, value = said.rpartition("set ")[2].partition("=")
    refuse_few_images(small_config(*[w for w in words if not w.startswith(key)], f"{key}={value}"), SIZES)


@pytest.mark.parametrize("words", [("init=eva",), ("init=pissa",), ("quorum=4",), ("head=ncm", "quorum=3")])
def test_enough_clients_or_nothing_to_measure(words):
    refuse_few_images(small_config(*words), SIZES)


def test_it_is_told_before_a_folder_is_made_and_before_anybody_is_asked(tmp_path, monkeypatch):
    config = small_config("init=eva", "init.examples=null", "init.min_examples=4000", f"output_dir={tmp_path}")
    with pytest.raises(InputError, match="init.min_examples=4000: 0 of 3 clients"):
        simulate(config, Console(quiet=True))
    assert not list(tmp_path.iterdir())
    site, asked = Site(config), []
    cohort = Cohort(site)
    monkeypatch.setattr(cohort, "answers", lambda tasks: asked.extend(tasks) or iter([[] for _ in tasks]))
    with pytest.raises(InputError, match="init.min_examples=4000"):
        federate(dataclasses.replace(config), LocalGrid(cohort, 3), site.backbone)
    assert not asked
