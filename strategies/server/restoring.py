"""What a run leaves after a round, and where it goes on: from the latest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedinit.config.privacy import NoPrivacy, PrivacyConfig
from fedinit.errors import RunFailed
from fedinit.state.checkpoint import Checkpoints, Filed, Loaded, Part
from fedinit.state.manifest import NAME, Damaged
from strategies.server.audience import Audience
from strategies.server.state import ServerState


def save_all(keeper: Checkpoints, state: ServerState, parts: Mapping[str, Part]) -> None:
    """Write the checkpoint of the server's round, of all parts. Raises OSError; the earlier ones are there then."""
    states = {"server": state.snapshot()} | {name: part.snapshot() for name, part in parts.items()}
    oldest = keeper.save(state.round, states)
    for part in parts.values():
        if isinstance(part, Filed):
            part.saved(state.round, oldest)


def restored(
    keeper: Checkpoints, parts: Mapping[str, Part], audience: Audience, privacy: PrivacyConfig | NoPrivacy
) -> ServerState | None:
    """The server's state in the latest whole checkpoint, None where there is none.

    Every part is put where that one left it; the ledger says which later ones were damaged and passed over. Raises
    RunFailed where all are, and noise was drawn: nobody knows how often.
    """
    loaded = _whole(keeper, parts)
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


def _whole(keeper: Checkpoints, parts: Mapping[str, Part]) -> Loaded:
    """The latest checkpoint that is whole, the files of the parts that have some of their own among it."""
    passed_over: list[tuple[str, str]] = []
    loaded = keeper.load()
    while loaded.states:
        passed_over += loaded.passed_over
        try:
            for name, part in parts.items():
                if isinstance(part, Filed) and name in loaded.states:
                    part.check(loaded.states[name])
        except Damaged as fault:
            passed_over.append((f"{NAME}{loaded.round:06d}", str(fault)))
            loaded = keeper.load(last=loaded.round - 1)
            continue
        return replace(loaded, passed_over=passed_over)
    return replace(loaded, passed_over=[*passed_over, *loaded.passed_over])
