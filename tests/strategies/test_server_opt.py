"""Server optimisers and FedProx, on top of any method."""

from __future__ import annotations

import pytest
import torch

from clients.cohort import Cohort
from clients.optimizers import create_optimizer
from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError
from fedinit.factors import Factors, norm
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS
from strategies.aggregator import Aggregate
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from strategies.server_opt import create_server_optimizer
from tests.support.small import slow_unless, small_config

SPLIT = ("fedsvd", "flexlora", "florist", "spectral")  # whose factors are made anew in every round
MOVING = sorted(name for name, method in AGGREGATORS.items() if not method.unmoved)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def state(seed: int) -> Aggregate:
    draw = torch.Generator().manual_seed(seed)
    layer = Factors(torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw))
    return Aggregate(layers={"l": layer}, head={"weight": torch.randn(3, generator=draw)})


def test_momentum_against_its_recursion():
    """v ← βv + Δ, next = start + lr·v, in float64, for both factors and the head."""
    optimizer = create_server_optimizer("momentum", {"lr": 0.5, "beta": 0.8})
    start, velocity, moments = state(0), {}, {}
    for round in range(1, 5):
        reached = state(round)
        moved = optimizer.step(start, reached, moments)
        moments = moved.moments
        for name, old, new, got in (
            ("A", start.layers["l"].A, reached.layers["l"].A, moved.layers["l"].A),
            ("B", start.layers["l"].B, reached.layers["l"].B, moved.layers["l"].B),
            ("w", start.head["weight"], reached.head["weight"], moved.head["weight"]),
        ):
            velocity[name] = 0.8 * velocity.get(name, 0) + (new - old).double()
            torch.testing.assert_close(got.double(), old.double() + 0.5 * velocity[name], rtol=1e-6, atol=1e-6)
        start = moved


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_what_nobody_returned_is_no_step(name):
    """A round without the clients of the highest rank has zero columns of B; taken for steps, their weight came back
    with its sign turned, in this round and after it."""
    optimizer = create_server_optimizer(name)
    returned, factors = state(1), state(2).layers["l"]
    without = Aggregate(layers={"l": Factors(factors.A, factors.B * torch.tensor([1.0, 0.0]))}, head=returned.head)
    there = optimizer.step(state(0), returned)
    gone = optimizer.step(there, without, there.moments)
    assert there.layers["l"].B[:, 1].all() and not gone.layers["l"].B[:, 1].any()
    for moment, first in optimizer.begin_at.items():
        assert (gone.moments[f"{moment}/l/B"][:, 1] == first).all()
        assert (gone.moments[f"{moment}/l/B"][:, 0] != first).all()
    again = optimizer.step(gone, without, gone.moments)
    assert not again.layers["l"].B[:, 1].any()
    back = optimizer.step(again, returned, again.moments)  # as their first step
    fresh = optimizer.step(Aggregate(layers=again.layers, head=again.head), returned)
    assert torch.equal(back.layers["l"].B[:, 1], fresh.layers["l"].B[:, 1])


def test_adam_against_its_recursion():
    """Algorithm 2 of Reddi et al., from v = τ²; from v = 0 first steps are larger (the control)."""
    optimizer = create_server_optimizer("adam", {"lr": 0.1, "beta1": 0.6, "beta2": 0.7, "tau": 0.01})
    start, m, v, moments = state(0), 0, 0.01**2, {}
    for round in range(1, 5):
        reached = state(round)
        moved = optimizer.step(start, reached, moments)
        moments = moved.moments
        delta = (reached.layers["l"].B - start.layers["l"].B).double()
        m, v = 0.6 * m + 0.4 * delta, 0.7 * v + 0.3 * delta**2
        expected = start.layers["l"].B.double() + 0.1 * m / (v**0.5 + 0.01)
        torch.testing.assert_close(moved.layers["l"].B.double(), expected, rtol=1e-6, atol=1e-6)
        if round == 1:
            naive = 0.1 * m / ((0.3 * delta**2) ** 0.5 + 0.01)
            assert (naive.abs() > (expected - start.layers["l"].B.double()).abs()).all()
        start = moved


def test_unit_rate_without_momentum_is_the_method_itself():
    """The limit, through a whole run; with momentum the run differs (the negative control)."""
    site = Site(small_config())

    def product(*words: str) -> torch.Tensor:
        outcome = federate(small_config(*words, "rounds=3"), LocalGrid(Cohort(site), 3), site.backbone)
        return outcome.aggregate.layers["blocks.1.mlp.fc2"].dense()

    plain = product()
    torch.testing.assert_close(product("server_opt=momentum", "server_opt.beta=0"), plain, rtol=1e-4, atol=1e-6)
    assert (product("server_opt=momentum") - plain).norm() > 0.1 * plain.norm()


def test_a_state_of_another_shape_is_refused():
    """A rank of one would broadcast."""
    layer = Factors(torch.ones(1, 5), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"l/A went from shape \(2, 5\) to \(1, 5\)"):
        create_server_optimizer("momentum").step(state(0), Aggregate(layers={"l": layer}))


# Whose aggregate is a mean, of products, of A or B alone, of cores, of chosen slots, solved, or kept in part.
KINDS = ("fedit", "flexlora", "ffa_lora", "rolora", "fed_sb", "lora_a2", "lora_fair", "fedsa_lora")


@pytest.mark.parametrize("name", slow_unless(lambda name: name in KINDS, ((name,) for name in MOVING)))
def test_momentum_in_a_run_of_every_method(site, monkeypatch, name):
    """After each of three rounds the state is start + v with v ← βv + (aggregate − start), for every tensor there is;
    the aggregate itself is another one."""
    rounds, method = [], AGGREGATORS[name]
    aggregate = method.aggregate

    def noted(self, updates, round, previous=None, weights=None):
        rounds.append((previous, aggregate(self, updates, round, previous, weights)))
        return rounds[-1][1]

    monkeypatch.setattr(method, "aggregate", noted)
    words = ["evaluation=none", "rounds=3", "server_opt=momentum", "server_opt.beta=0.5", "client.lr=0.05"]
    words += ["init=random_core"] if method.cores else []
    outcome = federate(small_config(f"strategy={name}", *words), LocalGrid(Cohort(site), 3), site.backbone)
    starts = [wire.to_tensors(start.layers, start.head) for start, _ in rounds]
    states = [*starts[1:], wire.to_tensors(outcome.aggregate.layers, outcome.aggregate.head)]
    velocity, moved = {}, 0.0
    for start, state, (_, made) in zip(starts, states, rounds, strict=True):
        for key, reached in wire.to_tensors(made.layers, made.head).items():
            velocity[key] = 0.5 * velocity.get(key, 0) + (reached - start[key]).double()
            torch.testing.assert_close(state[key].double(), start[key].double() + velocity[key], rtol=1e-5, atol=1e-6)
            moved += float((state[key] - reached).norm())
    assert moved > 0.01


@pytest.mark.parametrize("words", [("strategy=flora",), ("strategy=fed_sb", "init=random_core")])
def test_prox_in_a_run(site, words):
    """The first step is at the start, where the term has no gradient: one step gives the same bits. Over more steps
    clients stay nearer to where they began, here at a product of zero."""

    def run(steps: int, prox: float) -> tuple[str, float]:
        more = ("rounds=1", "evaluation=none", "client.lr=0.05", f"client.max_steps={steps}", f"client.prox={prox}")
        config = small_config(*words, *more)
        outcome = federate(config, LocalGrid(Cohort(Site(config)), 3), site.backbone)
        return outcome.final_hash, sum(norm(f) ** 2 for f in outcome.aggregate.layers.values()) ** 0.5

    assert run(1, 0.0) == run(1, 3.0)
    (plain, far), (pulled, near) = run(4, 0.0), run(4, 3.0)
    assert plain != pulled and near < 0.95 * far


def test_prox_pulls_towards_the_start(client_config):
    """One SGD step from θ with gradient g is θ − lr(g + μ(θ − θ_start)), for every client of a bank on its own."""
    leaves = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    settings = client_config(lr=0.1, momentum=0.0, weight_decay=0.0, prox=0.5)
    optimizer = create_optimizer(leaves, settings)
    start, gradient = leaves["x"].clone(), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    optimizer.step({"x": gradient.clone()}, 2)
    after_one = start - 0.1 * gradient
    torch.testing.assert_close(leaves["x"], after_one)
    optimizer.step({"x": gradient.clone()}, 1)
    expected = after_one - 0.1 * (gradient + 0.5 * (after_one - start))
    torch.testing.assert_close(leaves["x"][0], expected[0])
    torch.testing.assert_close(leaves["x"][1], after_one[1])


def test_refusals():
    with pytest.raises(InputError, match="got reinit=fresh, choose one of: auto, average"):
        check_method(small_config("server_opt=momentum", "reinit=fresh"))
    for name in ("flora", "frlora", *SPLIT):
        with pytest.raises(InputError, match=f"server_opt=adam: .*={name}, whose .*these go: fed_sb, fedex_lora"):
            check_method(small_config("server_opt=adam", f"strategy={name}"))
    starting = {name for name, method in AGGREGATORS.items() if method.reinits[0] == "average"}
    assert set(MOVING) == starting - set(SPLIT)
    with pytest.raises(InputError, match="server_opt.beta=1.0"):
        check_method(small_config("server_opt=momentum", "server_opt.beta=1.0"))
