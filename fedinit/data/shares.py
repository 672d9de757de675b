"""Who holds which images, once they are dealt: a few arrays for all clients, a client's part when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from fedinit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Partition:
    """One client's images: indices into the Dataset, in increasing order.

    client: its partition id.
    domain: the index of its one domain, or -1 where several are mixed.
    train: (n,) int64, n >= partition.min_examples, or 0 where the domain is another site's.
    test: (m,) int64, empty for some clients of a domain that has more clients than test images.
    """

    client: int
    domain: int
    train: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class Shares:
    """Indices into the data set, dealt.

    rows: (n,) the indices, each once.
    owner: (n,) the place among the clients, from 0, of who has it.
    clients: how many there are.
    """

    rows: np.ndarray
    owner: np.ndarray
    clients: int

    @staticmethod
    def of(parts: Sequence[np.ndarray]) -> Shares:
        """One array of indices a client."""
        import numpy as np

        return Shares(np.concatenate(parts), np.repeat(np.arange(len(parts)), list(map(len, parts))), len(parts))


class Partitions(Sequence[Partition]):
    """The parts of all clients, in the order of their numbers; each is made when it is asked for, since most of many
    thousands never are."""

    def __init__(self, domains: Sequence[int], train: Sequence[Shares], test: Sequence[Shares]) -> None:
        """Blocks of clients, one after the other. domains: of each block, the index of its clients' one domain, or -1.
        train, test: of each block, who has which images."""
        import numpy as np

        clients = [shares.clients for shares in train]
        if clients != [shares.clients for shares in test] or len(clients) != len(domains):
            raise InputError("a partition has other numbers of clients for training than for testing, or other domains")
        self._domains = np.repeat(domains, clients)
        self._train, self._test = _grouped(train), _grouped(test)

    @staticmethod
    def of(parts: Sequence[Partition]) -> Partitions:
        """These parts, whose numbers are their places."""
        train = [Shares.of([part.train.numpy()]) for part in parts]
        test = [Shares.of([part.test.numpy()]) for part in parts]
        return Partitions([part.domain for part in parts], train, test)

    def __len__(self) -> int:
        return len(self._domains)

    def rows(self) -> dict[str, Tensor]:
        """{"train": (n,), "test": (m,)}, the indices of all clients, one after the other."""
        return {"train": self._train[0], "test": self._test[0]}

    def sizes(self, clients: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """How many training and how many test images each of these has."""
        import numpy as np

        train, test = (np.diff(ends)[clients] for _, ends in (self._train, self._test))
        return train, test

    @overload
    def __getitem__(self, index: int) -> Partition: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Partition, ...]: ...

    def __getitem__(self, index: int | slice) -> Partition | tuple[Partition, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        client = range(len(self))[index]
        # Copies, since a view takes all rows along wherever it is sent.
        train, test = (rows[ends[client] : ends[client + 1]].clone() for rows, ends in (self._train, self._test))
        return Partition(client, int(self._domains[client]), train, test)


def beyond(indices: Tensor, count: int) -> str:
    """The span of indices that do not all lie in 0..count-1, "-1..3"; empty where they do, and where there are none."""
    if not indices.numel() or 0 <= int(indices.min()) <= int(indices.max()) < count:
        return ""
    return f"{int(indices.min())}..{int(indices.max())}"


def refuse_misdealt(dealt: object, test: Tensor, count: int | None, who: str) -> Partitions:
    """What a partition made of a data set, as it is. Raises InputError where it is not as the law of `Partitioner.cut`
    says: a fault in its code.

    test: (n,) bool, the data set's. count: of the clients; None: the data alone says. who: cuts it, by name."""
    if not isinstance(dealt, Partitions):
        raise InputError(f"{who} deals {type(dealt).__name__}, expected Partitions")
    if not len(dealt) or count not in (None, len(dealt)):
        raise InputError(f"{who} deals to {len(dealt)} clients, expected {count or 'one or more'}")
    for split, rows in dealt.rows().items():
        if rows.is_floating_point() or beyond(rows, len(test)):
            raise InputError(f"{who} deals {split} rows that there are not, expected whole numbers below {len(test)}")
        if bool((test[rows] != (split == "test")).any()):
            other = "test images as training images" if split == "train" else "training images as test images"
            raise InputError(f"{who} deals {other}; expected those of each split by themselves")
        if len(rows.unique()) < len(rows):
            raise InputError(f"{who} deals a {split} image to two clients, expected each to one")
    return dealt


def _grouped(blocks: Sequence[Shares]) -> tuple[Tensor, list[int]]:
    """All indices, (n,), client by client and increasing inside each, and where each client's begin and end."""
    import numpy as np
    import torch  # by now it is there: the data set holds tensors

    sizes = np.concatenate([np.bincount(shares.owner, minlength=shares.clients) for shares in blocks])
    rows = np.concatenate([shares.rows[np.lexsort((shares.rows, shares.owner))] for shares in blocks])
    return torch.from_numpy(rows), [0, *np.cumsum(sizes).tolist()]
