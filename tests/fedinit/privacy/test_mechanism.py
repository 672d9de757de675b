"""Clips and noise: the stated deviation, a clip that is one, and denominators that do not depend on who answered."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedinit.config.privacy import LEAST_CLIP, MOST_CLIP
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.privacy import mechanism as mechanism_of_module
from fedinit.privacy.accounting import Rounds
from fedinit.privacy.mechanism import AdaptiveClip, ClientMechanism, Phase
from fedinit.transforms import ClientClip, Payload, leave
from fedinit.transforms.client_clip import clip_to, known_images

COSTS = Rounds(0.5, "poisson", 1e-5, "rdp")
KNOWN = {"l/A": torch.full((40, 50), 2.0), "l/B": torch.zeros(60, 40), "head/weight": torch.ones(30, 70)}


def mechanism(**about: Any) -> ClientMechanism:
    given = {"clips": {"first": 0.5}, "noise": 3.0, "expected": 4.0, "costs": COSTS, "seed": 0, "secure": False}
    return ClientMechanism(**(given | about))


def distance(tensors, known) -> float:
    return sum(float((v.double() - known[n].double()).square().sum()) for n, v in tensors.items()) ** 0.5


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("phases", [1, 2])
def test_every_released_tensor_has_the_stated_noise(phases, secure):
    """z√phases·clip/(q·N) on each entry; 2,000 of them say it to 2 %, and five times that is allowed. Nothing else."""
    clips: dict[Phase, float] = {"first": 0.5, "second": 0.25} if phases == 2 else {"first": 0.5}
    made = mechanism(clips=clips, secure=secure)
    for phase, clip in clips.items():
        stated = 3.0 * phases**0.5 * clip / 4.0
        assert made.deviation(phase) == pytest.approx(stated)
        released = made.release(KNOWN, [], phase, 1)
        for name, value in released.items():
            noise = value - KNOWN[name]
            assert float(noise.std()) == pytest.approx(stated, rel=0.1), name
            assert abs(float(noise.mean())) < 5 * stated / noise.numel() ** 0.5
    still = dataclasses.replace(made, noise=0.0).release(KNOWN, [], "first", 1)  # the control
    assert all(torch.equal(value, KNOWN[name].double()) for name, value in still.items())


def test_noise_differs_by_round_tensor_and_phase_and_comes_again():
    made = mechanism(clips={"first": 0.5, "second": 0.5})
    square = {"a": torch.zeros(20, 20), "b": torch.zeros(20, 20)}
    draws = [made.release(square, [], phase, round) for phase in ("first", "second") for round in (1, 2)]
    flat = torch.stack([value.flatten() for draw in draws for value in draw.values()])
    assert float((torch.corrcoef(flat) - torch.eye(8)).abs().max()) < 0.25
    again, other = made.release(square, [], "first", 1), dataclasses.replace(made, secure=True)
    assert torch.equal(again["a"], draws[0]["a"])
    assert not torch.equal(other.release(square, [], "first", 1)["a"], other.release(square, [], "first", 1)["a"])


def test_the_denominator_does_not_depend_on_who_answered():
    """s + Σ(x_i − s)/(q·N): one client's absence moves the mean by its own change over q·N, and by nothing else."""
    quiet, draw = mechanism(noise=0.0), torch.Generator().manual_seed(0)
    answers = [{n: v + torch.randn(v.shape, generator=draw) for n, v in KNOWN.items()} for _ in range(3)]
    all_of, fewer = quiet.release(KNOWN, answers, "first", 1), quiet.release(KNOWN, answers[:2], "first", 1)
    for name, value in KNOWN.items():
        torch.testing.assert_close(all_of[name] - fewer[name], (answers[2][name].double() - value) / 4.0)


@pytest.mark.parametrize("size", [0.01, 0.99, 1.01, 1e6])
def test_what_leaves_a_client_is_no_farther_than_the_clip(size):
    draw = torch.Generator().manual_seed(1)
    change = {name: torch.randn(value.shape, generator=draw) for name, value in KNOWN.items()}
    length = distance(change, {name: torch.zeros_like(value) for name, value in change.items()})
    trained = {name: KNOWN[name] + size * 0.5 / length * change[name] for name in KNOWN}
    clipped = clip_to(trained, KNOWN, 0.5)
    assert distance(clipped, KNOWN) <= 0.5
    if size < 1:
        assert all(torch.equal(clipped[name], trained[name]) for name in KNOWN)
        return
    assert distance(trained, KNOWN) > 0.5  # the control
    for name, value in clipped.items():  # all of it by one factor, so that the direction stays
        torch.testing.assert_close(value - KNOWN[name], change[name] * 0.5 / length, rtol=1e-2, atol=1e-6)


def test_a_client_clips_its_factors_and_head_together_and_its_second_answer_apart():
    start = {"l": Factors(torch.ones(2, 5), torch.zeros(4, 2))}
    task: Any = SimpleNamespace(adapter=start, head={"weight": torch.zeros(3, 4)})
    chain = [ClientClip(0.5, 0.1)]
    first = leave(chain, task, Payload({"l/B": torch.ones(4, 2), "head/weight": torch.ones(3, 4)})).tensors
    assert distance(first, {"l/B": torch.zeros(4, 2), "head/weight": torch.zeros(3, 4)}) == pytest.approx(0.5, rel=1e-5)
    means: Any = SimpleNamespace(adapter={"l": Factors(torch.ones(2, 5), torch.ones(4, 2))}, head={})
    second = leave(chain, means, Payload({"l/S": torch.zeros(4, 2)})).tensors
    assert known_images(means.adapter)["l/S"].tolist() == [[10.0, 10.0]] * 4
    assert distance(second, known_images(means.adapter)) == pytest.approx(0.1, rel=1e-3)


def test_samples_are_as_they_are_counted():
    clients = list(range(200))
    poisson = [mechanism(expected=100.0).sample(round, clients) for round in range(50)]
    sizes = torch.tensor([float(len(sample)) for sample in poisson])
    assert float(sizes.mean()) == pytest.approx(100, abs=5) and 3 < float(sizes.std()) < 12  # √50
    fixed = mechanism(expected=100.0, costs=dataclasses.replace(COSTS, sampling="fixed"))
    assert {len(set(fixed.sample(round, clients))) for round in range(5)} == {100}


ADAPTIVE = AdaptiveClip(quantile=0.5, rate=0.2, noise=2.0)


def test_the_clip_moves_by_the_formula():
    """An oracle in numpy's float64: two of five changes within the clip, 8 expected, and the noise that was drawn."""
    made = mechanism(clips={"first": 0.5}, expected=8.0, adaptive=dataclasses.replace(ADAPTIVE, noise=1e-300))
    lengths = [0.1, 0.4, 0.5 * (1 - 1e-6), 0.5 * (1 - 1e-6), 0.5 * (1 - 1e-6)]  # as clients clip
    unit = {n: torch.ones_like(v) / sum(v.numel() for v in KNOWN.values()) ** 0.5 for n, v in KNOWN.items()}
    answers = [{n: v + length * unit[n] for n, v in KNOWN.items()} for length in lengths]
    share = 0.5 + (2 * 0.5 - 3 * 0.5) / 8.0
    assert made.next_clip(KNOWN, answers, 1) == pytest.approx(0.5 * np.exp(-0.2 * (share - 0.5)), rel=1e-12)
    noisy = mechanism(clips={"first": 0.5}, adaptive=ADAPTIVE)
    assert noisy.at(0.3).deviation("first") == pytest.approx(noisy.deviation("first") * 0.3 / 0.5)
    assert mechanism().next_clip(KNOWN, answers, 1) == 0.5  # a clip that stays


def test_noise_on_the_count_takes_the_clip_nowhere_that_a_clip_may_not_be():
    """With a noise of 10⁶ the share is anything, and the clip was 1e-81, 1e+9 and an OverflowError."""
    rule = dataclasses.replace(ADAPTIVE, noise=1e6)
    assert rule.next(1.0, -1e9) == MOST_CLIP and rule.next(1.0, 1e9) == LEAST_CLIP
    clip, made = 0.5, mechanism(adaptive=rule)
    for round in range(20):
        clip = made.at(clip).next_clip(KNOWN, [], round)
        assert LEAST_CLIP <= clip <= MOST_CLIP


@pytest.mark.parametrize("secure", [False, True])
def test_both_releases_of_an_adaptive_round_have_the_stated_noise(secure):
    """The count σ_b, each entry of the mean z_Δ·C/(q·N); together, at sensitivities 1/2 and C, they are one of z."""
    made = mechanism(secure=secure, adaptive=ADAPTIVE)
    moved = [made.next_clip(KNOWN, [], round) for round in range(400)]
    counts = (np.log(0.5 / np.array(moved)) / 0.2) * 4.0  # 0.5 and the share cancel: what is left is the noise
    assert counts.std() == pytest.approx(2.0, rel=0.15) and abs(counts.mean()) < 0.5
    stated = ADAPTIVE.noise_of_updates(3.0)
    assert 1 / stated**2 + 1 / (2 * 2.0) ** 2 == pytest.approx(1 / 3.0**2)
    released = made.release(KNOWN, [], "first", 1)
    for name, value in released.items():
        assert float((value - KNOWN[name]).std()) == pytest.approx(stated * 0.5 / 4.0, rel=0.1), name
    assert stated > 1.5 * 3.0 / 1.02  # the control: z itself would be too little by half
    with pytest.raises(InputError, match="privacy.count_noise=1.5: the count alone then tells more"):
        AdaptiveClip(quantile=0.5, rate=0.2, noise=1.5).noise_of_updates(3.0)


def last_clip(quantile: float, rounds: int = 60) -> tuple[float, np.ndarray]:
    """The clip after so many rounds of 40 clients whose changes have lognormal lengths, from far too small a one."""
    rule = dataclasses.replace(ADAPTIVE, quantile=quantile, rate=0.5, noise=2.0)
    lengths, clip = np.random.default_rng(0).lognormal(0.0, 0.5, 40), 0.05
    made, start = mechanism(adaptive=rule, expected=40.0), {"a": torch.zeros(1)}
    for round in range(rounds):
        answers = [{"a": torch.tensor([min(x, clip * (1 - 1e-6))])} for x in lengths]  # as clients clip
        clip = made.at(clip).next_clip(start, answers, round)
    return clip, lengths


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_clip_comes_to_the_quantile(quantile):
    clip, lengths = last_clip(quantile)
    assert float((lengths <= clip).mean()) == pytest.approx(quantile, abs=0.13)


def test_where_who_was_clipped_counts_as_within_it_does_not(monkeypatch):
    """The control."""
    monkeypatch.setattr(mechanism_of_module, "INSIDE", 1.0)
    assert last_clip(0.5, rounds=10)[0] < 0.05


@pytest.mark.parametrize("large", [0.0, 1e3, 1e5])
def test_a_clip_that_is_small_beside_what_is_sent_comes_back(large):
    """What is cut loses what rounding may add, half a unit of all that was sent: of a clip that is small beside it most
    of the cut, which was taken for a change within it, so that the clip ran away to the least there is."""
    start = {"a": torch.tensor([large, 0.0])}
    made, clip = mechanism(adaptive=dataclasses.replace(ADAPTIVE, rate=0.5, noise=1e-300), expected=9.0), 1e-3
    for round in range(60):
        change = {"a": start["a"] + torch.tensor([0.0, 0.25])}
        answers = [clip_to(change, start, clip)] * 9
        clip = made.at(clip).next_clip(start, answers, round)
    assert 0.15 < clip < 0.4


@pytest.mark.slow
def test_rounds_stop_before_they_pass_epsilon():
    made = mechanism()
    rounds = made.affordable(100, 8.0)
    assert 0 < rounds < 100 and made.epsilon(rounds) <= 8 < made.epsilon(rounds + 1)
    assert made.affordable(100, None) == 100 and made.affordable(100, 1e-3) == 0


@pytest.mark.parametrize("clip", [1e-5, 1e-4, 1e-3, 1e-2, 1.0, 10.0])
def test_no_rounding_of_what_is_sent_goes_beyond_the_clip(clip):
    """Rounding is of the start and the change together, however small the clip is."""
    draw = torch.Generator().manual_seed(0)
    start = {f"{i}/A": torch.randn(16, 768, generator=draw) for i in range(24)}
    trained = {name: value + torch.randn(value.shape, generator=draw) for name, value in start.items()}
    sent = clip_to(trained, start, clip)
    moved = sum(float((sent[name].double() - start[name].double()).square().sum()) for name in start) ** 0.5
    assert moved <= clip and (moved >= 0.99 * clip or clip < 1e-2)
