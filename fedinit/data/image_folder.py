"""Images of one's own: a folder root/domain/class/image, or a .zip that holds such a tree.

The zip may have one leading folder, which is stripped. A level of folders whose names mean a split (train, val, test)
may stand anywhere: root/split/class, root/domain/split/class, root/split/domain/class (fedinit/data/layout.py). Without
one, an index.csv at the top with the columns `path` and `split` says the split, or lists such as DomainNet's
clipart_train.txt (fedinit/data/list_files.py); else it goes by the name (fedinit/data/splits.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedinit.data.decoding import suffixes
from fedinit.data.file_source import FileSource
from fedinit.data.layout import Layout
from fedinit.data.listing import Listing, list_images
from fedinit.data.tree import Fault, Tree, open_tree
from fedinit.errors import refuse


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileSource):
    """`data=image_folder`: the images under `root`, a folder or a zip, in its domains and classes, sorted by path."""

    name: Literal["image_folder"] = "image_folder"
    layout: Layout = "auto"  # what the levels of folders are; auto: names that mean a split are splits

    def listing(self, fault: Fault = refuse) -> tuple[Tree, Listing]:
        """Raises InputError on a root that is missing or of another shape, a link out of it, an empty class folder of a
        domain that is used, an index or a list that does not fit."""
        tree = open_tree(self.root, fault)
        return tree, list_images(tree, suffixes(), self.layout, self.domains)
