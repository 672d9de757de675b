"""From words on a command line to a checked Config by way of conf/."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedinit.config.schema import CONF_DIR, Config, load
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
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error)) from error
    return load(values)


def describe_groups() -> str:
    """The groups and their choices, a line each, and the plain keys, for --help."""
    lines = ["Groups (group=choice):"]
    lines += [f"  {name:<11} {'  '.join(choices)}" for name, choices in groups().items()]
    values = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "config.yaml"))
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
    """Say which group has which choices before Hydra does, at greater length."""
    known = groups()
    for override in overrides:
        key, sep, choice = override.lstrip("+~").partition("=")
        if not sep:
            raise InputError(f"{override}: expected key=value, such as rounds=3")
        if key in known and choice not in known[key] and choice:
            raise InputError(
                f"{key}={choice}: no such choice{did_you_mean(choice, known[key])}. Choices: {', '.join(known[key])}."
            )


def _explain(error: Exception) -> str:
    """Hydra's first informative line, with the nearest key where one is unknown."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    key = getattr(cause, "full_key", None) or getattr(cause, "key", None)
    if "is not in struct" in text or "Could not override" in text:
        key = key or text.split("'")[1]
        return f"{key}: no such key{did_you_mean(str(key), _all_keys())}. See run_sim.py --help for the groups."
    return text


def _all_keys() -> list[str]:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        values = OmegaConf.to_container(compose("config"), resolve=False)

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        inside = [k for key, value in node.items() for k in walk(value, f"{prefix}.{key}" if prefix else str(key))]
        return ([prefix] if prefix else []) + inside

    return walk(values, "")
