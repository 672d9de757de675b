"""What DP-SGD costs, fedinit/privacy/sampled_gaussian.py: known figures, laws, and a line where the library is not."""

from __future__ import annotations

import math
import sys

import pytest

from fedinit.config.privacy_examples import ExamplePrivacy
from fedinit.errors import InputError
from fedinit.privacy.sampled_gaussian import Sampling, noise_for, spent


@pytest.fixture(autouse=True)
def _library(request: pytest.FixtureRequest) -> None:
    if "without_the_library" not in request.node.name:
        pytest.importorskip("dp_accounting", reason="the [privacy] extra is not installed")


def _of_gaussian(noise: float, epsilon: float) -> float:
    """δ of one Gaussian mechanism (Balle & Wang 2018, theorem 8)."""
    cdf = lambda x: 0.5 * math.erfc(-x / 2**0.5)  # noqa: E731
    return cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * cdf(-0.5 / noise - epsilon * noise)


def test_every_example_in_every_batch_is_the_gaussian_mechanism() -> None:
    """T steps at q = 1 are one mechanism of noise σ/√T, whose δ is known in closed form."""
    epsilon = spent(1.0, 4.0, 16, 1e-5, "pld")
    assert _of_gaussian(1.0, epsilon) == pytest.approx(1e-5, rel=0.02)
    assert spent(1.0, 4.0, 16, 1e-5, "rdp") >= epsilon


def test_renyi_divergences_bound_the_exact_figure_from_above() -> None:
    exact, bound = spent(0.1, 1.1, 150, 1e-5, "pld"), spent(0.1, 1.1, 150, 1e-5, "rdp")
    assert exact < bound < 1.2 * exact
    assert bound == pytest.approx(8.148, abs=0.01)


def test_more_steps_cost_more_and_more_noise_less() -> None:
    assert spent(0.1, 1.0, 0, 1e-5, "rdp") == 0.0 and spent(0.1, 0.0, 1, 1e-5, "rdp") == math.inf
    assert spent(0.1, 1.0, 10, 1e-5, "rdp") < spent(0.1, 1.0, 20, 1e-5, "rdp") < spent(0.1, 0.8, 20, 1e-5, "rdp")
    assert spent(0.1, 1.0, 10, 1e-5, "rdp") < spent(0.2, 1.0, 10, 1e-5, "rdp")


@pytest.mark.parametrize("rate, steps, epsilon", [(0.05, 40, 1.0), (0.5, 20, 8.0), (1.0, 6, 3.0)])
def test_the_noise_keeps_epsilon_and_little_less_would_not(rate: float, steps: int, epsilon: float) -> None:
    noise = noise_for(rate, steps, epsilon, 1e-5, "rdp")
    assert 0.98 * epsilon < spent(rate, noise, steps, 1e-5, "rdp") <= epsilon
    assert spent(rate, 0.99 * noise, steps, 1e-5, "rdp") > epsilon


def test_a_clients_noise_is_its_own() -> None:
    """Of two clients with one batch size the smaller one's examples are in more batches, and need more noise."""
    privacy = ExamplePrivacy(epsilon=4.0)
    small, large = Sampling.of(40, 20, 4), Sampling.of(400, 20, 40)
    assert small.rate == 0.5 and large.rate == 0.05
    assert small.noise(privacy, 3) == noise_for(0.5, 12, 4.0, 1e-5, "rdp") > large.noise(privacy, 3)
    assert small.noise(ExamplePrivacy(noise=0.7, epsilon=None), 3) == 0.7


def test_what_no_noise_keeps_is_one_line() -> None:
    with pytest.raises(InputError, match=r"privacy.epsilon=1e-05: no noise keeps it over 1000 steps"):
        noise_for(1.0, 1000, 1e-5, 1e-12, "rdp")
    with pytest.raises(InputError, match="a client has 19; use 19 or less"):
        Sampling.of(19, 20, 1)


def test_without_the_library_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"dp-accounting .*pip install 'fedinit\[privacy\]'"):
        spent(0.123, 1.0, 3, 1e-5, "rdp")
