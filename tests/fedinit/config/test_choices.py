"""A choice reads its own options and no other: what conf/ says, what is refused, and what a run's identity counts."""

from __future__ import annotations

import ast
import dataclasses
import functools
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import run_sim
from clients.optimizers import OPTIMIZERS
from fedinit.config.build import create, plain
from fedinit.config.client import CLIENTS
from fedinit.config.compose import compose_config
from fedinit.config.flower import flatten, from_run_config, to_run_config
from fedinit.config.groups import CONF_DIR, describe, groups
from fedinit.config.schema import GROUPS, PLACES, UNCOUNTED, Config, load, to_dict
from fedinit.errors import InputError
from fedinit.heads import HEADS
from fedinit.initializers import INITIALIZERS
from fedinit.runs import folder as run_folder
from fedinit.state import checkpoint
from fedinit.state.manifest import FOLDER
from strategies import AGGREGATORS
from strategies.reinit import REINITS
from strategies.robust import ROBUST
from strategies.server_opt import SERVER_OPTIMIZERS
from tests.support.source import nodes

ROOT = CONF_DIR.parent
LATER = {
    "strategy": AGGREGATORS,
    "reinit": REINITS,
    "server_opt": SERVER_OPTIMIZERS,
    "robust": ROBUST,
    "init": INITIALIZERS,
    "head": HEADS,
}
REGISTRIES: dict[str, Any] = {name: LATER.get(name, group.choices) for name, group in GROUPS.items()}
CHOICES = [(group, choice) for group in GROUPS for choice in REGISTRIES[group]]
# Values that are none of the defaults', where adding to the default does not give one.
OTHER = {
    "secure_aggregation.threshold": 0.9,
    "privacy.clip_quantile": 0.5,
    "privacy.count_noise": 2.0,
    "engine.clients_per_bank": 2,
    "engine.compile": True,
    "engine.precision": "bf16",
    "adapter.dropout": 0.1,
    "adapter.ranks": [8, 4],
    "adapter.targets": ["fc2"],
    "adapter.blocks": "last:2",
    "adapter.scaling": "rslora",
    "attack.clients": [1],
    "attack.direction": "unit",
    "client.augment": "flip",
    "client.betas": [0.5, 0.6],
    "client.gsnr_scope": "per_round",
    "client.loss": "cross_entropy",
    "client.max_steps": 7,
    "data.cache": "never",
    "data.cache_dir": "there",
    "data.classes": 5,
    "data.domains": ["plain", "noise"],
    "data.domain_column": "place",
    "data.evaluate_on": "val",
    "data.grey_range": "full",
    "data.fingerprint": "bytes",
    "data.image_column": "picture",
    "data.label_column": "kind",
    "data.layout": "class",
    "engine.lanes": 3,
    "engine.actors": 3,
    "engine.address": "auto",
    "engine.device": "cpu",
    "data.set": "svhn",
    "data.subset": "plain",
    "data.matrix.condition": 3.0,
    "data.matrix.corrupted": 0.2,
    "data.matrix.observe": "full",
    "data.root": "there",
    "data.validation_fraction": 0.5,
    "partition.clients": 12,
    "privacy.accountant": "pld",
    "privacy.delta": 0.5,
    "privacy.noise": 3.0,
    "privacy.sampling": "fixed",
    "privacy.second_clip": 2.0,
    "partition.test_domains": ["a"],
}


def conf(group: str, choice: str) -> dict[str, Any]:
    """What the choice's file says, without the key that holds the choice's name."""
    values = yaml.safe_load((CONF_DIR / group / f"{choice}.yaml").read_text())
    assert values.pop(GROUPS[group].key) == choice
    return values


def class_of(group: str, choice: str) -> type:
    cls = REGISTRIES[group][choice]
    return pkgutil.resolve_name(cls) if isinstance(cls, str) else cls


def options(group: str, choice: str) -> dict[str, Any]:
    """The options of the choice's class with their defaults, as plain values."""
    fields = [f for f in dataclasses.fields(class_of(group, choice)) if f.init and f.name != GROUPS[group].key]
    # `weighting` is a key of its own, which every method has.
    return {f.name: plain(f.default) for f in fields if (group, f.name) != ("strategy", "weighting")}


@functools.cache
def default() -> Config:
    return compose_config([])


def with_choice(group: str, choice: str) -> Config:
    """The default configuration with this choice, as its file has it."""
    return load(to_dict(default()) | {group: {GROUPS[group].key: choice, **conf(group, choice)}})


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_has_a_file_and_every_file_a_choice(group):
    extra = {"auto"} if group == "reinit" else set()  # the method's own
    assert set(groups()[group]) == set(REGISTRIES[group]) | extra
    if GROUPS[group].choices is not None:
        assert all(getattr(class_of(group, c)(), GROUPS[group].key) == c for c in REGISTRIES[group])


def test_an_optimiser_has_its_options_and_its_steps():
    assert set(CLIENTS) == set(OPTIMIZERS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_file_says_the_options_and_their_defaults(group, choice):
    known = options(group, choice)
    said = conf(group, choice)
    assert said == {key: known[key] for key in said}
    assert set(said) == set(known) or group == "reinit"  # whose `at` goes without saying where it changes nothing


@pytest.mark.parametrize("group", sorted(set(groups()) - set(GROUPS) - {"experiment"}))
def test_the_files_of_other_groups_say_every_field(group):
    hint = {f.name for f in dataclasses.fields(getattr(default(), group))}
    assert all({*yaml.safe_load((CONF_DIR / group / f"{c}.yaml").read_text())} == hint for c in groups()[group])


# -- what is refused -----------------------------------------------------------------------------------------------


def readers(group: str, key: str) -> list[str]:
    return [choice for choice in sorted(REGISTRIES[group]) if key in options(group, choice)]


def keys(group: str) -> list[str]:
    """All that any choice of the group reads."""
    return sorted({key for choice in REGISTRIES[group] for key in options(group, choice)})


FOREIGN = [(g, c, key) for g, c in CHOICES for key in keys(g) if key not in options(g, c)]


def test_there_is_something_to_refuse():
    assert len(FOREIGN) > 500 and {group for group, _, _ in FOREIGN} == set(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_a_key_of_another_choice_is_refused_with_that_choice(group):
    """All pairs of a choice and a key; and the negative control, that who reads it takes it."""
    for choice, key in [(c, k) for g, c, k in FOREIGN if g == group]:
        whose = readers(group, key)
        said = f"{group}.{key}: {group}={choice} does not read it; {group}={', '.join(whose)} do"
        with pytest.raises(InputError) as caught:
            create(group, REGISTRIES[group], choice, {key: options(group, whose[0])[key]})
        assert str(caught.value) == said + "es" * (len(whose) == 1)
        for reader in whose:
            create(group, REGISTRIES[group], reader, {key: options(group, reader)[key]})


@pytest.mark.parametrize("group", [name for name, group in GROUPS.items() if group.choices is not None])
def test_a_flat_run_config_with_another_choices_key_is_refused(group):
    """As a deployed client reads it, for every choice."""
    for choice in REGISTRIES[group]:
        config = with_choice(group, choice)
        assert from_run_config(to_run_config(config)) == config
        for key in [k for g, c, k in FOREIGN if (g, c) == (group, choice)]:
            value = options(group, readers(group, key)[0])[key]
            with pytest.raises(InputError, match=rf"^{group}\.{key}: {group}={choice} does not read it; {group}="):
                from_run_config(to_run_config(config) | flatten({group: {key: value}}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("client.betas=[.5,.6]", "client.betas: client=sgd does not read it; client=adamw does"),
        ("client=adamw client.momentum=0", "client.momentum: client=adamw does not read it; client=sgd, sgd_sai do"),
        ("+client.betas=[.5,.6]", "client.betas: client=sgd does not read it; client=adamw does"),
        ("client.momentun=0", "client.momentun: no such key (did you mean 'client.momentum'?). See fedinit run --help"),
        ("client.optimizer=adamw", "client.optimizer=adamw: brings no keys of its own; choose it as a group, client="),
        ("client.optimizer=adamv", "client=adamv: no such choice (did you mean 'adamw'?). Choices: adamw, sgd"),
        (
            "data.root=x",
            "data.root: data=digits does not read it; data=cifar10, cifar100, csv, hub, image_folder, torchvision do",
        ),
        ("data=image_folder data.rot=x", "data.rot: no such key (did you mean 'data.root'?)"),
        ("data.matrix.rows=3", "data.matrix: data=digits does not read it; data=matrix_sensing does"),
        (
            "data=cifar10 data.domains=[all]",
            "data.domains: data=cifar10 does not read it; data=csv, digits, hub, image_folder do",
        ),
        ("partition.alpha=9", "partition.alpha: partition=domain does not read it; partition=dirichlet does"),
        ("partition=pooled partition.clients=2", "partition=pooled does not read it; partition=dirichlet, domain, iid"),
        ("adapter=vera adapter.alpha=4", "adapter.alpha: adapter=vera does not read it; adapter=dora, lora do"),
        ("diagnostics.outputs=4", "diagnostics.outputs: diagnostics=none does not read it; diagnostics=init does"),
        ("strategy=fedit strategy.lam=1", "strategy.lam: strategy=fedit does not read it; strategy=lora_fair does"),
        ("server_opt.tau=1", "server_opt.tau: server_opt=none does not read it; server_opt=adam does"),
        ("reinit.side=right", "reinit.side: reinit=auto does not read it; reinit=gauge does"),
        ("experiment=quick head.shrinkage=1", "head.shrinkage: head=random does not read it; head=mvn does"),
        (
            "experiment=matrix_sensing data.classes=2",
            "data=matrix_sensing does not read it; data=cifar10, cifar100, csv, dig",
        ),
        ("reply_timeout=None", "reply_timeout=None: none is written null here, reply_timeout=null"),
        ("reply_timeout=none", "reply_timeout=none: expected a number, or null"),
        ("engine.compile=maybe", "engine.compile=maybe: expected true or false, or auto"),
        ("engine.clients_per_bank=many", "engine.clients_per_bank=many: expected a whole number, or auto"),
        ("model.checkpoint=None", "model.checkpoint=None: none is written null here, model.checkpoint=null"),
    ],
)
def test_on_the_command_line_it_is_one_line(words, said):
    with pytest.raises(InputError) as caught:
        compose_config(words.split())
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_of_ones_own_class_that_its_file_lacks_is_not_said_to_be_anothers(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(CLIENTS["sgd"]):
        betas: float = 0.5

    monkeypatch.setitem(CLIENTS, "sgd", Own)
    said = "client.betas: conf/client/sgd.yaml lacks it, which its class reads; add a line betas:"
    for experiment in ("", "experiment=quick"):  # by the files alone, and by Hydra
        with pytest.raises(InputError, match=said):
            compose_config([*experiment.split(), "client=sgd", "client.betas=0.1"])


def test_help_shows_a_default_as_a_word_that_is_taken():
    lines = [line.split(None, 1) for line in describe().partition("defaults:\n")[2].partition("\n\n")[0].splitlines()]
    shown = dict(lines)
    assert shown["reply_timeout"] == "null" and shown["preview"] == "false" and len(shown) > 12
    assert compose_config([f"{key}={value}" for key, value in shown.items()]) == compose_config([])


# -- what counts ---------------------------------------------------------------------------------------------------


# What a key is read with, and refused without.
READ_WITH: dict[str, dict[str, Any]] = {
    "privacy.clip_rate": {"clip_quantile": 0.5},
    "privacy.count_noise": {"clip_quantile": 0.5},
    "data.matrix.outlier": {"matrix": {"corrupted": 0.25, "outlier": 10.0}},
}


def other(key: str, value: Any) -> Any:
    """A legal value of this key that is not `value`."""
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value / 2 if isinstance(value, float) and value else value + 1
    return f"not {value}"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_key_of_a_choice_counts(group, choice):
    """Changing it changes the run's identity; what does not count is known."""
    config = with_choice(group, choice)
    assert load(to_dict(config)) == config
    for key, value in flatten(conf(group, choice)).items():
        values = to_dict(config)
        values[group] |= READ_WITH.get(f"{group}.{key}", {})
        base = load(values)
        inside, last = values[group], key.rpartition(".")[2]
        for part in key.split(".")[:-1]:
            inside = inside[part]
        inside[last] = other(f"{group}.{key}", inside[last])
        changed = load(values)
        assert changed != base, key
        assert (changed.identity() == base.identity()) == (f"{group}.{key}" in (*UNCOUNTED, *PLACES)), (key, value)


def attributes_read(*folders: str) -> set[str]:
    """The names of all attributes that are read in the source, but in checks of values."""
    found = set()
    for path in [*ROOT.glob("*.py"), *(p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")))]:
        checks = [n for n in nodes(path) if isinstance(n, ast.FunctionDef) and n.name == "__post_init__"]
        skipped = {id(inner) for check in checks for inner in ast.walk(check)}
        found |= {n.attr for n in nodes(path) if isinstance(n, ast.Attribute) and id(n) not in skipped}
    return found


def test_every_option_is_read_somewhere():
    read = attributes_read("fedinit", "clients", "strategies")
    assert {key for group in GROUPS for key in keys(group)} - read == set()
    assert "betass" not in read and "examples" in read


class Recorder:
    """Settings that remember which of their fields were read."""

    def __init__(self, settings: Any) -> None:
        self.settings, self.seen = settings, set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.settings, name)


# Of a client's training rather than of its optimiser's steps: the batches, the loss, and who fixes scales.
ELSEWHERE = {"batch_size", "epochs", "max_steps", "augment", "loss", "gsnr_scope"}


@pytest.mark.parametrize("name", CLIENTS)
def test_an_optimiser_reads_what_it_is_given_and_no_more(name):
    seen = Recorder(CLIENTS[name](prox=0.1, lr_ratio_b=2.0))
    leaves = {"l/A": torch.ones(2, 3, 4), "l/B": torch.ones(2, 5, 3)}
    optimizer = OPTIMIZERS[name](leaves, seen)
    for _ in range(2):
        optimizer.step({key: torch.ones_like(leaf) for key, leaf in leaves.items()}, 2)
    assert seen.seen == set(options("client", name)) - ELSEWHERE


# -- a run's folder ------------------------------------------------------------------------------------------------


def folder_of(config: Config, place: Path, **changed: Any) -> Path:
    """A run's folder with a checkpoint of round 1, its configuration changed in some groups."""
    values = to_dict(config)
    for group, more in changed.items():
        values[group] |= more
    (place / "checkpoints").mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(values))
    kept = checkpoint.Checkpoints(place / FOLDER, config.computed())
    kept.save(1, {"server": checkpoint.State({"x": torch.zeros(2)}, {"y": 1})})
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_with_another_choices_key_is_refused(tmp_path, capsys):
    place = folder_of(default(), tmp_path / "run", client={"betas": [0.9, 0.999]})
    assert run_sim.main([f"resume={place}"]) == 2
    said = capsys.readouterr().err
    why = "its config.yaml cannot be used (client.betas: client=sgd does not read it; client=adamw does)"
    assert said.startswith(f"error: resume={place}: {why}; ") and said.count("\n") == 1
    assert run_folder.configured(folder_of(default(), tmp_path / "whole")) == default()


def test_a_run_of_the_format_before_is_refused_in_one_line_and_left_alone(tmp_path, capsys, monkeypatch):
    """It has keys that nobody reads any more; what is said is that it is older, not which of them."""
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "FORMAT", 2)
        place = folder_of(default(), tmp_path / "run", data={"root": None, "cache_dir": None})
    there = contents(place)
    assert run_sim.main([f"resume={place}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {place}/checkpoints/round-000001: written by an older fedinit (format 2, this one")
    assert said.count("\n") == 1 and contents(place) == there


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("resume=true", "resume=true: expected auto, never or the folder of a run"),
        ("resume=null", "resume=null: expected auto, never or the folder of a run"),
        ("adapter.blocks=[3]", "adapter.blocks=[3]: expected last:<number>, such as last:4, or null for all blocks"),
        ("adapter.blocks=3", "adapter.blocks=3: expected last:<number>, such as last:4, or null for all blocks"),
    ],
)
def test_a_value_of_another_type_is_told_what_the_key_takes(word, said):
    with pytest.raises(InputError) as caught:
        compose_config([word])
    assert str(caught.value) == said
