"""The command: what a run leaves behind, and that wrong input ends in one line, exit code 2, and no folder."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import sys
import types

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import run_sim
from fedinit import wire
from fedinit.config.compose import compose_config
from fedinit.config.groups import CONF_DIR, groups
from fedinit.config.schema import load, to_dict
from fedinit.errors import InputError, RunFailed
from fedinit.runs.export import load_adapter
from fedinit.state import base_offset as base
from fedinit.state import digest
from fedinit.stopping import Stopped
from tests.support.small import WORDS


def command(*words: str) -> int:
    return run_sim.main([*WORDS, *words])


def test_a_run_leaves_its_folder(tmp_path, capsys):
    assert command(f"output_dir={tmp_path}", "evaluation.head_alone=true") == 0
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "digits").iterdir()
    assert str(folder) in printed and "head alone" in printed and "lora_fair: round 2/2" in printed
    names = {"config.yaml", "metrics.csv", "clients.csv", "ledger.jsonl", "summary.json", "DONE.json", "adapter"}
    names |= {"checkpoints", "made_of.json", "metrics.jsonl"}
    assert {p.name for p in folder.iterdir()} == names
    summary = json.loads((folder / "summary.json").read_text())
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["accuracy"]) == pytest.approx(summary["accuracy"])
    domains = summary["accuracy_by_domain"]
    assert list(domains) == ["plain", "inverted", "thick"]
    assert summary["accuracy"] == pytest.approx(sum(domains.values()) / 3)
    assert len(list(csv.DictReader(open(folder / "clients.csv")))) == 6
    # What goes up in a round is at least the trained float32 numbers of three clients; the rest is framing.
    payload = 3 * 4 * summary["trainable_parameters"]
    assert payload <= int(rows[0]["bytes_up"]) <= 1.6 * payload
    layers, head, offset = load_adapter(folder / "adapter")
    assert not offset
    assert digest.of_tensors(wire.to_tensors(layers, head)) == summary["final_hash"]
    # The kept configuration is the run's, word for word.
    import yaml

    kept = load(yaml.safe_load((folder / "config.yaml").read_text()))
    assert kept == compose_config([*WORDS, f"output_dir={tmp_path}", "evaluation.head_alone=true"])


def test_a_done_run_is_shown_and_a_new_one_moves_it_aside(tmp_path, capsys):
    words = (f"output_dir={tmp_path}", "rounds=1")
    assert command(*words) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    before = (folder / "metrics.csv").read_bytes()
    first = json.loads((folder / "summary.json").read_text())["final_hash"]
    capsys.readouterr()
    assert command(*words) == 0
    assert "this run is done" in capsys.readouterr().out and (folder / "metrics.csv").read_bytes() == before
    assert command(*words, "resume=never") == 0
    aside = folder.with_name(folder.name + ".1")
    assert (aside / "metrics.csv").read_bytes() == before
    assert json.loads((folder / "summary.json").read_text())["final_hash"] == first


def test_a_merged_base_is_kept_with_the_adapter(tmp_path):
    """W0 + s·O and the adapter on top are the whole model: their hash is the run's final hash."""
    assert command(f"output_dir={tmp_path}", "strategy=flora") == 0
    (folder,) = (tmp_path / "digits").iterdir()
    layers, head, offset = load_adapter(folder / "adapter")
    assert set(offset) == set(layers) and all(o.any() for o in offset.values())
    tensors = wire.to_tensors(layers, head) | {base.NAME + name: value for name, value in offset.items()}
    assert digest.of_tensors(tensors) == json.loads((folder / "summary.json").read_text())["final_hash"]


def test_engines_and_logging_are_not_part_of_a_runs_identity_but_bank_size_is():
    base = compose_config(WORDS)
    actors = compose_config([*WORDS, "engine=ray", "engine.actors=3", "engine.address=auto"])
    assert actors.identity() == base.identity()
    same = compose_config([*WORDS, "engine.lanes=4", "logger=wandb_offline", "output_dir=elsewhere", "seed=3"])
    assert base.identity() == same.identity()
    assert base.identity() != compose_config([*WORDS, "engine.clients_per_bank=1"]).identity()


def test_config_round_trips_through_plain_values():
    config = compose_config(["adapter.targets=[attn.qkv]", "data.classes=5", "strategy.solver=gram_sgd"])
    assert load(json.loads(json.dumps(to_dict(config)))) == config


def test_a_wandb_that_fails_in_mid_run_changes_nothing(tmp_path, capsys, monkeypatch):
    """At its second round, or at its end: one warning, and the run without wandb."""
    hashes = set()
    for fails in ("never", "log", "finish"):
        calls = []

        def log(values, step, fails=fails, calls=calls):
            calls.append(step)
            if fails == "log" and step == 2:
                raise ConnectionError("the service went")

        def finish(fails=fails):
            if fails == "finish":
                raise ConnectionError("the service went")

        made = types.SimpleNamespace(log=log, finish=finish, summary={})
        fake = types.SimpleNamespace(init=lambda made=made, **_: made, Settings=lambda **_: None)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        words = ("rounds=3", "client.max_steps=1", "evaluation=none", "logger=wandb_offline")
        assert command(f"output_dir={tmp_path / fails}", *words) == 0
        (folder,) = (tmp_path / fails / "digits").iterdir()
        hashes.add(json.loads((folder / "summary.json").read_text())["final_hash"])
        warnings = capsys.readouterr().out.count("wandb is off for this run: the service went")
        assert warnings == (fails != "never") and calls == ([1, 2] if fails == "log" else [1, 2, 3])
    assert len(hashes) == 1


@pytest.mark.slow
def test_wandb_offline_writes_and_a_broken_wandb_changes_nothing(tmp_path, capsys, monkeypatch):
    """Nor does the key that is in the environment get into any file of the run, or onto the screen."""
    canary, hashes = "c0ffee" * 6 + "1234", []
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SOME_PASSWORD"):
        monkeypatch.setenv(name, canary)
    for place in ("offline", "broken"):
        if place == "broken":
            import wandb

            monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(OSError("no such service")))
        assert command(f"output_dir={tmp_path / place}", "rounds=1", "logger=wandb_offline") == 0
        (folder,) = (tmp_path / place / "digits").iterdir()
        hashes.append(json.loads((folder / "summary.json").read_text())["final_hash"])
        assert (folder / "wandb").exists() == (place == "offline")
    assert hashes[0] == hashes[1]
    printed = "".join(capsys.readouterr())
    assert "wandb is off for this run: no such service" in printed and canary not in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if canary.encode() in path.read_bytes()]


def test_a_sweep_runs_every_combination_and_checks_all_of_them_first(tmp_path, capsys):
    words = (f"output_dir={tmp_path}", "rounds=1", "client.max_steps=1")
    assert command("-m", "-j", "1", "strategy=fedit,flora", "seed=0,1", *words) == 0
    done = [json.loads(p.read_text()) for p in tmp_path.glob("digits/*/summary.json")]
    assert sorted(d["strategy"] for d in done) == ["fedit", "fedit", "flora", "flora"]
    assert len({d["final_hash"] for d in done}) == 4
    capsys.readouterr()
    assert command("-m", "strategy=fedit,flora", "client.lr=0.1,-1", f"output_dir={tmp_path / 'none'}") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: client.lr=-1.0: expected a number in (0, inf)\n" and not (tmp_path / "none").exists()


def test_a_sweep_goes_on_after_a_failed_run_and_says_at_the_end_which_failed(tmp_path, capsys, monkeypatch):
    ran, faults = [], {1: RunFailed("nobody answered"), 2: ZeroDivisionError("by zero"), 4: InputError("no rank")}

    def simulate(config, console):
        ran.append(config.seed)
        if config.seed in faults:
            raise faults[config.seed]
        return {}

    monkeypatch.setattr(run_sim, "simulate", simulate)
    words = ("-m", "--jobs=1", "seed=range(0,6)", f"output_dir={tmp_path}")
    assert command(*words) == 1 and ran == [0, 1, 2, 3, 4, 5]
    reasons = ["run failed: nobody answered", "run failed: ZeroDivisionError: by zero", "error: no rank"]
    lines = [f"seed={seed}: {why}" for seed, why in zip(faults, reasons, strict=True)]
    assert capsys.readouterr().err.endswith("\n  ".join(["3 of 6 runs failed:", *lines]) + "\n")
    # Stopped, it says so of those that had failed before.
    faults[3] = Stopped(signal.SIGTERM)
    assert command(*words) == 143 and ran[6:] == [0, 1, 2, 3]
    assert "2 of 6 runs failed:\n  seed=1: run failed: nobody answered\n" in capsys.readouterr().err
    faults.clear()
    assert command(*words) == 0 and not capsys.readouterr().err


# -- wrong input ---------------------------------------------------------------------------------------------------


def refused(capsys, tmp_path, *words: str) -> str:
    """Run the command with an output folder of its own; return the one line it printed."""
    out = tmp_path / "out"
    assert command(f"output_dir={out}", *words) == 2
    captured = capsys.readouterr()
    assert not out.exists(), "nothing may be written"
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["round=3"], "round: no such key (did you mean 'rounds'?)"),
        (["client.learning_rate=1"], "client.learning_rate: no such key"),
        (["strategy=lorafair"], "no such choice (did you mean 'lora_fair'?). Choices: fed_sb, fedex_lora"),
        (["strategy.lam=-1"], "strategy.lam=-1.0: expected a number in [0, 1e+100]"),
        (["strategy.lam=nan"], "strategy.lam=nan: expected a number in [0, 1e+100]"),
        (["strategy.solver=closed"], "strategy.solver=closed: no such choice"),
        (["rounds=0"], "rounds=0: expected 1 or more; a run has one round or more"),
        (["rounds=many"], "rounds=many: expected a whole number"),
        (["rounds"], "rounds: expected key=value"),
        (["client.lr=0"], "client.lr=0.0: expected a number in (0, inf)"),
        (["participation=1.5"], "participation=1.5: expected a number in (0, 1]"),
        (["client.optimizer=sdg"], "client=sdg: no such choice (did you mean 'sgd'?)"),
        (["adapter.rank=25"], "adapter.rank=25: layer blocks.0.attn.proj is 24x24; expected a rank of 24 or less"),
        (["adapter.targets=[attn.pro]"], "'attn.pro' matches no linear layer (did you mean 'attn.proj'?)"),
        (["adapter.targets=[]"], "adapter.targets=[]: expected one pattern or more"),
        (["model.name=vit_tinny_patch16_224"], "timm knows no such model (did you mean 'vit_tiny_patch16_224'?)"),
        (["model.kwargs.depht=3"], "model.kwargs.depht"),
        (["+model.kwargs.embed=3"], "timm refuses"),
        (["model.checkpoint=absent.safetensors"], "model.checkpoint=absent.safetensors: no such file"),
        (["model.mean=[0.5,0.5]"], "model.mean: 2 values given, expected 1, one a channel"),
        (["data=image_folder"], "data.root="),
        (["data=image_folder", "data.root=absent"], "absent"),
        (["data.domains=[plain,invertd]"], "did you mean 'inverted'?"),
        (["partition.clients=4"], "partition.clients=4"),
        (["partition.clients=9000"], "too few for 3000 clients"),
        (["engine.device=tpu9"], "engine.device=tpu9: expected auto, cpu, cuda or cuda:<n>"),
        (["engine.device=cuda:\u0663"], "engine.device=cuda:\u0663: expected auto, cpu, cuda or cuda:<n>"),
        (["server_device=''"], "server_device='': expected auto, cpu, cuda or cuda:<n>"),
        (["init=orthogonal", "adapter.rank=3"], "needs an even rank"),
        (["adapter.ranks=[1,2,3,4]"], "adapter.ranks: 4 ranks for 3 clients"),
        (
            ["secure_aggregation=secagg", "strategy=fedit", "participation=0.5"],
            "secure_aggregation=secagg: a round has 2 clients (of 3, at participation=0.5); have 3 or more in a round",
        ),
        (["attack=scaled", "attack.count=9"], "attack=scaled: all of the 3 clients would attack; leave one honest"),
        (
            ["attack=scaled", "attack.clients=[9]"],
            "attack.clients=[9]: expected one or more of the partition ids 0 to 2",
        ),
        (
            ["robust=trust", "robust.root=3"],
            "robust.root=3: expected one of the partition ids 0 to 2",
        ),
        (
            ["robust=trust", "robust.root=1", "attack=scaled", "attack.clients=[1]"],
            "attack=scaled: client 1 would attack, which robust.root=1 vouches for",
        ),
        (["quorum=7"], "quorum=7: there are 3 clients"),
        (
            ["weighting=norm", "+strategy.weighting=uniform"],
            "strategy.weighting: no such key; weighting= is one of the run",
        ),
        (["engine=inline", "engine.lanes=2"], "engine.lanes: engine=inline does not read it; engine=threads does"),
        (["resume=maybe"], "resume=maybe: no such folder; expected auto, never or the folder of a run"),
        (["name=../away"], "name=../away: expected a plain word"),
        (["name='a\nb'"], "expected a plain word"),
    ],
)
def test_wrong_words(words, expected, tmp_path, capsys):
    assert expected in refused(capsys, tmp_path, *words)


def test_no_cuda_is_said_in_one_line(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "this machine has 0 CUDA devices" in refused(capsys, tmp_path, "engine.device=cuda")


def test_pickled_and_unfitting_checkpoints(tmp_path, capsys):
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    assert "not a safetensors file" in refused(capsys, tmp_path, f"model.checkpoint={pickled}")
    other = tmp_path / "other.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(5, 5)}, other)
    line = refused(capsys, tmp_path, f"model.checkpoint={other}")
    assert "does not fit the model: patch_embed.proj.weight is (5, 5), expected (24, 1, 8, 8)" in line


def image_tree(root, skip=()):
    for domain in ("photo", "sketch"):
        for kind in ("cat", "dog"):
            for i in range(6):
                if (domain, kind) not in skip:
                    path = root / domain / kind / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (8, 8), (i * 30, 0, 0)).save(path)
                else:
                    (root / domain / kind).mkdir(parents=True, exist_ok=True)


def test_bad_image_folders(tmp_path, capsys):
    words = ("data=image_folder",)
    image_tree(tmp_path / "a", skip=[("sketch", "cat"), ("sketch", "dog")])
    assert "sketch" in refused(capsys, tmp_path, *words, f"data.root={tmp_path / 'a'}", "data.domains=null")
    image_tree(tmp_path / "b", skip=[("photo", "dog"), ("sketch", "dog")])
    assert "dog" in refused(capsys, tmp_path, *words, f"data.root={tmp_path / 'b'}", "data.domains=null")
    image_tree(tmp_path / "c")
    (tmp_path / "c/photo/cat/0.png").write_bytes(b"\x89PNG not really")
    words += ("data.domains=null", "data.test_fraction=0.5")
    assert "photo/cat/0.png" in refused(capsys, tmp_path, *words, f"data.root={tmp_path / 'c'}")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/below"])
def test_an_output_place_that_cannot_be_written_is_refused_before_images_are_read(place, tmp_path, capsys, monkeypatch):
    if place.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("this system has no /proc, in which nobody makes a folder")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run_sim, "Site", None)  # that reads them
    assert command(f"output_dir={tmp_path / place}") == 2
    assert "cannot write there" in capsys.readouterr().err


def test_help_lists_every_group(capsys):
    assert run_sim.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for group, choices in groups().items():
        assert group in printed and all(choice in printed for choice in choices)


def test_conf_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert CONF_DIR.is_dir() and compose_config([]).rounds > 0
