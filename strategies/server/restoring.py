"""What a run leaves after a round, and where it goes on: from the latest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedinit.config.privacy import NoPrivacy, PrivacyConfig
from fedinit.errors import RunFailed
from fedinit.state.checkpoint import DAMAGED, Checkpoints, Filed, Loaded, Part
from fedinit.state.manifest import NAME
from strategies.server.audience import Audience
from strategies.server.state import ServerState


def save_all(keeper: Checkpoints, state: ServerState, parts: Mapping[str, Part]) -> None:
    """Write the checkpoint of the server's round, of all parts. Raises OSError; the earlier ones are there then."""
    states = {"server": state.snapshot()} | {name: part.snapshot() for name, part in parts.items()}
    oldest = keeper.save(state.round, states)
    for part in _filed(parts).values():
        part.saved(state.round, oldest)


def restored(
    keeper: Checkpoints, parts: Mapping[str, Part], audience: Audience, privacy: PrivacyConfig | NoPrivacy
) -> ServerState | None:
    """The server's state in the latest whole checkpoint, None where there is none.

    Every part is put where that one left it; the ledger says which later ones were damaged and passed over. Raises
    RunFailed where all are, and noise was drawn: nobody knows how often.
    """
    loaded, lost = _found(keeper, parts)
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
    if loaded.passed_over and not loaded.states:
        for part in _filed(parts).values():  # first: without a checkpoint their files would be nobody's
            part.put_aside()
        audience.event("begun_anew", {"detail": f"no checkpoint is whole; they are kept as {NAME}…{DAMAGED}"})
    keeper.put_aside(name for name, _ in loaded.passed_over)
    if not loaded.states:
        return None
    audience.event("resumed", {"round": loaded.round})
    for name, faults in lost.items():
        _filed(parts)[name].lose(faults)
        for client, why in faults.items():
            audience.event("client_file_damaged", {"client": client, "detail": why})
    return ServerState.restored(loaded.states["server"])


def _found(keeper: Checkpoints, parts: Mapping[str, Part]) -> tuple[Loaded, Mapping[str, Mapping[int, str]]]:
    """The latest checkpoint that is whole with the files of the parts that have some; where there is none with all of
    these, the one that lacks the fewest, and {part: {whose file is not what was written: why}}."""
    passed_over: list[tuple[str, str]] = []
    least: tuple[Loaded, Mapping[str, Mapping[int, str]]] | None = None
    loaded = keeper.load()
    while loaded.states:
        passed_over += loaded.passed_over
        filed = {name: part for name, part in _filed(parts).items() if name in loaded.states}
        faults = {name: part.check(loaded.states[name]) for name, part in filed.items()}
        whole = replace(loaded, passed_over=[*passed_over])
        if not any(faults.values()):
            return whole, {}
        if least is None or _count(faults) < _count(least[1]):
            least = whole, faults
        passed_over.append((f"{NAME}{loaded.round:06d}", next(why for of in faults.values() for why in of.values())))
        loaded = keeper.load(last=loaded.round - 1)
    return least or (replace(loaded, passed_over=[*passed_over, *loaded.passed_over]), {})


def _count(faults: Mapping[str, Mapping[int, str]]) -> int:
    return sum(map(len, faults.values()))


def _filed(parts: Mapping[str, Part]) -> dict[str, Filed]:
    return {name: part for name, part in parts.items() if isinstance(part, Filed)}
