"""Who holds which images (`partition=`): the ways to cut a `Dataset` into clients, each with the options that it reads.

Every draw comes from fedinit.seeding with the purpose "partition", so a partition is a function of the data set, the
options and the root seed. Clients are numbered domain by domain: with one client a domain, client d is the d-th of the
domains that are trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedinit.config.checks import at_least, positive
from fedinit.data.names import composed
from fedinit.data.shares import Partitions, Shares, refuse_misdealt
from fedinit.errors import InputError, did_you_mean
from fedinit.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np

    from fedinit.data.dataset import Dataset

_REDRAWS = 50  # Dirichlet draws tried for one domain before examples are moved


@dataclass(frozen=True, kw_only=True)
class Partitioner(ABC):
    """name: its key in `PARTITIONS`, the one value of a Literal. Every field is a key, `partition.<field>=`."""

    name: str
    min_examples: int = 1  # smallest training set of a client
    test_domains: tuple[str, ...] | None = None  # that nobody trains on: all of their images are evaluated on

    def __post_init__(self) -> None:
        at_least("partition.min_examples", self.min_examples, 1)
        if self.test_domains is not None:
            object.__setattr__(self, "test_domains", tuple(map(composed, self.test_domains)))

    def hold_out(self, dataset: Dataset) -> Dataset:
        """The data set with every image of the test domains in its test split. Raises InputError for a domain that is
        not there, and for all of them."""
        for name in self.test_domains or ():
            if name not in dataset.domain_names:
                near = did_you_mean(name, dataset.domain_names)
                known = ", ".join(dataset.domain_names)
                raise InputError(f"partition.test_domains: no domain '{name}' in the data{near}. Known: {known}.")
        if not self.test_domains:
            return dataset
        if not self.trained(dataset.domain_names):
            raise InputError("partition.test_domains: names all domains, so none is left to train on; leave one out")
        import torch  # by now it is there: `dataset` holds tensors

        held = torch.tensor([name in self.test_domains for name in dataset.domain_names])
        return replace(dataset, test=dataset.test | held[dataset.domains])

    def trained(self, domains: Sequence[str]) -> list[str]:
        """Those of the domains that clients train on, in their order."""
        return [name for name in domains if name not in (self.test_domains or ())]

    @abstractmethod
    def count(self, domains: Sequence[str] | None) -> int | None:
        """How many clients there are, or None where only the data can say.

        domains: the names of the data's domains; None: not known yet.
        """

    def domain_of(self, client: int, domains: Sequence[str] | None) -> str | None:
        """The name of the one domain that a client's images are of; None where the partition mixes domains, or only the
        data can say.

        client: its partition id.
        domains: the names of the data's domains; None: not known yet.
        """
        return None

    @abstractmethod
    def cut(self, dataset: Dataset, seed: int) -> Partitions:
        """One part of the data set a client, in the order of the clients' numbers.

        Law: every training index is in exactly one client's train, every test index in exactly one client's test, but
        for those of the test domains, which may be nobody's.

        dataset: as `hold_out` gives it.
        seed: the run's.
        Raises InputError on numbers of clients or examples that cannot be had.
        """

    def deal(self, dataset: Dataset, seed: int) -> Partitions:
        """What `cut` gives, held to its law. Raises InputError as it does, and where the law does not hold."""
        who = f"partition={self.name}: {type(self).__name__}"
        return refuse_misdealt(self.cut(dataset, seed), dataset.test, self.count(dataset.domain_names), who)


@dataclass(frozen=True, kw_only=True)
class Counted(Partitioner):
    """As many clients as one asks for."""

    clients: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clients is not None:
            at_least("partition.clients", self.clients, 1)

    def count(self, domains: Sequence[str] | None) -> int | None:
        return self.clients


@dataclass(frozen=True, kw_only=True)
class InsideDomains(Counted):
    """As many clients in each domain, one where nobody says; a subclass says how its training images are divided."""

    def count(self, domains: Sequence[str] | None) -> int | None:
        return len(self.trained(domains)) if self.clients is None and domains is not None else self.clients

    def domain_of(self, client: int, domains: Sequence[str] | None) -> str | None:
        if domains is None:
            return None
        domains = self.trained(domains)
        clients = len(domains) if self.clients is None else self.clients
        each = clients // len(domains)
        return domains[client // each] if each and 0 <= client < each * len(domains) else None

    def cut(self, dataset: Dataset, seed: int) -> Partitions:
        names = self.trained(dataset.domain_names)
        domains, trains, tests = [dataset.domain_names.index(name) for name in names], [], []
        held = [_indices(dataset, d) for d in domains]
        there = [len(train) for train, test in held if len(train) or len(test)]
        each = self._each(len(names), there)
        for name, d, (train, test) in zip(names, domains, held, strict=True):
            if len(train) or len(test):  # else another site's: a source lets no other domain be without images
                _refuse_shortage(len(train), each, self.min_examples, f"domain '{name}'", min(there), len(names))
                trains.append(self.share(dataset, train, each, seed, d))
            else:
                trains.append(Shares(train, train, each))
            tests.append(_deal(test, each, seed, "test", d))
        return Partitions(domains, trains, tests)

    def _each(self, domains: int, there: Sequence[int]) -> int:
        """How many clients a domain has. there: the training images of each domain. Raises InputError for a number that
        is no multiple of the domains', with one that there are images for."""
        clients = domains if self.clients is None else self.clients
        if clients >= domains and clients % domains == 0:
            return clients // domains
        fewest = min(there, default=0)
        each = max(1, min(round(clients / domains), fewest // self.min_examples))
        near, why = domains * each, ""
        if each < round(clients / domains):
            why = f", of which the smallest has {fewest} images, for partition.min_examples={self.min_examples} each"
        less = f" with partition.min_examples={fewest}" if 0 < fewest < self.min_examples else ""
        other = ", or take partition=iid" if clients * self.min_examples <= sum(there) else ""
        raise InputError(
            f"partition.clients={clients}: partition={self.name} gives every domain as many clients, "
            f"so expected a multiple of the {domains} domains{why}; set {near}{less}{other}"
        )

    @abstractmethod
    def share(self, dataset: Dataset, train: np.ndarray, clients: int, seed: int, domain: int) -> Shares:
        """Who has which of a domain's training images.

        train: (n,) int64, the domain's training indices, all of which are to be dealt.
        clients: how many there are in this domain.
        seed: the run's.
        domain: the domain's number.
        """


@dataclass(frozen=True, kw_only=True)
class ByDomain(InsideDomains):
    """One client a domain, or each domain dealt at random to as many clients as each other domain."""

    name: Literal["domain"] = "domain"

    def share(self, dataset: Dataset, train: np.ndarray, clients: int, seed: int, domain: int) -> Shares:
        return _deal(train, clients, seed, "train", domain)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(InsideDomains):
    """Inside a domain, each class is shared among its clients in proportions ~ Dirichlet(alpha).

    Hsu et al. 2019, arXiv:1909.06335, draws for every client a mixture of classes; here every class draws a
    mixture of clients, so that each example is used once. A small alpha gives a class to few clients.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = 0.5
    min_examples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("partition.alpha", self.alpha)

    def cut(self, dataset: Dataset, seed: int) -> Partitions:
        if dataset.is_regression:
            raise InputError(
                "partition=dirichlet: divides classes, and this data has none; take partition=iid or pooled"
            )
        domains = len(self.trained(dataset.domain_names))
        if self.clients in (None, domains) and self.alpha != Dirichlet.alpha:
            raise InputError(
                f"partition.alpha={self.alpha:g}: with one client a domain there is nothing to share; "
                f"set partition.clients={2 * domains}, or another multiple of {domains}, or leave it out"
            )
        return super().cut(dataset, seed)

    def share(self, dataset: Dataset, train: np.ndarray, clients: int, seed: int, domain: int) -> Shares:
        """Shares of min_examples or more each; there are examples enough for that.

        A draw that leaves a client short is thrown away; after _REDRAWS of them the one whose smallest client is
        largest is mended.
        """
        import numpy as np  # here, as in all functions below: the options are read without it

        labels = dataset.labels.numpy()[train]
        alphas = np.full(clients, min(self.alpha, 1e12))  # equal shares by then; their sum must not overflow
        best: list[np.ndarray] = []
        for attempt in range(_REDRAWS):
            rng = numpy_generator(seed, "partition", "dirichlet", domain, attempt)
            parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
            for label in np.unique(labels):
                members = rng.permutation(train[labels == label])
                edges = np.cumsum(rng.dirichlet(alphas))[:-1]  # (clients - 1,), on [0, 1]
                pieces = np.split(members, np.rint(edges * len(members)).astype(int))
                for part, piece in zip(parts, pieces, strict=True):
                    part.append(piece)
            shares = [np.concatenate(part) for part in parts]
            if not best or min(map(len, shares)) > min(map(len, best)):
                best = shares
            if min(map(len, best)) >= self.min_examples:
                return Shares.of(best)
        return Shares.of(_mend(best, self.min_examples))


@dataclass(frozen=True, kw_only=True)
class IID(Counted):
    """All domains in one pool, shuffled and dealt."""

    name: Literal["iid"] = "iid"

    def cut(self, dataset: Dataset, seed: int) -> Partitions:
        if self.clients is None:
            raise InputError("partition=iid needs a number of clients: set partition.clients=10 for example")
        train, test = _indices(dataset, None)
        _refuse_shortage(len(train), self.clients, self.min_examples, "the data set", len(train))
        dealt = [[_deal(rows, self.clients, seed, key, "all")] for rows, key in ((train, "train"), (test, "test"))]
        return Partitions([_one_domain(dataset)], *dealt)


@dataclass(frozen=True, kw_only=True)
class Pooled(Partitioner):
    """One client with everything: the centralised reference."""

    name: Literal["pooled"] = "pooled"

    def count(self, domains: Sequence[str] | None) -> int | None:
        return 1

    def cut(self, dataset: Dataset, seed: int) -> Partitions:
        train, test = _indices(dataset, None)
        _refuse_shortage(len(train), 1, self.min_examples, "the data set", len(train))
        return Partitions([_one_domain(dataset)], [Shares.of([train])], [Shares.of([test])])


PARTITIONS: dict[str, type[Partitioner]] = {"dirichlet": Dirichlet, "domain": ByDomain, "iid": IID, "pooled": Pooled}


def _mend(shares: list[np.ndarray], min_examples: int) -> list[np.ndarray]:
    """Move one example at a time from the largest client to the smallest; ties go to the lower number."""
    import numpy as np

    pools = [share.tolist() for share in shares]
    sizes = np.array([len(pool) for pool in pools])
    while sizes.min() < min_examples:
        giver, taker = int(sizes.argmax()), int(sizes.argmin())
        pools[taker].append(pools[giver].pop())
        sizes[giver] -= 1
        sizes[taker] += 1
    return [np.array(pool, dtype=np.int64) for pool in pools]


def _deal(indices: np.ndarray, clients: int, seed: int, *keys: int | str) -> Shares:
    """Shuffle and deal round-robin: sizes differ by one at most."""
    import numpy as np

    shuffled = numpy_generator(seed, "partition", *keys).permutation(indices)
    return Shares(shuffled, np.arange(len(indices)) % clients, clients)


def _indices(dataset: Dataset, domain: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test indices of a domain; of all for None."""
    import numpy as np

    test = dataset.test.numpy()
    inside = np.ones_like(test) if domain is None else dataset.domains.numpy() == domain
    return np.flatnonzero(inside & ~test), np.flatnonzero(inside & test)


def _one_domain(dataset: Dataset) -> int:
    """The domain of a client who may have images of any: the data's, where it is one alone."""
    return 0 if len(dataset.domain_names) == 1 else -1


def _refuse_shortage(examples: int, clients: int, min_examples: int, where: str, fewest: int, domains: int = 1) -> None:
    """Raise InputError for fewer images than the clients of a place are to have, with what there are images for.

    fewest: images of the place, of the `domains` that have as many clients each, which has the fewest.
    """
    if examples >= clients * min_examples:
        return
    numbers = {"clients": domains * (fewest // min_examples), "min_examples": fewest // clients}
    hints = [f"set partition.{key}={value}" for key, value in numbers.items() if value]
    raise InputError(
        f"{where} has {examples} training images, too few for {clients} client{'s' * (clients != 1)} "
        f"with partition.min_examples={min_examples}: expected {clients * min_examples} or more; "
        f"{', '.join(hints)}{', or ' * bool(hints)}add images"
    )
