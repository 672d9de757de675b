"""Nothing but the installed fedinit runs, whoever submits what, and only from the server's own machine. With processes:
tests/test_deployment.py."""

from __future__ import annotations

import asyncio
import importlib
import io
import re
import struct
import zipfile
import zlib

import pytest
import tomli
import tomli_w
from flwr.cli.build import build_fab_from_disk

from fedinit.deploy import guarded, layout
from fedinit.deploy.guarded import OnlySites, fault, is_here
from tests.support.small import small_config


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("app")
    layout.write_app(folder, small_config("evaluation=clients"))
    return build_fab_from_disk(folder)


def files_of(bundle: bytes) -> dict[str, bytes]:
    archive = zipfile.ZipFile(io.BytesIO(bundle))
    return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def project(**components: str) -> bytes:
    return of_project(components)


def of_project(components: dict[str, str], publisher: object = "fedinit", **about: object) -> bytes:
    app = {"components": components, "publisher": publisher}
    return tomli_w.dumps(
        {"project": {"name": "fedinit", "version": "0.1.0", **about}, "tool": {"flwr": {"app": app}}}
    ).encode()


def test_the_apps_that_fedinit_makes_are_let_in(honest):
    assert fault(honest) == "" and set(files_of(honest)) <= guarded.FILES


@pytest.mark.parametrize(
    "spoil",
    [
        lambda files: files | {"clients/client_app.py": b"open('written', 'w')"},
        lambda files: files | {"strategies/server_app.py": b""},
        lambda files: files | {"sitecustomize.py": b""},
        lambda files: files | {"torch.pth": b""},
        lambda files: files | {"../pyproject.toml": b""},
        lambda files: files | {"/etc/cron.d/x": b""},
        lambda files: files | {"evil.so": b""},
        lambda files: files | {"pyproject.toml": project(serverapp="evil:app", clientapp="clients.client_app:app")},
        lambda files: files | {"pyproject.toml": project(**guarded.COMPONENTS, agentapp="os:system")},
        lambda files: files | {"pyproject.toml": project(clientapp="clients.client_app:app")},
        lambda files: files | {"pyproject.toml": b"["},
        lambda files: files | {"LICENSE": bytes(2**21)},
        lambda files: {name: content for name, content in files.items() if name != "pyproject.toml"},
    ],
)
def test_a_bundle_of_anything_else_is_not(honest, spoil):
    assert fault(packed(spoil(files_of(honest))))
    assert fault(packed(files_of(honest))) == ""  # the control: packing it is not what is refused


@pytest.mark.parametrize(
    "about",
    [
        dict(version="1.0.0/../../../escaped/x"),
        dict(version="/tmp/x"),
        dict(version=".."),
        dict(version="1.0\n"),
        dict(version="1..0"),
        dict(version=[1, 0]),
        dict(version=""),
        dict(name="../fedinit"),
        dict(name="other"),
        dict(name=["fedinit"]),
        dict(publisher="a/../.."),
        dict(publisher=["fedinit"]),
    ],
)
def test_a_bundle_whose_folder_would_be_elsewhere_is_not(honest, about):
    """Flower unpacks it into apps/<publisher>.<name>.<version>.<hash>, and a version may be a path."""
    files = files_of(honest) | {"pyproject.toml": of_project(guarded.COMPONENTS, **about)}
    assert fault(packed(files))
    assert not fault(packed(files | {"pyproject.toml": of_project(guarded.COMPONENTS, version="12.0.1rc1")}))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (("project",), "dependencies", ["evil @ file:///tmp/evil"]),
        (("project",), "optional-dependencies", {"x": ["evil"]}),
        (("project",), "scripts", {"evil": "evil:main"}),
        (("project",), "dynamic", ["dependencies"]),
        ((), "build-system", {"requires": ["evil"], "build-backend": "evil"}),
        (("tool",), "setuptools", {"packages": ["evil"]}),
        (("tool", "flwr"), "federations", {"default": "evil"}),
        (("tool", "flwr", "app"), "fab-include", ["/*"]),
    ],
)
def test_a_project_that_says_more_than_a_run_is_not(honest, table, key, value):
    """Nothing of it is installed as the scripts start both programs, and no setting of Flower's is to change that."""
    whole = tomli.loads(files_of(honest)["pyproject.toml"].decode())
    place = whole
    for name in table:
        place = place[name]
    place[key] = value
    said = fault(packed(files_of(honest) | {"pyproject.toml": tomli_w.dumps(whole).encode()}))
    assert said == f"its project file says {'.'.join((*table, key))!r}"
    del place[key]  # the control
    assert fault(packed(files_of(honest) | {"pyproject.toml": tomli_w.dumps(whole).encode()})) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", {"file": "/etc/passwd"}),
        ("license", {"text": "Apache-2.0"}),
        ("license", ["MIT"]),
        ("description", {"a": 1}),
        ("description", 5),
    ],
)
def test_what_a_project_says_of_itself_are_texts(honest, key, value):
    """A licence by a table is a file's name, which whoever installs the project reads."""
    said = fault(packed(files_of(honest) | {"pyproject.toml": of_project(guarded.COMPONENTS, **{key: value})}))
    assert said == f"its project file says 'project.{key}' by no text"
    assert not fault(packed(files_of(honest) | {"pyproject.toml": of_project(guarded.COMPONENTS, **{key: "text"})}))


@pytest.mark.parametrize("name", ["LICENSE", "pyproject.toml"])
@pytest.mark.parametrize("claimed", ["less", "less, with its checksum", "more"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_file_of_another_size_than_it_says_is_not(honest, name, claimed, compression):
    files = files_of(honest)
    whole = files[name] = files.get(name, b"") + b"\n#" + b"a" * (10**6 if compression else 1000)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for each, content in files.items():
            archive.writestr(each, content)
        place = archive.start_dir
    bundle = bytearray(out.getvalue())
    assert fault(bytes(bundle)) == ""  # the control
    place = bundle.index(b"PK\x01\x02", place)
    while bundle[place + 46 :][: len(name)] != name.encode():
        place = bundle.index(b"PK\x01\x02", place + 1)
    size = len(whole) + 10 if claimed == "more" else len(whole) - 500
    bundle[place + 24 : place + 28] = struct.pack("<I", size)
    if "checksum" in claimed:
        bundle[place + 16 : place + 20] = struct.pack("<I", zlib.crc32(whole[:size]))
    assert fault(bytes(bundle))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_of_which_a_few_bytes_are_a_great_many_is_not(honest, compression):
    """Python unpacks a block of these at once, however little of it was asked for."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files_of(honest).items():
            archive.writestr(name, content)
    assert fault(out.getvalue()) == "it cannot be read (ValueError)"


@pytest.mark.parametrize("bundle", [b"", b"PK\x03\x04", bytes(10**6)])
def test_what_is_no_bundle_is_not(bundle):
    assert fault(bundle)


@pytest.mark.parametrize(
    ("client", "path", "let_in"),
    [
        (("127.0.0.1", 5), "/v1/control/start-run", True),
        (("::1", 5), "/v1/control/start-run", True),
        (("::ffff:127.0.0.1", 5), "/v1/control/start-run", True),
        (("192.0.2.7", 5), "/v1/fleet/pull-messages", True),
        (("192.0.2.7", 5), "/v1/control/start-run", False),
        (("192.0.2.7", 5), "/v1/control/register-node", False),
        (("192.0.2.7", 5), "/v1/control/stream-logs", False),
        (("192.0.2.7", 5), "/v1/runtime/acquire-task", False),
        (("192.0.2.7", 5), "/v1/fleet/../control/start-run", True),  # Starlette resolves no dots: there is no such path
        (("::ffff:192.0.2.7", 5), "/docs", False),
        (None, "/v1/control/start-run", False),
        (("localhost.example.org", 5), "/v1/control/start-run", False),
    ],
)
def test_runs_are_started_from_the_servers_own_machine(client, path, let_in):
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("the body of what is refused is not read")

    asyncio.run(OnlySites(app)({"type": "http", "client": client, "path": path}, receive, send))
    assert bool(reached) == let_in and bool(sent) != let_in
    assert let_in or sent[0]["status"] == 403
    assert is_here(("127.0.0.1", 1)) and not is_here(None)


def test_flower_has_what_is_guarded():
    """By the names at which it is; a Flower that renames them must not start unguarded."""
    from flwr.superlink import main as api
    from flwr.superlink.servicer.control import control_handlers
    from flwr.supernode import start_client_internal as node

    router = importlib.import_module("flwr.superlink.routers.control.router")
    assert router.control_handlers is control_handlers and callable(control_handlers.start_run)
    assert callable(api.create_app) and callable(node._pull_and_store_message) and callable(node._verify_fab)
    paths = {route.path for route in router.router.routes}
    assert "/v1/control/start-run" in paths and not any(path.startswith(guarded.FOR_SITES) for path in paths)


def test_a_sites_limits_are_said_before_its_node_is_there(capsys):
    words = ["--insecure", "--node-config", 'partition-id=1 min-images=20 statistics="none"', "--port", "9094"]
    guarded._say_limits(words)
    assert "limits: statistics=none min-images=20 min-test-images=8" in capsys.readouterr().err
    guarded._say_limits(["--node-config", 'limits="off"'])
    assert capsys.readouterr().err == "limits: off\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("partition-id=1 min-image=20", "min-image: no such setting of a site (did you mean 'min-images'?)"),
        ("min-images=-1", "expected a whole number of 0 or more"),
        ("partition-id=1 min-images=many", "--node-config "),
    ],
)
def test_a_node_with_settings_that_are_none_does_not_start(settings, said, monkeypatch):
    monkeypatch.setattr(guarded, "supernode", lambda: pytest.fail("it started"))
    with pytest.raises(SystemExit) as ended:
        guarded.main(["supernode", "--node-config", settings])
    assert str(ended.value.code).startswith("error: ") and said in str(ended.value.code)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("state-dir=3", "expected a path"),
        ('state-dir=""', "expected a path"),
        ('data-root=""', "expected a path"),
        ('data-root="/nonexistent"', "no such file or directory"),
        ('checkpoint="/nonexistent"', "no such file or directory"),
        ('noise-secret-file="/nonexistent"', "no such file or directory"),
        ('noise-secret=""', "is empty"),
        ('device="gpu"', "expected auto, cpu, cuda or cuda:<n>"),
        ("threads=0", "expected a whole number of 1 or more"),
        ("threads=1.5", "expected a whole number of 1 or more"),
        ('statistics="none,gram"', "expected all or none alone"),
        ('statistics="all,gram"', "expected all or none alone"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_the_node_is_there(given, said):
    with pytest.raises(SystemExit, match=f"^error: --node-config {given.partition('=')[0]}.*{re.escape(said)}"):
        guarded._say_limits(["--node-config", f"partition-id=0 {given}"])


def test_settings_that_work_are_not(tmp_path, capsys):
    (tmp_path / "secret").write_text("word")
    words = f'data-root="{tmp_path}" noise-secret-file="{tmp_path / "secret"}" state-dir="{tmp_path / "new"}"'
    words += ' device="cpu" threads=2 statistics="gram,total" checkpoint="embedded:glyph_vit.safetensors"'
    guarded._say_limits(["--node-config", f"partition-id=0 {words}"])
    assert "limits: statistics=gram,total" in capsys.readouterr().err
