"""No reply of one site ends a run, costs the others theirs, or takes the server's time and memory."""

from __future__ import annotations

import functools

import pytest

from tests.faults import hostile, secret_sum
from tests.faults.updates import Played
from tests.support.small import slow_unless

QUESTIONS = {"gram": "init=eva init.sketch=exact init.examples=32", "heads": "head=ridge head.examples=32"}
QUESTIONS |= {"sketch": "init=eva init.examples=32", "gradients": "init=lora_ga init.examples=32"}


TWO_PHASES = "strategy=lora_fair strategy.phases=2 strategy.lam_scale=absolute strategy.diagnostics=false"


def words_for(kind: str) -> str:
    return f"{QUESTIONS['gram']} {TWO_PHASES}" if kind == "query.project" else QUESTIONS["gram"]


@functools.cache
def secret() -> secret_sum.SecretSum:
    return secret_sum.SecretSum()


@functools.cache
def played(words: str) -> Played:
    return Played(*words.split())


def check(kind: str, words: str, seed: int, count: int, measured: bool) -> None:
    tally = hostile.campaign(played(words), kind, seed, count, measured)
    print(f"\n{kind}, {words}: {dict(tally)}")
    assert tally["slow"] == tally["large"] == tally["others lost"] == 0, tally
    assert tally["refused"] > 0.5 * count, tally


OTHERS = ("query.statistics", "query.project")  # whose arrays are judged as an update's are


@pytest.mark.parametrize("kind", slow_unless(lambda kind: kind not in OTHERS, ((kind,) for kind in hostile.KINDS)))
def test_no_reply_ends_a_run(kind):
    check(kind, words_for(kind), seed=0, count=40, measured=True)


def check_secret(seed: int, count: int, measured: bool) -> None:
    tally = secret_sum.campaign(secret(), seed, count, measured)
    print(f"\nsecret sum: {dict(tally)}")
    assert tally["slow"] == tally["large"] == tally["others lost"] == 0, tally
    assert tally["let in"] < 0.1 * count and tally["refused"] > 0.4 * count, tally


def test_no_reply_ends_a_secret_sum():
    check_secret(seed=0, count=12, measured=False)


@pytest.mark.slow
@pytest.mark.parametrize("measured", [False, True], ids=["time", "memory"])
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_no_reply_of_two_thousand_ends_a_run(kind, measured):
    check(kind, words_for(kind), seed=1, count=2000, measured=measured)


@pytest.mark.slow
@pytest.mark.parametrize("measured", [False, True], ids=["time", "memory"])
def test_no_reply_of_five_hundred_ends_a_secret_sum(measured):
    check_secret(seed=1, count=500, measured=measured)


@pytest.mark.slow
@pytest.mark.parametrize("words", [QUESTIONS["heads"], QUESTIONS["sketch"], QUESTIONS["gradients"]])
def test_no_answer_to_another_question_of_round_0_does(words):
    check("query.statistics", words, seed=2, count=2000, measured=False)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["strategy=lora_a2 adapter.ranks=[1,2,4]", "strategy=fed_sb init=random_core"])
def test_no_update_of_another_kind_does(words):
    check("train", words, seed=3, count=2000, measured=False)
