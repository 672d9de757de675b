"""A run's final model is used only as the run wrote it: anything else would go by the run's figures and hash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fedinit
from fedinit import InputError, cli
from fedinit.inference.evaluating import evaluate
from tests.support.small import WORDS, slow_unless

SHORT = (*WORDS, "client.max_steps=1", "engine.lanes=1", "evaluation=none", "report=none")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One model for all; one over a base; a model a client."""
    words = {
        "one": ("rounds=1",),
        "based": ("strategy=flora", "rounds=2"),
        "each": ("rounds=1", "strategy=fedsa_lora", "evaluation=clients"),
    }
    out = tmp_path_factory.mktemp("runs")
    return {name: fedinit.run(*SHORT, *more, f"output_dir={out}").folder for name, more in words.items()}


def negate(file: Path) -> None:
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)


def spoil(file: Path) -> None:
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(file).items()}, file)


def rename(file: Path) -> None:
    names = json.loads(file.read_text())["classes"]
    file.write_text(json.dumps({"classes": names[::-1]}))


CHANGES: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "head": ("one", "adapter/head.safetensors", negate, "is not what the run wrote"),
    "NaN": ("one", "adapter/adapter_model.safetensors", spoil, "is not what the run wrote"),
    "class names": ("one", "adapter/classes.json", rename, "is not what the run wrote"),
    "wrong classes": ("one", "adapter/classes.json", lambda f: f.write_text('{"classes": 3}'), "is not what the run"),
    "no head": ("one", "adapter/head.safetensors", Path.unlink, "is not there, and the run wrote it"),
    "settings": ("one", "adapter/adapter_config.json", lambda f: f.write_text("{}"), "is not what the run wrote"),
    "a base": (
        "one",
        "adapter/base_offset.safetensors",
        lambda f: save_file({"blocks.0.attn.proj": torch.ones(64, 64)}, f),
        "the run wrote no such file",
    ),
    "offset": ("based", "adapter/base_offset.safetensors", negate, "is not what the run wrote"),
    "factors": ("based", "adapter/factors.safetensors", negate, "is not what the run wrote"),
    "a client's": ("each", "adapter/client-1/adapter_model.safetensors", negate, "is not what the run wrote"),
}


@pytest.mark.parametrize(
    "change", slow_unless(lambda change: change in ("factors", "offset", "a client's"), ((c,) for c in CHANGES))
)
def test_a_model_that_is_not_the_runs_is_not_used(runs, tmp_path, capsys, change):
    which, name, made, why = CHANGES[change]
    folder = Path(shutil.copytree(runs[which], tmp_path / "run"))
    picture = tmp_path / "a.png"
    Image.new("L", (32, 32), 120).save(picture)
    client = ("--client", "1") if which == "each" else ()
    uses = {
        "predict": (str(picture), *client),
        "evaluate": client,
        "export": ("--format", "merged", "--output", str(tmp_path / "export"), *client),
    }
    for command, words in uses.items():  # the copy itself is the run's
        assert cli.main([command, str(folder), *words]) == 0
    shutil.rmtree(tmp_path / "export")
    capsys.readouterr()
    made(folder / name)
    for command, words in uses.items():
        assert cli.main([command, str(folder), *words]) == 2
        said = capsys.readouterr()
        assert not said.out and f"{folder / name}: {why}" in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "export").exists()
    with pytest.raises(InputError, match=why):
        fedinit.load(folder).model(1 if which == "each" else None)


OTHERS = {
    "../../../etc/passwd": "names a file that no run writes, '../../../etc/passwd'",
    "/etc/passwd": "names a file that no run writes",
    "adapter/../summary.json": "names a file that no run writes",
    "config.yaml": "names a file that no run writes",
    "adapter/head.safetensors": "has no sha256 of files as its adapter",
}


@pytest.mark.parametrize("name", OTHERS)
def test_sums_of_what_no_run_writes_are_no_end(runs, tmp_path, capsys, name):
    folder = Path(shutil.copytree(runs["one"], tmp_path / "run"))
    done = json.loads((folder / "DONE.json").read_text())
    done["adapter"][name] = "0" * 64 if name not in done["adapter"] else "0" * 63
    (folder / "DONE.json").write_text(json.dumps(done))
    assert cli.main(["export", str(folder), "--format", "merged", "--output", str(tmp_path / "export")]) == 2
    said = capsys.readouterr().err
    assert f"{folder}: its DONE.json {OTHERS[name]}" in said and "not what a run writes" in said
    assert said.count("\n") == 1 and not (tmp_path / "export").exists()


def test_another_clients_model_is_used_beside_one_that_was_changed(runs, tmp_path):
    folder = Path(shutil.copytree(runs["each"], tmp_path / "run"))
    negate(folder / "adapter/client-1/adapter_model.safetensors")
    assert fedinit.load(folder).model(0)
    with pytest.raises(InputError, match="client-1"):
        evaluate(fedinit.load(folder))


def test_the_advice_brings_the_model_back(runs, tmp_path, capsys):
    """Without DONE.json the run goes on from its last checkpoint, which is of its end."""
    folder = Path(shutil.copytree(runs["one"], tmp_path / "run"))
    negate(folder / "adapter/head.safetensors")
    (folder / "DONE.json").unlink()
    assert cli.main(["run", f"resume={folder}"]) == 0
    for name in ("adapter/head.safetensors", "DONE.json"):
        assert (folder / name).read_bytes() == (runs["one"] / name).read_bytes()
    assert fedinit.load(folder).model()


def test_a_run_of_before_these_were_kept_is_taken_as_it_is(runs, tmp_path):
    folder = Path(shutil.copytree(runs["one"], tmp_path / "run"))
    done = json.loads((folder / "DONE.json").read_text())
    del done["adapter"]
    (folder / "DONE.json").write_text(json.dumps(done))
    assert fedinit.load(folder).model()
