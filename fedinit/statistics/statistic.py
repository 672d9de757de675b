"""What clients measure for an initialiser: sums over their examples, which the server adds up.

Every statistic is linear in the examples, so the sum over the clients is what one client with all the examples would
have measured, whatever the split; nothing else about a client is needed, and secure summation would be enough.

A `Request` goes down, `Statistics` come back. A request names, for each layer, what is to be summed there (a name of
fedinit.statistics.STATISTICS) and what the client has to run for it:

inputs     a forward pass; the statistic sees the inputs X (n, k) of a layer, a row a token
gradients  forward and backward; it sees the inputs X (b, t, k) of a layer, t rows an image, and the gradients Y
           (b, t, d) of the images' losses in its outputs: Σ y xᵀ is that in the weight, which need not be built
features   a forward pass; it sees the backbone's pooled features (n, features) and the labels (n,); its one layer is
           called "head" and has the shape (classes, features)
adapters   forward and backward with adapters and head in place; a "layer" is then a trained tensor by its wire name,
           and it sees the gradient, of the tensor's shape, of the loss summed over the examples of a batch
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fedinit.config.checks import at_least, within
from fedinit.errors import InputError
from fedinit.said import said

LARGEST = 1e6  # what an entry of a layer's inputs is at most, where no clip says so

# A norm or noise above these bounds is none: rows in float32 have smaller norms, and sums of squares stay finite.
LEAST_CLIP, MOST_CLIP, MOST_NOISE = 1e-6, 1e12, 1e6
MOST_IMAGES = 2**40

Source = Literal["inputs", "gradients", "features", "adapters"]
Weighting = Literal["samples", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which of its examples a client measures, and how it guards them.

    examples: images at most, drawn by seed; None: all.
    tokens: rows of an image and layer at most, drawn by seed; None: all.
    weighting: ``samples`` sums over all rows of all clients; ``uniform`` makes every client count the same.
    min_examples: a client with fewer images refuses.
    clip: the norm down to which rows are scaled, or, of gradients, what one image adds to a layer's; None: no clipping.
    noise: standard deviation of Gaussian noise on every sum, in units of the most that one image can change it; needs a
        clip.
    share: the part of `examples` that this pass is about, drawn by seed and image; `min_examples` of them at least,
        where there are as many.
    """

    examples: int | None = 256
    tokens: int | None = None
    weighting: Weighting = "samples"
    min_examples: int = 16
    clip: float | None = None
    noise: float = 0.0
    share: float = 1.0

    @staticmethod
    def read(values: Mapping[str, Any]) -> Sampling:
        """Of values from outside. Raises InputError, which names the value, for one of another type or out of range;
        TypeError for what are no fields."""
        sampling = Sampling(**values)
        for key in ("examples", "tokens", "min_examples"):
            if not (_is_count(value := getattr(sampling, key)) or (value is None and key != "min_examples")):
                raise _none(f"sampling.{key}", value, "a whole number")
        for key in ("clip", "noise", "share"):
            if not (_is_number(value := getattr(sampling, key)) or (value is None and key == "clip")):
                raise _none(f"sampling.{key}", value, "a number")
        if sampling.weighting not in get_args(Weighting):
            raise _none("sampling.weighting", sampling.weighting, " or ".join(get_args(Weighting)))
        sampling.check("sampling")
        return sampling

    def count(self, images: int) -> int:
        """How many of so many images a pass sees, as far as `share` says."""
        wanted = images if self.examples is None else min(self.examples, images)
        return max(round(wanted * self.share), min(self.min_examples, wanted), 1)

    def check(self, group: str = "init") -> None:
        """Raise InputError for a value out of range, naming the key <group>.<field>."""
        for key in ("examples", "tokens"):
            if getattr(self, key) is not None:
                at_least(f"{group}.{key}", getattr(self, key), 1)
        at_least(f"{group}.min_examples", self.min_examples, 1)
        if self.examples is not None:
            at_least(f"{group}.examples", self.examples, self.min_examples, f"{group}.min_examples is the least")
        if self.clip is not None:
            within(f"{group}.clip", self.clip, LEAST_CLIP, MOST_CLIP)
        within(f"{group}.noise", self.noise, 0, MOST_NOISE)
        within(f"{group}.share", self.share, 0, 1, open_low=True)
        if self.noise and self.clip is None:
            raise InputError(f"{group}.noise={self.noise}: needs {group}.clip, which bounds what one image can change")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The options of what is made from measurements of the clients: fields of `Sampling`, with its meanings."""

    examples: int | None = 256
    weighting: Weighting = "samples"
    min_examples: int = 16
    clip: float | None = None
    noise: float = 0.0

    @property
    def sampling(self) -> Sampling:
        """These options as a `Sampling`; a field that the subclass does not have keeps its default."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling) if hasattr(self, f.name)})


@dataclass(frozen=True, kw_only=True)
class Request:
    """One pass over the clients' examples: what each client is to run, and what it sums at each layer.

    source: what the client runs, and so which rows a statistic is given; see the top of this file.
    layers: {layer: name of a statistic}.
    shapes: {layer: (d, k)}, or of a trained tensor its own shape.
    seed: of the draws of examples, tokens and bases; the run's.
    sampling: which examples are measured, and how they are guarded.
    options: plain values for the statistics, such as "width".
    tensors: {"<layer>/<key>": (d or k, width)} in float32, what the statistics need besides.
    head: {"weight": (C, D), "bias": (C,)}, where a loss is to be measured; else empty.
    rows: {layer: how many rows its input has of an image}, which the answers are judged by and the clients are not
        told; a layer that is absent has any number.
    """

    source: Source
    layers: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    sampling: Sampling = Sampling()
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """The request as JSON text, without its tensors and head, which travel as arrays, and its rows."""
        plain = {"source": self.source, "layers": dict(self.layers), "shapes": dict(self.shapes), "seed": self.seed}
        return json.dumps({**plain, "sampling": asdict(self.sampling), "options": dict(self.options)})

    @staticmethod
    def from_json(text: str, tensors: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Request:
        """The inverse of `to_json`, with the tensors and head that came beside the text.

        Raises InputError, which names the value, for one that is none; ValueError for text that is no JSON; KeyError,
        TypeError or AttributeError for what makes no request.
        """
        values = json.loads(text)
        values["sampling"] = Sampling.read(values["sampling"])
        values["shapes"] = {name: tuple(shape) for name, shape in values["shapes"].items()}
        request = Request(**values, tensors=tensors, head=head)
        if request.source not in get_args(Source):
            raise _none("source", request.source, ", ".join(get_args(Source)))
        if type(request.seed) is not int:
            raise _none("seed", request.seed, "a whole number")
        if not all(isinstance(name, str) for name in request.layers.values()):
            raise _none("layers", request.layers, "a statistic's name for each")
        if not isinstance(request.options, dict):
            raise _none("options", request.options, "values by name")
        return request


def _is_count(value: object) -> bool:
    """A bool, which Python takes for a number, is none."""
    return type(value) is int and abs(value) <= MOST_IMAGES


def _is_number(value: object) -> bool:
    return type(value) is float or _is_count(value)


def _none(what: str, value: object, expected: str) -> InputError:
    return InputError(f"{what}={said(repr(value), 100)}: expected {expected}")


@dataclass(frozen=True)
class Statistic(ABC):
    """What is summed at one layer.

    layer: its name.
    shape: (d, k), or of a trained tensor its own shape.
    request: what the statistic belongs to, with its options and tensors.
    """

    layer: str
    shape: tuple[int, ...]
    request: Request

    per_row: ClassVar[bool] = False  # whether "count" counts rows, several an image
    # The keys of matrices that travel in half precision, each column in units of its largest entry.
    half: ClassVar[frozenset[str]] = frozenset()
    exact: ClassVar[frozenset[str]] = frozenset()  # the keys of what travels in float64

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{key: shape} of the sums. A key without dimensions counts something and stays float64 on the way."""

    @abstractmethod
    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        """{key: what these rows add to the sum}; counts are float64.

        values: the rows, as the request's source has them.
        other: the labels or gradients that belong to them; None where the source gives none.
        """

    def beside(self, other: Tensor | None) -> Tensor:
        """The labels or gradients that come with the rows. Raises ValueError where there are none."""
        if other is None:
            raise ValueError(f"{self.layer}: a pass over {self.request.source} gives rows without labels or gradients")
        return other

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        """{key: the most by which one image of `rows` rows of norm `clip` or less changes the sum, in the 2-norm}.

        Keys that are left out get no noise. Raises NotImplementedError where it is not bounded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no bound for init.noise")

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        """Why these cannot be the sums of one client's so many examples; empty where they can. sums: as `restored`.

        What the request's noise may have done to them is allowed for.
        """
        count, sampling, rows = float(sums["count"]), self.request.sampling, self.request.rows.get(self.layer)
        of_layer = self.request.source in ("inputs", "gradients")
        if count == 0 and of_layer and rows is None and not any(bool(value.any()) for value in sums.values()):
            return ""  # of a layer that no image reaches
        if sampling.weighting == "uniform":
            return "" if count == 1 else f"{self.layer}: a count of {count:g}, expected 1 of a mean"
        if not self.per_row:
            rows, what = 1, "each image once"
        elif rows is None:
            rows, what = count // examples, "as many rows an image"
        else:
            rows = min(rows, sampling.tokens or rows)
            what = f"{rows} rows an image"
        if rows < 1 or count != rows * examples:
            return f"{self.layer}: a count of {count:g} over {examples} images, expected {what}"
        return ""

    def images(self, sums: Mapping[str, Tensor], examples: int) -> tuple[float, float]:
        """(how many examples the sums are over, 1 of a mean; rows an example, as far as a mean says)."""
        if self.request.sampling.weighting == "uniform":
            return 1.0, 1.0
        return float(examples), float(sums["count"]) / examples

    def slack(self, key: str, sums: Mapping[str, Tensor], examples: int) -> float:
        """One standard deviation of the noise in an entry of the sum, 0 without any."""
        sampling = self.request.sampling
        if not sampling.noise or sampling.clip is None:
            return 0.0
        rows = math.ceil(self.images(sums, examples)[1])
        divisor = examples if sampling.weighting == "uniform" else 1.0
        return sampling.noise * self.sensitivity(sampling.clip, rows).get(key, 0.0) / divisor

    def energy(self, count: float) -> float:
        """The most that Σ ‖x‖² can be over so many rows: by the clip; without one, of what float32 can train on."""
        clip = self.request.sampling.clip
        return count * (LARGEST**2 * max(self.shape) if clip is None else 1.001 * clip**2)

    def sent(self) -> dict[str, tuple[int, ...]]:
        """{key: shape} of what `reduced` makes of the sums."""
        return self.shapes()

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """{key: sum} of one client as it is sent, from the sums in float64. A statistic may send another form, which
        loses less to rounding, if `restored` takes the change back."""
        return sums

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `reduced`."""
        return sums


@dataclass(frozen=True)
class Statistics:
    """What was measured over a set of examples. The sum of two is what both sets together would have given.

    examples: images measured.
    sums: {"<layer>/<key>": sum}.
    """

    examples: int
    sums: Mapping[str, Tensor]

    def of(self, layer: str) -> dict[str, Tensor]:
        """{key: sum} of one layer."""
        prefix = f"{layer}/"
        return {name[len(prefix) :]: value for name, value in self.sums.items() if name.startswith(prefix)}


class RunningSum:
    """The sum of statistics as they come, in float64 and in that order; none of them is kept."""

    def __init__(self) -> None:
        self._examples = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, part: Statistics) -> None:
        """Every part has the same names and shapes."""
        if not self._sums:
            self._sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in part.sums.items()}
        for name, total in self._sums.items():
            total += part.sums[name].double()
        self._examples += part.examples

    @property
    def total(self) -> Statistics:
        """Raises ValueError for the sum of no parts."""
        if not self._sums:
            raise ValueError("no statistics to add up")
        return Statistics(self._examples, self._sums)


def add_up(parts: Iterable[Statistics]) -> Statistics:
    """The sum of the parts, as `RunningSum` has it. Raises ValueError for no parts."""
    running = RunningSum()
    for part in parts:
        running.add(part)
    return running.total
