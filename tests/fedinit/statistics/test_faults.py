"""Sums of images that hardly differ are those of images, whatever float32 leaves of them; what none have is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fedinit.statistics import Request, Sampling, create_statistics, pack, unpack

LAYER = "head"
Batch = tuple[Tensor, Tensor | None]


def request(kind: str, shape: tuple[int, int], weighting: str = "samples", **options: Any) -> Request:
    source = "inputs" if kind in ("gram", "nystrom") else "features"
    head = options.pop("head", {})
    sampling = Sampling.read({"min_examples": 1, "weighting": weighting})
    return Request(
        source=source,
        layers={LAYER: kind},
        shapes={LAYER: shape},
        seed=0,
        sampling=sampling,
        options=options,
        head=head,
    )


def sent(asked: Request, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What an honest client sends, as the server has it."""
    statistics = create_statistics(asked)
    measured = [statistics[LAYER].measure(*batch) for batch in batches]
    sums = {key: torch.stack([part[key].double() for part in measured]).sum(0) for key in measured[0]}
    if asked.sampling.weighting == "uniform":
        sums = {key: value / sums["count"] for key, value in sums.items()}
    packed = pack(statistics, {f"{LAYER}/{key}": value for key, value in sums.items()})
    return {name.removeprefix(f"{LAYER}/"): value for name, value in unpack(statistics, packed).items()}


def fault(asked: Request, sums: Mapping[str, Tensor], examples: int) -> str:
    return create_statistics(asked)[LAYER].fault(sums, examples)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize(("classes", "count"), [(2, 8), (2, 100), (2, 1000), (3, 100), (7, 100)])
def test_moments_of_one_picture_a_class_are_refused_of_nobody(classes, count, odd, weighting):
    """The scatter inside the classes is zero, of which float32 would leave what no scatter is."""
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (count,), generator=draw)
        features = (torch.randn(classes, 192, generator=draw) + 1)[labels]
        features[torch.randperm(count, generator=draw)[:odd]] += torch.randn(odd, 192, generator=draw)
        asked = request("class_moments", (10, 192), weighting)
        batches = list(zip(features.split(256), labels.split(256), strict=True))
        assert fault(asked, sent(asked, batches), count) == ""
        sums = sent(asked, batches)
        sums["gram"] = 0.5 * sums["gram"]  # the control: less than the classes' own means have
        assert "not positive semi-definite" in fault(asked, sums, count)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("kind", ["gram", "nystrom"])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3, 1.0])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
def test_moments_of_inputs_that_hardly_vary_are_refused_of_nobody(kind, mean, spread, weighting):
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        rows = mean * torch.randn(48, generator=draw) + spread * torch.randn(100, 48, generator=draw)
        asked = request(kind, (8, 48), weighting, width=16)
        sums = sent(asked, [(part, None) for part in rows.split(64)])
        assert fault(asked, sums, 100) == ""
        if spread == 1.0 and mean != 1e4:
            sums["sum"] = 2 * sums["sum"] + 50 * (float(sums["count"]) / 100)  # the control
            assert "sum of rows" in fault(asked, sums, 100) or "semi-definite" in fault(asked, sums, 100)


def test_rows_are_those_that_the_model_has():
    draw = torch.Generator().manual_seed(0)
    for kind in ("gram", "nystrom"):
        asked = request(kind, (8, 12), width=4)
        sums = sent(asked, [(torch.randn(40, 12, generator=draw), None)])
        known = Request(**{**vars(asked), "rows": {LAYER: 4}})
        assert fault(known, sums, 10) == ""
        assert fault(known, sums, 20) == f"{LAYER}: a count of 40 over 20 images, expected 4 rows an image"
        assert fault(asked, sums, 20) == ""  # the control: of a model that nobody looked through
        few = Request(**{**vars(known), "sampling": Sampling(min_examples=1, tokens=2)})
        assert "expected 2 rows an image" in fault(few, sums, 10) and fault(few, sums, 20) == ""


def losses_of(spread: float, gains: Sequence[float], weighting: str) -> tuple[Request, dict[str, Tensor]]:
    """Of 90 images; their logits differ by about `spread`."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (90,), generator=draw)
    features = torch.randn(90, 12, generator=draw) + 2 * torch.eye(5, 12)[labels]
    head = {"weight": spread * torch.eye(5, 12), "bias": torch.zeros(5)}
    asked = request("losses", (5, 12), weighting, head=head, scales=list(gains))
    return asked, sent(asked, [(features, labels)])


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
def test_losses_of_images(spread, weighting):
    asked, sums = losses_of(spread, [0.01, 0.5, 1.0, 20.0], weighting)
    assert fault(asked, sums, 90) == ""
    one = float(sums["count"]) / 90
    for lie in (
        {"losses": 0 * sums["losses"]},  # of images of which some are told wrong
        {"correct": sums["correct"] + 0.5 * one},
        {"correct": 0 * sums["correct"] - one},
        {"losses": sums["losses"] + 1e12},
    ):
        assert fault(asked, {**sums, **lie}, 90)


def test_a_noised_sum_of_few_numbers_is_refused_of_one_in_a_million():
    """Within six of its deviations, and not two, beyond what its images can have."""
    asked = request("gradient", (1, 1))
    noisy = Request(
        **{
            **vars(asked),
            "source": "gradients",
            "sampling": Sampling(min_examples=1, clip=1.0, noise=10.0),
        }
    )
    count = torch.tensor(4, dtype=torch.float64)
    for deviations, refused in ((0.0, False), (5.0, False), (20.0, True)):
        sums = {"count": count, "gradient": torch.full((1, 1), 4.0 + 10.0 * deviations, dtype=torch.float64)}
        assert bool(fault(noisy, sums, 4)) == refused
