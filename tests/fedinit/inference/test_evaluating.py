"""fedinit evaluate: on the run's own test images the table's figures exactly; on others what a count by hand gives."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedinit
from clients.site import Site
from fedinit import cli
from fedinit.inference import confusion
from fedinit.inference.evaluating import evaluate
from tests.support.small import WORDS

SHORT = (*WORDS, "client.max_steps=2", "client.lr=0.01", "engine.lanes=1", "head=ridge", "evaluation.every=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> fedinit.Run:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('run')}")


@pytest.fixture(scope="module")
def tree(run, tmp_path_factory) -> Path:
    """Some of the run's images in two other domains: test images of `plain` as `mine`, of `thick` as `yours`."""
    root, data = tmp_path_factory.mktemp("tree") / "images", Site(run.config).data
    for domain, name in ((0, "mine"), (2, "yours")):
        for row in (data.test & (data.domains == domain)).nonzero().flatten()[:30].tolist():
            folder = root / name / data.class_names[int(data.labels[row])]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[row][0].numpy()).save(folder / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def own(tree, tmp_path_factory) -> fedinit.Run:
    """A run on that folder itself."""
    words = ("data=image_folder", f"data.root={tree}", "data.test_fraction=0.4", "data.cache=never", "adapter.rank=2")
    return fedinit.run(
        *(w for w in SHORT if not w.startswith("data.")), *words, f"output_dir={tmp_path_factory.mktemp('own')}"
    )


def test_on_the_runs_own_test_images_it_is_the_table(run, own):
    for each in (run, own):
        found = evaluate(each)
        assert found.score.by_domain == each.summary["accuracy_by_domain"] and found.confusion is not None
        assert int(found.confusion.sum()) == found.images and dict(found.judged) == dict(found.score.whole)
        assert "test images of the run's own data" in found.what


def test_a_run_in_another_precision_is_judged_in_float32_and_that_is_said(tmp_path):
    rounded = fedinit.run(*SHORT, "rounds=1", "engine.precision=bf16", f"output_dir={tmp_path}")
    found = evaluate(rounded)
    assert found.what.endswith("the run's own data, in float32, where the run computed in bf16")
    assert found.score.mean == pytest.approx(rounded.summary["accuracy"], abs=2)


def test_a_folder_that_was_moved_is_still_the_runs_own(own, tree, tmp_path):
    moved = tmp_path / "elsewhere"
    tree.rename(moved)
    try:
        for place in (str(moved), [f"data.root={moved}"]):
            found = evaluate(own, place)
            assert found.score.by_domain == own.summary["accuracy_by_domain"]
        with pytest.raises(fedinit.InputError, match="its images are no longer at .*--data FOLDER"):
            evaluate(own)
    finally:
        moved.rename(tree)
    every = evaluate(own, split="all")
    assert every.images == 60 and "those trained on among them" in every.what


@pytest.mark.parametrize("few", [(), ("partition.clients=6", "participation=0.34")], ids=["all", "few trained"])
def test_each_client_of_a_personal_method_is_judged_on_its_own_images(few, tmp_path):
    run = fedinit.run(*SHORT, "strategy=fedsa_lora", "evaluation=clients", *few, f"output_dir={tmp_path}")
    assert (run.summary.get("untrained", 0) > 1) == bool(few)
    assert evaluate(run).score.by_domain == run.summary["accuracy_by_domain"]
    # The control: one client's model on everybody's images is another figure.
    assert evaluate(run, client=0).score.by_domain != run.summary["accuracy_by_domain"]
    with pytest.raises(fedinit.InputError, match="has a model a client: say whose is judged on these images, --client"):
        evaluate(run, split="all")


def test_other_images_are_all_judged_by_the_names_of_their_classes(run, tree, tmp_path, capsys, monkeypatch):
    written = tmp_path / "confusion.csv"
    assert cli.main(["evaluate", str(run.folder), "--data", str(tree), "--csv", str(written)]) == 0
    out = capsys.readouterr().out
    assert "judged on all images of data=image_folder" in out and "│ mine " in out and "│ yours " in out
    found, wanted, hits = evaluate(run, str(tree)), torch.zeros(10, 10, dtype=torch.int64), {"mine": 0, "yours": 0}
    model = run.model()
    for file in tree.rglob("*.png"):
        image = np.array(Image.open(file))[None, None]
        label, said = int(file.parent.name), int(model(image).argmax())
        assert said == int(model(torch.from_numpy(image)).argmax())
        wanted[label, said] += 1
        hits[file.parent.parent.name] += label == said
    assert found.confusion is not None and torch.equal(found.confusion, wanted) and found.images == 60
    assert found.score.by_domain == {name: 100 * n / 30 for name, n in hits.items()}
    rows = list(csv.reader(written.open()))
    assert rows[0] == ["is", *"0123456789"] and [[int(n) for n in row[1:]] for row in rows[1:]] == wanted.tolist()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", str(run.folder), "--data", str(tree), "--csv", "-"]) == 0
    assert capsys.readouterr().out.splitlines() == written.read_text().splitlines() and not Path("-").exists()


def test_images_that_the_run_was_trained_on_are_not_judged(own, tree, tmp_path, capsys):
    """A copy of one of its domains, or its own folder with one image more, is other data to it: two of three images of
    these were trained on, and the model would look better than it is."""
    data = own.config.data.load(1, (32, 32), own.config.seed)
    trained = {data.images[row].numpy().tobytes() for row in (~data.test).nonzero().flatten().tolist()}
    part = tmp_path / "part"
    shutil.copytree(tree / "mine", part / "mine")
    new = [f for f in part.rglob("*.png") if np.array(Image.open(f))[None].tobytes() not in trained]
    assert 0 < len(new) < 30
    found = evaluate(own, str(part))
    assert found.images == len(new) and f"without {30 - len(new)} images that the run was trained on" in found.what
    every = evaluate(own, str(part), "all")
    assert every.images == 30 and every.what.endswith(f", of which the run was trained on {30 - len(new)}")
    words = ["data=image_folder", f"data.root={tree}", "data.test_fraction=0.9"]
    other = evaluate(own, words, "test").what  # test images by another deal, most of which it was trained on
    assert re.search(r"^test images of data=image_folder, of which the run was trained on [23]\d$", other), other
    for file in new:
        file.unlink()
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    with pytest.raises(fedinit.InputError, match="trained on every one of these images; --split all"):
        evaluate(own, str(part))
    moved = tree.rename(tmp_path / "moved")
    try:
        assert "nobody can say if it was trained on some" in evaluate(own, str(part)).what
        shutil.copytree(moved / "yours", tree / "yours")  # and all of the other domain's are gone
        (gone := next((moved / "mine").iterdir())).rename(tmp_path / "gone")
        shutil.copytree(moved / "mine", tree / "mine")
        (tmp_path / "gone").rename(gone)
        told = evaluate(own, str(part)).what
        assert "that the run was trained on; its own data is not what it was, and nobody can say if it was" in told
        shutil.rmtree(tree)
    finally:
        moved.rename(tree)


def test_of_images_with_named_splits_those_of_test_are_judged(run, tree, tmp_path):
    for row, file in enumerate(sorted((tree / "mine").rglob("*.png"))):
        place = tmp_path / ("test" if row % 3 == 0 else "train") / "mine" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
    assert evaluate(run, str(tmp_path)).images == 10
    assert evaluate(run, str(tmp_path), "all").images == 30
    assert evaluate(run, [f"data.root={tmp_path}", "data=image_folder"]).images == 10


def test_a_regression_is_judged_too(tmp_path, capsys):
    words = ("experiment=matrix_sensing", "logger=none", "rounds=2", "client.max_steps=5", "report=none")
    run = fedinit.run(*words, f"output_dir={tmp_path}")
    found = evaluate(run)
    assert found.confusion is None
    assert found.score.mean == pytest.approx(run.summary["recovery_error"], rel=1e-6)
    assert cli.main(["evaluate", str(run.folder)]) == 0
    told, count = capsys.readouterr().out, f"{found.images:,}"
    assert f" on {count} measurements" in told and "the test measurements of" in told and "image" not in told
    (row,) = (line for line in told.splitlines() if line.startswith("│ matrix"))
    assert row.split("│")[2].strip() == count
    assert cli.main(["evaluate", str(run.folder), "--csv", str(tmp_path / "c.csv")]) == 2
    assert "has no classes, so there is no confusion matrix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "{absent}"], "absent: there is no such folder or zip"),
        (["--data", "{odd}"], "data: class 'cat' is none of the model's; it has 0, 1, 2"),
        (["--data", "rounds=3"], "rounds=3: the data alone can be another, data=… and data.…=…"),
        (["--data", "data=image_foldr"], "did you mean 'image_folder'?"),
        (["--data", "a", "b"], "--data a b: expected one folder or zip"),
        (["--data", "data.validation_fraction=0.5"], "evaluate deals none anew; leave it out, --split says which"),
        (["--data", "data=digits", "data.validation_fraction=0.5"], "of other images evaluate deals none anew"),
        (["--data", "data=matrix_sensing"], "the run's model is judged on data=digits alone"),
        (["--csv", "{absent}/c.csv"], "c.csv: cannot be written (there is no folder "),
        (["--client", "1"], "strategy=lora_fair has one model for all clients"),
    ],
)
def test_wrong_words_are_one_line(words, expected, run, tree, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "odd" / "d" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "odd" / "d" / name / "a.png")
    places = {"absent": tmp_path / "absent", "odd": tmp_path / "odd"}
    assert cli.main(["evaluate", str(run.folder), *(word.format(**places) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and expected in err


def test_the_matrix_of_many_classes_is_its_commonest_mistakes(capsys):
    from rich.console import Console

    counts = torch.eye(30, dtype=torch.int64) * 5
    counts[3, 7], counts[8, 2] = 4, 2
    names = [f"class [{i}]" for i in range(30)]
    Console(width=100).print(confusion.table(counts, names))
    shown = capsys.readouterr().out
    first = shown.index("class [3]")
    assert "class [7]" in shown and first < shown.index("class [8]") and "class [9]" not in shown
    assert "44" in shown, "4 of 9"
    Console(width=100).print(confusion.table(counts[:5, :5], names[:5]))
    assert "4 class [4]" in capsys.readouterr().out


def test_folders_of_classes_are_one_domain(run, tree, tmp_path, capsys):
    """domain/class/image or class/image, as --help says."""
    (domain, *_) = (path for path in sorted(tree.iterdir()) if path.is_dir())
    shutil.copytree(domain, tmp_path / "classes")
    assert cli.main(["evaluate", str(run.folder), "--data", str(tmp_path / "classes")]) == 0
    assert capsys.readouterr().out
    (tmp_path / "classes" / "loose.png").write_bytes(b"")
    assert cli.main(["evaluate", str(run.folder), "--data", str(tmp_path / "classes")]) == 2
    assert "lies at another depth" in capsys.readouterr().err


def test_of_a_set_with_more_classes_those_that_are_named_are_judged(tmp_path):
    """A run on some of them was judged on none of the others' images, whatever the words said."""
    words = [w for w in SHORT if not w.startswith("data.")]
    few = ("data.classes=[3,1,2]", "data.domains=[plain,noise]", "data.validation_fraction=0.2")
    run = fedinit.run(*words, *few, f"output_dir={tmp_path}")
    own = evaluate(run)
    assert own.what == "the validation images of the run's own data"
    assert own.score.by_domain == run.summary["accuracy_by_domain"]
    unseen = evaluate(run, ["data.validation_fraction=null"])  # the classes are the run's
    named = evaluate(run, ["data=digits", "data.classes=[1,2,3]", "data.domains=[plain,noise]"])
    assert named.confusion is not None and torch.equal(named.confusion, unseen.confusion)
    assert named.images == int(named.confusion.sum()) > own.images and named.class_names == ("3", "1", "2")
    assert evaluate(run, ["data.classes=[1,2]", "data.validation_fraction=null"]).confusion[0].sum() == 0
    with pytest.raises(fedinit.InputError, match=r"class '0' is none of the model's; it has .*data.classes=\["):
        evaluate(run, ["data=digits"])
    with pytest.raises(fedinit.InputError, match="data.classes: no 'x' in the source"):
        evaluate(run, ["data=digits", "data.classes=[1,x]"])
