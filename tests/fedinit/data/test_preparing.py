"""Published sets out of small archives of their layouts: which images, which split, whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from fedinit.cli import main
from fedinit.data import archives, preparing
from fedinit.data.official import OFFICIAL
from fedinit.data.preparing import plan, prepare
from fedinit.data.reporter import Reporter
from fedinit.data.table import read_table
from fedinit.data.tree import Zip
from fedinit.errors import InputError
from tests.support import releases
from tests.support.trees import load_folder, sides


def index(root: Path) -> dict[str, str]:
    rows = read_table("index", (root / "index.csv").read_bytes(), ("path", "split"))
    return {row["path"]: row["split"] for _, row in rows}


def made(name: str, *given: Path, to: Path) -> Path:
    assert main(["data", "prepare", name, *map(str, given), "--to", str(to)]) == 0
    return to


def test_domainnets_first_classes_go_by_the_lists_numbers_and_not_by_the_alphabet(tmp_path: Path) -> None:
    root = made("domainnet", releases.domainnet(tmp_path / "down"), to=tmp_path / "root")
    domains = OFFICIAL["domainnet"].domains
    assert index(root) == {
        f"{d}/{kind}/{kind}_{i}.png": split
        for d in domains
        for kind in ("airplane", "zigzag")
        for i, split in enumerate(("train", "test"))
    }
    assert sides(load_folder(root)) == {(d, kind): (1, 1) for d in domains for kind in ("airplane", "zigzag")}
    # The control: the alphabet would take another class.
    assert sorted(["airplane", "The_Eiffel_Tower", "zigzag", "ant"])[0] == "The_Eiffel_Tower"


def test_what_is_written_are_the_archives_bytes(tmp_path: Path) -> None:
    root = made("pacs", releases.pacs(tmp_path / "PACS.zip"), to=tmp_path / "root")
    tree = Zip(tmp_path / "PACS.zip")
    assert all((root / name).read_bytes() == tree.read(f"kfold/{name}") for name in index(root))


def test_nicos_lists_are_found_in_the_archive_and_a_class_may_have_blanks(tmp_path: Path) -> None:
    root = made("nico", releases.nico(tmp_path / "DG.zip"), to=tmp_path / "root")
    classes = ("dog", "hot air balloon")
    assert sides(load_folder(root)) == {(d, kind): (1, 1) for d in OFFICIAL["nico"].domains for kind in classes}


def test_the_challenges_nico_has_no_lists_and_a_fifth_is_held_out_as_a_run_would(tmp_path: Path, capsys) -> None:
    members: dict[str, bytes | str] = {"track_1/public_dg_0416/public_test_flat/0.png": releases.picture(1)}
    for domain in OFFICIAL["nico"].domains:
        members |= releases.images(domain, ["cat", "dog"], "track_1/public_dg_0416/train/", count=8)
    root = made("nico", releases.archive(tmp_path / "track_1.zip", members), to=tmp_path / "root")
    assert "no lists of splits: 20%" in capsys.readouterr().out
    assert len(index(root)) == 6 * 2 * 8 and set(index(root).values()) == {"train", "test"}
    by_list = sides(load_folder(root))
    (root / "index.csv").unlink()
    assert sides(load_folder(root)) == by_list


def test_office_homes_domains_keep_their_names(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"OfficeHomeDataset_10072016/ImageInfo.csv": "a,b\n"}
    for domain in OFFICIAL["officehome"].domains:
        members |= releases.images(domain, ["Bed", "Bike"], "OfficeHomeDataset_10072016/", count=9)
    root = made("officehome", releases.archive(tmp_path / "OfficeHome.zip", members), to=tmp_path / "root")
    assert set(load_folder(root).domain_names) == {"Art", "Clipart", "Product", "Real World"}


def test_pacs_test_lists_name_all_and_are_no_split(tmp_path: Path) -> None:
    root = made("pacs", releases.pacs(tmp_path / "PACS.zip"), to=tmp_path / "root")
    assert Counter(index(root).values()) == {"train": 8, "val": 8}


def test_pacs_test_lists_may_be_given_by_name(tmp_path: Path, capsys) -> None:
    """As a shell's *.txt gives them."""
    archive = releases.pacs(tmp_path / "PACS.zip")
    lists = [tmp_path / f"{domain}_test_kfold.txt" for domain in ("photo", "sketch")]
    for file in lists:
        file.write_text("nobody reads this\n")
    root = made("pacs", archive, *lists, to=tmp_path / "root")
    assert Counter(index(root).values()) == {"train": 8, "val": 8}
    (tmp_path / "other_test_kfold.txt").touch()
    words = [
        "data",
        "prepare",
        "pacs",
        str(archive),
        str(tmp_path / "other_test_kfold.txt"),
        "--to",
        str(tmp_path / "x"),
    ]
    capsys.readouterr()
    assert main(words) == 2 and "is no archive and no list of PACS" in capsys.readouterr().err


def test_how_many_of_how_many_are_taken_and_which_are_not_is_a_line(tmp_path: Path, capsys) -> None:
    made("pacs", releases.pacs(tmp_path / "PACS.zip"), to=tmp_path / "root")
    assert "all 16 images of the archives are taken\n" in capsys.readouterr().out
    spoilt = "sketch/dog/n02103406_4068-1.png"
    with zipfile.ZipFile(tmp_path / "PACS.zip", "a") as file:
        file.writestr(f"kfold/{spoilt}", releases.picture(99))
    root = made("pacs", tmp_path / "PACS.zip", to=tmp_path / "with")
    line = f"16 of 17 images of the archives are taken; left out: 1 known to be spoilt ('{spoilt}')\n"
    assert line in capsys.readouterr().out and not (root / spoilt).exists()
    made("domainnet", releases.domainnet(tmp_path / "down"), to=tmp_path / "net")
    out = capsys.readouterr().out
    assert "of classes beyond the first 100 ('" in out and "known to be spoilt" not in out
    with zipfile.ZipFile(tmp_path / "PACS.zip", "a") as file:
        file.writestr("kfold/photo/dog/unlisted.png", releases.picture(98))
    made("pacs", tmp_path / "PACS.zip", to=tmp_path / "more")
    assert "16 of 18 " in (out := capsys.readouterr().out) and "1 in no list ('photo/dog/unlisted.png')" in out


def test_a_run_takes_the_folder(tmp_path: Path) -> None:
    root = made("pacs", releases.pacs(tmp_path / "PACS.zip"), to=tmp_path / "root")
    assert sides(load_folder(root)) == {(d, k): (1, 1) for d in OFFICIAL["pacs"].domains for k in ("dog", "person")}


def test_a_second_time_nothing_is_done_and_other_archives_are_refused(tmp_path: Path, capsys) -> None:
    given = releases.pacs(tmp_path / "PACS.zip")
    root = made("pacs", given, to=tmp_path / "root")
    stamp = os.stat(root / "index.csv").st_mtime_ns
    made("pacs", given, to=root)
    assert "prepared already" in capsys.readouterr().out and os.stat(root / "index.csv").st_mtime_ns == stamp
    assert main(["data", "prepare", "nico", str(releases.nico(tmp_path / "n.zip")), "--to", str(root)]) == 2
    assert "is there already, and not made of these archives" in capsys.readouterr().err
    assert os.stat(root / "index.csv").st_mtime_ns == stamp


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_stop_leaves_no_folder_and_the_same_command_goes_on(tmp_path: Path, monkeypatch, stop) -> None:
    ready = plan(OFFICIAL["pacs"], [releases.pacs(tmp_path / "PACS.zip")])
    read, seen = type(ready.tree).pieces, []

    def stopping(tree, name):
        if len(seen) == 5:
            raise stop
        seen.append(name)
        return read(tree, name)

    monkeypatch.setattr(type(ready.tree), "pieces", stopping)
    root = tmp_path / "root"
    with pytest.raises((KeyboardInterrupt, OSError)) as raised:
        prepare(ready, root, Reporter(None))
    assert not root.exists() and (tmp_path / "root.partial").is_dir()
    if isinstance(stop, OSError):
        assert "the disk is full" in str(raised.value) and "give the same command again" in str(raised.value)
    half = tmp_path / "root.partial" / seen[2]
    half.write_bytes(half.read_bytes()[:-1] + b"x")  # of the right size, and not what the archive has
    again: list[str] = []
    monkeypatch.setattr(type(ready.tree), "pieces", lambda tree, name: (again.append(name), read(tree, name))[1])
    assert prepare(ready, root, Reporter(None))
    assert set(again) == set(ready.names) - set(seen) | {seen[2]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["PACS.zip", "root"]
    whole = made("pacs", tmp_path / "PACS.zip", to=tmp_path / "whole")
    for name in [*ready.names, "index.csv"]:
        assert (root / name).read_bytes() == (whole / name).read_bytes()


def test_what_another_set_left_unfinished_is_not_mixed_in(tmp_path: Path) -> None:
    partial = tmp_path / "root.partial"
    made("nico", releases.nico(tmp_path / "n.zip"), to=partial)
    root = made("pacs", releases.pacs(tmp_path / "PACS.zip"), to=tmp_path / "root")
    assert {p.name for p in root.iterdir() if p.is_dir()} == set(OFFICIAL["pacs"].domains)
    partial.mkdir()
    (partial / "mine.txt").write_text("kept")
    assert main(["data", "prepare", "pacs", str(tmp_path / "PACS.zip"), "--to", str(tmp_path / "root")]) == 0
    shutil.rmtree(root)
    assert main(["data", "prepare", "pacs", str(tmp_path / "PACS.zip"), "--to", str(root)]) == 2
    assert (partial / "mine.txt").read_text() == "kept"


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    given = releases.pacs(tmp_path / "PACS.zip")
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "root")]) == 1
    said = capsys.readouterr().err
    assert "16.0 MB are needed and 1.0 kB free" in said and said.count("\n") == 1
    assert not list((tmp_path / "root.partial").glob("*/"))


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/a/photo/dog/1.png", "photo\\..\\dog\\1.png", "C:/photo/dog/1.png"]
)
def test_an_archive_whose_names_lead_out_is_refused(tmp_path: Path, capsys, name: str) -> None:
    given = releases.archive(tmp_path / "down" / "PACS.zip", {name: releases.picture(0)})
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "root")]) == 2
    assert "leads out of the folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["down", "PACS.zip"]


def test_wrong_archives_are_one_line_and_nothing_is_made(tmp_path: Path, capsys) -> None:
    page = tmp_path / "PACS.zip"
    page.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    other = releases.nico(tmp_path / "nico.zip")
    down = releases.domainnet(tmp_path / "down")
    lost = shutil.copytree(down, tmp_path / "lost")
    (lost / "sketch_test.txt").unlink()
    unknown = shutil.copytree(down, tmp_path / "unknown")
    (unknown / "real_test.txt").write_text("real/airplane/gone.png 0\n")
    bare = shutil.copytree(down, tmp_path / "bare")
    (bare / "real_test.txt").write_text("real/airplane/airplane_1.png\n")
    twice = [down / "clipart.zip", releases.archive(tmp_path / "b.zip", {"clipart/ant/ant_0.png": b"other"})]
    cases = {
        (page,): ("pacs", "is no whole zip"),
        (other,): ("pacs", "PACS: no images of art_painting, cartoon, photo, sketch"),
        (tmp_path / "none.zip",): ("pacs", "there is no such file"),
        (down / "clipart.zip", down / "clipart_train.txt"): ("domainnet", "no images of infograph, painting"),
        (lost,): ("domainnet", "no list …_test.txt of sketch"),
        (unknown,): ("domainnet", "line 1 of 'real_test.txt': no image 'real/airplane/gone.png'"),
        (bare,): ("domainnet", "line 1 of 'real_test.txt' is 'real/airplane/airplane_1.png'; expected an image and"),
        tuple(twice): ("domainnet", "has another 'clipart/ant/ant_0.png' than"),
        (down / "clipart_train.txt",): ("officehome", "is no archive and no list of Office-Home"),
    }
    for given, (name, message) in cases.items():
        assert main(["data", "prepare", name, *map(str, given), "--to", str(tmp_path / "root")]) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
        assert not list(tmp_path.glob("root*"))


def test_a_damaged_archive_is_named_and_the_folder_is_not_there(tmp_path: Path, capsys) -> None:
    given = releases.pacs(tmp_path / "PACS.zip")
    content, what = given.read_bytes(), releases.images("cartoon", ["dog"])["cartoon/dog/dog_0.png"]
    given.write_bytes(content.replace(what, what[:-20] + b"x" * 20))
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "root")]) == 2
    said = capsys.readouterr().err
    assert "PACS.zip: 'kfold/cartoon/dog/dog_0.png' cannot be read" in said and "download it again" in said
    assert not (tmp_path / "root").exists()


def test_some_domains_alone_when_they_are_named(tmp_path: Path) -> None:
    down = releases.domainnet(tmp_path / "down")
    given = [str(p) for p in sorted(down.glob("real*"))]
    assert main(["data", "prepare", "domainnet", *given, "--to", str(tmp_path / "r"), "--domains", "real"]) == 0
    assert {name.split("/")[0] for name in index(tmp_path / "r")} == {"real"}
    with pytest.raises(InputError, match="--domains photo: DomainNet has clipart"):
        plan(OFFICIAL["domainnet"], [down], ["photo"])


def with_member(tmp_path: Path, name: str, content: bytes, packed: int = zipfile.ZIP_STORED) -> Path:
    """PACS.zip, with one more member."""
    given = releases.pacs(tmp_path / "PACS.zip")
    with zipfile.ZipFile(given, "a") as file:
        file.writestr(name, content, packed)
    return given


@pytest.mark.parametrize("name", ["kfold/photo/dog/zeros.png", "kfold/photo_test_kfold.txt"])
def test_a_member_that_is_larger_than_any_image_is_refused_and_nothing_is_left(tmp_path: Path, capsys, name) -> None:
    given = tmp_path / "PACS.zip"
    members = {} if name.endswith("png") else {"photo/dog/1.png": releases.picture(1)}
    with zipfile.ZipFile(releases.archive(given, members), "a", zipfile.ZIP_DEFLATED) as file:
        with file.open(name.replace("test", "train"), "w") as member:
            for _ in range(archives.LARGEST // 1_000_000 + 1):
                member.write(bytes(1_000_000))
    tracemalloc.start()
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "root")]) == 2
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    said = capsys.readouterr().err
    assert "has 65.0 MB, and no image or list of these sets has more than 64.0 MB" in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["PACS.zip"]


def test_an_archive_of_which_far_more_comes_than_it_has_is_refused(tmp_path: Path, capsys) -> None:
    given = with_member(tmp_path, "kfold/photo/dog/zeros.png", bytes(20_000_000), zipfile.ZIP_DEFLATED)
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "root")]) == 2
    said = capsys.readouterr().err
    assert "PACS.zip: 20.0 MB would come out of" in said and "more than 100 times" in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["PACS.zip"]


def test_a_large_file_that_nobody_wants_is_no_reason_to_refuse(tmp_path: Path) -> None:
    given = with_member(tmp_path, "kfold/readme.bin", bytes(20_000_000), zipfile.ZIP_DEFLATED)
    assert len(index(made("pacs", given, to=tmp_path / "root"))) == 16


def test_a_large_image_is_never_whole_in_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "PIECE", 1 << 16)
    monkeypatch.setattr(preparing, "PIECE", 1 << 16)
    large = os.urandom(16_000_000)
    members = {"Art/Bed/1.png": large} | {f"{d}/Bed/2.png": b"2" for d in OFFICIAL["officehome"].domains}
    ready = plan(OFFICIAL["officehome"], [releases.archive(tmp_path / "o.zip", members)])
    tracemalloc.start()
    assert prepare(ready, tmp_path / "root", Reporter(None)) and not prepare(ready, tmp_path / "root", Reporter(None))
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    assert (tmp_path / "root" / "Art" / "Bed" / "1.png").read_bytes() == large


def test_a_damaged_file_of_a_prepared_folder_is_named_and_written_anew_once_it_is_deleted(tmp_path: Path, capsys):
    given = releases.pacs(tmp_path / "PACS.zip")
    root = made("pacs", given, to=tmp_path / "root")
    whole = {name: (root / name).read_bytes() for name in [*index(root), "index.csv"]}
    words = ["data", "prepare", "pacs", str(given), "--to", str(root)]
    for name, content in {
        "photo/dog/dog_0.png": b"y",
        "sketch/dog/dog_1.png": whole["sketch/dog/dog_1.png"][:-1] + b"x",  # of the right size
        "index.csv": whole["index.csv"].replace(b"train", b"test"),
    }.items():
        (root / name).write_bytes(content)
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"{name!r} is not as written out of these archives; delete it, or the whole folder" in said
        assert said.count("\n") == 1 and (root / name).read_bytes() == content
        (root / name).unlink()
        assert main(words) == 0 and "prepared already" not in capsys.readouterr().out
        assert (root / name).read_bytes() == whole[name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["PACS.zip", "root"]
    for name in sorted(index(root))[:5]:
        (root / name).write_bytes(b"y")
    assert main(words) == 2
    assert "and 2 more are not as written" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["clipart/../../x.png 0", "/clipart/x.png 0", "../../x.png 0", "clipart//x.png 0"])
def test_a_line_that_leads_out_of_the_folder_is_refused_with_its_number(tmp_path: Path, capsys, line: str) -> None:
    down = releases.domainnet(tmp_path / "down")
    (down / "clipart_train.txt").write_text(f"clipart/airplane/airplane_0.png 0\n{line}\n")
    assert main(["data", "prepare", "domainnet", str(down), "--to", str(tmp_path / "root")]) == 2
    said = capsys.readouterr().err
    assert f"line 2 of 'clipart_train.txt': no image {line.split()[0]!r}" in said and said.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_remarked_on_or_refused(tmp_path: Path, capsys) -> None:
    name = "kfold/photo/dog/dog_0.png"
    same = releases.images("photo", ["dog", "person"])["photo/dog/dog_0.png"]
    given = with_member(tmp_path, name, same)
    for note in ("one", "another"):  # which nobody reads
        with zipfile.ZipFile(given, "a") as file:
            file.writestr("kfold/notes.txt", note)
    made("pacs", given, to=tmp_path / "root")
    assert "1 file twice in an archive, with the same bytes, taken once" in capsys.readouterr().out
    given = with_member(tmp_path / "other", name, b"other")
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert f"has two different members {name!r}" in said and said.count("\n") == 1
    with pytest.raises(InputError, match="has two different members"):
        load_folder(given)


def backslashed(path: Path, system: int) -> Path:
    """PACS.zip with backslashes in its names. system: that its members say they are from."""
    there = Zip(releases.pacs(path.with_name("there.zip")))
    with zipfile.ZipFile(path, "w") as file:
        for name in there.files:
            member = zipfile.ZipInfo(name.replace("/", "\\"))
            member.create_system = system
            file.writestr(member, there.read(name))
    return path


def test_the_backslashes_of_windows_part_folders_and_others_are_refused_for_what_they_are(tmp_path: Path, capsys):
    root = made("pacs", backslashed(tmp_path / "w.zip", 0), to=tmp_path / "root")
    other = made("pacs", tmp_path / "there.zip", to=tmp_path / "other")
    assert index(root) == index(other)
    assert all((root / name).read_bytes() == (other / name).read_bytes() for name in index(root))
    capsys.readouterr()
    given = backslashed(tmp_path / "u.zip", 3)
    assert main(["data", "prepare", "pacs", str(given), "--to", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "with a backslash in its name, and not from Windows" in said and "leads out" not in said


def test_a_place_where_nothing_can_be_written_is_said_to_be_one(tmp_path: Path, capsys) -> None:
    given = releases.pacs(tmp_path / "PACS.zip")
    places = [given / "root", *([Path("/proc/q")] if Path("/proc/self").exists() else [])]
    for place in places:
        assert main(["data", "prepare", "pacs", str(given), "--to", str(place)]) == 2
        said = capsys.readouterr().err
        assert f"{place}: cannot be made (" in said and "another process" not in said and said.count("\n") == 1
