"""Where the server works on updates: on a device in name, to the bit; on CUDA, where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from clients import cohort
from clients.cohort import Cohort
from clients.engine.hardware import clients_device, resolved
from clients.site import Site
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.threads import intra_op
from fedinit.transport.local import LocalGrid
from run_sim import simulate
from strategies import AGGREGATORS
from strategies.aggregator import Update
from strategies.server import placing, round_zero
from strategies.server import round as of_round
from strategies.server.delivery import WatchedGrid
from strategies.server.federation import federate
from strategies.server.gate import Gate
from strategies.server.outcome import Outcome
from strategies.server.placing import server_device
from tests.support.far_device import FAR, Far, far_device
from tests.support.small import slow_unless, small_config

QUICK = ("engine.device=cpu", "client.max_steps=1", "evaluation=none")
METHODS = {
    **{name: (f"strategy={name}",) for name in AGGREGATORS if name != "head_alone"},
    "frlora": ("strategy=frlora", "init=pissa"),
    "fed_sb": ("strategy=fed_sb", "init=random_core"),
    "ravan": ("strategy=ravan", "init=random_core"),
    "weighting": ("strategy=fedit", "weighting=norm"),
    "ranks": ("strategy=lora_fair", "adapter.ranks=[4,2,1]"),
    "rbla_ranks": ("strategy=rbla", "adapter.ranks=[4,2,1]"),
    "flora_ranks": ("strategy=flora", "adapter.ranks=[4,2,1]"),
    "fair_A": ("strategy=lora_fair", "strategy.side=A"),
    "fair_both": ("strategy=lora_fair", "strategy.side=both", "strategy.lam_scale=relative"),
    "fair_gram": ("strategy=lora_fair", "strategy.solver=gram_sgd", "strategy.steps=5"),
    "fair_dense": ("strategy=lora_fair", "strategy.solver=dense_sgd", "strategy.steps=5"),
    "fair_xavier": (
        "strategy=lora_fair", "strategy.solver=dense_sgd", "strategy.steps=5", "strategy.delta_init=xavier"
    ),
    "fair_columns": ("strategy=lora_fair", "strategy.similarity=columns"),
    "fair_columns_sgd": (
        "strategy=lora_fair", "strategy.similarity=columns", "strategy.solver=dense_sgd", "strategy.steps=5"
    ),
    "fair_phases": ("strategy=lora_fair", "strategy.phases=2"),
    "rotated": ("strategy=fedrot_lora", "strategy.align=joint"),
    "median": ("strategy=spectral", "strategy.rule=median"),
    "dora": ("strategy=lora_fair", "adapter=dora"),
    "vera": ("strategy=lora_fair", "adapter=vera", "init=vera", "strategy.lam_scale=relative"),
    "vera_cosine": ("strategy=lora_fair", "adapter=vera", "init=vera"),
    "flexlora_vera": ("strategy=flexlora", "adapter=vera", "init=vera"),
    "krum": ("strategy=lora_fair", "robust=multi_krum", "robust.bad=0"),
    "median_rule": ("strategy=fedit", "robust=geometric_median", "adapter=dora"),
    "bounded": ("strategy=ffa_lora", "robust=bounded"),
    "running": ("strategy=fedit", "strategy.diagnostics=false"),
    "running_dora": ("strategy=ffa_lora", "strategy.diagnostics=false", "adapter=dora"),
    "private": ("strategy=fedit", "privacy=clients", "strategy.diagnostics=false"),
    "momentum": ("strategy=fedit", "server_opt=momentum"),
}  # fmt: skip


TELLING = {
    *("fedit", "flora", "fedex_lora", "lora_fair", "fair_columns", "fair_dense", "hetlora", "rotated", "median"),
    *("vera_cosine", "dora", "krum", "running", "private", "momentum"),
}


def run(words: tuple[str, ...], device: torch.device) -> Outcome:
    config = small_config(*QUICK, *words)
    site = Site(config)
    cohort = Cohort(site)
    cohort.device = device
    return federate(config, LocalGrid(cohort, len(site.partitions)), site.backbone)


@pytest.mark.parametrize("method", slow_unless(lambda method: method in TELLING, ((method,) for method in METHODS)))
def test_a_run_on_a_device_ends_in_the_same_bits(method, monkeypatch):
    here = run(METHODS[method], torch.device("cpu"))
    met = []
    aggregate = of_round.brought_back
    monkeypatch.setattr(of_round, "brought_back", lambda made, device: met.append(made) or aggregate(made, device))
    with far_device(monkeypatch):
        there = run(METHODS[method], FAR)
    assert there.final_hash == here.final_hash
    assert there.aggregate.diagnostics == here.aggregate.diagnostics
    made = [tensor for one in met for factors in one.layers.values() for tensor in factors.parts.values()]
    assert made and all(isinstance(tensor, Far) for tensor in made)
    assert not any(isinstance(tensor, Far) for f in there.aggregate.layers.values() for tensor in f.parts.values())


def test_the_device_in_name_refuses_what_a_real_one_would(monkeypatch):
    """The negative control."""
    with far_device(monkeypatch):
        there = torch.ones(3, 3).to(FAR)
        assert isinstance(there, Far) and there.device == FAR
        for wrong in (
            lambda: there @ torch.ones(3, 3),
            lambda: there.numpy(),
            lambda: torch.cat([there, torch.ones(3)]),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            there.uniform_(generator=torch.Generator())
        assert float(there.sum()) == 9 and (there @ there).cpu().tolist() == [[3.0] * 3] * 3


def test_what_several_clients_share_crosses_once(monkeypatch):
    shared = torch.ones(2, 5)
    layers = [{"a": Factors(shared, torch.full((4, 2), float(i)))} for i in range(3)]
    crossings = []
    monkeypatch.setattr(placing, "crossed", lambda tensors, device: crossings.append(tensors) or list(tensors))
    moved = placing.placed([Update(i, 1, layers[i], {"bias": torch.zeros(3)}) for i in range(3)], FAR)
    assert [len(tensors) for tensors in crossings] == [3, 2, 2]
    assert [u.layers["a"].B[0, 0].item() for u in moved] == [0, 1, 2]
    assert all(u.layers["a"].A is shared for u in moved)


def test_a_device_without_memory_ends_the_run_in_one_line(monkeypatch):
    def full(tensors, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(placing, "crossed", full)
    with pytest.raises(RunFailed, match=r"^lazy:0 has too little memory for .* use server_device=cpu"):
        run(("strategy=fedit",), FAR)
    with pytest.raises(RunFailed, match="use server_device=cpu"):
        run(METHODS["running"], FAR)


def test_the_clients_own_memory_is_not_told_as_the_servers(monkeypatch):
    config = small_config(*QUICK, "strategy=fedit", "strategy.diagnostics=false")
    site = Site(config)

    def full(key, offset):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(site.engine, "hold", full)
    with pytest.raises(torch.OutOfMemoryError):
        federate(config, LocalGrid(Cohort(site), 3), site.backbone)


def test_the_device_is_that_of_the_clients_unless_it_is_named(tmp_path):
    grid = LocalGrid(cohort := Cohort(Site(small_config("engine.device=cpu"))), 3)
    assert server_device(small_config(), grid) == torch.device("cpu")
    cohort.device = FAR
    assert server_device(small_config(), grid) == FAR
    assert server_device(small_config(), WatchedGrid(grid)) == torch.device("cpu")
    assert server_device(small_config("server_device=cpu"), grid) == torch.device("cpu")
    config = small_config("engine.device=cpu", "server_device=cuda:99")
    with pytest.raises(InputError, match="^server_device=cuda:99: this machine has"):
        server_device(config, grid)
    assert resolved(config).server_device == "cuda:99"  # a deployment's client has no such device, and needs none
    with pytest.raises(InputError, match="^server_device=cuda:99: this machine has"):
        simulate(replace(config, output_dir=str(tmp_path)), Console(quiet=True))
    assert not list(tmp_path.iterdir())
    for word in ("gpu", "CPU", "cpu:0", "cuda:", "cuda:x", ""):
        with pytest.raises(
            InputError, match=f"^server_device={word or repr(word)}: expected auto, cpu, cuda or cuda:<n>$"
        ):
            replace(config, server_device=word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_clusters_devices_are_not_the_servers():
    words = ("engine=ray", "engine.address=head:6379", "engine.device=cuda", "engine.clients_per_bank=3")
    assert clients_device(small_config(*words, "engine.precision=fp32").engine) == torch.device("cpu")


def test_a_run_without_a_choice_is_named_as_before():
    config = small_config()
    assert "server_device" not in config.computed()
    chosen = replace(config, server_device="cpu")
    assert chosen.computed() == config.computed() | {"server_device": "cpu"}
    assert chosen.identity() != config.identity()


@pytest.mark.parametrize(
    ("words", "judged"),
    [
        (("strategy=fedit", "strategy.diagnostics=false"), {1}),  # each as it comes
        (("strategy=lora_fair",), {3}),  # when all are there, and no client is at work
        (("strategy=lora_fair", "init=eva", "init.examples=8", "init.min_examples=4"), {1, 3}),
    ],
)
def test_beside_clients_at_work_the_server_takes_one_thread(words, judged, monkeypatch):
    """Threads of an operation that finds no core free for each of them wait for one another."""
    seen, encoded = set(), set()

    def noting(place, name, into):
        plain = getattr(place, name)

        def noted(*given, **named):
            into.add(torch.get_num_threads())
            return plain(*given, **named)

        monkeypatch.setattr(place, name, noted)

    noting(Gate, "admit", seen)
    noting(round_zero, "admit_statistics", seen)
    noting(cohort, "encode", encoded)
    site = Site(small_config(*QUICK, *words))
    with intra_op(3):
        federate(site.config, LocalGrid(Cohort(site), len(site.partitions)), site.backbone)
        assert torch.get_num_threads() == 3
    assert seen == judged and encoded == {1}


def test_of_clients_elsewhere_it_takes_all():
    with intra_op(3):
        with placing.beside_clients(WatchedGrid.__new__(WatchedGrid)):
            assert torch.get_num_threads() == 3
        far = LocalGrid(lambda deliveries: [], 1)
        far._handler.device = torch.device("cuda", 0)
        with placing.beside_clients(far):
            assert torch.get_num_threads() == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_cuda_the_same_bits_twice_and_those_of_a_cpu_to_rounding(method):
    runs = [run(METHODS[method], torch.device("cuda", 0)) for _ in range(2)]
    assert runs[0].final_hash == runs[1].final_hash
    here = run(METHODS[method], torch.device("cpu"))
    for name, factors in here.aggregate.layers.items():
        there = runs[0].aggregate.layers[name].absorb()
        torch.testing.assert_close(there.B @ there.A, factors.absorb().B @ factors.absorb().A, rtol=1e-4, atol=1e-6)
