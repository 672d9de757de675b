"""An attacker who gets the model of a round, knows what every client would send, and asks who took part in it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

CLIENTS, WORDS = 8, ("partition=iid", "partition.clients=8", "strategy=fedit", "rounds=1", "evaluation=none")
QUIET = ("privacy.epsilon=null", "privacy.clip=1.0", "privacy.secure=true")


class Models(Observer):
    """The models that are released: before round 1 and after it."""

    def __init__(self) -> None:
        self.released: list[dict[str, Tensor]] = []

    def model(self, round, tensors) -> None:
        self.released.append({name: value.clone() for name, value in tensors.items()})


def flat(tensors) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def took_part(*words: str) -> tuple[dict[int, Tensor], Tensor, set[int]]:
    """{client: its change} of those that were asked in round 1, the change that was released, and who they were."""
    config, models, sent = small_config(*WORDS, *words), Models(), {}
    site = Site(config)
    cohort = Cohort(site)

    def handler(deliveries):
        replies = cohort(deliveries)
        for reply, (message, context) in zip(replies, deliveries, strict=True):
            if message.metadata.message_type == "train":
                sent[int(context.node_config["partition-id"])] = wire.decode(reply.content[wire.STATE])
        return replies

    federate(config, LocalGrid(handler, CLIENTS), site.backbone, observers=[models])
    before, after = models.released
    known = {client: flat(update) - flat({n: before[n] for n in update}) for client, update in sent.items()}
    return known, flat(after) - flat(before), {*sent}


@functools.cache
def known_changes(*words: str) -> Tensor:
    """(P, clients): what each would send from the same start, were it asked."""
    changes, _, asked = took_part(*words)
    assert asked == {*range(CLIENTS)}
    return torch.stack([changes[client] for client in range(CLIENTS)], 1)


def guessed(changes: Tensor, released: Tensor) -> set[int]:
    """The clients whose changes the released one is made of, by least squares."""
    weights = torch.linalg.lstsq(changes, released[:, None]).solution.flatten()
    return {client for client, weight in enumerate(weights.tolist()) if weight > weights.max() / 2}


@pytest.mark.parametrize("seed", [0, 1])
def test_without_privacy_the_model_tells_who_took_part(seed):
    """Every time and of every client, by one released model: a limit (docs/trust.md)."""
    words = (f"seed={seed}",)
    _, released, asked = took_part(*words, "participation=0.5")
    assert len(asked) == CLIENTS // 2 and guessed(known_changes(*words), released) == asked


def test_noise_on_what_is_released_takes_that_from_it():
    """The control: with privacy=clients the same attacker is wrong of some in most rounds."""
    pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")
    wrong = 0
    for seed in range(4):
        private = (f"seed={seed}", "privacy=clients", "privacy.sampling=fixed", "privacy.noise=2.0", *QUIET)
        _, released, asked = took_part(*private, "participation=0.5")
        wrong += guessed(known_changes(*private), released) != asked
    assert wrong >= 3
