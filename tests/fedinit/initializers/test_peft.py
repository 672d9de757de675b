"""Against PEFT, where it is right: the same starts from the same weights and inputs, and the exported adapter as PEFT
reads it. Products are compared, since signs are free there. docs/inits.md says where PEFT is another thing.

Needs the [oracle] extra.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clients.cohort import Cohort
from clients.site import Site
from fedinit.initializers import create_initializer
from fedinit.runs.export import save_adapter
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.frozen_weights import RANK, SCALE, SHAPES, WEIGHTS, inputs, setting, spread
from tests.support.layer_inputs import Clients
from tests.support.layer_inputs import inputs as eva_inputs
from tests.support.measuring import begun, create
from tests.support.small import small_config

peft = pytest.importorskip("peft", reason='needs peft: pip install -e ".[oracle]"')


class Layers(nn.Module):
    """The three layers side by side, each with an input of its own."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.clone()
            setattr(self, name, linear)

    def forward(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name)(x) for name, x in rows.items()}


def theirs(kind, rows=None, weights=WEIGHTS, rank=RANK, **options):
    """{layer: (B, A, the weight of the base) of PEFT's start}."""
    module = Layers(weights)
    config = peft.LoraConfig(
        r=rank, lora_alpha=SCALE * rank, target_modules=list(weights), init_lora_weights=kind, **options
    )
    if kind == "corda":
        from peft.tuners.lora.corda import preprocess_corda

        one_batch = {name: x.float()[None] for name, x in rows.items()}
        preprocess_corda(module, config, run_model=lambda: module(one_batch))
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(module, config).base_model.model
    made = {}
    for name in weights:
        layer = getattr(wrapped, name)
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        made[name] = (B, A, layer.base_layer.weight.detach())
    return made


@pytest.mark.parametrize(
    ("name", "kind", "options", "extra"),
    [
        ("pissa", "pissa", {}, {}),
        ("olora", "olora", {}, {}),
        ("corda", "corda", {"mode": "ipm"}, {"corda_method": "ipm"}),
        ("corda", "corda", {"mode": "kpm"}, {"corda_method": "kpm"}),
    ],
)
def test_the_same_product_and_the_same_base(name, kind, options, extra):
    """PEFT computes in float32, so to 2e-5 of a weight of order one; its single batch is ours up to a factor, which
    the product does not see."""
    rows = inputs(decay=0.9)
    if extra:
        from peft.tuners.lora.config import CordaConfig

        extra = {"corda_config": CordaConfig(verbose=False, **extra)}
    other = theirs(kind, rows, **extra)
    state = begun(create(name, **options), setting(), spread(rows))
    for layer in SHAPES:
        B, A, left = other[layer]
        torch.testing.assert_close(state.layers[layer].dense(), B @ A, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(WEIGHTS[layer] + SCALE * state.merge[layer].dense(), left, rtol=1e-4, atol=6e-5)
        if name != "corda":  # the gauge too, but for signs; CorDA's depends on the size of the inputs in PEFT
            torch.testing.assert_close(state.layers[layer].B.abs(), B.abs(), rtol=1e-4, atol=2e-5)


def test_mica_has_the_same_frozen_B():
    try:
        other = theirs("mica")
    except (KeyError, ValueError) as error:
        pytest.skip(f"this peft has no mica: {error}")
    state = begun(create("mica"), setting(), None)
    for layer in SHAPES:
        B, A, left = other[layer]
        mine = state.layers[layer].B
        assert not A.any() and torch.equal(left, WEIGHTS[layer])
        torch.testing.assert_close(mine @ mine.T, B @ B.T, rtol=0, atol=2e-5)
        torch.testing.assert_close(mine.flip(1).abs(), B.abs(), rtol=0, atol=1e-4)  # the most minor one first here


WIDE = {"l": torch.zeros(2_000, 3_000)}


@pytest.mark.parametrize("name", ["gaussian", "orthogonal"])
def test_draws_have_the_same_size(name):
    """Deviations of 24,000 and 16,000 entries, to five standard errors of their ratio (orthogonal's are products)."""
    ((B, A, left),) = theirs(name, weights=WIDE, rank=8).values()
    mine = create_initializer(name).start({"l": (2_000, 3_000)}, 8, 0)["l"]
    assert float(mine.A.std() / A.std()) == pytest.approx(1, abs=0.05)
    if name == "gaussian":
        assert not B.any() and not mine.B.any()
    else:
        assert float(mine.B.std() / B.std()) == pytest.approx(1, abs=0.05)
        assert float((B @ A).abs().max()) < 1e-5 and float(mine.dense().abs().max()) < 1e-5
        for factor in (A, mine.A):  # of r rows half are free
            assert torch.linalg.matrix_rank(factor @ factor.T, rtol=1e-4) == 4
    assert torch.equal(left, WIDE["l"])


def test_eva_holds_what_pefts_own_holds():
    """PEFT's is an incremental approximation of the same directions about the mean: by captured energy 0.99 of the best
    at least, where the exact ones hold all of it. The control: directions about zero hold less."""
    x = eva_inputs(rows=512, mean=1.0)
    module = nn.Sequential()
    module.add_module("l", nn.Linear(x.shape[1], 30))
    config = peft.LoraConfig(r=4, target_modules=["l"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0))
    model = peft.get_peft_model(module, config, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(
        model,
        dataloader=list(x.float().split(64)),
        forward_fn=lambda model, rows: model(rows),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    A = model.base_model.model.l.lora_A["default"].weight.detach().double()
    centred = x - x.mean(0)
    best = torch.linalg.svdvals(centred)[:4].square().sum()

    def held(rows: torch.Tensor) -> float:
        return float((torch.linalg.pinv(rows.T) @ centred.T).square().sum() / best)

    mine, raw = (Clients({"l": x}).start(centred=c).layers["l"].A.double() for c in (True, False))
    assert held(mine) > 1 - 1e-6 and 0.99 < held(A) <= 1 + 1e-6
    assert held(raw) < held(A)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("client.lr=0.2"))


@pytest.mark.parametrize("overrides", ["init=pissa strategy=fedit", "strategy=fedex_lora rounds=1"])
def test_peft_reads_what_is_exported_as_the_effective_model(overrides, tmp_path, site):
    """On a timm model with its own weights: the features of PEFT's model and of ours, base offset and all."""
    config = small_config(*overrides.split(), "evaluation=none")
    outcome = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
    save_adapter(tmp_path, outcome.aggregate.layers, outcome.aggregate.head, outcome.offset, config, ["a"] * 10)
    module = copy.deepcopy(site.backbone.module)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = module(images)
        for name in site.targets:
            whole = outcome.aggregate.layers[name].dense() + outcome.offset.get(name, 0)
            module.get_submodule(name).weight += config.adapter.scale * whole
        expected = module(images)
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(site.backbone.module), tmp_path).eval()
        found = wrapped(images)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
