"""`logger=tensorboard`: event files in the run's folder, for `tensorboard --logdir outputs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from fedinit.runs.tracker import Tracker

FOLDER = "tensorboard"  # in the run's


class TensorboardTracker(Tracker):
    """Writes every round's figures as scalars. A run that goes on writes another file beside; rounds that it repeats
    replace what was written of them."""

    name: ClassVar[str] = "tensorboard"
    writer: Any

    def begin(self) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / FOLDER))
        self.writer.add_text("configuration", f"```json\n{json.dumps(self.values, indent=2)}\n```")

    def log(self, values: Mapping[str, float], round: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()  # for those who look while it goes on

    def conclude(self, figures: Mapping[str, int | float | str]) -> None:
        self.writer.add_text("summary", f"```json\n{json.dumps(dict(figures), indent=2)}\n```")

    def end(self, code: int) -> None:
        self.writer.close()
