"""What holds for every initialiser there is: the same start from any split of the examples over clients, the same bits
whatever the order of replies, the same again for the same seed. A name that is added to INITIALIZERS is held to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.models import init_head
from fedinit.state.digest import named_parts
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.measuring import asking, begun, create, setting_of
from tests.support.small import slow_unless, small_config

RANK = 4
# Options that make another computation of the same name; every name is there without any, too.
VARIANTS = {
    "corda": [{"mode": "kpm"}],
    "eva": [{"sketch": "nystrom"}, {"centred": False, "rho": 1.0, "whiten": "std"}],
    "lora_null": [{"variant": "v2"}],
}
CASES = [(name, options) for name in sorted(INITIALIZERS) for options in ({}, *VARIANTS.get(name, []))]
MEASURED = [case for case in CASES if INITIALIZERS[case[0]].needs != "none"]
UNEVEN = [range(0), range(1), range(1, 7), range(7, 60)]  # a client without examples, one with one
SINGLES = [range(i, i + 1) for i in range(60)]


def made(name, options, backbone, data, clients, seed=0):
    setting = setting_of(backbone, RANK, seed=seed, head=init_head("random", 5, backbone.features, 0))
    clients = [torch.tensor(list(c), dtype=torch.long) for c in clients]
    return begun(create(name, **options), setting, asking(backbone, setting.targets, data, clients))


def tensors_of(start):
    """{name: tensor} of a start, its notes left out."""
    merge = {f"merge/{name}": value for name, value in named_parts(start.merge).items()}
    return wire.to_tensors(start.layers, start.head) | merge


def assert_same(one, other):
    """To 1e-8, or to the last place of the float32 in which factors are sent where that is more."""
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1.2e-7, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("name", "options", "split"),
    [(*c, UNEVEN) for c in CASES]
    + [*slow_unless(lambda name, options, split: not options, ((*c, SINGLES) for c in MEASURED))],
)
def test_federated_is_pooled(name, options, split, tiny_vit, tiny_data):
    pooled = made(name, options, tiny_vit, tiny_data, [range(60)])
    assert_same(made(name, options, tiny_vit, tiny_data, split), pooled)


@pytest.mark.parametrize(("name", "options"), MEASURED)
def test_other_examples_give_another_start(name, options, tiny_vit, tiny_data):
    """The negative control of the law above: a client left out shows."""
    whole, part = (made(name, options, tiny_vit, tiny_data, [range(n)]) for n in (60, 40))
    with pytest.raises(AssertionError):
        assert_same(whole, part)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_start_repeats_and_another_seed_changes_what_is_random(name, options, tiny_vit, tiny_data):
    first, again, other = (made(name, options, tiny_vit, tiny_data, [range(60)], seed) for seed in (0, 0, 1))
    first, again, other = map(tensors_of, (first, again, other))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    if INITIALIZERS[name].random:
        assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_scale_multiplies_the_factors_and_what_is_taken_out(name, options, tiny_vit, tiny_data):
    """init.scale=1/2: each factor by a half, what the base gives up by a quarter, the core as it is."""
    whole, half = (made(name, {**options, "scale": c}, tiny_vit, tiny_data, [range(60)]) for c in (1.0, 0.5))
    assert whole.merge.keys() == half.merge.keys()
    for layer, factors in whole.layers.items():
        own = half.layers[layer]
        torch.testing.assert_close(own.A, factors.A / 2)
        torch.testing.assert_close(own.B, factors.B / 2)
        if "R" in factors.parts:
            torch.testing.assert_close(own.R, factors.R)
    for layer, product in whole.merge.items():
        torch.testing.assert_close(half.merge[layer].dense(), product.dense() / 4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted({name for name, _ in MEASURED}))
def test_the_order_of_the_replies_changes_no_bit(name):
    """Through the whole path: replies that come in any order are added up in the clients' order."""

    class Turned(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return list(super().send_and_receive(messages, timeout=timeout))[::-1]

    config = small_config(f"init={name}", "init.examples=32", "rounds=1", "evaluation=none", "client.max_steps=1")
    if create_initializer(name).cores:
        config = dataclasses.replace(config, strategy=small_config("strategy=fed_sb").strategy)
    site = Site(config)
    hashes = [federate(config, grid(Cohort(site), 3), site.backbone).final_hash for grid in (LocalGrid, Turned)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_a_rank_above_a_layers_is_refused_by_all_alike(name):
    """Before any statistics or decomposition, with the same words as for the adapter's targets."""
    with pytest.raises(InputError, match="adapter.rank=6: layer l is 5x9; expected a rank of 5 or less"):
        create_initializer(name).plan(InitContext(targets={"l": (5, 9)}, rank=6, scale=1.0, seed=0))


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_every_start_has_its_config_with_the_same_fields(name):
    """conf/init/<name>.yaml has the fields of the dataclass, with the same defaults."""
    options = small_config(f"init={name}").init.options
    assert dict(options) == {f.name: f.default for f in dataclasses.fields(INITIALIZERS[name])}
