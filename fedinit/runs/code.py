"""By which code a run was begun: its folder is named by what it is a run of, and not by how that was written then.

Who edits a method of their own and gives the same words again has a run that is done, or goes on, as of the old code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import fedinit

PACKAGES = ("clients", "fedinit", "strategies")  # what a run is computed by
DIGITS = 16


@functools.cache
def code_now() -> Mapping[str, str]:
    """{package: the sha256 of its files of Python, by path below it and by content}, as they are when it is first
    asked; without one that is not there, cannot be read, or was edited since this process began to import it, of which
    nobody can say what was imported."""
    found, edited = {}, edited_since()
    for package in PACKAGES:
        digest = hashlib.sha256()
        try:
            for root, file in _files(package):
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
        except OSError:
            continue
        if package not in edited:
            found[package] = digest.hexdigest()[:DIGITS]
    return found


def edited_since() -> list[str]:
    """The packages of which a file was written since this process began to import them, as in a notebook: what was
    imported goes on computing as it was."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(OSError):
            if any(file.stat().st_mtime > fedinit.BEGAN for _, file in _files(package)):
                found.append(package)
    return found


def _files(package: str) -> Iterator[tuple[Path, Path]]:
    """(the package's folder, a file of Python in it), in the order of their names."""
    spec = importlib.util.find_spec(package)
    for root in map(Path, spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(root.rglob("*.py")):
            yield root, file


def other_code(before: Mapping[str, str] | None) -> str:
    """What of the code is other than it was, in a few words; empty where nothing is, or nothing is known of before."""
    others = apart(before, PACKAGES) if before else []
    return f"other code than is here now ({', '.join(others)})" if others else ""


def code_of_clients() -> dict[str, str]:
    """What of it a client computes by: all but the server's own."""
    return {package: digest for package, digest in code_now().items() if package != "strategies"}


def apart(code: Mapping[str, str], packages: Iterable[str]) -> list[str]:
    """Those of the packages that are others here now than in this code, of which `code_now` was told."""
    now = code_now()
    return [package for package in packages if code.get(package) != now.get(package)]
