"""ε of rounds: against published figures, closed forms and laws."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from fedinit.errors import InputError
from fedinit.privacy import accounting
from fedinit.privacy.accounting import Rounds

pytest.importorskip("dp_accounting", reason="ε is counted by dp-accounting: pip install fedinit[privacy]")


def counted(share: float = 1.0, sampling: Any = "poisson", delta: float = 1e-5, accountant: Any = "rdp") -> Rounds:
    return Rounds(share, sampling, delta, accountant)


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.3, 15, 1.18), (1.1, 60, 2.97), (0.7, 45, 7.10)])
def test_the_table_of_tensorflow_privacy(noise, epochs, published):
    """tensorflow/privacy, tutorials/README: MNIST, 60,000 examples in batches of 256, δ = 1e-5, of which its newer
    conversion from Rényi divergences takes off up to a sixth."""
    epsilon = counted(256 / 60000).epsilon(noise, epochs * 60000 // 256)
    assert 0.8 * published < epsilon <= 1.02 * published
    assert epsilon < 0.5 * counted(256 / 60000).epsilon(noise / 1.5, epochs * 60000 // 256)  # the control


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_one_gaussian_has_its_own_formula(accountant, noise):
    """Balle and Wang, 2018, theorem 8: δ(ε) = Φ(1/2z − εz) − e^ε Φ(−1/2z − εz). The distribution attains it; Rényi
    divergences bound it."""

    def tail(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    epsilon = counted(accountant=accountant).epsilon(noise, 1)
    delta = tail(0.5 / noise - epsilon * noise) - math.exp(epsilon) * tail(-0.5 / noise - epsilon * noise)
    assert delta <= 1e-5 * (1 + 1e-6)
    assert accountant == "rdp" or delta > 0.97e-5


def test_composed_gaussians_are_one_of_less_noise():
    assert counted().epsilon(2.0, 16) == pytest.approx(counted().epsilon(0.5, 1))


@pytest.mark.parametrize("sampling", ["poisson", pytest.param("fixed", marks=pytest.mark.slow)])
def test_more_rounds_cost_more_and_more_noise_less(sampling):
    about = counted(0.2, sampling)
    by_rounds = [about.epsilon(1.5, rounds) for rounds in range(5)]
    assert by_rounds[0] == 0 and sorted(set(by_rounds)) == by_rounds
    assert about.epsilon(3.0, 4) < about.epsilon(1.5, 4) < about.epsilon(0, 4) == math.inf
    assert about.epsilon(1.5, 4) < counted(0.4, sampling).epsilon(1.5, 4)


def test_a_fixed_sample_has_neighbours_that_are_twice_as_far():
    assert counted(0.2, "fixed").epsilon(1.5, 4) > counted(0.2).epsilon(1.5, 4)
    assert counted(1.0, "fixed").epsilon(1.5, 4) == counted(1.0).epsilon(1.5, 4)


def test_a_sample_of_everybody_is_compared_with_and_without_one_client():
    """The ε of a fixed size falls where the share comes to 1, and the word beside it is another."""
    half, whole = (Rounds(share, "fixed", 1e-5, "rdp") for share in (0.5, 1.0))
    assert (half.neighbours, whole.neighbours) == ("with one client replaced", "with and without one client")
    assert Rounds(0.5, "poisson", 1e-5, "rdp").neighbours == whole.neighbours
    assert (round(half.epsilon(2.0, 10), 2), round(whole.epsilon(2.0, 10), 2)) == (16.36, 8.08)
    # Both compared alike, a sample tells less than everybody does.
    assert half.epsilon(2.0, 10) < whole.epsilon(1.0, 10)


LONG = [pytest.param(0.01, 20_000, 0.5, marks=pytest.mark.slow), pytest.param(0.25, 15, 8.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("share", "rounds", "epsilon"), [(0.05, 60, 0.5), *LONG])
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_noise_that_epsilon_takes(accountant, share, rounds, epsilon):
    """The least, to one part in a thousand, whatever it was looked for with; also where a coarse grid is far off."""
    about = counted(share, accountant=accountant)
    noise = about.noise(epsilon, rounds)
    assert about.epsilon(noise, rounds) <= epsilon < about.epsilon(noise / 1.0011, rounds)


@pytest.mark.parametrize(
    ("sampling", "accountant"),
    [("poisson", "rdp"), ("fixed", "rdp"), pytest.param("poisson", "pld", marks=pytest.mark.slow)],
    ids="-".join,
)
def test_epsilon_of_many_rounds_is_what_the_accountant_composes(sampling, accountant) -> None:
    """To the bit: a round is looked into once, and what is made of it for the rounds is no other number."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    poisson = dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.1))
    fixed = dp.SampledWithoutReplacementDpEvent(10**6, 50_000, dp.GaussianDpEvent(0.55))
    about, relations = counted(0.05, sampling, accountant=accountant), dp.NeighboringRelation
    relation = relations.REPLACE_ONE if sampling == "fixed" else relations.ADD_OR_REMOVE_ONE
    for rounds in (7, 60):
        theirs = RdpAccountant(neighboring_relation=relation).compose(fixed if sampling == "fixed" else poisson, rounds)
        expected = theirs.get_epsilon(1e-5)
        if accountant == "pld":
            expected = min(expected, PLDAccountant().compose(poisson, rounds).get_epsilon(1e-5))
        assert about.epsilon(1.1, rounds) == expected
    assert about.epsilon(1.1, 61) > expected  # the control


def test_an_accountant_that_says_nothing_of_itself_composes_anew(monkeypatch) -> None:
    """Another version's may keep its divergences elsewhere."""
    from dp_accounting.rdp import RdpAccountant

    class Other:
        def __init__(self, **options: object) -> None:
            self.own = RdpAccountant(**options)

        def compose(self, *event: object) -> Other:
            self.own.compose(*event)
            return self

        def get_epsilon(self, delta: float) -> float:
            return self.own.get_epsilon(delta)

    expected = counted(0.07).epsilon(1.3, 5)
    accounting._composed.cache_clear()
    accounting._epsilon.cache_clear()
    monkeypatch.setattr("dp_accounting.rdp.RdpAccountant", Other)
    try:
        assert counted(0.07).epsilon(1.3, 5) == expected
    finally:
        accounting._composed.cache_clear()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match="not installed; pip install 'fedinit\\[privacy\\]'"):
        counted(0.123).epsilon(1.0, 3)
