"""A client's state on the site's own disk, by round, so that it outlives the SuperNode and the server's run.

Flower keeps a client's Context in the SuperNode's memory and for one run. With `state-dir` in its --node-config a site
keeps it itself: what a client held when it answered round t, for the last few rounds. Asked to train round t it goes on
from what it held before t. So a round that is asked again, by the same server or by one that came back from a
checkpoint, is trained from the same state and gives the same bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.cohort import Cohort
from fedinit import wire
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.home import expand_home
from fedinit.runs.export import ONE, save_adapter
from fedinit.state.checkpoint import KEEP, Checkpoints

SETTING = "state-dir"


class Kept:
    """The states of one client in one run, in a `folder` whose name is made of hashes and numbers alone.

    Of a method whose clients keep factors to themselves the server can export no whole adapter; the client has all of
    its own when it evaluates the model of the last round, and it is written here then.
    """

    def __init__(self, root: Path, config: Config, client: int) -> None:
        """root: the site's folder for all its clients and runs.
        config: as the server sent it, before the site's own settings are in it.
        client: the partition id. Raises InputError for a root that is a symbolic link."""
        if root.is_symlink():
            raise InputError(f"{SETTING}={root}: is a symbolic link; a site keeps its state in a folder of its own")
        self.folder = root / f"{config.identity()}-s{config.seed}-client-{client}"
        self._counts = config.privacy.name == "examples"
        # One more than the server keeps: it may come back from the oldest it has, while we are a round ahead.
        self._rounds = Checkpoints(self.folder, config.computed(), keep=KEEP + 1)

    @staticmethod
    def of(context: Context, config: Config) -> Kept | None:
        """The states of the client whose Context this is; None where its site set no folder or no partition id."""
        node: Mapping[str, object] = context.node_config
        client = node.get("partition-id")
        if SETTING not in node or not isinstance(client, int):
            return None  # without a partition id the cohort has the answer
        return Kept(expand_home(SETTING, str(node[SETTING])), config, client)

    def recall(self, message: Message, context: Context) -> None:
        """Put the client's state where this message wants it into the Context: an empty one where there is none.

        train: before the round that is to be trained.
        evaluate, query.statistics, query.project: after the round that the message names, 0 where it names none.
        query.describe: at the round that the server stands at, -1 before any; later ones are another past's, and are
        dropped.

        Raises InputError where the state that counts a client's ε is damaged, OSError where it cannot be read.
        """
        round, message_type = _round(message), message.metadata.message_type
        if message_type == "query.describe":
            self._rounds.drop_after(round)
        loaded = self._rounds.load(last=round - (message_type == "train"))
        if loaded.passed_over and message_type == "train" and self._counts:
            name, why = loaded.passed_over[0]
            raise InputError(
                f"{SETTING}: the state of {name} is damaged ({why}), and what ε this client has spent stands in it; "
                f"put back {self.folder / name} as it was"
            )
        for name, why in loaded.passed_over:
            logging.getLogger(__name__).warning("state of %s is damaged (%s); the one before it is used", name, why)
        context.state = wire.from_state(loaded.states["client"]) if loaded.states else RecordDict()

    def export(self, message: Message, context: Context, cohort: Cohort) -> None:
        """Write the adapter that this message had the client evaluate to `folder`/adapter, where that is the final one
        and its own; do nothing else. Raises InputError when the disk does not take it.

        cohort: which has answered the message.
        """
        config, data = cohort.site.config, cohort.site.data
        if message.metadata.message_type != "evaluate" or not wire.words(wire.config(message), "personal"):
            return
        task = cohort.decoder.decode(message, context).task
        if task is not None and task.round == config.rounds:
            offset = cohort.bases.known[task.base]
            try:
                with _private():
                    save_adapter(self.folder / ONE, task.adapter, task.head, offset, config, data.class_names)
            except OSError as error:
                raise _not_kept(error) from error

    def remember(self, message: Message, context: Context) -> None:
        """Save what the client holds now, unless that is nothing. Raises InputError when the disk does not take it."""
        if message.metadata.message_type != "query.describe" and context.state:
            try:
                with _private():
                    self._rounds.save(_round(message), {"client": wire.to_state(context.state)})
            except OSError as error:
                raise _not_kept(error) from error
        context.state = RecordDict()  # not a second time in the SuperNode's memory


@contextmanager
def _private() -> Iterator[None]:
    """Within, whatever is made is its owner's alone: a client's state is as private as its images."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _not_kept(error: OSError) -> InputError:
    where = f", {error.filename}" if error.filename else ""
    return InputError(f"{SETTING}: cannot keep this client's state ({error.strerror}{where})")


def _round(message: Message) -> int:
    config = wire.config(message) if wire.CONFIG in message.content else ConfigRecord()
    return wire.value(config, "round", int) if "round" in config else 0
