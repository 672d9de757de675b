"""The two ways to fail, wrong input and a run that cannot go on, and the "did you mean" of the first; and what a client
may say of either."""

from __future__ import annotations

import difflib
import enum
import errno
from collections.abc import Iterable
from pathlib import Path

from fedinit.said import LONGEST, said

# What the system says when there is none left, of open files, memory or processes, or of a file that a network has not
# at the moment; and of room on a disk.
LACKING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, getattr(errno, "ESTALE", errno.EMFILE)}
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
FAILED = ("CUDA error", "CUDA driver error", "cuDNN error")  # what torch begins with where a device has failed
GOES_ON = "the last whole checkpoint is kept, and the same command goes on from it"


class InputError(ValueError):
    """Something a person gave (a key, a file, a number) cannot be used.

    The message is one line: what was wrong, what was expected, what to do. Programs print it and exit with 2.
    """


def refuse(error: InputError) -> None:
    """What is done with the first thing that is wrong, where not all of them are asked for."""
    raise error


class FolderBusy(InputError):
    """Another process is at the run in this folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder}: another process is at this run; wait for it, or end it")
        self.folder = folder


class Code(enum.IntEnum):
    """What an Error is, as the number that Flower's Error has; Flower's own are below 1000.

    failed: something went wrong at the stage that the reply names.
    site: the site's own settings, files or images do not do for the run.
    refused: the client does not do what was asked, or does not take what was sent.
    too_few_examples: it has fewer than a statistic may be made of.
    limit: what was asked is more than the site's own limits let it say.
    spent: a round more of training would pass the ε of the run, or of the site, for its examples.
    too_large, unreadable: what the server says in place of a reply that it does not take.
    """

    failed = 1001
    site = 1002
    refused = 1003
    too_few_examples = 1004
    limit = 1005
    spent = 1006
    too_large = 1101
    unreadable = 1102


class Refused(InputError):
    """What a server sent or asked for is not what a client takes or does.

    The message may leave the site: it holds nothing but what the server sent, or knows of the client already. The words
    of every other error stay in the site's log, since they may hold paths and the names of files.
    """

    code = Code.refused


def public_of(error: BaseException) -> tuple[Code, str]:
    """What a server may know of a client's error: its code, and what can be said of it."""
    if isinstance(error, Refused):
        return error.code, str(error)
    code = Code.site if isinstance(error, InputError) else Code.failed
    return code, f"{code.name}; the site's log says why"


class RunFailed(RuntimeError):
    """The run cannot go on: no clients, clients that disagree, or a round without a usable reply. One
    printable line, also where a client's words are in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(said(reason, LONGEST))


class PrivacySpent(RunFailed):
    """Too few clients are left whose examples have ε for a round more, now and ever."""


class DeviceFailed(RunFailed):
    """A device computes nothing more in this process, whoever asks: no client's fault."""


def reason(error: Exception, kept: str = GOES_ON) -> str | None:
    """The line that an error which is foreseen is told in; None for one that is not. kept: what is left of the run."""
    if isinstance(error, InputError):
        return f"error: {error}"
    if isinstance(error, RunFailed):
        return f"run failed: {error}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"run failed: {error.strerror or error}{where}; {kept}"
    if out_of_memory(error):
        return f"run failed: too little memory ({said(first_line(error), LONGEST)}); {kept}"
    if device_failed(error) or is_lacking(error):
        return f"run failed: {said(first_line(error), LONGEST)}; {kept}"
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, or the machine: torch has a class of its own for its allocator's, and says
    the machine's, and what CUDA and its libraries find none for, in a RuntimeError; a library that finds none for
    itself is one that cannot be imported; and where Python has none to say so in, it is a SystemError."""
    told = (
        "DefaultCPUAllocator",
        "failed to map segment",
        "without setting an exception",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "STATUS_ALLOC_FAILED",  # of cuBLAS, cuDNN and their like
        "CUBLAS_STATUS_NOT_INITIALIZED",  # what cublasCreate says where it finds none
    )
    if isinstance(error, (RuntimeError, ImportError, SystemError)):
        return any(part in str(error) for part in told) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError)


def device_failed(error: BaseException) -> bool:
    """Whether a CUDA device has failed, by what torch says: from then on all that is asked of it in this process does,
    as after an uncorrectable fault of its memory, an illegal access or a failed assertion in a kernel."""
    told = isinstance(error, RuntimeError) and any(part in str(error) for part in FAILED)
    return told and not out_of_memory(error)


def is_lacking(error: BaseException) -> bool:
    """Whether the system had nothing left for what was asked: files that may be open, threads, memory for itself."""
    if isinstance(error, OSError):
        return error.errno in LACKING
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def machine_failed(error: BaseException) -> bool:
    """Whether what failed is the machine, whoever's turn it was: it had no memory, or nothing else that was needed, or
    a device failed. What an error was raised from counts as well."""
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in FULL
        if full or out_of_memory(cause) or device_failed(cause) or is_lacking(cause):
            return True
        cause = cause.__cause__
    return False


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was most likely meant, or None where none is near: a slip or two of the keys, letters in
    another order, or one that is the beginning of the other. Of several it is the one with the fewest slips between."""
    known, small = list(known), word.lower()
    near = [each for each in known if _is_near(small, each.lower())]
    if not near:
        return None
    slips = {each: _slips(small, each.lower()) for each in known if abs(len(each) - len(word)) < 3 or each in near}
    fewest = min(slips[each] for each in near)
    near += [each for each, count in slips.items() if count <= min(fewest, 2)]
    return min(near, key=lambda each: (slips[each], abs(len(each) - len(word))))


def _is_near(word: str, other: str) -> bool:
    matched = difflib.SequenceMatcher(None, other, word)
    if matched.real_quick_ratio() < 0.6 or matched.ratio() < 0.6:
        return False
    return matched.ratio() >= 0.75 or sorted(other) == sorted(word) or other.startswith(word) or word.startswith(other)


def _slips(word: str, other: str) -> int:
    """How many letters are too many, missing, wrong, or one place off, from one to the other (optimal string
    alignment); a word that ends early is one slip."""
    if other.startswith(word) and other != word:
        return 1
    before, row = [], list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        last, before, row = before, row, [i]
        for j, its in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != its)))
            if i > 1 and j > 1 and letter == other[j - 2] and its == word[i - 2]:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


def first_line(error: BaseException) -> str:
    """What an error says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of `known`, or an empty string."""
    near = nearest(str(word), known)
    return "" if near is None else f" (did you mean '{near}'?)"


def choose(what: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`, else raise InputError that lists the choices."""
    known = sorted(known)
    if name in known:
        return str(name)
    raise InputError(f"{what}={name}: no such choice{did_you_mean(str(name), known)}. Choices: {', '.join(known)}.")


def kind_of(value: object) -> str:
    """What something is that should be a tensor of another kind: "float32 (3, 24)", or its type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None:
        return type(value).__name__
    kind = "" if type(value).__name__ == "Tensor" else f"{type(value).__name__} of "
    return f"{kind}{str(dtype).removeprefix('torch.')} {tuple(shape)}"
