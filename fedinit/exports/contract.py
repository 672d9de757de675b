"""The contract of a format: which files it is, how they are read, and the lines of Python that do so."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from fedinit.errors import InputError
from fedinit.exports.portable import Portable


class Format(ABC):
    """One way to write a model.

    name: `--format`.
    library: what reads it, as the card's front matter calls it.
    reader: the same, for people.
    writes_with: the packages that are needed to write it, besides fedinit's own.
    reads_with: those that are needed to read it.
    extra: of fedinit, that installs them.
    at_times: files that it writes of some models, which those of another model take out of a folder.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    reader: ClassVar[str]
    writes_with: ClassVar[tuple[str, ...]] = ()
    reads_with: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    at_times: ClassVar[tuple[str, ...]] = ()

    def refuse(self, model: Portable) -> None:
        """Raise InputError, one line, where the format cannot have this model, or a package is missing."""
        if missing := absent(self.writes_with):
            raise InputError(
                f"--format {self.name}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
                f'pip install "fedinit[{self.extra}]"'
            )

    @abstractmethod
    def files(self, model: Portable) -> dict[str, bytes]:
        """{name: content}, besides config.json and README.md."""

    @abstractmethod
    def read(self, folder: Path, model: Portable) -> Tensor:
        """(2, classes): the logits of `model.probes` by what the format's reader makes of the folder."""

    @abstractmethod
    def code(self, model: Portable) -> Sequence[str]:
        """Lines of Python, for the card: from `images`, normalised float32, to `logits`."""


def absent(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def called(model: Portable, *before: str) -> str:
    """The line of Python that makes the architecture: timm's by name, another by its class."""
    given = [*before, f"num_classes={model.num_classes}"]
    given += [f"{name}={value!r}" for name, value in model.backbone.arguments.items()]
    if model.is_class:
        module = type(model.backbone.module)
        return f"{module.__module__}.{module.__qualname__}({', '.join(given)})"
    return f"timm.create_model({', '.join([repr(model.run.config.model.name), *given])})"
