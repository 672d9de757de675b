"""The benchmarks' own mathematics: the formula of every method's bytes against the tensors that travel."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import machine, memory, methods, robust, scale, start
from benchmarks.methods import FORMULAS, HEADS, MIXED, SHARE, measure
from benchmarks.pacs import markdown, rates, runs
from benchmarks.pacs.table import INITS, METHODS
from benchmarks.peers.work import Work, parts
from clients.batches import plan
from fedinit.config.attack import ATTACKS
from fedinit.factors import Factors
from fedinit.report.runs.significance import Sample
from fedinit.sweeps.outcome import Outcome
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Update
from strategies.reinit import ReinitContext
from strategies.robust import ROBUST

SHAPES = {"one": (40, 96), "two": (96, 40), "three": (80, 300)}
RANK = methods.RANK
OVERHEAD = 700  # bytes of names and headers that a tensor may take on the wire


def test_every_method_has_its_formula_and_its_default_options():
    assert FORMULAS.keys() == AGGREGATORS.keys() - {"head_alone"}
    assert create_aggregator("ravan").heads == HEADS and create_aggregator("lora_a2").share == SHARE


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_the_formula_is_what_is_sent_but_for_headers(name, mixed):
    """Six clients on layers of three shapes, one of them wide enough that a merge is smaller as factors."""
    if mixed and not AGGREGATORS[name].mixed_ranks:
        pytest.skip("one rank for all clients")
    draw = torch.Generator().manual_seed(0)
    updates = [Update(i, 10 + i, {n: _factors(draw, d, k) for n, (d, k) in SHAPES.items()}, {}) for i in range(6)]
    frozen = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    ground = ReinitContext(
        dict.fromkeys(SHAPES, RANK),
        2.0,
        lambda round: {n: Factors(torch.randn(RANK, k), torch.zeros(d, RANK)) for n, (d, k) in SHAPES.items()},
        frozen.__getitem__,
    )
    found = measure(name, updates, [MIXED[i % 3] if mixed else RANK for i in range(6)], ground)
    for way in ("up", "down"):
        sent, formula = 1e6 * found[f"{way}_MB"], 1e6 * found[f"{way}_counted_MB"]
        assert 0 <= sent - formula <= OVERHEAD * 4 * len(SHAPES), (way, sent, formula)
        # The control: a factor of another layer's size would not pass.
        assert formula > 0 and sent < formula + 4 * RANK * 40 * len(SHAPES) + OVERHEAD * len(SHAPES)


@pytest.mark.parametrize("clients", [10, 50, 100])
def test_peers_do_the_same_work(clients):
    """As many steps of as many images a client: with two epochs fedinit took its images twice where they were few."""
    work = Work(clients, rounds=1, steps=5, batch=8)
    plain = [[len(b) for b in torch.randperm(len(images)).split(work.batch)[: work.steps]] for images, _ in parts(work)]
    config = work.config()
    data = config.data.load(1, (32, 32), config.seed)
    ours = [plan(part.train, config.client, 0, 1, part.client) for part in config.partition.cut(data, config.seed)]
    assert [[len(batch) for batch in batches] for batches in ours] == plain


def _factors(draw: torch.Generator, d: int, k: int) -> Factors:
    return Factors(torch.randn(RANK, k, generator=draw), torch.randn(d, RANK, generator=draw))


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ({0.02: 50, 0.05: 55, 0.125: 14}, None),
        ({0.02: 53, 0.05: 16, 0.125: 14}, 0.008),
        ({0.008: 56, 0.02: 53, 0.05: 16}, 0.0032),
        ({0.02: 50, 0.05: 55, 0.125: 60}, 0.3125),
        ({0.02: 50, 0.05: 55, 0.125: math.nan}, None),
        ({0.02: math.nan, 0.05: math.nan}, None),
    ],
)
def test_a_grid_goes_on_while_its_best_rate_lies_at_an_edge(scores, following):
    found = rates.beyond(METHODS, scores)
    assert found is None if following is None else found == pytest.approx(following, rel=5e-3)
    assert rates.beyond(INITS, scores) is None


def test_every_attack_meets_every_defence_at_every_share():
    attacks, defences = sorted(set(ATTACKS) - {"none"}), sorted(ROBUST)
    every, quick = (list(robust.cases(attacks, defences, quick)) for quick in (False, True))
    assert len(every) == len(set(every)) == len(defences) * (2 + (2 + 3) * len(attacks))
    assert set(quick) < set(every) and {case.bad for case in quick} == {0, 2}


@pytest.mark.parametrize("defence", ["multi_krum", "trust"])
def test_a_defence_is_told_how_many_are_bad_and_whom_to_trust(defence):
    """The root of trust is an honest client, whoever the seed makes bad."""
    for seed in range(3):
        config, bad = robust.configured(robust.Case("iid", "ipm", 6, defence), seed, robust.SHORT)
        assert len(bad) == 6 and config.attack.attackers(20, seed) == bad
        told = config.robust.options["bad" if defence == "multi_krum" else "root"]
        assert int(20 * told) == 6 if defence == "multi_krum" else told not in bad
    config, bad = robust.configured(robust.Case("domains", "none", 0, defence), 0)
    assert not bad and config.attack.name == "none"


def test_a_table_says_what_is_beyond_noise_seed_by_seed():
    base = Sample({seed: 50.0 + 5 * seed for seed in range(3)})
    better = Sample({seed: value + 2 + 0.1 * seed for seed, value in base.by_seed.items()})
    noisy = Sample({0: 50.0, 1: 60.0, 2: 58.0})
    assert markdown.against(better, base) == "**+2.1 ± 0.1**" and markdown.against(noisy, base) == "+1.0 ± 3.6"
    assert markdown.against(Sample({0: 40.0}), base) == "-10.0 ± nan"


def test_processor_time_is_kept_of_runs_that_were_made_in_one_go(tmp_path, monkeypatch, capsys):
    """The second was begun before, and the third fails."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    asked = [(f"seed={seed}",) for seed in range(3)]
    places = {0: tmp_path / "new", 1: tmp_path / "b", 2: tmp_path / "c"}
    monkeypatch.setattr(runs, "summary_of", lambda words: None)
    monkeypatch.setattr(runs.run_folder, "place", lambda config: places[config.seed])

    def done(named, environments):
        assert [name for name, _ in named] == ["seed=0", "seed=1", "seed=2"] and environments == [runs.ONE_CORE] * 2
        for name, folder in (("seed=0", "a"), ("seed=1", "b")):
            yield Outcome(name, {"folder": str(tmp_path / folder)}, cpu_seconds=7.25)
        yield Outcome("seed=2", why="run failed: nobody answered")

    monkeypatch.setattr(runs, "side_by_side", done)
    runs.run_all(asked, 2)
    assert (tmp_path / "a" / runs.CPU_SECONDS).read_text() == "7.2" and not any((tmp_path / "b").iterdir())
    assert "3 of 3: seed=2: run failed: nobody answered" in capsys.readouterr().out


def test_a_part_of_a_table_takes_no_tables_place():
    words = scale.parser()
    for given, kept in (
        ([], "scale"),
        (["--quick"], "scale-quick"),
        (["--population", "2000"], "scale-part"),
        (["--rounds", "3"], "scale-part"),
        (["--rounds", "5"], "scale"),  # what it is without
    ):
        assert machine.named("scale", words, words.parse_args(given)) == kept
    words = robust.parser()
    assert machine.named("robust", words, words.parse_args(["--workers", "2"]), "workers") == "robust"
    assert machine.named("memory", memory.parser(), memory.parser().parse_args(["--banks", "1"])) == "memory-part"


@pytest.mark.parametrize(
    ("given", "said"), [("--population 5 --cohort 50", "no population"), ("--rounds 1", "2 or more")]
)
def test_a_benchmark_of_nothing_is_one_line(given, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale", *given.split()])
    with pytest.raises(SystemExit) as ended:
        scale.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.slow
def test_a_start_is_timed_until_the_first_step_alone(steps, tmp_path):
    script, began = tmp_path / "script.py", time.time()
    script.write_text("from clients.step import Training\n" + "Training.step(None)\n" * steps + "print('behind it')\n")
    command = [sys.executable, "-m", "benchmarks.until_step", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=start.ROOT)
    if steps:
        assert done.returncode == 0 and began < float(done.stdout.splitlines()[-1]) < time.time()
    else:
        assert done.returncode == 1 and "ended without a training step" in done.stderr
    assert ("behind it" in done.stdout) is not steps


def test_a_start_that_ends_otherwise_is_no_figure(monkeypatch):
    monkeypatch.setitem(start.CONTESTANTS, "help", (["-c", "raise SystemExit('no such thing')"], start.END, 0, 0.7))
    with pytest.raises(SystemExit, match=r"help: ended with 1\nno such thing"):
        start.seconds("help")
