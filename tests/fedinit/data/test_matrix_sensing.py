"""The task with a known answer: its data against the formula, its score, and theory through a whole run."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

import run_sim
from clients.evaluation import sums_record
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.data.measurements import ground_truth, load_measurements
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.losses import choose_loss
from fedinit.scores import Accuracy, RecoveryError
from strategies.server.gate import admit_counts
from strategies.server.replies import Asked

SMALL = ("experiment=matrix_sensing", "logger=none", "engine.lanes=1", "init.scale=0.3", "client.lr=0.1")
SHAPE = ("rows: 6", "columns: 5")
FULL = (
    "experiment=matrix_sensing_full",
    "logger=none",
    "engine.lanes=1",
    f"model.kwargs={{{', '.join(SHAPE)}, observe: full}}",
    "data.matrix.rows=6",
    "data.matrix.columns=5",
    "data.matrix.rank=2",
    "adapter.rank=4",
    "adapter.alpha=4",
    "client.epochs=5",
)


def settings(**changes):
    base = compose_config(["experiment=matrix_sensing"]).data.matrix
    small = {"rows": 6, "columns": 5, "rank": 2, "measurements": 40, "corrupted": 0.0}
    return dataclasses.replace(base, **small | changes)


def command(folder, *words: str) -> tuple[dict, list[dict[str, str]]]:
    assert run_sim.main([*words, f"output_dir={folder}"]) == 0
    (path,) = [p for p in folder.glob("*/*") if p.is_dir()]
    return json.loads((path / "summary.json").read_text()), list(csv.DictReader(open(path / "metrics.csv")))


# -- the data ------------------------------------------------------------------------------------------------------


def test_the_truth_has_its_rank_and_spectrum() -> None:
    truth = ground_truth(settings(condition=4.0), 0)
    assert truth.shape == (6, 5)
    torch.testing.assert_close(torch.linalg.svdvals(truth)[:3], torch.tensor([1, 0.25, 0], dtype=torch.float64))
    square = ground_truth(settings(columns=6, symmetric=True), 0)
    torch.testing.assert_close(square, square.T)
    assert torch.linalg.eigvalsh(square).min() > -1e-12
    assert not torch.equal(ground_truth(settings(), 0), ground_truth(settings(), 1))


@pytest.mark.parametrize("observe", ["full", "gaussian"])
def test_targets_are_measurements_and_the_test_split_is_the_recovery_error(observe) -> None:
    """Of any W, through the model itself: Σ‖ŷ − y‖²/Σ‖y‖² over the test split is ‖W − X*‖²/‖X*‖²."""
    words = [f"model.kwargs={{{', '.join(SHAPE)}, observe: {observe}}}", "data.matrix.rows=6", "data.matrix.columns=5"]
    words += [f"data.matrix.observe={observe}", "data.matrix.corrupted=0", "partition.clients=2", "data.matrix.rank=2"]
    site = Site(compose_config([*SMALL, *words, "adapter.rank=5", "adapter.alpha=5", "partition.min_examples=1"]))
    truth = ground_truth(site.config.data.matrix, 0)
    draw = torch.Generator().manual_seed(1)
    factors = Factors(torch.randn(5, 5, generator=draw), torch.randn(6, 5, generator=draw))
    ((part, whole),) = site.judge(site.data.test.nonzero().flatten(), {"weight": factors}, {}).values()
    theirs = (factors.dense().double() - truth).norm() / truth.norm()
    assert RecoveryError({"matrix": part}, {"matrix": whole}).mean == pytest.approx(float(theirs), rel=1e-5)
    ((part, whole),) = site.judge((~site.data.test).nonzero().flatten(), {"weight": factors}, {}).values()
    exact = observe == "full"  # random matrices are no orthogonal set: the negative control
    assert (abs((part / whole) ** 0.5 - float(theirs)) < 1e-4) == exact
    fit = truth.float()
    left, S, right = torch.linalg.svd(fit, full_matrices=False)
    found = {"weight": Factors(S[:, None] * right, left)}
    ((part, whole),) = site.judge((~site.data.test).nonzero().flatten(), found, {}).values()
    assert part < 1e-10 * whole


def test_a_share_of_the_targets_is_wrong_and_the_others_are_not() -> None:
    clean, wrong = (load_measurements(settings(corrupted=share), 1, (6, 5), 0) for share in (0.0, 0.25))
    off = (clean.labels - wrong.labels).flatten().abs() > 1e-6
    assert off.sum() == 10 and not off[wrong.test].any() and torch.equal(clean.images, wrong.images)
    noisy = load_measurements(settings(noise=0.5, measurements=4000), 1, (6, 5), 0)
    silent = load_measurements(settings(measurements=4000), 1, (6, 5), 0)
    rest = (noisy.labels - silent.labels)[~noisy.test]
    assert float(rest.std() / silent.labels[~silent.test].square().mean().sqrt()) == pytest.approx(0.5, rel=0.05)


def test_losses_of_numbers() -> None:
    outputs, targets = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    assert choose_loss("auto", True)(outputs, targets).tolist() == [8.5]
    assert choose_loss("l1", True)(outputs, targets).tolist() == [5.0]
    with pytest.raises(InputError, match="client.loss=l1: the data's targets are classes"):
        choose_loss("l1", False)


# -- the score on its way ------------------------------------------------------------------------------------------


def test_scores_merge_and_speak() -> None:
    score = RecoveryError(part={"x": 1.0, "y": 0.0}, whole={"x": 4.0, "y": 1.0})
    assert score.by_domain == {"x": 0.5, "y": 0.0} and score.mean == 0.25 and str(score) == "recovery error 2.5e-01"
    assert str(Accuracy(part={"x": 1}, whole={"x": 3})) == "accuracy 33.3 %"
    assert dict(sums_record({0: (0.5, 2.0)}, RecoveryError)) == {
        "domains": [0],
        "squared-error": [0.5],
        "squared-norm": [2.0],
    }


@pytest.mark.parametrize("sums", [(-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf")), (1, 2)])
def test_sums_that_are_none_are_refused(sums) -> None:
    def judged(pair):
        class Reply:
            content = RecordDict({"metrics": MetricRecord({**sums_record({0: pair}, RecoveryError), "round": 3})})

            def has_error(self):
                return False

        return admit_counts(Reply(), Asked(0, 3), (0,), RecoveryError, 40)

    assert judged(sums).code == "metrics"
    assert judged((1.0, 2.0))["squared-error"] == [1.0]


# -- theory --------------------------------------------------------------------------------------------------------


def descent(config, gauge_after: int | None, steps: int) -> float:
    """Gradient descent on ½‖BA − X*‖² in float64 from the run's start; the relative error."""
    matrix = config.data.matrix
    truth = ground_truth(matrix, config.seed)
    targets = {"weight": (matrix.rows, matrix.columns)}
    setting = InitContext(targets=targets, rank=config.adapter.rank, scale=1.0, seed=config.seed)
    start = create_initializer(config.init.name, config.init.options).plan(setting).layers["weight"].to(torch.float64)
    A, B = start.A, start.B
    for step in range(steps):
        if step == gauge_after:
            U, S, Vh = torch.linalg.svd(B, full_matrices=False)
            A, B = S[:, None] * Vh @ A, U
        error = B @ A - truth
        A, B = A - config.client.lr * B.T @ error, B - config.client.lr * error @ A.T
    return float((B @ A - truth).norm() / truth.norm())


@pytest.mark.slow
def test_runs_follow_gradient_descent_and_one_gauge_step_makes_the_rate(tmp_path, capsys) -> None:
    """The whole path, in float32 rounds of 5 steps, ends where 60 steps in float64 end; the gauge after round 4 is far
    ahead of the small start alone."""
    errors = {}
    for name in ("average", "gauge"):
        words = [*FULL, "rounds=12", "init.scale=0.3", f"reinit={name}", "client.lr=0.3", "evaluation.rounds=[4,12]"]
        summary, rows = command(tmp_path / name, *words)
        theirs = descent(compose_config(words), 20 if name == "gauge" else None, 60)
        errors[name] = summary["recovery_error"]
        assert errors[name] == pytest.approx(theirs, rel=1e-2, abs=2e-6)
        assert float(rows[-1]["recovery_error_matrix"]) == errors[name]
        assert "accuracy" not in summary and "accuracy" not in rows[0] and summary["head_alone"] is None
    assert errors["gauge"] < errors["average"] / 100
    printed = capsys.readouterr().out
    assert "test recovery error" in printed and "accuracy" not in printed and "head alone" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("where", ["server", "clients"])
def test_clients_recover_what_none_of_them_could(where, tmp_path) -> None:
    """l1 finds the matrix from four clients' measurements of which a fifth are wrong; l2 does not (the negative
    control). Judged by the server or by the clients, the error is the same."""
    words = [*SMALL, f"model.kwargs={{{', '.join(SHAPE)}, observe: gaussian}}", "data.matrix.rows=6"]
    words += ["data.matrix.columns=5", "data.matrix.rank=1", "data.matrix.measurements=240", "adapter.rank=3"]
    words += ["adapter.alpha=3", "client.batch_size=60", "client.epochs=5", f"evaluation={where}", "rounds=20"]
    robust, _ = command(tmp_path / "l1", *words, "client.loss=l1", "client.lr=0.05")
    assert robust["recovery_error"] < 0.15
    if where == "server":
        square, _ = command(tmp_path / "l2", *words, "client.loss=l2", "client.lr=0.05")
        assert square["recovery_error"] > 4 * robust["recovery_error"]


def test_gaussian_pair_is_what_it_says() -> None:
    setting = InitContext(targets={"x": (30, 400)}, rank=20, scale=1.0, seed=0)
    made = create_initializer("gaussian_pair", {"scale": 0.5, "preserve": True}).plan(setting)
    f = made.layers["x"]
    assert float(f.A.std()) == pytest.approx(0.5 * 400**-0.5, rel=0.05)
    assert float(f.B.std()) == pytest.approx(0.5 * 20**-0.5, rel=0.1)
    assert torch.equal(made.merge["x"].dense(), -f.dense())  # the model stays as it was
    assert not create_initializer("gaussian_pair").plan(setting).merge


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["head=random"], "head=random: data=matrix_sensing is about the model's output; use head=none"),
        (["client.loss=cross_entropy"], "client.loss=cross_entropy: the data's targets are numbers"),
        (["data.matrix.rows=19"], "its inputs are (1, 19, 20), the model takes (1, 20, 20); use model=matrix with"),
        (["data.matrix.rank=21"], "data.matrix.rank=21: the matrix is 20x20; expected 20 or less"),
        (["data.matrix.condition=0.5"], "data.matrix.condition=0.5: expected a number in [1, inf)"),
        (["data.matrix.corrupted=1"], "data.matrix.corrupted=1.0: expected a number in [0, 1)"),
        (["data.matrix.corrupted=0", "data.matrix.outlier=5"], "data.matrix.outlier=5.0: is not read with"),
        (["data.matrix.rank=1", "data.matrix.condition=3"], "data.matrix.condition=3.0: is not read with"),
        (["data.matrix.measurements=900000"], "take fewer, or smaller ones"),
        (["data.matrix.symmetric=true", "data.matrix.columns=9"], "expected a square one"),
        (["data.classes=2"], "data.classes: data=matrix_sensing does not read it; data=cifar10"),
        (["partition=dirichlet", "partition.clients=4"], "partition=dirichlet: divides classes"),
        (["client.augment=flip"], "client.augment=flip: data=matrix_sensing has no images"),
        (["strategy=head_alone"], "strategy=head_alone: trains the head alone, and head=none has none"),
        (["reinit=gauge", "reinit.at=[]"], "reinit.at=[]: expected a round or more"),
        (["strategy=flora", "reinit=fresh", "reinit.at=[2]"], "reinit.at=[2]: after the other rounds"),
        (["adapter.rank=30"], "adapter.rank=30: layer weight is 20x20"),
    ],
)
def test_wrong_words(words, expected, tmp_path, capsys) -> None:
    assert run_sim.main(["experiment=matrix_sensing", "logger=none", f"output_dir={tmp_path / 'out'}", *words]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_headless_model_of_images_needs_as_many_outputs_as_classes(tmp_path, capsys) -> None:
    assert run_sim.main(["head=none", "logger=none", f"output_dir={tmp_path}"]) == 2
    assert "head=none: the model has 96 outputs, the data 10" in capsys.readouterr().err
