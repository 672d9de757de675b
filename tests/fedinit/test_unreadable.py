"""What cannot be read is told as that, of the path that forbids it, with 2: not as missing, empty or changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import fedinit
import run_sim
from fedinit import cli
from fedinit.unreadable import Unreadable, is_file, is_folder, unreadable
from tests.support.forbidding import forbidden
from tests.support.recorded_runs import config, write_run
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1", "evaluation=none", "report=none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture
def place(whole, tmp_path) -> Path:
    """With a run, and a folder of a picture."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "pictures").mkdir()
    Image.new("L", (32, 32), 120).save(tmp_path / "pictures" / "a.png")
    return tmp_path


CLOSED = {
    "an adapter": ("run/adapter", "predict {run} {pictures}"),
    "an adapter's file": ("run/adapter/head.safetensors", "export {run} --format merged --output {out}"),
    "pictures": ("pictures", "predict {run} {pictures}"),
    "a picture's folder": ("pictures", "predict {run} {pictures}/a.png"),
    "images": ("pictures", "evaluate {run} --data {pictures}"),
    "images to check": ("pictures", "data check {pictures}"),
    "images to train on": ("pictures", "run data=image_folder data.root={pictures} output_dir={out}"),
    "a table": ("pictures", "run data=csv data.root={pictures}/a.csv output_dir={out}"),
    "a run": ("run", "report {run} --output {out}"),
    "a run, watched": ("run", "watch {run}"),
    "a run, compared": ("run", "compare {run}"),
    "a run, predicted by": ("run", "predict {run} {pictures}"),
    "a run, gone on with": ("run", "run resume={run}"),
    "settings": ("run/config.yaml", "predict {run} {pictures}"),
    "settings, reported": ("run/config.yaml", "report {run} --output {out}"),
    "the end": ("run/DONE.json", "predict {run} {pictures}"),
    "the end, reported": ("run/DONE.json", "report {run} --output {out}"),
    "the end, gone on with": ("run/DONE.json", "run resume={run}"),
}


@pytest.mark.parametrize("case", CLOSED)
def test_it_is_one_line_of_the_right_path(case, place, capsys):
    closed, words = CLOSED[case]
    places = {"run": place / "run", "pictures": place / "pictures", "out": place / "out"}
    with forbidden(place / closed):
        capsys.readouterr()
        code = cli.main([word.format(**places) for word in words.split()])
    said = capsys.readouterr()
    what = f"error: {place / closed}: cannot be read (permission denied); chmod -R u+rX {place / closed} lets its owner"
    assert code == 2 and said.err.startswith(what) and said.err.count("\n") == 1, said.err
    assert not (place / "out").exists()


def test_checkpoints_that_cannot_be_read_are_not_none(place, capsys):
    """Nor does the run begin anew over them."""
    (place / "run" / "DONE.json").unlink()
    with forbidden(place / "run" / "checkpoints"):
        assert run_sim.main([f"resume={place / 'run'}"]) == 2
    assert f"{place / 'run' / 'checkpoints'}: cannot be read (permission denied)" in capsys.readouterr().err


def test_beside_others_it_is_left_out_with_a_warning(tmp_path, capsys, caplog):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, config(), recorded=False)
    with forbidden(tmp_path / "runs" / "b"):
        assert cli.main(["compare", str(tmp_path / "runs")]) == 0
        assert f"left out: {tmp_path / 'runs' / 'b'}: cannot be read (permission denied)" in caplog.text
        shutil.rmtree(tmp_path / "runs" / "a")
        capsys.readouterr()
        assert cli.main(["compare", str(tmp_path / "runs")]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'runs' / 'b'}: cannot be read")


def test_what_is_not_there_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert is_file(tmp_path / "file") and is_folder(tmp_path)
    for absent in (tmp_path / "absent", tmp_path / "file" / "below", tmp_path / "nul\0"):
        assert not is_file(absent) and not is_folder(absent)
    with pytest.raises(Unreadable, match=r"file: cannot be read \(input/output error\); mend that, or give another"):
        raise unreadable(tmp_path / "file", OSError(5, "Input/output error"))


def test_a_run_that_cannot_be_written_is_named(place, tmp_path, capsys):
    folder = place / "run"
    (folder / "DONE.json").unlink()
    with forbidden(folder, 0o555):
        assert run_sim.main([f"resume={folder}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}: cannot write there (Permission denied); chmod -R u+rwX {folder} lets its")
    assert said.endswith("go on with a copy of it elsewhere: fedinit run resume=COPY\n") and said.count("\n") == 1
    (own,) = [fedinit.run(*SHORT, f"output_dir={tmp_path / 'out'}").folder]
    (own / "DONE.json").unlink()
    with forbidden(own, 0o555):
        assert run_sim.main([*SHORT, f"output_dir={tmp_path / 'out'}"]) == 2
    assert f"error: {own}: cannot write there (Permission denied); chmod" in capsys.readouterr().err
    with forbidden(tmp_path / "out", 0o555):
        assert run_sim.main([*SHORT, "name=other", f"output_dir={tmp_path / 'out'}"]) == 2
    why = f"error: output_dir={tmp_path / 'out'}: cannot write there (Permission denied); give a folder that can be"
    assert why in capsys.readouterr().err
