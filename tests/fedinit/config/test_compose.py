"""Configurations as the tests compose them are those that Hydra composes (tests/support/composing.py)."""

from __future__ import annotations

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from fedinit.compose import compose_config
from fedinit.config import CONF_DIR
from fedinit.errors import InputError
from tests.support import composing
from tests.support.small import WORDS

WHOLE = [
    [],
    [*WORDS, "seed=3"],
    ["strategy=flora", "rounds=4", "strategy=fed_sb", "rounds=5", "init=lora_xs"],
    ["client.lr=0.5", "experiment=matrix_sensing", "adapter.rank=5", "client=adamw"],
    ["data.domains=[north,'a b']", "data.classes=null", "++adapter.rank=3", "logger=none"],
    ["partition=dirichlet", "output_dir='${name}/x'", "name=one", "evaluation=none"],
]


@pytest.fixture
def initialized():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_the_same_as_hydra_composes(words, initialized):
    """Also from choices that were composed before, and used."""
    expected = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
    for _ in range(2):
        found = composing.compose("config", words)
        assert OmegaConf.to_container(found, resolve=True) == expected
        with pytest.raises(Exception, match="not in struct"):
            found.unknown = 1
        found.rounds = 99


@pytest.mark.parametrize("words", [["rounds=3", "runds=4"], ["client.rate=1"], ["rounds=[1"], ["model@x=glyph_vit"]])
def test_refused_in_hydras_words(words, monkeypatch):
    with pytest.raises(InputError) as cheap:
        compose_config(words)
    monkeypatch.setattr("fedinit.compose.compose", hydra.compose)
    with pytest.raises(InputError) as dear:
        compose_config(words)
    assert str(cheap.value) == str(dear.value)
