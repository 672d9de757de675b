"""From words on a command line to a checked Config by way of conf/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedinit.config.build import not_read
from fedinit.config.schema import CONF_DIR, GROUPS, Config, load
from fedinit.errors import InputError, did_you_mean


def groups() -> dict[str, list[str]]:
    """{config group: its choices}, as the folders of conf/ have them."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF_DIR.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration for Hydra overrides such as ``["strategy=fedit", "rounds=3"]``.

    Raises InputError, one line, for an override that Hydra or a check refuses.
    """
    _check_groups(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        values = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error, overrides)) from error
    return load(values)


def describe_groups() -> str:
    """Text for --help: the groups with their choices, a line each, then the plain keys with their defaults."""
    lines = ["Groups (group=choice):"]
    lines += [f"  {name:<11} {'  '.join(choices)}" for name, choices in groups().items()]
    values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONF_DIR / "config.yaml")))
    lines += ["", "Keys (key=value), with their defaults:"]
    lines += [f"  {key:<14} {value}" for key, value in values.items() if key not in ("defaults", "hydra")]
    lines += ["", "Keys inside a group: model.checkpoint=  data.root=  adapter.rank=  client.lr=  strategy.lam=  …"]
    return "\n".join(lines)


def sweep(overrides: Sequence[str]) -> list[Config]:
    """One configuration for every combination of the values given, as Hydra's basic sweeper orders them:
    ``["strategy=fedit,flora", "seed=0,1"]`` makes four. All are composed and checked before any is returned.

    Raises InputError as `compose_config` does.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise InputError(_explain(error)) from error
    return [compose_config(words) for words in batch]


def _check_groups(overrides: Sequence[str]) -> None:
    """Say which group has which choices before Hydra does, at greater length, and that a choice comes as a group."""
    known = groups()
    names = {f"{name}.{group.key}": name for name, group in GROUPS.items() if group.choices is not None}
    for override in overrides:
        key, sep, choice = override.lstrip("+~").partition("=")
        if not sep:
            raise InputError(f"{override}: expected key=value, such as rounds=3")
        if key in known and choice not in known[key] and choice:
            raise InputError(
                f"{key}={choice}: no such choice{did_you_mean(choice, known[key])}. Choices: {', '.join(known[key])}."
            )
        if choice in known.get(names.get(key, ""), ()):
            raise InputError(f"{override}: brings no keys of its own; choose it as a group, {names[key]}={choice}")


def _explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Hydra's first informative line; for an unknown key the choices that have it, or the nearest one."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    key = getattr(cause, "full_key", None) or getattr(cause, "key", None)
    if "is not in struct" in text or "Could not override" in text:
        return _unknown(str(key or text.split("'")[1]), overrides)
    return text


def _unknown(key: str, overrides: Sequence[str]) -> str:
    """What is said of a key that is not there with the choices that the overrides make."""
    known = groups()
    choosing = [word for word in overrides if word.lstrip("+~").partition("=")[0] in known]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = compose("config", overrides=choosing, return_hydra_config=True)
    group, _, inside = key.partition(".")
    if inside and group in GROUPS:
        readers = [name for name in known[group] if inside in _keys(OmegaConf.load(CONF_DIR / group / f"{name}.yaml"))]
        if readers:
            return not_read(group, inside, composed.hydra.runtime.choices[group], readers)
    keys = [name for name in _keys(composed) if not name.startswith("hydra")]
    return f"{key}: no such key{did_you_mean(key, keys)}. See run_sim.py --help for the groups."


def _keys(node: DictConfig | ListConfig) -> list[str]:
    """The dotted names of all keys inside."""

    def walk(value: object, prefix: str) -> Iterator[str]:
        for key, inside in value.items() if isinstance(value, dict) else ():
            yield f"{prefix}{key}"
            yield from walk(inside, f"{prefix}{key}.")

    return list(walk(OmegaConf.to_container(node, resolve=False), ""))
