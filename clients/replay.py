"""Training on CUDA: a step of one shape is recorded once as a CUDA graph and replayed.

A step is hundreds of small kernels, and launching them one by one leaves a GPU idle most of the time. A recording works
on tensors of its own: a bank that trains is copied into them, its leaves and its optimiser's state, and gone through
without a word to the device but which step comes next. Images, labels and the augmentation are on the device too.

Clients that are done stay in the pass, with weight zero and unmoved, until half of the bank is done, and a short batch
is filled up until it would be no longer than half: kernels round differently at another number of rows, so that few
shapes are also what makes a client's bytes independent of when its mates are done, but for these halvings.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clients import batches
from clients.loader import BankLoader
from clients.resident import Resident
from clients.step import Pass, Training
from clients.task import StepFailed
from fedinit.adapters.bank import Bank
from fedinit.adapters.contract import Frozen
from fedinit.config.client import ClientConfig
from fedinit.errors import first_line, out_of_memory
from fedinit.models.input_spec import InputSpec

RECORDINGS = 4  # shapes of banks that are kept; each holds its adapters, and the graphs of all share their memory
CAPTURING = threading.Lock()  # a process records one graph at a time, whatever the device


class Recorder:
    """The recorded steps of one device, by the shape of the bank that is trained."""

    def __init__(self, resident: Resident, spec: InputSpec) -> None:
        """resident: the data, on the device. On the CPU nothing is recorded, and the same steps are taken one by one:
        the twin that tests can have everywhere. spec: the size and normalisation of the backbone's input."""
        self.resident, self.spec, self.device = resident, spec, resident.device
        on_cuda = self.device.type == "cuda"
        self.works, self.pool = on_cuda, torch.cuda.graph_pool_handle() if on_cuda else None
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """What steps are recorded on. torch's own default is one of the process, on the device that came first: on
        another nothing would be recorded, and no step taken."""
        return torch.cuda.Stream(self.device)

    @cached_property
    def copies(self) -> torch.cuda.Stream | None:
        """What images are brought over on. torch deals its streams out in turn, so that of one made anew for each bank
        some would be the one that steps are recorded on."""
        return None if self.device.type == "cpu" else torch.cuda.Stream(self.device)

    def release(self) -> bool:
        """Give back the memory of all recordings, and of the images; False where there are none."""
        held = bool(self._recordings)
        self._recordings.clear()
        self.resident.release()
        if held:
            gc.collect()  # a recording and its bank hold each other
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return held

    def takes(self, training: Training, loader: BankLoader) -> bool:
        """Whether this training can be recorded: not where the heads train on features, nor with dropout, whose
        generators a graph cannot hold."""
        dropped = any(layer.dropout and layer.generators for layer in training.bank.layers.values())
        if dropped and loader.on_images and self.works:
            self._one_by_one("what is dropped is drawn by generators that a graph cannot hold")
        return loader.on_images and not dropped

    def train(self, training: Training, loader: BankLoader) -> Training:
        """All steps; what they worked on in place of `training`. Raises StepFailed."""
        recording = self._recording(training, loader.settings)
        recording.adopt(training)
        indices, weight, moving = (part.to(self.device) for part in loader.table())
        batch, count, words, pixels = recording.batch, len(loader.members), None, None
        size = loader.settings.batch_size
        if batch.pixels is not None:
            pixels = _ahead(loader, recording.staging, self.copies)
        if loader.settings.augment != "none":
            words = loader.words(torch.arange(len(indices), device=self.device))
        for step, active in enumerate(loader.active):
            try:
                batch.indices.copy_(indices[step])
                batch.weight.copy_(weight[step])
                batch.moving.copy_(moving[step])
                if words is not None:
                    batch.words.copy_(words[step])
                if batch.pixels is not None and pixels is not None:
                    ready = next(pixels)
                    batch.pixels[:active, : ready.shape[1]].copy_(ready)
                rows, width = batches.halved(active, count), batches.halved(loader.width(step), size)
                recording.step(rows, width, active < rows)
            except Exception as error:
                raise StepFailed(step + 1) from error
        return recording.training

    def _one_by_one(self, why: str) -> None:
        """Record nothing more; a line says why."""
        self.works = False
        print(f"engine: steps are taken one by one, since {why}", file=sys.stderr)

    def _recording(self, training: Training, settings: ClientConfig) -> Recording:
        """The one of this training's shape and settings; made where there is none."""
        key = settings, _shape(training)
        if key not in self._recordings:
            while len(self._recordings) >= RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[key] = Recording(self, training, settings)
        self._recordings.move_to_end(key)
        return self._recordings[key]


@dataclass(frozen=True, eq=False)
class Batch:
    """Where a recorded step finds its batch, for all K clients of the bank.

    indices: (K, b). weight: (K, b). moving: (K, 1) bool. words: (K, b, 4), of the augmentation.
    pixels: (K, b, c, h, w), where the data set is not on the device; else None.
    """

    indices: Tensor
    weight: Tensor
    moving: Tensor
    words: Tensor
    pixels: Tensor | None

    @staticmethod
    def empty(count: int, size: int, pixels: Tensor | None, device: torch.device) -> Batch:
        """For `count` clients with batches of `size`. pixels: images like those that are not on the device."""
        staged = None if pixels is None else pixels.new_zeros(count, size, *pixels.shape[1:], device=device)
        return Batch(
            torch.zeros(count, size, dtype=torch.long, device=device),
            torch.zeros(count, size, device=device),
            torch.ones(count, 1, dtype=torch.bool, device=device),
            torch.zeros(count, size, 4, dtype=torch.long, device=device),
            staged,
        )


class Recording:
    """The steps of banks of one shape. The first bank's tensors become its own; every other is copied into them."""

    def __init__(self, recorder: Recorder, training: Training, settings: ClientConfig) -> None:
        self.recorder, self.training, self.settings, bank = recorder, training, settings, training.bank
        self.leaves = {name: layer.leaves for name, layer in bank.layers.items()}
        self.offsets = {name: layer.offset for name, layer in bank.layers.items()}
        self.head = bank.head
        self.bases = {name: _copy(base) for name, base in _merged(bank).items()}
        self.tensors = _tensors(training)
        self.graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        # Counts what graphs do; as all that they work on, it is here for as long as they are.
        self.replays = torch.zeros((), dtype=torch.long, device=recorder.device)
        unseen = recorder.resident.data.images[:1] if recorder.resident.images is None else None
        self.batch = Batch.empty(len(training.losses), settings.batch_size, unseen, recorder.device)
        pixels = self.batch.pixels
        self.staging = [] if pixels is None else [torch.empty_like(pixels).flatten() for _ in range(2)]

    @torch.no_grad()
    def adopt(self, training: Training) -> None:
        """Take another training of this shape: its values go into this one's tensors, which the bank then works on."""
        mine, bank = self.training, training.bank
        if training is not mine:
            for target, source in zip(self.tensors, _tensors(training), strict=True):
                target.copy_(source)
        mine.optimizer.steps, mine.optimizer.padding = 0, training.optimizer.padding
        for name, base in _merged(bank).items():
            _copy_into(self.bases[name], base)
        bank.head = self.head
        for name, layer in bank.layers.items():
            layer.leaves, layer.offset = self.leaves[name], self.offsets[name]
            layer.base = self.bases.get(name, layer.own)

    def step(self, rows: int, width: int, resting: bool) -> None:
        """The next step of the first `rows` clients, and the first `width` images of each. resting: some of these
        clients are done."""
        self.training.optimizer.advance()
        shape = rows, width, resting
        if shape not in self.graphs and self.recorder.works:
            self._record(*shape)
        if shape in self.graphs:
            self.graphs[shape].replay()
        else:
            self._take(*shape)

    def _record(self, rows: int, width: int, resting: bool) -> None:
        """Record the step, which is taken a few times before, by values that are put back."""
        recorder, shape = self.recorder, (rows, width, resting)
        stream, here = recorder.stream, torch.cuda.current_stream(recorder.device)
        with torch.no_grad():
            before = [value.clone() for value in self.tensors]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._take(*shape)
        here.wait_stream(stream)
        try:
            with CAPTURING, torch.cuda.graph(graph, recorder.pool, stream, capture_error_mode="thread_local"):
                self._take(*shape)
                self.replays.add_(1)
            taken = self.replays.item()
            graph.replay()
            if self.replays.item() != taken + 1:  # torch warns of an empty graph, and replays it without a word
                raise RuntimeError("nothing was recorded")
            self.graphs[shape] = graph
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # a capture that was broken off leaves its own
            for told in (error, error.__context__):  # the end of a broken capture fails too
                if told is not None and out_of_memory(told):
                    raise told from None
            # What cannot be recorded waits for the device somewhere.
            recorder._one_by_one(f"they cannot be recorded: {first_line(error)}")
        with torch.no_grad():
            for value, kept in zip(self.tensors, before, strict=True):
                value.copy_(kept)

    def _take(self, rows: int, width: int, resting: bool) -> None:
        batch, recorder = self.batch, self.recorder
        indices = batch.indices[:rows, :width]
        there = recorder.resident.images
        if there is None:
            assert batch.pixels is not None
            chosen = batch.pixels[:rows, :width].flatten(0, 1)
        else:
            chosen = there[indices.flatten()]
        pixels = batches.augment(chosen, self.settings.augment, batch.words[:rows, :width].flatten(0, 1))
        inputs = batches.normalise(pixels, recorder.spec, recorder.device)
        moving = batch.moving[:rows] if resting else None
        self.training.step(
            [Pass(inputs, recorder.resident.labels[indices], batch.weight[:rows, :width])], moving=moving
        )


def _tensors(training: Training) -> list[Tensor]:
    """All that a training brings besides its base, in one order, where its bank was just loaded."""
    layers = training.bank.layers.values()
    held = [*(layer.leaves for layer in layers), training.bank.head]
    parts = [value.detach() for group in held for value in group.values()]
    return [*parts, *(value for layer in layers for value in layer.offset), *training.optimizer.tensors(),
            training.losses]  # fmt: skip


def _shape(training: Training) -> Hashable:
    """What a recording depends on: the names, shapes and dtypes of all it works on, and what lies on a merged base."""
    names = tuple(training.leaves)
    return names, tuple((tuple(t.shape), t.dtype) for t in _tensors(training)), tuple(_merged(training.bank))


def _merged(bank: Bank) -> dict[str, Frozen]:
    """{layer: its base} of the layers into whose base something was merged."""
    return {name: layer.base for name, layer in bank.layers.items() if layer.base is not layer.own}


def _copy(base: Frozen) -> Frozen:
    weight = base.weight.clone()
    return Frozen(weight, base.bias, weight if base.exact is base.weight else base.exact.clone())


def _copy_into(target: Frozen, source: Frozen) -> None:
    if target is source:
        return
    target.weight.copy_(source.weight)
    if target.exact is not target.weight:
        target.exact.copy_(source.exact)
    if "squares" in vars(target):  # DoRA's, made once a base
        target.squares.copy_(source.squares)


def _ahead(loader: BankLoader, staging: Sequence[Tensor], copies: torch.cuda.Stream | None) -> Iterator[Tensor]:
    """The pixels of every step, on the device: read, and brought there by a stream of their own, while it works on the
    step before. Those of a step are there until the next is asked for.

    staging: two flat buffers with room for a step's pixels, which take turns: one is filled anew only when the device
    has read what was in it, so that the host is two steps ahead at the most. copies: the stream; None: on the CPU.
    """
    read_by: dict[int, torch.cuda.Event] = {}  # when the device has read a buffer

    def read(step: int) -> tuple[Tensor, torch.cuda.Event | None]:
        pixels = loader.pixels(loader.batch(step), step, "none")
        there = staging[step % 2][: pixels.numel()].view(pixels.shape)
        if copies is None:
            return there.copy_(pixels), None
        if step % 2 in read_by:
            read_by[step % 2].synchronize()
        with torch.cuda.stream(copies):
            there.copy_(pixels.pin_memory(), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(copies)
        return there, arrived

    with ThreadPoolExecutor(1, "pixels") as pool:
        future = pool.submit(read, 0)
        for step in range(len(loader.active)):
            ready, arrived = future.result()
            if step + 1 < len(loader.active):
                future = pool.submit(read, step + 1)
            if arrived is not None:
                torch.cuda.current_stream(ready.device).wait_event(arrived)
            yield ready
            if arrived is not None:
                read_by[step % 2] = torch.cuda.Event(blocking=True)
                read_by[step % 2].record(torch.cuda.current_stream(ready.device))
