"""fedinit deploy: federations of real Flower nodes."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from fedinit import standard_streams
from fedinit.commands.parsing import Parser
from fedinit.commands.places import own_place
from fedinit.errors import InputError
from fedinit.telling import tell

if TYPE_CHECKING:
    from fedinit.config.schema import Config
    from fedinit.deploy.flower import Server

SOON = 30  # days left of a certificate at which it is said how to renew it
ABOUT = """Federations of real Flower nodes: keys, scripts, and what starts and shows a run."""
EPILOG = """Other words are those of fedinit run (rounds=3 strategy=flora …); fedinit run --help lists them. They
say what init and app write into the folder and what up runs; run runs what the folder holds."""


def parser(name: str) -> Parser:
    """Of the command's words, but for those of run_sim.py."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    about = "keys, scripts and systemd units of a server and its sites"
    init = commands.add_parser("init", help=about, about=f"Write {about}.", epilog=EPILOG)
    init.add_argument("folder", type=own_place, metavar="FOLDER", help="to be made")
    init.add_argument("--host", action="append", default=[], help="name or address of the server; may be repeated")
    init.add_argument("--port", type=int, default=8000, help="that it listens on (8000)")
    init.add_argument("--node-port", type=int, default=9094, help="the first of the sites' own ports (9094)")
    init.add_argument("--days", type=int, default=365, help="that the certificate is good for (365)")
    init.add_argument("--authority-days", type=int, default=3650, help="that the authority is good for (3650)")
    init.add_argument("--installed", default="/opt/fedinit", help="where fedinit is on the machines (/opt/fedinit)")
    about = "a federation on this machine, one run in it, and down again"
    up = commands.add_parser("up", help=about, about=f"Start {about}.", epilog=EPILOG)
    up.add_argument("--port", type=int, help="that the server listens on; default: a free one")
    for command in (init, up):
        command.add_argument("--sites", type=int, help="how many, where the configuration does not say it")
        command.add_argument("--insecure", action="store_true", help="without TLS and keys")
    abouts = {
        "app": "an app of the words, for flwr run FOLDER on one's own machine; of a server's folder, its next run",
        "register": "let the sites whose keys are in FOLDER/server/sites take part",
        "run": "start the run, wait for it, show the result",
        "status": "sites, runs, and how long the certificates hold",
    }
    for each, about in abouts.items():
        command = commands.add_parser(each, help=about, about=f"{about[0].upper()}{about[1:]}.")
        place = own_place if each == "app" else Path
        command.add_argument("folder", type=place, metavar="FOLDER", help="that init made, or its server/")
    about = "a new certificate for the server, by the authority in FOLDER/ca"
    renew = commands.add_parser("renew", help=about, about=f"Make {about}.")
    renew.add_argument("folder", type=Path, metavar="FOLDER", help="that init made, or its server/")
    renew.add_argument("--ca", type=Path, help="the authority's folder, where it is kept elsewhere")
    renew.add_argument("--days", type=int, default=365, help="that the certificate is good for (365)")
    about = "whether this machine can take part in the federation there"
    check = commands.add_parser("check", help=about, about=f"Say {about}.")
    check.add_argument("address", metavar="HOST:PORT", help="of the SuperLink")
    check.add_argument("authority", type=Path, nargs="?", metavar="CA.CRT", help="the authority's certificate")
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Run one of them; the exit code. Raises InputError, one line, and DeployFailed."""
    options, words = parser(name).parse_known_args(words)
    for word in words:
        if word.startswith("-") or "=" not in word:
            raise InputError(f"{word}: not an option of fedinit deploy {options.command}; expected key=value")
    if words and options.command not in ("init", "app", "up"):
        raise InputError(f"{words[0]}: {options.command} takes what the folder holds; fedinit deploy app changes it")
    from fedinit.deploy.processes import DeployFailed

    try:
        return _run(options, words, console)
    except DeployFailed as error:
        errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        for line in f"failed: {error}".splitlines():  # the end of a log is in it
            tell(errors, line)
        return 1


def _run(options: argparse.Namespace, words: Sequence[str], console: Console) -> int:
    from fedinit.config import site as site_settings
    from fedinit.deploy import certificates, reaching
    from fedinit.deploy.doing import doing_of
    from fedinit.deploy.flower import CONNECTION, Server
    from fedinit.deploy.local import run_locally
    from fedinit.runs import folder as run_folder

    say = functools.partial(tell, console)
    if options.command not in ("check", "status"):
        standard_streams.prints_beside()
    if options.command == "init":
        _init(options, words, say)
    elif options.command == "app":
        _app(options.folder, words, say)
    elif options.command == "up":
        config = _at_home(_configuration(words))
        sites = _sites(config, options.sites)
        _check(config, sites)
        standard_streams.goes_on_without()
        sent, _ = site_settings.split_off(config)  # by which the server names the folder
        folder = run_folder.place(sent)
        run_locally(config, sites, not options.insecure, options.port, say, doing_of(folder, say))
        _show_result(config, folder, console)
    elif options.command == "register":
        say("registered: " + (", ".join(Server.at(options.folder).register()) or "nobody new"))
    elif options.command == "renew":
        server = Server.at(options.folder).folder
        authority = options.ca or server.parent / "ca"
        certificates.renew(server, authority, options.days)
        say(
            f"{server / 'server.crt'}: holds for {options.days} days; start the SuperLink again, the sites need nothing"
        )
    elif options.command == "check":
        found = reaching.check(options.address, options.authority)
        say(found or f"{options.address}: can be reached")
        return 1 if found else 0
    elif options.command == "run":
        server = Server.at(options.folder)
        config = server.config()
        run = server.start_run()
        say(f"run {run}; Ctrl-C leaves it running")
        flwr = f"FLWR_HOME={shlex.quote(str(server.folder / 'flwr'))} flwr"
        say(f"  its log: {flwr} log {run} {CONNECTION}; to stop it: {flwr} stop {run} {CONNECTION}")
        folder = server.folder / run_folder.place(config)
        server.wait(run, doing_of(folder, say))
        _show_result(config, folder, console)
    else:
        _status(Server.at(options.folder), say)
    return 0


def _status(server: Server, say: Callable[[str], None]) -> None:
    """The certificates first, which is what one looks for where no server answers. Raises DeployFailed there."""
    from fedinit.deploy import certificates, reaching
    from fedinit.deploy.flower import show

    remedies = {
        "server": f"{certificates.renewal(server.folder)} makes another",
        "authority": "the federation ends with it; fedinit deploy init makes another",
    }
    for whose, file in (("server", "server.crt"), ("authority", "ca.crt")):
        certificate = certificates.read(server.folder / file)
        if certificate is not None:
            soon = f"; {remedies[whose]}" if certificates.days_left(certificate) < SOON else ""
            say(f"{whose}'s certificate: {certificates.standing(certificate)}{soon}")
    if (shown := reaching.shown_certificate(server.facts["port"])) and server.facts["secure"]:
        other = certificates.another(server.folder / "server.crt", shown)
        if other is not None:
            say(f"the SuperLink still shows another certificate ({certificates.standing(other)}): start it again")
    say("")
    for line in show(server.nodes(), ("name", "status", "node-id", "online-elapsed")):
        say(line)
    say("")
    for line in show(server.runs(), ("run-id", "status", "elapsed")):
        say(line)


def _init(options: argparse.Namespace, words: Sequence[str], say: Callable[[str], None]) -> None:
    from fedinit.config import site as site_settings
    from fedinit.config.bundled import remark, title
    from fedinit.deploy import layout

    config = _configuration(words)
    sites = _sites(config, options.sites)
    _check_sum(config, sites)
    _check(config, sites)
    federation = layout.Federation(
        hosts=options.host or ["127.0.0.1"],
        port=options.port,
        node_ports=[options.node_port + i for i in range(sites)],
        secure=not options.insecure,
        installed=options.installed.rstrip("/"),
        days=options.days,
        authority_days=options.authority_days,
    )
    sent, settings = site_settings.split_off(config)
    layout.make(options.folder, federation, sent, settings)
    if (few := _said_of_sum(config, sites)) is not None:
        say(few)
    if said := remark(title(config.model.name, config.model.checkpoint), config.data.name):
        say(said)
    say(f"{options.folder}: server/ and {sites} sites, site-0/ to site-{sites - 1}/; copy each to its machine, then")
    safe = "" if options.insecure else "; take ca/ off the server, to a safe place: only fedinit deploy renew needs it"
    say(f"  here           delete the copies of the sites' folders, whose secrets are theirs{safe}")
    keys = "" if options.insecure else ", and once it listens: fedinit deploy register ."
    say(f"  on the server  ./superlink.sh{keys}")
    say(f"  on each site   {_of_a_site(sent, settings)}./supernode.sh")
    say("  on the server  fedinit deploy run .")


def _of_a_site(sent: Config, settings: Mapping[str, str]) -> str:
    """What is to be done to a site's NODE_CONFIG before its first start; empty where nothing is."""
    if getattr(sent.data, "root", "none needed") is None and "data-root" not in settings:
        others = "".join(f", see to {key}" for key in settings)
        return f"add data-root to NODE_CONFIG in supernode.sh{others}, then "
    if settings:
        return f"see whether NODE_CONFIG in supernode.sh holds there ({', '.join(settings)}), then "
    return ""


def _app(folder: Path, words: Sequence[str], say: Callable[[str], None]) -> None:
    """An app of its own; of a server's folder, the one that its next run is, in place of the one before."""
    from fedinit.config import site as site_settings
    from fedinit.deploy import layout
    from fedinit.deploy.flower import Server

    config = _configuration(words)
    clients = config.partition.count(config.data.known_domains)
    if not Server.is_at(folder):
        _check(config, clients)
        layout.make_app(folder, _at_home(config))
        say(f"{folder}: made; with the fedinit that is installed, in Flower's own simulation:")
        say("  export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1")
        say(f'  flwr run {folder} --stream --federation-config "num-supernodes={clients or "<how many clients>"}"')
        return
    server = Server.at(folder)
    sent, settings = site_settings.split_off(config)
    keys = len(server.keys)
    _check_sum(config, clients or keys or None)
    _check(config, clients or keys or None)
    layout.write_app(server.app, sent)
    if (few := _said_of_sum(config, clients or keys)) is not None:
        say(few)
    say(f"{server.app}: is what fedinit deploy run starts next; it was written anew")
    for key in settings:
        say(f"  {key} is each site's to set (--node-config), and not sent")
    if clients and keys and clients != keys:
        say(
            f"  the run is of {clients} clients, and {server.folder / 'sites'} holds keys of {keys} sites: "
            "give words of as many, or add sites (docs/deployment.md)"
        )


def _check_sum(config: Config, sites: int | None) -> None:
    """Raise InputError for a secret sum of so few sites that it is none; None: their number is not known."""
    from fedinit.secagg.messages import refuse_few

    if config.secure_aggregation.name != "none" and sites is not None:
        refuse_few(sites, f"there {'is 1 site' if sites == 1 else f'are {sites} sites'}")


def _said_of_sum(config: Config, sites: int) -> str | None:
    """A line about a secret sum of so few sites that none may be missing; None where one may, or there is none."""
    from fedinit.secagg.messages import LEAST

    if config.secure_aggregation.name == "none" or sites != LEAST:
        return None
    return (
        f"secure_aggregation={config.secure_aggregation.name}: of {LEAST} sites none may be missing, for of two each "
        "knows the other's update; a round that lacks one is skipped"
    )


def _configuration(words: Sequence[str]) -> Config:
    from fedinit.config.compose import compose_config
    from fedinit.config.site import EMBEDDED

    config = compose_config(["evaluation=clients", *words])
    if config.privacy.name != "none" and not any(re.match(r"\+*evaluation=", word) for word in words):
        config = compose_config(["evaluation=none", *words])  # a score would be told without noise
    if config.evaluation.where == "server":
        instead = "clients or none" if config.privacy.name == "none" else "none"
        raise InputError(f"evaluation=server: a Flower server holds no images; use evaluation={instead}")
    if config.attack.name != "none":
        raise InputError(
            f"attack={config.attack.name}: is for simulations by fedinit run; a client of Flower is honest"
        )
    file = config.model.checkpoint
    if file and not file.startswith(EMBEDDED) and config.model.sha256 is None:
        if not Path(file).is_file():
            raise InputError(f"model.checkpoint={file}: no such file")
        from fedinit.state.digest import of_file  # with all of torch

        model = dataclasses.replace(config.model, checkpoint=str(Path(file).absolute()), sha256=of_file(Path(file)))
        config = dataclasses.replace(config, model=model)
    _check(config, None)
    return config


def _check(config: Config, sites: int | None) -> None:
    """Raise InputError as the run would when it begins, with so many sites; None: their number is not known."""
    from fedinit.deploy.guarded import COMPONENTS

    importlib.import_module(COMPONENTS["serverapp"].partition(":")[0]).check(config, sites)  # with all of torch


def _at_home(config: Config) -> Config:
    """Whose folder is where these words were given, wherever its ServerApp runs."""
    return dataclasses.replace(config, output_dir=str(Path(config.output_dir).absolute()))


def _sites(config: Config, given: int | None) -> int:
    """How many sites there are to be: a client each. Raises InputError where `given` (--sites) is not what the
    configuration says, as far as it says so itself, and where neither says it."""
    said = config.partition.count(config.data.known_domains)
    if given is None and said is None:
        raise InputError("how many sites? say --sites N, or name the domains: data.domains=[…]")
    if None not in (given, said) and given != said:
        raise InputError(f"--sites {given}: the configuration makes {said} clients, each a site; leave --sites out")
    if given is not None and given < 1:
        raise InputError(f"--sites {given}: expected 1 or more")
    return cast(int, said if given is None else given)


def _show_result(config: Config, folder: Path, console: Console) -> None:
    from fedinit.deploy.processes import DeployFailed
    from fedinit.report.runs.left_out import left_out
    from fedinit.report.runs.reading import read
    from fedinit.runs import folder as run_folder
    from fedinit.runs.own_files import REPORT
    from fedinit.runs.table import print_summary

    summary = run_folder.finished(folder)
    if summary is None:
        raise DeployFailed(f"the run completed, but {folder} holds no result that can be read")
    print_summary(console, summary, str(folder), config)
    for line in left_out(read(folder).ledger):
        tell(console, line, "yellow")
    tell(console, f"final hash: {summary['final_hash']}")
    if (folder / REPORT).is_file():
        tell(console, f"report: {folder / REPORT}")
