"""Image files wherever they lie, listed in a table: `data=csv`.

The table has the columns `path` and `label`, and may have `domain` and `split`; other columns are not read. A path is
relative to the table's folder, and stays in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fedinit.data.file_source import FileSource
from fedinit.data.layout import ONE_DOMAIN
from fedinit.data.listing import Listing
from fedinit.data.names import composed
from fedinit.data.splits import Split, meaning
from fedinit.data.table import read_table
from fedinit.data.tree import Fault, OnDisk, Tree
from fedinit.errors import InputError, refuse
from fedinit.home import expand_home
from fedinit.opening import read_bytes
from fedinit.unreadable import unreadable

EXPECTED = "give a CSV file in UTF-8 with the columns path and label as data.root=..."
_COLUMNS = ("path", "label", "domain", "split")


@dataclass(frozen=True, kw_only=True)
class ImageList(FileSource):
    """`data=csv`: the images of the table at `root`, in the order of their paths."""

    name: Literal["csv"] = "csv"

    def listing(self, fault: Fault = refuse) -> tuple[Tree, Listing]:
        """Raises InputError for a table that cannot be read, with the line, and for a file that is not there."""
        if self.root is None:
            raise InputError(
                "data.root is not set: expected a CSV file with the columns path and label, domain and split if you "
                "like; give it on the command line as data.root=..."
            )
        file = expand_home("data.root", self.root)
        tree = OnDisk(file.parent)
        rows = dict(self._rows(file, fault))
        for name, (_, domain, _) in sorted(rows.items()):
            if (self.domains is None or domain in self.domains) and not (tree.root / name).is_file():
                fault(
                    InputError(f"data.root={file}: names {name!r}, which is not there; add the file or delete its row")
                )
                del rows[name]
        names = sorted(rows)
        for name, other in tree.doubles(names).items():
            wrong = f"{name!r} is the file of {other!r} by a symbolic link; delete one of the two rows"
            fault(InputError(f"data.root={file}: {wrong}"))
        classes, domains = [rows[name][0] for name in names], [rows[name][1] for name in names]
        splits: list[Split | None] = [rows[name][2] for name in names]
        listed = Listing(names, domains, classes, splits, sorted(set(domains)), sorted(set(classes)), [])
        return tree, listed

    def _rows(self, file: Path, fault: Fault) -> Mapping[str, tuple[str, str, Split | None]]:
        """{path: (label, domain, split)}."""
        where = f"data.root={file}"
        try:
            content = read_bytes(file)
        except FileNotFoundError as error:
            raise InputError(f"{where}: there is no such file; {EXPECTED}") from error
        except PermissionError as error:
            raise unreadable(file, error) from error
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise InputError(f"{where}: cannot be read ({why}); {EXPECTED}") from error
        rows: dict[str, tuple[str, str, Split | None]] = {}
        for line, row in read_table(where, content, ("path", "label")):
            path, label, domain, word = (row.get(column, "") for column in _COLUMNS)
            name = str(PurePosixPath(path.replace("\\", "/")))
            wrong, split = "", meaning(word)
            if not path or not label or ("domain" in row and not domain):
                wrong = f"has no {'path' if not path else 'label' if not label else 'domain'}; add it"
            elif name.startswith("/") or ".." in name.split("/"):
                wrong = f"{path!r} leads out of the table's folder; expected a path relative to it"
            elif word and split is None:
                wrong = f"split={word!r}; expected train, val or test, or nothing"
            elif name in rows:
                wrong = f"{name!r} has a row already; delete one of the two"
            if wrong:
                fault(InputError(f"{where}: line {line}: {wrong}"))
            else:
                rows[name] = (composed(label), composed(domain) or ONE_DOMAIN, split)
        if not rows:
            raise InputError(f"{where}: has no rows; expected an image a row")
        return rows
