"""Where a run goes on: from the latest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Mapping

from fedinit.config.privacy import NoPrivacy, PrivacyConfig
from fedinit.errors import RunFailed
from fedinit.state.checkpoint import Checkpoints, Part
from strategies.server.audience import Audience
from strategies.server.state import ServerState


def restored(
    keeper: Checkpoints, parts: Mapping[str, Part], audience: Audience, privacy: PrivacyConfig | NoPrivacy
) -> ServerState | None:
    """The server's state in the latest whole checkpoint, None where there is none.

    Every part is put where that one left it; the ledger says which later ones were damaged and passed over. Raises
    RunFailed where all are, and noise was drawn: nobody knows how often.
    """
    loaded = keeper.load()
    if loaded.passed_over and not loaded.states and privacy.name != "none":
        name, why = loaded.passed_over[0]
        raise RunFailed(
            f"{name} is damaged ({why}), as is every checkpoint there, and what ε the run has spent stood in them; "
            "put one back, or begin anew with resume=never, which counts from zero"
        )
    for name, part in parts.items():
        if name in loaded.states:
            part.restore(loaded.states[name])
    for name, why in loaded.passed_over:
        audience.event("checkpoint_damaged", {"checkpoint": name, "detail": why})
    if not loaded.states:
        return None
    audience.event("resumed", {"round": loaded.round})
    return ServerState.restored(loaded.states["server"])
