"""Choosing settings without looking at the test images: a validation split, and evaluation at chosen rounds."""

from __future__ import annotations

import csv
import json

import pytest

import run_sim
from clients.site import Site
from fedinit.errors import InputError
from tests.support.small import WORDS, small_config


def rows_of(images) -> set[bytes]:
    return {bytes(image.numpy().tobytes()) for image in images}


def test_validation_images_are_training_images_and_no_test_image_is_left():
    whole = Site(small_config()).data
    held = Site(small_config("data.validation_fraction=0.25")).data
    assert len(held) == int((~whole.test).sum())
    assert not rows_of(held.images) & rows_of(whole.images[whole.test])
    assert rows_of(held.images[held.test]) < rows_of(whole.images[~whole.test])
    for domain in range(3):
        mine = held.domains == domain
        assert int(held.test[mine].sum()) == round(0.25 * int(mine.sum()))


def test_the_draw_follows_the_seed_alone():
    first, again, other = (
        Site(small_config("data.validation_fraction=0.25", f"seed={seed}")).data.test for seed in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)


def test_rounds_to_evaluate(tmp_path):
    words = ["rounds=5", "evaluation.rounds=[1,4]", "client.max_steps=1", f"output_dir={tmp_path}"]
    assert run_sim.main([*WORDS, *words]) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    assert [row["round"] for row in rows if row["accuracy"]] == ["1", "4", "5"]
    assert json.loads((folder / "summary.json").read_text())["accuracy"] == pytest.approx(float(rows[-1]["accuracy"]))


@pytest.mark.parametrize("word", ["data.validation_fraction=0", "data.validation_fraction=1", "evaluation.rounds=[0]"])
def test_what_makes_no_sense_is_refused(word):
    with pytest.raises(InputError, match=word.split("=")[0]):
        small_config(word)
