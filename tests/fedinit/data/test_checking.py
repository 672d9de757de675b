"""`fedinit data check`: counts, what cannot be read, pictures in two splits, and the exit codes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedinit.cli import main
from fedinit.data.reporter import counted
from tests.support.releases import picture
from tests.support.trees import pack


def tree(root: Path) -> Path:
    """Two domains of two classes, three training images and one test image each, none like another."""
    seed = 0
    for domain in ("photo", "sketch"):
        for kind in ("cat", "dog"):
            for split, count in (("train", 3), ("test", 1)):
                for i in range(count):
                    file = root / split / domain / kind / f"{i}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(picture(seed := seed + 1))
    return root


def test_counts_and_sizes_of_a_tree_where_nothing_is_wrong(tmp_path: Path, capsys) -> None:
    root = tree(tmp_path / "tree")
    assert main(["data", "check", str(root)]) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in said.out.splitlines()]
    assert ["photo", "6", "2", "2"] in rows and ["cat", "3/1", "3/1"] in rows
    total = sum(p.stat().st_size for p in root.rglob("*.png"))
    assert f"16 images, {total / 1e3:.1f} kB; 3x2 pixels (width x height)\n" in said.out and not said.err
    assert main(["data", "check", str(pack(root, tmp_path / "a.zip"))]) == 0
    table = tmp_path / "table.csv"
    names = sorted(root.rglob("*.png"))
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name},{p.parts[-4]}\n" for p in names]
    table.write_text("path,label,split\n" + "".join(rows))
    assert main(["data", "check", str(table)]) == 0


def _renamed(root: Path) -> str:
    file = root / "train/photo/cat/0.png"
    (root / "test/sketch/dog/other.png").write_bytes(file.read_bytes())
    return "1 picture in more than one split (the same picture: 'test/sketch/dog/other.png' (test), 'train/photo/cat"


def _other_format(root: Path) -> str:
    with Image.open(root / "train/photo/cat/0.png") as image:
        image.convert("RGBA").save(root / "test/photo/cat/new.bmp")
    return "1 picture in more than one split (the same picture: 'test/photo/cat/new.bmp' (test)"


def _other_endian(root: Path) -> str:
    levels = np.arange(1000, 2024, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(levels).save(root / "train/photo/cat/deep.png")
    Image.frombytes("I;16B", (32, 32), levels.astype(">u2").tobytes()).save(root / "test/photo/cat/deep.tif")
    return "1 picture in more than one split (the same picture: 'test/photo/cat/deep.tif' (test)"


def _cut(root: Path) -> str:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(out, "jpeg")
    (root / "train/photo/cat/cut.jpg").write_bytes(out.getvalue()[:-500])
    (root / "train/photo/dog/empty.png").write_bytes(b"")
    return "2 images cannot be read ('train/photo/cat/cut.jpg' cannot be read: image file is truncated"


def _untrained(root: Path) -> str:
    (root / "test/photo/bird").mkdir()
    (root / "test/photo/bird/0.png").write_bytes(picture(999))
    return "1 gap (class 'bird' has no training images)"


def _unjudged(root: Path) -> str:
    (root / "train/photo/bird").mkdir()
    (root / "train/photo/bird/0.png").write_bytes(picture(999))
    return "1 gap (class 'bird' has no test images)"


@pytest.mark.parametrize("harm", [_renamed, _other_format, _other_endian, _cut, _untrained, _unjudged])
def test_what_is_wrong_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path, capsys, harm) -> None:
    root = tree(tmp_path / "tree")
    message = harm(root)
    assert main(["data", "check", str(root)]) == 1
    said = capsys.readouterr()
    what, _, example = message.partition(" (")
    assert said.err == f"wrong: {what}\n" and example.rstrip(")") in said.out, "each is told once"
    assert main(["data", "check", "-q", str(root)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"wrong: {message}") and said.err.count("\n") == 1 and not said.out


def test_the_same_picture_twice_in_one_split_is_not_wrong(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (root / "train/photo/cat/again.png").write_bytes((root / "train/photo/cat/0.png").read_bytes())
    assert main(["data", "check", str(root)]) == 0


def test_a_split_that_only_the_hash_of_a_name_makes_counts_too(tmp_path: Path, capsys) -> None:
    for i in range(12):
        file = tmp_path / "tree" / "photo" / "cat" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(5))
    assert main(["data", "check", str(tmp_path / "tree")]) == 1
    assert "1 picture in more than one split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("gone", "there is no such folder, zip or tab"), ("", "no images there")]
)
def test_what_is_no_data_is_exit_code_2(tmp_path: Path, capsys, name: str, message: str) -> None:
    assert main(["data", "check", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_one_of_a_kind_is_counted_as_one():
    assert [counted(n, "round") for n in (0, 1, 1500)] == ["0 rounds", "1 round", "1,500 rounds"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]


def test_all_that_does_not_fit_is_listed_together(tmp_path: Path, capsys) -> None:
    root = tree(tmp_path / "tree")
    (root / "train" / "photo" / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "sketch" / "dog" / "out.png").symlink_to("/etc/hostname")
    for name in ("emu", "fox"):
        (root / "train" / "photo" / name).mkdir()
    (root / "train" / "lost.png").write_bytes(picture(77))
    (root / "train" / "photo" / "cat" / "deep").mkdir()
    assert main(["data", "check", str(root)]) == 2
    said = capsys.readouterr()
    parts = ("gone.png", "out.png", "photo/emu", "photo/fox", "train/lost.png", "cat/deep")
    assert all(sum(part in line for line in said.out.splitlines()) == 1 for part in parts), said.out
    assert said.err == f"error: {root}: 6 things do not fit, a line each on stdout\n"
    assert main(["-q", "data", "check", str(root)]) == 2
    assert capsys.readouterr().err.startswith("error: 6 things do not fit: ")
    (root / "train" / "photo" / "cat" / "gone.png").unlink()
    assert main(["run", "data=image_folder", f"data.root={root}", "preview=true"]) == 2
    assert capsys.readouterr().err.count("data.root=") == 1, "a run is refused by the first"


def test_all_rows_of_a_table_that_do_not_fit_are_listed_together(tmp_path: Path, capsys) -> None:
    names = [path.relative_to(tmp_path) for path in sorted(tree(tmp_path / "tree").rglob("*.png"))]
    rows = [f"{name},{name.parts[-2]},{name.parts[-3]}," for name in names]
    rows += ["no/such.png,cat,photo,", "../a.png,cat,photo,", f"{names[0]},cat,photo,", f"{names[0]},,photo,"]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,domain,split", *rows, "x.png,cat,photo,trian"]) + "\n")
    assert main(["data", "check", str(tmp_path / "table.csv")]) == 2
    said = capsys.readouterr()
    assert said.out.count("table.csv: ") == 5 and said.err.endswith("5 things do not fit, a line each on stdout\n")
