"""The laws of a partition, over data sets and settings that hypothesis draws."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedinit.config.build import create
from fedinit.config.compose import compose_config
from fedinit.data.dataset import Dataset
from fedinit.data.partition import PARTITIONS, Partitioner
from fedinit.data.shares import Partition, Partitions, Shares, refuse_misdealt
from fedinit.errors import InputError


def dataset(sizes: list[int], num_classes: int = 4, num_test: int = 5, seed: int = 0) -> Dataset:
    """Domain d has sizes[d] training images and num_test test images, in a random order; no pixels."""
    rng = np.random.default_rng(seed)
    domains = np.repeat(np.arange(len(sizes)), np.array(sizes) + num_test)
    test = np.concatenate([np.arange(size + num_test) < num_test for size in sizes])
    order = rng.permutation(len(domains))
    return Dataset(
        images=torch.zeros(len(domains), 1, 1, 1, dtype=torch.uint8),
        labels=torch.from_numpy(rng.integers(0, num_classes, len(domains))),
        domains=torch.from_numpy(domains[order]),
        test=torch.from_numpy(test[order]),
        class_names=tuple(f"class{i}" for i in range(num_classes)),
        domain_names=tuple(f"domain{d}" for d in range(len(sizes))),
    )


def settings(name: str, clients: int | None = None, alpha: float = 0.5, min_examples: int = 1) -> Partitioner:
    """The partition of this name, with those of the options that it reads."""
    given = {"clients": clients, "alpha": alpha, "min_examples": min_examples}
    read = {field.name for field in dataclasses.fields(PARTITIONS[name])}
    return create("partition", PARTITIONS, name, {key: value for key, value in given.items() if key in read})


def same(ours: tuple[Partition, ...], theirs: tuple[Partition, ...]) -> bool:
    return len(ours) == len(theirs) and all(
        (a.client, a.domain) == (b.client, b.domain) and torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
        for a, b in zip(ours, theirs, strict=True)
    )


@hypothesis.settings(deadline=None)
@given(
    name=st.sampled_from(sorted(PARTITIONS)),
    sizes=st.lists(st.integers(12, 60), min_size=1, max_size=4),
    each=st.integers(1, 4),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 100.0, 1e308]),
    min_examples=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_every_index_once_and_nobody_short(
    name: str, sizes: list[int], each: int, alpha: float, min_examples: int, seed: int
) -> None:
    made = dataset(sizes, seed=seed)
    each = max(each, 2) if name == "dirichlet" else each  # of which one has nothing to share
    clients = None if name == "pooled" else each * len(sizes)
    asked = settings(name, clients, alpha, min_examples)
    parts = asked.cut(made, seed)
    assert [p.client for p in parts] == list(range(clients or 1))
    for split, expected in (("train", ~made.test), ("test", made.test)):
        dealt = torch.cat([getattr(p, split) for p in parts])
        assert dealt.dtype == torch.int64
        assert torch.equal(dealt.sort().values, expected.nonzero().flatten())
    for part in parts:
        assert len(part.train) >= min_examples
        assert part.train.equal(part.train.sort().values)
        held = made.domains[torch.cat([part.train, part.test])].unique()
        if name in ("domain", "dirichlet"):
            assert part.domain == part.client // each and held.tolist() == [part.domain]
        else:
            assert part.domain == (0 if len(sizes) == 1 else -1)
    if name != "dirichlet":
        for group in {p.domain for p in parts}:
            for split in ("train", "test"):
                counts = [len(getattr(p, split)) for p in parts if p.domain == group]
                assert max(counts) - min(counts) <= 1
    assert same(parts, asked.cut(made, seed))


@pytest.mark.parametrize("name", ["domain", "dirichlet", "iid"])
def test_another_seed_gives_another_partition(name: str) -> None:
    made = dataset([60, 60])
    first, second = (settings(name, 4).cut(made, seed) for seed in (1, 2))
    assert not same(first, second)
    assert not torch.equal(first[0].test, second[0].test)


def test_one_client_a_domain_by_default() -> None:
    made = dataset([20, 30, 40])
    for name in ("domain", "dirichlet"):
        parts = settings(name).cut(made, 0)
        assert [len(p.train) for p in parts] == [20, 30, 40]
        assert same(parts, settings(name).cut(made, 1))  # nothing to draw


@pytest.mark.parametrize("clients", [None, 3])
def test_shares_of_what_nobody_shares_are_refused(clients: int | None) -> None:
    """By alpha=0.1 and alpha=100 every client would have its whole domain."""
    said = "partition.alpha=0.1: with one client a domain there is nothing to share; set partition.clients=6, "
    with pytest.raises(InputError, match=said):
        settings("dirichlet", clients, 0.1).cut(dataset([20, 30, 40]), 0)


def test_domains_draw_apart_from_each_other() -> None:
    """Two domains with the same labels must not be cut alike."""
    one = dataset([200], seed=5)
    made = Dataset(
        images=one.images.repeat(2, 1, 1, 1),
        labels=one.labels.repeat(2),
        domains=torch.arange(2).repeat_interleave(len(one)),
        test=one.test.repeat(2),
        class_names=one.class_names,
        domain_names=("first", "second"),
    )
    for name in ("domain", "dirichlet"):
        parts = settings(name, 4, alpha=1.0).cut(made, 0)
        assert not torch.equal(parts[0].train, parts[2].train - len(one))


def skew(made: Dataset, alpha: float, seed: int) -> float:
    """Mean over clients of the total variation between a client's classes and its domain's, in [0, 1]."""
    distances = []
    for part in settings("dirichlet", 10, alpha).cut(made, seed):
        inside = (made.domains == part.domain) & ~made.test
        whole = torch.bincount(made.labels[inside], minlength=10) / inside.sum()
        own = torch.bincount(made.labels[part.train], minlength=10) / len(part.train)
        distances.append(float((whole - own).abs().sum() / 2))
    return float(np.mean(distances))


def test_a_small_alpha_is_more_skewed_and_a_large_one_is_not() -> None:
    made = dataset([1000, 1000], num_classes=10)
    small, middle, large = (np.mean([skew(made, a, seed) for seed in range(5)]) for a in (0.05, 1.0, 1000.0))
    assert small > 0.6 > middle + 0.1 > large + 0.2
    assert skew(made, 1e308, 0) < 0.02  # equal shares, though the sum of ten such numbers is infinite
    assert large < 0.1  # 200 examples a client in 10 classes: equal shares, up to rounding and alpha's spread


def test_dirichlet_shares_have_the_moments_of_the_law() -> None:
    """One class, two clients: the first one's share is Beta(alpha, alpha), variance 1 / (4 (2 alpha + 1))."""
    made = dataset([400], num_classes=1)
    alpha = 2.0
    shares = [len(settings("dirichlet", 2, alpha).cut(made, s)[0].train) / 400 for s in range(400)]
    assert abs(np.mean(shares) - 0.5) < 0.04  # 3.6 standard errors of .0112
    assert abs(np.var(shares) - 1 / (4 * (2 * alpha + 1))) < 0.015  # .05; its standard error is about .003


def test_a_tight_minimum_is_met_by_moving_examples() -> None:
    made = dataset([40], num_classes=2)
    parts = settings("dirichlet", 8, alpha=0.01, min_examples=5).cut(made, 3)
    assert [len(p.train) for p in parts] == [5] * 8
    loose = settings("dirichlet", 8, alpha=0.01, min_examples=4).cut(made, 3)
    assert min(len(p.train) for p in loose) == 4 and max(len(p.train) for p in loose) > 4


def test_a_client_may_be_left_without_test_images() -> None:
    parts = settings("iid", 5).cut(dataset([30], num_test=2), 0)
    assert sorted(len(p.test) for p in parts) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (settings("domain", 3), "partition.clients=3: partition=domain gives every domain as many clients"),
        (settings("dirichlet", 1), "expected a multiple of the 2 domains; set 2"),
        (settings("dirichlet", 84), "domain 'domain1' has 41 training images, too few for 42 clients"),
        (
            settings("domain", 2, min_examples=41),
            "domain 'domain0' has 40 training images, too few for 1 client ",
        ),
        (settings("iid", 9, min_examples=10), "the data set has 81 training images, too few for 9 clients"),
        (settings("iid"), "set partition.clients=10"),
    ],
)
def test_numbers_that_cannot_be_had(asked: Partitioner, message: str) -> None:
    sizes = [42, 41] if asked == settings("dirichlet", 84) else [40, 41]
    with pytest.raises(InputError) as caught:
        asked.cut(dataset(sizes), 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [[40, 41], [3, 90]])
@pytest.mark.parametrize("min_examples", [1, 10, 50])
@pytest.mark.parametrize("clients", [1, 3, 43, 84, 101, 2000])
@pytest.mark.parametrize("name", ["domain", "dirichlet", "iid", "pooled"])
def test_what_a_refusal_advises_is_a_partition(name: str, clients: int, min_examples: int, sizes: list[int]) -> None:
    """Each word of it alone, or those that it joins by "with"."""
    made, given = dataset(sizes), None if name == "pooled" else clients
    asked = settings(name, given, 0.5, min_examples)
    try:
        assert len(asked.cut(made, 0)) == (given or 1)
        return
    except InputError as error:
        advice = str(error).rpartition("; ")[2]
    if advice == "add images":  # not a client more than images
        assert name in ("iid", "pooled") or sizes[0] < min_examples
        return
    for hint in advice.split(", "):
        hint = hint.removeprefix("or ").removeprefix("set ").replace("partition.", "")
        if hint == "add images":
            continue
        if hint == "take partition=iid":
            assert settings("iid", clients, 0.5, min_examples).cut(made, 0)
            continue
        first, *more = hint.split(" with ")
        words = dict(word.split("=") for word in (first if "=" in first else f"clients={first}", *more))
        dataclasses.replace(asked, **{key: int(value) for key, value in words.items()}).cut(made, 0)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_a_test_domain_is_trained_on_by_nobody_and_evaluated_on_whole(name: str) -> None:
    asked = dataclasses.replace(settings(name, None if name != "iid" else 4), test_domains=("domain1",))
    made = asked.hold_out(dataset([20, 30, 40]))
    parts = asked.cut(made, 0)
    inside = made.domains == 1
    assert made.test[inside].all() and int((~made.test).sum()) == 60
    trained = torch.cat([part.train for part in parts])
    assert torch.equal(trained.sort().values, (~made.test).nonzero().flatten()) and not inside[trained].any()
    if name in ("domain", "dirichlet"):
        assert [(p.client, p.domain, len(p.train)) for p in parts] == [(0, 0, 20), (1, 2, 40)]
        assert asked.count(made.domain_names) == 2
        assert [asked.domain_of(client, made.domain_names) for client in range(3)] == ["domain0", "domain2", None]
        for part in parts:
            assert set(made.domains[part.test].tolist()) == {part.domain}


def test_test_domains_that_make_no_sense_are_refused() -> None:
    made = dataset([20, 30])
    for names, said in [(("domain",), "did you mean 'domain"), (("domain0", "domain1"), "none is left to train on")]:
        with pytest.raises(InputError, match=said):
            dataclasses.replace(settings("domain"), test_domains=names).hold_out(made)
    assert settings("domain").hold_out(made) is made
    with pytest.raises(InputError, match="evaluation=clients cannot judge them; use evaluation=server"):
        compose_config(["partition.test_domains=[plain]", "evaluation=clients"])


@pytest.mark.parametrize("name", ["domain", "dirichlet", "iid", "pooled"])
def test_sizes_are_those_of_the_parts_and_a_part_is_no_view_of_all(name):
    parts = settings(name, None if name == "pooled" else 6, min_examples=1).cut(dataset([20, 31, 25]), 3)
    whole, some = range(len(parts)), [len(parts) - 1, 0]
    for clients in (whole, some):
        said = zip(*(sizes.tolist() for sizes in parts.sizes(clients)), strict=True)
        assert list(said) == [(len(parts[i].train), len(parts[i].test)) for i in clients]
    for part in parts:  # which is sent to another process
        assert part.train.untyped_storage().nbytes() == 8 * len(part.train)
    again = Partitions.of(parts[:2])
    assert same(again[:], parts[:2]) and [part.client for part in parts] == list(whole)
    with pytest.raises(IndexError):
        parts[len(parts)]


WRONG = {
    "test images as training images": lambda train, test: ([*train[:1], np.r_[train[1], test[1][:1]]], test),
    "training images as test images": lambda train, test: (train, [*test[:1], np.r_[test[1], train[1][:1]]]),
    "a train image to two clients": lambda train, test: ([train[0], np.r_[train[1], train[0][:1]]], test),
    "a test image to two clients": lambda train, test: (train, [test[0], np.r_[test[1], test[0][:1]]]),
    "train rows that there are not": lambda train, test: ([train[0], train[1] + 1000], test),
    "test rows that there are not": lambda train, test: (train, [test[0] - 1000, test[1]]),
    "to 1 clients, expected 2": lambda train, test: (train[:1], test[:1]),
}


@pytest.mark.parametrize("said", [None, *WRONG])
def test_what_is_dealt_otherwise_than_the_law_says_is_refused(said: str | None) -> None:
    """Of a partition of one's own: trained on test images, a run would look better than it is."""
    made = dataset([20, 20])
    parts = settings("domain").cut(made, 0)
    train, test = ([getattr(part, split).numpy() for part in parts] for split in ("train", "test"))
    if said is None:
        assert refuse_misdealt(parts, made.test, 2, "Mine") is parts, "the control"
        return
    train, test = WRONG[said](train, test)
    dealt = Partitions([-1], [Shares.of(train)], [Shares.of(test)])
    with pytest.raises(InputError, match=f"^Mine deals {said}"):
        refuse_misdealt(dealt, made.test, 2, "Mine")


def test_what_is_no_partition_is_refused() -> None:
    made = dataset([20, 20])
    with pytest.raises(InputError, match="^Mine deals NoneType, expected Partitions$"):
        refuse_misdealt(None, made.test, 2, "Mine")
    rows = [np.arange(2), np.arange(2, 4)]
    with pytest.raises(InputError, match="other numbers of clients for training than for testing"):
        Partitions([-1], [Shares.of(rows)], [Shares.of(rows[:1])])
