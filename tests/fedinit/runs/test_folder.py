"""A run's folder in which something is not as it was written: one line, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "evaluation=none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that is done, which nobody changes."""
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture
def done(whole, tmp_path) -> Path:
    """A copy of it, where the same words with this test's output_dir look for it."""
    return Path(shutil.copytree(whole, tmp_path / whole.parent.name / whole.name))


@pytest.fixture
def again(done, tmp_path, capsys):
    """The same words once more: what is printed; `done` is then as a run is that is done."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run_sim.main([*SHORT, f"output_dir={tmp_path}", *words]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return captured.out + captured.err

    return run


def unfinished(folder: Path) -> Path:
    (folder / "DONE.json").unlink()
    return folder


# -- config.yaml -----------------------------------------------------------------------------------------------------


def test_an_edited_configuration_is_put_aside_when_its_run_goes_on(done, again):
    right = (done / "config.yaml").read_text()
    edited = right.replace("lr: 0.04", "lr: 0.5")
    (unfinished(done) / "config.yaml").write_text(edited)
    told = again()
    assert (
        f"{done}/config.yaml was not this run's; it is written anew, and the other one is config.yaml.edited.1" in told
    )
    assert "lr: 0.04" in (done / "config.yaml").read_text() and (done / "config.yaml.edited.1").read_text() == edited
    assert fedinit.load(done).done


@pytest.mark.parametrize("finished", [True, False])
def test_an_edited_configuration_is_refused_where_it_is_all_there_is(finished, done, capsys):
    text = (done / "config.yaml").read_text()
    (done / "config.yaml").write_text(text.replace("lr: 0.04", "lr: 0.5"))
    if not finished:
        unfinished(done)
    why = "its config.yaml says client.lr=0.5, and the run computed with 0.04; write that, or give the run's own words"
    capsys.readouterr()
    assert run_sim.main([f"resume={done}"]) == 2
    assert capsys.readouterr().err == f"error: resume={done}: {why}, which do\n"
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.load(done)
    assert str(refused.value) == f"{done}: {why}, which do"
    # What the result is no function of may be edited.
    (done / "config.yaml").write_text(text.replace("name: none\n  project", "name: auto\n  project"))
    assert fedinit.load(done).config.logger.name == "auto"


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just words", "3", "a: [", "client: 3\n", "{}", "? [a]\n: b\n", "1: 2\n"]
)
def test_a_configuration_of_another_shape_is_one_line_and_mended_by_the_runs_words(text, done, again, capsys):
    (unfinished(done) / "config.yaml").write_text(text)
    capsys.readouterr()
    assert run_sim.main([f"resume={done}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(fedinit.InputError) as refused:
        fedinit.load(done)
    assert "\n" not in str(refused.value)
    assert "config.yaml.edited.1" in again()
    assert fedinit.load(done).done and (done / "config.yaml.edited.1").read_text() == text
