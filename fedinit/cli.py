"""fedinit report and compare: what runs left, as a page and as a table (fedinit report --help).

fedinit deploy: federations of real Flower nodes.

  fedinit deploy init FOLDER --host NAME …   keys, scripts and systemd units of a server and its sites
  fedinit deploy app FOLDER                  an app of the words, for flwr run FOLDER on one's own machine
  fedinit deploy up                          a federation on this machine, one run in it, and down again
  fedinit deploy register FOLDER             let the sites whose keys are in FOLDER/server/sites take part
  fedinit deploy run FOLDER                  start the run, wait for it, show the result
  fedinit deploy status FOLDER               sites, runs, and how long the certificates hold
  fedinit deploy renew FOLDER --days 365     a new certificate for the server, by the authority in FOLDER/ca (--ca)
  fedinit deploy check HOST:PORT ca.crt      whether this machine can take part in the federation there

Other words are those of run_sim.py (rounds=3 strategy=flora …); run_sim.py --help lists them. They say what `init` and
`app` write into the folder and what `up` runs; `run` runs what the folder holds.
Exit codes: 0 done, 1 a process or the run failed, 2 wrong input, 130, 143 and 129 stopped by Ctrl-C, SIGTERM and
SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, cast

from rich.console import Console

from fedinit.config import site as site_settings
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.deploy import certificates, layout, reaching
from fedinit.deploy.flower import Server, show
from fedinit.deploy.local import run_locally
from fedinit.deploy.processes import DeployFailed
from fedinit.errors import InputError
from fedinit.report import commands
from fedinit.runs import folder as run_folder
from fedinit.runs.table import print_summary

SOON = 30  # days left of a certificate at which it is said how to renew it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see fedinit --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. argv: its words without the program's name; None: the process's."""
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        return _main(list(sys.argv[1:] if argv is None else argv), console)
    except ValueError as error:  # InputError, and what a file that is no JSON or no text raises
        errors.print("error: " + " ".join(str(error).splitlines()))
        return 2
    except DeployFailed as error:
        errors.print(f"failed: {error}")
        return 1
    except OSError as error:
        errors.print(f"failed: {error.strerror or error}" + (f" ({error.filename})" if error.filename else ""))
        return 1
    except KeyboardInterrupt as stopped:
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            errors.print("interrupted")
        return getattr(stopped, "code", 130)


def _main(argv: list[str], console: Console) -> int:
    if argv and argv[0] in commands.COMMANDS:
        return commands.main(argv, console)
    if not argv or {"-h", "--help"} & set(argv):
        console.print(__doc__, markup=False, highlight=False)
        return 0
    options, words = _parser().parse_known_args(argv)
    for word in words:
        if word.startswith("-") or "=" not in word:
            raise InputError(f"{word}: not an option of fedinit deploy {options.command}; expected key=value")
    if words and options.command not in ("init", "app", "up"):
        raise InputError(f"{words[0]}: {options.command} runs what the folder holds; edit server/app/pyproject.toml")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if options.command == "init":
        _init(options, words, say)
    elif options.command == "app":
        layout.make_app(options.folder, _at_home(_configuration(words)))
        say(f"{options.folder}: flwr run {options.folder} --stream")
    elif options.command == "up":
        config = _at_home(_configuration(words))
        sites = _sites(config, options.sites)
        run_locally(config, sites, not options.insecure, options.port, say)
        sent, _ = site_settings.split_off(config)  # by which the server names the folder
        _show_result(config, run_folder.place(sent), console)
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
    elif options.command == "run":
        server = Server.at(options.folder)
        config = server.config()
        run = server.start_run()
        say(f"run {run}; Ctrl-C leaves it running")
        server.wait(run)
        _show_result(config, server.folder / run_folder.place(config), console)
    else:
        server = Server.at(options.folder)
        for line in show(server.nodes(), ("name", "status", "node-id", "online-elapsed")):
            say(line)
        say("")
        for line in show(server.runs(), ("run-id", "status", "elapsed")):
            say(line)
        say("")
        for name, file in (("server's certificate", "server.crt"), ("authority's certificate", "ca.crt")):
            days = certificates.read_days_left(server.folder / file)
            if days is not None:
                soon = "; fedinit deploy renew makes another" if days < SOON and file == "server.crt" else ""
                say(f"{name}: {days} days left{soon}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fedinit", add_help=False, allow_abbrev=False)
    groups = parser.add_subparsers(dest="group", required=True, parser_class=_Parser)
    deploy = groups.add_parser("deploy", add_help=False)
    commands = deploy.add_subparsers(dest="command", required=True, parser_class=_Parser)
    init = commands.add_parser("init", add_help=False, allow_abbrev=False)
    init.add_argument("folder", type=Path)
    init.add_argument("--host", action="append", default=[])
    init.add_argument("--port", type=int, default=8000)
    init.add_argument("--node-port", type=int, default=9094)
    init.add_argument("--days", type=int, default=365)
    init.add_argument("--authority-days", type=int, default=3650)
    init.add_argument("--installed", default="/opt/fedinit")
    up = commands.add_parser("up", add_help=False, allow_abbrev=False)
    up.add_argument("--port", type=int)
    for command in (init, up):
        command.add_argument("--sites", type=int)
        command.add_argument("--insecure", action="store_true")
    renew = commands.add_parser("renew", add_help=False, allow_abbrev=False)
    renew.add_argument("folder", type=Path)
    renew.add_argument("--ca", type=Path)
    renew.add_argument("--days", type=int, default=365)
    check = commands.add_parser("check", add_help=False, allow_abbrev=False)
    check.add_argument("address")
    check.add_argument("authority", type=Path, nargs="?")
    for name in ("app", "register", "run", "status"):
        commands.add_parser(name, add_help=False, allow_abbrev=False).add_argument("folder", type=Path)
    return parser


def _init(options: argparse.Namespace, words: Sequence[str], say: Callable[[str], None]) -> None:
    config = _configuration(words)
    sites = _sites(config, options.sites)
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
    say(f"{options.folder}: server/ and {sites} sites, site-0/ to site-{sites - 1}/; copy each to its machine, then")
    keys = "" if options.insecure else ", and once it listens: fedinit deploy register ."
    say(f"  on the server  ./superlink.sh{keys}")
    say("  on each site   edit NODE_CONFIG in supernode.sh, then ./supernode.sh")
    say("  on the server  fedinit deploy run .")


def _configuration(words: Sequence[str]) -> Config:
    config = compose_config(["evaluation=clients", *words])
    if config.evaluation.where == "server":
        raise InputError("evaluation=server: a Flower server holds no images; use evaluation=clients or none")
    file = config.model.checkpoint
    if file and not file.startswith(site_settings.EMBEDDED) and config.model.sha256 is None:
        if not Path(file).is_file():
            raise InputError(f"model.checkpoint={file}: no such file")
        from fedinit.state.digest import of_file  # with all of torch

        model = dataclasses.replace(config.model, checkpoint=str(Path(file).absolute()), sha256=of_file(Path(file)))
        config = dataclasses.replace(config, model=model)
    return config


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
    return cast(int, said if given is None else given)


def _show_result(config: Config, folder: Path, console: Console) -> None:
    summary = run_folder.finished(folder)
    if summary is None:
        raise DeployFailed(f"the run completed, but {folder} holds no result that can be read")
    print_summary(console, summary, str(folder))
    console.print(f"final hash: {summary['final_hash']}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
