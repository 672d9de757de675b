"""How far an exchange with the clients of this process is, said now and then: with a thousand it takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message

FIRST_SECONDS = 30.0  # before it is said; twice as long from each time to the next


def aloud(replies: Iterable[Message], total: int, round: int, say: Callable[[str], None]) -> Iterator[Message]:
    """The replies, as they come. say: is told how many of `total` there are by then, of which round; 0 or less: before
    training."""
    gap = FIRST_SECONDS
    due = time.monotonic() + gap
    for count, reply in enumerate(replies, 1):
        yield reply
        if count < total and time.monotonic() >= due:
            say(f"round {max(round, 0)}: {count:,} of {total:,} clients have answered")
            gap *= 2
            due = time.monotonic() + gap
