"""The folder of a federation, as `fedinit deploy init` makes it.

ca/           ca.key, ca.crt: the authority. Its key is needed for new certificates only; keep it off the server.
              It outlives many of the server's certificates, which `renew` makes anew.
server/       superlink.sh, fedinit-superlink.service, the certificate, sites/*.pub, app/ (what `flwr run` bundles)
site-<i>/     supernode.sh, fedinit-supernode.service, ca.crt, node.key, node.pub, noise.secret

Each of server/ and site-<i>/ goes to its own machine and works from wherever it lies: the scripts change into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import fedinit
from fedinit.config.flower import to_run_config
from fedinit.config.schema import Config
from fedinit.deploy import certificates, hosts
from fedinit.deploy.guarded import COMPONENTS
from fedinit.errors import InputError
from fedinit.opening import make_folder
from fedinit.stopping import listening

INSTALLED = re.compile(r"/[\w./+@,=~-]+")  # neither sh nor systemd reads anything else in it
PROJECT = "pyproject.toml"  # of the app
SECRET = "noise-secret-file"  # a site's setting: where its secret lies
WRITTEN = ("cache-dir", "state-dir")  # those of a site's settings that name a folder it writes to
ALWAYS = ("localhost", *hosts.LOOPBACK)  # the operator's own tools reach the server by these


@dataclass(frozen=True, kw_only=True)
class Federation:
    """How a federation is laid out.

    hosts: the server's names and addresses, the first of which the sites connect to.
    port: TCP, of the server.
    node_ports: TCP, one a site, for Flower's own use between a SuperNode and the processes that it starts.
    secure: TLS and node authentication.
    installed: the absolute path that server/ or a site's folder will lie in, for the systemd units.
    days, authority_days: how long the server's certificate holds, and the authority's.
    """

    hosts: Sequence[str]
    port: int
    node_ports: Sequence[int]
    secure: bool = True
    installed: str = "/opt/fedinit"
    days: int = 365
    authority_days: int = 3650

    def __post_init__(self) -> None:
        """Raises InputError, before anything is written."""
        object.__setattr__(self, "hosts", tuple(dict.fromkeys(map(hosts.read, self.hosts))))
        others = [host for host in self.hosts if not hosts.is_loopback(host)]
        if others and not self.secure:
            raise InputError(
                f"--host {others[0]}: --insecure is for this machine alone, since whoever reaches the port joins "
                "without a key; leave one of them out"
            )
        if not self.node_ports:
            raise InputError("--sites 0: expected 1 or more")
        if self.days < 1:
            raise InputError(f"--days {self.days}: expected 1 or more")
        for word, days in (("days", self.days), ("authority-days", self.authority_days)):
            certificates.check_days(word, days)
        if self.authority_days < self.days:
            raise InputError(
                f"--authority-days {self.authority_days}: ends before --days {self.days}, which it signs for"
            )
        if not 0 < self.port < 65536:
            raise InputError(f"--port {self.port}: expected 1 to 65535")
        for site, port in enumerate(self.node_ports):
            if not 0 < port < 65536:
                gives = f"gives site {site} the port {port}; " if site else ""
                raise InputError(f"--node-port {self.node_ports[0]}: {gives}expected 1 to 65535")
        if self.port in self.node_ports:
            raise InputError(
                f"--port {self.port}: --node-port {self.node_ports[0]} gives it to a site, which cannot share it with "
                "a server on the same machine; choose another for one of them"
            )
        if not INSTALLED.fullmatch(self.installed):
            raise InputError(
                f"--installed {self.installed}: expected an absolute path of letters, digits and / . _ + @ , = ~ -"
            )

    @property
    def bind(self) -> str:
        """The address that the server listens on (hosts.py)."""
        return hosts.bind(self.hosts)


def make(folder: Path, federation: Federation, config: Config, settings: Mapping[str, str]) -> None:
    """Write the whole folder, or nothing. `settings`: a site's own (--node-config), the same for each until edited.

    Raises InputError for a setting that cannot be written, for a folder that is there already (keys are never
    overwritten), and for one that cannot be made.
    """
    files = _files(federation, config, settings)
    with listening(limit=None):  # half of it would stand in the way of the same command, and hold keys
        with _place(folder):
            existed = folder.exists()
            if existed and any(folder.iterdir()):
                raise InputError(f"{folder}: is there already; keys are not overwritten, choose a new folder")
        try:
            with _place(folder):
                make_folder(folder)
            _write(folder, files)
            if federation.secure:
                _keys(folder, federation)
        except BaseException:
            _clear(folder)
            if not existed and folder.exists():
                folder.rmdir()
            raise


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[None]:
    """Within, a folder that cannot be had is an InputError of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose a new folder") from error


def _clear(folder: Path) -> None:
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink()


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Made with its mode: what is changed after can be read before.
        mode = 0o700 if name.endswith(".sh") else 0o600 if name.endswith(".secret") else 0o666
        made = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(made, "w", encoding="utf-8", newline="\n") as file:  # sh knows no other line end
            file.write(text)


def _files(federation: Federation, config: Config, settings: Mapping[str, str]) -> dict[str, str]:
    """{path in the folder: text}, of all but the keys."""
    facts = {"port": federation.port, "secure": federation.secure}
    files = {
        ".gitignore": "# keys and secrets\n*\n",
        "server/superlink.sh": _superlink(federation),
        "server/fedinit-superlink.service": _unit("server", "superlink", federation, [config.output_dir]),
        "server/federation.json": json.dumps(facts) + "\n",
        f"server/app/{PROJECT}": _project(config),
    }
    for i, port in enumerate(federation.node_ports):
        node_config = {"partition-id": i, "state-dir": "state", SECRET: "noise.secret", **settings}
        files[f"site-{i}/noise.secret"] = secrets.token_hex(32) + "\n"
        files[f"site-{i}/supernode.sh"] = _supernode(federation, node_config, port)
        places = [settings[key] for key in WRITTEN if key in settings]
        files[f"site-{i}/fedinit-supernode.service"] = _unit(f"site-{i}", "supernode", federation, places)
    return files


def make_app(folder: Path, config: Config) -> None:
    """As `write_app`, where nothing is yet. Raises InputError for a folder that holds something."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already, and no empty folder; choose a new one")
    write_app(folder, config)


def write_app(folder: Path, config: Config) -> None:
    """The Flower app: one project file, which holds the whole resolved configuration. No code, no data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROJECT).write_text(_project(config), encoding="utf-8")


def _project(config: Config) -> str:
    project = {
        "project": {
            "name": "fedinit",
            "version": fedinit.__version__,
            "description": "A run of fedinit, which every site has installed",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedinit",
                    "components": COMPONENTS,
                    "config": to_run_config(config),
                }
            }
        },
    }
    return tomli_w.dumps(project)


def _keys(folder: Path, federation: Federation) -> None:
    authority_folder, server = folder / "ca", folder / "server"
    authority_folder.mkdir()
    (server / "sites").mkdir()
    authority = certificates.Authority.create("fedinit federation", federation.authority_days)
    certificates.write_key(authority_folder / "ca.key", authority.key)
    names = list(dict.fromkeys([*federation.hosts, *ALWAYS]))
    key, certificate = authority.certify(names, federation.days)
    certificates.write_key(server / "server.key", key)
    certificates.write_certificate(server / "server.crt", certificate)
    sites = [folder / f"site-{i}" for i in range(len(federation.node_ports))]
    for place in (authority_folder, server, *sites):
        place.mkdir(exist_ok=True)
        certificates.write_certificate(place / "ca.crt", authority.certificate)
    for site in sites:
        certificates.write_node_key(site)
        shutil.copy(site / "node.pub", server / "sites" / f"{site.name}.pub")


_HEAD = """#!/bin/sh
# {what}
cd "$(dirname "$0")" || exit 1
umask 077
export FLWR_HOME="$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.5
mkdir -p "$FLWR_HOME"
"""


def _superlink(federation: Federation) -> str:
    words = ["--host", federation.bind, "--port", str(federation.port), "--database", "superlink.db"]
    words += ["--disable-runtime-dependency-installation"]
    if federation.secure:
        words += ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
        words += ["--enable-supernode-auth"]
    else:
        words += ["--insecure"]
    what = "The server of the federation. Who is registered and what ran is kept in superlink.db."
    return _HEAD.format(what=what) + f"exec python -m fedinit.deploy.guarded superlink {shlex.join(words)}\n"


def _supernode(federation: Federation, node_config: Mapping[str, object], port: int) -> str:
    words = ["--superlink", _address(federation.hosts[0], federation.port), "--port", str(port)]
    if federation.secure:
        words += ["--root-certificates", "ca.crt", "--auth-supernode-private-key", "node.key"]
    else:
        words += ["--insecure"]
    reach = [words[1], *(["ca.crt"] if federation.secure else [])]
    settings = " ".join(f"{key}={_toml(key, value)}" for key, value in node_config.items())
    return (
        _HEAD.format(what="One site of the federation.")
        + "# The site's own: data-root, cache-dir, state-dir, checkpoint, checkpoint-sha256, device, and limits.\n"
        + f"NODE_CONFIG={shlex.quote(settings)}\n"
        + "# 1: the server is not there yet, which the SuperNode waits for.\n"
        + f"fedinit deploy check {shlex.join(reach)} || [ $? -eq 1 ] || exit 1\n"
        + f'exec python -m fedinit.deploy.guarded supernode {shlex.join(words)} --node-config "$NODE_CONFIG"\n'
    )


def _unit(folder: str, program: str, federation: Federation, places: Sequence[str]) -> str:
    """places: what the program writes to besides its own folder; those that are relative are in it."""
    place = f"{federation.installed}/{folder}"
    # One that is not there yet is left out by systemd, where a "-" is before it, and does not keep the program from it.
    for other in places:
        if set(other) & set('"\\\n\r'):
            raise InputError(
                f"{other!r}: a place with quotes, a backslash or a line break in it cannot be in a unit file"
            )
    elsewhere = [other.replace("%", "%%") for other in places if Path(other).is_absolute()]
    writable = " ".join([place, *(f'"-{other}"' for other in elsewhere)])
    return f"""[Unit]
Description=fedinit {program} ({folder})
Wants=network-online.target
After=network-online.target

[Service]
User=fedinit
ExecStart=/bin/sh {place}/{program}.sh
Environment=PATH={federation.installed}/venv/bin:/usr/local/bin:/usr/bin:/bin
KillSignal=SIGINT
Restart=on-failure
RestartSec=10
UMask=0077
EnvironmentFile=-{place}/secrets.env
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={writable}

[Install]
WantedBy=multi-user.target
"""


def _toml(key: str, value: object) -> str:
    """As Flower reads a node config: a number, or a word in double quotes, which has no escapes there."""
    if isinstance(value, int):
        return str(value)
    if '"' in str(value) or "\\" in str(value) or "\n" in str(value):
        raise InputError(f"{key}={value}: a setting of a site can hold no quote, backslash or line break")
    return f'"{value}"'


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
