"""A site's limits on what it answers of a round: masked updates alone, and one question of a second phase."""

from __future__ import annotations

import contextlib

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import Code, RunFailed
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from strategies.server.secure_sum import collect_sum
from tests.support.lying import Lying, Refusing
from tests.support.serving import exchange_over, method_of, registered
from tests.support.small import small_config

SHORT = ("rounds=1", "client.max_steps=1", "evaluation=none")
TWO = ("strategy=lora_fair", "strategy.phases=2", "strategy.lam_scale=absolute", "strategy.diagnostics=false")


def deployed(site: Site, node_config: dict[str, object], seen: list[tuple[Message, Message, object]]):
    """Answers as sites of a deployment do, each with these settings; (message, reply, context) of all goes to seen."""
    cohort = Cohort(site, persistent=True, deployed=True)

    def handler(deliveries):
        for _, context in deliveries:
            context.node_config.update(node_config)
        replies = cohort(deliveries)
        seen.extend((m, reply, context) for (m, context), reply in zip(deliveries, replies, strict=True))
        return replies

    return handler


@pytest.mark.parametrize(("words", "code"), [((), Code.limit), (("secure_aggregation=secagg",), None)])
def test_a_site_that_insists_on_masks_sends_no_open_update(words, code, tmp_path):
    site, seen = Site(small_config(*SHORT, *words)), []
    with contextlib.suppress(RunFailed):
        own = {"require-secure-aggregation": True, "state-dir": str(tmp_path)}
        handler = deployed(site, own, seen)
        federate(site.config, LocalGrid(handler, len(site.partitions)), site.backbone)
    trained = [reply for message, reply, _ in seen if message.metadata.message_type == "train"]
    assert {reply.error.code if reply.has_error() else None for reply in trained} == {code}
    if code:
        assert "require-secure-aggregation=true: the run needs secure_aggregation=secagg" in trained[0].error.reason


def test_training_has_no_end_of_its_own(tmp_path):
    """As docs/trust.md says: neither in a run, of more rounds than a site answers questions, nor in the next run."""
    for run in range(2):
        site, seen = Site(small_config("rounds=25", *SHORT[1:], f"seed={run}", "data.domains=[plain]")), []
        handler = deployed(site, {"state-dir": str(tmp_path)}, seen)
        federate(site.config, LocalGrid(handler, 1), site.backbone)
        trained = [reply.has_content() for message, reply, _ in seen if message.metadata.message_type == "train"]
        assert trained == [True] * 25


def projected(site: Site, node_config: dict[str, object]):
    """A run in two phases; and ask(factor): the second phase asked again, of means that are as many times as large."""
    seen = []
    federate(site.config, LocalGrid(deployed(site, node_config, seen), len(site.partitions)), site.backbone)
    message, reply, context = next(entry for entry in seen if entry[0].metadata.message_type == "query.project")
    assert reply.has_content(), reply.error.reason
    means = wire.decode(wire.arrays(message))

    def ask(factor: float) -> Message:
        tensors = {name: value * factor for name, value in means.items()}
        content = RecordDict({wire.STATE: wire.encode(tensors), wire.CONFIG: wire.config(message)})
        again = Message(content, message.metadata.dst_node_id, "query.project")
        return Cohort(site, persistent=True, deployed=True)([(again, context)])[0]

    return reply, ask


def test_a_site_answers_one_question_of_a_second_phase_a_round(tmp_path):
    """The same again is the same answer. That another was answered is in the site's book, whatever its Context says."""
    site = Site(small_config(*SHORT, *TWO))
    first, ask = projected(site, {"state-dir": str(tmp_path)})
    same, other = ask(1.0), ask(2.0)
    assert wire.to_bytes(same.content) == wire.to_bytes(first.content)
    assert other.has_error() and other.error.code == Code.limit
    assert "second phase of round 1 for other means, as often as its projections-per-round" in other.error.reason


def test_an_update_is_asked_about_once_whatever_the_round_is_called(tmp_path):
    """With all images in a batch, two rounds from one start make the same update."""
    lying = Lying(
        Site(small_config(*SHORT, *TWO, "client.batch_size=1024")), tmp_path, require_secure_aggregation=False
    )
    means = {name: torch.ones_like(value) for name, value in lying.start.items() if not name.startswith(wire.HEAD)}
    for round in (1, 2):
        lying.ask(0, "train", lying.question(round, second_phase=True), lying.start)
        lying.ask(0, "query.project", {"round": round}, means)
    with pytest.raises(Refusing, match="of round 2 for other means"):
        lying.ask(0, "query.project", {"round": 2}, {name: 2 * value for name, value in means.items()})
    lying.ask(0, "train", lying.question(3, second_phase=True), lying.start)
    with pytest.raises(Refusing, match="the update of round 3 for other means"):
        lying.ask(0, "query.project", {"round": 3}, {name: 2 * value for name, value in means.items()})


def test_a_site_that_allows_two_answers_two(tmp_path):
    site = Site(small_config(*SHORT, *TWO))
    _, ask = projected(site, {"state-dir": str(tmp_path), "projections-per-round": 2})
    assert ask(2.0).has_content() and ask(3.0).error.code == Code.limit


def test_of_a_masked_update_no_second_phase_is_answered_without_a_mask():
    """A server that sets the message's `second-phase` in a secret sum could read an update by its products."""
    site, seen = Site(small_config(*SHORT, "secure_aggregation=secagg")), []
    exchange = exchange_over(LocalGrid(deployed(site, {}, seen), len(site.partitions)))
    exchange.register_clients(site.backbone.digest, -1)
    state = registered(site)[1]
    collect_sum(state, method_of(secure=SecAggConfig()), exchange, {"second-phase": True})
    message, _, context = next(entry for entry in seen if entry[0].metadata.message_type == "train")
    tensors = {name: torch.ones_like(value) for name, value in wire.to_tensors(state.model.layers, {}).items()}
    about = ConfigRecord({"backbone": site.backbone.digest, "round": 1})
    content = RecordDict({wire.STATE: wire.encode(tensors), wire.CONFIG: about})
    ask = Message(content, message.metadata.dst_node_id, "query.project")
    (reply,) = Cohort(site, persistent=True, deployed=True)([(ask, context)])
    assert reply.has_error() and "at another stage of the secret sum" in reply.error.reason
