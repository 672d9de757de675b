"""The experiments of LoRA-FAIR's paper: each composes by its own command, and is the paper's setting."""

from __future__ import annotations

import re

import pytest

from fedinit.cli import main
from fedinit.config.compose import compose_config
from fedinit.config.groups import CONF_DIR, groups
from fedinit.data.official import OFFICIAL

PAPER = [
    f"{data}_{model}{skew}" for data in ("domainnet", "nico") for model in ("mixer", "vit") for skew in ("", "_skew")
]


def test_all_are_there_and_offered() -> None:
    assert sorted(f"paper/{name}" for name in PAPER) == [e for e in groups()["experiment"] if "/" in e]


@pytest.mark.parametrize("name", PAPER)
def test_the_headers_command_is_the_papers_setting(name: str) -> None:
    header = [line for line in (CONF_DIR / f"experiment/paper/{name}.yaml").read_text().splitlines() if line[:1] == "#"]
    command = next(line for line in header if line.startswith("# python run_sim.py ")).split()[3:]
    assert command[0] == f"experiment=paper/{name}"
    text = " ".join(header)
    assert "Expected" in text and "arXiv 2411.14961" in text and "Cost: " in text
    config = compose_config(command)
    data, model, *skew = name.split("_")
    assert config.strategy.name == "lora_fair" and config.data.root == data and config.name == name
    assert config.model.name.startswith({"vit": "vit_base_patch16_224.", "mixer": "mixer_b16_224."}[model])
    assert config.rounds == {"domainnet": 50, "nico": 30}[data]
    adapter, client = config.adapter, config.client
    assert (adapter.rank, adapter.scale, adapter.dropout, adapter.targets) == (16, 2.0, 0.1, None)
    sgd = (client.lr, client.momentum, client.weight_decay, client.clip_norm, client.batch_size, client.epochs)
    assert sgd == (0.01, 0.9, 1e-5, 10.0, 128, 1) and client.max_steps == (5 if skew else 2)
    clients, share = (30, 0.6) if skew else (6, 1.0)
    assert config.partition.name == ("dirichlet" if skew else "domain") and config.participation == share
    assert config.partition.count(OFFICIAL[data].domains) == clients
    # The control: the figures of the header are of this setting.
    asked = int(clients * share)
    images = asked * client.max_steps * 128 * config.rounds
    assert f"Cost: {images:,} images trained on ({asked} x {client.max_steps} batches" in text
    size = {"vit": 12 * 16 * (768 + 768 + 3072 + 768), "mixer": 12 * 16 * (384 + 196 + 3072 + 768)}[model]
    sent = 4e-9 * (size + 769 * OFFICIAL[data].classes) * asked * config.rounds
    assert float(re.findall(r"([\d.]+) GB up", text)[0]) == pytest.approx(sent, abs=0.006)


def test_one_that_is_not_there_is_refused_with_the_nearest(capsys) -> None:
    assert main(["run", "experiment=paper/nico_vi"]) == 2
    assert "did you mean 'paper/nico_vit'?" in capsys.readouterr().err


def test_a_folder_of_ones_own_experiments_is_searched_too(tmp_path, capsys) -> None:
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    (tmp_path / "experiment" / "mine" / "short.yaml").write_text("# @package _global_\nrounds: 2\n")
    words = ["--config-dir", str(tmp_path), "experiment=mine/short", "--cfg", "job", "-p", "rounds"]
    assert main(["run", *words]) == 0
    assert "2" in capsys.readouterr().out
