"""Draws by a secret have all of its bits, are what they say they are, and repeat; by a seed they are torch's."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from scipy.stats import kstest, norm

from fedinit.draws import Keyed, Seeded, draws, normal_of
from fedinit.seeding import torch_generator


def test_torch_keeps_32_bits_of_a_seed_and_a_key_is_whole():
    """The negative control, which is why a secret is no seed of torch's generator."""
    one, other = (torch.randn(5, generator=torch.Generator().manual_seed(1 + extra)) for extra in (0, 2**32))
    assert torch.equal(one, other)
    secrets = [f"{1 + extra:064x}" for extra in (0, 2**32, 2**63, 2**200)]
    drawn = [Keyed(secret, "noise", 1).normal((5,)) for secret in secrets]
    assert all(not torch.equal(drawn[0], each) for each in drawn[1:])


def test_a_keyed_stream_is_chacha20s_under_the_hash_of_the_secret_and_the_purpose():
    key = hashlib.sha256(b"fedinit draws\x1f" + b"noise\x1f3\x1fabc").digest()
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * 7))
    words = np.frombuffer(stream, "<u8")
    expected = norm.ppf(((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52)
    draw = Keyed("abc", "noise", 3)
    assert np.allclose(draw.normal((2, 2)).flatten().numpy(), expected[:4], rtol=1e-12)
    assert np.array_equal(draw.uniform(3).numpy(), (words[4:] >> np.uint64(11)) / 2.0**53)  # the stream goes on


def test_the_numbers_are_of_their_distributions():
    draw = Keyed("secret", "noise")
    assert kstest(draw.normal((200_000,)).numpy(), "norm").pvalue > 1e-3
    assert kstest(draw.uniform(200_000).numpy(), "uniform").pvalue > 1e-3
    assert kstest(draw.normal((200_000,)).numpy() * 1.05, "norm").pvalue < 1e-3  # the control
    ends = normal_of(np.array([0, 2**64 - 1], np.uint64))
    assert torch.isfinite(ends).all() and float(ends[0]) == -float(ends[1]) and float(ends[1]) > 8


def test_the_same_words_draw_the_same_and_no_others():
    first = Keyed("s", "noise", 1, 2).normal((4,))
    assert torch.equal(first, Keyed("s", "noise", 1, 2).normal((4,)))
    for other in (
        Keyed("t", "noise", 1, 2),
        Keyed("s", "batches", 1, 2),
        Keyed("s", "noise", 12),
        Keyed("s", "noise", 2, 1),
    ):
        assert not torch.equal(first, other.normal((4,)))
    assert Keyed("s", "noise").normal((3, 2), torch.float32).dtype == torch.float32


def test_without_a_secret_they_are_the_seeds():
    made = draws(7, "", "privacy.noise", 1, 2, "")
    assert isinstance(made, Seeded)
    generator = torch_generator(7, "privacy.noise", 1, 2, "")
    assert torch.equal(made.normal((3,), torch.float32), torch.randn(3, generator=generator))
    assert torch.equal(made.uniform(3), torch.rand(3, generator=generator, dtype=torch.float64))
    with_secret = [draws(seed, "s", "privacy.noise", 1).normal((math.prod((2, 3)),)) for seed in (0, 1)]
    assert torch.equal(*with_secret)  # the server's seed is not in it
