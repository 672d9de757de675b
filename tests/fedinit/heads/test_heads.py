"""Heads from summed statistics: exact, for any split; on a scale that suits cross-entropy; complete for every class.

Oracles are dense numpy in float64, written from the formulas; rtol 1e-9 where both sides are float64, 1e-5 where a head
has been rounded to float32.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import run_sim
from clients.batches import normalise
from clients.cohort import Cohort
from clients.site import Site
from clients.statistics import disturb
from fedinit.config.compose import compose_config
from fedinit.draws import draws
from fedinit.errors import InputError, RunFailed
from fedinit.heads import HEADS, create_head
from fedinit.heads.head import HeadContext, HeadState, refuse_unfit
from fedinit.heads.measured import SCALES, MeasuredHead, best_scale
from fedinit.statistics import (
    Request,
    Sampling,
    Statistics,
    add_up,
    class_sums,
    create_statistics,
    pack,
    shapes_of,
    unpack,
    wire_format,
)
from fedinit.statistics.gram import pack as triangle_of
from fedinit.statistics.gram import unpack as gram_of
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import WORDS, small_config

quick = settings(deadline=None, max_examples=10)
MEASURED = sorted(name for name, kind in HEADS.items() if issubclass(kind, MeasuredHead))


class Pool:
    """n examples of D features and their labels, on clients by `cuts`; unequal class sizes, correlated features."""

    def __init__(self, seed: int, n: int, features: int, classes: int, cuts: Sequence[int] = (), without=()) -> None:
        rng = np.random.default_rng(seed)
        present = np.setdiff1d(np.arange(classes), without)
        self.y = rng.choice(present, size=n)
        self.y[: len(present)] = present
        mix = rng.standard_normal((features, features)) / features**0.5
        means = 1.5 * rng.standard_normal((classes, features))
        self.z = (means[self.y] + rng.standard_normal((n, features))) @ mix + 2
        self.cuts = cuts
        self.setting = HeadContext(classes=[f"class {i}" for i in range(classes)], features=features, seed=0)

    def ask(self, request: Request) -> Statistics:
        parts = []
        for index in np.split(np.arange(len(self.y)), self.cuts):
            sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes_of(request).items()}
            for layer, statistic in create_statistics(request).items():
                found = statistic.measure(torch.tensor(self.z[index]), torch.tensor(self.y[index]))
                for key, value in found.items():
                    sums[f"{layer}/{key}"] += value
            parts.append(Statistics(len(index), sums))
        return add_up(parts)

    def head(self, name: str, **options) -> HeadState:
        return create_head(name, options).run(self.setting, self.ask)

    def logits(self, state: HeadState) -> np.ndarray:
        return self.z @ state.tensors["weight"].double().numpy().T + state.tensors["bias"].double().numpy()

    def rows(self, name: str, **options) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias before any scale, in float64."""
        head = create_head(name, options)
        found, _ = head._known_classes(self.ask(head.plan(self.setting)).of("head"), self.setting)
        made = head.rows(found)
        return made.weight.numpy(), made.bias.numpy()

    @property
    def means(self) -> np.ndarray:
        return np.stack([self.z[self.y == c].mean(0) for c in np.unique(self.y)])


def centred(logits: np.ndarray) -> np.ndarray:
    """Up to what the softmax does not see."""
    return logits - logits.mean(1, keepdims=True)


# -- exact ---------------------------------------------------------------------------------------------------------


@quick
@given(
    st.integers(0, 10_000), st.lists(st.integers(0, 60), min_size=1, max_size=4).map(sorted), st.sampled_from(MEASURED)
)
def test_any_split_gives_the_pooled_head(seed, cuts, name):
    """With an empty client and one of a single example among them."""
    split, pooled = Pool(seed, 60, 7, 5, sorted([0, 1, *cuts])), Pool(seed, 60, 7, 5)
    for one, other in zip(split.rows(name), pooled.rows(name), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)
    for key, value in split.head(name).tensors.items():
        torch.testing.assert_close(value, pooled.head(name).tensors[key], rtol=1e-5, atol=1e-6)


def test_a_client_that_was_left_out_is_missed():
    """The negative control of the law above."""
    whole, part = Pool(0, 60, 7, 5), Pool(0, 60, 7, 5)
    part.z, part.y = part.z[:40], part.y[:40]
    assert np.abs(whole.rows("ridge")[0] - part.rows("ridge")[0]).max() > 1e-3


@pytest.mark.parametrize("ratio", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize(
    ("name", "options"), [("ridge", {}), ("ncm", {}), ("ncm", {"covariance": "shared"}), ("mvn", {}), ("convex", {})]
)
def test_a_large_mean_costs_no_digits(name, options, ratio):
    """Features whose mean is `ratio` deviations, in float32, measured in batches by three clients and sent as messages
    are: the rows of the dense float64 head of the same features, to 1e-5, and as the clients were one."""
    p = Pool(3, 120, 7, 5, [20, 70], without=[4] if name in ("mvn", "convex") else ())
    p.z = (p.z + ratio * p.z.std() * np.linspace(0.5, 1, 7)).astype(np.float32).astype(np.float64)
    head = create_head(name, options)
    asked = head.plan(p.setting)
    statistics, parts = create_statistics(asked), []
    for index in np.split(np.arange(len(p.y)), p.cuts):
        sums = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in shapes_of(asked).items()}
        for batch in np.array_split(index, 3):
            z, y = torch.tensor(p.z[batch], dtype=torch.float32), torch.tensor(p.y[batch])
            for key, value in statistics["head"].measure(z, y).items():
                sums[f"head/{key}"] += value.double()
        packed = pack(statistics, sums)
        assert {n: (tuple(t.shape), t.dtype) for n, t in packed.items()} == wire_format(statistics)
        parts.append(Statistics(len(index), unpack(statistics, packed)))
    found, _ = head._known_classes(add_up(parts).of("head"), p.setting)
    rows = head.rows(found)
    weight, bias = p.rows(name, **options)
    np.testing.assert_allclose(rows.weight.numpy(), weight, rtol=0, atol=1e-5 * np.abs(weight).max())
    at_mean = rows.weight.numpy() @ p.z.mean(0) + rows.bias.numpy()
    np.testing.assert_allclose(at_mean, weight @ p.z.mean(0) + bias, rtol=0, atol=1e-4 * np.abs(weight).max())
    plain = torch.tensor(p.z, dtype=torch.float32)  # the control: moments as float32 sums them about zero
    gram = (plain.T @ plain).double().numpy() - len(plain) * np.outer(p.z.mean(0), p.z.mean(0))
    scatter = (p.z - p.z.mean(0)).T @ (p.z - p.z.mean(0))
    assert (np.linalg.norm(gram - scatter) > 1e-4 * np.linalg.norm(scatter)) == (ratio > 1)


@quick
@given(st.integers(0, 10_000), st.sampled_from([1e-4, 0.01, 1.0]))
def test_ridge_solves_the_normal_equations(seed, lam):
    """[Z 1]ᵀ[Z 1] + λ diag(1, …, 1, 0) on the one-hot labels; λ = lam · tr S / D."""
    p = Pool(seed, 50, 6, 4, [20])
    design = np.hstack([p.z, np.ones((50, 1))])
    scatter = (p.z - p.z.mean(0)).T @ (p.z - p.z.mean(0))
    penalty = lam * np.trace(scatter) / 6 * np.diag([1.0] * 6 + [0.0])
    solved = np.linalg.solve(design.T @ design + penalty, design.T @ np.eye(4)[p.y])  # (D + 1, C)
    weight, bias = p.rows("ridge", lam=lam)
    np.testing.assert_allclose(weight, solved[:-1].T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(bias, solved[-1], rtol=1e-7, atol=1e-9)


@quick
@given(st.integers(0, 10_000))
def test_ncm_is_the_nearest_class_mean(seed):
    p = Pool(seed, 50, 6, 4, [20])
    weight, bias = p.rows("ncm")
    distance = ((p.z[:, None] - p.means) ** 2).sum(-1)
    np.testing.assert_allclose(centred(p.z @ weight.T + bias), centred(-0.5 * distance), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(weight[1:] - weight[0], p.means[1:] - p.means[0], rtol=1e-9, atol=1e-9)
    assert (p.logits(p.head("ncm")).argmax(1) == distance.argmin(1)).all()


@quick
@given(st.integers(0, 10_000))
def test_shared_covariance_is_linear_discriminant_analysis(seed):
    """log N(z; μ_c, Σ) up to what is common, Σ the within-class scatter plus its shrinkage, with equal priors."""
    p = Pool(seed, 80, 5, 4)
    own = p.z - p.means[p.y]
    within = own.T @ own
    precision = np.linalg.inv(within + 0.01 * np.trace(within) / 5 * np.eye(5))
    distance = np.einsum("ncd,de,nce->nc", p.z[:, None] - p.means, precision, p.z[:, None] - p.means)
    weight, bias = p.rows("ncm", covariance="shared")
    np.testing.assert_allclose(centred(p.z @ weight.T + bias), centred(-0.5 * distance), rtol=1e-6, atol=1e-8)


# -- scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURED)
def test_the_measured_scale_has_the_least_loss(name):
    p = Pool(3, 300, 6, 4, [100])
    state = p.head(name)

    def loss(factor: float) -> float:
        logits = torch.tensor(factor * p.logits(state))
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(p.y)))

    assert loss(1.0) < min(loss(0.8), loss(1.25))
    assert loss(1.0) < 0.8 * np.log(4)  # better than a head that says nothing
    assert state.notes["loss"] == pytest.approx(loss(1.0), rel=0.02)  # the note is of the best grid point
    assert state.notes["accuracy"] == pytest.approx(100 * (p.logits(state).argmax(1) == p.y).mean())


@pytest.mark.parametrize("name", MEASURED)
def test_logits_do_not_depend_on_the_unit_of_the_features(name):
    p, large = Pool(3, 100, 6, 4), Pool(3, 100, 6, 4)
    large.z = 1000 * large.z
    np.testing.assert_allclose(large.logits(large.head(name)), p.logits(p.head(name)), rtol=1e-3, atol=1e-3)


def test_a_given_scale_is_the_gap_at_the_class_means_and_needs_one_pass():
    p = Pool(3, 100, 6, 4)
    for name in MEASURED:
        state = p.head(name, scale=4.0)
        logits = p.means @ state.tensors["weight"].double().numpy().T + state.tensors["bias"].double().numpy()
        gaps = [logits[a, a] - logits[a, b] for a in range(4) for b in range(4) if a != b]
        assert np.mean(gaps) == pytest.approx(4, rel=1e-5)
    head = create_head("ridge", {"scale": 4.0})
    assert isinstance(head.step(p.setting, head.plan(p.setting), p.ask(head.plan(p.setting))), HeadState)


def test_classes_that_are_separated_perfectly_stop_at_the_end_of_the_grid():
    p = Pool(0, 40, 30, 2)
    assert p.head("ridge", lam=1e-6).notes["scale"] == SCALES[-1]
    assert best_scale([1.0, 2.0, 4.0], [3.0, 2.0, 2.5]) == pytest.approx(2 * 2 ** (0.5 * 0.5 / 1.5))
    assert best_scale([1.0, 2.0, 4.0], [1.0, 2.0, 2.5]) == 1.0


# -- classes that nobody has ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURED)
def test_a_class_that_one_client_lacks_changes_nothing(name):
    """Its examples may all be at one other client."""
    p, pooled = Pool(2, 60, 6, 4), Pool(2, 60, 6, 4)
    order = np.argsort(p.y, kind="stable")
    p.z, p.y, p.cuts = p.z[order], p.y[order], [int((p.y == 0).sum())]
    for key, value in p.head(name).tensors.items():
        torch.testing.assert_close(value, pooled.head(name).tensors[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEASURED)
def test_rows_of_a_class_that_nobody_has(name):
    """The other rows are those of a run without the class, and the notes say how its own was made."""
    p = Pool(2, 200, 6, 5, [50], without=[3])
    alone = Pool(2, 200, 6, 5, without=[3])
    alone.y, alone.setting = np.where(alone.y > 3, 3, alone.y), dataclasses.replace(p.setting, classes=list("abcd"))
    state, rest = p.head(name, scale=1.0), alone.head(name, scale=1.0)
    assert set(state.notes["missing"]) == {"class 3"}
    seen = torch.tensor([0, 1, 2, 4])
    for key, value in state.tensors.items():
        torch.testing.assert_close(value[seen], rest.tensors[key], rtol=1e-5, atol=1e-6)
        assert torch.isfinite(value).all()
    whole = torch.cat([state.tensors["weight"], state.tensors["bias"][:, None]], 1)
    if name in ("ridge", "ncm"):
        torch.testing.assert_close(whole[3], whole[seen].mean(0), rtol=1e-5, atol=1e-6)
        assert state.notes["missing"]["class 3"] == "the mean of the other rows"
    else:
        assert (whole[3] - whole[seen].mean(0)).norm() > 1e-4


def test_convex_is_the_softmax_of_the_cosines_with_the_mean():
    p = Pool(2, 200, 6, 5, without=[3])
    state = p.head("convex", scale=1.0, base="ncm", neighbours=3, temperature=0.2)
    centre = p.means.mean(0)
    cosine = p.means @ centre / np.linalg.norm(p.means, axis=1) / np.linalg.norm(centre)
    near = np.argsort(-cosine)[:3]
    weights = np.exp(cosine[near] / 0.2) / np.exp(cosine[near] / 0.2).sum()
    rows = state.tensors["weight"].double().numpy()[[0, 1, 2, 4]]
    np.testing.assert_allclose(state.tensors["weight"][3].numpy(), weights @ rows[near], rtol=1e-4, atol=1e-6)
    # So cold that exp of the cosine itself would overflow: the nearest row.
    cold = p.head("convex", scale=1.0, base="ncm", temperature=1e-4).tensors["weight"]
    torch.testing.assert_close(cold[3], cold[[0, 1, 2, 4]][cosine.argmax()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_mvn_draws_from_the_distribution_of_the_rows(shrinkage):
    """Mean and covariance over 4,000 draws of one class each, within five standard errors."""
    p = Pool(2, 200, 3, 5, without=[3])
    head = create_head("mvn", {"base": "ncm", "shrinkage": shrinkage})
    found, _ = head._known_classes(p.ask(head.plan(p.setting)).of("head"), p.setting)
    rows = head.rows(found)
    drawn, _ = head.fill(rows, found, range(4000), p.setting)
    known = rows.joined.numpy()
    covariance = np.cov(known.T)
    wanted = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 4 * np.eye(4)
    largest = np.diag(wanted).max()
    np.testing.assert_allclose(drawn.mean(0).numpy(), known.mean(0), atol=5 * (largest / 4000) ** 0.5)
    np.testing.assert_allclose(np.cov(drawn.numpy().T), wanted, atol=5 * largest * (2 / 4000) ** 0.5)
    again, _ = head.fill(rows, found, [17], p.setting)
    assert torch.equal(again[0], drawn[17])  # of the class and the seed alone


# -- privacy and bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class_sums", "class_moments", "losses"])
def test_one_image_changes_a_sum_by_no_more_than_its_sensitivity(kind):
    draw = torch.Generator().manual_seed(0)
    head = {"weight": torch.randn(4, 6, generator=draw), "bias": torch.randn(4, generator=draw)}
    shapes = {"head": (4, 6)}
    request = Request(
        source="features", layers={"head": kind}, shapes=shapes, seed=0, options={"scales": [0.5, 4.0]}, head=head
    )
    (statistic,) = create_statistics(request).values()
    limits = statistic.sensitivity(2.0, 1)
    for _ in range(200):
        z = torch.randn(1, 6, generator=draw, dtype=torch.float64)
        z = 2.0 * z / z.norm()
        found = statistic.measure(z, torch.randint(0, 4, (1,), generator=draw))
        assert limits.keys() == found.keys() - {"count"}
        for key, limit in limits.items():
            assert float(found[key].norm()) <= limit * (1 + 1e-9)


@pytest.mark.parametrize("features", [3, 24, 96, 384])
@pytest.mark.parametrize("several", [0, 1, 5])
def test_a_scatter_of_rounding_alone_is_no_lie(features, several):
    """Classes of one image have no scatter inside them; `several` have two. Features of unlike scales, about a mean."""
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        classes = int(torch.randint(2, 40, (), generator=draw))
        labels = torch.cat([torch.arange(classes), torch.arange(min(several, classes))])
        z = torch.randn(len(labels), features, generator=draw) + 30 * torch.randn(features, generator=draw)
        z = z * 10 ** torch.empty(features).uniform_(-3, 3, generator=draw)
        request = Request(
            source="features", layers={"head": "class_moments"}, shapes={"head": (classes, features)}, seed=0
        )
        statistics = create_statistics(request)
        statistic = statistics["head"]
        measured = {f"head/{key}": value for key, value in statistic.measure(z, labels).items()}
        found = {key[5:]: value for key, value in unpack(statistics, pack(statistics, measured)).items()}
        assert statistic.fault(found, len(labels)) == ""
        # The negative control: less by a twentieth of the spread in one direction, which no images have, unless
        # what those classes have is more.
        gram = gram_of(found["gram"].double(), features)
        spread = gram.diagonal() - found["sums"].double().sum(0) ** 2 / len(labels)
        direction = spread.clamp(min=0).sqrt() * torch.randn(features, generator=draw, dtype=torch.float64)
        lied = triangle_of(gram - 0.05 * torch.outer(direction, direction))
        said = statistic.fault({**found, "gram": lied}, len(labels))
        assert (several and features < 24) or "not positive semi-definite" in said


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_losses_are_convex_in_the_gain_or_a_lie(weighting):
    """Of honest heads, good, bad and blind; a constant, a rise that slows, and one loss that stands out are of none."""
    draw = torch.Generator().manual_seed(0)
    for seed in range(30):
        classes, images = (2, 10, 100)[seed % 3], (1, 16, 200)[seed // 10]
        z = torch.randn(images, 24, generator=draw) + 30 * torch.randn(24, generator=draw)
        head = {"weight": torch.randn(classes, 24, generator=draw), "bias": torch.randn(classes, generator=draw)}
        labels = (z @ head["weight"].T).argmax(1) if seed % 2 else torch.randint(0, classes, (images,), generator=draw)
        request = Request(
            source="features",
            layers={"head": "losses"},
            shapes={"head": (classes, 24)},
            seed=0,
            sampling=Sampling(weighting=weighting, min_examples=1),
            options={"scales": list(SCALES)},
            head=head,
        )
        statistics, over = create_statistics(request), images if weighting == "uniform" else 1
        statistic = statistics["head"]
        sent = pack(statistics, {f"head/{k}": v.double() / over for k, v in statistic.measure(z, labels).items()})
        found = Statistics(images, unpack(statistics, sent)).of("head")
        assert statistic.fault(found, images) == ""
        losses, alone = found["losses"].double(), torch.zeros(len(SCALES))
        alone[7] = 10 * images
        start, steps = images / over * math.log(classes), torch.arange(len(SCALES)).double()
        for lie in (losses * 0 + 2 * start, losses * 0 + 1e30, 1e4 * images * steps, losses + alone):
            assert "has on no" in statistic.fault({**found, "losses": lie}, images)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
def test_a_mean_over_images_that_hardly_differ_is_no_lie(spread):
    """Of `uniform` a class counts n_c/n, no whole number. The control: in float32 honest clients are refused."""
    refused = [0, 0]
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (150 + seed,), generator=draw)
        z = torch.randn(96, generator=draw) + spread * torch.randn(len(labels), 96, generator=draw)
        request = Request(
            source="features",
            layers={"head": "class_moments"},
            shapes={"head": (10, 96)},
            seed=0,
            sampling=Sampling(weighting="uniform", min_examples=1),
        )
        statistics = create_statistics(request)
        sums = statistics["head"].measure(z, labels)
        sent = pack(statistics, {f"head/{key}": value.double() / len(labels) for key, value in sums.items()})
        for i, counts in enumerate((sent["head/counts"], sent["head/counts"].float().double())):
            found = Statistics(len(labels), unpack(statistics, {**sent, "head/counts": counts})).of("head")
            refused[i] += bool(statistics["head"].fault(found, len(labels)))
    assert refused[0] == 0 and (refused[1] or spread)
    half = torch.tensor([0.5, -0.5] + 8 * [0.0], dtype=torch.float64) / len(labels)
    assert "class counts" in statistics["head"].fault({**found, "counts": found["counts"] + half}, len(labels))


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("images", [1, 16, 48])
def test_what_a_mean_takes_from_noisy_moments_is_put_back(images, noise, monkeypatch):
    """Noisy counts add up to another number than the images: it is the same both ways, else honest sums are lies."""
    draw = torch.Generator().manual_seed(images)
    sampling = Sampling(min_examples=1, clip=1.0, noise=noise)
    request = Request(
        source="features", layers={"head": "class_moments"}, shapes={"head": (10, 24)}, seed=0, sampling=sampling
    )
    statistics, off = create_statistics(request), torch.zeros(2)
    for client in range(20):
        z = torch.nn.functional.normalize(torch.randn(images, 24, generator=draw))
        labels = torch.randint(0, 10, (images,), generator=draw)
        measured = {f"head/{k}": v.double() for k, v in statistics["head"].measure(z, labels).items()}
        disturb(measured, statistics, {"head": 1}, sampling, partial(draws, 0, "", "head.noise", client))
        sent = [pack(statistics, measured)]
        with monkeypatch.context() as taken:  # the control: taken by the images, put back by the counts
            taken.setattr(class_sums, "_added", lambda counts: float(images))
            sent.append(pack(statistics, measured))
        found = [unpack(statistics, one) for one in sent]
        assert statistics["head"].fault({key[5:]: value for key, value in found[0].items()}, images) == ""
        off += torch.tensor([float((one["head/gram"] - measured["head/gram"]).abs().max()) for one in found])
    assert 100 * off[0] < off[1]


def test_noise_moves_the_head_and_a_phantom_class_is_none():
    """A count below one, which only noise makes, is no class."""
    p = Pool(2, 200, 6, 5, without=[3])
    head = create_head("ncm", {"clip": 100.0, "noise": 0.01})
    sums = dict(p.ask(head.plan(p.setting)).sums)
    sums["head/counts"][3] = 0.4
    state = head.step(p.setting, head.plan(p.setting), Statistics(200, sums))
    assert list(state.options["notes"]["missing"]) == ["class 3"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ridg", {}, r"head=ridg: no such choice \(did you mean 'ridge'\?\)"),
        ("ridge", {"lam": 0.0}, "head.lam=0.0"),
        ("ncm", {"temperature": 1.0}, "head.temperature: head=ncm does not read it; head=convex does"),
        ("ncm", {"lam": 0.1}, "head.lam=0.1: is not read with head.covariance=none, but with shared; leave it out"),
        ("mvn", {"base": "ncm", "lam": 0.1}, "head.lam=0.1: is not read with head.base=ncm, but with ridge"),
        ("ncm", {"scale": -1.0}, "head.scale=-1.0"),
        ("ncm", {"scale": "big"}, "head.scale=big: expected a number, or auto"),
        ("ncm", {"noise": 1.0}, "head.noise=1.0: needs head.clip"),
        ("ncm", {"noise": 1.0, "clip": 1.0, "weighting": "uniform"}, "head.weighting=uniform: with head.noise"),
        ("mvn", {"shrinkage": 2.0}, "head.shrinkage=2.0"),
        ("convex", {"neighbours": 0}, "head.neighbours=0"),
        ("ridge", {"examples": 5}, "head.examples=5: expected 16 or more; head.min_examples is the least"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(InputError, match=message):
        create_head(name, options)


def test_examples_that_make_no_classifier():
    with pytest.raises(InputError, match="head.init=ridge: the clients' examples are of 1 of 4 classes"):
        Pool(0, 30, 6, 4, without=[0, 1, 2]).head("ridge")
    flat = Pool(0, 30, 6, 4)
    flat.z = np.ones_like(flat.z)
    for name in ("ridge", "ncm"):
        with pytest.raises(InputError, match="are the same for all examples|class means do not differ"):
            flat.head(name)


# -- through a run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ridge_beats_a_random_head_before_any_training():
    """On the embedded model and two of its domains: 200 images of each for the head. Training moves
    nothing at this rate."""
    words = ["data.domains=[plain,inverted]", "client.max_steps=1", "client.lr=1e-9", "logger=none", "rounds=1"]
    # Augmentation, so that the features of all images are not computed for the one step.
    words += ["strategy=head_alone", "evaluation=none", "client.augment=flip"]
    accuracy, site = {}, Site(compose_config(words))
    test = site.data.test.nonzero().flatten()[::3]
    with torch.no_grad():
        images = normalise(site.data.images[test], site.backbone.input, torch.device("cpu"))
        features, labels = site.backbone.module(images), site.data.labels[test]
    for head in ("random", "ncm", "ridge"):
        few = [] if head == "random" else ["head.examples=200"]
        config = compose_config([*words, f"head={head}", *few])
        outcome = federate(config, LocalGrid(Cohort(site), 2), site.backbone)
        logits = torch.nn.functional.linear(features, outcome.aggregate.head["weight"], outcome.aggregate.head["bias"])
        accuracy[head] = float((logits.argmax(1) == labels).float().mean())
        if head == "ridge":
            triangle, features_sums = 4 * 96 * 97 // 2, 4 * 96 * 10
            assert triangle + features_sums < outcome.start["bytes_up"] / 2 < triangle + features_sums + 3000
    assert len(test) > 200 and accuracy["random"] < 0.3 < 0.75 < accuracy["ncm"] < accuracy["ridge"]


def test_the_reference_run_starts_from_the_same_head(tmp_path):
    """So that what the adapters add is told apart from what the head's start adds. Its own round 0 is in its bytes."""
    words = [*WORDS, "evaluation.head_alone=true", "head=ridge", f"output_dir={tmp_path}", "rounds=1"]
    assert run_sim.main([*words, "strategy=fedit", "init=lora_one"]) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["head_alone"]["start"]["head"] == summary["start"]["head"]
    assert summary["head_alone"]["start"]["bytes_up"] > 3 * 4 * 24 * 25 // 2
    assert summary["start"]["moved"] > 0 and "moved" not in summary["head_alone"]["start"]


def test_a_head_by_key_has_its_defaults_and_repeats():
    by_key, by_group = small_config("head.init=mvn"), small_config("head=mvn")
    assert create_head(by_key.head.name, by_key.head.options) == create_head(by_group.head.name, by_group.head.options)
    site = Site(by_key)
    hashes = {federate(by_key, LocalGrid(Cohort(site), 3), site.backbone).final_hash for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda t: {**t, "weight": t["weight"].T}, r"weight as float32 \(5, 3\), expected float32 \(3, 5\)"),
        (lambda t: {**t, "bias": t["bias"].long()}, r"bias as int64 \(3,\), expected float32"),
        (lambda t: {**t, "bias": t["bias"].tolist()}, "bias as list, expected float32"),
        (lambda t: {**t, "bias": t["bias"] * float("nan")}, "bias with NaN or infinity"),
        (lambda t: {"weight": t["weight"]}, "a head of weight, expected weight, bias"),
        (lambda t: {**t, "x": t["bias"]}, "a head of weight, bias, x, expected weight, bias"),
    ],
)
def test_what_is_no_head_is_told(changed, said):
    """Of one of one's own, before any client is sent it."""
    context, head = HeadContext(classes=("a", "b", "c"), features=5, seed=0), create_head("random", {})
    made = head.plan(context)
    with pytest.raises(RunFailed, match=f"^{type(head).__name__} makes {said}"):
        refuse_unfit(HeadState(tensors=changed(made.tensors)), context, head)
    with pytest.raises(RunFailed, match="makes NoneType, expected a HeadState"):
        refuse_unfit(None, context, head)
    exact = HeadState(tensors={name: value.double() for name, value in made.tensors.items()})
    for name, value in refuse_unfit(exact, context, head).tensors.items():
        assert value.dtype == torch.float32 and torch.equal(value, made.tensors[name])
