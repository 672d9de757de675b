"""Clients that keep their own state on a disk."""

from __future__ import annotations

from pathlib import Path

from clients.cohort import Cohort
from clients.state.disk import Kept


def keeping(config, cohort: Cohort, root: Path):
    """The cohort as a deployed site runs it: one message at a time, from what is on the disk."""

    def handler(deliveries):
        replies = []
        for message, context in deliveries:
            context.node_config["state-dir"] = str(root)
            kept = Kept.of(context, config)
            kept.recall(message, context)
            replies += cohort([(message, context)])
            kept.export(message, context, cohort)
            kept.remember(message, context)
            assert not context.state
        return replies

    return handler
