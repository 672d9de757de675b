"""Attacks by their formulas, on plain tensors in float64; who attacks, and what of it stays inside a simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clients.attacks import ATTACKS
from clients.attacks.alie import hiding
from clients.attacks.contract import Seen
from clients.attacks.label_flip import flipped
from clients.client_app import _cohort
from clients.site import Site
from fedinit.config import attack as settings
from fedinit.config.compose import compose_config
from fedinit.config.flower import to_run_config
from fedinit.data.shares import Partition
from fedinit.errors import InputError
from strategies.server.compatibility import check_method
from tests.support.small import small_config

NAMES = ("layer/A", "layer/B", "head/weight")
SHAPES = ((2, 5), (4, 2), (3, 4))


def change(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in zip(NAMES, SHAPES, strict=True)}


def forge(name: str, honest: int = 4, **options) -> dict[str, torch.Tensor]:
    made = settings.ATTACKS[name](**options)
    seen = Seen(change(0), [change(1 + i) for i in range(honest)], 2, torch.Generator().manual_seed(9))
    return dict(ATTACKS[name](made).forge(seen))


def flat(change: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([change[name].numpy().ravel() for name in NAMES])


OWN, HONEST = flat(change(0)), np.stack([flat(change(1 + i)) for i in range(4)])


def test_an_attack_has_its_options_and_its_deed():
    assert set(settings.ATTACKS) == {*ATTACKS, "none"}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sign_flip", {}, -OWN),
        ("sign_flip", {"factor": 2.0}, -2 * OWN),
        ("scaled", {}, 9 * OWN),
        ("claims", {}, -OWN),
        ("label_flip", {}, OWN),
        ("head_only", {"factor": 3.0}, np.concatenate([OWN[:18], -3 * OWN[18:]])),
        ("alie", {}, HONEST.mean(0) - 1.5 * HONEST.std(0)),
        ("ipm", {"epsilon": 0.5}, -0.5 * HONEST.mean(0)),
    ],
)
def test_what_is_sent_is_the_formula(name, options, expected):
    np.testing.assert_allclose(flat(forge(name, **options)), expected, rtol=1e-12, atol=1e-12)


def test_noise_is_as_long_as_the_own_change_in_every_tensor():
    forged, own = forge("gaussian", factor=2.0), change(0)
    for name in NAMES:
        assert float(forged[name].norm()) == pytest.approx(2 * float(own[name].norm()), rel=1e-12)
    assert abs(flat(forged) @ OWN) < 0.5 * np.linalg.norm(flat(forged)) * np.linalg.norm(OWN)
    assert np.array_equal(flat(forged), flat(forge("gaussian", factor=2.0)))  # of the draw alone


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
def test_minmax_goes_exactly_as_far_as_hides(direction):
    """Its largest distance to an honest change is the largest between two of these; a step farther it is not."""
    forged = flat(forge("minmax", direction=direction))
    room = max(np.linalg.norm(a - b) for a in HONEST for b in HONEST)
    assert np.linalg.norm(forged - HONEST, axis=1).max() == pytest.approx(room, rel=1e-9)
    mean = HONEST.mean(0)
    farther = mean + 1.01 * (forged - mean)
    assert np.linalg.norm(farther - HONEST, axis=1).max() > room


@pytest.mark.parametrize("name", ["alie", "ipm", "minmax"])
def test_who_knows_nobody_honest_goes_by_its_own_change(name):
    forged = flat(forge(name, honest=0))
    assert np.isfinite(forged).all() and abs(forged @ OWN) == pytest.approx(
        np.linalg.norm(forged) * np.linalg.norm(OWN), rel=1e-9
    )


def test_the_z_that_hides_is_the_papers():
    """Their example: 50 workers, 24 of them bad: two supporters are needed, Φ(z) = 24/26."""
    assert hiding(26, 24) == pytest.approx(1.4261, abs=1e-4)
    assert hiding(4, 2) == 0.0 and hiding(0, 3) == 0.0


def test_flipped_labels_are_the_attackers_training_images_alone():
    site = Site(small_config())
    bad = site.partitions[1]
    poisoned = flipped(site.data, [bad])
    assert torch.equal(poisoned.labels[bad.train], 9 - site.data.labels[bad.train])
    rest = torch.ones(len(site.data), dtype=torch.bool)
    rest[bad.train] = False
    assert torch.equal(poisoned.labels[rest], site.data.labels[rest]) and isinstance(bad, Partition)


def test_attackers_are_drawn_from_the_seed_or_named():
    attack = settings.SignFlipConfig(count=3)
    assert attack.attackers(20, 0) == attack.attackers(20, 0) != attack.attackers(20, 1)
    assert len(attack.attackers(20, 0)) == 3
    assert settings.SignFlipConfig(clients=(4, 1)).attackers(5, 0) == {1, 4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("attack=sign_flip", "attack.clients=[3]"),
            "attack.clients=.3.: expected one or more of the partition ids 0 to 2",
        ),
        (("attack=sign_flip", "attack.clients=[]"), "attack.clients=..: expected"),
        (("attack=ipm", "attack.count=3"), "attack=ipm: all of the 3 clients would attack; leave one honest"),
    ],
)
def test_attackers_that_are_not_there_are_refused(words, said):
    from clients.cohort import Cohort

    with pytest.raises(InputError, match=said):
        Cohort(Site(small_config(*words)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attack=alie", "adapter.ranks=halving", "strategy=fedit"), "attack=alie: takes means over .* adapter.ranks"),
        (("attack=label_flip", "experiment=matrix_sensing"), "attack=label_flip: .* no classes"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said):
    with pytest.raises(InputError, match=said):
        check_method(compose_config([*words]))


def test_no_client_of_flower_attacks():
    """The server refuses such a run; and a client that is told to by a server that does not, refuses it too."""
    config = small_config("attack=sign_flip", "evaluation=none")
    with pytest.raises(InputError, match="attack=sign_flip: bad clients are for simulations alone; use none"):
        check_method(config, under_flower=True)
    check_method(config)
    run_config = json.dumps(to_run_config(config), sort_keys=True)
    with pytest.raises(
        InputError, match="attack=sign_flip: is for simulations by fedinit run; a client of Flower is honest"
    ):
        _cohort(run_config, "{}", 0)
