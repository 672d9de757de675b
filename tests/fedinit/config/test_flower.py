"""One configuration: the resolved form as Flower's flat run config, and what of it a site takes from a server."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from pathlib import Path

import pytest
import tomli
import tomli_w
from flwr.common.config import flatten_dict, fuse_dicts
from flwr.common.serde import user_config_from_proto, user_config_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.config.flower import flatten, from_run_config, to_run_config, unflatten
from fedinit.config.site import with_site_settings
from fedinit.errors import InputError
from fedinit.heads import create_head
from fedinit.initializers import create_initializer
from fedinit.models import build_backbone
from fedinit.models.checkpoint import EMBEDDED_DIR
from fedinit.state.digest import of_file
from strategies import create_aggregator
from strategies.reinit import create_reinit
from strategies.robust import create_robust
from strategies.server_opt import create_server_optimizer
from tests.support.small import small_config

ROOT = Path(__file__).resolve().parents[3]
# What a key may hold, and the words that would be taken for something else were they sent as they are.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["null", "true", "[1,2]", "{}", "1e3", "-0", "NaN", '"quoted"', "", " 5", "0x10", "é", "\\", "a b=c"]
)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | texts
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
keys = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_"), min_size=1, max_size=8)
nested = st.dictionaries(keys, st.recursive(plain, lambda v: st.dictionaries(keys, v, max_size=3), max_leaves=8))


def over_flower(flat):
    """The flat form as it reaches an app: through the project file's TOML and Flower's protocol buffers."""
    project = flatten_dict(tomli.loads(tomli_w.dumps({"config": flat}))["config"])
    return fuse_dicts(project, user_config_from_proto(user_config_to_proto(flat)), check_keys=True)


@settings(max_examples=50, deadline=None)
@given(nested)
def test_flat_form_round_trips_through_flower(values):
    arrived = unflatten(over_flower(flatten(values)))
    assert arrived == values
    # == holds between 1, 1.0 and True: the types must be the same too.
    assert repr(arrived) == repr(values)


def test_the_flat_form_is_the_whole_configuration():
    config = small_config("evaluation=clients")
    flat = to_run_config(config)
    assert config == from_run_config(over_flower(flat))
    assert all(type(v) in (bool, int, float, str) for v in flat.values())


CANARY = "canary-of-a-site"


@pytest.mark.parametrize("key", [*to_run_config(small_config()), "model.kwargs.x", "data.nothing"])
def test_an_interpolation_in_a_run_is_text(key, monkeypatch):
    """Of the environment, of a file, of another key: whatever a server writes, a site says nothing that it holds."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    for written in ("${oc.env:AWS_SECRET_ACCESS_KEY}", '["${oc.env:AWS_SECRET_ACCESS_KEY}"]', "${oc.env:HOME,x}"):
        flat = to_run_config(small_config()) | {key: written}
        try:
            said = repr(from_run_config(flat))
        except InputError as error:
            said = str(error)
        assert CANARY not in said and "${oc.env:" in said or key.startswith("data.nothing")


@pytest.mark.parametrize(
    "flat",
    [
        {"overrides": "rounds='${oc.env:AWS_SECRET_ACCESS_KEY}'"},
        {"overrides": "hydra.searchpath=[file:///etc]"},
        {"overrides": "--config-dir=/etc"},
        {"overrides": ""},
        to_run_config(small_config()) | {"overrides": "rounds=2"},
        {},
    ],
)
def test_words_are_not_composed_where_a_run_is_read(flat, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setattr("fedinit.config.compose.compose_config", lambda *_: pytest.fail("composed"))
    with pytest.raises(InputError, match="in place of a configuration.*make an app of the words with") as caught:
        from_run_config(flat)
    assert CANARY not in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_a_million_brackets_is_text():
    assert unflatten({"a": "[" * 10**6}) == {"a": "[" * 10**6}


def test_a_resolved_run_needs_no_hydra():
    """A client's process is started for every message; composing would cost it time, and tie it to its own conf/."""
    import json
    import subprocess
    import sys

    flat = json.dumps(to_run_config(small_config()))
    code = f"import json, sys; from fedinit.config.flower import from_run_config as f; f(json.loads({flat!r}))\n"
    code += "import clients.client_app; print(*sorted({'hydra', 'omegaconf', 'torch', 'timm'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        ({"model": 1, "model.name": "x"}, "model.name: model is a value and a group at once"),
        ({"rounds": 3}, "name: not set"),
    ],
)
def test_wrong_run_configs(flat, expected):
    with pytest.raises(InputError) as caught:
        from_run_config(flat)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


PLANTED = "raise SystemExit('code of a stranger')\n"
GROUPS = [key for key in to_run_config(small_config()) if key.endswith((".name", ".kind", ".optimizer", "head.init"))]
MAKERS = {
    "strategy.name": lambda name, options: create_aggregator(name, **options),
    "reinit.name": create_reinit,
    "server_opt.name": create_server_optimizer,
    "robust.name": create_robust,
    "init.name": create_initializer,
    "head.init": create_head,
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that a name may lead to, and that ends the process where it is imported."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert "planted" not in sys.modules
    with pytest.raises(SystemExit, match="code of a stranger"):  # the control
        importlib.import_module("planted")


@pytest.mark.parametrize("word", ["planted.Component", "planted:Component", "Component", "planted", "builtins.eval"])
def test_a_name_that_is_no_registered_one_runs_nothing(word, planted):
    """Of every group, by a dotted path or a class's name: refused where the run is read, or, of what the server alone
    makes, text that a site looks up nowhere and that its maker does not know."""
    taken = set()
    for key in GROUPS:
        try:
            config = from_run_config(to_run_config(small_config()) | {key: word})
        except InputError as error:
            assert f"{word}" in str(error) and "\n" not in str(error), key
            continue
        taken.add(key)
        if key == "model.name":
            with pytest.raises(InputError, match="timm knows no such model"):
                build_backbone(config.model)
        else:
            Site(with_site_settings(config, {"partition-id": 0}))
            with pytest.raises(InputError, match="no such choice"):
                MAKERS[key](word, {})
    assert taken == {*MAKERS, "model.name"} and {"data.name", "adapter.kind", "client.optimizer"} <= {*GROUPS}


@pytest.mark.parametrize("key", ["strategy._target_", "init._target_", "client._target_", "model._target_", "_target_"])
def test_a_target_in_a_run_runs_nothing(key, planted):
    """Hydra makes an object of what stands there; here nothing does."""
    with contextlib.suppress(InputError):
        config = from_run_config(to_run_config(small_config()) | {key: "planted.Component"})
        Site(with_site_settings(config, {"partition-id": 0}))


def test_a_wrong_key_of_the_flat_form_is_named():
    flat = to_run_config(small_config()) | {"client.lrr": 0.1}
    with pytest.raises(InputError, match="client.lrr: no such key"):
        from_run_config(flat)
    with pytest.raises(InputError, match="a key in a Flower run config has no dot"):
        flatten({"a": {"b.c": 1}})


# -- a site's own settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("data.root=/etc", "data-root"),
        ("data.cache_dir=/var/tmp", "cache-dir"),
        ("model.checkpoint=/srv/weights.safetensors", "checkpoint"),
        ("engine.device=cuda:3", "device"),
        ("engine.threads=2", "threads"),
    ],
)
def test_a_server_cannot_set_what_is_the_sites(word, key):
    config, images = small_config("data=image_folder", word), {} if key == "data-root" else {"data-root": "/srv"}
    with pytest.raises(InputError) as caught:
        with_site_settings(config, {"partition-id": 0, **images})
    assert "came from the server" in str(caught.value) and f"--node-config '{key}=" in str(caught.value)
    own = {key: 3 if key == "threads" else "cpu", **images}
    assert with_site_settings(config, own) == with_site_settings(small_config("data=image_folder"), own) != config
    assert with_site_settings(config, {}, simulated=True) == config


def test_a_site_without_data_and_a_setting_that_there_is_not():
    config = small_config("data=image_folder", "data.domains=[a,b]")
    with pytest.raises(InputError, match="this site has no images for data=image_folder: start the node .*data-root"):
        with_site_settings(config, {"partition-id": 0})
    with pytest.raises(InputError, match="data_root: no such setting of a site .did you mean 'data-root'"):
        with_site_settings(config, {"partition-id": 0, "data_root": "/srv"})
    for wrong in (0, -1, "many", 1.5, True):
        with pytest.raises(InputError, match=f"--node-config threads={wrong}: expected a whole number of 1 or more"):
            with_site_settings(config, {"data-root": "/srv", "threads": wrong})
    own = {"data-root": "/srv", "cache-dir": "/var/tmp", "state-dir": "state", "noise-secret": "s"}
    assert with_site_settings(config, own).data.root == "/srv"
    assert with_site_settings(small_config(), own) == small_config()  # digits reads neither


def test_a_site_takes_embedded_weights_by_name_and_checks_the_hash():
    file = EMBEDDED_DIR / "glyph_vit.safetensors"
    config = compose_config([f"model.sha256={of_file(file)}"])
    model = with_site_settings(config, {}).model
    assert build_backbone(model).digest == build_backbone(compose_config([]).model).digest
    pinned = with_site_settings(config, {"checkpoint": str(file), "checkpoint-sha256": "0" * 64}).model
    with pytest.raises(InputError, match="expected 000000000000….*not the file that the run was made for"):
        build_backbone(pinned)


@pytest.mark.parametrize(
    "words",
    [
        ["model.checkpoint=embedded:../backbone.py"],
        ["model.checkpoint=null", "+model.kwargs.checkpoint_path=/srv/weights.pth"],
        ["model.checkpoint=null", "+model.kwargs.pretrained_cfg={file: /srv/weights.pth}", "model.pretrained=true"],
        ["model.sha256=abc"],
    ],
)
def test_weights_come_by_no_other_way(words):
    with pytest.raises(InputError, match="no such file|weights come from|64 hexadecimal digits"):
        build_backbone(compose_config(words).model)


def test_infinities_and_nan_survive():
    assert math.isnan(unflatten(over_flower(flatten({"a": math.nan})))["a"])
