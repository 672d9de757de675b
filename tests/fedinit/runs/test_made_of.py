"""A run is known by its configuration and by what its files hold, not by where they lie."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from signal import SIGINT
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fedinit
import run_sim
from fedinit.config.compose import compose_config
from fedinit.config.flower import from_run_config, to_run_config
from fedinit.config.schema import Config
from fedinit.config.site import split_off
from fedinit.exports.card import _grey
from fedinit.inference import evaluating, pictures, predicting
from fedinit.runs import reporting
from fedinit.runs.folder import place
from fedinit.runs.made_of import MadeOf
from fedinit.runs.made_of import read as read_made_of
from fedinit.runs.own_files import MADE_OF
from tests.support.small import WORDS
from tests.support.trees import plant

TREE = ("photo/cat", "photo/dog", "sketch/cat", "sketch/dog")
SHORT = [w for w in WORDS if not w.startswith("data.")]
SHORT += ["data=image_folder", "data.test_fraction=0.5", "rounds=1", "client.max_steps=1"]


@pytest.fixture
def tree(tmp_path) -> Path:
    return plant(tmp_path / "imgs", *TREE, count=6)


def words(tmp_path: Path, root: object, *more: str) -> list[str]:
    return [*SHORT, f"data.root={root}", f"output_dir={tmp_path / 'out'}", *more]


def config(tmp_path: Path, root: object, *more: str) -> Config:
    return compose_config(words(tmp_path, root, *more))


def test_moved_images_are_the_same_run_and_replaced_ones_another(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_sim.main(words(tmp_path, "imgs")) == 0
    folders = list((tmp_path / "out").rglob("DONE.json"))
    for root in ("./imgs", "imgs/", tree, f"{tree}/../imgs"):
        assert run_sim.main(words(tmp_path, root)) == 0
    moved = tree.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert run_sim.main(words(tmp_path, moved)) == 0
    assert "this run is done" in capsys.readouterr().out and list((tmp_path / "out").rglob("DONE.json")) == folders
    # Replaced under the same path: not the table of the others.
    plant(moved, "photo/cat", count=9)
    assert run_sim.main(words(tmp_path, moved)) == 0
    told = capsys.readouterr().out
    first = folders[0].parent
    assert f"not the run in {first}, which was made of other files: photo/cat has 9 images, 6 before" in told
    assert len(list((tmp_path / "out").rglob("DONE.json"))) == 2
    # A run that is done is shown by its folder's name, whatever became of its images.
    assert run_sim.main([f"resume={first}"]) == 0 and "this run is done" in capsys.readouterr().out


def test_a_run_that_goes_on_says_what_changed_and_has_the_places_of_now(tree, tmp_path, monkeypatch):
    """Its folder alone is enough again once it went on."""

    class Crash(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("fedinit.runs.reporting.export", lambda *_: (_ for _ in ()).throw(Crash))
        fedinit.run(*words(tmp_path, tree))
    (folder,) = (tmp_path / "out" / "image_folder").iterdir()
    plant(tree, "photo/cat", count=9)
    for again in ([f"resume={folder}"], words(tmp_path, tree, f"resume={folder}")):
        with pytest.raises(fedinit.InputError) as refused:
            fedinit.run(*again)
        told = f"resume={folder}: this run was begun with other files: photo/cat has 9 images, 6 before"
        assert str(refused.value) == told
    for i in range(6, 9):
        (tree / f"photo/cat/{i}.png").unlink()
    moved = tree.rename(tmp_path / "elsewhere")
    with pytest.raises(fedinit.InputError, match="there is no such folder or zip"):
        fedinit.run(f"resume={folder}")
    run = fedinit.run(*words(tmp_path, moved))
    assert run.folder == folder and run.done and run.config.data.root == str(moved)


def test_a_backbone_is_known_by_its_bytes(tree, tmp_path):
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"one")
    shutil.copy(weights, tmp_path / "b.safetensors")
    one, same = (config(tmp_path, tree, f"model.checkpoint={tmp_path / n}.safetensors") for n in "ab")
    told = place(one)
    assert place(same) == told
    named = MadeOf.of(
        config(tmp_path, tree, f"model.checkpoint={weights}", f"model.sha256={MadeOf.of(one).checkpoint}")
    )
    assert named == MadeOf.of(one)
    weights.write_bytes(b"two")
    assert place(one) != told
    assert MadeOf.of(one).changes(MadeOf.of(same)) == "the backbone's file is another"
    absent = config(tmp_path, tree, "model.checkpoint=absent.safetensors")
    assert place(absent) != told, "what is wrong with it is said when it is loaded"


def test_what_a_folder_has_of_it_is_read_back_or_none(tree, tmp_path):
    c = config(tmp_path, tree)
    made_of = MadeOf.of(c)
    made_of.save(tmp_path, c)
    kept = read_made_of(tmp_path)
    assert kept is not None and kept.made_of == made_of and kept.config == c.identity() != c.identity(made_of.digest)
    for text in ("", "[]", "3", "{}", '{"config": 1, "images": [], "checkpoint": null}', "[" * 10**5):
        (tmp_path / MADE_OF).write_text(text)
        assert read_made_of(tmp_path) is None


def test_runs_of_digits_are_known_by_the_configuration_and_the_package():
    assert MadeOf.of(compose_config([])) == MadeOf(None, "embedded:glyph_vit.safetensors")


def test_a_deployment_is_known_by_its_configuration_and_backbone_alone(tree, tmp_path):
    """The images are the sites': the server lists none, and no digest of them is part of what is sent."""
    sent, _ = split_off(config(tmp_path, tree, "engine.device=cpu", "evaluation=clients"))
    assert MadeOf.of(sent) == MadeOf() and place(sent) == place(from_run_config(to_run_config(sent)))


def test_a_folder_goes_on_with_its_own_words_where_its_images_were_moved(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedinit.runs.folder.RunFolder.finished", lambda self, summary: os.kill(os.getpid(), SIGINT))
    assert run_sim.main(words(tmp_path, tree)) == 130
    monkeypatch.undo()
    (folder,) = (tmp_path / "out" / "image_folder").iterdir()
    moved = tree.rename(tmp_path / "elsewhere")
    assert run_sim.main([f"resume={folder}"]) == 2
    assert "there is no such folder or zip; give the right one as data.root=..." in capsys.readouterr().err
    assert run_sim.main([f"resume={folder}", "rounds=3", f"data.root={moved}"]) == 2  # a configuration of its own
    assert "data=digits does not read it" in capsys.readouterr().err
    assert run_sim.main([f"resume={folder}", f"data.root={moved}", "report=none"]) == 0
    assert "goes on after round 1" in capsys.readouterr().out and (folder / "DONE.json").is_file()
    assert [f.name for f in folder.parent.iterdir()] == [folder.name] and not (folder / "report.html").exists()


def deep(path: Path, *levels: int) -> None:
    """A picture of 16 bits with these levels, in columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.array(levels, np.uint16), (8, 8 // len(levels)))).save(path)


def test_levels_of_deep_grey_are_the_runs_own(tmp_path, capsys):
    """They are measured over all of the source: a picture in a domain that the run does not use made other pixels of
    every image that it does."""
    root = tmp_path / "imgs"
    for name in TREE:
        for i in range(6):
            deep(root / name / f"{i}.png", 100 + 50 * i, 3000)
    deep(root / "unused" / "cat" / "0.png", 100, 3000)
    of_run = words(tmp_path, root, "data.domains=[photo,sketch]", "rounds=2")
    assert run_sim.main(of_run) == 0
    folder = next((tmp_path / "out").rglob("DONE.json")).parent
    assert read_made_of(folder).levels == {"I": (100.0, 3000.0)}
    run = fedinit.load(folder)
    whole, hashed = evaluating.evaluate(run), run.summary["final_hash"]
    others = tmp_path / "others"  # the same pictures, of a sensor that sees them darker
    for name in TREE:
        for i in range(6):
            deep(others / name / f"{i}.png", 10 + 5 * i, 300)
    source, own = evaluating._placed(run, str(others))
    source = dataclasses.replace(source, test_fraction=0.5)
    spec = run.backbone().input
    size = spec.channels, (spec.height, spec.width)
    bright = run.config.data.load(*size).images.max()
    assert not own and source.load(*size).images.max() < 0.1 * bright  # between the run's levels, as by `predict`
    assert dataclasses.replace(source, grey_range="auto").load(*size).images.max() == bright  # the control
    (odd := root / "unused" / "cat" / "1.png").write_bytes(b"")
    deep(odd, 0, 65535)
    said = "grey of 12 or 16 bits is in its images from 0 to 65535, and was from 100 to 3000 when the run began"
    with pytest.raises(fedinit.InputError, match=said):
        evaluating.evaluate(run)
    assert pictures.window_of(run.config, [odd], run.grey_range) == {"I": (100.0, 3000.0)}
    for name in ("DONE.json", "summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    capsys.readouterr()
    assert run_sim.main(of_run) == 2 and said in capsys.readouterr().err
    odd.unlink()
    assert run_sim.main(of_run) == 0
    again = fedinit.load(folder)
    assert again.summary["final_hash"] == hashed and evaluating.evaluate(again).score == whole.score


@pytest.fixture
def deep_run(tmp_path, capsys) -> tuple[list[str], Path]:
    """(its words, its folder) of a run that is done, of grey of 16 bits from 100 to 3000, on two of three domains."""
    root = tmp_path / "imgs"
    for name in (*TREE, "unused/cat"):
        for i in range(6):
            deep(root / name / f"{i}.png", 100 + 50 * i, 3000)
    of_run = words(tmp_path, root, "data.domains=[photo,sketch]", "rounds=2")
    assert run_sim.main(of_run) == 0
    capsys.readouterr()
    return of_run, next((tmp_path / "out").rglob("DONE.json")).parent


def other(tmp_path: Path) -> Path:
    """A picture of other levels, in the domain that the run does not use."""
    deep(path := tmp_path / "imgs" / "unused" / "cat" / "9.png", 0, 65535)
    return path


@pytest.mark.parametrize("damage", [None, b"", b"[1, 2]"], ids=["gone", "empty", "another's"])
def test_levels_are_in_the_checkpoints_too(damage, deep_run, tmp_path, capsys):
    """A run went on, and was shown, with those of today where its own file was not there."""
    of_run, folder = deep_run
    run, kept = fedinit.load(folder), (folder / MADE_OF).read_bytes()
    (folder / MADE_OF).unlink()
    if damage is not None:
        (folder / MADE_OF).write_bytes(damage)
    other(tmp_path)
    assert run.grey_range == {"I": (100.0, 3000.0)}
    with pytest.raises(fedinit.InputError, match="was from 100 to 3000 when the run began"):
        evaluating.evaluate(run)
    assert run_sim.main(of_run) == 0
    told = capsys.readouterr().out
    assert f"{folder / MADE_OF} was not {'there' if damage is None else 'this run'}" in told
    assert (folder / MADE_OF).read_bytes() == kept
    for name in ("DONE.json", "summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    (folder / MADE_OF).unlink()
    assert run_sim.main(of_run) == 2 and "was from 100 to 3000 when the run began" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["clients", "examples"])
def test_with_privacy_levels_are_said_and_not_measured(unit, deep_run, tmp_path, capsys):
    """One image's lowest and highest grey were in every other's pixels: at a clip of C it moved a step, which it was
    not in, by 7 C. Grey of 8 bits has no levels."""
    of_run = [word for word in deep_run[0] if not word.startswith("rounds=")]
    private = [
        f"privacy={unit}",
        "strategy=fedit",
        "rounds=1",
        "evaluation=none",
        "privacy.delta=0.1",
        f"name={unit}",
        "client.batch_size=2",
    ]
    assert run_sim.main([*of_run, *private]) == 2
    assert f"data.grey_range=auto: with privacy={unit} one image's" in capsys.readouterr().err
    assert run_sim.main([*of_run, *private, "data.grey_range=[0,4095]"]) == 0
    eight = [f"data.root={plant(tmp_path / 'eight', *TREE, count=6)}"]
    assert run_sim.main([*of_run, *private, *eight]) == 0


def test_images_that_were_trained_on_are_known_by_the_runs_levels(deep_run, tmp_path):
    """By today's, which another picture moved, a copy of a training image was judged as one that the run never saw."""
    run, part = fedinit.load(deep_run[1]), tmp_path / "part"
    shutil.copytree(tmp_path / "imgs" / "photo", part / "photo")

    def told(*grey: str) -> str:
        try:
            return evaluating.evaluate(run, ["data=image_folder", f"data.root={part}", *grey]).what
        except fedinit.InputError as error:
            return str(error)

    before = told()
    other(tmp_path)
    assert "trained on" in before and told() == before
    for levels in ("[0,4095]", "full", "auto"):  # both are shown between them then
        assert told(f"data.grey_range={levels}") == before


@pytest.mark.parametrize("levels", [None, "[100.0, 1999.0]"], ids=["deleted", "edited"])
def test_a_file_that_is_changed_before_the_first_round_is_the_runs_own_again(levels, tmp_path, capsys, monkeypatch):
    """As long as a reference run goes on before it, the file was read back: gone, or with levels that are no run's."""
    root = tmp_path / "imgs"
    for name in TREE:
        for i in range(6):
            deep(root / name / f"{i}.png", 100 + 50 * i, 3000)
    begun = reporting.OpenRun.hold_to

    def between(self, data) -> None:
        begun(self, data)
        file = self.folder.path / MADE_OF
        file.unlink() if levels is None else file.write_text(file.read_text().replace("3000.0", "1999.0"))

    monkeypatch.setattr(reporting.OpenRun, "hold_to", between)
    assert run_sim.main(words(tmp_path, root, "data.domains=[photo,sketch]")) == 0
    told = capsys.readouterr().out
    folder = next((tmp_path / "out").rglob("DONE.json")).parent
    assert f"{folder / MADE_OF} was not {'there' if levels is None else 'this run'}" in told
    assert read_made_of(folder).levels == {"I": (100.0, 3000.0)}
    assert json.loads((folder / MADE_OF).read_text())["levels"] == {"I": [100.0, 3000.0]}


def test_a_run_whose_file_is_gone_goes_on_with_no_other_images(tree, tmp_path, capsys):
    of_run = words(tmp_path, tree, "rounds=2")
    assert run_sim.main(of_run) == 0
    folder = next((tmp_path / "out").rglob("DONE.json")).parent
    for name in ("DONE.json", "summary.json", MADE_OF):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    others = plant(tmp_path / "others", *TREE, count=7)
    capsys.readouterr()
    assert run_sim.main(["resume=" + str(folder), f"data.root={others}"]) == 2
    assert "this run was begun with other files" in capsys.readouterr().err
    assert run_sim.main(of_run) == 0 and read_made_of(folder) is not None


@pytest.mark.parametrize(
    "levels", ['{"I": [3000, 1000]}', '{"I": [NaN, 3]}', '{"I": [1e999, 2]}', '{"Z": [1, 2]}', "[1, 2]", '["a"]']
)
def test_levels_that_are_none_are_no_runs(levels, tmp_path):
    assert plant(tmp_path / "a", "x/y")
    (tmp_path / MADE_OF).write_text(f'{{"config": "c", "images": null, "checkpoint": null, "levels": {levels}}}')
    assert read_made_of(tmp_path) is None
    (tmp_path / MADE_OF).write_text('{"config": "c", "images": null, "checkpoint": null, "levels": {"I": [7, 7]}}')
    assert read_made_of(tmp_path) is not None


def test_a_damaged_model_is_not_written_anew_from_other_pixels(deep_run, tmp_path, capsys):
    of_run, folder = deep_run
    model = folder / "adapter" / "head.safetensors"
    model.write_bytes(damaged := model.read_bytes()[:-1])
    picture = other(tmp_path)
    assert run_sim.main(of_run) == 0
    told = capsys.readouterr().out
    assert "warning: " in told and "was from 100 to 3000 when the run began" in told and "this run is done" in told
    assert model.read_bytes() == damaged
    picture.unlink()
    assert run_sim.main(of_run) == 0 and f"{model} was not this run's; it is written anew" in capsys.readouterr().out


def test_the_same_pictures_have_one_result_however_they_are_named(deep_run, tmp_path):
    """A folder, words that name a folder or a table, and the run's own words with another root."""
    run = fedinit.load(deep_run[1])
    others = tmp_path / "others"
    for name in TREE:
        for i in range(6):
            deep(others / name / f"{i}.png", 10 + 5 * i, 300)
    table = tmp_path / "list.csv"
    rows = [f"{others / name}/{i}.png,{name.split('/')[1]},{name.split('/')[0]}" for name in TREE for i in range(6)]
    table.write_text("\n".join(["file,class,domain", *rows]) + "\n")
    root = f"data.root={others}"
    named = (["data=image_folder", root], [root], ["data=csv", f"data.root={table}"])
    sources = [evaluating._placed(run, str(others))[0], *(evaluating._said(run, given)[0] for given in named)]
    assert [source.grey_range for source in sources] == [{"I": (100.0, 3000.0)}] * 4
    own = evaluating._said(run, ["data=image_folder", root, "data.grey_range=[0,300]"])[0]
    assert own.grey_range == (0, 300)


def test_grey_of_which_a_run_has_no_levels_is_not_shown_black(tmp_path):
    """Of 8 bits, it took 16 as 0 to 65535, and said what it saw in the dark. Others beside such a picture are read."""
    root = plant(tmp_path / "imgs", *TREE, count=6)
    assert run_sim.main(words(tmp_path, root)) == 0
    run, bright = fedinit.load(next((tmp_path / "out").rglob("DONE.json")).parent), tmp_path / "bright"
    for name in TREE:
        deep(bright / name / "0.png", 10, 300)
    shutil.copy(root / TREE[0] / "0.png", bright / TREE[0] / "1.png")
    said = "grey of 12 or 16 bits, and nobody said which levels are black and white; say them, predict --grey-range LOW"
    predictions = list(predicting.predict(run, [bright]))
    assert {pictures.wanted(p.path, p.why) for p in predictions if p.why} == {"or leave it out"}, "pictures they are"
    assert (
        [said in p.why for p in predictions]
        == [not p.probabilities for p in predictions]
        == [p.path.name == "0.png" for p in predictions]
    )
    assert all(p.probabilities for p in predicting.predict(run, [bright], grey=(0, 300)))
    with pytest.raises(fedinit.InputError, match=f"cannot read 'photo/cat/0.png' .*{said}"):
        evaluating.evaluate(run, str(bright), split="all")
    words_of = ["data=image_folder", f"data.root={bright}", "data.grey_range=[0,300]"]
    assert evaluating.evaluate(run, words_of, split="all").images == 5


def test_a_run_of_drawn_digits_has_no_levels_either(tmp_path):
    run = fedinit.run(*WORDS, "rounds=1", "client.max_steps=1", f"output_dir={tmp_path / 'out'}")
    deep(tmp_path / "a.png", 10, 300)
    (one,) = predicting.predict(run, [tmp_path / "a.png"])
    assert run.grey_range == {} and "grey of 12 or 16 bits, and nobody said" in one.why
    own = evaluating._between_levels(run, compose_config(["data=image_folder", f"data.root={tmp_path}"]).data, ())
    assert own.grey_range == {}


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_a_picture_under_anothers_name_is_told_and_not_shown_black(suffix, tmp_path, capsys):
    """It is decoded by what it is, and measured by its name."""
    root = plant(tmp_path / "imgs", *TREE, count=6)
    deep(root / "photo" / "cat" / "9.png", 100, 3000)
    (root / "photo" / "cat" / "9.png").rename(root / "photo" / "cat" / f"9{suffix}")
    assert run_sim.main(words(tmp_path, root)) == 2
    err = capsys.readouterr().err
    assert f"9{suffix}" in err and "or name a file by its own ending" in err and err.count("\n") == 1
    assert run_sim.main(words(tmp_path, root, "data.grey_range=[0,3000]")) == 0


def test_what_a_checkpoint_says_counts_for_more_than_an_edited_file(deep_run, tmp_path, capsys):
    """Of a run that goes on, and of one that is done: levels, and images, of another run."""
    of_run, folder = deep_run
    kept = (folder / MADE_OF).read_text()
    (folder / MADE_OF).write_text(kept.replace("3000.0", "99999.0"))
    run = fedinit.load(folder)
    assert run.grey_range == {"I": (100.0, 3000.0)} and evaluating.evaluate(run).images
    for name in ("DONE.json", "summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    (folder / MADE_OF).write_text(kept.replace('{"I": [100.0, 3000.0]}', "{}"))
    picture = other(tmp_path)
    capsys.readouterr()
    assert run_sim.main(of_run) == 2 and "was from 100 to 3000 when the run began" in capsys.readouterr().err
    picture.unlink()
    assert run_sim.main(of_run) == 0 and (folder / MADE_OF).read_text() == kept


def test_of_a_run_that_kept_no_levels_others_are_shown_between_its_images(deep_run, tmp_path, capsys):
    """And a line says that nobody can say what it was made of."""
    of_run, folder = deep_run
    shutil.rmtree(folder / "checkpoints")
    (folder / MADE_OF).unlink()
    assert run_sim.main(of_run) == 0
    told = f"{folder / MADE_OF}: cannot be read, nor is a checkpoint of the run's end that has it; resume=never with"
    assert told in capsys.readouterr().out
    run = fedinit.load(folder)
    assert run.grey_range == "auto"
    deep(tmp_path / "others" / "photo" / "cat" / "0.png", 10, 300)
    assert evaluating._placed(run, str(tmp_path / "others"))[0].grey_range == {"I": (100.0, 3000.0)}
    assert "levels that this run has not kept" in _grey(SimpleNamespace(run=run))
    (tmp_path / "imgs").rename(tmp_path / "away")  # as those of a deployment's sites are, of which it keeps none
    plant(tmp_path / "eight", *TREE)
    assert evaluating.evaluate(run, str(tmp_path / "eight")).images
    with pytest.raises(fedinit.InputError, match=r"nobody said which levels .* data.grey_range=\[LOW,HIGH\]"):
        evaluating.evaluate(run, str(tmp_path / "others"))


def test_a_picture_of_an_open_file_is_read_once(tree, tmp_path):
    """As `fedinit predict RUN <(…)` gives it."""
    assert run_sim.main(words(tmp_path, tree)) == 0
    run = fedinit.load(next((tmp_path / "out").rglob("DONE.json")).parent)
    file, into = os.pipe()
    os.write(into, (tree / TREE[0] / "0.png").read_bytes())
    os.close(into)
    (one,) = predicting.predict(run, [Path(f"/dev/fd/{file}")])
    os.close(file)
    assert one.probabilities
