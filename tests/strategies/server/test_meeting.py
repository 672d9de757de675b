"""What a site says of itself reaches the server's screen and ledger as plain text of a length."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.data.digits import Digits
from fedinit.errors import InputError, RunFailed
from fedinit.runs.progress import ProgressObserver
from fedinit.said import LONGEST, SAID
from fedinit.transport.introduction import Introduction
from fedinit.transport.local import LocalGrid
from strategies.server.federation import check_clients, federate
from strategies.server.meeting import Meeting, divided, other_code
from tests.support.introductions import introduction
from tests.support.ledger import Ledger
from tests.support.small import small_config

SAME = "install the same fedinit at both"
ESCAPE = "\x1b[31m\x1b[2J\n"


@pytest.mark.parametrize(
    "own",
    [
        {"backbone": ESCAPE},
        {"classes": [ESCAPE * 10] * 20000},
        {"classes": ["x"] * 20000},
        {"domains": ["\u202e\x9b2J", "b"]},
        {"score": ESCAPE},
    ],
    ids=["backbone", "classes", "many", "domains", "score"],
)
def test_why_a_site_does_not_fit_is_a_plain_line_of_a_length(own):
    meeting = Meeting(clients=2, classes=("a", "b"), domains=("p", "q"), score="accuracy")
    fitting = introduction(classes=["a", "b"], domains=["p", "q"], score="accuracy", backbone="0" * 64)
    assert meeting.misfit(fitting, "0" * 64) == ""  # the control
    other = introduction(client=1, **{**vars_of(fitting), **own})
    why = [meeting.misfit(other, "0" * 64)]
    if "backbone" not in own:
        why += divided({0: fitting, 1: other})[1].values()
    assert len(why) == (1 if "backbone" in own else 2)
    assert all(text.isprintable() and 0 < len(text) <= SAID for text in why)


def vars_of(fitting):
    return {key: getattr(fitting, key) for key in ("classes", "domains", "score", "backbone")}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "own", [{"backbone": ESCAPE}, {"classes": [ESCAPE] * 20000}, {"domains": ["\x1b[2J"] * 3}, {"error": ESCAPE}]
)
def test_a_sites_words_do_not_reach_the_terminal_as_they_are(own, known, monkeypatch):
    """Neither where the run begins without it nor where it ends a run; of names that the configuration knows and of
    those that it does not."""
    if not known:
        monkeypatch.setattr(Digits, "known_classes", None)
    words = ("rounds=1", "client.max_steps=1", "evaluation=clients")
    site = Site(small_config(*words))
    honest = Cohort(site)

    def handler(pairs):
        replies = honest(pairs)
        if pairs[0][0].metadata.message_type == "query.describe":
            for key, value in own.items():
                replies[1].content["config"][key if key != "error" else "partition-id"] = value
        return replies

    screen, ledger = io.StringIO(), Ledger()
    seen = ProgressObserver(Console(file=screen, width=80), "run")
    outcome = federate(
        small_config(*words, "quorum=0.5"), LocalGrid(handler, 3), site.backbone, observers=[seen, ledger]
    )
    assert sorted(outcome.roster.examples) == [0, 2]
    (kind, facts), without = ledger.lines
    assert kind == "node_refused" and len(json.dumps(facts)) < 2 * LONGEST
    assert without == ("began_without", {"round": 1, "clients": [1]}) and outcome.summary()["began_without"] == [1]
    with pytest.raises(RunFailed) as caught:
        federate(small_config(*words, "quorum=1.0"), LocalGrid(handler, 3), site.backbone, observers=[seen])
    for text in (str(facts["detail"]), str(caught.value), *screen.getvalue().splitlines()):
        assert text.isprintable() and len(text) <= LONGEST


@pytest.mark.parametrize("words", [["adapter.ranks=[4,2,1]"], ["attack=sign_flip", "attack.clients=[2]"]])
def test_a_run_that_may_begin_without_a_client_deals_what_is_dealt_to_all(words):
    """By partition id, so that it is nobody's loss that one is missing; the control has more ranks than there are."""
    config = small_config("quorum=2", "rounds=1", "evaluation=none", "strategy=fedit", *words)
    site = Site(config)

    def handler(deliveries):
        replies = Cohort(site)(deliveries)
        for reply in replies:
            if reply.metadata.message_type == "query.describe" and reply.metadata.src_node_id == 1002:
                reply.content[wire.CONFIG]["num-partitions"] = 7
        return replies

    ledger = Ledger()
    outcome = federate(config, LocalGrid(handler, 3), site.backbone, observers=[ledger])
    assert outcome.accepted == {0: 1, 1: 1} and [kind for kind, _ in ledger.lines].count("node_refused") == 1
    with pytest.raises(InputError, match="adapter.ranks: 4 ranks for 3 clients"):
        check_clients(small_config("adapter.ranks=[4,2,1,1]"), {0: 10, 1: 10}, 3)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"clients": "0" * 16}, f"they compute by other code than the server (clients); {SAME}"),
        ({}, f"they compute by code that they do not name; {SAME}"),
        (None, f"they compute by code that they do not name; {SAME}"),
        ({"strategies": "0" * 16}, None),  # the server's alone, of which no client says anything
    ],
)
def test_clients_of_other_code_are_named_and_used(said, told):
    """Their updates look like any other's; of an older fedinit the introduction has no such words. The control says the
    same as the server."""
    config = small_config("rounds=1", "evaluation=none", "strategy=fedit")
    site = Site(config)

    def handler(deliveries):
        replies = Cohort(site)(deliveries)
        for reply in replies:
            if reply.metadata.message_type == "query.describe" and reply.metadata.src_node_id != 1001:
                facts = reply.content[wire.CONFIG]
                if said is None:
                    del facts["code"], facts["code-of"]
                elif said:
                    own = dict(zip(facts["code-of"], facts["code"], strict=True)) | said
                    facts["code-of"], facts["code"] = list(own), list(own.values())
                else:
                    facts["code-of"], facts["code"] = [], []
        return replies

    ledger = Ledger()
    outcome = federate(config, LocalGrid(handler, 3), site.backbone, observers=[ledger])
    assert outcome.accepted == {0: 1, 1: 1, 2: 1}
    expected = [("other_code", {"round": 1, "clients": [0, 2], "detail": told})] if told else []
    assert ledger.lines == expected


def test_code_that_is_no_text_is_no_introduction():
    for code in ({"clients": 7}, {7: "0"}):
        with pytest.raises(ValueError, match="cannot be used"):
            Introduction.read(SimpleNamespace(content=introduction(code=code).record()))
    assert other_code({0: introduction(0), 1: introduction(1)}) == []
