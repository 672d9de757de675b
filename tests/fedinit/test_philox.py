"""Counter-based draws: the published answers, and what makes them counter-based."""

from __future__ import annotations

import pytest
import torch

from fedinit.philox import below, philox

ONES = 0xFFFFFFFF
# Random123's known answers for philox4x32-10 (its file kat_vectors): counter, key (low word first), words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words) -> None:
    whole = key[0] | (key[1] << 32)
    signed = torch.tensor(whole - (1 << 64) if whole >> 63 else whole)
    assert philox(signed, torch.tensor(counter)).tolist() == list(words)


def test_a_word_is_of_its_key_and_counter_alone() -> None:
    keys, counters = torch.arange(5) * 977, torch.arange(24).view(6, 4)
    table = philox(keys[:, None], counters)  # (5, 6, 4)
    assert table.shape == (5, 6, 4)
    assert torch.equal(table[3, 2], philox(keys[3], counters[2]))
    assert len(set(table.flatten().tolist())) == table.numel()


def test_below_is_uniform_and_in_range() -> None:
    """Of 8,000 draws of five numbers, each comes 1,600 times but for four standard deviations of 36."""
    counter = torch.zeros(2000, 4, dtype=torch.long)
    counter[:, 0] = torch.arange(2000)
    counts = below(philox(torch.tensor(11), counter), 5).flatten().bincount(minlength=5)
    assert len(counts) == 5 and bool(((counts - 1600).abs() < 4 * 36).all())
    assert below(torch.tensor([0, ONES]), 7).tolist() == [0, 6]
