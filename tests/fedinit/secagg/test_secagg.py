"""The pieces of a secret sum: fixed point against exact sums, masks that cancel and are uniform, shares and liars."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
import torch

from fedinit.errors import InputError
from fedinit.secagg import masks, secrets
from fedinit.secagg.fixed_point import FixedPoint, flat, unflat

POINT = FixedPoint(clip=64.0, bits=32)


def chi_square(words: np.ndarray) -> float:
    """Of the words' bytes against uniform ones, 255 degrees of freedom: mean 255, standard deviation 22.6."""
    counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
    return float(((counts - counts.mean()) ** 2).sum() / counts.mean())


def test_a_mean_is_within_the_stated_bound_of_the_exact_one():
    draw, weights = np.random.default_rng(0), [3, 1000, 17]
    values = [torch.randn(500, dtype=torch.float64) for _ in weights]
    total = sum(weights)
    with np.errstate(over="ignore"):
        words = sum(POINT.encode(v, n, draw) for v, n in zip(values, weights, strict=True))
    exact = sum(n * v for v, n in zip(values, weights, strict=True)) / total
    error = (POINT.decode(words, total) - exact).abs().max()
    assert 0 < error < len(weights) * POINT.step / total


def test_rounding_is_right_on_average_and_values_beyond_the_range_are_cut_off():
    value = torch.full((20_000,), 0.25 * 0.5, dtype=torch.float64)
    coarse = FixedPoint(clip=4.0, bits=4)  # a step of a half
    means = coarse.decode(coarse.encode(value, 1, np.random.default_rng(1)), 1)
    assert abs(float(means.mean()) - 0.125) < 4 * 0.25 * 20_000**-0.5
    assert coarse.decode(coarse.encode(torch.tensor([9.0, -9.0]), 1, np.random.default_rng(1)), 1).tolist() == [4, -4]
    with pytest.raises(ValueError, match="NaN or infinity"):
        coarse.encode(torch.tensor([float("nan")]), 1, np.random.default_rng(1))


def test_what_could_wrap_is_refused_and_what_cannot_is_right_to_the_end():
    most = 2**32 - 1
    POINT.check(most)
    with pytest.raises(InputError, match=r"secure_aggregation.bits=32: sums of 4294967296 examples would wrap"):
        POINT.check(most + 1)
    edge = torch.tensor([64.0, -64.0], dtype=torch.float64)
    assert torch.allclose(POINT.decode(POINT.encode(edge, most, np.random.default_rng(0)), most), edge)


def test_flat_and_back():
    tensors = {"b/B": torch.randn(3, 2), "a/A": torch.randn(2, 4), "head/bias": torch.randn(5)}
    back = unflat(flat(tensors), tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_masks_of_a_cohort_cancel_and_without_one_of_it_do_not():
    keys = {client: secrets.new_key() for client in (4, 0, 7)}
    public = {client: key.public_key() for client, key in keys.items()}
    own = {c: masks.pairwise(c, key, {o: p for o, p in public.items() if o != c}, 100) for c, key in keys.items()}
    assert not (own[0] + own[4] + own[7]).any()
    assert (own[0] + own[4]).any()


def test_a_masked_vector_is_uniform_whatever_is_in_it_and_an_open_one_is_not():
    zeros, ones = np.zeros(20_000, np.uint64), POINT.encode(torch.ones(20_000), 100, np.random.default_rng(0))
    low, high = 255 - 6 * 22.6, 255 + 6 * 22.6
    hidden = [vector + masks.expand(os.urandom(32), vector.size) for vector in (zeros, ones)]
    assert all(low < chi_square(words) < high for words in [*hidden, hidden[1] - hidden[0]])
    assert not low < chi_square(ones) < high  # the control: masking off


def test_the_key_stream_takes_all_of_its_key():
    """Two keys that Flower's generator folds into one seed (equal words cancel) give two streams."""
    assert (masks.expand(bytes(32), 8) != masks.expand(b"\1\0\0\0" * 8, 8)).any()


def test_threshold_shares_give_the_secret_and_fewer_do_not():
    secret = os.urandom(32)
    shares = secrets.split(secret, 3, [5, 1, 8, 2])
    assert {len(share) for share in shares.values()} == {secrets.share_length(32)}
    assert secrets.joined({h: shares[h] for h in (8, 1, 2)}, 3, secret.__eq__) == (secret, [])
    with pytest.raises(ValueError, match="2 shares do not give the secret, 3 right ones would"):
        secrets.joined({h: shares[h] for h in (8, 1)}, 3, secret.__eq__)


@pytest.mark.parametrize(("liar", "named"), [(1, [1]), (5, [])])  # of five, three are put together
def test_who_gives_a_wrong_share_is_named_where_it_is_in_the_way(liar, named):
    secret = os.urandom(32)
    digest = hashlib.sha256(secret).digest()
    shares = secrets.split(secret, 3, [1, 2, 3, 4, 5])
    shares[liar] = shares[liar][:4] + os.urandom(len(shares[liar]) - 4)
    assert secrets.joined(shares, 3, lambda s: hashlib.sha256(s).digest() == digest) == (secret, named)


def test_keys_go_through_bytes():
    key = secrets.new_key()
    assert len(secrets.public_bytes(key)) == secrets.PUBLIC and len(secrets.private_bytes(key)) == secrets.KEY
    again = secrets.private_key(secrets.private_bytes(key))
    assert secrets.public_bytes(again) == secrets.public_bytes(key)
    other = secrets.new_key()
    public = secrets.public_key(secrets.public_bytes(other))
    assert masks.shared(key, public) == masks.shared(other, again.public_key())
