"""Who holds what, for the report of a simulation: counts by client and class, and a few images of each client."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedinit.data.dataset import Dataset
from fedinit.data.shares import Partition
from fedinit.report.recording import PARTITION, RECORD, SAMPLES
from fedinit.seeding import torch_generator
from fedinit.state import disk

CLIENTS = 24  # of more, images are kept of the first
IMAGES = 8  # a client
SIDE = 48  # pixels of the longer side at most


def record_holdings(run: Path, data: Dataset, partitions: Sequence[Partition], seed: int, images: bool = True) -> None:
    """Write record/partition.json and, if wanted, record/samples/<client>.jpg.

    run: the run's folder. seed: of the run, for the draw of the images, which is of a stream of its own.
    Raises OSError.
    """
    folder = run / RECORD
    folder.mkdir(parents=True, exist_ok=True)
    clients = [
        {
            "client": part.client,
            "domain": None if part.domain < 0 else data.domain_names[part.domain],
            "train": counts(data, part.train),
            "test": counts(data, part.test),
        }
        for part in partitions
    ]
    classes = None if data.is_regression else list(data.class_names)
    domains = {name: int((data.domains == i).sum()) for i, name in enumerate(data.domain_names)}
    tested = {name: int((data.test & (data.domains == i)).sum()) for i, name in enumerate(data.domain_names)}
    values = {"classes": classes, "images_by_domain": domains, "test_by_domain": tested, "clients": clients}
    disk.replace(folder / PARTITION, json.dumps(values).encode() + b"\n")  # a line: most of it is thousands of counts
    if not images or data.images.dtype != torch.uint8:
        return
    (folder / SAMPLES).mkdir(exist_ok=True)
    for part in partitions[:CLIENTS]:
        if len(part.train):
            draw = torch_generator(seed, "report.samples", part.client)
            chosen = part.train[torch.randperm(len(part.train), generator=draw)[:IMAGES]]
            disk.replace(folder / SAMPLES / f"{part.client}.jpg", strip(data.images[chosen]))


def counts(data: Dataset, indices: Tensor) -> list[int]:
    """How many of these images are of each class; of a regression, how many there are."""
    if data.is_regression:
        return [len(indices)]
    return torch.bincount(data.labels[indices], minlength=len(data.class_names)).tolist()


def strip(images: Tensor) -> bytes:
    """Images (n, C, H, W) uint8 beside each other, as a JPEG."""
    from PIL import Image

    size = max(images.shape[2:])
    small = (
        images
        if size <= SIDE
        else torch.nn.functional.interpolate(images.float(), scale_factor=SIDE / size, mode="area")
        .round()
        .to(torch.uint8)
    )
    rows = torch.cat(list(small), dim=2).permute(1, 2, 0).numpy()  # (H, n·W, C)
    picture = Image.fromarray(rows if rows.shape[2] == 3 else rows[:, :, 0])
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
