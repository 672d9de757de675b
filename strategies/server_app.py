"""The Flower ServerApp: the same run over whatever Grid Flower gives, in its simulation or in a deployment.

The configuration comes with the run (fedinit/config/flower.py); clients evaluate on their own test images, since
a server has none. The run's folder is written where the server runs.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedinit.config.flower import from_run_config
from fedinit.models import adapted_layers, build_backbone
from fedinit.runs import folder as run_folder
from fedinit.runs.progress import ProgressObserver
from fedinit.runs.reporting import open_run
from fedinit.runs.table import print_summary
from strategies.server.compatibility import check_method
from strategies.server.delivery import WatchedGrid
from strategies.server.federation import federate

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the configuration says, and write the run's folder. Raises InputError or RunFailed, which Flower shows
    as the run's failure."""
    config = from_run_config(context.run_config)
    check_method(config, under_flower=True)
    located = run_folder.locate(config)
    folder = located.path
    console, done = Console(), None if config.resume == "never" else run_folder.finished(folder)
    if done is not None:
        console.print("this run is done; resume=never runs it again", highlight=False)
        print_summary(console, done, str(folder))
        return
    backbone = build_backbone(config.model)
    adapted_layers(backbone, config.adapter.targets, config.adapter.rank)  # refused before a folder is made
    run = open_run(config, console, located)
    progress = ProgressObserver(console, config.strategy.name)
    try:
        outcome = federate(
            config,
            WatchedGrid(grid),
            backbone,
            observers=[*run.observers, progress],
            checkpoints=run.checkpoints(),
            parts={"files": run.folder},
        )
        run.finish(outcome.final_model(), outcome.summary())
    finally:
        progress.close()
        run.folder.close()
