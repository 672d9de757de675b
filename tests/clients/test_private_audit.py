"""An attacker against private training: the one-run audit (fedinit/privacy/audit.py), on the embedded digits.

Canaries are digits with labels drawn at random, each in the training data or not by a fair coin. The attacker is the
server at its best: it knows the start, the settings and all canaries, sees what a client releases after one step over
all of its examples, and estimates from the sum of gradients, by least squares, whose are in it. With noise, what it
proves stays below the claimed ε; with the noise off it proves more, whatever the clip.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from clients.private import PrivateRound, train_privately
from clients.resident import Resident
from clients.site import Site
from clients.task import Task
from clients.training import load
from fedinit.adapters.bank import Bank
from fedinit.config.client import SGDConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.factors import Factors
from fedinit.privacy.audit import least_epsilon, right_guesses
from fedinit.privacy.steps import Steps
from tests.support.small import small_config

pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")
CANARIES, CLAIMED, LR, CLIP = 200, 2.0, 0.1, 0.5


@functools.cache
def _round() -> PrivateRound:
    """A client of all canaries, before any training. Its batch is all that it has."""
    site, draw = Site(small_config("data.domains=[plain]", "partition=pooled")), torch.Generator().manual_seed(1)
    digits = torch.randperm(len(site.data), generator=draw)[:CANARIES]
    labels = torch.randint(0, 10, (CANARIES,), generator=draw)
    images, domains, test = site.data.images[digits], site.data.domains[digits], torch.zeros(CANARIES).bool()
    data = dataclasses.replace(site.data, images=images, labels=labels, domains=domains, test=test)
    adapter = {
        name: Factors(torch.randn(4, k, generator=draw) / k**0.5, 0.3 * torch.randn(d, 4, generator=draw))
        for name, (d, k) in site.targets.items()
    }
    head = {"weight": torch.randn(10, site.backbone.features, generator=draw) / 5, "bias": torch.zeros(10)}
    task = Task(0, 1, torch.arange(CANARIES), adapter, head, frozenset("AB"), secret="the client's own")
    settings = SGDConfig(lr=LR, momentum=0.0, weight_decay=0.0, clip_norm=None, batch_size=CANARIES, epochs=1)
    bank = Bank(site.backbone, site.targets, 2.0)
    return PrivateRound(bank, task, Resident(data, bank.device), site.backbone.input, settings, CLIP, 0)


def _released(round: PrivateRound, included: Tensor, privacy: ExamplePrivacyConfig) -> Tensor:
    """(P,): the sum of gradients that a step of the included canaries' client was made of, as its update tells."""
    mine = dataclasses.replace(round.task, examples=included.nonzero().flatten())
    settings = dataclasses.replace(round.settings, batch_size=len(mine.examples))
    result = train_privately(round.bank, mine, round.resident, round.spec, settings, privacy, 1, 0)

    def side_by_side(adapter, head) -> Tensor:
        parts = [factors.parts[part] for factors in adapter.values() for part in "AB"]
        return torch.cat([value.double().flatten() for value in (*parts, *head.values())])

    moved = side_by_side(round.task.adapter, round.task.head) - side_by_side(result.adapter, result.head)
    return moved * len(mine.examples) / LR


def _proven(privacy: ExamplePrivacyConfig) -> float:
    """The lower bound on ε, at 95 % confidence, that one run proves."""
    round, noise = _round(), Steps.of(CANARIES, SGDConfig(batch_size=CANARIES, epochs=1), 1, privacy).noise
    included = torch.rand(CANARIES, generator=torch.Generator().manual_seed(2)) < 0.5
    load(round.bank, [round.task], None, [])
    gradients = round.gradients(torch.arange(CANARIES), 0).double()
    known = gradients * (CLIP / gradients.norm(dim=1, keepdim=True)).clamp(max=1.0)
    release = _released(round, included, privacy) - known.sum(0) / 2  # what a coin would have in it
    ridge = known @ known.T + (4 * (noise * CLIP) ** 2 + 1e-9) * torch.eye(CANARIES)
    scores = torch.linalg.solve(ridge, known @ release)
    proven = [(n, right_guesses(scores, included, n)) for n in (50, 100, 200)]  # of three tries, each at a third of 5 %
    return max(least_epsilon(CANARIES, n, right, privacy.delta, 0.05 / 3) for n, right in proven)


@pytest.mark.parametrize("claimed", [CLAIMED, 8.0])
def test_noise_keeps_what_an_attacker_proves_below_the_claimed_epsilon(claimed: float) -> None:
    assert _proven(ExamplePrivacyConfig(epsilon=claimed, clip=CLIP)) < claimed


def test_without_noise_the_same_attacker_proves_more() -> None:
    """The control, which shows that the attacker can attack: over the ε of 2 that the noise above is for."""
    assert _proven(ExamplePrivacyConfig(clip=CLIP, noise=1e-9, epsilon=None)) > 1.5 * CLAIMED
