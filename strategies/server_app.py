"""The Flower ServerApp: the same run over whatever Grid Flower gives, in its simulation or in a deployment.

The configuration comes with the run (fedinit/config/flower.py); clients evaluate on their own test images, since
a server has none. The run's folder is written where the server runs.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedinit.config.flower import from_run_config
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.devices import chosen
from fedinit.errors import InputError
from fedinit.models import adapted_layers, build_backbone
from fedinit.opening import read_text
from fedinit.runs import folder as run_folder
from fedinit.runs.code import code_now
from fedinit.runs.observer import Roster
from fedinit.runs.own_files import SITES
from fedinit.runs.progress import ProgressObserver
from fedinit.runs.reporting import open_run, show_done
from fedinit.runs.status import StatusObserver
from fedinit.state.disk import replace_json
from fedinit.state.manifest import last_round
from fedinit.telling import tell
from strategies.server.compatibility import check_method
from strategies.server.delivery import WatchedGrid
from strategies.server.exchange import Exchange
from strategies.server.federation import check_clients, federate, roster_of
from strategies.server.meeting import Meeting

app = ServerApp()


def check(config: Config, clients: int | None = None) -> None:
    """Raise InputError for what a run of this configuration is refused for, as far as that is known without clients.
    clients: how many there are to be; None: not known. Of each it is taken that it has as many images as are best."""
    check_method(config, under_flower=True)
    if clients is None:
        return
    images, privacy = config.client.batch_size, config.privacy
    if isinstance(privacy, ExamplePrivacyConfig):  # the more of them, the less each is seen; δ says how many at most
        images = max(images, int(0.999 / privacy.delta))
    check_clients(config, dict.fromkeys(range(clients), images))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the configuration says, and write the run's folder. Raises InputError or RunFailed, which Flower shows
    as the run's failure."""
    config = from_run_config(context.run_config)
    check(config)
    chosen("server_device", config.server_device)  # that it is there
    if config.preview:
        raise InputError("preview=true: a preview is fedinit run's, on one machine; leave it out")
    located, grid, console = run_folder.locate(config), WatchedGrid(grid), Console()
    folder, backbone = located.path, build_backbone(config.model)
    progress = ProgressObserver(console, config.strategy.name)
    done = None if config.resume == "never" else run_folder.finished(folder)
    if done is not None:
        exchange = Exchange(grid, timeout=config.node_timeout, emit=progress.event, waiting=progress.waiting)
        introductions = exchange.register_clients(backbone.digest, config.rounds, Meeting.of(config))
        kept = kept_sites(folder)
        if kept == sites_of(grid.run.federation_id, roster_of(introductions)):
            show_done(done, config, folder, console)
            return
        unknown = f"its {SITES} is not there or cannot be read, so that nobody can say which federation's it is"
        tell(console, f"{folder}: {unknown if kept is None else 'done by another federation'}; it is moved aside")
    adapted_layers(
        backbone, config.adapter.targets, config.adapter.rank, config.adapter.last_blocks
    )  # refused before a folder is made
    try:
        run = open_run(config, console, located, anew=done is not None)
    except run_folder.RunDone as ended:
        show_done(ended.summary, config, folder, console)
        return
    status = StatusObserver(run.folder.path, config.strategy.name)
    try:
        run.folder.event("code", {"round": last_round(run.checkpoints()), "code": dict(code_now())})
        outcome = federate(
            config,
            grid,
            backbone,
            observers=[*run.observers, progress, status],
            checkpoints=run.checkpoints(),
            parts=run.parts,
        )
        replace_json(run.folder.path / SITES, sites_of(grid.run.federation_id, outcome.roster))
        run.finish(outcome.final_model(), outcome.summary())
    finally:
        progress.close()
        run.close()


def sites_of(federation: str, roster: Roster) -> dict[str, object]:
    """What tells one federation from another: Flower's id of it, and what its clients say that they hold. As JSON has
    it."""
    examples = {str(client): count for client, count in roster.examples.items()}
    held = {"examples": examples, "classes": list(roster.class_names), "domains": list(roster.domain_names)}
    return {"federation": federation, **held}


def kept_sites(folder: Path) -> object:
    """`sites_of` the federation whose run is in this folder; None where that is not known, as of a simulation."""
    try:
        return json.loads(read_text(folder / SITES))
    except (OSError, ValueError):
        return None
