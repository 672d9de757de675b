"""What a training step is reckoned to need, beside what it needs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from clients.engine.cost import COPIES, MOST, StepCost, step_cost, step_cost_on_cpu
from clients.engine.hardware import devices, left_out, resolved
from clients.engine.worker import Settings, Worker
from clients.task import Job, Task
from fedinit.config.compose import compose_config
from fedinit.config.engine import BANK_ON_CPU
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.models.backbone import outline
from tests.support.small import small_config

RANK = 4
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_operations_are_those_of_the_formula(tiny_vit) -> None:
    """A block of width w over t tokens is 12tw² + 2t²w multiplications (four of t·w·w and two of t·w·4w in linears, two
    of t·t·w in attention), the last one, of the class token alone, 2tw² of keys and values, 10w² and 2tw; an adapter
    r(d + k) a token. Two operations each, and as many again on the way back."""
    w, t, blocks, patches = 24, 17, 2, 16
    targets = select_targets(tiny_vit.module, None, RANK)
    tokens = {layer: 1 if layer.startswith("blocks.1.") else t for layer in targets}
    adapters = sum(tokens[layer] * RANK * (d + k) for layer, (d, k) in targets.items())
    last = 2 * t * w**2 + 10 * w**2 + 2 * t * w
    multiplications = (blocks - 1) * (12 * t * w**2 + 2 * t**2 * w) + last + patches * 16 * w + adapters + 5 * w
    assert step_cost(tiny_vit, targets, RANK, 5, torch.float32).flops == 4 * multiplications


def test_half_the_bytes_of_a_number_are_half_of_what_is_kept(tiny_vit) -> None:
    targets = select_targets(tiny_vit.module, None, RANK)
    whole, half = (step_cost(tiny_vit, targets, RANK, 5, dtype) for dtype in (torch.float32, torch.bfloat16))
    keys = 2 * 17 * 24  # bytes that the last block's keys take more, which stay float32, as statistics of the norms do
    assert 0.5 * whole.image <= half.image - keys < 0.7 * whole.image
    assert half.client == whole.client and half.flops == whole.flops


def test_attention_keeps_no_weight_of_a_pair_of_tokens() -> None:
    """As CUDA's kernels do not: with them a bank of large images was a third of what fits."""
    costs = []
    for size in (224, 448):
        words = "model=vit_tiny", "model.pretrained=false", f"+model.kwargs={{img_size: {size}}}"
        backbone = outline(compose_config(words).model)
        costs.append(step_cost(backbone, select_targets(backbone.module, None, RANK), RANK, 5, torch.bfloat16))
    tokens = (28**2 + 1) / (14**2 + 1)
    assert costs[1].image == pytest.approx(tokens * costs[0].image, rel=0.01) and costs[1].flops > 5 * costs[0].flops


@pytest.mark.parametrize(("kind", "dropout"), [("dora", 0.0), ("lora", 0.1), ("dora", 0.1)])
def test_what_the_adapters_keep_more_is_reckoned(kind, dropout, tiny_vit) -> None:
    """DoRA keeps each layer's outputs before their magnitudes, the norms and their ratio; dropout a mask beside what it
    leaves of the inputs."""
    targets = select_targets(tiny_vit.module, ("mlp.fc2",), RANK)
    plain = step_cost_on_cpu(tiny_vit, targets, RANK, 5)
    cost = step_cost_on_cpu(tiny_vit, targets, RANK, 5, kind, dropout)
    outputs = 4 * (17 + 1) * 24  # of both blocks, the last one's of the class token alone
    inputs, norms = 4 * outputs, 4 * 2 * 2 * 24
    assert cost.image - plain.image == (kind == "dora") * (outputs + norms) + (dropout > 0) * inputs
    assert cost.client - plain.client == (kind == "dora") * 4 * COPIES * 2 * 24


def test_of_vera_vectors_are_a_clients_and_matrices_a_banks(tiny_vit) -> None:
    """Of an image it keeps what LoRA does, and each layer's outputs before b, which b's gradient needs."""
    targets = select_targets(tiny_vit.module, ("mlp.fc2",), RANK)
    plain, cost = (step_cost_on_cpu(tiny_vit, targets, RANK, 5, kind) for kind in ("lora", "vera"))
    rows = 4 * (17 + 1)  # bytes of a column of both blocks, the last one's of the class token alone
    vectors, matrices = 2 * (24 + RANK), 2 * RANK * (24 + 96)
    assert cost.image - plain.image == rows * 24
    assert cost.client == 4 * COPIES * (vectors + 5 * (24 + 1)) and cost.shared == 4 * matrices and plain.shared == 0
    assert cost.peak(7, 4) == cost.fixed + cost.shared + 7 * (cost.client + 4 * cost.image)


def test_the_bank_that_fits_is_the_largest() -> None:
    cost = StepCost(fixed=1000, image=10, client=20, flops=0)
    assert cost.fit(1000 + 7 * (20 + 4 * 10), 4) == 7 and cost.fit(1000 + 7 * (20 + 4 * 10) - 1, 4) == 6
    assert cost.peak(7, 4) == 1000 + 7 * 60
    assert cost.fit(0, 4) == 1 and cost.fit(10**9, 4) == MOST


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_what_the_model_says(precision, tiny_vit, tiny_data, client_config, random_head) -> None:
    """The pass before the recording and the recording itself hold the activations each: a small model's
    peak is up to three times this, where memory is not short."""
    targets, count = select_targets(tiny_vit.module, None, RANK), 256
    adapter = {n: Factors(torch.randn(RANK, k) / k**0.5, torch.zeros(d, RANK)) for n, (d, k) in targets.items()}
    head = random_head(5, tiny_vit.features, 0)
    tasks = [Task(c, 1, torch.arange(8), adapter, head, frozenset("AB")) for c in range(count)]
    settings = Settings(client=client_config(batch_size=8), seed=0, scale=2.0, precision=precision)
    worker = Worker(tiny_vit, targets, tiny_data, settings, torch.device("cuda", 0))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    worker.do(Job("train", "", "", tuple(tasks)))
    taken = torch.cuda.max_memory_allocated() - before
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    reckoned = step_cost(tiny_vit, targets, RANK, 5, dtype).peak(count, 8)
    assert 0.6 < taken / reckoned < 3.5


def test_auto_is_a_number_and_a_precision_before_a_run_is_named() -> None:
    config = small_config("engine.device=cpu", "engine.clients_per_bank=auto", "engine.precision=auto")
    made = resolved(config)
    assert (made.engine.clients_per_bank, made.engine.precision) == (2, "fp32")
    assert made.identity() != config.identity() and resolved(made) == made
    said = dataclasses.replace(made.engine, clients_per_bank=2)
    assert dataclasses.replace(config, engine=said).identity() == made.identity()


@pytest.mark.parametrize(("asked", "size"), [(1, 3), (2, 1), (3, 2), (4, 3), (100, 3)])
def test_the_clients_of_a_round_are_two_banks_at_least(asked: int, size: int) -> None:
    """One bank of all keeps one core busy, however many there are."""
    words = ["partition=iid", f"partition.clients={asked}", "engine.device=cpu", "engine.clients_per_bank=auto"]
    assert resolved(small_config(*words)).engine.clients_per_bank == size
    half = resolved(small_config(*words[:1], f"partition.clients={2 * asked}", "participation=0.5", *words[2:]))
    assert half.engine.clients_per_bank == size, "those that a round asks count"


@pytest.mark.parametrize(
    ("words", "clients"),
    [
        (("partition.clients=1000",), 16),  # 64 images a step
        (("partition.clients=1000", "client.batch_size=1"), 31),  # that leave 32 banks
        (("partition.clients=100000", "participation=0.01"), 16),  # of a round, not of all there are
        (("partition.clients=1000", "client.batch_size=32"), BANK_ON_CPU),
        (("partition.clients=127",), BANK_ON_CPU),
        (("partition.clients=1000", "model=vit_tiny", "model.image_size=128"), BANK_ON_CPU),
    ],
)
def test_a_round_of_many_clients_with_small_steps_has_larger_banks(words, clients):
    """Of the configuration alone, so that the same words are one run on every machine."""
    given = ("engine.device=cpu", "partition=iid", "client.batch_size=4", *words)
    made, same = (resolved(compose_config(w)) for w in (given, [*given, f"engine.clients_per_bank={clients}"]))
    assert made.engine.clients_per_bank == clients and made.identity() == same.identity()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine.precision=tf32"], "engine.precision=tf32: the CPU has none; use engine.precision=fp32"),
        (["engine.device=cuda:99"], "engine.device=cuda:99: this machine has"),
        (["engine.device=gpu"], "engine.device=gpu: expected auto, cpu, cuda or cuda:<n>"),
    ],
)
def test_what_a_machine_has_not_is_one_line(words, said) -> None:
    with pytest.raises(InputError) as caught:
        resolved(small_config(*(["engine.device=cpu"] if "device" not in words[0] else []), *words))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "words", "expected"),
    [
        (1, (), 512),
        (2, (), 2),
        (3, (), 1),
        (2, ("participation=0.34",), 1),
        (2, ("engine=inline",), 512),
        (8, ("engine=ray", "engine.actors=3"), 1),
    ],
)
def test_several_gpus_share_the_clients_of_a_round(there, words, expected, monkeypatch) -> None:
    """Three of them; on one GPU a bank is as large as its memory, so that a run keeps its name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "a kind")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=10**12))
    made = resolved(small_config("engine.device=cuda", "engine.clients_per_bank=auto", *words))
    assert made.partition.count(made.data.known_domains) == 3
    assert made.engine.clients_per_bank == expected


def test_gpus_of_another_kind_than_the_first_are_not_used(monkeypatch) -> None:
    """Precision and banks are reckoned by the first; another's bytes are others, and its memory may be too little."""
    names = ["H200", "H200", "T4", "H200"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    assert [place.index for place in devices("cuda", None)] == [place.index for place in devices("auto", None)]
    assert [place.index for place in devices("auto", None)] == [0, 1, 3]
    assert [place.index for place in devices("cuda:2", None)] == [2]
    said = "engine.device=auto: not used, of another kind than cuda:0, H200: cuda:2, T4"
    assert left_out(small_config("engine.device=auto").engine) == said
    names[2] = "H200"
    assert left_out(small_config("engine.device=auto").engine) is None and len(devices("cuda", None)) == 4
