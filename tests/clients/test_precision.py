"""Logits and gradients of a bank in each precision, against plain modules in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.engine.worker import Settings, Worker
from fedinit.models import select_targets
from fedinit.state.base_offset import EMPTY
from tests.support.bank_runs import in_float64

SCALE, RANKS = 1.7, (3, 2)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
# (precision, device, its unit roundoff): bf16 has 8 bits of a fraction, tf32 11, fp32 24.
PRECISIONS = [
    ("fp32", "cpu", 2.0**-24),
    ("bf16", "cpu", 2.0**-8),
    *(pytest.param(*of, marks=CUDA) for of in [("tf32", "cuda", 2.0**-11), ("bf16", "cuda", 2.0**-8)]),
]


@pytest.mark.parametrize(("precision", "device", "unit"), PRECISIONS)
def test_logits_and_gradients_are_those_of_float64_within_the_precisions_rounding(
    precision, device, unit, tiny_backbone, tiny_data, client_config, random_adapter, random_head, plain_client
) -> None:
    """Of the backbone's rounding a few are left in what comes out; factors, heads and gradients are float32."""
    targets = select_targets(tiny_backbone.module, None, 3)
    adapters = [random_adapter(targets, rank, rank) for rank in RANKS]
    heads = [random_head(5, tiny_backbone.features, i) for i in range(len(RANKS))]
    images, labels = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    settings = Settings(client=client_config(), seed=0, scale=SCALE, precision=precision)
    exact = in_float64(tiny_backbone)
    with Worker(tiny_backbone, targets, tiny_data, settings, place).lent(EMPTY) as bank:
        leaves = bank.load(adapters, heads)
        ours = bank.forward(images.to(place), 2)
        loss = nn.functional.cross_entropy(ours.flatten(0, 1).float(), labels.to(place)) * 2
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    worst = 0.0
    for i, rank in enumerate(RANKS):
        model = plain_client(exact, adapters[i], heads[i], SCALE).double()
        theirs = model(images[4 * i : 4 * i + 4].double())
        nn.functional.cross_entropy(theirs, labels[4 * i : 4 * i + 4]).backward()
        pairs = [(ours[i].detach(), theirs.detach())]
        for name, lora in model.loras.items():
            pairs += [(grads[f"{name}/A"][i, :rank], lora.A.grad), (grads[f"{name}/B"][i, :, :rank], lora.B.grad)]
        pairs += [(grads[f"head/{part}"][i], getattr(model.head, part).grad) for part in ("weight", "bias")]
        worst = max(worst, *(float((a.cpu().double() - b).norm() / b.norm()) for a, b in pairs))
    assert worst < (64 if precision == "fp32" else 16) * unit  # where sums of hundreds are of its own precision
    if precision != "fp32":
        assert worst > unit / 16, "the control: less than it rounds by is float32's"
