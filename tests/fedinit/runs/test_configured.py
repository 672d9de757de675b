"""A config.yaml that is not the run's, where no checkpoint is left that would say so: one line, and no other model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from fedinit import cli
from tests.support.small import WORDS

SHORT = (*WORDS, "rounds=1", "client.max_steps=1", "engine.lanes=1", "evaluation=none")
HASH = "by the hash in made_of.json"
EDITS = {
    "scale": ("alpha: 16.0", "alpha: 64.0", HASH),
    "images": ("- inverted", "- rotated", HASH),
    "rate": ("lr: 0.04", "lr: 0.5", HASH),
    "seed": ("seed: 0", "seed: 7", "which has seed=0 by its folder's name"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that is done and has no checkpoints any more."""
    folder = fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder
    shutil.rmtree(folder / "checkpoints")
    return folder


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_configuration_makes_no_other_model(edit, done, tmp_path, capsys):
    file, right = done / "config.yaml", (done / "config.yaml").read_text()
    old, new, why = EDITS[edit]
    assert fedinit.load(done).model()  # the control
    file.write_text(edited := right.replace(old, new))
    assert edited != right
    for words in (["evaluate", str(done)], ["export", str(done), "--format", "merged"], ["run", f"resume={done}"]):
        capsys.readouterr()
        assert cli.main(words) == 2
        said = capsys.readouterr()
        assert (
            f"{done}: its config.yaml is not the configuration of this run, {why}; put the run's own back" in said.err
        )
        assert said.err.count("\n") == 1 and not said.out
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0  # the remedy that is said
    assert "it is written anew, and the other one is config.yaml.edited.1" in capsys.readouterr().out
    assert fedinit.load(done).model() and (done / "config.yaml.edited.1").read_text() == edited


def test_what_the_result_is_no_function_of_may_be_edited(done, tmp_path):
    file = done / "config.yaml"
    file.write_text(file.read_text().replace("lanes: 1", "lanes: 2").replace("report: none", "report: full"))
    assert fedinit.load(done).config.report == "full"
    renamed = done.rename(tmp_path / "a run of mine")
    assert fedinit.load(renamed).model()
    (renamed / "made_of.json").unlink()
    assert fedinit.load(renamed).model(), "nothing says of it whose configuration it is"
