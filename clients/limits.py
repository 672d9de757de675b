"""A site's own limits (fedinit/config/limits.py), and the book in which it counts what it answered.

Which images a statistic is over is the site's to say: the first of an order that its own key draws, as many as were
asked for, or as were answered for before where the two numbers are close. So a server that asks again, with another
seed, share or number, asks about the same images.

No combination of answers is about a few images either. The sets that were answered for cut the images into cells, those
that are in the same sets; sums and differences of answers weigh all images of a cell alike. So a set that would cut
off a few images from a cell is not answered for, and a run's images to train on are such a set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from flwr.app import ConfigRecord, Context
from torch import Tensor

from clients import sums
from clients.book import cut_by, opened
from clients.site import Site
from fedinit.config.limits import Cut, Exhausted, Limited, Limits
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.models import shared_inputs
from fedinit.opening import read_text
from fedinit.privacy.steps import Spent
from fedinit.seeding import derive
from fedinit.state import disk
from fedinit.statistics import Request

_log = logging.getLogger(__name__)  # of the site alone
BY_CLASS = {"class_sums", "class_moments"}  # statistics with a sum for each class
LEAST = {"evaluations": "min-test-images", "classes": "min-class-images"}  # of images; min-images of the rest
BOOK = "answers"  # in the Context, of a site without a folder for its state


class Keeper:
    """What one client may still answer."""

    def __init__(self, site: Site, limits: Limits, context: Context) -> None:
        """site: holds the images. context: the client's, whose --node-config may name a `state-dir` for its book."""
        self.site, self.limits, self.context = site, limits, context
        folder = context.node_config.get("state-dir")
        client = context.node_config.get("partition-id")
        self.file = None if folder is None else expand_home("state-dir", str(folder)) / f"answers-client-{client}.json"

    def check_partition(self, train: Tensor) -> None:
        """Raise Limited for a partition that leaves this client too few images to train on, or that cuts a few of them
        off from those of an earlier run. train: (n,) indices."""
        least = self.limits.min_images
        with self._book() as book:
            if len(train) < least:
                few = "the run's partition leaves this site fewer images than its min-images"
                raise Cut(few, self._named(book, train))
            counts = book["runs"].setdefault(self._run, {})
            if not counts.get("partition"):  # once a run: it takes a look at every image
                self._enter(book, "training", train, least)
                counts["partition"] = True

    def check_batches(self, train: Tensor) -> None:
        """Raise Limited for training that makes an update of a few images. train: (n,) indices."""
        client, least = self.site.config.client, self.limits.min_images
        seen = len(train) if client.max_steps is None else min(len(train), client.max_steps * client.batch_size)
        if seen < least:
            raise Limited("an update would be of fewer images than this site's min-images")

    def measure(self, request: Request, train: Tensor) -> tuple[Request, Tensor]:
        """The request as this site answers it, and the images (m,) that it is over, of those of the client; counted.

        Raises Limited for one that it does not answer."""
        limits, sampling = self.limits, request.sampling
        for name in sorted({*request.layers.values()}):
            if not limits.answers_to(name):
                raise Limited(f"this site does not answer statistics {name!r}: its statistics are others")
        if sampling.tokens is not None and limits.tokens == "all":
            raise Limited(f"this site answers over all tokens of an image, not over {sampling.tokens}: tokens=all")
        if (sampling.clip or float("inf")) > limits.max_clip:
            raise Limited(f"this site answers with a smaller clip, its max-clip, asked {sampling.clip}")
        if sampling.noise < limits.min_noise:
            raise Limited(f"this site answers with more noise, its min-noise, asked {sampling.noise}")
        if "losses" in request.layers.values() and not limits.evaluations:
            raise Limited("this site is not evaluated, evaluations=0, and the statistic 'losses' is an evaluation")
        self._check_counted("statistics")
        with self._book() as book:
            images = _first(book["key"], train, self._settled(book, sampling.count(len(train)), len(train)))
            self._count(book, "statistics", limits.answers_per_run, limits.answers)
            self._enter(book, "statistics", images, limits.min_images)
            if BY_CLASS & {*request.layers.values()}:
                labels = self.site.data.labels[images]
                for label in labels.unique():
                    self._enter(book, "classes", images[labels == label], limits.min_class_images, "of a class", images)
            if limits.min_noise:
                self._spend(book, sampling.noise, self._views(request))
            book["sizes"] = sorted({*book["sizes"], len(images)})
        whole = dataclasses.replace(sampling, examples=None, share=1.0)
        return dataclasses.replace(request, sampling=whole), images

    def evaluate(self, test: Tensor) -> None:
        """Count an evaluation on these images (n,). Raises Limited for one too many, or over too few of a domain."""
        limits, domains = self.limits, self.site.data.domains[test]
        least = limits.min_test_images
        self._check_counted("evaluations")
        with self._book() as book:
            if domains.unique(return_counts=True)[1].min() < least:
                few = "the run's partition leaves this site fewer test images than its min-test-images"
                raise Cut(f"{few}, of a domain", self._named(book, test))
            self._count(book, "evaluations", limits.evaluations_per_run, limits.evaluations)
            for domain in domains.unique():  # each has an answer of its own
                self._enter(book, "evaluations", test[domains == domain], least, about=test)

    def _check_counted(self, kind: str) -> None:
        """Raise Limited for answers that no ε counts, of a site that gives nothing else."""
        if self.limits.max_epsilon < math.inf:
            raise Limited(f"this site answers no {kind}, which no ε counts: it has a max-epsilon")

    def check_privacy(self, epsilon: float, delta: float, images: int) -> None:
        """Raise Exhausted for training that makes the run's ε more than this site gives, Limited for a run without one
        and for a δ that is none.

        epsilon: of the run so far, at delta; infinity where it has no privacy. images: that are trained on."""
        most = self.limits.max_epsilon
        if epsilon == math.inf > most:
            raise Limited("this site trains with privacy=examples alone, for its max-epsilon; the run has no such ε")
        if epsilon > most:
            _log.warning("max-epsilon=%g: a round more takes the run's ε to %.3g", most, epsilon)
            raise Exhausted(
                "a round more takes the run's ε above this site's max-epsilon; ask for less, privacy.epsilon"
            )
        if most < math.inf and delta * images > 1:
            raise Limited(f"privacy.delta={delta}: with max-epsilon this site trains at one over its images or less")

    def check_masked(self) -> None:
        """Raise Limited for training whose update would leave as it is, or whose sums a restart would make forget."""
        if not self.limits.require_secure_aggregation:
            return
        if self.site.config.secure_aggregation.name == "none":
            raise Limited(
                "this site sends no update that is not masked, require-secure-aggregation=true: the run needs "
                "secure_aggregation=secagg"
            )
        if self.file is None:
            raise Limited("require-secure-aggregation=true: this site needs a state-dir for its book of sums")

    def mask(self, wanted: sums.Sum, asked: str) -> None:
        """Before an answer is masked for a sum. asked: the question. Raises Limited for one that says too much."""
        if self.limits.require_secure_aggregation:
            with self._book() as book:
                sums.mask(book, self._run, wanted, asked)

    def unmask(self, wanted: sums.Sum) -> None:
        """Write down whose sum is unmasked. Raises Limited where another was before."""
        with self._book() as book:
            sums.unmask(book, self._run, wanted, self.limits.require_secure_aggregation)

    def project(self, round: int, update: str, means: str) -> None:
        """Write down that the second phase of a round is answered, about the update and for the means of these digests.
        Raises Limited for other means than were answered for, in this round or about this update: of enough of them the
        whole update could be put together."""
        most = self.limits.projections_per_round
        with self._book() as book:
            of_round = book["runs"].setdefault(self._run, {}).setdefault("projections", {})
            of_update = book.setdefault("updates", {})  # whatever round or run the server calls it
            what = f"round {round}", f"the update of round {round}"
            for named, answered, key in zip(what, (of_round, of_update), (str(round), update), strict=True):
                before = answered.setdefault(key, [])
                if means not in before and len(before) >= most:
                    raise Limited(
                        f"this site has answered the second phase of {named} for other means, as often as its "
                        "projections-per-round"
                    )
                answered[key] = sorted({*before, means})

    def train(self, round: Spent, allow: Callable[[Spent, Spent], float]) -> float:
        """Write down the private steps of a round; what `allow` makes of those of this run so far, without these and
        with them. It raises for what is not to be, and then nothing is written."""
        with self._book() as book:
            counts = book["runs"].setdefault(self._run, {})
            before = Spent(**{key: counts[key] for key in vars(round) if key in counts})
            allowed = allow(before, spent := before + round)
            counts |= vars(spent)
            return allowed

    @property
    def _run(self) -> str:
        return f"{self.site.config.identity(digits=64)}-s{self.site.config.seed}"

    def _settled(self, book: Mapping[str, Any], count: int, most: int) -> int:
        """So many images, or a number of before that is near it, so that the two do not differ by a few; all, where few
        would be left over."""
        before = book["sizes"]
        near = [n for n in [*before, most] if n <= most and abs(n - count) < self.limits.min_images]
        return min(near, key=lambda n: (n not in before, abs(n - count)), default=count)

    def _count(self, book: dict[str, Any], kind: str, a_run: int, in_all: int) -> None:
        """Write an answer into the book. Raises Limited where that is one too many."""
        run = self._run
        counts = book["runs"].setdefault(run, {}).setdefault(kind, 0), book["all"].setdefault(kind, 0)
        for count, limit, where in ((counts[0], a_run, "this run"), (counts[1], in_all, "all runs")):
            if count >= limit:
                raise Limited(f"this site answers no more questions for {kind} in {where}: that is its limit")
        book["runs"][run][kind], book["all"][kind] = counts[0] + 1, counts[1] + 1

    def _views(self, request: Request) -> int:
        """In how many sums of one answer the same rows may be, each with noise of its own: of layers that are given the
        same input."""
        layers = [name for name in request.layers if name in self.site.targets]
        first = shared_inputs(self.site.backbone, layers) if len(layers) > 1 else {}  # a pass through the backbone
        return max(Counter(first.values()).values(), default=1)

    def _spend(self, book: dict[str, Any], noise: float, views: int) -> None:
        """Write the noise of an answer into the book. Raises Limited where the mean of all answers would have less
        than the site's `min_noise`: n answers with the noise σ tell what one with σ/√n does, and so do n sums of the
        same rows in one answer, which count as its `views`."""
        least, spent = self.limits.min_noise, book["all"].get("precision", 0.0) + views * noise**-2
        if spent > (1 + 1e-9) * least**-2:
            raise Limited("this site's answers together would have less noise than its min-noise")
        book["all"]["precision"] = spent

    def _enter(
        self, book: dict[str, Any], kind: str, images: Tensor, least: int, of: str = "", about: Tensor | None = None
    ) -> None:
        """Write a set of images into the book. about: all that were asked about, of which the set is a part.

        Raises Cut for one of fewer than `least` distinct images, or that leaves so few in a cell of the sets before it.
        """
        pixels = [*self.site.data.fingerprints(images, book["key"])]
        asked = {*self.site.data.origins(images, pixels, book["key"])}
        what = f"{kind} {of}".strip() if kind != "classes" else f"statistics {of}"
        limit = f"this site's limits allow ({LEAST.get(kind, 'min-images')})"
        whole = images if about is None else about
        if min(len(asked), len({*pixels})) < least:
            raise Cut(f"{what} over fewer distinct images than {limit}", self._named(book, whole))
        cells = cut_by(book["cells"].get(kind, []), asked)
        cut = [part for pair in cells[:-1] if all(pair) for part in pair] + [part for part in cells[-1] if part]
        if any(len(part) < least for part in cut):
            _log.warning(
                "of the %d images that %s would be over, so few are new or gone since this site's earlier answers that "
                "the difference would tell what they are: put them back, change more at once, or begin another book "
                "(another state-dir), which forgets what was told before",
                len(asked),
                what,
            )
            few = f"{what} over images that differ from earlier ones by fewer images than {limit}"
            raise Cut(few, self._named(book, whole))
        book["cells"][kind] = [sorted(part) for pair in cells for part in pair if part]

    @contextmanager
    def _book(self) -> Iterator[dict[str, Any]]:
        """The book, to be changed within; it is kept where it was, unless something is raised.

        Raises InputError for one that cannot be read or written: a book that is damaged is not begun anew."""
        try:
            with contextlib.nullcontext() if self.file is None else _alone(self.file):
                before = self._read()
                book = opened(before)
                if book["all"].get("refusals", 0) >= self.limits.refusals:
                    raise Limited(
                        "this site has refused so many sets of images that are a few or differ by a few, its refusals, "
                        "that it answers nothing more"
                    )
                try:
                    yield book
                except Cut as error:
                    self._refuse({**opened(before), "key": book["key"]}, error.images)
                    raise
                if book != before:
                    self._write(book)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.file}: the book of this site's answers cannot be used ({error})") from error

    def _named(self, book: Mapping[str, Any], images: Tensor) -> str:
        """A word for the images (n,) that are asked about, the same in every run, which says nothing of them."""
        pixels = [*self.site.data.fingerprints(images, book["key"])]
        asked = sorted({*self.site.data.origins(images, pixels, book["key"])})
        return hashlib.blake2b(" ".join([book["key"], *asked]).encode(), digest_size=8).hexdigest()

    def _refuse(self, book: dict[str, Any], images: str) -> None:
        """Count the refusal of a set of images, once for each set."""
        refused = book.setdefault("refused", [])
        if images not in refused:
            refused.append(images)
            book["all"]["refusals"] = book["all"].get("refusals", 0) + 1
            self._write(book)

    def _read(self) -> dict[str, Any] | None:
        """The book as it is kept; None where there is none yet."""
        if self.file is None:
            record = self.context.state.get(BOOK)
            text = str(record["book"]) if isinstance(record, ConfigRecord) else None
        else:
            text = read_text(self.file) if os.path.lexists(self.file) else None
        if text is None:
            return None
        if not isinstance(book := json.loads(text), dict):
            raise ValueError("it is none")
        return book

    def _write(self, book: Mapping[str, Any]) -> None:
        if self.file is None:
            self.context.state[BOOK] = ConfigRecord({"book": json.dumps(book)})
        else:
            disk.replace_json(self.file, book)


def _first(key: str, train: Tensor, count: int) -> Tensor:
    """The first so many of a client's images (n,) in the order that the key draws, by index."""
    lots = torch.tensor([derive(0, "site.images", key, image) for image in train.tolist()])
    return train[lots.argsort(stable=True)[:count]].sort().values


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Nobody else is at the file, and what is made within is its owner's alone."""
    before = os.umask(0o077)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            yield
    finally:
        os.umask(before)
