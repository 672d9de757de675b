"""A configuration as YAML: what OmegaConf reads and writes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from omegaconf import OmegaConf
from yaml import YAMLError

from fedinit.config.as_yaml import parsed, to_yaml
from fedinit.config.compose import compose_config
from fedinit.config.schema import to_dict

NUMBERS = "a: 1e-3\nb: .5e+3\nc: 1_000\nd: 0x1f\ne: 1:30\nf: -.inf\ng: 1E5\nh: 0o17\ni: '7'\nj: 1.\n"
WORDS = "a: yes\nb: null\nc: ~\nd:\ne: 'no'\nf: 2026-01-01\ng: é🎉 –\nh: ${x.y}\ni: ???\nj: '# not'\nk: \"a\\nb\"\n"
SHAPES = "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\nf: [1, [], {g: {}}]\nh: |\n  two\n  lines\n1: a\n"


@pytest.mark.parametrize("text", [NUMBERS, WORDS, SHAPES])
def test_it_is_read_as_omegaconf_reads_it(text: str) -> None:
    assert parsed(text) == OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


@pytest.mark.parametrize(
    "values",
    [
        {
            "text": "1e-3",
            "more": ["yes", "null", "~", "", " a ", "a: b", "- c", "#d", "é🎉", "x" * 99, "a\nb", "0x1f"],
        },
        {"number": 1e-5, "large": 1e22, "whole": 3, "none": None, "flags": [True, False], "of": {"no": {}, "list": []}},
        {"odd": "\udcff", "path": "~/a\tb", "said": "${x.y}", "date": "2026-01-01"},
    ],
)
def test_it_is_written_as_omegaconf_writes_it(values: dict[str, Any]) -> None:
    text = to_yaml(values)
    assert text == OmegaConf.to_yaml(OmegaConf.create(values))
    assert parsed(text) == values


def test_a_whole_configuration_is_written_and_read() -> None:
    values = to_dict(compose_config(["strategy=lora_fair", "init=eva", "privacy=clients", "partition=dirichlet"]))
    assert to_yaml(values) == OmegaConf.to_yaml(OmegaConf.create(values))
    assert parsed(to_yaml(values)) == values


def test_what_is_in_two_places_is_written_in_both() -> None:
    shared = [1, 2]
    assert "&" not in to_yaml({"a": shared, "b": shared})


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2\n", "a: {b: 1, 'b': 2}", "a: [", "a: 1\n---\nb: 2\n", "a: \x01", "a: &x [*x]\n", "[1, 2]: 3"]
    + ["a: !!python/object/apply:os.system [ls]\n", "[" * 100_000, "- " * 100_000, "a: !!timestamp 2026-13-41"],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises((YAMLError, ValueError, RecursionError)):
        parsed(text)
