"""One client's private steps, fedinit/privacy/steps.py."""

from __future__ import annotations

import pytest

from fedinit.config.client import ClientConfig, SGDConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.errors import InputError
from fedinit.privacy.accounting import Rounds
from fedinit.privacy.steps import Steps

pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")


def two(batch_size: int) -> ClientConfig:
    """Two steps a round."""
    return SGDConfig(batch_size=batch_size, max_steps=2, epochs=9)


@pytest.mark.slow
def test_a_clients_noise_is_its_own_and_keeps_its_epsilon() -> None:
    """Of two clients with one batch size the smaller one's examples are in more batches, and need more noise."""
    privacy = ExamplePrivacyConfig(epsilon=4.0)
    small, large = Steps.of(40, two(20), 1, privacy), Steps.of(400, two(20), 1, privacy)
    assert small.rate == 0.5 and large.rate == 0.05 and small.noise > large.noise
    for steps in (small, large):
        assert 0.97 * 4 < steps.epsilon(2) <= 4 < steps.epsilon(3)
        assert steps.epsilon(2) == Rounds(steps.rate, "poisson", 1e-5, "rdp").epsilon(steps.noise, 2)


def test_noise_that_is_given_is_taken_where_epsilon_allows_it() -> None:
    given = ExamplePrivacyConfig(epsilon=None, noise=0.7)
    assert Steps.of(40, two(20), 3, given).noise == 0.7
    with pytest.raises(InputError, match=r"privacy.noise=0.7: 6 steps of a client with 40 examples spend an ε of"):
        Steps.of(40, two(20), 3, ExamplePrivacyConfig(epsilon=4.0, noise=0.7))


def test_every_example_may_be_in_every_batch_and_no_more() -> None:
    assert Steps.of(20, two(20), 1, ExamplePrivacyConfig()).rate == 1
    with pytest.raises(InputError, match=r"client.batch_size=20: .* a client has 19; use 19 or less"):
        Steps.of(19, two(20), 1, ExamplePrivacyConfig())
