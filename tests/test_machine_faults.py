"""What the machine lacks for a moment is nobody's fault: no file is called damaged for it, no image left out, no client
missing in a round, and no ε counted backwards."""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from rich.console import Console

import run_sim
from clients import secagg
from clients.cohort import Cohort
from clients.compiled import Compiled
from clients.engine.worker import Settings, Worker
from clients.site import Site
from clients.state.disk import Kept
from clients.task import Job
from fedinit import wire
from fedinit.config.compose import compose_config
from fedinit.data import image_files, items
from fedinit.data.decoding import measure_windows
from fedinit.errors import InputError, RunFailed, machine_failed, reason
from fedinit.models import build_backbone, select_targets
from fedinit.runs.kept import left_by
from fedinit.state import manifest
from fedinit.state.checkpoint import FACTS, TENSORS, Checkpoints, State
from fedinit.state.manifest import MANIFEST, last_facts
from fedinit.telling import tell
from fedinit.transport.introduction import Introduction
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from strategies.server.replies import unreadable
from tests.support.small import small_config
from tests.support.trees import plant

LACKS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]
SMALL = ("rounds=3", "client.max_steps=1", "evaluation=none")


def lacking(code: int = errno.EMFILE) -> OSError:
    return OSError(code, os.strerror(code))


def unopened(monkeypatch: pytest.MonkeyPatch, ends: str, code: int = errno.EMFILE) -> None:
    """Files whose names end so cannot be opened."""
    whole = manifest.read_bytes

    def read(path: Path) -> bytes:
        if str(path).endswith(ends):
            raise lacking(code)
        return whole(path)

    monkeypatch.setattr(manifest, "read_bytes", read)


def raised(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((lacking(code), True) for code in (*LACKS, errno.ENOSPC, errno.EAGAIN)),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA driver error: invalid argument"), True),
        (raised(InputError("cannot read it"), lacking()), True),
        (raised(ValueError("odd"), raised(KeyError("it"), MemoryError())), True),
        (lacking(errno.ENOENT), False),
        (lacking(errno.EACCES), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (raised(ValueError("odd"), KeyError("it")), False),
    ],
)
def test_what_is_the_machines(error, expected):
    assert machine_failed(error) is expected
    if type(error) is RuntimeError and expected:
        assert reason(error, "all is kept") == f"run failed: {error}; all is kept"


@pytest.mark.parametrize("code", LACKS)
@pytest.mark.parametrize("name", [MANIFEST, TENSORS, FACTS])
def test_a_checkpoint_that_cannot_be_opened_now_is_not_damaged(name, code, tmp_path, monkeypatch):
    """The run began anew, or from an earlier round, and its last checkpoint was written over."""
    store = Checkpoints(tmp_path / "checkpoints", {})
    for round in (1, 2):
        store.save(round, {"server": State({"A": torch.ones(2) * round}, {"n": round})})
    unopened(monkeypatch, f"round-000002/{name}", code)
    with pytest.raises(OSError) as caught:
        store.load()
    assert caught.value.errno == code
    if name != TENSORS:
        with pytest.raises(OSError):
            last_facts(tmp_path / "checkpoints", "server")
    monkeypatch.undo()
    assert store.load().round == 2
    unopened(monkeypatch, f"round-000002/{name}", errno.EIO)  # the control: what is gone is damage
    assert store.load().round == 1


def test_the_same_command_goes_on_when_files_can_be_opened_again(tmp_path, monkeypatch):
    words = (*SMALL, "report=none", "logger=none", "engine=inline")
    config, whole = (small_config(*words, f"output_dir={tmp_path / place}") for place in ("cut", "whole"))
    answers = Cohort.answers

    def ended(cohort, tasks):
        if tasks and tasks[0].round == 3:
            raise MemoryError
        return answers(cohort, tasks)

    quiet = Console(quiet=True)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Cohort, "answers", ended)
        run_sim.simulate(config, quiet)
    for name in (MANIFEST, TENSORS):
        with monkeypatch.context() as patched, pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            unopened(patched, name)
            assert left_by([config]).startswith("the last whole checkpoint is kept")
            run_sim.simulate(config, quiet)
    found, expected = (run_sim.simulate(each, quiet) for each in (config, whole))
    assert found["final_hash"] == expected["final_hash"]


def test_a_private_run_without_a_whole_checkpoint_does_not_begin_anew_by_itself(tmp_path):
    """What was drawn before was seen: ε would be counted from zero."""
    words = *SMALL, "strategy=fedit", "privacy=clients", "privacy.epsilon=8"
    for hidden in (words, (*SMALL, "strategy=fedit")):
        config, folder = small_config(*hidden), tmp_path / str(len(hidden))
        site = Site(config)
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, checkpoints=folder)
        for path in folder.rglob(FACTS):
            path.write_bytes(b"{}")

        def again(config=config, site=site, folder=folder):
            return federate(config, LocalGrid(Cohort(site), 3), site.backbone, checkpoints=folder)

        if hidden is words:
            with pytest.raises(
                RunFailed, match="round-000003 is damaged .* begin anew with resume=never, which counts"
            ):
                again()
        else:
            assert again().final_hash  # the control


def test_a_site_counts_no_epsilon_backwards(tmp_path, monkeypatch):
    """Where its state cannot be opened, or is damaged, it was trained from the one before, which had spent less."""
    LocalGrid(lambda pairs: [], 1)
    for words, counts in (("strategy=fedit privacy=examples", True), ("strategy=fedit", False)):
        context = Context(1, 1, {"state-dir": str(tmp_path / words), "partition-id": 0}, RecordDict(), {})
        kept = Kept.of(context, small_config(*words.split()))
        assert kept is not None

        def asked(round: int, kept=kept, context=context) -> object:
            message = Message(RecordDict({"config": wire.ConfigRecord({"round": round})}), 1, "train")
            kept.recall(message, context)
            held = context.state["mark"]["round"] if context.state else None
            context.state = RecordDict({"mark": wire.ConfigRecord({"round": round})})
            kept.remember(message, context)
            return held

        assert [asked(round) for round in (1, 2)] == [None, 1]
        with monkeypatch.context() as patched, pytest.raises(OSError):
            unopened(patched, MANIFEST)
            asked(3)
        next((tmp_path / words).rglob(f"round-000002/{FACTS}")).write_bytes(b"{}")
        if counts:
            with pytest.raises(
                InputError, match="the state of round-000002 is damaged .* what ε this client has spent"
            ):
                asked(3)
        else:
            assert asked(3) == 1  # of what is not counted the one before does


@pytest.mark.parametrize("code", LACKS)
def test_an_image_that_cannot_be_opened_now_is_not_left_out(code, tmp_path, monkeypatch):
    root = plant(tmp_path, "art/cat", "art/dog", count=4)
    source = compose_config(["data=image_folder", f"data.root={root}", "data.skip_unreadable=true"]).data
    assert len(source.load(1, (8, 8), 0)) == 8
    decode, calls = image_files.decode, []

    def third(*given):
        calls.append(1)
        if len(calls) == 3:
            raise lacking(code)
        return decode(*given)

    monkeypatch.setattr(image_files, "decode", third)
    with pytest.raises(OSError):
        source.load(1, (8, 8), 0)

    def never(*_):
        raise lacking(code)

    monkeypatch.setattr(items, "decode", never)
    with pytest.raises(OSError):
        items.Items(1, lambda row: b"x", "", 1, (8, 8), "here").decode([0], None)
    with pytest.raises(OSError):
        measure_windows(never, ["a.png"], 1)


def test_an_introduction_that_there_is_no_memory_for_is_no_nodes_fault(monkeypatch):
    def full(_):
        raise MemoryError

    monkeypatch.setattr(Introduction, "_check", full)
    site = Site(small_config(*SMALL))
    with pytest.raises(MemoryError):
        federate(site.config, LocalGrid(Cohort(site), 3), site.backbone)


def test_bytes_that_pythons_parser_has_no_memory_for_are_their_clients():
    """A header that is nested nine thousand deep: taken for the machine's, one site would end everybody's run."""
    text = ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,), }").encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"1234"
    content = RecordDict({wire.STATE: ArrayRecord({"a": Array("float32", (1,), wire.NUMPY, data)})})
    LocalGrid(lambda pairs: [], 1)
    with pytest.raises(ValueError, match="a: its bytes are no numpy array") as caught:
        wire.decode(wire.arrays(Message(content, 1, "train")))
    assert not machine_failed(caught.value) and unreadable(0, caught.value).code == "missing_record"


def test_a_request_that_there_is_no_memory_for_is_not_refused(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("clients.messages.Request.from_json", full)
    site = Site(small_config(*SMALL, "init=eva"))
    with pytest.raises(MemoryError):
        federate(site.config, LocalGrid(Cohort(site), 3), site.backbone)


def test_keys_of_a_secret_sum_go_with_what_ends_an_answer(monkeypatch):
    """A client whose machine has no memory has no keys either, as one that answers an Error."""
    site = Site(small_config(*SMALL, "strategy=ffa_lora", "secure_aggregation=secagg", "engine.clients_per_bank=1"))
    cohort, kept = Cohort(site, deployed=True), []

    def handler(deliveries):
        try:
            return cohort(deliveries)
        except RunFailed:
            kept.extend(context.state[secagg.OWN]["stage"] for _, context in deliveries)
            assert not any("key" in name for _, context in deliveries for name in context.state[secagg.OWN])
            raise

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("clients.engine.worker.train_bank", full)
    with pytest.raises(RunFailed, match="too little memory for one client; .*the same command goes on"):
        federate(site.config, LocalGrid(handler, 3), site.backbone)
    assert kept


@pytest.mark.parametrize("error", [MemoryError(), lacking(errno.ENOSPC)])
def test_a_compiler_without_room_is_not_gone_without(error, tiny_vit, tiny_data, client_config, training_task):
    """Its run would end in other bytes than the same run with room."""

    def compiler(_):
        raise error

    settings = Settings(client=client_config(batch_size=4), seed=0, scale=1.0, compile=True)
    worker = Worker(tiny_vit, select_targets(tiny_vit.module, None, 4), tiny_data, settings)
    worker.compiled = Compiled(compiler)
    with pytest.raises(RunFailed):
        worker.do(Job("train", "", "", (training_task(tiny_vit, 0, 8, 4, round=1),)))


def test_weights_that_there_is_no_memory_for_are_no_wrong_input(monkeypatch):
    """torch says either in a RuntimeError."""
    for error, raised in ((RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
                          (RuntimeError("unable to open file"), InputError)):  # fmt: skip

        def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr("fedinit.models.checkpoint.safe_open", failing)
        with pytest.raises(raised, match=str(error)):
            build_backbone(compose_config(()).model)


def test_a_last_line_needs_no_memory_for_colours(monkeypatch):
    console = Console(file=io.StringIO())

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(console, "print", full)
    tell(console, "run failed:\ntoo little memory", "red")
    assert console.file.getvalue() == "run failed: too little memory\n"
