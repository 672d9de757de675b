"""What runs that were stopped leave, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedinit.config.schema import Config
from fedinit.errors import GOES_ON, InputError, machine_failed
from fedinit.runs.done import done_of
from fedinit.state.manifest import FOLDER, differences

NOTHING = "there was no checkpoint yet, so nothing is kept"
IS_DONE = "the run is done, and the same command shows it"


def left_by(configs: Sequence[Config]) -> str:
    """Whether any of the runs has a checkpoint, or the only one is done, by the folders that are there: no images are
    read for it."""
    if len(configs) == 1 and configs[0].resume != "never" and any(done_of(place) for place in _places(configs[0])):
        return IS_DONE
    if not any(any(_places(config)) for config in configs):
        return NOTHING
    if all(config.resume == "never" for config in configs):
        return "the last whole checkpoint is kept; without resume=never the same command goes on from it"
    return GOES_ON


def _places(config: Config) -> Iterator[Path]:
    """The folders of the run."""
    if config.resume in ("auto", "never"):
        places = sorted((Path(config.output_dir) / config.name).glob(f"*-s{config.seed}"))
    else:
        places = [Path(config.resume)]
    return (place for place in places if any((place / FOLDER).rglob("round-*")) and _is_of(place, config))


def _is_of(place: Path, config: Config) -> bool:
    from fedinit.runs.configured import computed_in

    try:
        written = computed_in(place)
    except (InputError, OSError) as error:  # of another format; or whole, and there was nothing left to open it with
        return machine_failed(error)
    if written is None:  # of its reference alone, which does not say whose it is
        return True
    asked, has = config.computed(), written["engine"]
    # What is "auto" is a value before the run is named, or none that it is named by: any is what was asked for.
    engine = {key: has[key] if value == "auto" else value for key, value in asked["engine"].items()
              if value != "auto" or key in has}  # fmt: skip
    return not differences({**asked, "engine": engine}, written)
