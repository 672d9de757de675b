"""What all of a site's answers together say: of no few images, with no less noise, and nothing beside an ε."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict

from clients.limits import BOOK, Keeper
from clients.site import Site
from fedinit.config.limits import Limited, Limits
from fedinit.data.dataset import Dataset
from fedinit.errors import Code
from fedinit.statistics import Request, Sampling, create_statistics
from tests.support.asking import Asker, refused
from tests.support.small import small_config

SEEN, EMPTY = 16, MappingProxyType({})


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("data.domains=[plain,inverted]", "evaluation=clients"))


def keeper(site: Site, **limits: object) -> Keeper:
    return Keeper(site, Limits(**limits), Context(1, 1, {"partition-id": 0}, RecordDict(), {}))  # type: ignore[arg-type]


def about_head(
    name: str, shape: tuple[int, int], options: Mapping[str, object] = EMPTY, head: Mapping[str, torch.Tensor] = EMPTY
) -> Request:
    return Request(
        source="features",
        layers={"head": name},
        shapes={"head": shape},
        seed=0,
        sampling=Sampling(),
        options=options,
        head=head,
    )


def cells(sets: list[np.ndarray], count: int) -> np.ndarray:
    """The sizes of the classes of images that are in the same sets, by the columns of the sets' indicators; of images
    in no set none."""
    member = np.zeros((len(sets), count), dtype=bool)
    for row, chosen in zip(member, sets, strict=True):
        row[chosen] = True
    patterns, sizes = np.unique(member, axis=1, return_counts=True)
    return sizes[patterns.any(axis=0)]


def halves(count: int, sets: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [np.sort(draw.permutation(count)[: count // 2]) for _ in range(sets)]


def distinct(site: Site) -> torch.Tensor:
    """Indices of images of which no two are the same."""
    _, first = np.unique(site.data.images[torch.arange(len(site.data))].numpy().reshape(len(site.data), -1),
                         axis=0, return_index=True)  # fmt: skip
    return torch.from_numpy(np.sort(first))


def test_no_combination_of_answers_is_about_a_few_images(site):
    """A server that deals a site's images anew for every question reads each of them out of as many sums as there are
    images. A linear combination of sums weighs the images of a cell alike, so the smallest cell is what it is about."""
    images, asked = distinct(site), keeper(site)
    count, answered = len(images), []
    for half in halves(count, 60):
        try:
            asked.evaluate(images[torch.from_numpy(half)])
        except Limited as error:
            assert "differ from earlier ones by fewer images" in str(error)
        else:
            answered.append(half)
    assert 2 <= len(answered) < 20 and cells(answered, count).min() >= Limits().min_test_images
    # The control: sets of which no two differ by a few, which was the rule, leave single images.
    far = [half for half in halves(count, 60)]
    assert min(len(np.setdiff1d(a, b)) for a in far for b in far if a is not b) >= SEEN and cells(far, count).min() == 1


def test_a_run_that_deals_a_few_images_otherwise_is_refused(site):
    """Also where nothing is measured: the number of images in a split says on which side of it a file's name is."""
    train, asked = distinct(site), keeper(site)
    asked.check_partition(train[10:])
    other = keeper(Site(dataclasses.replace(site.config, seed=5)))
    other.context = asked.context
    with pytest.raises(Limited, match="training over images that differ from earlier ones by fewer images"):
        other.check_partition(train[11:])
    other.check_partition(train[10 + SEEN :])
    with pytest.raises(Limited, match="training over fewer distinct images than this site's limits"):
        keeper(site).check_partition(torch.cat([train[:12], train[:12]]))


def test_the_images_of_a_run_are_looked_at_once(site, monkeypatch):
    asked, train = keeper(site), distinct(site)
    asked.check_partition(train)
    monkeypatch.setattr(Dataset, "fingerprints", lambda *_: pytest.fail("looked at again"))
    asked.check_partition(train)


def test_a_class_of_a_few_images_has_no_sum_of_its_own(site):
    asked, ask = keeper(site), Asker(site)
    labels = site.data.labels[site.partitions[0].train]
    few = torch.cat([site.partitions[0].train[labels == 0][:3], site.partitions[0].train[labels == 1][:40]])
    sums = about_head("class_sums", (10, 24))
    with pytest.raises(Limited, match="statistics of a class over fewer distinct images than this site's limits"):
        asked.measure(sums, few)
    keeper(site, min_class_images=1).measure(sums, few)
    assert ask(source="features", name="class_sums").has_content()


def test_noise_is_of_all_answers_together(site):
    """n answers with the noise σ, each fresh by a slightly other clip, have the mean of one with σ/√n."""
    ask = Asker(site, min_noise=1.0)
    assert ask(clip=1.0, noise=1.0).has_content()
    refused(ask(clip=0.999, noise=1.0), "answers together would have less noise than its min-noise")
    ask = Asker(site, min_noise=1.0)
    assert all(ask(clip=1.0 - 0.001 * i, noise=2.0).has_content() for i in range(4))
    refused(ask(clip=0.5, noise=100.0), "answers together")
    free = Asker(site)
    assert all(free(clip=1.0 - 0.001 * i, noise=0.5).has_content() for i in range(4))


def test_with_an_epsilon_nothing_is_answered_that_it_does_not_count(site):
    refused(Asker(site, max_epsilon=1.0)(), "answers no statistics, which no ε counts: it has a max-epsilon")
    with pytest.raises(Limited, match="answers no evaluations, which no ε counts"):
        keeper(site, max_epsilon=1.0).evaluate(site.partitions[0].test)


@pytest.mark.parametrize(("words", "few"), [("client.max_steps=3 client.batch_size=5", True),
                                            ("client.max_steps=4 client.batch_size=4", False),
                                            ("client.max_steps=null", False)])  # fmt: skip
def test_an_update_of_a_few_images_is_not_made(site, words, few):
    asked = keeper(Site(small_config("data.domains=[plain,inverted]", *words.split())))
    train = site.partitions[0].train
    if not few:
        asked.check_batches(train)
        return
    with pytest.raises(Limited, match="an update would be of fewer images than this site's min-images$"):
        asked.check_batches(train)


@pytest.mark.parametrize("gain", [-3.0, -0.05, 0.0, 2.0])
def test_a_loss_of_any_gain_is_within_its_sensitivity(gain):
    """A negative gain that was taken with its sign made the noise nothing."""
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 6, generator=draw), torch.randn(5, generator=draw)
    asked = about_head("losses", (5, 6), {"scales": [gain]}, {"weight": weight, "bias": bias})
    losses = create_statistics(asked)["head"]
    bound = losses.sensitivity(2.0, 1)["losses"]
    z = torch.randn(4000, 6, generator=draw).double()
    z *= 2.0 / z.norm(dim=1, keepdim=True)
    logits = gain * (z @ weight.double().T + bias.double())
    most = float((logits.logsumexp(1) - logits.min(1).values).max())
    assert most <= bound and bound > 0


@pytest.mark.parametrize("gains", [[], ["x"], [[1.0]], [float("nan")], [1.0] * 1001, None, "1", [True]])
def test_gains_that_are_none_are_not_asked_with(site, gains):
    head = {"head/weight": torch.randn(10, 24), "head/bias": torch.zeros(10)}
    text = about_head("losses", (10, 24), {"scales": gains}).to_json()
    refused(Asker(site).ask(text, head), "statistics that are none, or with options", Code.refused)


def test_a_text_that_is_no_request_is_refused(site):
    for text in ("[" * 100_000, "{}", "7", '{"sampling": {"x": 1}}'):
        refused(Asker(site).ask(text, {}), "a text that is no request", Code.refused)


def test_a_book_of_before_counts_on(site):
    """Its sets become cells."""
    images = distinct(site)
    asked = keeper(site)
    with asked._book() as book:
        prints = list(site.data.fingerprints(images, book["key"]))
    old = {
        "key": book["key"],
        "runs": {},
        "all": {"evaluations": 3},
        "images": {"evaluations": [prints[:40], prints[20:]]},
    }
    asked.context.state[BOOK] = ConfigRecord({"book": json.dumps(old)})
    asked.evaluate(images[:40])
    with pytest.raises(Limited, match="fewer images"):
        asked.evaluate(images[4:40])
    with asked._book() as book:
        assert book["all"]["evaluations"] == 4 and sorted(map(len, book["cells"]["evaluations"])) == sorted(
            (20, 20, len(images) - 40)
        )
