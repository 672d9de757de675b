"""What is exported scores what the run's table says, exactly, when the lines of its own card read it, and nothing else.

The card's code is run as it stands, in the folder alone, on a picture; the model that it makes is then judged on the
run's test images.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import fedinit
from clients.site import Site
from fedinit import cli
from fedinit.config.privacy import ClientPrivacyConfig
from fedinit.data.decoding import decode
from fedinit.exports import writing
from fedinit.exports.card import _reading, card
from fedinit.exports.merged import Merged
from fedinit.exports.portable import Portable
from fedinit.exports.writing import export
from tests.support.deep_pictures import RAMP, pgm, png, tiff
from tests.support.small import WORDS
from tests.support.timm_models import SMALL

SHORT = (*WORDS, "client.max_steps=2", "client.lr=0.01", "engine.lanes=1", "head=ridge", "evaluation.every=2")
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "peft": ("peft",)}
FORMATS = [
    "merged",
    "timm",
    pytest.param("peft", id="peft"),
    pytest.param("onnx", marks=pytest.mark.slow, id="onnx"),  # torch's exporter takes ten seconds
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> fedinit.Run:
    """Two rounds of LoRA-FAIR."""
    return fedinit.run(*SHORT, "evaluation.head_alone=true", f"output_dir={tmp_path_factory.mktemp('run')}")


@pytest.fixture(scope="module")
def personal(tmp_path_factory) -> fedinit.Run:
    """A run whose clients keep their B."""
    words = ("strategy=fedsa_lora", "evaluation=clients", f"output_dir={tmp_path_factory.mktemp('personal')}")
    return fedinit.run(*SHORT, *words)


def need(format: str) -> None:
    for package in NEEDS.get(format, ()):
        pytest.importorskip(package, reason=f"needs {package}")


def by_the_card(folder: Path, spec: Any, monkeypatch) -> dict[str, Any]:
    """What the names of the card's code stand for, once it has run in the folder on a picture of another size."""
    shape = (2 * spec.height, 3 * spec.width, 3)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, np.uint8)).save(folder / "picture.jpg", quality=90)
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(code, names)  # noqa: S102
    return names


def logits_of(names: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    """By whichever reader the card has made."""
    with torch.inference_mode():
        if "session" in names:
            return torch.from_numpy(names["session"].run(None, {"images": images.numpy()})[0])
        return names["model"].eval()(images)


@pytest.mark.parametrize("format", FORMATS)
def test_the_cards_own_lines_score_what_the_table_says(format, run, monkeypatch, tmp_path):
    need(format)
    (made,) = export(run, format, tmp_path / "out")
    assert made.difference is not None and made.difference <= 1e-5
    site = Site(run.config)
    data, spec = site.data, site.backbone.input
    names = by_the_card(tmp_path / "out", spec, monkeypatch)
    # The picture is brought to size as training images are, to a level of rounding, and the logits are the run's.
    pixels = torch.from_numpy(decode((tmp_path / "out" / "picture.jpg").read_bytes(), 1, (32, 32)).copy())[None]
    images = torch.as_tensor(np.asarray(names["images"]))
    assert (images - spec.normalise(pixels, torch.device("cpu"))).abs().max() <= 1.01 / 255 / spec.std[0]
    torch.testing.assert_close(torch.as_tensor(names["logits"]).detach(), run.model()(images), rtol=0, atol=1e-5)
    hits, of = torch.zeros(3), torch.zeros(3)
    for rows in data.test.nonzero().flatten().split(256):
        said = logits_of(names, spec.normalise(data.images[rows], torch.device("cpu"))).argmax(-1)
        hits.index_add_(0, data.domains[rows], (said == data.labels[rows]).float())
        of.index_add_(0, data.domains[rows], torch.ones(len(rows)))
    assert {n: 100 * int(hits[i]) / int(of[i]) for i, n in enumerate(data.domain_names)} == run.summary[
        "accuracy_by_domain"
    ]


class Shown(fedinit.Run):
    """Whose images had grey of more than 8 bits, of both kinds."""

    grey_range = {"I": (25100.0, 28000.0), "F": (-0.1, 0.7)}  # type: ignore[assignment]  # noqa: RUF012


PICTURES = {
    **{f"turned {way}": ("RGB", "jpg", way) for way in range(1, 9)},
    "turned in another format": ("RGB", "png", 6),
    "with alpha": ("RGBA", "png", 1),
    "grey with alpha": ("LA", "png", 1),
    "one colour is transparent": ("P", "gif", 1),
    "palette": ("P", "png", 1),
    "grey": ("L", "png", 1),
    "bits": ("1", "png", 1),
    "CMYK": ("CMYK", "jpg", 1),
    "YCbCr of a TIFF that turns itself": ("RGB", "tif", 8),
    "EXIF that cannot be read": ("RGB", "png", 0),
    "large": ("RGB", "jpg", 7),
    "16 bits": ("I;16", "png", 6),
    "32 bits": ("I", "tif", 1),
    "floating point": ("F", "tif", 1),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cards_lines_see_a_picture_as_a_prediction_does(kind, channels, run, monkeypatch, tmp_path):
    mode, suffix, way = PICTURES[kind]
    down, right = np.mgrid[0:90, 0:70].astype(np.float32)
    pixels = np.stack([2 * down, 3 * right, 255 - down - right, 2.8 * down], -1).clip(0, 255).astype(np.uint8)
    picture, exif = Image.fromarray(pixels, "RGBA"), Image.Exif()
    exif[ExifTags.Base.Orientation] = way
    options = {"transparency": 3} if suffix == "gif" else {}
    if mode == "P":
        picture = picture.convert("RGB")
    place = tmp_path / "picture.jpg"  # by its content, whatever it is called
    if suffix == "jpg" and kind == "large":
        picture = picture.resize((700, 900))
    if mode[0] in "IF":
        deep = (25000 + 40 * down if mode[0] == "I" else down / 90 - 0.2).astype("f4" if mode == "F" else "i4")
        picture = Image.fromarray(deep)
    exif = b"Exif\0\0no such thing" if not way else exif
    picture.convert(mode).save(place, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), exif=exif, **options)
    model = dataclasses.replace(Portable.of(run), run=Shown(run.folder))
    spec = dataclasses.replace(model.backbone.input, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    taken = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, input=spec))
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(_reading(taken, writing._format("merged"))), names)  # noqa: S102
    size = spec.height, spec.width
    decoded = torch.from_numpy(decode(place.read_bytes(), channels, size, Shown.grey_range).copy())[None]
    assert (names["images"] - spec.normalise(decoded, torch.device("cpu"))).abs().max() <= 1.01 / 255 / 0.5
    plain = np.asarray(Image.open(place).convert("RGB" if channels == 3 else "L").resize((32, 32)), np.float32)
    gap = np.abs(plain.reshape(32, 32, channels) / 255 - decoded[0].permute(1, 2, 0).numpy() / 255).mean()
    if (way > 2 and suffix != "tif" or "A" in mode) and mode[
        0
    ] != "I":  # the control: as it lies in the file it is another picture
        assert gap > 0.05


@pytest.mark.parametrize(
    ("levels", "said"), [("full", "(0.0, top)"), ((3.0, 3.0), "(3.0, 258.0)"), ({}, "kept no levels")]
)
def test_a_card_has_the_levels_of_the_run_or_says_that_there_are_none(levels, said, run, monkeypatch):
    monkeypatch.setattr(Shown, "grey_range", levels)
    model = dataclasses.replace(Portable.of(run), run=Shown(run.folder))
    text = "\n".join(_reading(model, writing._format("merged")))
    assert said in text and ("kept no levels" in text) is (levels == {})


DEEP = {
    "a PGM of 12 bits": pgm(RAMP, 4095, False),
    "a PGM of 10 in text": pgm(RAMP // 4, 1023, True),
    "big-endian": tiff(RAMP, order=">"),
}
NOT_READ = {
    "inverted": tiff(RAMP, is_white_zero=True),
    "unsigned": tiff(RAMP.astype(np.uint32)),
    "turned twice": tiff(RAMP.astype(np.float32), order=">", is_deflated=True),
    "alpha": png(np.stack([RAMP, RAMP], -1)),
    "transparent level": png(RAMP, 7),
}


@pytest.mark.parametrize("levels", ["full", {"I": (100.0, 900.0), "F": (0.0, 1.0)}, {}], ids=["full", "own", "none"])
@pytest.mark.parametrize("kind", [*DEEP, *NOT_READ])
def test_the_cards_lines_see_the_numbers_in_a_file_or_refuse_it(kind, levels, run, monkeypatch, tmp_path):
    monkeypatch.setattr(Shown, "grey_range", levels)
    model = dataclasses.replace(Portable.of(run), run=Shown(run.folder))
    content, names, spec = (DEEP | NOT_READ)[kind], {}, model.backbone.input
    (tmp_path / "picture.jpg").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(_reading(model, writing._format("merged")))
    if kind in NOT_READ or not levels:
        with pytest.raises(ValueError, match=r"grey"):
            exec(lines, names)  # noqa: S102
        return
    exec(lines, names)  # noqa: S102
    pixels = torch.from_numpy(decode(content, 1, (32, 32), None if levels == "full" else levels).copy())[None]
    torch.testing.assert_close(names["images"], spec.normalise(pixels, torch.device("cpu")), rtol=0, atol=1e-6)


def test_the_cards_lines_see_a_plain_tiff_that_is_turned(run, monkeypatch, tmp_path):
    """Opened by its name, Pillow maps it into memory with its sides swapped."""
    exif, ramp = Image.Exif(), np.add.outer(np.arange(90), 2 * np.arange(70)).astype(np.uint8)
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(ramp).save(tmp_path / "picture.jpg", "tiff", exif=exif)
    monkeypatch.chdir(tmp_path)
    model, names = Portable.of(run), {}
    exec("\n".join(_reading(model, writing._format("merged"))), names)  # noqa: S102
    pixels = torch.from_numpy(decode((tmp_path / "picture.jpg").read_bytes(), 1, (32, 32)).copy())[None]
    gap = names["images"] - model.backbone.input.normalise(pixels, torch.device("cpu"))
    assert gap.abs().max() <= 1.01 / 255 / 0.5


def test_what_the_model_takes_travels_with_it(run, tmp_path):
    export(run, "timm", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, 32, 32] and config["label_names"] == list("0123456789")
    assert config["pretrained_cfg"]["mean"] == [0.5] and config["pretrained_cfg"]["std"] == [0.5]
    assert config["model_args"] == dict(run.config.model.kwargs)
    assert config["fedinit"]["final_hash"] == run.summary["final_hash"] and config["fedinit"]["format"] == "timm"
    import timm
    from timm.data import resolve_model_data_config

    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    told = resolve_model_data_config(model)
    assert told["input_size"] == (1, 32, 32) and list(told["mean"]) == [0.5] and told["crop_pct"] == 1.0
    assert list(model.pretrained_cfg["label_names"]) == list("0123456789")


@pytest.mark.slow
def test_an_onnx_file_says_what_it_takes(run, tmp_path):
    need("onnx")
    import onnxruntime

    export(run, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["label_names"]) == list("0123456789") and json.loads(about["mean"]) == [0.5]
    (taken,) = session.get_inputs()
    assert taken.shape[1:] == [1, 32, 32] and isinstance(taken.shape[0], str)


@pytest.mark.parametrize("format", ["merged", "peft"])
def test_each_client_of_a_personal_method_has_a_model(format, personal, tmp_path):
    need(format)
    made = export(personal, format, tmp_path / "all")
    assert [m.folder.name for m in made] == ["client-0", "client-1", "client-2"]
    weights = {(m.folder / m.files[0]).read_bytes() for m in made}
    assert len(weights) == 3, "the control: none has another's"
    (alone,) = export(personal, format, tmp_path / "one", client=1)
    assert (alone.folder / alone.files[0]).read_bytes() == (made[1].folder / made[1].files[0]).read_bytes()
    assert "this is the model of client 1" in (alone.folder / "README.md").read_text()


@pytest.mark.slow
def test_a_model_that_timm_has_no_name_for_is_merged(tmp_path, monkeypatch):
    words = [w for w in SHORT if not w.startswith("model.")] + ["model=glyph_mixer", "rounds=1", "client.max_steps=1"]
    run = fedinit.run(*words, "evaluation=none", f"output_dir={tmp_path}")
    with pytest.raises(fedinit.InputError) as refused:
        export(run, "timm", tmp_path / "out")
    assert str(refused.value) == "--format timm: timm has no model of the name MlpMixer; use --format merged"
    assert not (tmp_path / "out").exists()
    export(run, "merged", tmp_path / "out")
    names = by_the_card(tmp_path / "out", run.backbone().input, monkeypatch)
    torch.testing.assert_close(names["logits"], run.model()(names["images"]))
    assert "was not evaluated" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_a_classifier_that_is_more_than_a_linear_layer_keeps_the_head_behind_it(tmp_path, monkeypatch):
    words = [w for w in SHORT if not w.startswith(("model.", "head"))] + ["model=vit_tiny", "model.name=levit_128s"]
    words += [
        "model.pretrained=false",
        "data.domains=[plain,thick]",
        "data.classes=2",
        "client.batch_size=2",
        "rounds=1",
        "client.max_steps=1",
        "evaluation=none",
        f"output_dir={tmp_path}",
    ]
    run = fedinit.run(*words)
    with pytest.raises(fedinit.InputError, match="the classifier of levit_128s is more than a linear layer"):
        export(run, "timm", tmp_path / "timm")
    for format in ("merged", "peft"):
        need(format)
        export(run, format, tmp_path / format)
        names = by_the_card(tmp_path / format, run.backbone().input, monkeypatch)
        torch.testing.assert_close(names["logits"].detach(), run.model()(names["images"]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_tensors_that_layers_share_are_written_for_each(tmp_path, monkeypatch):
    """CoaT's position encodings are one module in several blocks, and safetensors refuses tensors of one memory."""
    words = [w for w in SHORT if not w.startswith(("model.", "head"))] + ["model=vit_tiny", "model.name=coat_lite_tiny"]
    words += ["model.pretrained=false", "data.domains=[plain,thick]", "data.classes=2", "client.batch_size=2"]
    words += ["model.image_size=64", "rounds=1", "client.max_steps=1", "evaluation=none", f"output_dir={tmp_path}"]
    run = fedinit.run(*words)
    for format in ("merged", "timm", "peft"):
        need(format)
        export(run, format, tmp_path / format)
        names = by_the_card(tmp_path / format, run.backbone().input, monkeypatch)
        torch.testing.assert_close(names["logits"].detach(), run.model()(names["images"]), rtol=1e-5, atol=1e-5)


def test_a_size_that_the_model_was_made_with_is_among_its_arguments():
    from tests.support.timm_models import backbone_of

    assert backbone_of("vit_tiny_patch16_224", SMALL, image_size=32).arguments == {**SMALL, "img_size": 32}
    assert backbone_of("vit_tiny_patch16_224", SMALL).arguments == SMALL


# -- what is refused -------------------------------------------------------------------------------------------------


def told(capsys, *words: object) -> str:
    """What `fedinit export` says of words that are wrong."""
    assert cli.main(["export", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return said.err.removeprefix("error: ").strip()


def test_a_folder_that_cannot_be_written_is_one_line_and_what_is_there_stays(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for place in ("mine", "file"):
        assert "is there, and is no timm export; name a new folder" in told(
            capsys, run.folder, "--format", "timm", "--output", tmp_path / place
        )
    below = told(capsys, run.folder, "--format", "timm", "--output", tmp_path / "file" / "out")
    assert (
        below
        == f"{tmp_path}/file/out: cannot be written ({tmp_path}/file is a file); name another folder with --output"
    )
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "mine", "config.json"}
    # The control: what was exported before is written anew, and holds nothing else after it.
    for _ in range(2):
        assert cli.main(["export", str(run.folder), "--format", "timm", "--output", str(tmp_path / "new")]) == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize("name", ["checkpoints/model", "adapter", "adapter/new", "record/a/b", "summary.json"])
def test_a_runs_own_folders_are_no_place(name, run, tmp_path, capsys):
    other = shutil.copytree(run.folder, tmp_path / "other")
    (tmp_path / "link").symlink_to(run.folder)
    for folder in (run.folder, other, tmp_path / "link"):
        before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
        whole = run.folder if folder == tmp_path / "link" else folder
        line = told(capsys, run.folder, "--format", "merged", "--output", folder / name)
        assert line == f"--output {folder / name}: is among the files of the run in {whole}; name another folder"
        assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
    with pytest.raises(fedinit.InputError, match="is among the files of the run in"):
        export(run, "merged", run.folder / name)
    # The control: export/ is there for it.
    assert cli.main(["export", str(run.folder), "--format", "merged", "--output", str(other / "export" / "m")]) == 0


def test_an_export_of_another_format_is_not_written_over(run, tmp_path):
    export(run, "timm", tmp_path)
    with pytest.raises(fedinit.InputError, match="is there, and is no merged export"):
        export(run, "merged", tmp_path)


def test_no_run_an_unfinished_one_and_one_that_lost_a_file_are_a_line_each(run, personal, tmp_path, capsys):
    why = "not the folder of a run, it has no config.yaml; give the folder of a run, as fedinit run prints it"
    assert told(capsys, tmp_path, "--format", "timm") == f"{tmp_path}: {why}"
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes((run.folder / "config.yaml").read_bytes())
    assert "this run is not done, it came to round 0 of 2" in told(capsys, begun, "--format", "timm")
    assert "--format: invalid choice: 'tim'" in told(capsys, run.folder, "--format", "tim")
    lost = tmp_path / "lost"
    shutil.copytree(run.folder, lost)
    (lost / "adapter" / "head.safetensors").unlink()
    assert told(capsys, lost, "--format", "timm").startswith(f"{lost}/adapter/head.safetensors: is not there")


def test_a_client_that_has_no_model_is_told_in_the_commands_words_whatever_the_folder_holds(
    run, personal, tmp_path, capsys
):
    export(personal, "merged", tmp_path / "all")
    for place in ("all", "new"):
        words = ("--format", "merged", "--output", tmp_path / place, "--client")
        assert told(capsys, personal.folder, *words, "9") == (
            "--client 9: strategy=fedsa_lora has a model a client; say whose, --client 0 to 2"
        )
        assert told(capsys, run.folder, *words, "0") == (
            "--client 0: strategy=lora_fair has one model for all clients; leave --client out"
        )
    assert cli.main(["evaluate", str(personal.folder), "--client", "9"]) == 2
    assert "say whose, --client 0 to 2" in capsys.readouterr().err
    # A client that there is, and the folder of all of them.
    inside = tmp_path / "all" / "client-1"
    assert told(capsys, personal.folder, "--format", "merged", "--output", tmp_path / "all", "--client", "1") == (
        f"{tmp_path}/all: is there, and is no merged export; --output {inside} is this client's"
    )
    assert cli.main(["export", str(personal.folder), "--format=merged", "--client=1", f"--output={inside}"]) == 0


def test_an_export_that_is_written_anew_replaces_its_own_files_and_keeps_others(run, tmp_path, monkeypatch):
    export(run, "peft", tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    assert (tmp_path / "base.safetensors").is_file()
    # A run on timm's own weights writes none, and another's may not lie beside its adapter.
    monkeypatch.setattr("fedinit.exports.peft_adapter._has_weights_of_timm", lambda model: True)
    (made,) = export(run, "peft", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*made.files, "mine.txt"}
    assert "base.safetensors" not in made.files and (tmp_path / "mine.txt").read_text() == "mine"


def test_a_reader_that_gives_other_logits_leaves_nothing(run, tmp_path, monkeypatch):
    """The negative control of the check that every export goes through."""
    files = Merged.files

    def spoilt(self, model: Portable) -> dict[str, bytes]:
        weights = {k: v + 0.1 * (k == "head.bias") for k, v in model.module.state_dict().items()}
        from safetensors.torch import save

        return {**files(self, model), "model.safetensors": save(weights)}

    monkeypatch.setattr(Merged, "files", spoilt)
    with pytest.raises(fedinit.InputError, match="its reader gives other logits than the run's model, by 1.0e-01"):
        export(run, "merged", tmp_path / "out")
    assert not any(tmp_path.rglob("*.safetensors"))


def test_packages_that_are_missing_are_named(run, tmp_path, monkeypatch, capsys):
    from fedinit.exports import contract

    monkeypatch.setattr(contract.importlib.util, "find_spec", lambda name: None)
    assert told(capsys, run.folder, "--format", "onnx") == (
        '--format onnx: onnx and onnxscript are not installed; pip install "fedinit[onnx]"'
    )
    # What only the reader needs is not in the way; it is said that nobody has read it.
    assert cli.main(["export", str(run.folder), "--format", "peft", "--output", str(tmp_path / "out")]) == 0
    assert "; not read back: peft not installed" in capsys.readouterr().out


def test_a_backbone_that_is_gone_or_another_is_named(run, tmp_path, capsys):
    """The file can be named where it lies now; another file is refused by its hash."""
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file(run.backbone().module.state_dict(), file)
    words = (*SHORT, "rounds=1", "client.max_steps=1", "evaluation=none", f"model.checkpoint={file}")
    made = fedinit.run(*words, f"output_dir={tmp_path}")
    moved = file.rename(tmp_path / "moved.safetensors")
    gone = told(capsys, made.folder, "--format", "merged")
    assert gone.startswith(f"{made.folder}: the file of its backbone, {file}, is not there; name it, --checkpoint FILE")
    assert cli.main(["export", str(made.folder), "--format", "merged", "--checkpoint", str(moved)]) == 0
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 for k, v in run.backbone().module.state_dict().items()}, other)
    capsys.readouterr()
    assert "this is not the file that the run was made for" in told(
        capsys, made.folder, "--format", "timm", "--checkpoint", other
    )


def test_a_card_says_which_domains_nobody_trained_on_and_the_clients_ranks(run):
    other = fedinit.Run(run.folder)
    other.config = dataclasses.replace(
        run.config,
        partition=dataclasses.replace(run.config.partition, test_domains=("thick", "noise")),
        adapter=dataclasses.replace(run.config.adapter, ranks="halving"),
    )
    model, written = Portable.of(run), writing._format("merged")
    text = card(dataclasses.replace(model, run=other), written)
    assert "held-out images; of thick, noise, which nobody trained on, on all images." in text
    assert "(of clients `halving`)" in text
    plain = card(model, written)  # the control
    assert "of the same domains that were trained on." in plain and "(of clients" not in plain


def test_a_private_runs_seed_is_not_told_where_it_takes_the_noise_off(run):
    """The model of a simulated run came with the seed that gives its noise back, and with no word of its privacy."""

    class Told(fedinit.Run):
        summary: dict[str, Any] = {}  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: RUF012

    other, written = Told(run.folder), writing._format("merged")
    model = Portable.of(run)
    other.config = dataclasses.replace(run.config, privacy=ClientPrivacyConfig())
    spent = {"unit": "client", "epsilon": 8.0, "delta": 1e-5}
    for drawn in ("seed", "secret", None):  # None: of a version that did not say
        said = spent if drawn is None else {**spent, "noise_drawn_by": drawn}
        other.summary = {**run.summary, "privacy": said}
        told, secret = dataclasses.replace(model, run=other), drawn == "secret"
        assert ("seed" in told.origin()) == secret
        text = card(told, written)
        assert ("not told, `" in text) != secret and ("whoever has the weights finds by trying" in text) != secret
        assert ("of clients: ε 8 at δ 1e-05" in text) == (drawn is not None)
    assert model.origin()["seed"] == run.config.seed and "privacy" not in card(model, written)


def test_a_card_says_of_which_images_the_scores_are(run):
    other = fedinit.Run(run.folder)
    other.config = dataclasses.replace(
        run.config,
        data=dataclasses.replace(run.config.data, validation_fraction=0.2),  # type: ignore[call-arg]
    )
    some = dataclasses.replace(run.config.evaluation, where="clients", participation=0.25)
    other.config = dataclasses.replace(other.config, evaluation=some)
    model, written = Portable.of(run), writing._format("merged")
    text, plain = card(dataclasses.replace(model, run=other), written), card(model, written)
    assert "| validation accuracy, % |" in text and "Only a share of 0.25 of the clients with" in text
    assert "| test accuracy, % |" in plain and "Only a share of" not in plain  # the control


def test_names_in_a_card_are_no_markup(run):
    hostile = ("</script>", "a|b", "[x](http://y)", "*bold*\n# title")

    class Renamed(fedinit.Run):
        class_names = hostile  # pyright: ignore[reportAssignmentType]
        summary = {**run.summary, "not_scored": ["a|b"]}  # pyright: ignore[reportAssignmentType]

    model = Portable.of(run)
    text = card(dataclasses.replace(model, run=Renamed(run.folder)), writing._format("merged"))
    listed = next(line for line in text.splitlines() if line.startswith("Classes, in the order"))
    assert r"\</script\>, a\|b, \[x\](http://y), \*bold\* \# title." in listed
    assert r"Not scored: a\|b; the average is without it." in text
    assert "Not scored" not in card(model, writing._format("merged")), "the control"
