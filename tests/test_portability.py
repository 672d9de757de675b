"""Nothing that only POSIX systems have is needed to import the product."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import clients
import fedinit
import strategies

POSIX_ONLY = ("fcntl", "resource", "termios", "pwd", "grp")
PACKAGES = (fedinit, clients, strategies)
ROOT = Path(__file__).resolve().parents[1]


def test_every_module_is_imported_without_what_only_posix_has(monkeypatch):
    """Anew, with the libraries as they are."""
    found = [m.name for p in PACKAGES for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")] + ["run_sim"]
    names = {p.__name__ for p in PACKAGES} | {"run_sim"}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    for name in POSIX_ONLY:
        monkeypatch.setitem(sys.modules, name, None)
    try:
        for name in found:
            importlib.import_module(name)
        assert len(found) > 150
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
