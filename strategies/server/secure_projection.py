"""The second phase of a round of which the server sees no single answer: a secret sum after that of the updates.

LoRA-FAIR's correction needs Σ p_i B_i(A_iĀᵀ) and nothing else of the clients (strategies/methods/lora_fair.py), so the
same four exchanges give it, among those whose updates are in the means. Who is lost in between is in the means and not
in this sum, which is then the mean over those who are left, as without masks (projecting.py).
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from fedinit import wire
from strategies.aggregator import Aggregate
from strategies.server import requests
from strategies.server.collecting import Admitted
from strategies.server.exchange import Exchange
from strategies.server.method import Method
from strategies.server.secure_cohort import Cohort, Spoilt
from strategies.server.secure_sum import ask_masked, mean_of, point_of
from strategies.server.state import ServerState
from strategies.server.unmasking import unmask


def project_sum(
    state: ServerState, method: Method, exchange: Exchange, means: Aggregate, admitted: Admitted
) -> tuple[ServerState, Mapping[str, Tensor] | None]:
    """{layer: Σ p_i B_i(A_iĀᵀ) / Σ p_i}, (d, r), over the clients of the first sum that are left, and the state once it
    is known who is not; None of a sum that is refused, which the ledger says (`sum_refused`).

    means: Ā and B̄. admitted: the first sum. Raises RunFailed for fewer clients than the threshold or the quorum.
    """
    assert method.secure is not None
    (update,), round = admitted.updates, state.round + 1
    weights = {client: builtins.round(share * update.examples) for client, share in admitted.shares.items()}
    sums = Cohort.of(method, exchange, state, sorted(weights), time.monotonic(), admitted.threshold)
    like = {wire.image_name(name): torch.zeros_like(factors.B) for name, factors in means.layers.items()}
    most = {wire.image_name(name): method.gate.largest_image(factors) for name, factors in means.layers.items()}
    try:
        keys, sealed = sums.agree(sorted(weights))
        point = point_of(method.secure, {client: weights[client] for client in sealed})
        messages, asked = requests.for_projection(method, exchange, means, sorted(sealed), round)
        words = ask_masked(sums, messages, asked, like, sealed, weights)
        total = unmask(sums, words, keys, sealed)
        counted = {client: weights[client] for client in words}
        tensors, _ = mean_of(point, total, counted, like, most if method.gate.enabled else {}, round)
    except Spoilt as why:
        sums.refuse(why)
        return sums.state, None
    return sums.state, {name: tensors[wire.image_name(name)].double() for name in means.layers}
