"""The Flower ClientApp: a cohort of one.

The configuration comes with the run (`overrides` in the run config, the same words as on run_sim.py's command
line); a site's own paths and device come from its --node-config.
"""

from __future__ import annotations

import functools
import json

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.cohort import Cohort
from clients.site import Site, with_site_settings
from fedinit.compose import compose_run_config

app = ClientApp()


@functools.lru_cache(maxsize=2)
def _cohort(run_config: str, node_config: str) -> Cohort:
    """One site a configuration and process: a long-lived process does not load its backbone for every message."""
    config = compose_run_config(json.loads(run_config))
    return Cohort(Site(with_site_settings(config, json.loads(node_config))), persistent=True)


def _answer(message: Message, context: Context) -> Message:
    # The partition id is not part of the key: clients that share a process share the data and the backbone.
    own = {k: v for k, v in context.node_config.items() if k != "partition-id"}
    cohort = _cohort(json.dumps(dict(context.run_config), sort_keys=True), json.dumps(own, sort_keys=True))
    return cohort([(message, context)])[0]


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context)
