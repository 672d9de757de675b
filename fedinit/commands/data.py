"""fedinit data: what images there are, and published sets out of their archives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from fedinit import standard_streams
from fedinit.commands.parsing import Parser
from fedinit.commands.places import own_place
from fedinit.data.layout import Layout
from fedinit.errors import InputError
from fedinit.telling import cell, tell
from fedinit.unreadable import mode_of, no_file

if TYPE_CHECKING:
    from rich.table import Table

    from fedinit.data.checking import Checked

ABOUT = """Images before a run: whether a folder is as it should be, and published sets in the splits of papers."""
CHECK = """Read every image of a folder, zip or CSV table that data=image_folder and data=csv take, and say how many
there are by domain, split and class, their sizes, which cannot be read, and which pictures (the same pixels, whatever
the file) are in two splits, so that what is trained on is tested on."""
CHECK_CODES = """Exit codes: 0 all is well, 1 something is wrong with the images, 2 it cannot be said what they are."""
PREPARE = """Make the folder domain/class/image with index.csv that data=image_folder reads out of a published set's
archives and lists, in the splits of LoRA-FAIR's experiments. It is whole or not there: stopped at any moment, the same
command goes on."""
PREPARE_EPILOG = """examples:
  fedinit data prepare domainnet downloads/ --to domainnet
  fedinit data prepare nico DG_Benchmark.zip --to nico
  fedinit data prepare officehome OfficeHomeDataset_10072016.zip --to officehome
  fedinit data prepare pacs PACS.zip pacs_label/ --to pacs

docs/reproducing.md says where the archives are, and what is done with each."""
SETS = ("domainnet", "nico", "officehome", "pacs")
WIDTH = 1000  # columns where nobody sees a terminal


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    check = commands.add_parser("check", help="what is there, and what is wrong", about=CHECK, epilog=CHECK_CODES)
    check.add_argument("root", type=Path, metavar="ROOT", help="a folder domain/class/image, a zip of one, or a table")
    check.add_argument("--layout", choices=get_args(Layout), default="auto", help="what the levels of folders are")
    prepare = commands.add_parser(
        "prepare", help="a published set out of its archives", about=PREPARE, epilog=PREPARE_EPILOG
    )
    prepare.add_argument("set", choices=SETS, help="which set")
    prepare.add_argument(
        "archives", type=Path, nargs="+", metavar="ARCHIVE", help="a zip, a list of a split, or a folder with some"
    )
    prepare.add_argument("--to", type=own_place, required=True, metavar="ROOT", help="the folder to make")
    prepare.add_argument("--domains", metavar="A,B", help="some of the set's domains; default: all")
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Check or prepare; the exit code. Raises InputError, one line, and OSError where a disk is full."""
    options = parser(name).parse_args(words)
    return (_check if options.command == "check" else _prepare)(options, console)


def _check(options: argparse.Namespace, console: Console) -> int:
    root = options.root.expanduser()
    if wrong := no_file(root, folders=True):
        raise InputError(f"{options.root}: {wrong}; give the folder, zip or table itself")
    if not mode_of(root):
        raise InputError(
            f"{options.root}: there is no such folder, zip or table; give a folder domain/class/image, a zip of "
            "one, or a CSV file with the columns path and label"
        )
    from fedinit.data.checking import Misfits, check
    from fedinit.data.image_folder import ImageFolder
    from fedinit.data.image_list import ImageList
    from fedinit.data.reporter import Reporter

    is_table = root.is_file() and root.suffix.lower() != ".zip"
    source = ImageList(root=str(root)) if is_table else ImageFolder(root=str(root), layout=options.layout)
    try:
        found = check(source, Reporter(console))
    except Misfits as error:
        if console.quiet or len(error.lines) == 1:
            raise
        for line in error.lines:
            tell(console, line)
        raise InputError(f"{options.root}: {len(error.lines):,} things do not fit, a line each on stdout") from error
    wide = Console(file=console.file, width=None if console.is_terminal else WIDTH, quiet=console.quiet)
    for table in _tables(found):
        wide.print(table)
    for line in [found.sizes(), *found.remarks]:
        tell(console, line)
    for line in [*found.unreadable(), *found.shared(), *found.gaps()]:
        tell(console, line)
    if verdict := found.verdict(named=console.quiet):
        errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        tell(errors, f"wrong: {verdict}")
        return 1
    tell(console, "all images can be read, and none is in two splits")
    return 0


def _tables(found: Checked) -> list[Table]:
    """Images by domain and split, and by class and domain, there as train/val/test, without splits that are not."""
    from rich.table import Table

    from fedinit.data.checking import SPLITS

    counts = found.counts()
    splits = [split for split in SPLITS if split in found.splits]
    by_domain = Table("domain", *splits, "classes")
    for domain in found.domain_names:
        sums = [sum(n for (d, _, s), n in counts.items() if (d, s) == (domain, split)) for split in splits]
        classes = len({kind for d, kind, _ in counts if d == domain})
        by_domain.add_row(cell(domain), *(f"{n:,}" for n in sums), str(classes))
    by_class = Table(f"class ({'/'.join(splits)})")
    for domain in found.domain_names:
        by_class.add_column(cell(domain))
    for label in found.class_names:
        cells = ["/".join(str(counts.get((d, label, s), 0)) for s in splits) for d in found.domain_names]
        by_class.add_row(cell(label), *cells)
    return [by_domain, by_class]


def _prepare(options: argparse.Namespace, console: Console) -> int:
    from fedinit.data.official import OFFICIAL
    from fedinit.data.prepared_place import refuse_no_folder, refuse_what_is_read
    from fedinit.data.preparing import plan, prepare
    from fedinit.data.reporter import Reporter, counted
    from fedinit.runs.own_files import refuse_own

    standard_streams.prints_beside()
    official, given = OFFICIAL[options.set], [path.expanduser() for path in options.archives]
    root = options.to.expanduser()
    refuse_no_folder(root)
    refuse_what_is_read(root, official, given)
    refuse_own("--to", root)
    made = plan(official, given, None if options.domains is None else options.domains.split(","))
    for remark in made.remarks:
        tell(console, remark)
    is_new = prepare(made, root, Reporter(console))
    held = {split: sum(s == split for s in made.splits.values()) for split in ("train", "val", "test")}
    classes, sites = ({name.split("/")[level] for name in made.splits} for level in (1, 0))
    text = ", ".join(f"{count:,} {split}" for split, count in held.items() if count)
    before = "" if is_new else ", prepared already"
    there = f"{counted(len(sites), 'domain')}, {counted(len(classes), 'class')}"
    text = f"{root}: {made.official.title}, {there}, {text}{before}"
    tell(console, text)
    return 0
