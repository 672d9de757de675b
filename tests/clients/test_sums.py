"""What a site remembers of the secret sums that it was part of, and what a server that lies can make of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clients.site import Site
from fedinit import wire
from fedinit.secagg.messages import QUERY, RECORD
from tests.support.lying import Lying, Refusing
from tests.support.small import small_config

WORDS = (
    "partition=iid",
    "partition.clients=4",
    "engine.clients_per_bank=1",
    "client.max_steps=1",
    "evaluation=clients",
)
WHOLE = "client.batch_size=1024"  # every image in every batch: a round's number is in nothing then
ROUND, START = "one set of clients a round", "from the same start"


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*WORDS, WHOLE, "secure_aggregation=secagg"))


def norm(tensors) -> float:
    return sum(float(value.norm()) ** 2 for value in tensors.values()) ** 0.5


def far(one, other) -> float:
    """The largest distance of an entry."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture
def server(site, tmp_path) -> Lying:
    lying = Lying(site, tmp_path)
    lying.sum(1, range(4))
    return lying


def test_keys_of_another_round_make_no_site_forget(site, server):
    """Nor does a restart of the SuperNodes, after which rounds begin anew for Flower."""
    with pytest.raises(Refusing, match="a secret sum of clients .0, 1, 2. in round 1, after one of other clients"):
        server.sum(1, range(3))
    for client in range(4):
        server.ask(client, "query.secagg", {"round": 2, "stage": "keys"})
    with pytest.raises(Refusing, match="a secret sum of round 1, after round 2"):
        server.sum(1, range(3))
    server.restart(site)
    for clients, left in ((range(3), None), (range(4), range(3))):
        with pytest.raises(Refusing, match=ROUND):
            server.sum(1, clients, left)


def test_rounds_only_go_up(site, server):
    server.sum(3, range(4))
    server.restart(site)
    with pytest.raises(Refusing, match="in round 2, after one in round 3: rounds only go up"):
        server.sum(2, range(4))


def test_the_very_same_sum_is_answered_again(site, server):
    """As of a server that came back from its checkpoint."""
    server.restart(site)
    first, again = server.sum(1, range(4)), server.sum(1, range(4))
    assert far(first, again) == 0


@pytest.mark.parametrize("other", [{"weight": 2}, {"trainable": ["A"]}, {"scales": [0.1] * 10}])
def test_the_same_round_is_masked_for_one_question(server, other):
    """Two sums of the same clients that differ by what one of them was asked show that one's update as well."""
    with pytest.raises(Refusing, match="masks the answer to one question in round 1"):
        server.sum(1, range(4), by_client={3: other})


@pytest.mark.parametrize("run", [0, 7])
def test_of_one_start_one_set_of_clients_is_unmasked(site, server, run):
    """Whatever round, and whatever run, the server says it is: with all images in a batch the update is the same."""
    with pytest.raises(Refusing, match=START):
        server.sum(2, range(3))
    server.restart(Site(dataclasses.replace(site.config, seed=run, rounds=50)))
    for clients, left in ((range(3), None), (range(4), range(3))):
        with pytest.raises(Refusing, match=START):
            server.sum(5, clients, left)
    server.sum(5, range(4))


def test_the_next_round_from_another_start_may_be_of_other_clients(server):
    server.start = {name: value + 0.01 for name, value in server.start.items()}
    server.sum(2, range(3))


def test_a_base_of_another_name_is_the_same_start(site, server):
    """The server may call a base that it sends whole what it likes."""
    server.base = {name: torch.full(shape, 0.01) for name, shape in site.targets.items()}
    server.sum(2, range(4), base_key="one", base_update="dense")
    with pytest.raises(Refusing, match=START):
        server.sum(3, range(3), base_key="two", base_update="dense")
    server.base = {name: 2 * value for name, value in server.base.items()}
    server.sum(4, range(3), base_key="three", base_update="dense")


@pytest.fixture(scope="module")
def five() -> Site:
    return Site(small_config(*WORDS, WHOLE, "partition.clients=5", "secure_aggregation=secagg"))


UNASKED = r"of clients \[0, 3, 4\] in round \d, after one of clients \[0, 1, 2\]: of each another set could be unmasked"


def test_who_is_not_asked_to_unmask_masks_for_no_others(five, tmp_path):
    """Two of three unmask a sum, so that the third would be in two of them and know of neither."""
    lying = Lying(five, tmp_path)
    lying.sum(1, (0, 1, 2), by=(1, 2))
    with pytest.raises(Refusing, match=UNASKED):
        lying.sum(1, (0, 3, 4), by=(3, 4))
    lying.restart(five)
    for round in (1, 2):  # from the same start in another round as well
        with pytest.raises(Refusing, match=UNASKED):
            lying.sum(round, (0, 3, 4), by=(3, 4))
    lying.restart(Site(dataclasses.replace(five.config, seed=7)))
    with pytest.raises(Refusing, match=UNASKED):
        lying.sum(1, (0, 3, 4), by=(3, 4))
    lying.sum(2, (0, 3, 4), by=(3, 4), start={name: value + 0.01 for name, value in lying.start.items()})


def test_with_another_start_a_round_is_still_masked_for_clients_who_share_who_unmasks(five, tmp_path):
    lying = Lying(five, tmp_path)
    lying.sum(1, (0, 1, 2), by=(1, 2))
    lying.start = {name: value + 0.01 for name, value in lying.start.items()}
    with pytest.raises(Refusing, match="masks the answer to one question in round 1"):
        lying.sum(1, (0, 3, 4), by=(3, 4))


def test_clients_are_counted_by_who_has_shares_and_not_by_who_the_server_says_is_in_the_sum(five, tmp_path):
    """Client 0 is told each time that the same three are in the sum; of its seed others have shares as well."""
    lying = Lying(five, tmp_path)

    def masked(cohort, holders, threshold) -> None:
        keys = {str(c): lying.ask(c, QUERY, {"round": 1, "stage": "keys"})[RECORD]["public"] for c in cohort}
        about = {"round": 1, "stage": "shares", "threshold": threshold}
        sealed = lying.ask(0, QUERY, about, entries=keys)[RECORD]
        held = {str(c): sealed["0"] for c in holders}
        lying.ask(0, "train", lying.question(1), lying.start, held)

    masked((0, 1, 2), (0, 1, 2), 2)
    masked((0, 1, 2, 3), (0, 1, 2), 3)  # of three of four and two of three at least one is the same
    with pytest.raises(Refusing, match=r"in round 1, after one of clients \[0, 1, 2\]"):
        masked((0, 1, 2, 3, 4), (0, 1, 2), 3)


def test_a_round_that_nobody_unmasked_is_masked_again_for_who_is_back(five, tmp_path):
    """Two are lost in training, so that the server gives up; a threshold of all that are asked makes it safe."""
    lying = Lying(five, tmp_path)
    with pytest.raises(ValueError, match="0 shares do not give the secret"):
        lying.sum(1, (0, 1, 2, 3), by=())
    lying.restart(five)
    lying.sum(1, range(5))


@pytest.mark.parametrize("insists", [True, False])
def test_a_site_is_in_no_sum_of_two(site, tmp_path, insists):
    """A threshold of three clients is two, of whom each would know the other's update."""
    lying = Lying(site, tmp_path, require_secure_aggregation=insists)
    with pytest.raises(Refusing, match=r"asked to unmask clients \[0, 1\], 3 are the least"):
        lying.sum(1, (0, 1, 2), (0, 1))
    keys = {str(c): lying.ask(c, QUERY, {"round": 1, "stage": "keys"})[RECORD]["public"] for c in (0, 1, 2)}
    sealed = lying.ask(0, QUERY, {"round": 1, "stage": "shares", "threshold": 2}, entries=keys)[RECORD]
    with pytest.raises(Refusing, match=r"sent shares of clients \[0, 1\], 3 are the least"):
        lying.ask(0, "train", lying.question(1), lying.start, {"0": sealed["0"], "1": sealed["1"]})


def test_sums_of_nearly_the_same_start_show_an_update(site, server):
    """A limit (docs/trust.md): a start that is another in its last digits is another start, and no memory helps."""
    near = {name: value + 1e-6 for name, value in server.start.items()}
    first, second = server.sum(1, range(4)), server.sum(2, range(3), start=near)
    plain = Lying(Site(small_config(*WORDS, WHOLE)), None, limits="off")
    update = wire.decode(plain.ask(3, "train", plain.question(1), plain.start)[wire.STATE])
    off = {name: first[name] - second[name] - update[name] for name in update}
    step = {name: update[name] - server.start[name] for name in update}
    assert norm(off) < 0.05 * norm(step)


def test_clients_of_one_sum_may_be_told_other_rounds_and_starts(site, tmp_path):
    """A limit: masks are bound to neither. Client 0 is in two sets of its round, and unmasks neither; the others of the
    second were told that it is the next round, from nearly the same start."""
    server = Lying(site, tmp_path)
    near = {"round": 2, "start": {name: value + 1e-6 for name, value in server.start.items()}}
    first = server.sum(1, (0, 1, 2), by=(1, 2))
    second = server.sum(1, range(4), by=(1, 2, 3), by_client=dict.fromkeys((1, 2, 3), near))
    plain = Lying(Site(small_config(*WORDS, WHOLE)), None, limits="off")
    update = wire.decode(plain.ask(3, "train", plain.question(1), plain.start)[wire.STATE])
    off = {name: second[name] - first[name] - update[name] for name in update}
    assert norm(off) < 0.05 * norm({name: update[name] - server.start[name] for name in update})


def test_in_another_round_one_client_may_be_asked_something_else(server):
    """A limit: after a sum that was refused the same clients go on from the same start, and what the next round asks of
    each is the server's to say. Here it gives one client twice the weight."""
    first, second = server.sum(1, range(4)), server.sum(2, range(4), by_client={3: {"weight": 2}})
    plain = Lying(Site(small_config(*WORDS, WHOLE)), None, limits="off")
    update = wire.decode(plain.ask(3, "train", plain.question(1), plain.start)[wire.STATE])
    assert far({name: second[name] - first[name] for name in first}, update) < 1e-5


def test_a_second_phase_is_of_the_clients_of_the_first(tmp_path):
    """Where all have one A, the second sum of fewer is Σ B of fewer; the first less this is one client's B."""
    lying = Lying(Site(small_config(*WORDS, WHOLE, "secure_aggregation=secagg")), tmp_path)
    lying.sum(1, range(4), second_phase=True)
    means = {name: torch.eye(*value.shape) for name, value in lying.start.items() if not name.startswith("head/")}
    with pytest.raises(Refusing, match=ROUND):
        lying.images(1, range(3), means)
    lying.images(1, range(4), means)
    lying.images(1, range(4), means)
    with pytest.raises(Refusing, match="second phase of round 1 for other means"):
        lying.images(1, range(4), {name: 2 * value for name, value in means.items()})


def test_a_site_that_does_not_insist_on_masks_unmasks_one_set_a_round_for_good(site, tmp_path):
    """It trusts its server not to lie; but one that is curious does a round again with fewer after a restart."""
    curious = Lying(site, tmp_path, require_secure_aggregation=False)
    curious.sum(1, range(4))
    curious.restart(site)
    with pytest.raises(Refusing, match=ROUND):
        curious.sum(1, range(3))
    curious.sum(2, range(3))


def test_masks_are_insisted_on_with_a_book_that_lasts(site):
    with pytest.raises(Refusing, match="this site needs a state-dir for its book of sums"):
        Lying(site, None).sum(1, range(4))


def test_a_masked_update_is_not_scored_or_measured_as_a_clients_own(site, server):
    """Neither is unmasked, and no method of sums leaves a client factors of its own."""
    said = "a client's own factors, where updates are masked"
    with pytest.raises(Refusing, match=said):
        server.sum(2, range(4), own_factors=True)
    for kind in ("train", "evaluate", "query.statistics"):
        with pytest.raises(Refusing, match=said):
            server.ask(0, kind, server.question(1, personal=["A", "B"], accepted=1, request="{}"), server.start)
    server.ask(0, "evaluate", server.question(1), server.start)
    open_run = Site(small_config(*WORDS, WHOLE))
    server.restart(open_run)  # nor in a run that is not masked, of a site that insists on it
    with pytest.raises(Refusing, match=said):
        server.ask(0, "evaluate", server.question(1, personal=["B"], accepted=1), server.start)
