"""Flower's SuperLink and SuperNode, started so that no code but the installed fedinit's is run, whoever submits what.

    python -m fedinit.deploy.guarded superlink|supernode <words of flower-superlink or flower-supernode>

Flower runs what a bundle holds, at the server and at every site; it takes one from whoever reaches the SuperLink's
port, and its signatures are those of its own hub. Here a bundle is a project file that names the two apps of fedinit,
with nothing beside it but a licence: the SuperLink refuses another when it is submitted, a SuperNode when it is told to
run it, so that a site need not believe its server. And what starts runs, registers keys or reads logs is taken from the
server's own machine alone: others reach what SuperNodes use.
"""

from __future__ import annotations

import contextlib
import copy
import io
import ipaddress
import logging
import re
import socket
import sys
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import tomli

COMPONENTS = {"serverapp": "strategies.server_app:app", "clientapp": "clients.client_app:app"}
FILES = {"pyproject.toml", "LICENSE", ".info/CONTENT"}
# All that the project file of a run says, by table: no dependencies, no scripts, no build.
TABLES = {
    (): {"project", "tool"},
    ("project",): {"name", "version", "description", "license"},
    ("tool",): {"flwr"},
    ("tool", "flwr"): {"app"},
    ("tool", "flwr", "app"): {"publisher", "components", "config"},
}
VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}((a|b|rc|\.dev|\.post)\d{1,4})?", re.ASCII)
LARGEST = 2**20  # bytes of a file in a bundle, unpacked
FOR_SITES = "/v1/fleet/"  # what a SuperNode asks the server for

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def fault(bundle: bytes) -> str:
    """Why a bundle is more than a run of the installed fedinit; empty where it is none. Unpacks nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if odd := sorted(set(names) - FILES):
                return f"it holds {odd[0]!r}"
            if len(names) != len(set(names)) or any(entry.file_size > LARGEST for entry in entries):
                return "it holds a file twice, or one that is too large"
            contents = {entry.filename: _content(archive, entry) for entry in entries}
            if lying := sorted(entry.filename for entry in entries if len(contents[entry.filename]) != entry.file_size):
                return f"{lying[0]!r} is not of the size that it says"
            project = tomli.loads(contents["pyproject.toml"].decode("utf-8"))
        about = project["project"]
        app = project["tool"]["flwr"]["app"]
        named = about["name"], app["publisher"]
        version, components = about["version"], app["components"]
        beyond = [".".join((*table, key)) for table, known in TABLES.items() for key in _at(project, table) - known]
    except Exception as error:  # noqa: BLE001 (bytes from outside: whatever reading them raises)
        return f"it cannot be read ({type(error).__name__})"
    if components != COMPONENTS:
        return "it names other apps than those of fedinit"
    if named != ("fedinit", "fedinit"):
        return "it has another name or publisher than fedinit"
    # Flower makes a folder of it: nothing but numbers and points in between, so that it leads nowhere else.
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        return "its version is none"
    if beyond:
        return f"its project file says {sorted(beyond)[0]!r}"
    if odd := sorted(key for key, value in about.items() if not isinstance(value, str)):
        return f"its project file says 'project.{odd[0]}' by no text"  # a table may name a file
    return ""


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A member to its end, or to one byte beyond `LARGEST`, whatever size it says that it has. Raises ValueError for
    a compression of which a few bytes may be any number at once."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compression {entry.compress_type}")
    whole = copy.copy(entry)
    whole.file_size = LARGEST + 1  # Python reads no further than this, and compares the checksum at the end
    with archive.open(whole) as file:
        return file.read(LARGEST + 1)


def _at(project: Any, table: Sequence[str]) -> set[str]:
    """The keys of one of its tables."""
    for name in table:
        project = project[name]
    return set(project.keys())


class OnlySites:
    """ASGI: from other machines, what SuperNodes ask for; all else from this one alone."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        """app: the SuperLink's."""
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers 403 to what is not for the asker, without reading it."""
        if scope["type"] == "lifespan" or scope.get("path", "").startswith(FOR_SITES) or is_here(scope.get("client")):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"from the server's own machine alone"})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_here(client: Sequence[Any] | None) -> bool:
    """Whether an ASGI client, (host, port), is on this machine."""
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on an IPv6 address, and on what is the same of IPv4: the operator's own tools come by
    127.0.0.1, and a name may be an address of either. Raises SystemExit, one line, where the port is taken."""
    try:
        if host == "::":
            return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]
        places = {"::1": [(host, socket.AF_INET6), ("127.0.0.1", socket.AF_INET)]}.get(host, [(host, socket.AF_INET6)])
        return [socket.create_server((place, port), family=family) for place, family in places]
    except OSError as error:
        raise SystemExit(f"error while attempting to bind on address [{host}]:{port}: {error.strerror}") from error


def superlink() -> None:
    """Run flower-superlink with both guards, on IPv4 beside IPv6 where it is to listen on that."""
    import uvicorn
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.superlink import main as api
    from flwr.superlink.cli import flower_superlink
    from flwr.superlink.servicer.control import control_handlers

    create, start = api.create_app, control_handlers.start_run

    def created(*args: Any, **kwargs: Any) -> Any:
        app = create(*args, **kwargs)
        app.add_middleware(OnlySites)  # the outermost
        return app

    def started(request: Any, *args: Any, **kwargs: Any) -> Any:
        why = "it is an app of a hub's" if request.app_spec or not request.fab.content else fault(request.fab.content)
        if why:
            logging.getLogger(__name__).warning("a bundle is refused: %s", why)
            said = f"this server runs the fedinit that is installed, and no bundle with code: {why}"
            raise FlowerError(ApiErrorCode.INVALID_APP_SPEC, said, public_details=said)
        return start(request, *args, **kwargs)

    serve = uvicorn.run

    def served(app: Any, *, host: str, port: int, **words: Any) -> None:
        if ":" not in host:
            serve(app, host=host, port=port, **words)
            return
        with contextlib.suppress(KeyboardInterrupt):  # as in uvicorn.run, which takes no sockets
            uvicorn.Server(uvicorn.Config(app, host=host, port=port, **words)).run(sockets=listeners(host, port))

    uvicorn.run = served
    api.create_app = created
    control_handlers.start_run = started
    flower_superlink()


def supernode() -> None:
    """Run flower-supernode with the guard of bundles: Flower's own place for what could not be verified."""
    from flwr.supernode import start_client_internal as node
    from flwr.supernode.cli import flower_supernode

    pull = node._pull_and_store_message

    def pulled(*args: Any, **kwargs: Any) -> Any:
        fetch = kwargs["get_fab"]

        def fetched(*about: Any) -> Any:
            fab = fetch(*about)
            why = fault(fab.content)
            if why:
                logging.getLogger(__name__).warning("a run is refused, no bundle with code is run here: %s", why)
            fab.verifications.clear()
            fab.verifications.update({} if why else {"valid_license": "Valid"})
            return fab

        return pull(*args, **{**kwargs, "get_fab": fetched, "trusted_entities": {"fedinit": "fault"}})

    node._pull_and_store_message = pulled
    node._verify_fab = lambda fab, trusted: not fault(fab.content)
    flower_supernode()


def _say_limits(words: Sequence[str]) -> None:
    """Print a site's limits before its node is there for a server; SystemExit, one line, for settings that are none."""
    from flwr.common.config import parse_config_args

    from fedinit.config.site import check_places, check_settings
    from fedinit.errors import InputError

    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--node-config"]
    try:
        settings = parse_config_args(given)
        limits = check_settings(settings)
        check_places(settings)
        print(f"limits: {limits or 'off'}", file=sys.stderr, flush=True)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    except Exception as error:  # noqa: BLE001 (Flower's own, in its words)
        raise SystemExit(f"error: --node-config {' '.join(given)}: {error}") from error


def _check_certificate(words: Sequence[str]) -> None:
    """SystemExit, one line, for a certificate that is over: no site would trust it, nor the server's own tools."""
    from fedinit.deploy import certificates

    for word, file in zip(words, words[1:], strict=False):
        if word == "--ssl-certfile" and (why := certificates.fault(Path(file).absolute().parent)):
            raise SystemExit(f"error: {why}")


def main(argv: Sequence[str]) -> None:
    """Run one of the two, with the words after its name. Raises SystemExit for words that are none."""
    programs = {"superlink": superlink, "supernode": supernode}
    if not argv or argv[0] not in programs:
        raise SystemExit(f"expected one of {', '.join(programs)}, and its words")
    sys.argv = [f"flower-{argv[0]}", *argv[1:]]
    if argv[0] == "supernode":
        _say_limits(argv[1:])
    else:
        _check_certificate(argv[1:])
    programs[argv[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
