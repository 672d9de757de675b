"""Published sets of images in several domains, as their authors' archives and lists have them.

`fedinit data prepare` makes folders of them in the splits that LoRA-FAIR's experiments have (Bian et al. 2025, arXiv
2411.14961, section 5, after FedRA, arXiv 2311.11227): DomainNet's first hundred classes by the numbers in its lists,
and NICO++'s sixty in six contexts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedinit.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Official:
    """title: as papers write it.
    domains: the names of its folders.
    classes: how many the prepared folder has, of a whole set.
    lists: {the end of a list's name, behind a domain: the split of its images}.
    not_read: the ends of lists that come with the set and say nothing that is needed.
    lists_needed: whether nothing can be made without them; else a fifth of each domain is held out by name.
    numbered: whether of more classes those with the lowest numbers in the lists are taken.
    spoilt: images that the lists name and that are passed over.
    archives: what is to be given, for a person who gave something else.
    """

    title: str
    domains: tuple[str, ...]
    classes: int
    lists: Mapping[str, Split] = field(default_factory=dict)
    not_read: tuple[str, ...] = ()
    lists_needed: bool = False
    numbered: bool = False
    spoilt: frozenset[str] = frozenset()
    archives: str

    def split_of(self, file: str) -> Split | None:
        """The split of the images in a list of this name; None for other files."""
        ends = (end for end in self.lists if any(file == domain + end for domain in self.domains))
        return next((self.lists[end] for end in ends), None)


OFFICIAL: dict[str, Official] = {
    # Peng et al. 2019, ai.bu.edu/M3SDA: a zip a domain (clipart/aircraft_carrier/clipart_001_000001.jpg) and two lists.
    "domainnet": Official(
        title="DomainNet",
        domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        classes=100,
        lists={"_train.txt": "train", "_test.txt": "test"},
        lists_needed=True,
        numbered=True,
        archives="clipart.zip, clipart_train.txt, clipart_test.txt and so for each of six domains (ai.bu.edu/M3SDA)",
    ),
    # Zhang et al. 2023, nicochallenge.com: NICO_DG/autumn/airplane/*.jpg beside NICO_DG_official/autumn_train.txt; the
    # challenge's track_1 has public_dg_0416/train/autumn/airplane/*.jpg, and test images without labels.
    "nico": Official(
        title="NICO++",
        domains=("autumn", "dim", "grass", "outdoor", "rock", "water"),
        classes=60,
        lists={"_train.txt": "train", "_test.txt": "test"},
        archives="the zip with NICO_DG and NICO_DG_official, or track_1 of the challenge (nicochallenge.com)",
    ),
    # Venkateswara et al. 2017, hemanthdv.org/officeHomeDataset.html; no lists.
    "officehome": Official(
        title="Office-Home",
        domains=("Art", "Clipart", "Product", "Real World"),
        classes=65,
        archives="OfficeHomeDataset_10072016.zip (hemanthdv.org)",
    ),
    # Li et al. 2017. Its *_test_kfold.txt name all images of a domain, those of the two other lists, for
    # leave-one-domain-out (partition.test_domains), so they are no split.
    "pacs": Official(
        title="PACS",
        domains=("art_painting", "cartoon", "photo", "sketch"),
        classes=7,
        lists={"_train_kfold.txt": "train", "_crossval_kfold.txt": "val"},
        not_read=("_test_kfold.txt",),
        spoilt=frozenset({"sketch/dog/n02103406_4068-1.png"}),  # shows something else; others leave it out too (Dassl)
        archives="PACS.zip, with its lists in it or beside it, such as photo_train_kfold.txt",
    ),
}
