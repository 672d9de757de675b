"""Personal factors: what a client trains and keeps to itself does not leave it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from fedinit.factors import Factors
from fedinit.transforms.contract import Payload, Task, UpdateTransform


class Personal(UpdateTransform):
    """Takes the factors of `task.personal` out of the reply. The server does not expect them back."""

    def on_client(self, task: Task, result: Payload) -> Payload:
        if not task.personal:
            return result
        held_back = {f"{layer}/{part}" for layer in task.adapter for part in task.personal}
        return dataclasses.replace(result, tensors={n: v for n, v in result.tensors.items() if n not in held_back})


def with_personal(
    shared: Mapping[str, Factors], own: Mapping[str, Factors] | None, personal: Collection[str]
) -> dict[str, Factors]:
    """{layer: factors} as their client uses them: its own parts where it keeps them to itself, the shared elsewhere.

    shared: {layer: factors} as the server has them.
    own: {layer: factors} that the client goes on from; None: it has none yet, and uses the shared ones whole.
    personal: the names of the parts that it keeps to itself.
    """
    if own is None:
        return dict(shared)
    return {n: dataclasses.replace(f, **{part: getattr(own[n], part) for part in personal}) for n, f in shared.items()}
