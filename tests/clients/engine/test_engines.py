"""One table for every engine: the same jobs give the same bytes, whoever does them, when, and after what."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from clients import site
from clients.engine import Engine, hardware
from clients.engine.inline import InlineEngine
from clients.engine.plan import plan
from clients.engine.ray import RayEngine
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, Worker, devices, make_workers
from clients.evaluation import split
from clients.task import Answer, ClientFailed, Job, SlotChoice, Task
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.config import engine as config
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.state import digest
from fedinit.statistics import Request, Sampling
from tests.support.small import slow_unless

RANK, BASE = 4, "b" * 64
ENGINES: dict[str, Callable[..., Engine]] = {
    "inline": lambda *args: InlineEngine(Worker(*args)),
    **{f"threads-{n}": lambda *args, n=n: ThreadEngine(make_workers(*args, "cpu", n)) for n in (1, 3)},
    "ray": lambda *args: RayEngine(config.RayConfig(device="cpu"), *args, lambda *_: None),
}
NAMES = list(slow_unless(lambda name: name not in ("ray", "threads-1"), zip(ENGINES)))


@pytest.fixture(scope="module")
def targets(tiny_vit):
    return select_targets(tiny_vit.module, None, RANK)


@pytest.fixture(scope="module")
def make_engine(tiny_vit, tiny_data, targets, client_config):
    """make_engine(name, seed): an engine over the tiny ViT, with dropout and augmentation, that holds BASE."""
    actors: list[Engine] = []  # started once: it takes seconds

    def make(name: str, seed: int = 3) -> Engine:
        if name == "ray" and actors:
            actors[0].hold(BASE, offset_of(targets))
            return actors[0]
        client = client_config(augment="crop_flip", optimizer="adamw", clip_norm=1.0)
        settings = Settings(client=client, seed=seed, scale=1.5, dropout=0.2, batch_size=7)
        made = ENGINES[name](tiny_vit, targets, tiny_data, settings)
        made.hold(BASE, offset_of(targets))
        if name == "ray":
            actors.append(made)
        return made

    yield make
    for engine in actors:
        engine.close()


def offset_of(targets) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=draw) / 50 for name, shape in targets.items()}


@pytest.fixture(scope="module")
def cases(tiny_vit, targets, random_adapter, random_head) -> dict[str, list[Task]]:
    """{what: tasks of five clients, of which some train for longer than others}."""
    head = [random_head(5, tiny_vit.features, c) for c in range(5)]
    examples = [torch.arange(6 + 3 * c) + 5 * c for c in range(5)]
    same = random_adapter(targets, RANK, 9)

    def made(adapters: Sequence[dict[str, Factors]], parts: str, **changes) -> list[Task]:
        return [Task(c, 2, examples[c], adapters[c], head[c], frozenset(parts), **changes) for c in range(5)]

    def with_vectors(c: int) -> dict[str, Factors]:
        draw = torch.Generator().manual_seed(c)
        return {
            n: VeRAFactors(f.A, f.B, torch.randn(len(f.B), generator=draw), torch.randn(RANK, generator=draw))
            for n, f in same.items()
        }

    def magnitudes(f: Factors) -> Factors:
        return DoRAFactors(f.A, f.B, torch.ones(len(f.B)))

    plain = made([random_adapter(targets, RANK, c) for c in range(5)], "AB")
    lost = torch.full((5,), 1000)
    requests = {
        source: Request(
            source=source, layers=layers, shapes=shapes, seed=1, head=head[0], sampling=Sampling(min_examples=8)
        )
        for source, layers, shapes in [
            ("inputs", dict.fromkeys(targets, "gram"), targets),
            ("gradients", dict.fromkeys(targets, "gradient"), targets),
            ("adapters", {f"{n}/B": "total" for n in targets}, {f"{n}/B": (d, RANK) for n, (d, _) in targets.items()}),
        ]
    }
    measured = [dataclasses.replace(t, work="measure", round=0) for t in plain]
    evaluated = [dataclasses.replace(t, work="evaluate", trainable=frozenset()) for t in plain]
    slots = [dataclasses.replace(t, trainable=frozenset("B"), choice=SlotChoice(7, "gradient", 1)) for t in plain]
    return {
        "plain": plain,
        "over a base": [dataclasses.replace(t, base=BASE) for t in plain],
        "two bases": [dataclasses.replace(t, base=BASE if t.client % 2 else "") for t in plain],
        "mixed ranks": made([random_adapter(targets, 1 + c % 3, c) for c in range(5)], "AB"),
        "vera": made([with_vectors(c) for c in range(5)], "bd"),
        "dora": made([{n: magnitudes(f) for n, f in t.adapter.items()} for t in plain], "ABm"),
        "slots": slots,
        "muted": [dataclasses.replace(t, mute=t.client == 1) for t in plain],
        "failing": [dataclasses.replace(t, examples=lost) if t.client == 1 else t for t in plain],
        "without examples": [dataclasses.replace(t, examples=examples[1][:0]) if t.client == 1 else t for t in plain],
        "failing bank": [dataclasses.replace(t, adapter={}) if t.client == 1 else t for t in plain],
        "features": [Task(-1, 0, torch.arange(60), {}, {}, frozenset(), work="features")],
        "evaluate": evaluated,
        "evaluate over a base": [dataclasses.replace(t, base=BASE) for t in evaluated],
        "inputs": [dataclasses.replace(t, adapter={}, request=requests["inputs"]) for t in measured],
        "gradients": [dataclasses.replace(t, adapter={}, request=requests["gradients"]) for t in measured],
        "adapters": [dataclasses.replace(t, request=requests["adapters"]) for t in measured],
        "heads alone": [dataclasses.replace(t, features=torch.ones(len(t.examples), 24)) for t in made([same] * 5, "")],
    }


CASES = [
    *("plain", "over a base", "two bases", "mixed ranks", "vera", "dora", "slots", "muted", "failing", "failing bank"),
    "without examples",
    *("features", "evaluate", "evaluate over a base", "inputs", "gradients", "adapters", "heads alone"),
]


def jobs_of(tasks: Sequence[Task]) -> list[Job]:
    return plan([part for task in tasks for part in split(task, 7)], 2)


def mark(answer: Answer) -> tuple[object, ...]:
    """An answer in a form that is equal for equal bytes alone."""
    if isinstance(answer, ClientFailed):
        return answer.client, str(answer)
    values = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)}
    layers = digest.named_parts(values.pop("adapter", {}))
    named = {f"{key}/{n}": t for key in ("head", "tensors", "chosen") for n, t in (values.pop(key, None) or {}).items()}
    return digest.of_tensors(layers | named), *sorted(map(repr, values.items()))


def run(engine: Engine, jobs: Sequence[Job]) -> list[list[tuple[object, ...]]]:
    return [[mark(answer) for answer in answers] for answers in engine.run(jobs)]


@pytest.fixture(scope="module")
def reference(make_engine, cases) -> Callable[[str], list]:
    """What the inline engine gives for a case."""
    return functools.cache(lambda case: run(make_engine("inline"), jobs_of(cases[case])))


TELLING = ("two bases", "failing", "evaluate over a base", "gradients")  # for engines of one lane
# Which differ from the others in their tasks alone.
LIKE_OTHERS = ("over a base", "features", "inputs", "heads alone", "evaluate", "muted", "vera")


@pytest.mark.parametrize(
    ("name", "case"),
    slow_unless(
        lambda name, case: name == "inline" and case in TELLING or name == "threads-3" and case not in LIKE_OTHERS,
        itertools.product(ENGINES, CASES),
    ),
)
def test_the_same_jobs_give_the_same_bytes(name: str, case: str, make_engine, cases, targets, reference) -> None:
    """As the inline engine gives them; and again after other jobs, from jobs that were pickled."""
    jobs, engine = jobs_of(cases[case]), make_engine(name)
    assert [len(answers) for answers in reference(case)] == [len(job.tasks) for job in jobs]
    assert run(engine, jobs) == reference(case)
    run(engine, jobs_of(cases["dora" if case.startswith("evaluate") else "evaluate"][:2]))
    engine.hold(BASE, offset_of(targets))
    assert run(engine, pickle.loads(pickle.dumps(jobs))) == reference(case)


@pytest.mark.parametrize("case", ["plain", "over a base", "mixed ranks", "vera", "dora", "slots", "heads alone"])
def test_a_client_alone_gives_the_bytes_that_it_gives_in_company(case: str, make_engine, cases, reference) -> None:
    """On CPU, though clients have other numbers of images, and so batches of other lengths; of mixed ranks up to
    rounding, since those of a bank are padded to the largest."""
    engine = make_engine("inline")
    alone = [next(iter(engine.run(jobs_of([task]))))[0] for task in cases[case]]
    if case != "mixed ranks":
        assert [mark(answer) for answer in alone] == [m for made in reference(case) for m in made]
        return
    for mine, of_bank in zip(alone, itertools.chain(*engine.run(jobs_of(cases[case]))), strict=True):
        for name, factors in mine.adapter.items():
            assert torch.allclose(factors.dense(), of_bank.adapter[name].dense(), rtol=1e-4, atol=1e-6)


def test_the_cases_differ(make_engine, cases, reference) -> None:
    """The negative control: other tasks, another base and another seed give other bytes."""
    found = [itertools.chain.from_iterable(reference(case)) for case in ("plain", "mixed ranks", "over a base", "dora")]
    reseeded = itertools.chain.from_iterable(run(make_engine("inline", 4), jobs_of(cases["plain"])))
    assert len({*itertools.chain(*found, reseeded)}) == 25


@pytest.mark.parametrize("case", ["failing", "without examples", "failing bank"])
@pytest.mark.parametrize("name", NAMES)
def test_a_failure_is_its_clients_alone(case: str, name: str, make_engine, cases, reference) -> None:
    """Its mates' bytes are those of a bank where nothing failed; it says who, at what, and why."""
    healthy = {m[0] for made in reference("plain") for m in made}
    answers = list(itertools.chain.from_iterable(make_engine(name).run(jobs_of(cases[case]))))
    failed = [answer for answer in answers if isinstance(answer, ClientFailed)]
    assert [answer.client for answer in failed] == [1]
    said = {"failing": "plan: IndexError", "without examples": "plan: ValueError: no examples to train on"}
    assert str(failed[0]).startswith(f"client 1, {said.get(case, 'train: KeyError')}")
    assert {mark(a)[0] for a in answers if not isinstance(a, ClientFailed)} < healthy
    copied = pickle.loads(pickle.dumps(failed[0]))
    assert (copied.client, str(copied)) == (1, str(failed[0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_that_is_refused_is_its_clients_alone(name: str, make_engine, cases) -> None:
    answers = list(itertools.chain.from_iterable(make_engine(name).run(jobs_of(cases["inputs"]))))
    assert [isinstance(answer, ClientFailed) for answer in answers] == [True, False, False, False, False]
    assert str(answers[0]).startswith("client 0, statistics: 6 examples, fewer than min_examples=8")


@pytest.mark.parametrize("name", NAMES)
class TestBases:
    def test_a_base_that_is_not_held(self, name: str, make_engine, cases) -> None:
        with pytest.raises(LookupError, match="the base cccccccccccc is not held"):
            list(make_engine(name).run(jobs_of([dataclasses.replace(cases["plain"][0], base="c" * 64)])))

    def test_a_base_is_forgotten_where_no_job_is_on_it(self, name: str, make_engine, cases, targets) -> None:
        engine, jobs = make_engine(name), jobs_of(cases["over a base"])
        expected = run(engine, jobs)
        assert run(engine, jobs) == expected  # it is still held
        run(engine, jobs_of(cases["plain"]))
        with pytest.raises(LookupError):
            list(engine.run(jobs))
        engine.hold(BASE, offset_of(targets))
        assert run(engine, jobs) == expected

    def test_a_borrowed_bank_is_over_its_base(self, name: str, make_engine, tiny_vit, targets) -> None:
        engine = make_engine(name)
        for base, offset in (("", {}), (BASE, offset_of(targets))):
            with engine.borrow(base) as bank:
                for layer, frozen in bank.layers.items():
                    weight = tiny_vit.module.get_submodule(layer).weight
                    expected = torch.add(weight, offset[layer], alpha=1.5) if offset else weight
                    assert torch.equal(frozen.base.weight, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_borrowed_bank_computes_as_in_a_job(name: str, make_engine, monkeypatch) -> None:
    """In the run's precision, and the same bytes every time: the figures of a start are a run's too."""
    entered, engine = [], make_engine(name)

    @contextlib.contextmanager
    def computing(*how: object) -> Iterator[None]:
        entered.append(how)
        yield
        entered.pop()

    monkeypatch.setattr("clients.engine.worker.computing", computing)
    with engine.borrow() as bank:
        assert entered == [(bank.device, "fp32", True)]
    assert not entered


def test_the_engines_are_those_that_can_be_chosen() -> None:
    assert site.ENGINES.keys() == config.ENGINES.keys() == {name.partition("-")[0] for name in ENGINES}


def test_lanes_share_what_is_made_of_the_backbone(make_engine, cases) -> None:
    """One copy of merged and of folded weights, whatever the number of lanes."""
    engine = make_engine("threads-3")
    assert len({id(worker.bank) for worker in engine.workers}) == 3
    list(engine.run(jobs_of([dataclasses.replace(t, adapter=cases["plain"][0].adapter, head=cases["plain"][0].head)
                             for t in cases["evaluate over a base"]])))  # fmt: skip
    for name in engine.workers[0].bank.layers:
        layers = [worker.bank.layers[name] for worker in engine.workers]
        assert len({layer.weight.data_ptr() for layer in layers}) == 1
        at_work = [layer for layer in layers if layer.folded is not None]  # the others had no job
        assert len({layer.base.weight.data_ptr() for layer in at_work}) == 1
        assert len({layer.folded.data_ptr() for layer in at_work}) == 1


def test_lanes_of_several_threads(tiny_vit, tiny_data, targets, client_config, cases, monkeypatch) -> None:
    """Every operation of a job has as many, in every engine; the bytes are the same in each, and the caller's own
    number is as before."""
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    settings = Settings(client=client_config(clip_norm=1.0), seed=3, scale=1.5, threads=2)
    seen: list[int] = []
    plain = Worker._train_together

    def watched(self: Worker, tasks: tuple[Task, ...]) -> list:
        seen.append(torch.get_num_threads())
        return plain(self, tasks)

    monkeypatch.setattr(Worker, "_train_together", watched)
    made = [InlineEngine(Worker(tiny_vit, targets, tiny_data, settings))]
    made += [ThreadEngine(make_workers(tiny_vit, targets, tiny_data, settings, "cpu", lanes)) for lanes in (1, 2)]
    inline, *threads = (run(engine, jobs_of(cases["plain"])) for engine in made)
    assert threads == [inline, inline]
    assert set(seen) == {2} and torch.get_num_threads() == 1
    assert made[1].described() == "1 lane of 2 threads on CPU, fp32"


def test_lanes_have_room_for_their_threads(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    assert [len(devices("cpu", None, threads)) for threads in (1, 2, 3, 8)] == [8, 4, 2, 1]
    assert len(devices("cpu", 3, 8)) == 3  # as was asked for
    with pytest.raises(InputError, match="engine.threads=9: this machine has 8 cores; use engine.threads=8"):
        devices("cpu", None, 9)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "cpu:0", "cpu:3"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InputError, match=f"engine.device={device}"):
        devices(device, None)
