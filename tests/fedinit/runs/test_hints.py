"""What a person is told to do next works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedinit
import run_sim
from fedinit import cli
from fedinit.runs.hints import way_on
from tests.support.recorded_runs import config, write_run
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=2", "client.max_steps=1", "engine.lanes=1", "report=none", "evaluation.head_alone=false")


@pytest.mark.parametrize("steps", [1, 2])  # a norm beyond bounds, and NaN
def test_a_run_that_diverged_is_not_gone_on_with(steps, tmp_path, capsys):
    assert run_sim.main([*SHORT, "client.lr=1e30", f"client.max_steps={steps}", f"output_dir={tmp_path}"]) == 1
    assert "; a lower client.lr may help" in capsys.readouterr().err
    (folder,) = (tmp_path / "digits").iterdir()
    told = "the updates of its round 1 were NaN, infinite or beyond what is taken, and would be again: begin a run with"
    assert cli.main(["predict", str(folder), "a.png"]) == 2
    err = capsys.readouterr().err
    assert told in err and "resume=" not in err
    assert cli.main(["watch", str(folder)]) == 1
    out = capsys.readouterr().out
    assert told in out and "resume=" not in out


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"kind": "refused", "round": 1, "code": "not_finite"}],  # it went on behind that
        [{"kind": "refused", "round": 3, "code": "not_finite"}, {"kind": "refused", "round": 3, "code": "shape"}],
    ],
)
def test_one_that_was_stopped_is(entries, tmp_path):
    folder = write_run(tmp_path / "a", config(), reached=2, recorded=False)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert way_on(folder) == f"fedinit run resume={folder} goes on with it"
    assert way_on(tmp_path / "absent") == f"fedinit run resume={tmp_path / 'absent'} goes on with it"


@pytest.fixture
def images(tmp_path) -> Path:
    draw = np.random.default_rng(0)
    for place in ("a/x", "a/y", "b/x", "b/y"):
        folder = tmp_path / "images" / place
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw.integers(0, 255, (24, 24), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_of_moved_images_it_is_said_how_to_name_their_place(images, tmp_path, capsys):
    words = ["rounds=1", "client.max_steps=1", "engine.lanes=1", "report=none", "evaluation.head_alone=false"]
    run = fedinit.run("data=image_folder", f"data.root={images}", *words, f"output_dir={tmp_path / 'out'}")
    moved = images.rename(tmp_path / "moved")
    assert cli.main(["evaluate", str(run.folder)]) == 2
    err = capsys.readouterr().err
    assert f"its images are no longer at {images}; say where they are, --data FOLDER" in err and "data.root" not in err
    assert cli.main(["evaluate", str(run.folder), "--data", str(images)]) == 2
    err = capsys.readouterr().err
    why = "there is no such folder or zip; give one of images, domain/class/image or class/image, or words such as"
    assert err == f"error: --data {images}: {why} data=csv data.root=FILE\n"
    assert cli.main(["evaluate", str(run.folder), "--data", str(moved)]) == 0
    stopped = tmp_path / "stopped"
    shutil.copytree(run.folder, stopped)
    (stopped / "DONE.json").unlink()
    (stopped / "summary.json").unlink()
    capsys.readouterr()
    assert cli.main(["predict", str(stopped), str(moved)]) == 2
    hint = f"fedinit run resume={stopped} data.root=PLACE goes on with it: its images are no longer at {images}"
    assert hint in capsys.readouterr().err
    assert run_sim.main([f"resume={stopped}", f"data.root={moved}"]) == 0
    assert fedinit.load(stopped).summary["final_hash"] == run.summary["final_hash"]


def test_keys_of_python_are_words():
    with pytest.raises(fedinit.InputError, match=r"run: rounds=3: a key is given as a word, run\('rounds=3'\)"):
        fedinit.run(rounds=3)


def test_a_preview_says_that_its_folder_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_sim.main([*SHORT, "preview=true", f"output_dir={tmp_path / 'file' / 'below'}"]) == 0
    assert "cannot be written: output_dir=" in " ".join(capsys.readouterr().out.split())
    assert run_sim.main([*SHORT, "preview=true", f"output_dir={tmp_path / 'new'}"]) == 0
    assert "which would be made" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_hints_name_the_command_that_was_given(capsys):
    for words in (["run", "nonsense.key=1"], ["run", "--nonsense"]):
        assert cli.main(words) == 2
        assert "run_sim" not in capsys.readouterr().err
    for words in (
        ["--help"],
        ["report", "--help"],
        ["compare", "--help"],
        ["evaluate", "--help"],
        ["predict", "--help"],
    ):
        assert cli.main(words) == 0
        assert "run_sim" not in capsys.readouterr().out.replace("the same as python run_sim.py", "")
