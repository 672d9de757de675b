"""No name of a folder reaches a terminal as it is: by the commands that print names, and by who prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fedinit.cli import main
from fedinit.exports.card import _plain
from fedinit.telling import cell, tell
from tests.support.recorded_runs import config, write_run
from tests.support.source import nodes
from tests.support.trees import plant

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "x\x1b[31mRED\rY\u202eZ\n[b]:dog:\u2066\x9b2J"
UNSEEN = set("\x1b\r\u202e\u2066\x9b")


def harmless(text: str) -> bool:
    return not UNSEEN & set(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A tree in which a domain, a class and a file are called so."""
    root = plant(
        tmp_path_factory.mktemp("trees") / "esc", f"{HOSTILE}/b", f"{HOSTILE}/{HOSTILE}", f"photo/{HOSTILE}", "photo/b"
    )
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (4, 4), (10 * i, i, 7)).save(path)
    (root / "photo" / "b" / f"{HOSTILE}.png").write_bytes(b"no picture")
    return root


def test_a_line_is_one_and_a_cell_is_as_it_stands(capsys):
    tell(Console(width=20), HOSTILE)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and harmless(out) and "[b]:dog:" in out
    assert cell("a[b]:dog:").plain == "a[b]:dog:" and harmless(cell(HOSTILE).plain)


def test_data_check_shows_names(hostile, capsys):
    assert main(["data", "check", str(hostile)]) == 1
    said = capsys.readouterr()
    assert harmless(said.out + said.err) and "x�[31mRED" in said.out and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["data.classes=[q]"], ["data.domains=[q]"], ["data.domains=[photo]", "data.classes=3"]]
)
def test_a_run_refuses_in_one_line(hostile, tmp_path, capsys, words):
    words = ["run", "data=image_folder", f"data.root={hostile}", "model=glyph_vit", *words, f"output_dir={tmp_path}"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert harmless(said.out + said.err) and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_comparisons_reports_and_watching_show_names(tmp_path, capsys):
    first = write_run(tmp_path / "a", config(rounds=2), domains=(HOSTILE, "plain"), recorded=False)
    other = write_run(tmp_path / "b", config(rounds=2), domains=("other", "plain"), recorded=False)
    for words in (["compare", str(first)], ["compare", str(first), str(other)], ["watch", str(first), "--once"]):
        main(words)
        said = capsys.readouterr()
        assert harmless(said.out + said.err) and "x�[31mRED" in said.out + said.err
        assert said.err.count("\n") <= 1


def test_a_model_card_has_no_control_characters():
    assert harmless(_plain(HOSTILE)) and "\n" not in _plain(HOSTILE)


def test_who_prints_on_a_console_prints_no_text_of_its_own():
    """What is a variable goes by `tell`, or is a table; what Console.print gets as a text is written out."""
    found = []
    for path in [*(ROOT / "fedinit").rglob("*.py"), ROOT / "run_sim.py", ROOT / "strategies" / "server_app.py"]:
        for node in nodes(path):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "print"):
                continue
            if any(isinstance(word.value, ast.Constant) and word.arg == "markup" for word in node.keywords):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [place.partition(":")[0] for place in found if "deploy" not in place] == ["fedinit/telling.py"]
