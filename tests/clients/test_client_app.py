"""What leaves a site when something goes wrong there: a code, and what the server knows; the rest is in its own log."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from PIL import Image

from clients import batches, client_app, replies
from clients.engine import worker
from fedinit import wire
from fedinit.config.flower import to_run_config
from fedinit.errors import Code, RunFailed
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

PATIENT = "patient-Jane-Doe-1961"


@pytest.fixture(autouse=True)
def anew():
    """Each test has a process of its own, as each message in a deployment has."""
    for cached in (client_app._cohort, client_app._configured):
        cached.cache_clear()
    yield
    client_app._cohort.cache_clear()


class Ledger(Observer):
    def __init__(self) -> None:
        self.lines: list = []

    def event(self, kind, facts) -> None:
        self.lines.append((kind, *facts.items()))


def deployed(config, own, run_config=None) -> tuple[list[Message], str]:
    """All replies of two deployed clients to a run, and what the server made of it: its ledger, its end."""
    sent = to_run_config(config) if run_config is None else run_config
    answers: list[Message] = []

    def handler(deliveries):
        for message, context in deliveries:
            node = {"partition-id": context.node_config["partition-id"], **own}
            given = Context(context.run_id, context.node_id, node, context.state, sent)
            answers.append(client_app.app(message, given))
            context.state = given.state
        return answers[-len(deliveries) :]

    from fedinit.models import build_backbone

    ledger = Ledger()
    try:
        outcome = federate(config, LocalGrid(handler, 2), build_backbone(config.model), observers=[ledger])
        end = str(outcome.summary())
    except RunFailed as error:
        end = str(error)
    return answers, f"{ledger.lines} {end}"


def words_of(answers) -> str:
    """Everything in the replies, as text: errors, and the records' own names and values."""
    texts = []
    for reply in answers:
        texts.append(reply.error.reason if reply.has_error() else wire.to_bytes(reply.content).decode("latin-1"))
    return " ".join(texts)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two domains of two classes; one of the images is none."""
    root = tmp_path_factory.mktemp("hospital-west")
    draw = np.random.default_rng(0)
    for domain in ("north", "south"):
        for kind in ("benign", "malignant"):
            (root / domain / kind).mkdir(parents=True)
            for i in range(20):
                picture = Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8))
                picture.save(root / domain / kind / f"{PATIENT}-{i}.png")
    return root


def folder_config(*words: str):
    return small_config(
        "data=image_folder",
        "data.domains=[north,south]",
        "data.classes=[benign,malignant]",
        "evaluation=clients",
        "rounds=1",
        "client.max_steps=1",
        *words,
    )


def spoil_an_image(root: Path, tmp_path: Path) -> dict:
    import shutil

    other = tmp_path / "spoilt"
    shutil.copytree(root, other)
    for domain in ("north", "south"):
        (other / domain / "benign" / f"{PATIENT}-3.png").write_bytes(b"not an image")
    return {"data-root": str(other)}


def link_as_state(root: Path, tmp_path: Path) -> dict:
    (tmp_path / PATIENT).symlink_to(tmp_path)
    return {"data-root": str(root), "state-dir": str(tmp_path / PATIENT)}


def disk_is_full(root: Path, tmp_path: Path) -> dict:
    (tmp_path / PATIENT).write_text("a file where a folder should be")
    return {"data-root": str(root), "state-dir": str(tmp_path / PATIENT / "state")}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (lambda root, tmp: {"data-root": str(tmp / PATIENT)}, Code.site),
        (spoil_an_image, Code.site),
        (lambda root, tmp: {"data-root": str(root), "checkpoint": str(tmp / f"{PATIENT}.safetensors")}, Code.site),
        (lambda root, tmp: {"data-root": str(root), "device": f"cuda:{PATIENT}"}, Code.site),
        (lambda root, tmp: {"data-root": str(root), PATIENT: "x"}, Code.site),
        (lambda root, tmp: {"data-root": f"{root}/north/benign/{PATIENT}-1.png"}, Code.site),
        (link_as_state, Code.site),
        (disk_is_full, None),
    ],
    ids=["no folder", "no image", "no checkpoint", "no device", "no setting", "a file", "a link", "no place for state"],
)
def test_an_error_at_a_site_leaves_as_a_code(images, settings, code, tmp_path, caplog):
    """Not with the path, the file, the value of a setting; those are in the site's log."""
    own = settings(images, tmp_path)
    answers, server = deployed(folder_config("strategy=fedsa_lora"), own)
    errors = [reply.error for reply in answers if reply.has_error()]
    assert errors and all(error.code == (code or error.code) and error.code in set(Code) for error in errors)
    for told in (words_of(answers), server):
        assert PATIENT not in told and str(tmp_path) not in told and images.name not in told
    assert all("the site's log says why" in error.reason for error in errors)
    assert PATIENT in caplog.text


@pytest.mark.parametrize(
    ("module", "name", "stage"),
    [
        (batches, "augment", "batch, step 1"),
        (batches, "plan", "plan"),
        (worker, "train_bank", "train"),
        (worker, "score_sums", "evaluate"),
        (worker, "measure", "statistics"),
        (replies.transforms, "leave", "reply|statistics"),
        (client_app, "_cohort", ""),
    ],
)
@pytest.mark.parametrize("error", [OSError(2, "No such file", f"/mnt/{PATIENT}.png"), ValueError(PATIENT)], ids=str)
def test_whatever_is_raised_in_a_message_leaves_as_a_code(module, name, stage, error, monkeypatch, caplog):
    def failing(*args, **kwargs):
        raise error

    failing.cache_clear = lambda: None
    monkeypatch.setattr(module, name, failing)
    config = small_config(
        "data.domains=[plain,inverted]",
        "rounds=1",
        "evaluation=clients",
        "head=ridge",
        "head.min_examples=1",
    )
    # On CPU, where batches are made one by one, and can fail.
    answers, server = deployed(config, {"device": "cpu"})
    errors = [reply.error for reply in answers if reply.has_error()]
    assert errors and PATIENT not in words_of(answers) + server and PATIENT in caplog.text
    assert all(
        e.code == Code.failed and re.search(f"{stage}.*failed; the site's log says why", e.reason) for e in errors
    )


def test_what_the_server_sent_or_knows_may_leave(caplog):
    """The control: a code alone would leave the operator nothing to go by."""
    config = dataclasses.replace(small_config("data.domains=[plain,inverted]", "rounds=1"), seed=0)
    flat = to_run_config(config)
    for change, expected in (
        ({"client.lrr": 1}, "client.lrr: no such key"),
        ({"engine.device": "cuda:5"}, "engine.device=cuda:5 came from the server"),
        ({"overrides": "rounds=${oc.env:HOME}"}, "none is composed where a run is read"),
    ):
        answers, server = deployed(config, {}, flat | change)
        assert all(r.error.code == Code.refused and expected in r.error.reason for r in answers) and expected in server
        assert str(Path.home()) not in server


def test_no_reply_of_an_honest_run_names_a_file_or_a_place(images, tmp_path):
    own = {
        "data-root": str(images),
        "state-dir": str(tmp_path / "kept"),
        "cache-dir": str(tmp_path / "cache"),
        "min-test-images": 1,
    }
    config = folder_config("init=eva", "init.examples=16", "init.min_examples=4")
    answers, server = deployed(config, own)
    assert len(answers) >= 8 and not any(reply.has_error() for reply in answers)
    for told in (words_of(answers), server):
        assert PATIENT not in told and str(tmp_path) not in told and images.name not in told


def test_words_of_a_site_are_one_short_line_at_the_server(monkeypatch):
    """A reason of ten megabytes in a thousand lines goes into no ledger and onto no screen."""
    monkeypatch.setattr(client_app, "public_of", lambda error: (Code.failed, "x\n" * 5_000_000))
    monkeypatch.setattr(client_app, "_cohort", lambda *_: 1 / 0)
    client_app._cohort.cache_clear = lambda: None
    _, server = deployed(small_config("data.domains=[plain,inverted]", "rounds=1"), {})
    assert len(server) < 2000 and "\n" not in server


def test_a_message_without_anything_is_answered():
    LocalGrid(lambda pairs: [], 1)
    config = small_config("data.domains=[plain,inverted]")
    for kind in ("query.describe", "query.statistics", "train", "evaluate"):
        context = Context(1, 1000, {"partition-id": 0}, RecordDict(), to_run_config(config))
        reply = client_app.app(Message(RecordDict(), 1000, kind), context)
        assert reply.has_error() and reply.error.code in set(Code)
    assert torch.is_grad_enabled()
