"""The second phase of a round: the clients whose updates went into the means answer these with one sum more.

A client that is lost between the phases is in the means and not in the sum, which is then the mean over those who
answered; the ledger names it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.transforms.client_clip import known_images
from strategies.aggregator import Aggregate
from strategies.server import requests
from strategies.server.collecting import drop
from strategies.server.exchange import Exchange
from strategies.server.gate import admit_images
from strategies.server.method import Method
from strategies.server.replies import match_replies
from strategies.server.state import ServerState


def project(
    state: ServerState, method: Method, exchange: Exchange, means: Aggregate, weights: Mapping[int, float]
) -> tuple[ServerState, dict[str, Tensor]]:
    """{layer: Σ p_i B_i(A_iĀᵀ) / Σ p_i}, (d, r) in float64, over those who answer, or over q·N and with noise under
    privacy=clients; and the state once it is known who does not.

    means: Ā and B̄. weights: {client: p_i} of the updates in them.

    Raises RunFailed where fewer answer than the quorum is of these clients.
    """
    round, clients = state.round + 1, sorted(weights)
    messages, asked = requests.for_projection(method, exchange, means, clients, round)
    replies = exchange.send(messages, exchange.reply_timeout, asked)
    judge, known = functools.partial(admit_images, method.gate, means.layers), {}
    if method.privacy is not None:
        known = known_images(means.layers)
        judge = functools.partial(judge, known=known, clip=method.privacy.clips["second"])
    answers, refusals = match_replies(replies, asked, exchange.client_of, judge)
    state = drop(state, exchange, round, refusals)
    if method.privacy is not None:
        released = method.privacy.release(known, list(answers.values()), "second", round)
        return state, {name: released[wire.image_name(name)] for name in means.layers}
    need = max(method.needed(len(clients)), 1)
    if len(answers) < need:
        why = f"{refusals[0].code}: {refusals[0].detail}"
        raise RunFailed(f"round {round}, second phase: {len(answers)} usable answers, the quorum is {need} ({why})")
    total = sum(weights[client] for client in answers)
    images = {name: torch.zeros(factors.B.shape, dtype=torch.float64) for name, factors in means.layers.items()}
    for client, tensors in answers.items():
        for name, image in images.items():
            image.add_(tensors[wire.image_name(name)].double(), alpha=weights[client] / total)
    return state, images
