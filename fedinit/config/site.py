"""What a site sets for itself in a deployment, in its --node-config, and no server sets for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fedinit.config.engine import refuse_no_device
from fedinit.config.limits import KEYS as LIMITS
from fedinit.config.limits import OFF, Limits
from fedinit.config.schema import Config
from fedinit.errors import InputError, Refused, did_you_mean
from fedinit.home import expand_home
from fedinit.opening import read_text

EMBEDDED = "embedded:"  # before the name of a checkpoint inside this package
# The setting, the key it stands for, and what that key is where nobody set it.
SITE_KEYS = {
    "data-root": ("data", "root", None),
    "cache-dir": ("data", "cache_dir", None),
    "checkpoint": ("model", "checkpoint", None),
    "checkpoint-sha256": ("model", "sha256", None),
    "device": ("engine", "device", "auto"),
    "threads": ("engine", "threads", 1),
}
MADE = {"cache-dir", "state-dir"}
PLACES = {"data-root", "checkpoint", "noise-secret-file", *MADE}
# Of a site's, too, and not about the run's configuration. num-partitions is what Flower's simulation gives; it is not
# read: how many clients there are is what the run's partition says.
OTHER_KEYS = ("partition-id", "num-partitions", "noise-secret", "noise-secret-file", "state-dir", OFF, *LIMITS)


def with_site_settings(config: Config, node_config: Mapping[str, object], simulated: bool = False) -> Config:
    """The run's configuration with this site's own paths, device and cores in it.

    A server says what to train, not where this machine keeps its files.

    node_config: {setting: value}, the site's --node-config.
    simulated: server and clients are on one machine, so the run may set the places.

    Raises Refused for a place or device that came with the run and that the site did not set itself, and for an engine
    that would join others' machines; InputError for a setting that does not exist.
    """
    if config.engine.name == "ray":
        raise Refused(
            "engine=ray: is for simulations by fedinit run; a client computes where it is: use engine=threads"
        )
    check_settings(node_config)
    for key, (group, field, unset) in SITE_KEYS.items():
        if not hasattr(getattr(config, group), field):
            continue  # what this run chose does not read it
        given = getattr(getattr(config, group), field)
        if key in node_config:
            value = str(node_config[key])
            config = _replace(config, group, field, _number(key, value) if isinstance(unset, int) else value)
        elif given != unset and not simulated and not _harmless(key, given):
            raise Refused(
                f"{group}.{field}={given} came from the server, but is the site's to set: start the node with "
                f"--node-config '{key}=\"…\"'"
            )
    if not simulated and getattr(config.data, "root", "none needed") is None:
        raise Refused(
            f"this site has no images for data={config.data.name}: start the node with --node-config 'data-root=\"…\"'"
        )
    return config


def check_settings(node_config: Mapping[str, object]) -> Limits | None:
    """A site's limits, by its --node-config; None where it took them off. Raises InputError for a setting that does not
    exist, a limit that is none, and a place, device or number that cannot be one."""
    known = sorted({*SITE_KEYS, *OTHER_KEYS})
    for key in sorted(node_config.keys() - {*known}):
        raise InputError(
            f"--node-config {key}: no such setting of a site{did_you_mean(key, known)}; known: {', '.join(known)}"
        )
    for key in PLACES & node_config.keys():
        place = node_config[key]
        if not isinstance(place, str) or not place:
            raise InputError(f"--node-config {key}={place!r}: expected a path")
    client = node_config.get("partition-id", 0)
    if type(client) is not int or client < 0:
        raise InputError(f"--node-config partition-id={client!r}: expected a whole number of 0 or more, without quotes")
    if "threads" in node_config:
        _number("threads", str(node_config["threads"]))
    if "device" in node_config:
        refuse_no_device("--node-config device", str(node_config["device"]))
    if "noise-secret" in node_config and not node_config["noise-secret"]:
        raise InputError("--node-config noise-secret: is empty; give any long random word")
    return Limits.of(node_config)


def check_places(node_config: Mapping[str, object]) -> None:
    """Raise InputError for a file or folder that is named, and is not on this machine; those that are made are not."""
    for key in sorted((PLACES - MADE) & node_config.keys()):
        place = str(node_config[key])
        if place.startswith(EMBEDDED):
            continue
        try:
            expand_home(key, place).stat()
        except OSError as error:
            raise InputError(f"--node-config {key}={place}: {(error.strerror or 'cannot be read').lower()}") from error


def noise_secret(node_config: Mapping[str, object]) -> str:
    """What the noise of this site's statistics is drawn from besides the seed, from the file that is named or as it is
    given; empty where it is neither. Raises InputError for a file that is not there, or empty."""
    given = node_config.get("noise-secret-file")
    if given is None:
        return str(node_config.get("noise-secret", ""))
    try:
        secret = read_text(expand_home("noise-secret-file", str(given))).strip()
    except (OSError, ValueError) as error:
        raise InputError(f"noise-secret-file={given}: {error}") from error
    if not secret:
        raise InputError(f"noise-secret-file={given}: is empty; write any long random word into it")
    return secret


def split_off(config: Config) -> tuple[Config, dict[str, str]]:
    """The configuration as a server may send it, and the settings taken out of it for a site on the same machine.

    The server keeps its own checkpoint, which it holds too: a site that sets one does not look at the server's.
    """
    settings = {}
    for key, (group, field, unset) in SITE_KEYS.items():
        given = getattr(getattr(config, group), field, unset)
        if given == unset or _harmless(key, given):
            continue
        settings[key] = str(given)
        if key != "checkpoint":
            config = _replace(config, group, field, unset)
    return config, settings


def _number(key: str, value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise InputError(f"--node-config {key}={value}: expected a whole number of 1 or more")
    return int(value)


def _harmless(key: str, value: object) -> bool:
    """From anyone: a file inside the package, and a file's expected hash."""
    return key == "checkpoint-sha256" or (key == "checkpoint" and str(value).startswith(EMBEDDED))


def _replace(config: Config, group: str, field: str, value: object) -> Config:
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})
