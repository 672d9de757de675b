"""Short batches, at the end of an epoch or of clients with few images: nothing is computed to fill them up, and a
client computes the same bits alone and in company, whatever its mates have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clients import batches
from clients.loader import BankLoader
from clients.task import Result, SlotChoice, Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.config.compose import compose_config
from fedinit.data.digits import load_digits
from fedinit.factors import leading
from fedinit.models import build_backbone, select_targets
from tests.support.small import slow_unless

RANK = 4
IMAGES = (24, 11, 5, 13, 5, 6, 37)


@pytest.fixture
def tasks_of(training_task) -> Callable[..., list[Task]]:
    """tasks_of(backbone, images): a client of so many images each."""
    return lambda backbone, images=IMAGES: [training_task(backbone, c, n) for c, n in enumerate(images)]


def trained(backbone, data, tasks, settings, dropout: float = 0.0) -> list[Result]:
    bank = Bank(backbone, select_targets(backbone.module, None, RANK), 2.0, dropout)
    return train_bank(bank, tasks, data, backbone.input, settings, 1)


def bits(result: Result) -> list[bytes]:
    tensors: list[Tensor] = [v for f in result.adapter.values() for v in (f.A, f.B)] + list(result.head.values())
    return [value.numpy().tobytes() for value in tensors]


def test_every_image_goes_through_the_backbone_once_an_epoch(
    tiny_vit, tiny_data, client_config, tasks_of, monkeypatch
) -> None:
    seen: list[int] = []
    embed = Bank.embed
    monkeypatch.setattr(Bank, "embed", lambda self, images: seen.append(len(images)) or embed(self, images))
    settings = client_config(batch_size=8, epochs=2)
    images = [24, 12, 6, 14, 6, 16, 36]
    trained(tiny_vit, tiny_data, tasks_of(tiny_vit, images), settings)
    assert sum(seen) == 2 * sum(images)


def test_few_images_in_a_large_batch_are_a_small_batch(tiny_vit, tiny_data, client_config, tasks_of) -> None:
    """Dropout and augmentation too."""
    tasks = tasks_of(tiny_vit, [5, 5, 5])
    found = [
        [bits(r) for r in trained(tiny_vit, tiny_data, tasks, client_config(batch_size=b, augment="crop_flip"), 0.2)]
        for b in (5, 20, 4)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]  # the negative control: two steps an epoch are others


def test_a_client_computes_the_same_bits_alone_and_in_company(tiny_vit, tiny_data, client_config, tasks_of) -> None:
    settings = client_config(batch_size=8, epochs=2, augment="crop_flip")
    tasks = tasks_of(tiny_vit)
    alone = [bits(trained(tiny_vit, tiny_data, [task], settings, 0.2)[0]) for task in tasks]
    assert [bits(r) for r in trained(tiny_vit, tiny_data, tasks, settings, 0.2)] == alone
    # The negative control: with an image less among its own, which no mate's is.
    less = dataclasses.replace(tasks[0], examples=tasks[0].examples[:-1])
    found = [bits(r) for r in trained(tiny_vit, tiny_data, [less, *tasks[1:]], settings, 0.2)]
    assert found[0] != alone[0] and found[1:] == alone[1:]


@pytest.mark.parametrize(
    ("model", "size"),
    slow_unless(
        lambda model, size: (model, size) == ("glyph_mixer", 5),
        itertools.product(("glyph_vit", "glyph_mixer"), (5, 7, 20)),
    ),
)
def test_of_the_embedded_models_too(model, size, client_config, tasks_of) -> None:
    """Seventeen tokens: where an image's begin is another place, to a product, for every one of them."""
    backbone, digits = build_backbone(compose_config([f"model={model}"]).model), load_digits(32)
    data = dataclasses.replace(digits, labels=digits.labels % 5)
    tasks, settings = tasks_of(backbone, (1, 2, 3, 9, 13, 19, 20, 21, 38)), client_config(batch_size=size, epochs=1)
    alone = [bits(trained(backbone, data, [task], settings)[0]) for task in tasks]
    for several in (2, 3, 9):
        banks = [tasks[i : i + several] for i in range(0, len(tasks), several)]
        assert [bits(r) for bank in banks for r in trained(backbone, data, bank, settings)] == alone


def test_lower_ranks_are_filled_up_whoever_is_there(tiny_vit, tiny_data, client_config, tasks_of) -> None:
    settings, targets = client_config(batch_size=8, epochs=1), select_targets(tiny_vit.module, None, RANK)
    tasks = [
        dataclasses.replace(task, adapter={name: leading(f, rank) for name, f in task.adapter.items()})
        for task, rank in zip(tasks_of(tiny_vit), (1, 2, 4, 3, 4, 1, 2), strict=True)
    ]

    def found(tasks: list[Task], rank: int) -> list[list[bytes]]:
        bank = Bank(tiny_vit, targets, 2.0, rank=rank)
        return [bits(r) for r in train_bank(bank, tasks, tiny_data, tiny_vit.input, settings, 1)]

    assert found(tasks, RANK) == [found([task], RANK)[0] for task in tasks]
    shapes = [f.rank for f in tasks[0].adapter.values()]
    (one,) = train_bank(Bank(tiny_vit, targets, 2.0, rank=RANK), tasks[:1], tiny_data, tiny_vit.input, settings, 1)
    assert [f.rank for f in one.adapter.values()] == shapes
    assert found(tasks, 0) != [found([task], 0)[0] for task in tasks]  # the negative control: as far as the mates'


def test_the_slots_that_a_client_chooses_are_its_own_too(tiny_vit, tiny_data, client_config, tasks_of) -> None:
    """By the gradients of two batches, the second of them short for some."""
    settings = client_config(batch_size=8, epochs=1)
    tasks = [
        dataclasses.replace(t, trainable=frozenset("B"), choice=SlotChoice(7, "gradient", 2))
        for t in tasks_of(tiny_vit)
    ]

    def found(result: Result) -> tuple[list[bytes], dict[str, list[int]]]:
        return bits(result), {name: places.tolist() for name, places in result.chosen.items()}

    alone = [found(trained(tiny_vit, tiny_data, [task], settings)[0]) for task in tasks]
    assert [found(result) for result in trained(tiny_vit, tiny_data, tasks, settings)] == alone


def test_parts_are_neighbours_with_equally_long_batches(tiny_vit, tiny_data, client_config, tasks_of) -> None:
    tasks = tasks_of(tiny_vit)
    loader = BankLoader(tasks, tiny_data, tiny_vit.input, client_config(batch_size=8, epochs=1), 1, torch.device("cpu"))
    assert [len(t.examples) for t in loader.members] == [37, 24, 13, 11, 6, 5, 5]
    shapes = [[(part.first, *part.indices.shape) for part in loader.parts(step)] for step in range(5)]
    assert shapes == [
        [(0, 4, 8), (4, 1, 6), (5, 2, 5)],
        [(0, 2, 8), (2, 1, 5), (3, 1, 4)],  # three of eleven are left, which go as FEWEST
        [(0, 2, 8)],
        [(0, 1, 8)],
        [(0, 1, 5)],
    ]
    for step in range(5):
        whole, parts = loader.batch(step), loader.parts(step)
        for part in parts:
            rows, width = slice(part.first, part.first + len(part.indices)), part.indices.shape[1]
            assert torch.equal(whole.indices[rows, :width], part.indices)
            assert torch.equal(whole.weight[rows, :width], part.weight)
            images = loader.images(part, step, "crop_flip").view(*part.indices.shape, *tiny_data.images.shape[1:])
            of_all = loader.images(whole, step, "crop_flip").view(*whole.indices.shape, *tiny_data.images.shape[1:])
            assert torch.equal(of_all[rows, :width], images)


def test_elsewhere_than_on_the_cpu_a_step_is_one_pass_of_whole_batches(
    tiny_vit, tiny_data, client_config, tasks_of
) -> None:
    """So that a client's dropout there does not depend on its mates' images either."""
    tasks, settings = tasks_of(tiny_vit), client_config(batch_size=8, epochs=1)
    loader = BankLoader(tasks, tiny_data, tiny_vit.input, settings, 1, torch.device("meta"))
    assert [[tuple(part.indices.shape) for part in loader.parts(step)] for step in range(5)] == [
        [(7, 8)], [(4, 8)], [(2, 8)], [(1, 8)], [(1, 8)]
    ]  # fmt: skip


def test_a_size_is_halved_as_often_as_what_is_needed_fits_in() -> None:
    assert [batches.halved(least, 20) for least in (1, 2, 3, 5, 6, 10, 11, 20)] == [1, 2, 3, 5, 10, 10, 20, 20]


def test_what_stands_for_a_client_has_batches_of_its_lengths(client_config) -> None:
    settings = client_config(batch_size=8, epochs=2)
    for images in (1, 8, 13, 24):
        plan = batches.plan(torch.arange(images), settings, 1, 2, 3)
        assert [len(b) for b in batches.blank(images, settings)] == [len(b) for b in plan]
    capped = client_config(batch_size=8, epochs=2, max_steps=3)
    assert [len(b) for b in batches.blank(13, capped)] == [8, 5, 8]
    assert [len(b) for b in batches.blank(0, settings)] == [1]
