"""What a site's book (clients/limits.py) says of the secret sums that the site was part of, by run and for good.

The difference of two sums is the update of whoever is in one of them alone, or did something else in one of them. So of
a round a site unmasks one set of clients, and rounds only go up. A site that insists on masks does not trust the server
with what a round is either: of a round it masks the answer to one question, its second phase is of the clients of the
first, and what was trained from one start it unmasks in one set of clients, whatever round or run the server calls it.

Who has unmasked a sum masks nothing more of its round, or from its start, for other clients than those in it: these
could unmask by themselves what it would not. Who has masked and was not asked to unmask, as of a round whose server
gave up, cannot know what others unmasked. It masks again where of those that may unmask the one sum and of those that
may unmask the other at least one is the same: that one unmasks a single set. So it is while no more than those that
were asked first are asked again. In another round the same clients are answered from the same start, as
after a sum that was refused; what a server that lies makes of that is in docs/secure_aggregation.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedinit.config.limits import Limited

PASSING = {"base-update", "base-key"}  # of a message: how the base comes, which the start says by its values


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """A sum, as one of its clients sees it.

    kind: what it is of. start: a digest of what the client trained from, or of the update that a second phase is of.
    clients: partition ids, of who may be in it where it is masked, of who is where it is unmasked.
    sharers, threshold: where it is masked, who has shares of this client's secrets, and how many of these unmask it.
    """

    kind: str
    round: int
    start: str
    clients: Collection[int]
    sharers: Collection[int] = ()
    threshold: int = 0

    @property
    def cohort(self) -> str:
        """The clients as one word."""
        return _word(*sorted(self.clients))


def question(config: Mapping[str, Any], start: str) -> str:
    """A digest of all that a message says of what is to be computed. start: of what its tensors come to."""
    said = {key: config[key] for key in sorted(config) if key not in PASSING}
    return _word(json.dumps(said, sort_keys=True, default=str), start)


def mask(book: dict[str, Any], run: str, wanted: Sum, asked: str) -> None:
    """Write down what a site that insists on masks is about to mask. asked: the `question`. Raises Limited."""
    _check(book, run, wanted, strict=True)
    rounds = _rounds(book, run)
    entry = rounds.setdefault(_key(wanted), {})
    if entry.setdefault("asked", asked) != asked:
        raise Limited(f"this site masks the answer to one question in round {wanted.round}, and was asked another")
    of_start = book.setdefault("masked", {}).setdefault(wanted.start, [])
    of_round = [masked for key, other in rounds.items() if _round(key) == wanted.round for masked in _masked(other)]
    for threshold, sharers in (*of_round, *of_start):
        if threshold + wanted.threshold <= len({*sharers, *wanted.sharers}):
            raise Limited(
                f"the server asked for a secret sum of clients {sorted(wanted.sharers)} in round {wanted.round}, after "
                f"one of clients {sharers}: of each another set could be unmasked, without anybody who sees both"
            )
    masked = [wanted.threshold, sorted(wanted.sharers)]
    for known in (entry.setdefault("masked", []), of_start):
        if masked not in known:
            known.append(masked)


def unmask(book: dict[str, Any], run: str, wanted: Sum, strict: bool) -> None:
    """Write down whose sum is unmasked. strict: the site insists on masks. Raises Limited."""
    _check(book, run, wanted, strict)
    _rounds(book, run).setdefault(_key(wanted), {})["clients"] = wanted.cohort
    if strict:
        book.setdefault("starts", {})[wanted.start] = wanted.cohort


def _check(book: Mapping[str, Any], run: str, wanted: Sum, strict: bool) -> None:
    """Raise Limited for a sum that is another of its round, or of its start, or of a round that is over."""
    rounds, round = book["runs"].get(run, {}).get("sums", {}), wanted.round
    asked = f"the server asked for a secret sum of clients {sorted(wanted.clients)} in round {round}"
    if not any(_round(key) == round for key in rounds) and (latest := max(map(_round, rounds), default=0)) > round:
        raise Limited(f"{asked}, after one in round {latest}: rounds only go up")
    for key, entry in rounds.items():
        same = _round(key) == round and (strict or key == _key(wanted))
        if same and entry.get("clients", wanted.cohort) != wanted.cohort:
            raise Limited(f"{asked}, after one of other clients in it: a site unmasks one set of clients a round")
    if strict and book.get("starts", {}).get(wanted.start, wanted.cohort) != wanted.cohort:
        raise Limited(f"{asked}, after one of other clients from the same start: it needs another, as of another seed")


def _masked(entry: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """(threshold, sharers) of what was masked; nothing in a book of before."""
    return entry.get("masked", [])


def _rounds(book: dict[str, Any], run: str) -> dict[str, dict[str, Any]]:
    return book["runs"].setdefault(run, {}).setdefault("sums", {})


def _key(wanted: Sum) -> str:
    return f"{wanted.round}/{wanted.kind}"


def _round(key: str) -> int:
    return int(key.partition("/")[0])


def _word(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()
