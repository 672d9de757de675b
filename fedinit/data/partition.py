"""Who holds which images: methods that cut a `Dataset` into clients, looked up by name.

Every draw comes from fedinit.seeding with the purpose "partition", so a partition is a function of the data
set, the settings and the root seed. Clients are numbered domain by domain: with one client a domain, client
d is domain d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedinit.config.schema import PartitionConfig
from fedinit.data.dataset import Dataset
from fedinit.errors import InputError, choose
from fedinit.seeding import numpy_generator

_REDRAWS = 50  # Dirichlet draws tried for one domain before examples are moved

Shares = list[np.ndarray]  # one array of indices a client


@dataclass(frozen=True, eq=False)
class Partition:
    """One client's images: indices into the Dataset, in increasing order.

    domain: the index of its one domain, or -1 where several are mixed.
    train: (n,) int64, n >= partition.min_examples, or 0 where the domain is another site's.
    test: (m,) int64, empty for some clients of a domain that has more clients than test images.
    """

    client: int
    domain: int
    train: Tensor
    test: Tensor


def make_partitions(dataset: Dataset, settings: PartitionConfig, seed: int) -> tuple[Partition, ...]:
    """Cut `dataset` by the method settings.name, a key of METHODS.

    Law: every training index is in exactly one client's train, every test index in exactly one client's test.
    Raises InputError on an unknown method, and on numbers of clients or examples that cannot be had.
    """
    return METHODS[choose("partition", settings.name, METHODS)](dataset, settings, seed)


def own_domain(names: Sequence[str] | None, settings: PartitionConfig, client: int) -> str | None:
    """The one of the named domains that this client's images are of; None where that cannot be said beforehand, or the
    partition mixes domains."""
    if names is None or settings.name not in ("domain", "dirichlet"):
        return None
    clients = len(names) if settings.clients is None else settings.clients
    each = clients // len(names)
    return names[client // each] if each and 0 <= client < each * len(names) else None


def _by_domain(dataset: Dataset, settings: PartitionConfig, seed: int) -> tuple[Partition, ...]:
    """One client a domain, or each domain dealt at random to as many clients as each other domain."""
    return _inside_domains(dataset, settings, seed, lambda train, clients, d: _deal(train, clients, seed, "train", d))


def _dirichlet(dataset: Dataset, settings: PartitionConfig, seed: int) -> tuple[Partition, ...]:
    """Inside a domain, each class is shared among its clients in proportions ~ Dirichlet(alpha).

    Hsu et al. 2019, arXiv:1909.06335, draws for every client a mixture of classes; here every class draws a
    mixture of clients, so that each example is used once. A small alpha gives a class to few clients.
    """
    if dataset.numbers:
        raise InputError("partition=dirichlet: divides classes, and this data has none; take partition=iid or pooled")
    labels = dataset.labels.numpy()

    def share(train: np.ndarray, clients: int, domain: int) -> Shares:
        return _dirichlet_shares(train, labels[train], clients, settings, seed, domain)

    return _inside_domains(dataset, settings, seed, share)


def _iid(dataset: Dataset, settings: PartitionConfig, seed: int) -> tuple[Partition, ...]:
    """All domains in one pool, shuffled and dealt."""
    if settings.clients is None:
        raise InputError("partition=iid needs a number of clients: set partition.clients=10 for example")
    train, test = _indices(dataset, None)
    _refuse_shortage(len(train), settings.clients, settings.min_examples, "the data set")
    return _partitions(
        dataset,
        _deal(train, settings.clients, seed, "train", "all"),
        _deal(test, settings.clients, seed, "test", "all"),
    )


def _pooled(dataset: Dataset, settings: PartitionConfig, seed: int) -> tuple[Partition, ...]:
    """One client with everything: the centralised reference."""
    if settings.clients not in (None, 1):
        raise InputError(
            f"partition.clients={settings.clients}: partition=pooled is one client; leave it null, or take "
            "partition=iid"
        )
    train, test = _indices(dataset, None)
    _refuse_shortage(len(train), 1, settings.min_examples, "the data set")
    return _partitions(dataset, [train], [test])


METHODS: dict[str, Callable[[Dataset, PartitionConfig, int], tuple[Partition, ...]]] = {
    "dirichlet": _dirichlet,
    "domain": _by_domain,
    "iid": _iid,
    "pooled": _pooled,
}


def _inside_domains(
    dataset: Dataset, settings: PartitionConfig, seed: int, share: Callable[[np.ndarray, int, int], Shares]
) -> tuple[Partition, ...]:
    """As many clients in each domain; `share(train, clients, domain)` divides its training images."""
    num_domains = len(dataset.domain_names)
    clients = num_domains if settings.clients is None else settings.clients
    if clients < num_domains or clients % num_domains:
        raise InputError(
            f"partition.clients={clients}: partition={settings.name} gives every domain as many clients, "
            f"so expected a multiple of the {num_domains} domains; set "
            f"{num_domains * max(1, round(clients / num_domains))}, or take partition=iid"
        )
    each = clients // num_domains
    made: list[Partition] = []
    for d, name in enumerate(dataset.domain_names):
        train, test = _indices(dataset, d)
        if not len(train) and not len(test):  # another site's: `load_dataset` lets no other domain be without images
            made += _partitions(dataset, [train] * each, [test] * each, d, d * each)
            continue
        _refuse_shortage(len(train), each, settings.min_examples, f"domain '{name}'")
        made += _partitions(dataset, share(train, each, d), _deal(test, each, seed, "test", d), d, d * each)
    return tuple(made)


def _dirichlet_shares(
    train: np.ndarray, labels: np.ndarray, clients: int, settings: PartitionConfig, seed: int, domain: int
) -> Shares:
    """`train` (n,) with its labels (n,) -> one array a client, each of settings.min_examples or more.

    A draw that leaves a client short is thrown away; after _REDRAWS of them the one whose smallest client
    is largest is mended. Needs n >= clients * min_examples.
    """
    alphas = np.full(clients, min(settings.alpha, 1e12))  # equal shares by then; their sum must not overflow
    best: Shares = []
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
        if min(map(len, best)) >= settings.min_examples:
            return best
    return _mend(best, settings.min_examples)


def _mend(shares: Shares, min_examples: int) -> Shares:
    """Move one example at a time from the largest client to the smallest; ties go to the lower number."""
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
    shuffled = numpy_generator(seed, "partition", *keys).permutation(indices)
    return [shuffled[i::clients] for i in range(clients)]


def _indices(dataset: Dataset, domain: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test indices of a domain; of all for None."""
    test = dataset.test.numpy()
    inside = np.ones_like(test) if domain is None else dataset.domains.numpy() == domain
    return np.flatnonzero(inside & ~test), np.flatnonzero(inside & test)


def _partitions(
    dataset: Dataset, train: Shares, test: Shares, domain: int | None = None, first: int = 0
) -> tuple[Partition, ...]:
    if domain is None:
        domain = 0 if len(dataset.domain_names) == 1 else -1
    return tuple(
        Partition(first + i, domain, torch.from_numpy(np.sort(mine)), torch.from_numpy(np.sort(held_out)))
        for i, (mine, held_out) in enumerate(zip(train, test, strict=True))
    )


def _refuse_shortage(examples: int, clients: int, min_examples: int, where: str) -> None:
    if examples < clients * min_examples:
        raise InputError(
            f"{where} has {examples} training images, too few for {clients} client{'s' * (clients != 1)} "
            f"with partition.min_examples={min_examples}: expected {clients * min_examples} or more; "
            "lower partition.clients or partition.min_examples, or add images"
        )
