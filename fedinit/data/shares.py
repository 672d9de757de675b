"""Who holds which images, once they are dealt: a few arrays for all clients, a client's part when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

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

        self._domains = np.repeat(domains, [shares.clients for shares in train])
        self._train, self._test = _grouped(train), _grouped(test)

    @staticmethod
    def of(parts: Sequence[Partition]) -> Partitions:
        """These parts, whose numbers are their places."""
        train = [Shares.of([part.train.numpy()]) for part in parts]
        test = [Shares.of([part.test.numpy()]) for part in parts]
        return Partitions([part.domain for part in parts], train, test)

    def __len__(self) -> int:
        return len(self._domains)

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


def _grouped(blocks: Sequence[Shares]) -> tuple[Tensor, list[int]]:
    """All indices, (n,), client by client and increasing inside each, and where each client's begin and end."""
    import numpy as np
    import torch  # by now it is there: the data set holds tensors

    sizes = np.concatenate([np.bincount(shares.owner, minlength=shares.clients) for shares in blocks])
    rows = np.concatenate([shares.rows[np.lexsort((shares.rows, shares.owner))] for shares in blocks])
    return torch.from_numpy(rows), [0, *np.cumsum(sizes).tolist()]
