"""A configuration as YAML, in OmegaConf's words without its nodes, which take ten times as long as the text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader
from yaml.constructor import ConstructorError

from fedinit.config.groups import LOADER

_MAP = yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG


class _Loader(LOADER):
    """1e-3 is a number and 2026-01-01 a text, as OmegaConf has them, and no key is given twice."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len({*keys}) < len(keys):
        raise ConstructorError(problem="a key is given twice")  # OmegaConf says which
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(_MAP, _mapping)


class _Dumper(get_omega_conf_dumper()):
    """What is in two places is written in both."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def parsed(text: str) -> Any:
    """The values that this YAML holds, ${…} as it is written. Raises YAMLError, ValueError and RecursionError."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:  # it has the words; and libyaml refuses half a surrogate, of a path that is no UTF-8
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def to_yaml(values: Mapping[str, Any]) -> str:
    """What `parsed` reads as these values, as OmegaConf.to_yaml writes them."""
    return yaml.dump(dict(values), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
