"""What clients are given to do and what they make of it: plain values, which pickle, and know no module and no site."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fedinit.errors import Code, InputError, public_of
from fedinit.factors import Factors
from fedinit.said import LONGEST, said
from fedinit.slots import Chosen
from fedinit.state.base_offset import EMPTY
from fedinit.statistics import Request

Work = Literal["train", "measure", "evaluate", "features"]


@dataclass(frozen=True)
class SlotChoice:
    """How many slots a client may train, of all layers together, and which.

    budget: the number of slots. how: "gradient", "weight" or "random" (clients/selection.py).
    probe: batches that "gradient" looks at.
    """

    budget: int
    how: str
    probe: int


@dataclass(frozen=True)
class Task:
    """What one client is to do.

    client: its partition id; -1 for work that is no client's. round: the first is 1; 0 for questions of round 0.
    examples: (n,) indices into the data set.
    adapter, head: what it starts from, or is evaluated with; none where the bare backbone is measured.
    trainable: the parts of Factors that it trains, or measures the gradients of; the head is always trained.
    base: the key of the base offset under the adapter.
    work, view: what is done, and on which part of the model ("": all of it).
    offset: factors that belong to this client's base in this round, on top of the base offset.
    step_scales: {leaf: number}, the optimiser's step scales that this client fixed in an earlier round.
    choice: how many slots of the trained factor this client may train, and by which rule; None: all.
    personal: the parts that it trains and keeps to itself.
    notes: numbers known before training, to be reported with the result.
    request: of a measurement: what is summed.
    secret: what noise, and a private training's batches, are drawn with besides the seed; "": the seed alone.
    features: (n, D) pooled features of the examples, where no adapter is in play; used instead of the images.
    mute: the task of a client that failed, which only keeps its place in the bank, on black images.
    """

    client: int
    round: int
    examples: Tensor
    adapter: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    trainable: frozenset[str]
    base: str = EMPTY
    work: Work = "train"
    view: str = ""
    offset: Mapping[str, Factors] = field(default_factory=dict)
    step_scales: Mapping[str, float] = field(default_factory=dict)
    choice: SlotChoice | None = None
    personal: frozenset[str] = frozenset()
    notes: Mapping[str, float] = field(default_factory=dict)
    request: Request | None = None
    secret: str = field(default="", repr=False)
    features: Tensor | None = None
    mute: bool = False

    def stand_in(self, like: Task) -> Task:
        """A mute task in this one's place: its ranks and steps, and for the rest the shapes of a task that works."""
        return replace(
            self,
            adapter={name: f.blank(self.adapter.get(name, f)) for name, f in like.adapter.items()},
            offset={name: f.blank(self.offset.get(name, f)) for name, f in like.offset.items()},
            head={name: torch.zeros_like(value) for name, value in like.head.items()},
            trainable=like.trainable,
            step_scales={},
            mute=True,
        )


@dataclass(frozen=True)
class Job:
    """One bank's work: all that a worker needs for it besides the base offset, which it holds by its key.

    Its members are fixed before anyone runs it (clients/engine/plan.py), so an engine decides when and where it is
    done, and never which bits come out.
    """

    work: Work
    base: str
    view: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Result:
    """What a client made of its training.

    adapter, head: as they are after it, those factors that were not trained among them.
    loss: mean training loss over its steps; None where it is kept to itself. steps: how many it took.
    step_scales: the optimiser's step scales {leaf: number} as they are now.
    optimizer_state: how many numbers the optimiser kept for this client.
    chosen: {layer: places} of the slots it trained, where it had a choice.
    """

    client: int
    adapter: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    loss: float | None
    steps: int
    step_scales: Mapping[str, float] = field(default_factory=dict)
    optimizer_state: int = 0
    chosen: Chosen | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured for a client.

    tensors: the sums that were asked for, by name; of an evaluation {"sums": (2, n)}, of features {"features": (n, D)}.
    examples: how many examples they are about.
    """

    client: int
    tensors: Mapping[str, Tensor]
    examples: int


class ClientFailed(Exception):
    """One client's failure, as one line: who, at what, in which step, and why.

    code, public: what may be said of it to a server of other people's: a code, and one line without what only the site
    knows.
    """

    def __init__(self, client: int, said: str, code: Code = Code.failed, public: str = "") -> None:
        super().__init__(client, said, code, public)
        self.client, self.code, self.public = client, code, public

    def __str__(self) -> str:
        return self.args[1]

    @staticmethod
    def of(client: int, stage: str, cause: BaseException, step: int | None = None) -> ClientFailed:
        """The failure that `cause` is, told in one printable line as
        "client 3, batch, step 2: <error> (<function>, line <n>)"; of what is foreseen, its words alone.

        stage: start (before its task was made), plan, batch (its images, at a step), train (at a step, once it had
        begun), reply; of other questions: describe, statistics, evaluate, features.
        step: of the training, 1 being the first; None outside of it.
        """
        at = f"client {client}, {stage}" + ("" if step is None else f", step {step}")
        if isinstance(cause, InputError):
            told = said(f"{at}: {cause}", LONGEST)
        else:
            where = traceback.extract_tb(cause.__traceback__)[-1]
            told = said(f"{at}: {type(cause).__name__}: {cause}", LONGEST) + f" ({where.name}, line {where.lineno})"
        code, public = public_of(cause)
        failed = ClientFailed(client, told, code, said(f"{at}: {public}", LONGEST))
        failed.__cause__ = cause
        return failed


class StepFailed(Exception):
    """What failed for a whole bank in a step, 1 being the first; its cause says what."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


Answer = Result | Measured | ClientFailed
