"""Images on the device are those of memory, come over no more often than they would one by one, and fail as they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from clients import resident
from clients.engine.worker import Settings, Worker
from clients.resident import Resident
from clients.task import Job
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import MappedImages
from fedinit.errors import InputError
from fedinit.models import Backbone, select_targets

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def worker_of(tiny_data: Dataset, client_config) -> Callable[[Backbone], Worker]:
    def make(backbone: Backbone) -> Worker:
        settings = Settings(client=client_config(), seed=3, scale=2.0)
        return Worker(backbone, select_targets(backbone.module, None, 2), tiny_data, settings)

    return make


def elsewhere(data: Dataset, device: torch.device = CPU) -> Resident:
    """As beside another device's memory: its twin on every machine, whose device is the processor."""
    made = Resident(data, device)
    made._elsewhere = True
    return made


def of_a_file(data: Dataset, read: list[int], fault: Callable[[], None] = lambda: None) -> Dataset:
    """The same images, each of them noted as it is read."""

    def rows(wanted: np.ndarray) -> Tensor:
        fault()
        read.extend(wanted.tolist())
        return data.images[torch.from_numpy(wanted)]  # type: ignore[index]

    return dataclasses.replace(data, images=MappedImages(torch.arange(len(data)), data.images.shape[1:], rows))


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=needs_cuda)], ids=str)
def test_the_same_pixels_in_memory_and_on_the_device(device: torch.device, tiny_data: Dataset) -> None:
    chosen, read = torch.tensor([3, 0, 7, 3]), []
    made = elsewhere(of_a_file(tiny_data, read), device)
    first = made.pixels(chosen)
    assert "images" not in vars(made) and read == chosen.tolist()
    assert made.images is not None and made.images.device == device
    second = made.pixels(chosen)
    assert second.device == device and len(read) == len(chosen) + len(tiny_data)  # and no more
    assert torch.equal(first.cpu(), second.cpu()) and torch.equal(first.cpu(), tiny_data.images[chosen])


def test_they_come_over_when_as_many_were_asked_for(tiny_data: Dataset) -> None:
    read: list[int] = []
    made, every = elsewhere(of_a_file(tiny_data, read)), torch.arange(len(tiny_data))
    made.pixels(every)  # an evaluation of all of them, which a process may end after
    assert "images" not in vars(made)
    for _ in range(3):
        made.pixels(every[:1])
    assert "images" in vars(made) and len(read) == 2 * len(tiny_data)
    made.release()
    made.pixels(every[:1])
    assert "images" not in vars(made)


@pytest.mark.parametrize("work", ["evaluate", "features"])
def test_a_job_answers_the_same_with_the_images_on_the_device(
    work, worker_of, training_task, tiny_vit, tiny_data
) -> None:
    made, near = worker_of(tiny_vit), worker_of(tiny_vit)
    near.resident._elsewhere = True
    task = dataclasses.replace(training_task(tiny_vit, 0, 8, 2), work=work)
    plain, *others = (w.do(Job(work, "", "", (task,)))[0] for w in [made, *[near] * 9])
    assert "images" in vars(near.resident) and plain.tensors.keys()
    assert all(torch.equal(other.tensors[key], value) for other in others for key, value in plain.tensors.items())


@torch.inference_mode()
def test_what_an_evaluation_brings_is_the_trainings_too(tiny_data: Dataset) -> None:
    made = elsewhere(of_a_file(tiny_data, []))
    assert made.images is not None and not made.images.is_inference() and torch.ones(1).is_inference()


def test_beside_a_processors_memory_there_is_no_copy(tiny_data: Dataset) -> None:
    made, every = Resident(tiny_data, CPU), torch.arange(len(tiny_data))
    for _ in range(3):
        assert torch.equal(made.pixels(every), tiny_data.images[every])
    assert "images" not in vars(made)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("index", [10**6, -(10**6)])
def test_an_example_that_is_not_there_is_found_before_the_device(index: int, there: bool, tiny_data: Dataset) -> None:
    """An index beyond fails a CUDA device for the whole process."""
    made = elsewhere(tiny_data)
    assert not there or made.images is not None
    with pytest.raises(IndexError):
        made.pixels(torch.tensor([0, index]))
    assert made.pixels(torch.empty(0, dtype=torch.long)).shape == (0, *tiny_data.images.shape[1:])
    assert torch.equal(made.pixels(torch.tensor([-1])), tiny_data.images[[-1]])


def test_what_cannot_be_read_is_told_when_it_is_asked_for(tiny_data: Dataset) -> None:
    def gone() -> None:
        raise InputError("cannot read it any more")

    made = elsewhere(of_a_file(tiny_data, [], gone))
    assert made.images is None
    with pytest.raises(InputError, match="any more"):
        made.pixels(torch.tensor([0]))


def test_without_room_they_stay_in_memory(tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made, every = elsewhere(of_a_file(tiny_data, [])), torch.arange(len(tiny_data))
    monkeypatch.setattr(resident, "_brought", full)
    for _ in range(2):
        assert torch.equal(made.pixels(every), tiny_data.images)
    assert made.images is None


def test_another_failure_is_nobodys_lack_of_room(tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(resident, "_brought", broken)
    with pytest.raises(RuntimeError, match="ECC"):
        _ = elsewhere(of_a_file(tiny_data, [])).images
