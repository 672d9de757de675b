"""FRLoRA as its authors run it: every round from the principal components of W0, whose change goes into the base.

Yan et al., ICLR 2025. The oracle is their loop in float64 on one layer: B0, A0 of W0 = U S Vᵀ, W ← W + s(B̄Ā − B0A0),
and B0, A0 again.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers.pissa import PiSSA
from fedinit.state import base_offset
from fedinit.transport.local import LocalGrid
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.reinit import ReinitContext, create_reinit
from strategies.server.compatibility import check_method
from strategies.server.components import Components
from strategies.server.federation import federate
from tests.support.small import small_config
from tests.support.watching import Weights

SCALE, RANK, SHAPE = 2.0, 3, (14, 9)


def trained(start: Factors, round: int) -> list[Update]:
    """What two clients make of a start: 1:3 weights, moves as large as the components themselves."""
    draw = np.random.default_rng(round)
    moved = [
        Factors(*(v + 0.3 * torch.tensor(draw.standard_normal(v.shape)) for v in (start.A, start.B))) for _ in range(2)
    ]
    return [Update(i, 1 + 2 * i, {"layer": f}, {}) for i, f in enumerate(moved)]


def served(reinit: str, rounds: int = 3) -> list[np.ndarray]:
    """The effective weight after each round, by the server's own rule."""
    W0 = torch.tensor(np.random.default_rng(0).standard_normal(SHAPE))
    first = {"layer": PiSSA().split(W0, RANK, SCALE)}
    offset = {"layer": -first["layer"].dense()}
    start, weights = first, []
    for round in range(1, rounds + 1):
        made = create_aggregator("frlora").aggregate(trained(start["layer"], round), round, Aggregate(layers=start))
        weights.append((W0 + SCALE * (offset["layer"] + made.layers["layer"].dense())).numpy())
        context = ReinitContext({"layer": RANK}, SCALE, lambda _: first, {"layer": W0}.__getitem__).over(offset)
        begun = create_reinit(reinit).start(made, round, context)
        start, offset = dict(begun.layers), {"layer": offset["layer"] + begun.merge["layer"].dense()}
    return weights


def theirs(rounds: int = 3) -> list[np.ndarray]:
    W0 = np.random.default_rng(0).standard_normal(SHAPE)
    U, S, Vh = np.linalg.svd(W0, full_matrices=False)
    root = np.sqrt(S[:RANK] / SCALE)
    B0, A0 = U[:, :RANK] * root, root[:, None] * Vh[:RANK]
    turn = np.sign([row[np.abs(row).argmax()] for row in A0])  # an SVD leaves signs open; averages depend on them
    B0, A0 = B0 * turn, turn[:, None] * A0
    base, weights = W0 - SCALE * B0 @ A0, []
    for round in range(1, rounds + 1):
        updates = trained(Factors(torch.tensor(A0), torch.tensor(B0)), round)
        one, other = (u.layers["layer"] for u in updates)
        A, B = (0.25 * getattr(one, n).numpy() + 0.75 * getattr(other, n).numpy() for n in "AB")
        weights.append(base + SCALE * B @ A)
        base = base + SCALE * (B @ A - B0 @ A0)
    return weights


def test_every_round_starts_from_the_components_of_w0():
    """The authors' loop, to float64; triplets of W0 plus what was learned are another method from round 2 on."""
    auto = Components.of(small_config("strategy=frlora", "init=pissa")).reinit_name
    for ours, expected in zip(served(auto), theirs(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    other = served("pissa")
    np.testing.assert_allclose(other[0], theirs()[0], rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(other[1] - theirs()[1]) > 0.05 * np.linalg.norm(theirs()[1])


def test_a_run_is_fedit_that_starts_afresh_from_pissa():
    """Bit for bit, over rounds; and `reinit=pissa` is not (the negative control)."""
    site, runs = Site(small_config()), {}
    for words in ("strategy=frlora", "strategy=fedit reinit=fresh", "strategy=frlora reinit=pissa"):
        watch = Weights(site)
        config = small_config(*words.split(), "init=pissa", "rounds=3", "client.lr=0.05", "evaluation.every=1")
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[watch])
        runs[words] = watch.after[3]
    ours, same, other = runs.values()
    assert all(torch.equal(ours[n], same[n]) for n in ours)
    assert any((ours[n] - other[n]).norm() > 1e-3 * ours[n].norm() for n in ours)


@pytest.mark.parametrize("words", ["", "init=kaiming", "init=milora", "init=eva reinit=pissa"])
def test_another_start_is_refused_with_the_remedy(words):
    named = next((w for w in words.split() if w.startswith("init=")), "init=kaiming")
    with pytest.raises(InputError, match=f"^{named}: does not go with strategy=frlora, .*; use init=pissa$"):
        check_method(small_config("strategy=frlora", *words.split()))
    check_method(small_config("strategy=frlora", "init=pissa"))
    check_method(small_config("strategy=frlora", "init=pissa", "reinit=pissa"))
    check_method(small_config("strategy=fedit", "reinit=pissa"))


def test_reinit_pissa_takes_the_exact_components():
    """The best of rank r of a weight whose singular values lie close, to float32's rounding; a randomised SVD with four
    power iterations is percents off there."""
    draw = torch.Generator().manual_seed(5)
    W0 = torch.randn(96, 384, generator=draw)
    context = ReinitContext({"layer": 8}, SCALE, lambda _: {}, {"layer": W0}.__getitem__)
    learned = Aggregate(layers={"layer": Factors(torch.zeros(8, 384), torch.zeros(96, 8))})
    start = create_reinit("pissa").start(learned, 1, context)
    U, S, Vh = np.linalg.svd(W0.double().numpy(), full_matrices=False)
    best = U[:, :8] * S[:8] @ Vh[:8]
    assert np.linalg.norm(SCALE * start.layers["layer"].dense().numpy() - best) < 1e-6 * np.linalg.norm(best)
    after = base_offset.advance({}, start.merge)["layer"] + start.layers["layer"].dense()
    assert float(after.abs().max()) < 1e-5
