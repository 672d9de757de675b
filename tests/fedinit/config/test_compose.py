"""Configurations as the tests compose them (tests/support/composing.py) are those that Hydra composes."""

from __future__ import annotations

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from fedinit.config.compose import compose_config
from fedinit.config.flower import from_run_config, to_run_config
from fedinit.config.groups import CONF_DIR, groups
from fedinit.errors import InputError
from tests.support import composing
from tests.support.small import WORDS, slow


@pytest.mark.parametrize("group", [*sorted(groups().keys() - {"experiment"}), *slow("experiment")])
def test_every_choice_of_every_group_composes(group):
    """And comes back whole from the flat form that a Flower run carries."""
    for choice in groups()[group]:
        config = compose_config([f"{group}={choice}"])
        assert from_run_config(to_run_config(config)) == config


CHOICES = {group: choices for group, choices in groups().items() if group != "experiment"}


@pytest.fixture
def initialized():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


TURNS = range(max(map(len, CHOICES.values())))


def test_a_choice_is_of_its_group_alone():
    """No file of a group but experiment has a package or choices of its own, so that it is what its place becomes."""
    for group, choices in CHOICES.items():
        for text in ((CONF_DIR / group / f"{choice}.yaml").read_text() for choice in choices):
            assert "@package" not in text and "defaults" not in OmegaConf.create(text)


@pytest.mark.parametrize("turn", [*TURNS[:3], *(pytest.param(turn, marks=pytest.mark.slow) for turn in TURNS[3:])])
def test_every_choice_is_what_hydra_makes_of_it(turn, initialized):
    """One choice of each group at a time, until all had their turn; a file stands in its group's place alone."""
    words = [f"{group}={choices[turn % len(choices)]}" for group, choices in CHOICES.items()]
    found, expected = composing.compose("config", words), hydra.compose("config", words)
    assert OmegaConf.to_container(found, resolve=True) == OmegaConf.to_container(expected, resolve=True)


@pytest.mark.parametrize(
    "words",
    [
        [*WORDS, "seed=3"],
        ["strategy=flora", "rounds=4", "strategy=fed_sb", "rounds=5", "init=lora_xs"],
        ["client.lr=0.5", "experiment=matrix_sensing", "adapter.rank=5", "client=adamw"],
        ["experiment=quick", "experiment=matrix_sensing_full", "data=digits", "init=kaiming"],
        ["data.domains=[north,'a b']", "data.classes=null", "++adapter.rank=3", "logger=none"],
        ["partition=dirichlet", "output_dir='${name}/x'", "name=one", "evaluation=none"],
        ["adapter.rank=5", "adapter=dora", "model.kwargs={img_size: 32}", "model=glyph_mixer"],
    ],
    ids=" ".join,
)
def test_the_same_as_hydra_composes(words, initialized):
    """Also from what was composed before, and then changed."""
    expected = hydra.compose("config", words)
    for _ in range(2):
        found = composing.compose("config", words)
        assert OmegaConf.to_container(found, resolve=True) == OmegaConf.to_container(expected, resolve=True)
        for made in (found, expected):
            with pytest.raises(Exception, match="not in struct"):
                made.adapter.unknown = 1
        found.rounds = found.adapter.rank = 99


@pytest.mark.parametrize(
    "words",
    [
        ["rounds=3", "runds=4"],
        ["client=adamw", "client.momentum=1"],
        ["rounds=[1"],
        ["model@x=glyph_vit"],
        ["strategy=null"],
        ["model=vit_tiny", "model.kwargs.img_size=32"],
        ["rounds=${nothing}"],
        ["data.matrix.rows=3", "experiment=quick"],
    ],
)
def test_refused_in_hydras_words(words, monkeypatch):
    with pytest.raises(InputError) as cheap:
        compose_config(words)
    monkeypatch.setattr("fedinit.config.compose.compose", hydra.compose)
    monkeypatch.setattr("fedinit.config.unknown.compose", hydra.compose)
    with pytest.raises(InputError) as dear:
        compose_config(words)
    assert str(cheap.value) == str(dear.value)


@pytest.mark.parametrize(
    ("given", "kind"), [("1.10", "a number"), ("1e3", "a number"), ("true", "true"), ("null", "null")]
)
def test_a_name_that_reads_as_another_thing_is_taken_in_quotes_alone(given, kind):
    """Else 1.10 would be the domain 1.1, where there is one."""
    words = ["data=image_folder", "data.root=x"]
    with pytest.raises(
        InputError, match=rf"^data.domains\[0\]=.*: expected a word; one that reads as {kind} is quoted"
    ):
        compose_config([*words, f"data.domains=[{given}]"])
    for quoted in (f'["{given}"]', f"['{given}']"):
        assert compose_config([*words, f"data.domains={quoted}"]).data.domains == (given,)
    assert compose_config([*words, "data.domains=[01,2]"]).data.domains == ("01", "2")
