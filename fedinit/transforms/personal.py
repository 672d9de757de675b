"""Personal factors: what a client trains and keeps to itself does not leave it."""

from __future__ import annotations

import dataclasses

from fedinit.transforms.contract import Payload, Task, UpdateTransform


class Personal(UpdateTransform):
    """Takes the factors of `task.personal` out of the reply. The server does not expect them back."""

    def on_client(self, task: Task, result: Payload) -> Payload:
        held_back = {f"{layer}/{part}" for layer in task.adapter for part in task.personal}
        return dataclasses.replace(result, tensors={n: v for n, v in result.tensors.items() if n not in held_back})
