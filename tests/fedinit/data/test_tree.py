"""Links of a folder of images that lead round are told with what else does not fit, by every Python. Zips travel."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path

import pytest

from fedinit.cli import main
from fedinit.data.tree import Zip
from tests.support.trees import plant

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links are not so there")


def test_links_that_lead_round_are_listed_beside_those_that_lead_nowhere(tmp_path: Path, capsys) -> None:
    root = plant(tmp_path / "lo", "a/x", "a/y", "b/x", "b/y", count=4)
    assert main(["data", "check", str(root)]) in (0, 1), "the control: without links it can be said what the images are"
    (root / "a" / "x" / "round.png").symlink_to("round.png")
    (root / "b" / "one.png").symlink_to("two.png")
    (root / "b" / "two.png").symlink_to("one.png")
    (root / "b" / "y" / "gone.png").symlink_to("nothing.png")
    (root / "c").symlink_to("c")
    capsys.readouterr()
    assert main(["data", "check", str(root)]) == 2
    said = capsys.readouterr()
    for name in ("a/x/round.png", "b/one.png", "b/two.png", "b/y/gone.png", "c"):
        assert f"{name!r} is a symbolic link that leads out of the root or nowhere" in said.out
    assert "5 things do not fit, a line each on stdout" in said.err and said.err.count("\n") == 1
    out = f"output_dir={tmp_path / 'out'}"
    assert main(["run", "data=image_folder", f"data.root={root}", out]) == 2
    said = capsys.readouterr().err
    assert "'c' is a symbolic link that leads" in said and said.count("\n") == 1


def test_a_root_that_leads_round_or_nowhere_is_said_to(tmp_path: Path, capsys) -> None:
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "astray").symlink_to("nowhere")
    for name, told in (
        ("round", "is a link that leads back to itself"),
        ("astray", f"is a link to {tmp_path / 'nowhere'}, which is not there"),
    ):
        assert main(["data", "check", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert said == f"error: {tmp_path / name}: {told}; give the folder, zip or table itself\n"


def test_a_zip_is_opened_again_in_another_process_when_something_is_read(tmp_path: Path) -> None:
    """With mapped images, engine=ray sends its actors what they are decoded of."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/a/x.png", b"one")
    tree = Zip(tmp_path / "a.zip")
    tree.descend("top")
    sent = pickle.dumps(tree)
    assert pickle.loads(sent).read("a/x.png") == tree.read("a/x.png") == b"one"
    (tmp_path / "a.zip").unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(sent).read("a/x.png")
