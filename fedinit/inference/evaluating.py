"""How good a run's model is on data: on the run's own test images, where the figures are those of its table, or others.

Of other images with named splits the test images count, of those without all do; classes are matched by their names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from fedinit.config.compose import compose_config
from fedinit.config.schema import load, to_dict
from fedinit.config.words import parse
from fedinit.data.catalogue import class_list, levels_of
from fedinit.data.dataset import Dataset
from fedinit.data.decoding import GreyRange
from fedinit.data.file_source import FileSource
from fedinit.data.image_folder import ImageFolder
from fedinit.data.names import pick
from fedinit.data.reporter import counted
from fedinit.data.source import ImageSource, Source
from fedinit.data.store import Store
from fedinit.errors import InputError, did_you_mean
from fedinit.home import expand_home
from fedinit.inference.pictures import own_window
from fedinit.models import InputSpec
from fedinit.pasted import pasted
from fedinit.runs import made_of
from fedinit.runs.result import Run
from fedinit.said import first_ten
from fedinit.scores import Accuracy, RecoveryError, Score, judged_on
from fedinit.unreadable import mode_of

Split = Literal["auto", "test", "all"]


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    score: of the model, or of all clients' models together.
    confusion: (classes, classes) int64, images by their class (rows) and what was said of them; None of a regression.
    class_names: of the rows and columns.
    judged: {domain: how many of its images, or measurements, were}, in the order of the domains.
    what: which those were, in words.
    """

    score: Score
    confusion: Tensor | None
    class_names: Sequence[str]
    judged: Mapping[str, int]
    what: str

    @property
    def images(self) -> int:
        """How many were judged in all."""
        return sum(self.judged.values())


@dataclass(frozen=True)
class Judged:
    """data: with the images. rows: (n,) of them that are judged. what: these are, in words."""

    data: Dataset
    rows: Tensor
    what: str


def evaluate(
    run: Run,
    data: str | Sequence[str] = (),
    split: Split = "auto",
    client: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Judge the model that a run ended with.

    data: the folder or zip of images, or words such as data=csv data.root=FILE, of which a key alone changes the run's
        own data; none: the run's own.
    split: "auto": the test images of the run's own data and of data whose splits are named, all images of others, but
        of none that the run was trained on.
    client: whose model, where each has one of its own; None there: each client's, on its own test images.
    console: where it is told what is read; None: nowhere.

    Raises InputError for a run that is not done, and for data that cannot be read or has classes that the run's does
    not.
    """
    source, own = _placed(run, data) if isinstance(data, str) else _said(run, data)
    personal, spec = client is None and run.clients_with_models, run.backbone().input
    if personal and not (own and split != "all"):
        last = run.clients_with_models[-1]
        raise InputError(
            f"strategy={run.config.strategy.name} has a model a client: say whose is judged on these images, "
            f"--client 0 to {last}"
        )
    groups = run.clients_by_model if personal else ()
    for each in [clients[0] for clients in groups] or (client,):
        run.adapter(each)  # says what is the matter with it, before images are read
    judged = _own(run, source, spec, split, console) if own else _others(run, source, spec, split, console)
    if personal:
        parts = run.config.partition.cut(judged.data, run.config.seed)
        work = [(run.model(clients[0]), torch.cat([parts[c].test for c in clients])) for clients in groups]
    else:
        work = [(run.model(client), judged.rows)]
    return _judge(judged, work, spec, run)


def _placed(run: Run, place: str) -> tuple[Source, bool]:
    """The images in a folder or zip, and whether they are the run's own, which may have been moved."""
    own = run.config.data
    if not mode_of(expand_home("--data", place)):
        raise InputError(
            f"--data {pasted(place)}: there is no such folder or zip; give one of images, domain/class/image or "
            "class/image, or words such as data=csv data.root=FILE"
        )
    if isinstance(own, FileSource):
        moved = dataclasses.replace(own, root=place)
        with contextlib.suppress(InputError):  # of other domains, say
            if _changes(run, moved) == "":
                return moved, True
    source = cast(ImageFolder, compose_config(["data=image_folder", f"data.root={place}"]).data)
    source = cast(ImageFolder, _between_levels(run, source, ()))
    one_domain = dataclasses.replace(source, layout="class")
    for found in (source, one_domain):  # domain/class/image, or class/image
        with contextlib.suppress(InputError):
            found.catalogue(1, (1, 1))
            return found, False
    return source, False


def _said(run: Run, words: Sequence[str]) -> tuple[Source, bool]:
    """The data that the words say, and whether it is the run's own. Raises InputError for other words than of data."""
    for word in words:
        key = parse(word).key_or_group
        if key != "data" and not key.startswith("data."):
            raise InputError(f"{word}: the data alone can be another, data=… and data.…=…")
    if any(word.startswith("data=") for word in words):
        source = compose_config(words).data
        _refuse_other_deal(source, None)
        return _between_levels(run, source, words), False
    values = to_dict(run.config)
    for word in map(parse, words):
        values["data"][word.key_or_group.removeprefix("data.")] = word.value()
    source = load(cast("dict[str, Any]", values)).data
    _refuse_other_deal(source, run.config.data)
    root = source.root if isinstance(source, FileSource) else None
    if not words and root is not None and not expand_home("data.root", root).exists():
        raise InputError(f"{run.folder}: its images are no longer at {root}; say where they are, --data FOLDER")
    changes = _changes(run, source)
    if changes and not words:
        raise InputError(f"{run.folder}: its data is not what it was: {changes}; say which to judge by, --data FOLDER")
    return _between_levels(run, source, words) if changes else source, not changes


def _refuse_other_deal(source: Source, own: Source | None) -> None:
    """Raise InputError where words keep another share of the images from training than the run did: those that it was
    trained on would count as test images. own: the run's data; None: others, of which none is dealt to training."""
    said = getattr(source, "validation_fraction", None)
    if said not in (None, getattr(own, "validation_fraction", None)):  # None: its test images, unseen by any training
        what = "of other images" if own is None else "the run's were dealt as it began, and"
        raise InputError(
            f"data.validation_fraction={said}: {what} evaluate deals none anew; leave it out, --split says which count"
        )


def _between_levels(run: Run, source: Source, words: Sequence[str]) -> Source:
    """Other images than the run's own, whose deep grey is shown between the run's levels, where no word says others."""
    if not isinstance(source, FileSource) or any(word.startswith("data.grey_range=") for word in words):
        return source
    levels = run.grey_range
    if levels == "auto":  # it kept none
        try:
            levels = own_window(run.config) or {}
        except InputError:  # its images are elsewhere, as a site's are
            levels = {}  # such a picture is told, and others are judged
    return dataclasses.replace(source, grey_range=cast("GreyRange", levels))


def _changes(run: Run, source: Source) -> str:
    """What is other than in the images that the run was made of, in a few words; empty where nothing is."""
    kept, content = made_of.read(run.folder), source.content(run.config.partition.test_domains or ())
    if kept is None or kept.made_of.images is None:
        return "" if source == run.config.data else "they are drawn otherwise"
    return "they are of another kind" if content is None else content.changes(kept.made_of.images)


def _own(run: Run, source: Source, spec: InputSpec, split: Split, console: Console | None) -> Judged:
    config = run.config
    # Which domains and classes, and in which order, is the run's; where they lie is the source's.
    data = source.load(
        spec.channels, (spec.height, spec.width), config.seed, None, console, config.partition.test_domains or ()
    )
    made_of.hold_to(run.folder, data.levels)
    data = config.partition.hold_out(data)
    noun = "measurements" if data.is_regression else "images"
    if split == "all":
        return Judged(data, torch.arange(len(data)), f"all {noun} of the run's own data, those trained on among them")
    precision = config.engine.precision  # a run.model() is of float32, as its exports are
    rounded = f", in float32, where the run computed in {precision}" if precision not in ("auto", "fp32") else ""
    return Judged(data, data.test.nonzero().flatten(), f"the {judged_on(source)} {noun} of the run's own data{rounded}")


def _others(run: Run, source: Source, spec: InputSpec, split: Split, console: Console | None) -> Judged:
    if not isinstance(source, ImageSource) or run.config.data.is_regression:
        raise InputError(f"data={source.name}: the run's model is judged on data={run.config.data.name} alone")
    listed = source.catalogue(spec.channels, (spec.height, spec.width))
    names, known = listed.class_names, run.class_names
    domains = source.known_domains or listed.domain_names
    places = torch.tensor([domains.index(d) if d in domains else -1 for d in listed.domain_names])[listed.domains]
    asked = pick("classes", class_list(getattr(source, "classes", None), names), names)
    meant = (places >= 0) & torch.tensor([name in asked for name in names])[listed.labels]
    for name in (names[i] for i in listed.labels[meant].unique().tolist()):
        if name not in known:
            few = f"{first_ten(known)}; data.classes=[…] judges some of the classes alone"
            raise InputError(f"data: class '{name}' is none of the model's{did_you_mean(name, known)}; it has {few}")
    named = not isinstance(source, FileSource) or any(s in ("test", "val") for s in source.listing()[1].splits)
    if split == "test" or (split == "auto" and named):
        rows, what = meant & listed.test & torch.tensor(listed.used), "test images"
    else:
        rows, what = meant, "all images"
    rows = rows.nonzero().flatten()
    if not len(rows):
        raise InputError(f"data={source.name}: there is no image to judge the model on")
    kept = torch.ones(len(rows), dtype=torch.bool)
    if isinstance(listed.read, Store):
        images, kept = listed.read.fetch(rows, console)
    else:
        images = listed.read(rows)
    rows = rows[kept]
    labels = torch.tensor([known.index(name) if name in known else -1 for name in names])[listed.labels[rows]]
    test = torch.ones(len(rows), dtype=torch.bool)
    data = Dataset(images, labels, places[rows], test, tuple(known), tuple(domains))
    chosen, what = torch.arange(len(rows)), f"{what} of data={source.name}"
    shown = source.grey_range if isinstance(source, FileSource) else None
    if shown == "auto":
        shown = levels_of(listed) or {}
    seen, changes = _trained_on(run, data, spec, cast("GreyRange | None", shown))
    if seen is None:
        return Judged(data, chosen, f"{what}; without the run's own data nobody can say if it was trained on some")
    if split != "auto":  # as was asked for
        trained = int(seen.sum())
        return Judged(data, chosen, what + f", of which the run was trained on {trained}" * bool(trained))
    if seen.all():
        raise InputError(
            f"data={source.name}: the run was trained on every one of these images; --split all judges it on them"
        )
    if seen.any():
        what += f", without {counted(int(seen.sum()), 'image')} that the run was trained on"
    if changes:
        what += "; its own data is not what it was, and nobody can say if it was trained on more of them"
    return Judged(data, chosen[~seen], what)


def _trained_on(run: Run, data: Dataset, spec: InputSpec, shown: GreyRange | None) -> tuple[Tensor | None, str]:
    """(n,) bool, which of these images are, pixel by pixel, among those that the run trained on, None where its own
    data cannot be read any more; and what is other in that than it was, empty where nothing is.

    shown: between which levels the images show deep grey, so that the run's own are the same pixels; None: as it
        trained on them."""
    config, own = run.config, run.config.data
    held = config.partition.test_domains or ()
    if shown is None or not isinstance(own, FileSource):
        own = _between_levels(run, own, ())
    else:
        own = dataclasses.replace(own, grey_range=shown)
    try:
        changes = _changes(run, config.data)
        known = own.load(spec.channels, (spec.height, spec.width), config.seed, None, None, held)
    except InputError:
        return None, ""
    known = config.partition.hold_out(known)
    trained = set(known.fingerprints((~known.test).nonzero().flatten()))
    return torch.tensor([key in trained for key in data.fingerprints(torch.arange(len(data)))]), changes


def _judge(judged: Judged, work: Sequence[tuple[nn.Module, Tensor]], spec: InputSpec, run: Run) -> Evaluation:
    data, names = judged.data, run.class_names
    part: dict[str, float] = {}
    whole: dict[str, float] = {}
    confusion = None if data.is_regression else torch.zeros(len(names) ** 2, dtype=torch.int64)
    count: dict[str, int] = {}
    for model, rows in work:
        for batch, outputs in _outputs(model, data, rows, run.config.evaluation.batch_size):
            labels = data.labels[batch]
            if confusion is None:
                right, all_of = (outputs - labels).double().square().sum(-1), labels.double().square().sum(-1)
            else:
                said = outputs.argmax(-1)
                confusion += torch.bincount(labels * len(names) + said, minlength=len(confusion))
                right, all_of = said == labels, torch.ones_like(labels)
            for domain in data.domains[batch].unique().tolist():
                name, there = data.domain_names[domain], data.domains[batch] == domain
                part[name] = part.get(name, 0) + right[there].sum().item()
                whole[name] = whole.get(name, 0) + all_of[there].sum().item()
                count[name] = count.get(name, 0) + int(there.sum())
    order = [name for name in data.domain_names if name in whole]
    score = RecoveryError if data.is_regression else Accuracy
    return Evaluation(
        score({n: part[n] for n in order}, {n: whole[n] for n in order}),
        None if confusion is None else confusion.view(len(names), len(names)),
        names,
        {n: count[n] for n in order},
        judged.what,
    )


@torch.inference_mode()
def _outputs(model: nn.Module, data: Dataset, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in rows.split(size):
        yield batch, model(data.images[batch])
