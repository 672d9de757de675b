"""A digest tells tensors apart by name, type, shape and bytes, whatever their memory lay-out."""

from __future__ import annotations

import torch

from fedinit.state import digest


def test_what_a_digest_depends_on():
    A = torch.arange(6.0).reshape(2, 3)
    told = digest.of_tensors({"A": A})
    assert digest.of_tensors({"A": A.T.contiguous().T}) == told
    others = [{"B": A}, {"A": A.double()}, {"A": A.reshape(3, 2)}, {"A": A + 1}, {"A": A[:0]}, {"A": A[:, :0]}]
    assert len({told, *map(digest.of_tensors, others)}) == 7


def test_a_number_has_one_too():
    assert digest.of_tensors({"a": torch.tensor(1.0)}) != digest.of_tensors({"a": torch.tensor(2.0)})
