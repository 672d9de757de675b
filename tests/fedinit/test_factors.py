"""The algebra of low-rank products against the same operations on dense (d, k) matrices.

rtol 1e-9: sums of at most 24·24·40 float64 terms of size one round to 1e-12; the rest is room.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedinit import factors
from fedinit.adapters.core import CoreFactors
from fedinit.adapters.dora import DoRAFactors
from fedinit.factors import Factors, at_most_full, difference, distance, inner, leading, norm, pad, stack

quick = settings(deadline=None, max_examples=25)


def dense(product: Factors) -> np.ndarray:
    """B R A in numpy, by role."""
    A, B = product.A.double().numpy(), product.B.double().numpy()
    return B @ product.R.double().numpy() @ A if isinstance(product, CoreFactors) else B @ A


@st.composite
def products(draw: st.DrawFn, count: int) -> list[Factors]:
    """`count` products of one (d, k), with ranks of their own (also above d and k), some with a core R."""
    d, k = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = []
    for _ in range(count):
        r = draw(st.integers(1, 30))
        A, B, R = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in [(r, k), (d, r), (r, r)])
        made.append(CoreFactors(A, B, R) if draw(st.booleans()) else Factors(A, B))
    return made


@quick
@given(products(3), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_stack_is_the_weighted_sum(three: list[Factors], weights: list[float]) -> None:
    ours = stack(three, weights)
    assert ours.rank == sum(p.rank for p in three)
    theirs = sum(w * dense(p) for w, p in zip(weights, three, strict=True))
    np.testing.assert_allclose(dense(ours), theirs, rtol=1e-9, atol=1e-9)


@quick
@given(products(2))
def test_inner_norm_and_difference(two: list[Factors]) -> None:
    left, right = two
    size = np.linalg.norm(dense(left)) * np.linalg.norm(dense(right))
    assert inner(left, right) == pytest.approx(np.sum(dense(left) * dense(right)), rel=1e-9, abs=1e-12 * size)
    assert norm(left) == pytest.approx(np.linalg.norm(dense(left)), rel=1e-9)
    np.testing.assert_allclose(dense(difference(left, right)), dense(left) - dense(right), rtol=1e-9, atol=1e-9)


@quick
@given(products(1), st.integers(1, 7))
def test_norm_in_panels(one: list[Factors], panel: int) -> None:
    """The panels cover every pair of components once, whatever their width, uneven last panel included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "PANEL", panel)
        assert norm(one[0]) == pytest.approx(np.linalg.norm(dense(one[0])), rel=1e-9)


@pytest.mark.parametrize("rank", [255, 256, 257, 600])
def test_norm_across_the_panel_width(rank: int) -> None:
    draw = torch.Generator().manual_seed(rank)
    A, B = torch.randn(rank, 5, generator=draw).double(), torch.randn(7, rank, generator=draw).double()
    assert norm(Factors(A, B)) == pytest.approx(float((B @ A).norm()), rel=1e-9)


def test_norm_of_a_product_that_cancels() -> None:
    """x − x: the Gram form rounds to ±1e-16·‖x‖², whose square root is 1e-8, and never to NaN."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = Factors(*(torch.randn(*s, generator=draw, dtype=torch.float64) for s in [(3, 9), (7, 3)]))
        assert 0 <= norm(difference(x, x)) <= 1e-6 * norm(x)


@quick
@given(products(1), st.integers(0, 5))
def test_pad_changes_no_product_and_leading_undoes_it(one: list[Factors], extra: int) -> None:
    (product,) = one
    wider = pad(product, product.rank + extra)
    assert wider.rank == product.rank + extra
    assert not wider.A[product.rank :].any() and not wider.B[:, product.rank :].any()
    np.testing.assert_allclose(dense(wider), dense(product), rtol=1e-9, atol=1e-12)
    back = leading(wider, product.rank)
    assert torch.equal(back.A, product.A) and torch.equal(back.B, product.B)
    assert type(back) is type(product) and ("R" not in back.parts or torch.equal(back.R, product.R))


def test_leading_takes_the_first_components() -> None:
    """Not the last: by hand, rank two of (d, k) = (2, 3)."""
    product = Factors(torch.tensor([[1.0, 0, 0], [0, 5, 0]]), torch.tensor([[1.0, 0], [0, 1]]))
    assert leading(product, 1).dense().tolist() == [[1, 0, 0], [0, 0, 0]]


@quick
@given(products(1))
def test_absorb_multiplies_the_core_into_B(one: list[Factors]) -> None:
    (product,) = one
    absorbed = product.absorb()
    assert type(absorbed) is Factors and torch.equal(absorbed.A, product.A)
    np.testing.assert_allclose(dense(absorbed), dense(product), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(product.dense().numpy(), dense(product), rtol=1e-9, atol=1e-9)
    if isinstance(product, CoreFactors) and product.rank > 1:  # the core on the wrong side gives another product
        turned = Factors(product.A, product.B @ product.R.T)
        assert np.linalg.norm(dense(turned) - dense(product)) > 1e-6 * np.linalg.norm(dense(product))


@quick
@given(products(2))
def test_distance_is_of_the_factors_not_of_the_products(two: list[Factors]) -> None:
    rank = min(p.rank for p in two)
    one, other = (leading(p, rank) for p in two)
    cores = [f.parts.get("R", torch.eye(rank, dtype=torch.float64)) for f in (one, other)]
    theirs = sum(float(((a - b) ** 2).sum()) for a, b in [(one.A, other.A), (one.B, other.B), cores])
    ours = distance({"x": one, "y": other}, {"y": one, "x": other})
    assert ours == pytest.approx((2 * theirs) ** 0.5, rel=1e-9)
    flipped = dataclasses.replace(one, A=-one.A, B=-one.B)  # the same product, other factors
    np.testing.assert_array_equal(dense(flipped), dense(one))
    assert distance({"x": one}, {"x": flipped}) > 0
    assert distance({"x": one}, {"x": one}) == 0


class TestBlocks:
    """A core given as h blocks is the block-diagonal core, built here as a dense (r, r) matrix."""

    @staticmethod
    def pair(heads: int, width: int, seed: int = 0) -> tuple[Factors, Factors]:
        """The same product with its core as blocks, and as one matrix."""
        draw = torch.Generator().manual_seed(seed)
        r = heads * width
        shapes = [(r, 9), (7, r), (heads, width, width)]
        A, B, R = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes)
        return CoreFactors(A, B, R), CoreFactors(A, B, torch.block_diag(*R))

    @pytest.mark.parametrize(("heads", "width"), [(1, 3), (3, 1), (2, 3), (4, 2)])
    def test_products_are_those_of_the_whole_core(self, heads: int, width: int) -> None:
        blocks, whole = self.pair(heads, width)
        for made in (blocks, blocks.to(torch.float64), pad(blocks, blocks.rank + 2 * width)):
            np.testing.assert_allclose(made.dense().numpy(), dense(whole), rtol=1e-9, atol=1e-12)
        first = leading(blocks, width)
        np.testing.assert_allclose(first.dense().numpy(), dense(leading(whole, width)), rtol=1e-9, atol=1e-12)
        assert torch.equal(leading(pad(blocks, blocks.rank + width), blocks.rank).R, blocks.R)
        other, _ = self.pair(heads, width, seed=1)
        assert distance({"x": blocks}, {"x": other}) == pytest.approx(
            float(sum(((getattr(blocks, p) - getattr(other, p)) ** 2).sum() for p in "ABR")) ** 0.5
        )

    def test_blocks_are_not_cut(self) -> None:
        with pytest.raises(ValueError, match="rank 3 is not a whole number of the core's blocks of 2"):
            leading(self.pair(2, 2)[0], 3)
        with pytest.raises(ValueError, match="rank 5 is not a whole number"):
            pad(self.pair(2, 2)[0], 5)


def test_to_converts_every_part() -> None:
    product = CoreFactors(torch.ones(2, 3), torch.ones(4, 2), torch.eye(2)).to(torch.float64)
    assert {product.A.dtype, product.B.dtype, product.R.dtype} == {torch.float64}
    assert product.shape == (4, 3) and product.rank == 2


@pytest.mark.parametrize(
    ("A", "B", "R"),
    [
        ((2, 5), (3, 4), None),  # ranks that differ
        ((5, 2), (2, 3), None),  # A and B by position instead of by role
        ((2, 5), (3, 2), (2, 3)),  # a core that is not square
        ((2, 5), (3, 2), (1, 1)),  # a core that would broadcast
        ((4, 5), (3, 4), (1, 2, 2)),  # blocks of another rank
        ((4, 5), (3, 4), (2, 2, 1)),  # blocks that are not square
        ((5,), (3, 5), None),
        ((2, 5), (3, 2, 1), None),
    ],
)
def test_shapes_that_do_not_chain_are_refused(A: tuple, B: tuple, R: tuple | None) -> None:
    with pytest.raises(ValueError, match="do not chain"):
        CoreFactors(torch.zeros(A), torch.zeros(B), torch.zeros(R)) if R else Factors(torch.zeros(A), torch.zeros(B))


def test_a_rank_cannot_be_padded_down() -> None:
    with pytest.raises(ValueError, match="cannot pad rank 3 down to 2"):
        pad(Factors(torch.zeros(3, 4), torch.zeros(4, 3)), 2)


def test_stack_refuses_another_number_of_weights() -> None:
    with pytest.raises(ValueError):
        stack([Factors(torch.zeros(1, 2), torch.zeros(2, 1))], [0.5, 0.5])


@pytest.mark.parametrize("rank", [95, 96, 600])
def test_far_above_its_shape_a_product_is_summed_as_a_matrix_to_the_same_value(rank, monkeypatch):
    """600 clients' updates of a 48x48 layer together. The negative control is the form that grows with their square."""
    draw = torch.Generator().manual_seed(rank)
    left, right = (
        Factors(
            torch.randn(rank, 48, generator=draw, dtype=torch.float64),
            torch.randn(48, rank, generator=draw, dtype=torch.float64),
        )
        for _ in range(2)
    )
    formed = []
    dense = Factors.dense
    monkeypatch.setattr(Factors, "dense", lambda product: formed.append(product) or dense(product))
    found = norm(left), inner(left, right)
    assert len(formed) == (0 if rank < 96 else 3)
    monkeypatch.setattr("fedinit.factors.dense_is_cheaper", lambda product, rank: False)
    assert found == pytest.approx((norm(left), inner(left, right)), rel=1e-10)
    assert len(formed) == (0 if rank < 96 else 3)


@quick
@given(products(1))
def test_no_more_than_a_maps_own_rank_is_the_same_map(one: list[Factors]) -> None:
    (product,) = one
    made = at_most_full(product)
    assert made.rank <= max(min(product.shape), 0) and made.shape == product.shape
    np.testing.assert_allclose(dense(made), dense(product), rtol=1e-9, atol=1e-9)
    assert (made is product) == (product.rank <= min(product.shape))


def test_what_stands_beside_a_product_that_is_made_smaller_stays() -> None:
    m = torch.arange(3.0)
    made = at_most_full(DoRAFactors(torch.randn(7, 5), torch.randn(3, 7), m=m))
    assert isinstance(made, DoRAFactors) and made.m is m and made.rank == 3
