"""The Flower ClientApp: a cohort of one.

The configuration comes with the run (fedinit/run_config.py); a site's own paths and device come from its --node-config
and from nowhere else. In a deployment Flower starts a process for every message: what is heavy is imported once the
configuration has been read, so that a wrong one is answered at once.
"""

from __future__ import annotations

import functools
import json
import sys

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedinit.errors import InputError
from fedinit.run_config import from_run_config
from fedinit.site_settings import with_site_settings

app = ClientApp()


@functools.lru_cache(maxsize=2)
def _prepared(run_config: str, node_config: str, client: int | None):
    """The run's configuration and one cohort a configuration and process: a long-lived process does not load its
    backbone for every message."""
    config = from_run_config(json.loads(run_config))
    own = with_site_settings(config, json.loads(node_config), simulated())
    from clients.cohort import Cohort
    from clients.site import Site

    return config, Cohort(Site(own, client), persistent=True)


def simulated() -> bool:
    """Whether this is an actor of Flower's simulation, where server and clients share one machine and its files."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _answer(message: Message, context: Context) -> Message:
    # These are a client's own: clients that share a process share the data and the backbone.
    own = {k: v for k, v in context.node_config.items() if k not in ("partition-id", "noise-secret")}
    try:
        run = json.dumps(dict(context.run_config), sort_keys=True)
        config, cohort = _prepared(run, json.dumps(own, sort_keys=True), _alone(context))
        from clients.keeping import Kept

        kept = Kept.of(context, config)
        if kept is None:
            return cohort([(message, context)])[0]
        kept.recall(message, context)
        reply = cohort([(message, context)])[0]
        if reply.has_content():
            kept.keep(message, context)
        return reply
    except InputError as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)


def _alone(context: Context) -> int | None:
    """The partition id, where this process is one client's; in a simulation clients share a process and its data."""
    client = context.node_config.get("partition-id")
    return client if isinstance(client, int) and not simulated() else None


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context)
