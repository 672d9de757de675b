"""`fedinit deploy` without a Flower process: what `init` writes, and that wrong input ends in one line.

With processes: tests/test_deployment.py.
"""

from __future__ import annotations

import datetime
import io
import json
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tomli
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import parse_config_args

import fedinit
from fedinit import cli
from fedinit.config import site as site_settings
from fedinit.config.compose import compose_config
from fedinit.config.flower import from_run_config
from fedinit.deploy import certificates, flower, layout
from fedinit.deploy.flower import Server
from fedinit.deploy.processes import DeployFailed, environment
from tests.support.small import WORDS
from tests.support.speaks import Speaks

IMAGES = (*WORDS, "data=image_folder")  # a source with places of its own
ROOT = Path(fedinit.__file__).resolve().parent.parent
FLWR = shutil.which("flwr", path=environment(ROOT)["PATH"])


def init(folder: Path, *words: str) -> int:
    return cli.main(["deploy", "init", str(folder), *WORDS, *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A federation of three sites under two names and an address."""
    folder = tmp_path_factory.mktemp("deploy") / "federation"
    assert init(folder, "--host", "server.example.org", "--host", "192.0.2.7", "--host", "::1", "--port", "8443") == 0
    return folder


def test_init_gives_each_machine_its_folder(made):
    assert {p.name for p in made.iterdir()} == {".gitignore", "ca", "server", "site-0", "site-1", "site-2"}
    assert {p.name for p in (made / "site-1").iterdir()} == {
        "ca.crt",
        "node.key",
        "node.pub",
        "supernode.sh",
        "fedinit-supernode.service",
        "noise.secret",
    }
    # No private key lies where it is not needed, and those that are there are their owner's alone.
    private = sorted(str(p.relative_to(made)) for p in made.rglob("*.key"))
    assert private == ["ca/ca.key", "server/server.key", *(f"site-{i}/node.key" for i in range(3))]
    assert all(stat.S_IMODE((made / p).stat().st_mode) == 0o600 for p in private)


def test_a_sites_key_pair_belongs_together_and_is_the_registered_one(made):
    seen = set()
    for i in range(3):
        private = load_ssh_private_key((made / f"site-{i}/node.key").read_bytes(), None)
        public = (made / f"server/sites/site-{i}.pub").read_bytes()
        assert private.public_key() == load_ssh_public_key(public)
        seen.add(public)
    assert len(seen) == 3


def shake_hands(server: Path, trusted: Path, name: str) -> None:
    """One TLS connection; raises ssl.SSLError where the client does not accept the server."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server / "server.crt", server / "server.key")
    theirs = ssl.create_default_context(cafile=str(trusted))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            try:
                ours.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=20) as plain:
                theirs.wrap_socket(plain, server_hostname=name).close()
        finally:
            thread.join()


def test_certificates_hold_for_the_names_given_and_for_no_other_authority(made, tmp_path):
    for name in ("server.example.org", "192.0.2.7", "::1", "localhost", "127.0.0.1"):
        shake_hands(made / "server", made / "site-0/ca.crt", name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch|doesn't match"):
        shake_hands(made / "server", made / "site-0/ca.crt", "other.example.org")
    assert init(tmp_path / "other") == 0
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(made / "server", tmp_path / "other/site-0/ca.crt", "localhost")


def test_the_app_is_the_whole_configuration_and_nothing_else(made):
    bundle = build_fab_from_disk(made / "server/app")
    assert len(bundle) < 10_000
    project = tomli.loads((made / "server/app/pyproject.toml").read_text())
    sent = from_run_config(project["tool"]["flwr"]["app"]["config"])
    assert sent == compose_config(["evaluation=clients", *WORDS]) == Server.at(made).config()


def test_scripts_say_what_flower_reads(made):
    script = (made / "site-2/supernode.sh").read_text()
    setting = next(line for line in script.splitlines() if line.startswith("NODE_CONFIG="))
    (value,) = shlex.split(setting.removeprefix("NODE_CONFIG="))
    own = {"partition-id": 2, "state-dir": "state", "noise-secret-file": "noise.secret"}
    assert parse_config_args([value]) == own
    assert "--superlink server.example.org:8443" in script and "--insecure" not in script
    superlink = (made / "server/superlink.sh").read_text()
    for word in ("host ::", "enable-supernode-auth", "disable-runtime-dependency-installation", "database"):
        assert f"--{word}" in superlink
    for path in made.rglob("*.sh"):
        assert subprocess.run(["sh", "-n", str(path)]).returncode == 0 and path.stat().st_mode & stat.S_IXUSR


def test_loopback_is_what_the_server_listens_on_unless_told_otherwise(tmp_path):
    assert init(tmp_path / "a", "--insecure") == 0
    text = (tmp_path / "a/server/superlink.sh").read_text()
    assert "--host 127.0.0.1" in text and "--insecure" in text and not (tmp_path / "a/ca").exists()
    for i, (hosts, bound) in enumerate(
        [
            (["127.0.0.1"], "127.0.0.1"),
            (["LOCALHOST", "localhost.", "127.0.0.2"], "127.0.0.1"),
            (["[::1]"], "::1"),
            (["2001:db8::1"], "::"),
            (["192.0.2.7"], "0.0.0.0"),
            (["fed.example.org"], "0.0.0.0"),
            (["127.0.0.1", "fed.example.org"], "0.0.0.0"),
            (["localhost.example.org"], "0.0.0.0"),
        ]
    ):
        assert init(tmp_path / str(i), *(word for host in hosts for word in ("--host", host))) == 0
        assert f"--host {bound} " in (tmp_path / str(i) / "server/superlink.sh").read_text(), hosts


def test_an_ipv6_address_is_written_once_in_brackets_and_is_an_address_in_the_certificate(tmp_path):
    assert init(tmp_path / "f", "--host", "[2001:DB8::1]", "--port", "8000") == 0
    script = (tmp_path / "f/site-0/supernode.sh").read_text()
    assert "--superlink '[2001:db8::1]:8000'" in script and "[[" not in script
    certificate = x509.load_pem_x509_certificate((tmp_path / "f/server/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {
        "2001:db8::1",
        "127.0.0.1",
        "::1",
    }
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_insecure_is_for_every_name_of_this_machine_and_for_no_other(tmp_path, capsys):
    for i, host in enumerate(("[::1]", "LOCALHOST", "localhost.", "127.0.0.2")):
        assert init(tmp_path / str(i), "--insecure", "--host", host) == 0
        text = (tmp_path / str(i) / "server/superlink.sh").read_text()
        assert f"--host {'::1' if host == '[::1]' else '127.0.0.1'} " in text
    capsys.readouterr()
    for host in ("fed.example.org", "2001:db8::1", "192.0.2.7", "localhost.example.org"):
        assert init(tmp_path / "no", "--insecure", "--host", "localhost", "--host", host) == 2
        said = capsys.readouterr().err
        assert f"--host {host}: --insecure is for this machine alone" in said and said.count("\n") == 1


def test_a_certificate_has_the_days_that_it_was_made_for_and_ends_with_its_authority(tmp_path):
    """As many as that authority has, in a renewal too, and as many as there are dates."""
    for name, days in (("f", "1"), ("g", "90"), ("h", str(certificates.most_days()))):
        assert init(tmp_path / name, "--days", days, "--authority-days", days) == 0
        server = tmp_path / name / "server"
        for _ in range(2):
            assert [certificates.read_days_left(server / file) for file in ("server.crt", "ca.crt")] == [int(days)] * 2
            own, authority = (
                x509.load_pem_x509_certificate((server / f).read_bytes()) for f in ("server.crt", "ca.crt")
            )
            assert own.not_valid_after_utc <= authority.not_valid_after_utc
            assert cli.main(["deploy", "renew", str(server), "--days", days]) == 0


@pytest.mark.parametrize(("hours", "days"), [(1, 1), (24, 1), (25, 2), (-1, -1), (-25, -2)])
def test_the_day_that_has_begun_counts_and_none_once_it_is_over(hours, days):
    class Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        not_valid_after_utc = now + datetime.timedelta(hours=hours)

    assert certificates.days_left(Certificate()) == days


def test_a_sites_settings_survive_into_its_node_config(tmp_path):
    """What the operator gave for sites on this machine goes into their scripts, and is not in what the server sends."""
    sent, own = site_settings.split_off(compose_config([*IMAGES, "data.root='/my images/a=b'", "engine.device=cpu"]))
    assert sent.data.root is None and sent.engine.device == "auto"
    federation = layout.Federation(hosts=["127.0.0.1"], port=1, node_ports=[2], secure=False)
    layout.make(tmp_path / "f", federation, sent, own)
    line = next(x for x in (tmp_path / "f/site-0/supernode.sh").read_text().splitlines() if x.startswith("NODE_CONFIG"))
    read = parse_config_args([shlex.split(line.partition("=")[2])[0]])
    places = {"state-dir": "state", "noise-secret-file": "noise.secret", "data-root": "/my images/a=b"}
    assert read == {"partition-id": 0, **places, "device": "cpu"}
    assert site_settings.with_site_settings(sent, read).data.root == "/my images/a=b"


def test_no_secret_leaves_its_file(tmp_path, monkeypatch):
    """Not one of the environment, and not a private key's, lies in any other file that `init` makes or bundles."""
    canary = "c0ffee" * 6 + "1234"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SOME_PASSWORD"):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("PATH", "")  # neither openssl nor ssh-keygen is needed
    assert init(tmp_path / "f") == 0
    files = {p: p.read_bytes() for p in (tmp_path / "f").rglob("*") if p.is_file()}
    keys = [p for p in files if p.suffix == ".key"]
    secrets = [canary.encode(), *(files[p].splitlines()[2] for p in keys)]
    assert len(keys) == 5 and len(files) > 15
    for secret in secrets:
        assert sum(secret in content for content in files.values()) == (secret != canary.encode())
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path / "f/server/app")))
    bundled = b"".join(bundle.read(name) for name in bundle.namelist())
    assert not [secret for secret in secrets if secret in bundled]


@pytest.mark.slow
def test_a_client_imports_no_more_than_it_needs():
    """Every message starts a process: the app itself is there before torch, and a ready client without the rest."""
    code = """
import sys
import clients.client_app
assert "torch" not in sys.modules and "timm" not in sys.modules
import clients.cohort, clients.state.disk, clients.site
from fedinit.data.digits import load_digits
load_digits(32)
print(sorted({"sklearn", "hydra", "matplotlib", "ray", "strategies"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_the_units_let_programs_write_where_they_were_told_to(tmp_path):
    words = ["data=image_folder", f"data.cache_dir={tmp_path}/decoded images", f"output_dir={tmp_path}/runs"]
    inside = ["data=image_folder", "data.cache_dir=cache", "output_dir=outputs"]
    assert init(tmp_path / "a", *words) == init(tmp_path / "b", *inside) == 0

    def writable(unit: str) -> str:
        return next(x for x in (tmp_path / unit).read_text().splitlines() if x.startswith("ReadWritePaths="))

    assert writable("a/site-1/fedinit-supernode.service") == (
        f'ReadWritePaths=/opt/fedinit/site-1 "-{tmp_path}/decoded images"'
    )
    assert writable("a/server/fedinit-superlink.service") == f'ReadWritePaths=/opt/fedinit/server "-{tmp_path}/runs"'
    assert writable("b/site-1/fedinit-supernode.service") == "ReadWritePaths=/opt/fedinit/site-1"
    assert writable("b/server/fedinit-superlink.service") == "ReadWritePaths=/opt/fedinit/server"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    folder = tmp_path / "federation"
    cache = f"data.cache_dir={tmp_path}/decoded images"
    assert init(folder, "--installed", str(folder), "data=image_folder", cache) == 0
    for unit in folder.rglob("*.service"):
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        said = [x for x in done.stderr.splitlines() if unit.name in x and "no such" not in x.lower()]
        assert not said, said


# -- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["deploy", "init"], "FOLDER; see fedinit deploy init --help"),
        (["deploy", "init", "{made}"], "is there already; keys are not overwritten"),
        (["deploy", "init", "{new}", "--host", "bücher"], "expected a name or an address"),
        (["deploy", "init", "{new}", "--host", "1.2.3"], "--host 1.2.3: expected a name or an address"),
        (
            ["deploy", "init", "{new}", "--host", "fed.example.org", "--insecure"],
            "--insecure is for this machine alone",
        ),
        (
            ["deploy", "init", "{new}", "--insecure", "--host", "::1", "--host", "192.0.2.7"],
            "--host 192.0.2.7: --insecure",
        ),
        (["deploy", "init", "{new}", "--days", "3000000", "--authority-days", "3000000"], "--days 3000000: 29"),
        (
            ["deploy", "init", "{new}", "--authority-days", "3000000"],
            "are the most, since dates end with the year 9999",
        ),
        (["deploy", "init", "{new}", "--installed", "/a;b"], "--installed /a;b: expected an absolute path of letters"),
        (["deploy", "init", "{new}", "--installed", "/a*"], "--installed /a*: expected an absolute path of letters"),
        (["deploy", "init", "{made}/server/superlink.sh"], "superlink.sh: Not a directory; choose a new folder"),
        (["deploy", "init", "{made}/server/superlink.sh/x"], "superlink.sh is a file; choose a new folder"),
        (
            ["deploy", "init", "{new}", "--sites", "2", "data=image_folder", "data.root='a\"b'"],
            "a setting of a site can hold no quote",
        ),
        (["deploy", "init", "{new}", "--sites", "0"], "--sites 0: the configuration makes 6 clients"),
        (["deploy", "init", "{new}", "--sites", "1", "data.domains=[plain,thick]"], "makes 2 clients, each a site"),
        (["deploy", "init", "{new}", "--sites", "9", "data.domains=[plain,thick]"], "makes 2 clients, each a site"),
        (["deploy", "init", "{new}", "--sites", "2", "partition.clients=12"], "--sites 2: the configuration makes 12"),
        (["deploy", "up", "--sites", "3", "data.domains=[plain,thick]"], "makes 2 clients, each a site"),
        (["deploy", "init", "{new}", "--sites", "0", "data=image_folder"], "--sites 0: expected 1 or more"),
        (["deploy", "init", "{new}", "--sites", "-3", "data=image_folder"], "--sites -3: expected 1 or more"),
        (["deploy", "init", "{new}", "--days", "0"], "--days 0: expected 1 or more"),
        (["deploy", "init", "{new}", "--days", "-5"], "--days -5: expected 1 or more"),
        (["deploy", "init", "{new}", "--port", "0"], "--port 0: expected 1 to 65535"),
        (["deploy", "init", "{new}", "--node-port", "0"], "--node-port 0: expected 1 to 65535"),
        (
            ["deploy", "init", "{new}", "--node-port", "65533"],
            "--node-port 65533: gives site 3 the port 65536; expected",
        ),
        (["deploy", "init", "{new}", "partition=iid", "partition.clients=null", "--hosts", "x"], "--hosts"),
        (["deploy", "init", "{new}", "round=3"], "round: no such key (did you mean 'rounds'?)"),
        (["deploy", "init", "{new}", "evaluation=server"], "a Flower server holds no images"),
        (["deploy", "init", "{new}", "data=image_folder"], "how many sites?"),
        (["deploy", "init", "{new}", "model.checkpoint=absent.safetensors"], "no such file"),
        (["deploy", "init", "{new}", "--port", "9094"], "--port 9094: --node-port 9094 gives it to a site"),
        (["deploy", "init", "{new}", "--port", "9099", "--host", "x.org"], "--port 9099: --node-port 9094 gives it to"),
        (["deploy", "init", "{new}", "--installed", "opt"], "--installed opt: expected an absolute path"),
        (["deploy", "init", "{new}", "--installed", "/a b"], "--installed /a b: expected an absolute path"),
        (["deploy", "init", "{new}", "attack=sign_flip"], "attack=sign_flip: is for simulations"),
        (
            ["deploy", "init", "{new}", "secure_aggregation=secagg", "strategy=fedit", "data.domains=[plain,thick]"],
            "secure_aggregation=secagg: there are 2 sites; have 3 or more in a round, for of two",
        ),
        (["deploy", "init", "{new}", "--host", "a;touch x"], "--host a;touch x: expected a name or an address"),
        (["deploy", "init", "{new}", "output_dir='/x\" \"/etc'"], "a place with quotes, a backslash or a line break"),
        (["deploy", "up", "--port", "70000"], "--port 70000: expected 1 to 65535"),
        (["deploy", "up", "--prt", "7000"], "--prt: not an option of fedinit deploy up"),
        (["deploy", "run", "{new}"], "no federation.json there"),
        (["deploy", "status", "{new}"], "no federation.json there"),
        (
            ["deploy", "status", "{made}/site-0"],
            "a site's folder; this is asked of the server's, the one with superlink",
        ),
        (["deploy", "run", "{made}", "rounds=2"], "takes what the folder holds; fedinit deploy app changes it"),
        (["deploy", "down"], "invalid choice"),
        (["depoly"], "depoly: no such command (did you mean 'deploy'?)"),
    ],
)
def test_wrong_words(argv, expected, made, tmp_path, capsys):
    new = tmp_path / "new"
    assert cli.main([word.format(made=made, new=new) for word in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and expected in said
    assert not new.exists()


def test_a_port_in_use_is_one_line_and_starts_nothing(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["deploy", "up", *WORDS, "--port", str(port)]) == 2
    assert f"something else listens on 127.0.0.1:{port}; choose another port" in capsys.readouterr().err


def test_a_federation_that_cannot_be_made_leaves_no_part_of_it(tmp_path, monkeypatch, capsys):
    """The same words again, once they are right, are not refused for what the first left."""
    assert cli.main(["deploy", "init", str(tmp_path / "f"), *WORDS, "engine.device='a\"b'"]) == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "f").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(layout.certificates, "write_node_key", lambda folder: (folder / "node.key" / "x").read_text())
        assert init(tmp_path / "f") == 1  # as where the disk is full
    assert list((tmp_path / "f").iterdir()) == []
    assert capsys.readouterr().err.splitlines()[1].startswith("failed: No such file or directory")
    assert init(tmp_path / "f") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_federation_that_a_signal_came_into_leaves_no_part_of_it(number, tmp_path, monkeypatch, capsys):
    """Nor does a second one, while the first one's is put in order."""
    remove = shutil.rmtree

    def signalled(*given: object) -> None:
        signal.raise_signal(number)

    def again(*given: Any, **named: Any) -> None:
        signal.raise_signal(number)
        remove(*given, **named)

    monkeypatch.setattr("fedinit.deploy.layout._keys", signalled)
    monkeypatch.setattr("fedinit.deploy.layout.shutil.rmtree", again)
    assert init(tmp_path / "made") == 128 + number
    assert not (tmp_path / "made").exists() and capsys.readouterr().err == "interrupted\n"
    monkeypatch.undo()
    assert init(tmp_path / "made") == 0


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"port": 8000}', '{"port": "x", "secure": true}', '{"port": 1, "secure": "false"}', "\udcff"]
)
def test_facts_edited_into_something_wrong_are_named(made, tmp_path, capsys, text):
    server = tmp_path / "server"
    shutil.copytree(made / "server", server)
    (server / "federation.json").write_text(text, errors="surrogateescape")
    for command in ("register", "run", "status"):
        assert cli.main(["deploy", command, str(server)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {server / 'federation.json'}: ") and said.count("\n") == 1


def test_a_key_is_registered_once_and_its_node_is_called_by_its_site(made, tmp_path, monkeypatch):
    """With the answers that flwr 1.41 gives: a list without names, and no return code for a refusal."""
    server = Server(shutil.copytree(made / "server", tmp_path / "server"))
    known = {}

    def flwr(self, *words):
        if words[1] == "list":
            answer = {"nodes": [{"node-id": str(node), "status": "registered"} for node in known.values()]}
        elif (key := Path(words[2]).read_text()) in known or "broken" in key:
            code = "code: 23] Public key already in use" if key in known else "code: 22] Invalid public key"
            text = json.dumps({"success": False, "error-message": f"Using SuperLink: f (127.0.0.1:1)\n\n[{code}."})
            return subprocess.CompletedProcess(words, 0, stdout=text, stderr="")
        else:
            answer = {"node-id": known.setdefault(key, 2**63 + len(known))}
        return subprocess.CompletedProcess(words, 0, stdout=json.dumps({"success": True, **answer}), stderr="")

    monkeypatch.setattr(Server, "_flwr", flwr)
    assert server.register() == ["site-0", "site-1", "site-2"] and server.register() == []
    (server.folder / "sites/site-1.pub").write_text("another key")
    assert server.register() == ["site-1"]
    names = [(node["node-id"], node["name"]) for node in server.nodes()]
    assert names == [(str(2**63 + i), name) for i, name in enumerate(["site-0", "", "site-2", "site-1"])]
    (server.folder / "sites/site-3.pub").write_text("broken")
    with pytest.raises(DeployFailed, match="Invalid public key"):
        server.register()


@pytest.mark.skipif(not FLWR, reason="the program flwr is neither beside this Python nor on the path")
def test_a_server_that_does_not_answer_is_one_line(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "server", tmp_path / "server")
    monkeypatch.setattr(flower, "ANSWER_SECONDS", 0.01)
    assert cli.main(["deploy", "status", str(tmp_path / "server")]) == 1
    assert capsys.readouterr().err == "failed: flwr supernode: no answer in 0.01 s; does the SuperLink run?\n"


def test_an_app_edited_into_something_wrong_is_named(made, tmp_path):
    folder = tmp_path / "server"
    shutil.copytree(made / "server", folder)
    project = folder / "app/pyproject.toml"
    project.write_text(project.read_text().replace("rounds = 2", "rounds = 0"))
    assert cli.main(["deploy", "run", str(folder)]) == 2


def test_an_app_of_words_for_flwr_run_is_resolved_where_they_are_given(tmp_path, monkeypatch, capsys):
    """And is what Flower bundles: one project file. A folder with something in it is left alone."""
    monkeypatch.setenv("ROUNDS", "7")
    words = [*WORDS, "rounds='${oc.decode:${oc.env:ROUNDS}}'", f"output_dir={tmp_path}/out"]
    assert cli.main(["deploy", "app", str(tmp_path / "app"), *words]) == 0
    text = (tmp_path / "app/pyproject.toml").read_text()
    sent = from_run_config(tomli.loads(text)["tool"]["flwr"]["app"]["config"])
    assert sent == compose_config(["evaluation=clients", *words]) and sent.rounds == 7 and "oc.env" not in text
    assert zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path / "app"))).namelist()[0] == "pyproject.toml"
    assert cli.main(["deploy", "app", str(tmp_path / "app"), *words]) == 2
    assert "app: is there already, and no empty folder" in capsys.readouterr().err


# -- certificates that end, clocks, and what others on the machine can read --------------------------------------------


def ends(path: Path) -> int:
    days = certificates.read_days_left(path)
    assert days is not None
    return days


def test_a_renewed_server_is_trusted_with_the_authority_that_the_sites_have(tmp_path, capsys):
    """The authority outlives the server's certificate, so that the sites need nothing when that one is over."""
    folder = tmp_path / "f"
    assert init(folder, "--host", "server.example.org", "--days", "40") == 0
    server = folder / "server"
    assert (ends(server / "server.crt"), ends(server / "ca.crt")) == (40, 3650)
    key, before = (server / "server.key").read_bytes(), (server / "server.crt").read_bytes()
    assert cli.main(["deploy", "renew", str(folder), "--days", "400"]) == 0
    assert "holds for 400 days; start the SuperLink again, the sites need nothing" in capsys.readouterr().out
    assert ends(server / "server.crt") == 400 and (server / "server.crt").read_bytes() != before
    assert (server / "server.key").read_bytes() == key and (server / "ca.crt").read_bytes() == (
        folder / "site-0/ca.crt"
    ).read_bytes()
    for name in ("server.example.org", "localhost", "127.0.0.1"):
        shake_hands(server, folder / "site-0/ca.crt", name)
    shutil.move(folder / "ca", tmp_path / "safe")  # where it should be, off the server
    assert cli.main(["deploy", "renew", str(server), "--ca", str(tmp_path / "safe"), "--days", "30"]) == 0
    shake_hands(server, folder / "site-0/ca.crt", "localhost")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["renew", "{f}", "--days", "9000"], "days left itself, fewer than --days 9000"),
        (["renew", "{f}", "--days", "3000000"], "has 3650 days left itself, fewer than --days 3000000"),
        (["renew", "{f}", "--days", "0"], "--days 0: expected 1 or more; the certificate is as it was"),
        (["renew", "{f}", "--days", "-5"], "--days -5: expected 1 or more"),
        (["renew", "{f}", "--ca", "{g}/ca"], "not the authority of"),
        (["renew", "{f}", "--ca", "{f}/nowhere"], "No such file or directory; a renewal needs"),
        (["renew", "{f}", "--ca", "{f}/server"], "No such file or directory; a renewal needs"),
        (["init", "{n}", "--days", "90", "--authority-days", "30"], "--authority-days 30: ends before --days 90"),
        (["check", "nowhere"], "nowhere: expected host:port"),
    ],
)
def test_a_renewal_that_cannot_be(words, expected, tmp_path, capsys):
    assert init(tmp_path / "f") == init(tmp_path / "g") == 0
    before = (tmp_path / "f/server/server.crt").read_bytes()
    capsys.readouterr()
    given = [word.format(f=tmp_path / "f", g=tmp_path / "g", n=tmp_path / "n") for word in words]
    assert cli.main(["deploy", *given]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1 and (tmp_path / "f/server/server.crt").read_bytes() == before


def test_a_model_of_grey_digits_for_photographs_is_remarked(tmp_path, capsys):
    assert cli.main(["deploy", "init", str(tmp_path / "f"), "data=image_folder", "data.domains=[north,south]"]) == 0
    assert "glyph_vit is a small model for grey images of 32 px" in capsys.readouterr().out
    assert cli.main(["deploy", "init", str(tmp_path / "g")]) == 0
    assert "small model" not in capsys.readouterr().out


def test_the_days_left_are_said_where_no_server_answers(tmp_path, monkeypatch, capsys):
    """Which is when one looks for a certificate that is over."""
    assert init(tmp_path / "f") == 0
    capsys.readouterr()
    monkeypatch.setattr(Server, "nodes", lambda self: (_ for _ in ()).throw(DeployFailed("no SuperLink answers")))
    assert cli.main(["deploy", "status", str(tmp_path / "f/server")]) == 1
    told = capsys.readouterr()
    assert "server's certificate: 365 days left" in told.out and "no SuperLink answers" in told.err


def test_no_secret_can_be_read_before_it_is_closed(tmp_path, monkeypatch):
    """Made with its mode, not given it after: chmod has nothing to do."""
    monkeypatch.setattr(Path, "chmod", lambda *_: pytest.fail("a file was there before it had its mode"))
    assert init(tmp_path / "f") == 0
    closed = [*(tmp_path / "f").rglob("*.sh"), *(tmp_path / "f").rglob("*.secret")]
    assert closed and all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in closed)


def test_what_others_on_the_machine_cannot_read(made):
    """Scripts hold a site's settings, its secret is in a file of its own, and what programs make is their owner's."""
    for path in (*made.rglob("*.sh"), *made.rglob("*.secret"), *made.rglob("*.key")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    secrets_ = {path.read_text() for path in made.rglob("noise.secret")}
    assert len(secrets_) == 3 and all(len(text.strip()) == 64 for text in secrets_)
    for script in made.rglob("*.sh"):
        text = script.read_text()
        assert text.index("umask 077") < text.index("exec ") and not any(s.strip() in text for s in secrets_)
    for unit in made.rglob("*.service"):
        assert "UMask=0077" in unit.read_text().splitlines()
    read = {"noise-secret-file": str(made / "site-1/noise.secret")}
    assert site_settings.noise_secret(read) == (made / "site-1/noise.secret").read_text().strip()


@pytest.mark.parametrize(
    ("secure", "site_secure", "off", "expected"),
    [
        (True, True, 0, None),
        pytest.param(False, False, 0, None, marks=pytest.mark.slow),
        (False, True, 0, "speaks no TLS"),
        (True, False, 0, "answers no plain http"),
        pytest.param(True, True, -60, "clock is 60 s ahead of the server's", marks=pytest.mark.slow),
        (True, True, 400, "clock is 400 s behind the server's"),
        (True, True, 100, None),  # Flower takes what was signed five minutes ago
        pytest.param(False, False, -60, "ahead of the server's", marks=pytest.mark.slow),
    ],
)
def test_a_site_says_why_it_would_not_be_let_in(made, secure, site_secure, off, expected, capsys):
    """Within seconds; the SuperNode itself would wait in silence."""
    with Speaks(made / "server" if secure else None, off) as address:
        authority = [str(made / "site-0/ca.crt")] if site_secure else []
        code = cli.main(["deploy", "check", address, *authority])
    captured = capsys.readouterr()
    if expected is None:
        assert code == 0 and "can be reached" in captured.out
    else:
        text = captured.err.replace("61 s", "60 s").replace("399 s", "400 s").replace("59 s", "60 s")
        assert code == 2 and expected in text and captured.err.count("\n") == 1


def test_a_site_of_another_federation_and_a_server_that_is_not_there(made, tmp_path, capsys):
    assert init(tmp_path / "other") == 0
    with Speaks(made / "server") as address:
        assert cli.main(["deploy", "check", address, str(tmp_path / "other/site-0/ca.crt")]) == 2
    assert "is not one that" in capsys.readouterr().err
    for elsewhere in (address, "nowhere.invalid:8000"):
        assert cli.main(["deploy", "check", elsewhere, str(made / "site-0/ca.crt")]) == 1
        assert "the SuperNode waits until the server is there" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "starts"), [(0, True), (1, True), (2, False), (127, False), (130, False)])
def test_a_supernode_is_started_and_waits_where_the_server_is_not_there_yet(made, tmp_path, code, starts):
    """And not where it would never be let in."""
    (tmp_path / "fedinit").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "python").write_text("#!/bin/sh\necho started $*\n")
    for program in ("fedinit", "python"):
        (tmp_path / program).chmod(0o700)
    site = shutil.copytree(made / "site-0", tmp_path / "site-0")
    paths = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh", str(site / "supernode.sh")], env=paths, capture_output=True, text=True)
    assert ("started -m fedinit.deploy.guarded supernode" in done.stdout) == starts
    assert done.returncode == (0 if starts else 1)


def test_the_way_on_after_init_says_no_more_than_is_needed(tmp_path, capsys):
    def said(name: str, *words: str) -> str:
        assert cli.main(["deploy", "init", str(tmp_path / name), "data.domains=[plain,thick]", *words]) == 0
        return capsys.readouterr().out

    text = said("f")
    assert "  on each site   ./supernode.sh\n" in text and "NODE_CONFIG" not in text
    assert "delete the copies of the sites' folders" in text and "take ca/ off the server" in text
    assert "ca/" not in said("g", "--insecure")
    assert "on each site   add data-root to NODE_CONFIG in supernode.sh, then ./supernode.sh" in said("h", *IMAGES[-1:])
    text = said("i", *IMAGES[-1:], "data.root=/images")
    assert "see whether NODE_CONFIG in supernode.sh holds there (data-root), then ./supernode.sh" in text


def test_another_run_of_a_server_is_its_app_written_anew(tmp_path, capsys):
    assert init(tmp_path / "f") == 0
    project = tmp_path / "f/server/app/pyproject.toml"
    before = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*") if path.is_file() and path != project}
    capsys.readouterr()
    words = [*WORDS, "rounds=7", "data=image_folder", "data.root=/somewhere", "data.domains=[a,b]"]
    for folder in ("f", "f/server"):
        assert cli.main(["deploy", "app", str(tmp_path / folder), *words]) == 0
        said = capsys.readouterr().out
        assert "data-root is each site's to set" in said
        assert "the run is of 2 clients, and" in said and "holds keys of 3 sites" in said
        sent = Server.at(tmp_path / folder).config()
        assert sent.rounds == 7 and sent.data.root is None and sent.output_dir == "outputs"
    assert before == {path: path.read_bytes() for path in before}
    assert cli.main(["deploy", "app", str(tmp_path / "f"), *words, "secure_aggregation=secagg", "strategy=fedit"]) == 2
    assert "there are 2 sites; have 3 or more in a round" in capsys.readouterr().err
    assert Server.at(tmp_path / "f").config() == sent


def test_that_no_site_of_three_may_be_missing_in_a_secret_sum_is_said(tmp_path, capsys):
    """docs/secure_aggregation.md: it is accepted, and every round that lacks one is skipped."""
    secret, line = ("secure_aggregation=secagg", "strategy=fedit"), "of 3 sites none may be missing"
    assert init(tmp_path / "f", *secret, "data.domains=[plain,thick,inverted]") == 0
    assert line in capsys.readouterr().out
    assert init(tmp_path / "g", *secret, "data.domains=[plain,thick,inverted,noise]") == 0
    assert init(tmp_path / "h", "data.domains=[plain,thick,inverted]") == 0
    assert line not in capsys.readouterr().out
    words = [*WORDS, *secret, "data.domains=[plain,thick,inverted]"]
    assert cli.main(["deploy", "app", str(tmp_path / "f/server"), *words]) == 0
    assert line in capsys.readouterr().out


def test_an_app_says_the_whole_way_to_run_it(tmp_path, capsys):
    """README's words: without the variable Flower installs, without the number it starts ten."""
    for words, nodes in ((WORDS, "3"), (["data=image_folder"], "<how many clients>")):
        folder = tmp_path / nodes[:1]
        assert cli.main(["deploy", "app", str(folder), *words]) == 0
        said = capsys.readouterr().out
        assert f'flwr run {folder} --stream --federation-config "num-supernodes={nodes}"' in said
        assert "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in said


def test_a_certificate_that_the_server_does_not_show_yet_is_told(tmp_path, monkeypatch, capsys):
    """It reads its file when it starts: until then a renewed one is on the disk alone."""
    assert init(tmp_path / "f") == 0
    server = tmp_path / "f/server"
    monkeypatch.setattr(Server, "nodes", lambda self: [])
    monkeypatch.setattr(Server, "runs", lambda self: [])
    with Speaks(server) as address:
        port = int(address.rpartition(":")[2])
        (server / "federation.json").write_text(json.dumps({"port": port, "secure": True}))
        assert cli.main(["deploy", "status", str(server)]) == 0
        assert "another certificate" not in capsys.readouterr().out
        assert cli.main(["deploy", "renew", str(server), "--days", "500"]) == 0
        assert cli.main(["deploy", "status", str(server)]) == 0
        said = capsys.readouterr().out
    assert "server's certificate: 500 days left" in said
    assert "the SuperLink still shows another certificate (365 days left): start it again" in said
    assert cli.main(["deploy", "status", str(server)]) == 0  # nothing listens there any more
    assert "another certificate" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "file", "said"),
    [
        ("127.0.0.1:1", "gone.crt", "gone.crt: is not there; copy the ca.crt"),
        ("127.0.0.1:1", "node.key", "node.key: holds no certificate; copy the ca.crt"),
        ("127.0.0.1:99999", "ca.crt", "127.0.0.1:99999: expected host:port, the port from 1 to 65535"),
        ("127.0.0.1:0", "ca.crt", "expected host:port"),
        ("127.0.0.1", "ca.crt", "expected host:port"),
    ],
)
def test_what_is_wrong_at_the_site_itself_is_said_before_the_server_is_asked(made, address, file, said, capsys):
    assert cli.main(["deploy", "check", address, str(made / "site-0" / file)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_run_without_a_name_is_called_by_its_data(tmp_path):
    words = ["data=image_folder", "data.domains=[north,south]"]
    assert cli.main(["deploy", "init", str(tmp_path / "f"), *words]) == 0
    assert Server.at(tmp_path / "f").config().name == "image_folder"
    assert cli.main(["deploy", "init", str(tmp_path / "g"), *words, "name=chest"]) == 0
    assert Server.at(tmp_path / "g").config().name == "chest"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["privacy=examples", "evaluation=clients"], "evaluation=clients: tells counts over the clients' own images"),
        (
            ["privacy=clients", "strategy=fedit", "evaluation=clients"],
            "evaluation=clients: is made of the clients'",
        ),
        (["privacy=examples", "secure_aggregation=secagg", "strategy=fedit"], "privacy=examples: has each client tell"),
        (["data=digits", "data.domains=[plain,nodomain]"], "data.domains: no 'nodomain' in the source"),
        (["strategy=fedit", "reinit=svd", "adapter=vera"], "adapter=vera"),
        (["privacy=examples", "evaluation=server"], "no images; use evaluation=none"),
        (["quorum=7"], "quorum=7: there are 6 clients"),
        (["quorum=2", "participation=0.17"], "quorum=2: there are 6 clients, of whom a round asks 1"),
        (["strategy=fedit", "privacy=clients", "privacy.delta=0.2"], "expected less than one over the 6 clients"),
        (["privacy=examples", "privacy.delta=0.1"], "privacy.delta=0.1: expected less than one over a client's 20"),
        (["robust=trust", "robust.root=7"], "robust.root=7"),
        (["strategy=rbla", "adapter.ranks=[8,4,2,1,8,4,2]"], "7 ranks for 6 clients"),
    ],
)
def test_a_federation_of_what_does_not_go_together_is_not_made(words, said, tmp_path, capsys):
    """By the rules that its run would begin with; nothing is written, at init and at app."""
    for command in ("init", "app"):
        assert cli.main(["deploy", command, str(tmp_path / "f"), *words]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1 and not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    "privacy", [["privacy=examples"], ["privacy=examples", "privacy.noise=1"], ["privacy=clients", "strategy=fedit"]]
)
def test_a_private_federation_evaluates_nothing_unless_it_says_so(privacy, tmp_path):
    assert init(tmp_path / "f", *privacy) == 0
    project = tomli.loads((tmp_path / "f/server/app/pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"]["evaluation.where"] == "none"
