"""Choosing settings without looking at the test images: a validation split, and evaluation at chosen rounds."""

from __future__ import annotations

import csv
import json

import pytest

import run_sim
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.errors import InputError
from tests.support.small import WORDS, small_config
from tests.support.trees import plant


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


@pytest.fixture
def three(tmp_path):
    """Two domains with three splits: 4, 3 and 2 images of each of two classes."""
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        plant(tmp_path, *(f"{domain}/{split}/{name}" for domain in "pq" for name in "ab"), count=count)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "held"), [([], 18), (["data.evaluate_on=val"], 14), (["data.validation_fraction=0.5"], 8)]
)
def test_all_images_of_a_test_domain_are_evaluated_on_but_those_that_settings_are_not_chosen_by(three, words, held):
    words = ["partition.test_domains=[q]", "data=image_folder", f"data.root={three}", "data.domains=[p,q]", *words]
    config = small_config("model.checkpoint=null", *words)
    data = config.partition.hold_out(config.data.load(3, (4, 4), held=config.partition.test_domains or ()))
    assert data.test[data.domains == 1].tolist() == [True] * held
    assert int((data.domains == 0).sum()) == {18: 12, 14: 14, 8: 8}[held]
    content = config.data.content(("q",))
    assert content is not None
    assert sum(content.groups[f"q/{name}"].images for name in "ab") == {18: 18, 14: 14, 8: 12}[held]


def test_two_ways_to_name_what_is_evaluated_on_are_refused(three):
    for words in (["data=image_folder", f"data.root={three}"], ["data=torchvision", "data.set=eurosat"], ["data=hub"]):
        with pytest.raises(InputError, match="data.evaluate_on=val data.validation_fraction=0.3: each names other"):
            compose_config([*words, "data.evaluate_on=val", "data.validation_fraction=0.3"])
