"""A compiled step takes the plain step's place only where it gives the plain step's gradients.

Most of it is shown with a compiler of the test's own, since torch's takes half a minute for a model; that one is tried
in the slow test at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clients.compiled import Compiled, mean_losses
from clients.engine.hardware import resolved
from clients.engine.inline import InlineEngine
from clients.engine.plan import plan
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, Worker, make_workers
from clients.task import Result, Task
from fedinit.config.compose import compose_config
from fedinit.models import select_targets

Step = Callable[..., Tensor]


class Counting:
    """A compiler whose steps are the plain ones, times `factor`, and counted."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.made, self.rows = factor, 0, []

    def __call__(self, function: Step) -> Step:
        self.made += 1

        def step(bank, inputs: Tensor, targets: Tensor, weight: Tensor, loss: str) -> Tensor:
            self.rows.append(len(weight))
            return function(bank, inputs, targets, weight, loss) * self.factor

        return step


@pytest.fixture
def train(tiny_vit, tiny_data, client_config, random_adapter, random_head):
    """train(compiled): the bytes that three clients' banks end in; the third has more images than the others."""
    targets = select_targets(tiny_vit.module, None, 4)
    tasks = [
        Task(
            c,
            1,
            torch.arange(6 + 4 * (c == 2)) + 10 * c,
            random_adapter(targets, 4, c),
            random_head(5, tiny_vit.features, c),
            frozenset("AB"),
        )
        for c in range(3)
    ]

    def run(compiled: Compiled | None, lanes: int = 0, dropout: float = 0.0) -> list[Result]:
        settings = Settings(client=client_config(batch_size=2, epochs=1), seed=3, scale=1.5, dropout=dropout)
        args = tiny_vit, targets, tiny_data, settings
        workers = make_workers(*args, "cpu", lanes) if lanes else [Worker(*args)]
        for worker in workers:
            worker.compiled = compiled
        engine = ThreadEngine(workers) if lanes else InlineEngine(workers[0])
        answers = [answer for done in engine.run(plan(tasks, 3)) for answer in done]
        return [answer for answer in answers if isinstance(answer, Result)]

    return run


def same(ours: list[Result], theirs: list[Result]) -> bool:
    return all(
        torch.equal(a.adapter[n].A, b.adapter[n].A) and torch.equal(a.adapter[n].B, b.adapter[n].B)
        for a, b in zip(ours, theirs, strict=True)
        for n in a.adapter
    )


def test_whole_banks_are_compiled_and_ragged_steps_are_not(train) -> None:
    """Three steps of three clients, and two of the one with more images; the first is compared before it counts."""
    compiler = Counting()
    compiled = Compiled(compiler)
    assert same(train(compiled), train(None))
    assert compiler.made == 1 and compiler.rows == [3] * 4
    train(compiled)
    assert compiler.made == 1 and compiler.rows == [3] * 7  # a shape is compared once


@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan"), 0.0])
def test_a_step_of_other_gradients_is_not_taken(factor: float, train, capsys) -> None:
    """It is found before anything is moved by it, said once, and the run is the plain one."""
    compiled = Compiled(Counting(factor))
    assert same(train(compiled), train(None)) and not compiled.works
    train(compiled)
    said = capsys.readouterr().err
    assert said.startswith("engine.compile: the compiled step's gradient of ")
    assert said.endswith(" of its length off; steps are taken as they are\n") and said.count("\n") == 1


def test_a_step_that_cannot_be_compiled(train, capsys) -> None:
    def compiler(function: Step) -> Step:
        raise RuntimeError("no C++ compiler\nand more of it")

    assert same(train(Compiled(compiler)), train(None))
    said = "engine.compile: the step cannot be compiled here (no C++ compiler); steps are taken as they are\n"
    assert capsys.readouterr().err == said


def test_with_dropout_nothing_is_compiled(train) -> None:
    compiler = Counting()
    assert same(train(Compiled(compiler), dropout=0.3), train(None, dropout=0.3)) and compiler.made == 0


def test_auto_is_by_the_steps_of_a_client() -> None:
    def asked(*words: str):
        return resolved(compose_config(["engine.device=cpu", *words]))

    assert not asked("rounds=99", "client.max_steps=100").engine.compile
    assert asked("rounds=100", "client.max_steps=100").engine.compile
    assert not asked("rounds=1000").engine.compile  # how many they are is not known
    for other in ("adapter.dropout=0.1", "privacy=examples"):  # of which no step can be
        assert not asked("rounds=100", "client.max_steps=100", "strategy=fedit", other).engine.compile
    plain, compiled = asked(), asked("engine.compile=true")
    assert plain.identity() == asked("engine.compile=false").identity() != compiled.identity()
    assert Settings.of(compiled).compile and not Settings.of(plain).compile


def test_a_compiler_that_is_switched_off_is_no_compiler(train, capsys, monkeypatch) -> None:
    """torch gives the function back as it is, and nothing was compiled in silence."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert same(train(Compiled()), train(None))
    assert "TORCHDYNAMO_DISABLE, is set in the environment); steps are taken as they are" in capsys.readouterr().err


@pytest.mark.slow
def test_torchs_own_compiler_gives_the_same_gradients_in_every_lane(train) -> None:
    """Up to rounding, twice the same bytes, and the same on lanes that take turns with one compiled step."""
    compiled = Compiled()
    first, plain = train(compiled), train(None)
    assert compiled.works
    for ours, theirs in zip(first, plain, strict=True):
        for name in ours.adapter:
            assert (ours.adapter[name].B - theirs.adapter[name].B).norm() <= 1e-5 * theirs.adapter[name].B.norm()
    assert not same(first, plain)  # so that it was compiled at all
    assert same(train(compiled), first) and same(train(compiled, lanes=2), first)
    assert mean_losses.__module__ == "clients.compiled"
