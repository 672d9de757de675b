"""The table of what goes together: every rule is asked, and docs/compatibility.md is what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fedinit.errors import InputError
from strategies.server.compatibility import RULES, check_method
from tests.support.small import small_config

ROOT = Path(__file__).resolve().parents[3]


def script():
    spec = importlib.util.spec_from_file_location("compatibility_table", ROOT / "scripts/compatibility_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_rules_say():
    assert (ROOT / "docs/compatibility.md").read_text() == script().page()


def test_every_rule_stands_in_a_table_of_the_page():
    tables = {frozenset((rows, column)) for rows, columns in script().TABLES for column in columns}
    assert {frozenset(rule.about) for rule in RULES} <= tables


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["reinit=local", "strategy=flora"], "reinit=local: does not go with strategy=flora"),
        (["adapter=dora", "strategy=fed_sb", "init=lora_xs"], "adapter=dora: does not go with strategy=fed_sb"),
        (["adapter.ranks=halving", "strategy=ffa_lora"], "adapter.ranks: ffa_lora has one rank for all clients"),
    ],
)
def test_a_run_ends_with_the_line_of_the_page(words, line):
    with pytest.raises(InputError, match=line):
        check_method(small_config(*words))


def test_only_a_flower_server_lacks_images():
    config = small_config("evaluation=server")
    check_method(config)
    with pytest.raises(InputError, match="evaluation=server: a Flower server holds no images; use evaluation=clients"):
        check_method(config, under_flower=True)
