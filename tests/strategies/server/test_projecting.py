"""LoRA-FAIR in two phases: the closed form from sums alone, and clients that are lost between them."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors, norm, stack
from fedinit.runs.observer import Observer
from fedinit.transport.local import FIRST_NODE_ID, LocalGrid
from strategies import create_aggregator
from strategies.aggregator import Update
from strategies.means import image
from strategies.one_layer import aggregate
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.small import small_config

EXAMPLES = (3, 5, 4)
SCALES = ["cosine", "relative", "absolute"]


def updates(ranks=(4, 4, 4), d=9, k=12) -> list[Update]:
    draw = torch.Generator().manual_seed(sum(ranks))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [
        Update(i, n, {"l": Factors(normal(r, k), normal(d, r))}, {})
        for i, (n, r) in enumerate(zip(EXAMPLES, ranks, strict=True))
    ]


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 4, 3)])
@pytest.mark.parametrize("lam", [0.0, 0.01, 3.0])
@pytest.mark.parametrize("scale", SCALES)
def test_two_phases_are_the_closed_form_of_one(scale, lam, ranks):
    """In float64; of lam_scale=cosine for the λ that is as large beside ‖ΔW‖ as λ is beside ‖ΔW P_A‖."""
    clients = updates(ranks)
    shares = [n / sum(EXAMPLES) for n in EXAMPLES]
    method = create_aggregator("lora_fair", phases=2, lam=lam, lam_scale=scale)
    means = method.aggregate(clients, 1)
    plain = create_aggregator("fedit").aggregate(clients, 1)
    assert torch.equal(means.layers["l"].B, plain.layers["l"].B) and not means.diagnostics
    A = means.layers["l"].A
    seen = image([u.layers["l"] for u in clients], shares, A)
    ours = method.complete(means, {"l": seen}, 1).layers["l"]
    ideal = stack([u.layers["l"] for u in clients], shares)
    inside = float((ideal.dense() @ torch.linalg.pinv(A) @ A).norm()) / norm(ideal)
    assert inside < 0.95
    as_one = lam * inside if scale == "cosine" else lam
    one = create_aggregator("lora_fair", lam=as_one, lam_scale=scale).aggregate(clients, 1).layers["l"]
    torch.testing.assert_close(ours.A, one.A, rtol=0, atol=0)
    torch.testing.assert_close(ours.B, one.B, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain.layers["l"].B, one.B, rtol=1e-3)  # the control: it corrects something


WORDS = ("strategy=lora_fair", "rounds=2", "strategy.lam_scale=absolute", "strategy.diagnostics=false")


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*WORDS))


class Faulty(LocalGrid):
    """`lost`: clients that do not answer a second phase; `spoil`: what is done to client 0's answer."""

    lost: tuple[int, ...] = ()
    spoil = staticmethod(lambda reply: None)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not replies or messages[0].metadata.message_type != "query.project":
            return replies
        self.spoil(replies[0])
        clients = {reply.metadata.src_node_id: reply for reply in replies}
        return [reply for node, reply in clients.items() if node - FIRST_NODE_ID not in self.lost]


class Ledger(Observer):
    def __init__(self) -> None:
        self.events = []

    def event(self, kind, facts) -> None:
        self.events.append((kind, facts))


def run(site, *words, handler=None, lost=(), spoil=lambda reply: None):
    """The final layers, and the ledger."""
    grid, ledger = Faulty(handler or Cohort(site), 3), Ledger()
    grid.lost, grid.spoil = lost, spoil
    outcome = federate(small_config(*WORDS, *words), grid, site.backbone, observers=[ledger])
    return outcome.aggregate.layers, ledger.events


TWO = "strategy.phases=2"


def apart(ours, theirs) -> float:
    """The largest relative difference of a layer's product."""
    return max(float((f.dense() - theirs[n].dense()).norm() / f.dense().norm()) for n, f in ours.items())


def test_a_run_in_two_phases_is_the_run_in_one(site):
    """To the rounding of float32 on the wire; without a correction it is another one."""
    one, two = run(site)[0], run(site, TWO)[0]
    assert apart(one, two) < 1e-4
    assert apart(one, run(site, "strategy.lam=1e9")[0]) > 1e-3


def test_every_message_may_meet_a_new_process(site):
    """What the second phase needs is in the client's Context, and in nothing else of the process."""
    fresh = run(site, TWO, handler=lambda deliveries: Cohort(site, persistent=True)(deliveries))[0]
    assert apart(run(site, TWO)[0], fresh) == 0


def test_a_client_lost_between_the_phases_is_in_the_means_alone(site):
    layers, events = run(site, TWO, "rounds=1", lost=(1,))
    refused = [(facts["client"], facts["code"]) for kind, facts in events if kind == "refused"]
    assert refused == [(1, "no_reply")]
    whole = run(site, TWO, "rounds=1")[0]
    name = next(iter(layers))
    assert torch.equal(layers[name].A, whole[name].A) and not torch.equal(layers[name].B, whole[name].B)
    with pytest.raises(RunFailed, match="round 1, second phase: 1 usable answers, the quorum is 2 .no_reply: "):
        run(site, TWO, "rounds=1", lost=(0, 1))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: {n: v * float("nan") for n, v in t.items()}, "not_finite"),
        (lambda t: {n: v * 1e9 + 1e9 for n, v in t.items()}, "product_norm"),
        (lambda t: {n: v[:-1] for n, v in t.items()}, "shape"),
        (lambda t: {n: v.double() for n, v in t.items()}, "size"),
        (lambda t: {n[:-1] + "T": v for n, v in t.items()}, "names"),
    ],
)
def test_a_bad_answer_costs_its_client_alone(site, change, code):
    def spoil(reply):
        reply.content[wire.STATE] = wire.encode(change(wire.decode(reply.content[wire.STATE])))

    layers, events = run(site, TWO, "rounds=1", spoil=spoil)
    assert [(f["client"], f["code"]) for kind, f in events if kind == "refused"] == [(0, code)]
    assert apart(layers, run(site, TWO, "rounds=1", lost=(0,))[0]) == 0


def test_a_client_answers_for_no_round_but_its_last(site):
    grid = LocalGrid(Cohort(site), 3)
    outcome = federate(small_config(*WORDS, TWO), grid, site.backbone)
    node, context = next(iter(grid.contexts.items()))
    tensors = wire.to_tensors(outcome.aggregate.layers, {})
    for round in (1, 2):
        about = ConfigRecord({"backbone": site.backbone.digest, "round": round})
        content = RecordDict({wire.STATE: wire.encode(tensors), wire.CONFIG: about})
        (reply,) = Cohort(site)([(Message(content, node, "query.project"), context)])
        assert reply.has_error() == (round == 1)
        if reply.has_error():
            assert "second phase of round 1, of which this client has no update" in str(reply.error.reason)


@pytest.mark.parametrize("options", [{"solver": "gram_sgd"}, {"side": "both"}, {"similarity": "columns"}])
def test_what_needs_more_than_the_sums_is_refused(options):
    with pytest.raises(InputError, match="strategy.phases=2: its sum is all that"):
        create_aggregator("lora_fair", phases=2, **options)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("robust=trust", "robust.root=0"), "robust=trust: judges clients by their updates"),
        (("adapter=vera", "init=vera"), "VeRA's b has another: use strategy.phases=1"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(words, why):
    with pytest.raises(InputError, match=why):
        check_method(small_config("strategy=lora_fair", TWO, *words))


def test_factors_at_hand_need_no_second_phase():
    with pytest.raises(InputError, match="phases=2 takes a second answer of the clients; .* use phases=1"):
        aggregate("lora_fair", [torch.ones(2, 3)], [torch.ones(4, 2)], phases=2)


@pytest.mark.parametrize("word", ["3", "0", "two", "true", "[1]"])
def test_a_number_of_phases_that_is_none_is_refused_as_any_other_choice(word):
    with pytest.raises(InputError) as refused:
        check_method(small_config("strategy=lora_fair", f"strategy.phases={word}"))
    assert str(refused.value) == f"strategy.phases={word}: no such choice. Choices: 1, 2."
    with pytest.raises(InputError, match="strategy.phases='2': a number is written without quotes, strategy.phases=2"):
        check_method(small_config("strategy=lora_fair", "strategy.phases='2'"))
