"""Bad clients in whole runs: what they send is forged, their mates' updates are not, and claims are held."""

from __future__ import annotations

import pytest
import torch

from clients.attacks.attackers import Attackers
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.attack import ATTACKS
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

WORDS = ("rounds=1", "strategy=fedit")


class Tapped(LocalGrid):
    """Keeps the messages and replies of the training."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and messages[0].metadata.message_type == "train":
            self.trained = [
                (wire.decode(m.content["state"]), wire.decode(r.content["state"]))
                for m, r in zip(messages, replies, strict=True)
            ]
        return replies


class Ledger(Observer):
    def __init__(self):
        self.lines = []

    def event(self, kind, facts):
        self.lines.append((kind, facts["client"], facts["code"]))


def changes(*words: str) -> tuple[list[dict[str, torch.Tensor]], str, list]:
    """What each client's reply of round 1 changed, the final hash, and the ledger."""
    config, ledger = small_config(*WORDS, *words), Ledger()
    site = Site(config)
    grid = Tapped(Cohort(site), 3)
    outcome = federate(config, grid, site.backbone, observers=[ledger])
    moved = [{name: end[name].double() - start[name].double() for name in end} for start, end in grid.trained]
    return moved, outcome.final_hash, ledger.lines


@pytest.fixture(scope="module")
def honest():
    return changes()


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in ("none", "label_flip")])
def test_one_of_three_is_forged_and_its_mates_are_not(honest, attack):
    moved, final, lines = changes(f"attack={attack}", "attack.clients=[1]")
    for client in (0, 2):
        assert all(torch.equal(moved[client][name], honest[0][client][name]) for name in moved[client])
    assert any(not torch.equal(moved[1][name], honest[0][1][name]) for name in moved[1])
    assert final != honest[1]
    assert lines == []  # also of who claims 2^40: it registered with them


def test_a_sign_flip_is_the_honest_change_the_other_way(honest):
    moved, _, _ = changes("attack=sign_flip", "attack.clients=[1]")
    for name, value in moved[1].items():  # to the rounding of float32 tensors of size one
        torch.testing.assert_close(value, -honest[0][1][name], rtol=1e-4, atol=2e-7)


def test_flipped_labels_train_another_update(honest):
    moved, _, _ = changes("attack=label_flip", "attack.clients=[1]")
    assert (moved[1]["head/weight"] - honest[0][1]["head/weight"]).norm() > 0.3 * moved[1]["head/weight"].norm()
    assert all(torch.equal(moved[0][name], honest[0][0][name]) for name in moved[0])


def test_a_claim_that_was_not_registered_is_refused(honest):
    _, _, lines = changes("attack=claims", "attack.clients=[1]", "attack.register=false")
    assert lines == [("refused", 1, "weight")]


def test_without_an_attack_there_are_no_attackers(honest):
    assert Cohort(Site(small_config(*WORDS))).attackers is None
    assert isinstance(Cohort(Site(small_config(*WORDS, "attack=ipm"))).attackers, Attackers)


@pytest.mark.parametrize("words", [("strategy=ravan", "init=random_core"), ("strategy=lora_a2",), ("adapter=dora",)])
def test_attacks_go_with_other_tensors(words):
    """Cores, chosen slots and magnitudes: forged in the tensors that are trained, and let in."""
    config = small_config("rounds=1", "attack=alie", "attack.clients=[1]", *words)
    site, ledger = Site(config), Ledger()
    outcome = federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[ledger])
    assert outcome.rounds == 1 and ledger.lines == []


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (lambda own: None, "NoneType, expected {name: tensor}"),
        (lambda own: {"x": torch.zeros(2)}, r"x as float32 \(2,\), expected no such tensor"),
        (lambda own: {name: value[:1] for name, value in own.items()}, r".* as float64 \(1, .*expected \("),
    ],
)
def test_what_no_attacker_could_send_is_a_fault_of_its_code(forged, said, monkeypatch):
    monkeypatch.setattr("clients.attacks.sign_flip.SignFlip.forge", lambda self, seen: forged(seen.own))
    with pytest.raises(RunFailed, match=f"SignFlip forges {said}"):
        changes("attack=sign_flip", "attack.clients=[0]")
