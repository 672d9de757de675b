"""Recorded steps end where plain ones do, whatever the bank's shape; on CUDA twice the same, and mates change no bit.

On the CPU a Recorder takes its steps one by one, by the tensors, the shapes and the masks that it records on CUDA, so
everything but the recording itself is held here on every machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch

from clients import batches, replay
from clients.batches import halved
from clients.engine import hardware
from clients.engine.hardware import computing
from clients.engine.worker import Settings, Worker
from clients.optimizers.sgd_sai import SGDSaI
from clients.replay import CAPTURING, Recorder
from clients.resident import Resident
from clients.task import ClientFailed, Job, Result, Task
from clients.training import train_bank
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import MappedImages
from fedinit.errors import DeviceFailed, InputError, RunFailed, out_of_memory, reason
from fedinit.factors import Factors
from fedinit.models import Backbone, select_targets
from tests.support.taped import Captures, Tape

RANK, SCALE = 4, 2.0
# Batches of four: six, three, two and one an epoch; four clients, then two, then one are in a step.
SIZES = {0: 24, 1: 11, 2: 5, 3: 3}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
CUDA = torch.device("cuda", 0)


@pytest.fixture
def tasks(tiny_vit: Backbone, training_task) -> list[Task]:
    return [training_task(tiny_vit, c, images, RANK - c % 2, round=1) for c, images in SIZES.items()]


@pytest.fixture
def worker(tiny_vit: Backbone, tiny_data: Dataset) -> Callable[..., Worker]:
    """worker(settings, device, recorded, precision)"""

    def make(settings: ClientConfig, device: str = "cpu", recorded: bool = True, precision: str = "fp32") -> Worker:
        place = torch.device(device, 0) if device == "cuda" else torch.device(device)
        targets = select_targets(tiny_vit.module, None, RANK)
        of_run = Settings(client=settings, seed=3, scale=SCALE, precision=precision)
        made = Worker(tiny_vit, targets, tiny_data, of_run, place)
        made.recorder = Recorder(made.resident, tiny_vit.input) if recorded else None
        return made

    return make


def results(worker: Worker, tasks: Sequence[Task], base: str = "") -> list[Result]:
    answers = worker.do(Job("train", base, "", tuple(tasks)))
    assert all(isinstance(answer, Result) for answer in answers), answers
    return list(answers)  # type: ignore[arg-type]


def tensors(result: Result) -> dict[str, torch.Tensor]:
    parts = {f"{n}/{p}": v for n, f in result.adapter.items() for p, v in f.parts.items()}
    return parts | {f"head/{key}": value for key, value in result.head.items()}


def gap(ours: Sequence[Result], theirs: Sequence[Result]) -> float:
    """The largest difference of a tensor, by its size; of the losses too."""
    worst = 0.0
    for one, two in zip(ours, theirs, strict=True):
        assert (one.client, one.steps, one.optimizer_state) == (two.client, two.steps, two.optimizer_state)
        worst = max(worst, abs(one.loss - two.loss) / two.loss)
        a, b = tensors(one), tensors(two)
        worst = max(worst, *(float((a[name] - b[name]).norm() / b[name].norm()) for name in b))
    return worst


def same_bytes(ours: Sequence[Result], theirs: Sequence[Result]) -> bool:
    pairs = [(tensors(one), tensors(two)) for one, two in zip(ours, theirs, strict=True)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "crop_flip", "clip_norm": 1.0},
        {"optimizer": "adamw", "lr": 0.003, "augment": "flip"},
        {"optimizer": "sgd_sai", "prox": 0.1, "epochs": 1},
    ],
    ids=["sgd", "adamw", "sgd_sai"],
)
def test_recorded_steps_end_where_plain_ones_do(device, changes, worker, client_config, tasks) -> None:
    """Uneven steps, short batches, mixed ranks. The second bank of a shape works on the first one's tensors."""
    settings = client_config(**changes)
    plain = results(worker(settings, device, recorded=False), tasks)
    recorded = worker(settings, device)
    others = [dataclasses.replace(task, round=2) for task in tasks]
    results(recorded, others)
    # AdamW divides by √v near zero, where rounding shows.
    assert gap(results(recorded, tasks), plain) < (2e-3 if settings.optimizer == "adamw" else 2e-5)
    assert gap(results(recorded, others), plain) > 1e-3  # what this can tell apart


@pytest.mark.parametrize("device", DEVICES)
def test_a_merged_base_is_the_bases_own(device, worker, client_config, tasks) -> None:
    """One recording serves the rounds of a method that merges, whose base is another one every round."""
    recorded, plain = worker(client_config(), device), worker(client_config(), device, recorded=False)
    offsets = {}
    for key in ("one", "two"):
        draw = torch.Generator().manual_seed(len(offsets))
        offsets[key] = {"blocks.1.mlp.fc2": 0.1 * torch.randn(24, 96, generator=draw)}
        for made in (recorded, plain):
            made.replica.hold(key, offsets[key])
    ends = {}
    for key in ("one", "two", "one", ""):
        ours = results(recorded, tasks, key)
        assert gap(ours, results(plain, tasks, key)) < 2e-5
        assert key not in ends or same_bytes(ours, ends[key])
        ends[key] = ours
    assert gap(ends["one"], ends["two"]) > 1e-3


def test_rows_are_halves_of_the_bank() -> None:
    assert [halved(active, 6) for active in range(1, 7)] == [1, 2, 3, 6, 6, 6]
    assert [halved(active, 1) for active in (1,)] == [1]
    assert {halved(active, 64) for active in range(1, 65)} == {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize("device", DEVICES)
def test_a_client_that_is_done_does_not_move(device, worker, client_config, tasks) -> None:
    """Client 2 is done after two steps, client 1 after three, in one pass of their shape: cutting the longer one's
    further steps changes nothing of the other."""
    settings = client_config(momentum=0.9, weight_decay=0.1)
    both = [dataclasses.replace(t, adapter=tasks[1].adapter) for t in tasks[:3]]
    long = results(worker(settings, device), both)
    short = results(worker(settings, device), [dataclasses.replace(both[0], examples=both[0].examples[:12]), *both[1:]])
    assert same_bytes(long[1:], short[1:])
    assert not same_bytes(long[:1], short[:1])


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_twice_the_same_on_cuda(precision, worker, client_config, tasks) -> None:
    """Also in a process that has recorded other shapes in between."""
    made = worker(client_config(augment="crop_flip"), "cuda", precision=precision)
    first = results(made, tasks)
    results(made, tasks[:2])
    assert made.recorder is not None and made.recorder.works
    assert same_bytes(results(made, tasks), first)
    assert same_bytes(results(worker(client_config(augment="crop_flip"), "cuda", precision=precision), tasks), first)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mute_mate_changes_no_bit_on_cuda(precision, worker, client_config, tasks) -> None:
    settings = client_config()
    whole = results(worker(settings, "cuda", precision=precision), tasks)
    muted = [tasks[0], tasks[1].stand_in(tasks[0]), *tasks[2:]]
    answers = worker(settings, "cuda", precision=precision).do(Job("train", "", "", tuple(muted)))
    assert same_bytes([answers[i] for i in (0, 2, 3)], [whole[i] for i in (0, 2, 3)])  # type: ignore[misc]


@needs_cuda
def test_images_that_do_not_fit_are_read_ahead(worker, client_config, tasks) -> None:
    settings = client_config(augment="crop_flip")
    resident, staged = worker(settings, "cuda"), worker(settings, "cuda")
    staged.recorder.resident.images = None
    assert same_bytes(results(staged, tasks), results(resident, tasks))


@pytest.mark.parametrize("device", DEVICES)
def test_images_of_a_file_lie_on_the_device_too(device, worker, client_config, tasks, tiny_data) -> None:
    read, there = [], tiny_data.images

    def rows(wanted) -> torch.Tensor:
        read.append(wanted)
        return there[torch.from_numpy(wanted)]

    made = worker(settings := client_config(augment="crop_flip"), device)
    shape = there.shape[1:]
    mapped = dataclasses.replace(tiny_data, images=MappedImages(torch.arange(len(there)), shape, rows))
    made.recorder = Recorder(Resident(mapped, made.device), made.spec)
    assert same_bytes(results(made, tasks), results(worker(settings, device), tasks))
    assert sum(map(len, read)) == len(there)  # once, and not step by step
    results(made, tasks)
    assert sum(map(len, read)) == len(there)


def test_an_image_of_a_file_that_cannot_be_read_is_its_clients(worker, client_config, tasks, tiny_data) -> None:
    there, gone = tiny_data.images, int(tasks[1].examples[0])

    def rows(wanted) -> torch.Tensor:
        if gone in wanted:
            raise InputError("cannot read it any more")
        return there[torch.from_numpy(wanted)]

    made = worker(client_config())
    mapped = MappedImages(torch.arange(len(there)), there.shape[1:], rows)
    made.resident = Resident(dataclasses.replace(tiny_data, images=mapped), made.device)
    made.recorder = Recorder(made.resident, made.spec)
    answers = made.do(Job("train", "", "", tuple(tasks)))
    assert [isinstance(answer, ClientFailed) for answer in answers] == [False, True, False, False]
    assert "cannot read it any more" in str(answers[1])


def test_images_off_the_device_are_augmented_alike(worker, client_config, tasks) -> None:
    settings = client_config(augment="crop_flip")
    resident, staged = worker(settings), worker(settings)
    staged.recorder.resident.images = None
    assert same_bytes(results(staged, tasks), results(resident, tasks))


def test_memory_that_recordings_hold_is_given_back_before_a_bank_is_given_up(
    worker, client_config, tasks, monkeypatch
) -> None:
    made, tried = worker(client_config()), []
    whole = results(made, tasks)
    own = Recorder._recording

    def full(recorder, *given):
        tried.append(len(recorder._recordings))
        if recorder._recordings:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(recorder, *given)

    monkeypatch.setattr(Recorder, "_recording", full)
    assert same_bytes(results(made, tasks), whole) and tried == [1, 0]
    made.close()
    assert not made.recorder._recordings and "images" not in vars(made.recorder) and not made.recorder.release()


def test_images_that_are_read_ahead_take_turns_in_two_buffers(monkeypatch) -> None:
    """The device, in name: a buffer is filled anew only once it has read what was in it."""
    log: list[str] = []

    class Event:
        made = 0

        def __init__(self, blocking: bool = False) -> None:
            self.number, Event.made = Event.made, Event.made + 1

        def record(self, stream: object) -> None:
            log.append(f"{stream} records {self.number}")

        def synchronize(self) -> None:
            log.append(f"host waits for {self.number}")

    class Here:
        def __str__(self) -> str:
            return "here"

        def wait_event(self, event: Event) -> None:
            log.append(f"here waits for {event.number}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Here())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    steps = 6
    loader = SimpleNamespace(
        active=[2] * steps, batch=lambda step: step, pixels=lambda step, *_: torch.full((2, 3 - step % 2), float(step))
    )
    staging, seen = [torch.empty(6) for _ in range(2)], []
    for step, ready in enumerate(replay._ahead(loader, staging, "copies")):
        assert torch.equal(ready, torch.full((2, 3 - step % 2), float(step)))
        seen.append(ready.data_ptr())
        log.append(f"step {step}")
        if step + 1 < steps:
            time.sleep(0.02)  # in which the next is read, and this one stays as it is
            assert torch.equal(ready, torch.full((2, 3 - step % 2), float(step)))
    assert set(seen) == {buffer.data_ptr() for buffer in staging} and len(set(seen[::2])) == 1
    waits = [line for line in log if line.startswith("host waits")]
    assert len(waits) == steps - 2
    for step in range(2, steps):  # the event behind step - 2 was recorded before the host waited for it
        number = waits[step - 2].rpartition(" ")[2]
        assert log.index(f"step {step - 2}") < log.index(f"here records {number}") < log.index(waits[step - 2])
        assert log.index(waits[step - 2]) < log.index(f"step {step}")


@needs_cuda
def test_too_little_memory_is_said_in_one_line(worker, client_config, tasks, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = worker(client_config(), "cuda")
    monkeypatch.setattr(made.recorder, "_recording", full)
    with pytest.raises(RunFailed, match="4 clients .* engine.clients_per_bank=2"):
        made.do(Job("train", "", "", tuple(tasks)))


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (
            4,
            "cpu has too little memory for 4 clients .*; use engine.lanes=1, .*; or engine.clients_per_bank=2",
        ),
        (1, "for one client; use engine.lanes=1, .* no result; or a lower"),
    ],
)
def test_a_processor_without_memory_loses_no_client(worker, client_config, tasks, monkeypatch, count, said) -> None:
    """torch says it in a RuntimeError there; taken for the clients', they would be missing in the round's mean."""

    def full(*_: object, **__: object) -> None:
        torch.empty(10**15)

    made = worker(client_config())
    monkeypatch.setattr("clients.engine.worker.train_bank", full)
    with pytest.raises(RunFailed, match=said):
        made.do(Job("train", "", "", tuple(tasks[:count])))
    monkeypatch.setattr("clients.engine.worker.features_of", full)
    with pytest.raises(RunFailed, match="one client; use .* or a lower evaluation.batch_size"):
        made.do(Job("features", "", "", tuple(tasks[:1])))
    monkeypatch.setattr("clients.engine.worker.measure", full)
    for source, key in (("gradients", "client.batch_size"), ("inputs", "evaluation.batch_size")):
        task = dataclasses.replace(tasks[0], work="measure", request=SimpleNamespace(source=source))
        with pytest.raises(RunFailed, match=f"one client; use .* or a lower {key}"):
            made.do(Job("measure", "", "", (task,)))


def test_a_bank_that_there_is_no_memory_for_is_trained_by_parts_with_the_same_bytes(
    worker, client_config, tiny_vit, training_task, monkeypatch, capsys
) -> None:
    """Where its clients' bytes do not depend on it; else the run ends with a line, and nobody is missing in a round."""
    settings, asked, whole = client_config(batch_size=4), [], train_bank
    tasks = [training_task(tiny_vit, client, images, RANK, round=1) for client, images in SIZES.items()]
    expected = results(worker(settings, recorded=False), tasks)

    def short(bank, tasks, *more):
        asked.append(len(tasks))
        return whole(bank, tasks, *more) if len(tasks) <= 2 else torch.empty(10**15)

    monkeypatch.setattr("clients.engine.worker.train_bank", short)
    made = worker(settings, recorded=False)
    assert same_bytes(results(made, tasks), expected) and asked == [4, 2, 2]
    said = "engine: too little memory for a bank of 4; from here on 2 clients in one pass, which changes no result\n"
    assert capsys.readouterr().err == said
    assert same_bytes(results(made, tasks), expected) and asked[3:] == [2, 2] and not capsys.readouterr().err
    ones = [training_task(tiny_vit, client, images, 1, round=1) for client, images in SIZES.items()]
    small, rounded = worker(client_config(batch_size=2), recorded=False), worker(settings, "cpu", False, "bf16")
    mixed = [*ones[:2], *tasks[2:]]  # a bank that must stay whole, of a worker that has halved another
    for other, given in ((small, tasks), (rounded, tasks), (worker(settings, recorded=False), ones), (made, mixed)):
        with pytest.raises(RunFailed, match="4 clients .* engine.clients_per_bank=2, which is another run"):
            results(other, given)
    monkeypatch.setattr("clients.engine.worker.rows_are_kept", lambda: False)
    with pytest.raises(RunFailed, match="which is another run"):
        results(worker(settings, recorded=False), tasks)


@pytest.mark.parametrize("place", ["plan", "augment"])
def test_memory_that_runs_out_as_a_clients_images_are_fetched_is_the_banks(
    place, worker, client_config, tiny_vit, training_task, monkeypatch
) -> None:
    """Taken for the client's, it was missing in the round, and the run ended as any other."""
    settings = client_config(batch_size=4, augment="crop_flip")
    tasks = [training_task(tiny_vit, client, images, RANK, round=1) for client, images in SIZES.items()]
    expected, times, whole = results(worker(settings, recorded=False), tasks), [], getattr(batches, place)

    def once(*given):
        times.append(place)
        return torch.empty(10**15) if len(times) == 2 else whole(*given)

    monkeypatch.setattr(batches, place, once)
    assert same_bytes(results(worker(settings, recorded=False), tasks), expected) and len(times) > 2

    def never(*_):
        raise MemoryError

    monkeypatch.setattr(batches, place, never)
    with pytest.raises(RunFailed, match="too little memory for one client"):
        results(worker(settings, recorded=False), tasks)


def test_a_client_that_fails_in_a_bank_without_memory_is_alone_in_it(
    worker, client_config, tiny_vit, training_task, monkeypatch
) -> None:
    """It was tried in a bank of all, for which there is no memory, and ended the run."""
    settings, whole = client_config(batch_size=4), train_bank
    tasks = [training_task(tiny_vit, client, images, RANK, round=1) for client, images in SIZES.items()]
    expected = results(worker(settings, recorded=False), tasks)

    def short(bank, tasks, *more):
        if len(tasks) > 2 or any(task.client == 1 and not task.mute for task in tasks):
            return torch.empty(10**15) if len(tasks) > 2 else torch.empty(-1)
        return whole(bank, tasks, *more)

    monkeypatch.setattr("clients.engine.worker.train_bank", short)
    answers = worker(settings, recorded=False).do(Job("train", "", "", tuple(tasks)))
    assert [type(answer) for answer in answers] == [Result, ClientFailed, Result, Result]
    assert same_bytes([answers[i] for i in (0, 2, 3)], [expected[i] for i in (0, 2, 3)])


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_device_that_failed_loses_no_client(worker, client_config, tasks, monkeypatch, error) -> None:
    """All that it is asked fails from then on; taken for the clients', half of them were missing in every round."""

    def broken(*_: object, **__: object) -> None:
        raise error

    assert reason(error, "all is kept") == f"run failed: {str(error).splitlines()[0]}; all is kept"
    made, said = worker(client_config()), rf"^cpu failed \({re.escape(str(error).splitlines()[0])}\); the last whole"
    for name, work in (("train_bank", "train"), ("features_of", "features"), ("measure", "measure")):
        monkeypatch.setattr(f"clients.engine.worker.{name}", broken)
        task = dataclasses.replace(tasks[0], work=work, request=SimpleNamespace(source="inputs"))
        with pytest.raises(DeviceFailed, match=said):
            made.do(Job(work, "", "", (task, task)))


def test_what_is_a_clients_own_fault_ends_no_run(worker, client_config, tasks, monkeypatch) -> None:
    """The negative control."""

    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("clients.engine.worker.train_bank", wrong)
    answers = worker(client_config()).do(Job("train", "", "", tuple(tasks)))
    assert [type(answer).__name__ for answer in answers] == ["ClientFailed"] * 4


@pytest.mark.parametrize("precision", ["bf16", pytest.param("tf32", marks=needs_cuda)])
def test_less_precision_trains_alike_and_keeps_float32(precision, worker, client_config, tasks) -> None:
    """Within what the backbone's rounding explains; what leaves a client is float32."""
    device = "cpu" if precision == "bf16" else "cuda"
    ours = results(worker(client_config(), device, precision=precision), tasks)
    exact = results(worker(client_config(), device), tasks)
    assert all(v.dtype == torch.float32 for result in ours for v in tensors(result).values())
    assert 1e-6 < gap(ours, exact) < 0.1


def test_a_small_update_is_not_lost_in_a_rounded_weight(worker, client_config, tasks) -> None:
    """Merged and folded in float32: W + s·O in bf16 of a change below its last place would be W."""
    made = worker(client_config(), precision="bf16")
    layer = made.bank.layers["blocks.0.mlp.fc2"]
    change = layer.weight.abs() * 2.0**-12
    made.replica.hold("small", {"blocks.0.mlp.fc2": change / SCALE})
    made.replica.put(made.bank, "small")
    torch.testing.assert_close(layer.base.exact - layer.weight, change, rtol=1e-2, atol=1e-8)
    assert layer.base.weight.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    rounded = (layer.own.weight.float() + change).to(torch.bfloat16)
    assert torch.equal(rounded, layer.own.weight)  # the control


def test_computing_restores_what_it_changes() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with computing(torch.device("cpu"), "fp32"):
        pass
    assert torch.are_deterministic_algorithms_enabled() == before


def test_failed_clients_of_a_bank_are_told(worker, client_config, tasks) -> None:
    """One that has nothing to train on costs its mates nothing."""
    empty = [tasks[0], dataclasses.replace(tasks[1], examples=torch.zeros(0, dtype=torch.long)), *tasks[2:]]
    answers = worker(client_config()).do(Job("train", "", "", tuple(empty)))
    assert [isinstance(answer, ClientFailed) for answer in answers] == [False, True, False, False]


def test_factors_are_the_tasks_own(worker, client_config, tasks) -> None:
    """What a recording works on is its own: neither the start nor an earlier result moves."""
    made = worker(client_config())
    before = {n: f.map(torch.clone) for n, f in tasks[0].adapter.items()}
    first = results(made, tasks[:1])
    kept = {n: Factors(f.A.clone(), f.B.clone()) for n, f in first[0].adapter.items()}
    results(made, [dataclasses.replace(tasks[0], round=2)])
    for name, factors in tasks[0].adapter.items():
        assert torch.equal(factors.A, before[name].A) and torch.equal(factors.B, before[name].B)
        assert torch.equal(first[0].adapter[name].A, kept[name].A)


OPTIMIZERS = {
    "sgd": {"augment": "crop_flip", "clip_norm": 1.0, "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "augment": "flip", "lr_ratio_b": 4.0},
    "sgd_sai": {"optimizer": "sgd_sai", "prox": 0.1, "epochs": 1},
}


@pytest.fixture
def captures(monkeypatch) -> Captures:
    return Captures(monkeypatch)


def taped(worker: Worker) -> Worker:
    """The worker, which records as on CUDA."""
    assert worker.recorder is not None
    worker.recorder.works = True
    return worker


@pytest.mark.parametrize("changes", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_recorded_and_replayed_to_the_same_bytes(
    changes, captures, worker, client_config, tasks, monkeypatch
) -> None:
    """By a graph of the CPU's, which refuses what a capture refuses; two banks of one shape in turn."""
    monkeypatch.setattr(SGDSaI, "_all_begun", lambda optimizer, active: False)  # as on CUDA
    settings = client_config(**changes)
    recorded, twin = taped(worker(settings)), worker(settings)
    for banks in (tasks, [dataclasses.replace(task, round=2) for task in tasks], tasks):
        assert same_bytes(results(recorded, banks), results(twin, banks))
    assert recorded.recorder is not None and recorded.recorder.works
    graphs = [graph for made in recorded.recorder._recordings.values() for graph in made.graphs.values()]
    assert len(graphs) > 2 and all(graph.operations for graph in graphs)


def test_a_graph_is_captured_on_the_recorders_own_stream(captures, worker, client_config, tasks, monkeypatch) -> None:
    """torch's own default is a stream of the device that came first in the process; and one graph at a time."""
    captured = captures._capture

    def alone(*given, **how):
        assert CAPTURING.locked()
        return captured(*given, **how)

    monkeypatch.setattr(torch.cuda, "graph", alone)
    made = taped(worker(client_config()))
    results(made, tasks)
    assert made.recorder is not None and captures.streams and set(captures.streams) == {made.recorder.stream}
    assert made.recorder.stream.device == made.recorder.device


def test_an_empty_graph_is_no_step(captures, worker, client_config, tasks, capsys) -> None:
    """What torch makes of a capture on another device's stream: replayed, no client would move."""
    captures.elsewhere = True
    settings = client_config(augment="crop_flip")
    made = taped(worker(settings))
    assert same_bytes(results(made, tasks), results(worker(settings), tasks))
    assert made.recorder is not None and not made.recorder.works
    assert "steps are taken one by one, since they cannot be recorded: nothing was recorded" in capsys.readouterr().err
    assert captures.set == [captures.here]


@pytest.mark.parametrize("beneath", [False, True], ids=["itself", "beneath the end of the capture"])
def test_no_memory_for_a_recording_is_no_reason_to_take_steps_one_by_one(
    beneath, captures, worker, client_config, tasks, capsys
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    broken = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    captures.error = (broken, full) if beneath else (full, None)
    with pytest.raises(RunFailed, match="4 clients .* engine.clients_per_bank=2"):
        taped(worker(client_config())).do(Job("train", "", "", tuple(tasks)))
    assert not capsys.readouterr().err and captures.set == [captures.here] * len(captures.set) != []


def test_dropout_which_is_not_recorded_is_a_line(captures, worker, client_config, tasks, capsys) -> None:
    plain, made = worker(client_config(), recorded=False), taped(worker(client_config()))
    for each in (plain, made):
        for layer in each.bank.layers.values():
            layer.dropout = 0.2
    assert same_bytes(results(made, tasks), results(plain, tasks)) and not captures.streams
    results(made, tasks)
    said = "engine: steps are taken one by one, since what is dropped is drawn by generators that a graph cannot hold\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA driver error: invalid argument"), False),
    ],
)
def test_what_cuda_says_where_it_has_no_memory(error, expected) -> None:
    assert out_of_memory(error) is expected


@pytest.mark.parametrize("optimizer", ["sgd_sai", "adamw"])
def test_what_an_optimiser_keeps_is_told_of_the_bank_that_trained(optimizer, worker, client_config, tasks) -> None:
    """And not of the first of its shape, whose clients had their ranks in another order."""
    other = [dataclasses.replace(t, adapter=u.adapter) for t, u in zip(tasks, reversed(tasks), strict=True)]
    made, plain = worker(client_config(optimizer=optimizer)), worker(client_config(optimizer=optimizer), recorded=False)
    first, second = results(made, tasks), results(made, other)
    assert [r.optimizer_state for r in second] == [r.optimizer_state for r in results(plain, other)]
    assert [r.optimizer_state for r in first] != [r.optimizer_state for r in second]


def test_a_client_that_is_done_has_the_loss_of_its_own_steps(worker, client_config, tasks) -> None:
    """A pass of whatever lies in its place may overflow: zero times infinity is no number."""
    settings = client_config(lr=1e25, epochs=1)
    rows = [dataclasses.replace(t, adapter=tasks[1].adapter) for t in tasks]
    ours, theirs = results(worker(settings), rows), results(worker(settings, recorded=False), rows)
    assert not all(r.loss < 1e20 for r in theirs)  # who goes on diverges
    assert ours[3].steps == 1 and ours[3].loss == pytest.approx(theirs[3].loss, rel=1e-5) and ours[3].loss < 100


def test_the_host_gives_adamw_its_corrections_without_a_copy(worker, client_config, tasks) -> None:
    made = worker(client_config(optimizer="adamw"))
    results(made, tasks)
    (recording,) = made.recorder._recordings.values()
    optimizer = recording.training.optimizer
    optimizer.steps = 0
    with Tape(operations := []):
        optimizer.advance()
    assert all("fill_" in str(done[0]) or "select" in str(done[0]) for done in operations)
    b1, b2 = optimizer.settings.betas
    expected = torch.tensor([1 - b2, optimizer.settings.lr / (1 - b1)])
    assert torch.equal(optimizer.corrections, expected)


USED: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "older": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("used", USED)
def test_switches_are_put_back_by_whichever_a_person_used(used, monkeypatch) -> None:
    """torch has two kinds, and reading the one raises where the other was written."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    kept, everything = hardware._products(), torch.backends.fp32_precision
    try:
        USED[used]()
        before = [module.fp32_precision for module in hardware.PRODUCTS]
        for precision in ("tf32", "fp32"):
            with computing(torch.device("cuda", 0), precision):
                now = {module.fp32_precision for module in hardware.PRODUCTS}
                assert now == {"tf32" if precision == "tf32" else "ieee"}
        assert [module.fp32_precision for module in hardware.PRODUCTS] == before
    finally:
        torch.backends.fp32_precision = everything
        hardware._put_back(kept)


def test_switches_stay_while_any_lane_computes_and_are_put_back(monkeypatch) -> None:
    """Two devices' lanes, of which the first is done first."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    torch.backends.cuda.matmul.allow_tf32 = True
    before = torch.are_deterministic_algorithms_enabled()
    one, two = (computing(torch.device("cuda", i), "fp32") for i in range(2))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cuda.matmul.allow_tf32
    two.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled() == before and torch.backends.cuda.matmul.allow_tf32
    with computing(torch.device("cuda", 0), "tf32"):
        assert torch.are_deterministic_algorithms_enabled()
    with computing(torch.device("cuda", 0), "fp32", repeats=False):  # a lane; within it a kept row is made anew
        with computing(torch.device("cuda", 0), "fp32"):
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_images_are_on_the_device_from_the_first_recording_on(worker, client_config, tasks) -> None:
    made = worker(client_config())
    assert not {"images", "labels"} & vars(made.resident).keys()
    results(made, tasks)
    assert made.resident.images is not None and "labels" in vars(made.resident)


def of_kind(kind: str, tasks: Sequence[Task]) -> list[Task]:
    """The tasks with adapters of another kind; VeRA's share their A and B."""
    draw = torch.Generator().manual_seed(0)
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    trained = {"dora": "ABm", "vera": "bd"}[kind]

    def some(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=draw)

    def made(name: str, d: int, k: int) -> Factors:
        if kind == "vera":
            A, B = shared.setdefault(name, (10 * some(RANK, k), 10 * some(d, RANK)))
            return VeRAFactors(A, B, b=some(d), d=some(RANK))
        return DoRAFactors(some(RANK, k), some(d, RANK), m=1 + some(d))

    return [
        dataclasses.replace(
            task, adapter={n: made(n, *f.shape) for n, f in task.adapter.items()}, trainable=frozenset(trained)
        )
        for task in tasks
    ]


@pytest.mark.parametrize(
    ("kind", "precision"), [("vera", "fp32"), pytest.param("dora", "bf16", marks=pytest.mark.slow)]
)
def test_every_kind_is_recorded_over_bases_that_take_turns(
    kind, precision, captures, worker, client_config, tasks
) -> None:
    """What is made of a base once, a kind's norms among it, is the base's own in every replay."""
    settings, given = client_config(optimizer="adamw", lr=0.01), of_kind(kind, tasks)
    recorded, twin = taped(worker(settings, precision=precision)), worker(settings, precision=precision)
    for key in ("one", "two"):
        draw = torch.Generator().manual_seed(len(key) + ord(key[0]))
        offset = {name: 0.1 * torch.randn(f.shape, generator=draw) for name, f in given[0].adapter.items()}
        for made in (recorded, twin):
            made.replica.hold(key, offset)
    ends = {}
    for key in ("", "one", "two", "one", ""):
        ends[key] = results(recorded, given, key)
        assert same_bytes(ends[key], results(twin, given, key)), key
    assert recorded.recorder is not None and recorded.recorder.works
    assert len({float(end[0].loss) for end in ends.values()}) == 3  # what this can tell apart
