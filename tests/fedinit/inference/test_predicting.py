"""fedinit predict: the classes that the run's model has for pictures, and a line for each that cannot be read."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedinit
from clients.site import Site
from fedinit import cli
from fedinit.inference import pictures, predicting
from tests.support.small import WORDS
from tests.support.trees import plant

SHORT = (*WORDS, "client.max_steps=2", "client.lr=0.01", "engine.lanes=1", "head=ridge", "evaluation=none")

INSTEAD = "give a picture (.jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff, …) in its place, or leave it out"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> fedinit.Run:
    return fedinit.run(*SHORT, "rounds=1", f"output_dir={tmp_path_factory.mktemp('run')}")


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """Six of the run's own images as files, two of them in a folder inside."""
    images = Site(run.config).data.images
    (tmp_path / "pictures" / "inside").mkdir(parents=True)
    for i in range(6):
        file = tmp_path / "pictures" / ("inside" if i > 3 else ".") / f"{i}.png"
        Image.fromarray(images[10 * i][0].numpy()).save(file)
    return tmp_path / "pictures"


def said(capsys, *words: object) -> tuple[int, str, str]:
    code = cli.main(["predict", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_rows_are_what_the_model_says(run, folder, capsys):
    code, out, err = said(capsys, run.folder, folder, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and err == "" and [Path(r["picture"]).stem for r in rows] == list("012345")
    with torch.inference_mode():
        wanted = run.model()(Site(run.config).data.images[:60:10]).softmax(-1)
    given = torch.tensor([[float(r[f"p_{name}"]) for name in run.class_names] for r in rows])
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)
    assert [r["class"] for r in rows] == [run.class_names[i] for i in wanted.argmax(-1).tolist()]
    assert [float(r["probability"]) for r in rows] == pytest.approx(wanted.amax(-1).tolist(), rel=1e-4)


def test_the_table_has_the_likeliest_classes(run, folder, capsys):
    code, out, _ = said(capsys, run.folder, folder / "0.png", "--top", "2")
    assert code == 0 and "0.png" in out and out.count("│") == 6
    assert said(capsys, run.folder, folder, "--top", "99")[0] == 0, "more than there are classes is all of them"


def test_pictures_that_cannot_be_read_are_a_line_each_and_the_others_are_predicted(run, folder, capsys):
    (folder / "9-empty.jpg").touch()
    (folder / "9-text.png").write_text("no picture")
    whole = (folder / "0.png").read_bytes()
    (folder / "9-cut.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = said(capsys, run.folder, folder, folder / "absent.png", "--csv")
    assert code == 2 and len(out.splitlines()) == 7
    lines = err.splitlines()
    assert len(lines) == 4 and all(line.startswith(f"error: {folder}/") for line in lines)
    for name, why in (("9-empty.jpg", "the file is empty"), ("absent.png", "no such file or directory")):
        todo = "give the path of a picture" if name.startswith("absent") else INSTEAD
        assert f"error: {folder}/{name}: cannot be read as a picture ({why}); {todo}" in lines
    code, out, err = said(capsys, run.folder, folder / "9-text.png")
    assert code == 2 and out == "" and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{run}", "{empty}"], "below it; give a picture, or a folder with files whose names end in .jpg, "),
        (["{pictures}", "{run}"], "and {run} is one; the run comes first: fedinit predict {run} {pictures}"),
        (["{empty}", "{pictures}"], "empty: not the folder of a run, it has no config.yaml; give the folder"),
        (["{run}"], "the following arguments are required: IMAGE; see fedinit predict --help"),
        (["{run}", "{pictures}", "--top", "0"], "--top 0: expected 1 or more"),
        (
            ["{run}", "{pictures}", "--client", "0"],
            "--client 0: strategy=lora_fair has one model for all clients; leave",
        ),
        (["{run}", "{pictures}", "--grey-range", "9", "3"], "--grey-range 9 3: expected two numbers of which the"),
    ],
)
def test_wrong_words_are_one_line(words, expected, run, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"run": run.folder, "empty": tmp_path / "empty", "pictures": folder}
    code, out, err = said(capsys, *[word.format(**places) for word in words])
    assert code == 2 and out == "" and err.count("\n") == 1 and expected.format(**places) in err


def test_a_picture_without_a_finite_number_cannot_be_read(run, tmp_path, capsys):
    for name, level in (("nan", np.nan), ("inf", np.inf), ("half", 0.5)):
        Image.fromarray(np.full((32, 32), level, np.float32)).save(tmp_path / f"{name}.tif")
    code, out, err = said(capsys, run.folder, tmp_path, "--csv", "--grey-range", 0, 1)
    assert code == 2 and [Path(r["picture"]).name for r in csv.DictReader(io.StringIO(out))] == ["half.tif"]
    assert err.splitlines() == [
        f"error: {tmp_path}/{name}.tif: cannot be read as a picture (none of its pixels is a finite number); {INSTEAD}"
        for name in ("inf", "nan")
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HOSTILE = 'a\x1b[31m\x07\u202egpj.exe,"b\n.png'


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file has such a name")
def test_names_are_whole_in_a_file_and_harmless_on_a_terminal(run, folder, tmp_path, capsys, monkeypatch):
    place = tmp_path / "hostile"
    place.mkdir()
    (place / HOSTILE).write_bytes((folder / "0.png").read_bytes())
    (place / "c\udcff.png").write_bytes((folder / "1.png").read_bytes())
    (place / "d\x1b.png").write_bytes(b"")
    code, out, err = said(capsys, run.folder, place, "--csv")
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert code == 2 and [r["picture"] for r in rows] == [str(place / HOSTILE), f"{place}/c\\xff.png"]
    assert err == f"error: {place}/d\ufffd.png: cannot be read as a picture (the file is empty); {INSTEAD}\n"
    terminal = Terminal(newline="")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["predict", str(run.folder), str(place), "--csv"]) == 2
    shown = [r["picture"] for r in csv.DictReader(io.StringIO(terminal.getvalue(), newline=""))]
    assert shown[0] == f'{place}/a\ufffd[31m\ufffd\ufffdgpj.exe,"b\ufffd.png'
    assert not {"\x1b", "\x07", "\u202e"} & set(terminal.getvalue())


def test_a_method_with_a_model_a_client_asks_whose(tmp_path, capsys):
    words = ("strategy=fedsa_lora", "rounds=1", "client.max_steps=1", f"output_dir={tmp_path}")
    run = fedinit.run(*SHORT, *words)
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    for asked, prefix in (((), ""), (("--client", 3), "--client 3: ")):
        code, _, err = said(capsys, run.folder, tmp_path / "a.png", *asked)
        assert code == 2
        assert err == f"error: {prefix}strategy=fedsa_lora has a model a client; say whose, --client 0 to 2\n"
    assert said(capsys, run.folder, tmp_path / "a.png", "--client", "1")[0] == 0


def test_a_run_without_classes_predicts_nothing(tmp_path, capsys):
    words = ("experiment=matrix_sensing", "logger=none", "rounds=1", "client.max_steps=1", "report=none")
    run = fedinit.run(*words, f"output_dir={tmp_path}")
    code, _, err = said(capsys, run.folder, tmp_path)
    assert code == 2 and "data=matrix_sensing has no classes to predict, and takes no pictures" in err


def test_deep_grey_is_shown_between_the_levels_of_the_runs_own_images(tmp_path):
    """Of data=image_folder, whose images are of 1000 to 5000: a picture of 3000 is in the middle of them."""
    root = plant(tmp_path / "root", "d/a", "d/b")
    for name, level in (("d/a/low", 1000), ("d/b/high", 5000)):
        Image.fromarray(np.full((4, 4), level, np.uint16)).save(root / f"{name}.png")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(picture)
    from fedinit.config.compose import compose_config
    from fedinit.models import InputSpec

    config, spec = compose_config(["data=image_folder", f"data.root={root}"]), InputSpec(1, 4, 4, (0.5,), (0.5,))

    def level(given="auto") -> int:
        window = pictures.window_of(config, [picture], given)
        return int(pictures.read([picture], spec, window).images[0, 0, 0, 0])

    assert level() == 128 and level((3000.0, 4000.0)) == 0
    # Under the name of another kind it is not measured, and told.
    misnamed = picture.rename(tmp_path / "picture.jpg")
    unread = pictures.read([misnamed], spec, pictures.window_of(config, [misnamed], "auto")).unread
    assert "or name a file by its own ending" in unread[0][1]
    misnamed.rename(picture)
    root.rename(tmp_path / "moved")
    with pytest.raises(fedinit.InputError, match="which cannot be read .*; say --grey-range LOW HIGH"):
        level()
    # Where no picture is deep, nothing is asked of the run's images.
    Image.new("L", (4, 4), 7).save(picture)
    assert level() == 7


def test_no_cell_of_a_table_begins_like_a_formula():
    made = [predicting.Prediction(Path("=1+1.png"), np.array([0.25, 0.75]))]
    file = io.StringIO()
    assert predicting.write_csv(file, iter(made), ["a", "=cmd|' ,C calc'!A0"]) == []
    (row,) = list(csv.reader(io.StringIO(file.getvalue())))[1:]
    assert row[0] == "./=1+1.png" and row[1] == "'=cmd|' ,C calc'!A0"
