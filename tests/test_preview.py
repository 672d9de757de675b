"""preview=true: what a run would be, and that it is none."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import fedinit
import run_sim
from clients import trial as trials
from clients.site import Site
from fedinit.config.engine import RayConfig
from fedinit.data.partition import PARTITIONS
from fedinit.errors import RunFailed
from fedinit.runs.observer import ClientReport, RoundReport
from fedinit.runs.preview import Preview, pattern
from fedinit.runs.view import clock
from fedinit.statistics import Sampling
from fedinit.stopping import Stopped
from strategies.server.federation import federate
from tests.support.small import WORDS, small_config

SHORT = (*WORDS, "rounds=3", "engine.lanes=1", "client.max_steps=null", "client.batch_size=50")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Preview, dict, list[dict]]:
    """A preview, and the run that it is of: its summary, and its rounds."""
    root = tmp_path_factory.mktemp("run")
    config = small_config(*SHORT, f"output_dir={root}", "evaluation.head_alone=true")
    shown = run_sim.previewed(config, Site(config), root)
    run = fedinit.run(*SHORT, f"output_dir={root}", "evaluation.head_alone=true")
    rounds = [dict(zip(run.metrics, row, strict=True)) for row in zip(*run.metrics.values(), strict=True)]
    return shown, run.summary, rounds


def test_bytes_and_parameters_are_the_runs(done):
    shown, summary, rounds = done
    assert shown.trial is not None and shown.trial.trained == summary["trainable_parameters"]
    # A message's numbers are of as many digits as they are: some bytes, of many thousand.
    assert shown.trial.up == pytest.approx(rounds[-1]["bytes_up"], rel=1e-3)
    assert shown.trial.down == pytest.approx(rounds[-1]["bytes_down"], rel=1e-3)
    assert f"{summary['trainable_parameters']:,} numbers a client" in shown.facts()["trained"]


def test_memory_is_of_this_process_and_rays_is_apart(done):
    shown, _, _ = done
    rays = dataclasses.replace(shown, config=dataclasses.replace(shown.config, engine=RayConfig()))
    assert rays.facts()["memory"] == shown.facts()["memory"] + ", those of Ray and its actors apart"


@pytest.mark.parametrize(
    "words",
    [(), ("evaluation.every=2", "strategy=fedsa_lora")]
    + [pytest.param((word,), marks=pytest.mark.slow) for word in ("evaluation.participation=0.5", "strategy=flora")],
)
def test_bytes_of_evaluations_by_clients_are_counted(words, tmp_path):
    """The run's own, which has few bytes besides: a round asks two of eight clients. Those of flora's last evaluation
    are others, since nothing is merged after the last round."""
    few = (*SHORT, "client.max_steps=1", "partition=iid", "partition.clients=8", "participation=0.25", "rounds=4")
    few += ("evaluation=clients", "evaluation.every=1", "evaluation.head_alone=false", f"output_dir={tmp_path}", *words)
    config = small_config(*few)
    trial = run_sim.previewed(config, Site(config), tmp_path).trial
    summary = fedinit.run(*few).summary
    assert trial is not None and trial.judged_down > 1.5 * 4 * trial.down
    assert 4 * trial.down + trial.opening_down + trial.judged_down == pytest.approx(summary["bytes_down"], rel=0.02)
    assert 4 * trial.up + trial.opening_up + trial.judged_up == pytest.approx(summary["bytes_up"], rel=0.02)
    # The control: by the server, or by nobody, none are sent for it.
    none = small_config(*few, "evaluation=none", "evaluation.participation=1", "strategy=lora_fair")
    trial = run_sim.trial_of(none, Site(none))
    assert trial.judged_up == trial.judged_down == 0 < trial.down


@pytest.mark.parametrize(
    "words",
    [
        ("strategy=rolora", "rounds=4"),
        pytest.param(("strategy=rolora", "rounds=5"), marks=pytest.mark.slow),
        ("strategy=lora_a2", "rounds=5"),
        pytest.param(("strategy=rolora", "rounds=2", "evaluation=clients"), marks=pytest.mark.slow),
        ("strategy=head_alone", "rounds=4"),
        pytest.param(("strategy=fed_sb", "init=lora_xs", "rounds=4"), marks=pytest.mark.slow),
        pytest.param(("strategy=fedit", "rounds=1"), marks=pytest.mark.slow),
        ("strategy=flora", "rounds=3"),
    ],
)
def test_bytes_of_rounds_that_are_not_alike_are_the_runs(words, tmp_path):
    """Factors that take turns, what is sent once, and what is sent from the second round on; what is trained in any."""
    few = (
        *SHORT,
        "client.max_steps=1",
        "evaluation=none",
        "evaluation.head_alone=false",
        f"output_dir={tmp_path}",
        *words,
    )
    config = small_config(*few)
    trial, summary = run_sim.trial_of(config, Site(config)), fedinit.run(*few).summary
    for way, sent in (("up", trial.up), ("down", trial.down)):
        foretold = config.rounds * sent + getattr(trial, f"opening_{way}") + getattr(trial, f"judged_{way}")
        assert foretold == pytest.approx(summary[f"bytes_{way}"], rel=0.02), way
    assert trial.trained == summary["trainable_parameters"]


def test_a_secret_sum_takes_the_steps_that_it_has():
    """Nobody tells how many: those of the trial are known all the same."""
    config = small_config(*SHORT, "client.epochs=2", "client.batch_size=8", "rounds=2")
    site, seconds = Site(config), {}
    few = trials.with_few_images(site)
    opening = RoundReport(0, 5.0, None, None, 0, 0, [])
    told = sum(config.client.steps(len(part.train)) for part in few.partitions)
    for steps in (0, told):
        clients = [ClientReport(0, 8, steps, None)] if steps else []
        last = RoundReport(2, 1.0, None, None, 0, 0, clients, phases={"clients": 1.0, "server": 0.0})
        seconds[steps] = trials.scaled([opening, last, last], [], site, few, 1, 0.0, 1).clients
    assert seconds[0] == seconds[told] > 1


@pytest.mark.parametrize("strategy", ["flora", "fedex_lora"])
def test_parameters_are_what_a_client_trains_whatever_the_aggregate_is_of(strategy, tmp_path):
    """FLoRA's aggregate has the rank of all clients together."""
    counts = [
        fedinit.run(f"strategy={name}", "rounds=1", "client.max_steps=1", *WORDS, f"output_dir={tmp_path}").summary
        for name in ("fedit", strategy)
    ]
    assert counts[0]["trainable_parameters"] == counts[1]["trainable_parameters"]


def test_a_client_tries_two_steps_with_images_of_its_own():
    config = small_config(*SHORT)
    site = Site(config)
    assert config.client.steps(240) == 10 and small_config(*SHORT, "client.max_steps=3").client.steps(240) == 3
    for words, count in (((), 50), (("client.epochs=1",), 100), (("client.epochs=1", "client.batch_size=500"), None)):
        for part in site.partitions:
            few = trials.first_images(part, small_config(*SHORT, *words))
            assert len(few.train) == (count or len(part.train)) and set(few.train.tolist()) <= set(part.train.tolist())
            assert few.train.equal(few.train.sort().values)
            assert 8 <= len(few.test) < 16 < len(part.test) and set(few.test.tolist()) <= set(part.test.tolist())


def test_time_is_scaled_to_the_steps_and_images_of_the_run(monkeypatch):
    """By fixed seconds: 5 of the trial's six steps, 2 a thousand images that are judged."""
    kept = trials.RoundsKept.round_done

    def note(self, report):
        kept(self, dataclasses.replace(report, phases={"clients": 5.0, "server": 0.25}))

    monkeypatch.setattr(trials.RoundsKept, "round_done", note)
    monkeypatch.setattr(run_sim, "seconds_an_image", lambda *_: 0.002)
    config = small_config(*SHORT, "evaluation.every=3", "evaluation.head_alone=true")
    site = Site(config)
    trial = run_sim.trial_of(config, site)
    steps = sum(2 * -(-len(part.train) // 50) for part in site.partitions)
    assert trial.clients == pytest.approx(5.0 * steps / 6) and trial.server == 0.25
    assert trial.evaluation == pytest.approx(0.002 * 3 * 364 / 3) and trial.reference == pytest.approx(0.002 * 1809)
    shown = Preview(config, "f", site.backbone, site.targets, site.data, site.partitions, trial)
    seconds = 3 * (trial.clients + 0.25 + trial.evaluation) + trial.reference
    assert shown.facts()["time"].startswith(f"about {clock(seconds)} for 3 rounds (")


def test_the_start_is_scaled_by_the_images_that_are_measured_for_it():
    """Five seconds, of which clients took two, over 50 images each; the run measures 100 or all of what they have."""
    site = Site(small_config(*SHORT))
    few = trials.with_few_images(site)
    opening = RoundReport(0, 5.0, None, None, 0, 0, [ClientReport(0, 50, 0, None)])
    last = RoundReport(2, 1.0, None, None, 0, 0, [], phases={"clients": 1.0, "server": 0.0})
    started = {}
    for examples in (100, None, 50):
        sampling = Sampling(examples=examples)
        asked = [trials.Question(kind="query.statistics", clients=[0, 2], sampling=sampling, seconds=2.0)]
        started[examples] = trials.scaled([opening, last, last], asked, site, few, 1, 0.0, 1).start
    every = sum(len(site.partitions[c].train) for c in (0, 2))
    assert started == {100: 7.0, None: pytest.approx(3.0 + 2.0 * every / 100), 50: 5.0}
    nobody = dataclasses.replace(opening, clients=[])  # who say who they are, and measure nothing
    assert trials.scaled([nobody, last, last], [], site, few, 1, 0.0, 1).start == 0


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("init=eva", "init.min_examples=30"), marks=pytest.mark.slow),
        ("head=ridge", "head.min_examples=30", "init=lora_ga"),
    ],
)
def test_a_start_is_tried_with_the_images_that_it_needs(words):
    """Clients have 30 or more, of which two steps take eight."""
    few = ("client.batch_size=4", "client.epochs=1", "partition=iid", "partition.clients=20")
    site = Site(small_config(*SHORT, *few, *words))
    assert min(len(part.train) for part in site.partitions) >= 30
    shown = run_sim.previewed(site.config, site, Path("f"))
    assert shown.trial is not None and shown.trial.opening_up > 0, shown.why
    # The control: with those of two steps alone nobody would measure it.
    cut = trials.with_few_images(site)
    assert {len(part.train) for part in cut.partitions} == {8}
    with pytest.raises(fedinit.InputError, match=r"min_examples=\d+: 0 of 20 clients have as many"):
        federate(dataclasses.replace(site.config, rounds=1), trials.TrialGrid(cut), site.backbone)


def test_nothing_is_left_and_the_run_is_what_it_was(tmp_path, capsys):
    words = [*SHORT, "rounds=1", "client.max_steps=1", f"output_dir={tmp_path / 'out'}"]
    assert run_sim.main([*words, "preview=true"]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not any(tmp_path.iterdir())
    plain = " ".join(text.split())
    for told in ("nothing is trained, no folder is made", "blocks.{0-1}.attn.proj", "which would be made", "a round"):
        assert told in plain, told
    assert run_sim.main(words) == 0
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    assert str(folder) in text.replace("\n", "").replace(" ", "")
    first = json.loads((folder / "summary.json").read_text())["final_hash"]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run_sim.main([*words, "preview=true"]) == 0
    assert "is there, and done" in " ".join(capsys.readouterr().out.split())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert run_sim.main([*words, "resume=never"]) == 0
    assert json.loads((folder / "summary.json").read_text())["final_hash"] == first


@pytest.mark.parametrize(
    "words",
    [
        ("strategy=fedsa_lora", "evaluation=clients"),
        ("evaluation=clients", "evaluation.participation=0.5"),
        ("init=eva", "head=ridge"),
        ("strategy=head_alone",),
        ("partition=pooled", "strategy=ffa_lora"),
        pytest.param(
            ("privacy=examples", "rounds=1", "evaluation=none"), marks=pytest.mark.slow
        ),  # whose ε is spent after one round
        ("privacy=examples", "privacy.noise=0.9", "evaluation=none"),  # enough for all images, not for the trial's few
        ("partition=dirichlet", "partition.clients=30", "participation=0.2"),
    ],
    ids=lambda words: words[0],
)
def test_every_kind_of_run_has_one(words, capsys):
    assert run_sim.main([*SHORT, "client.batch_size=8", "client.epochs=1", *words, "preview=true"]) == 0
    text = capsys.readouterr().out
    assert "numbers a client" in text and "failed" not in text
    assert ("before the first" in " ".join(text.split())) == (words[0] == "init=eva")
    assert ("more" in text) == (words[0] == "partition=dirichlet")


@pytest.mark.parametrize("words", [(), ("privacy=examples",)])
def test_a_head_alone_is_counted_where_the_run_has_one(words, capsys):
    words = [*SHORT, "evaluation.head_alone=true", "rounds=1", "client.epochs=1", *words, "preview=true"]
    assert run_sim.main(words) == 0
    assert ("head alone" in capsys.readouterr().out) == (not words[-2].startswith("privacy"))


def test_a_regression_is_previewed_too(capsys):
    assert run_sim.main(["experiment=matrix_sensing", "logger=none", "rounds=2", "preview=true"]) == 0
    assert "numbers a client" in capsys.readouterr().out


def test_a_trial_that_fails_is_said_and_the_rest_is_shown(monkeypatch, capsys):
    def fail(*_, **__):
        raise RunFailed("round 0: too few examples")

    monkeypatch.setattr(run_sim, "federate", fail)
    assert run_sim.main([*SHORT, "preview=true"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "failed, so bytes, memory and time are not known: round 0: too few examples" in text and "plain" in text


def test_wrong_words_are_refused_as_of_a_run(capsys):
    assert run_sim.main([*SHORT, "preview=true", "quorum=9"]) == 2
    assert capsys.readouterr().err == "error: quorum=9: there are 3 clients\n"
    with pytest.raises(fedinit.InputError, match="preview=true: a preview is the command line's"):
        fedinit.run(*SHORT, "preview=true")
    assert run_sim.main([*SHORT, "preview=maybe"]) == 2


def test_the_partition_is_drawn_by_class():
    site = Site(small_config(*SHORT))
    shown = Preview(site.config, "f", site.backbone, site.targets, site.data, site.partitions, None, "why")
    console = Console(file=io.StringIO(), width=120)
    console.print(shown.holdings())
    rows = [line for line in console.file.getvalue().splitlines() if "364" in line]
    assert [row.split()[1:4] for row in rows] == [
        [n, str(len(p.train)), "364"] for n, p in zip(("plain", "inverted", "thick"), site.partitions, strict=True)
    ]
    skewed = PARTITIONS["dirichlet"](clients=6, alpha=0.1).cut(site.data, 0)  # pyright: ignore
    bars = Preview(site.config, "f", site.backbone, site.targets, site.data, skewed, None)._bars(skewed[0])
    assert len(bars) == 10 and "█" in bars and "·" in bars


def test_layers_of_one_name_are_one_word():
    names = [f"blocks.{i}.{n}" for i in range(12) for n in ("attn.qkv", "mlp.fc1")]
    assert pattern(names) == ["blocks.{0-11}.attn.qkv", "blocks.{0-11}.mlp.fc1"]
    assert pattern(["a.0.b", "a.2.b", "head"]) == ["a.{0,2}.b", "head"] and pattern(["stages.1.blocks.3.x"]) == [
        "stages.1.blocks.3.x"
    ]


def test_a_batch_larger_than_all_clients_images_costs_what_these_do():
    """Nothing is computed to fill it up, and neither the trial nor what is reckoned of memory has more."""
    sites = [Site(small_config(*SHORT, f"client.batch_size={size}", "client.epochs=1")) for size in ("3000", "100")]
    largest = max(len(part.train) for part in sites[0].partitions)
    assert 100 < largest < 3000
    shown = [run_sim.previewed(site.config, site, Path("f")) for site in sites]
    cost = sites[0].cost
    assert cost is not None and all(one.trial is not None for one in shown)
    memory = [one.trial.memory for one in shown]
    assert memory[0] - memory[1] < 3 * cost.image * (largest - 100) + 2**27 < 3 * cost.image * (3000 - 100)


def test_steps_that_do_not_fit_into_memory_are_told_and_not_tried(monkeypatch, capsys):
    monkeypatch.setattr(run_sim, "federate", lambda *_, **__: pytest.fail("it was tried"))
    monkeypatch.setattr("clients.engine.room._free", lambda place: 2**20)
    assert run_sim.main([*SHORT, "preview=true", "client.batch_size=10000000"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "client.batch_size=10000000: the steps of 3 clients at once take about" in text and "are free" in text
    assert "take a smaller one; no client has more than" in text


MEASURED = """
import sys, run_sim
from pathlib import Path
from clients.site import Site
from fedinit.config.compose import compose_config

words = ["data.domains=[plain,noise]", "client.epochs=1", "client.max_steps=1", "engine.lanes=1", "evaluation=none"]
words += ["engine.clients_per_bank=2"]
site = Site(compose_config([*words, f"client.batch_size={sys.argv[1]}"]))
run_sim.previewed(site.config, site, Path("f"))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage's is its parent's too
print(int(peak.split()[1]) * 1024, site.cost.peak(len(site.partitions), int(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say a process's peak")
def test_the_memory_of_a_step_is_about_what_is_reckoned():
    """Within a third, of steps that are large beside all else."""
    found = [subprocess.run([sys.executable, "-c", MEASURED, n], capture_output=True, text=True) for n in ("32", "230")]
    (few, base), (many, more) = (map(int, done.stdout.split()) for done in found)
    assert many - few == pytest.approx(more - base, rel=0.34)


def test_a_preview_that_is_stopped_keeps_nothing_and_says_so(monkeypatch, capsys):
    def stop(*_, **__):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(run_sim, "federate", stop)
    for words in ((), ("-m", "seed=0,1")):
        assert run_sim.main([*SHORT, *words, "preview=true"]) == 143
        assert capsys.readouterr().err == "stopped; a preview keeps nothing\n"
