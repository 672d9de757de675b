"""The Flower ClientApp: a cohort of one.

The configuration comes with the run (fedinit/config/flower.py); a site's own paths and device come from its
--node-config and from nowhere else. In a deployment Flower starts a process for every message: what is heavy is
imported once the configuration has been read, so that a wrong one is answered at once.
"""

from __future__ import annotations

import functools
import json
import logging
import sys

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedinit import starting
from fedinit.config.flower import from_run_config
from fedinit.config.limits import Limits
from fedinit.config.schema import Config
from fedinit.config.site import with_site_settings
from fedinit.errors import InputError, Refused, public_of
from fedinit.said import LONGEST, said

app = ClientApp()
OWN = ("partition-id", "noise-secret", "noise-secret-file")  # a client's; those of one process share the rest


@functools.lru_cache(maxsize=2)
def _configured(run_config: str, node_config: str) -> tuple[Config, Config]:
    """The run's configuration, and the same with what is the site's own."""
    try:
        config = from_run_config(json.loads(run_config))
    except InputError as error:
        raise Refused(str(error)) from error  # of the server's words alone
    return config, with_site_settings(config, json.loads(node_config), simulated())


@functools.lru_cache(maxsize=2)
def _cohort(run_config: str, node_config: str, client: int | None):
    """One cohort, and its site, a configuration and process: a long-lived one does not load its backbone for every
    message."""
    with starting.uncollected():
        from rich.console import Console

        from clients.cohort import Cohort
        from clients.site import DeferredSite

    config = _configured(run_config, node_config)[1]
    if config.attack.name != "none":
        raise InputError(
            f"attack={config.attack.name}: is for simulations by fedinit run; a client of Flower is honest"
        )
    console = None if simulated() else Console(stderr=True)  # a site's log says what data it found
    if console is not None:
        limits = Limits.of(json.loads(node_config))
        console.print(f"limits: {limits or 'off'}", highlight=False, markup=False, soft_wrap=True)
    site = DeferredSite(config, client, console=console)
    return Cohort(site, persistent=True, deployed=not simulated()), site


def simulated() -> bool:
    """Whether this is an actor of Flower's simulation, where server and clients share one machine and its files."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _answer(message: Message, context: Context) -> Message:
    """The reply of this node's client, which goes on from its state on disk where the site keeps one; an Error for
    whatever goes wrong: Flower would send the words of an exception, and they may name a file."""
    shared = {k: v for k, v in context.node_config.items() if k not in OWN}
    try:
        words = json.dumps(dict(context.run_config), sort_keys=True), json.dumps(shared, sort_keys=True)
        config, _ = _configured(*words)
        cohort, site = _cohort(*words, _alone(context, config))
        from fedinit.secagg.messages import QUERY

        if message.metadata.message_type == QUERY:  # of a round's secrets alone, which go on no disk
            return cohort([(message, context)])[0]
        site.read()
        from clients import secagg
        from clients.state.disk import Kept

        kept = Kept.of(context, config)
        if kept is None:
            return cohort([(message, context)])[0]
        secrets = context.state.get(secagg.OWN)
        try:
            kept.recall(message, context)
        finally:
            if secrets is not None:
                context.state[secagg.OWN] = secrets
        reply = cohort([(message, context)])[0]
        secrets = context.state.pop(secagg.OWN, None)
        if reply.has_content():
            kept.export(message, context, cohort)
            kept.remember(message, context)
        if secrets is not None:
            context.state[secagg.OWN] = secrets
        return reply
    except Exception as error:
        _forget(context)
        code, public = public_of(error)
        if simulated():
            return Message(Error(code, said(error, LONGEST)), reply_to=message)
        logging.getLogger(__name__).warning(
            "%s", said(error, LONGEST), exc_info=None if isinstance(error, InputError) else error
        )
        return Message(Error(code, said(public, LONGEST)), reply_to=message)


def _forget(context: Context) -> None:
    """A secret sum that this client was part of is over with an error of its own, whatever raised it."""
    from fedinit.secagg import SECRETS

    if SECRETS in context.state:
        from clients import secagg

        secagg.forget(context)


def _alone(context: Context, config: Config) -> int | None:
    """The partition id, where this process is one client's and its images can be read without the others'."""
    client = context.node_config.get("partition-id")
    return (
        client if config.data.name in ("csv", "image_folder") and isinstance(client, int) and not simulated() else None
    )


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Who this client is, and what it holds."""
    return _answer(message, context)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """The sums that round 0 asks for."""
    return _answer(message, context)


@app.query("project")
def project(message: Message, context: Context) -> Message:
    """What the second phase of a round asks about the update that this client made in it."""
    return _answer(message, context)


@app.query("secagg")
def secure_aggregation(message: Message, context: Context) -> Message:
    """Keys and shares of the secret sum of a round."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """An update of what the message sends."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The sums of the score on this client's test images."""
    return _answer(message, context)
