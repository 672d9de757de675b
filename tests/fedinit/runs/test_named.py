"""A folder that is no run's is said in the same words whatever the command; each says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from fedinit import cli
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1", "evaluation=none", "report=none")
GIVE = "give the folder of a run, as fedinit run prints it"
MODELS = ("predict {} a.png", "evaluate {}", "export {} --format merged")
COMMANDS = (*MODELS, "report {}", "compare {}", "watch {} --once")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


def told(capsys, command: str, folder: Path) -> str:
    capsys.readouterr()
    assert cli.main([word.format(folder) for word in command.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_there_and_a_file(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert told(capsys, command, tmp_path / "none").startswith(f"error: {tmp_path / 'none'}: no such folder; {GIVE}")
    assert told(capsys, command, tmp_path / "file").startswith(f"error: {tmp_path / 'file'}: is a file; {GIVE}")


def test_going_on_with_it(tmp_path, capsys):
    (tmp_path / "file").touch()
    for name, what in (("none", "no such folder"), ("file", "is a file")):
        assert run_sim.main([f"resume={tmp_path / name}"]) == 2
        why = f"{what}; expected auto, never or the folder of a run, as fedinit run prints it"
        assert capsys.readouterr().err == f"error: resume={tmp_path / name}: {why}\n"


def test_one_with_runs_below_names_them(whole, capsys):
    for command in MODELS:
        why = f"not the folder of a run, it has no config.yaml; runs below it: {whole}; {GIVE}"
        assert told(capsys, command, whole.parent) == f"error: {whole.parent}: {why}\n"


EMPTY = ("holds no keys and values", "its config.yaml is of something else")
SETTINGS = {
    "": EMPTY,
    "[1]": EMPTY,
    "a: [": ("is no YAML", "its config.yaml is no YAML"),
    "name: x": ("cannot be used (rounds: not set, and it has no default)", EMPTY[1]),
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_are_none_are_of_a_folder(text, whole, tmp_path, capsys):
    folder = Path(shutil.copytree(whole, tmp_path / whole.parent.name / whole.name))
    (folder / "config.yaml").write_text(text)
    what, reported = SETTINGS[text]
    why = f"its config.yaml {what}; the words that the run was begun with, fedinit run …, write it anew"
    for command in MODELS:
        assert told(capsys, command, folder) == f"error: {folder}: {why}\n"
    assert run_sim.main([f"resume={folder}"]) == 2
    assert capsys.readouterr().err == f"error: resume={folder}: {why}\n"
    assert f"{folder}: not the folder of a run; {reported}; {GIVE}" in told(capsys, "report {}", folder)
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0  # which they do
    assert (folder / "config.yaml").read_text() == (whole / "config.yaml").read_text().replace(
        str(whole.parent.parent), str(tmp_path)
    )


@pytest.mark.parametrize("word", ["resume=", "resume=''", "resume=' '"])
def test_an_empty_word_is_no_folder(word, whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)  # which it was taken for
    for more in ((), SHORT):
        assert run_sim.main([*more, word]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: resume=") and said.endswith(": expected auto, never or the folder of a run\n")


def test_a_file_of_the_backbone_where_none_is_wanted(tmp_path, capsys):
    """Of one inside the package none is taken, there or not; of another the file is to be there."""
    (tmp_path / "file").touch()
    inside = fedinit.run(*SHORT[len(WORDS) :], f"output_dir={tmp_path}", "evaluation.head_alone=false").folder
    for file in ("nope", "file"):
        said = told(capsys, f"predict {{}} a.png --checkpoint {tmp_path / file}", inside)
        why = "the backbone of this run, glyph_vit, is inside the package; leave it out"
        assert said == f"error: --checkpoint {tmp_path / file}: {why}\n"
    other = fedinit.run(*SHORT, f"output_dir={tmp_path}").folder
    said = told(capsys, "predict {} a.png --checkpoint nope", other)
    assert said == "error: --checkpoint nope: no such file; give the file of the run's backbone, vit_tiny_patch16_224\n"
