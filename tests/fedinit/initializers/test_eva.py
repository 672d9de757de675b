"""EVA's start against the SVD of all clients' inputs in one matrix, its dealing of ranks by law, and what its sketches
and their half precision keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clients.statistics import clip, part_of, thin
from fedinit.initializers.eva import redistribute
from fedinit.initializers.measured import Moments, moments
from fedinit.state.start import StartState
from fedinit.statistics import Request, Sampling, create_statistics, pack, unpack
from tests.support.layer_inputs import RANK, ROWS, Clients, K, inputs


def principal(x: Tensor, centred: bool = True) -> tuple[Tensor, Tensor]:
    """(S, V^T) of the inputs, about their mean or not: the oracle."""
    return torch.linalg.svd(x - x.mean(0) if centred else x, full_matrices=False)[1:]


def projector(rows: Tensor) -> Tensor:
    rows = rows.double()
    return rows.T @ torch.linalg.pinv(rows.T)


def captured(start: StartState, x: Tensor) -> float:
    """The energy of the centred inputs in the row space of A, over that of the best space of its rank."""
    A = start.layers["l"].A
    held = (projector(A) @ (x - x.mean(0)).T).square().sum()
    return float(held / principal(x)[0][: len(A)].square().sum())


# -- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
def test_A_is_the_leading_right_singular_vectors_and_B_is_zero(centred):
    x = inputs(mean=3.0)
    start = Clients({"l": x}, cuts=[0, 1, 120]).start(centred=centred)
    S, Vh = principal(x, centred)
    A, B = start.layers["l"].A, start.layers["l"].B
    assert A.shape == (RANK, K) and not B.any()
    torch.testing.assert_close(A.double().abs(), Vh[:RANK].abs(), atol=1e-6, rtol=0)
    assert start.notes["explained"]["l"] == pytest.approx(float(S[:RANK].square().sum() / S.square().sum()), rel=1e-9)
    # The negative control: the other way of taking the mean is another space.
    other = projector(principal(x, not centred)[1][:RANK])
    assert (projector(A) - other).norm() > 0.1


def test_signs_make_the_largest_entry_of_a_row_positive():
    for seed in range(5):
        A = Clients({"l": inputs(seed=seed)}).start().layers["l"].A
        assert (A.gather(1, A.abs().argmax(1, keepdim=True)) > 0).all()


def test_whitening_divides_by_what_it_says():
    """PEFT's divides a row by the root of the singular value, `std` by the standard deviation along it."""
    x = inputs()
    clients = Clients({"l": x})
    plain = clients.start().layers["l"].A
    S, Vh = principal(x)
    for whiten, size in (("peft", S[:RANK].sqrt()), ("std", ((x - x.mean(0)) @ Vh[:RANK].T).std(0, correction=0))):
        white = clients.start(whiten=whiten).layers["l"].A
        torch.testing.assert_close(white.double() * size[:, None], plain.double(), atol=1e-6, rtol=1e-5)


def test_rows_are_completed_where_the_inputs_span_too_little():
    """Two directions for four rows: the first two hold everything, all are orthonormal, and the summary says so."""
    start = Clients({"l": inputs()[:, :2] @ inputs(seed=1)[:2]}).start(centred=False)
    A = start.layers["l"].A.double()
    torch.testing.assert_close(A @ A.T, torch.eye(RANK, dtype=torch.float64), atol=1e-6, rtol=0)
    assert start.notes["completed"] == {"l": 2} and start.notes["explained"]["l"] == pytest.approx(1.0)


# -- ranks -----------------------------------------------------------------------------------------------------------


def three_layers() -> dict[str, Tensor]:
    """One whose variance lies in few directions, one in between, one that is almost isotropic."""
    return {f"l{i}": inputs(k, fall=fall, seed=i) for i, (k, fall) in enumerate([(40, 2.0), (40, 1.0), (30, 0.2)])}


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0, 4.0])
def test_ranks_are_those_of_the_largest_explained_shares(rho):
    """Against a sort of all shares, one component of each layer set aside."""
    layers = three_layers()
    start = Clients(layers).start(rho=rho, d=100)
    shares = {n: principal(x)[0].square() / principal(x)[0].square().sum() for n, x in layers.items()}
    offers = sorted((-float(v), n) for n, s in shares.items() for v in s[1 : int(rho * RANK + 0.5)])
    expected = {n: 1 + sum(m == n for _, m in offers[: 3 * (RANK - 1)]) for n in layers}
    ranks = {n: f.rank for n, f in start.layers.items()}
    assert ranks == expected and sum(ranks.values()) == 3 * RANK
    if rho == 1:
        assert set(ranks.values()) == {RANK}
    else:
        assert start.notes["ranks"] == ranks and len(set(ranks.values())) > 1


def test_more_freedom_explains_no_less():
    totals = []
    for rho in (1.0, 1.25, 1.5, 2.0, 3.0):
        totals.append(sum(Clients(three_layers()).start(rho=rho, d=100).notes["explained"].values()))
    assert totals == sorted(totals) and totals[-1] > totals[0]


def test_equal_layers_tie_in_the_models_order_and_no_layer_is_above_its_cap():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    twin = Moments(values, torch.eye(4, dtype=torch.float64), 10.0, 10.0, 1.0)
    ranks = redistribute({"a": twin, "b": twin}, {"a": 2, "b": 3}, {"a": 4, "b": 4})
    assert ranks == {"a": 3, "b": 2}
    assert redistribute({"a": twin, "b": twin}, {"a": 2, "b": 3}, {"a": 2, "b": 4}) == {"a": 2, "b": 3}


def test_a_layer_may_not_be_dealt_more_than_its_shape_holds():
    layers = {"wide": inputs(40, fall=0.1), "narrow": inputs(5, fall=3.0, seed=1)}
    start = Clients(layers).start(rank=5, rho=3.0, d=50)
    assert start.layers["narrow"].rank <= 5 and sum(f.rank for f in start.layers.values()) == 10


@pytest.mark.parametrize("sketch", ["exact", "nystrom"])
@pytest.mark.parametrize("seed", range(20))
def test_a_constant_input_gets_loras_start_and_no_ranks(sketch, seed):
    """Rounding is not variance: summed in float32, a constant leaves something when its mean is taken out."""
    draw = torch.Generator().manual_seed(seed)
    size = 10 ** torch.empty(1).uniform_(-3, 3, generator=draw)
    constant = (torch.randn(K, generator=draw) * size).expand(ROWS, K).double()
    living = inputs(fall=0.5)
    clients = Clients({"dead": constant, "l": living}, cuts=[100], wire=True)
    start = clients.start(sketch=sketch, rho=2.0)
    assert start.notes["replaced"] == {"dead": "its input does not vary: kaiming"}
    assert list(start.notes["explained"]) == ["l"] and start.notes["explained"]["l"] <= 1
    assert start.layers["dead"].A.abs().max() <= K**-0.5 and start.layers["dead"].rank == RANK
    # The control: an input that varies by a tenth of its size is no constant.
    varying = constant * (1 + 0.1 * torch.randn(ROWS, 1, generator=draw, dtype=torch.float64))
    assert "replaced" not in Clients({"dead": varying, "l": living}, wire=True).start(sketch=sketch).notes


# -- sketches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pilot", [0.0, 0.5])
def test_a_sketch_of_inputs_of_low_rank_is_exact(pilot):
    x = inputs()[:, :6] @ inputs(seed=1)[:6]
    start = Clients({"l": x}, cuts=[50]).start(sketch="nystrom", width=8, pilot=pilot)
    assert captured(start, x) > 1 - 1e-5
    assert captured(Clients({"l": x}).start(sketch="nystrom", width=4, pilot=0.0), x) < 1 - 1e-5  # the control


def test_two_passes_capture_what_one_does_not():
    """On spectra that fall slowly, as real ones do, over the wire; the mean is five times as large as the rest."""
    shares = {0.0: [], 1.0: []}
    for seed in range(5):
        x = inputs(400, 2000, seed=seed, fall=0.4, mean=5 * 400**-0.5)
        for pilot in shares:
            clients = Clients({"l": x}, cuts=[700], wire=True)
            start = clients.start(rank=8, d=100, sketch="nystrom", pilot=pilot)
            shares[pilot].append(captured(start, x))
            assert len(clients.asked) == 1 + (pilot > 0)
    assert min(shares[1.0]) > 0.99 > max(shares[0.0])


def test_the_first_pass_is_about_a_part_of_the_images_and_of_sketched_layers():
    clients = Clients({"small": inputs(20), "wide": inputs(300, seed=1)})
    clients.start(sketch="auto", pilot=0.25)
    first, second = clients.asked
    assert dict(first.layers) == {"wide": "nystrom"} and first.sampling.share == 0.25
    assert dict(second.layers) == {"small": "gram", "wide": "nystrom"} and second.sampling.share == 1
    assert second.tensors["wide/basis"].shape == (300, 4 * RANK + 8) and "wide/basis" not in first.tensors


def test_which_images_are_in_the_first_pass_does_not_depend_on_the_split():
    sampling = Sampling(share=0.3, min_examples=5)
    images = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = set(part_of(images, sampling, seed=1).tolist())
    assert 0.2 * 500 < len(whole) < 0.4 * 500
    assert whole == {i for part in images.split([200, 120, 180]) for i in part_of(part, sampling, 1).tolist()}
    assert whole != set(part_of(images, sampling, seed=2).tolist())
    assert len(part_of(images[:9], sampling, 1)) >= 5 and len(part_of(images[:3], sampling, 1)) == 3
    assert torch.equal(part_of(images, Sampling(), 1), images)
    # How many, as it is reckoned without the draw: of those that `examples` leaves, `min_examples` at least.
    assert [sampling.count(n) for n in (1000, 9, 3, 0)] == [77, 5, 3, 1] and Sampling(examples=None).count(1000) == 1000


def test_a_basis_of_another_shape_is_refused():
    clients = Clients({"l": inputs()})
    asked = Request(
        source="inputs", layers={"l": "nystrom"}, shapes={"l": (30, K)}, seed=0, options={"width": 8},
        tensors={"l/basis": torch.zeros(K, 7)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"l: a basis of shape \(40, 7\), expected \(40, 8\)"):
        clients.ask(asked)


# -- the wire --------------------------------------------------------------------------------------------------------


def test_what_is_halved_is_right_to_its_columns_largest_entry():
    asked = Request(source="inputs", layers={"l": "nystrom"}, shapes={"l": (30, K)}, seed=0, options={"width": 8})
    statistics = create_statistics(asked)
    sums = {f"l/{key}": value for key, value in statistics["l"].measure(inputs(mean=0.0).float()).items()}
    packed = pack(statistics, sums)
    assert packed["l/sketch"].dtype == torch.float16 and packed["l/sketch.scale"].dtype == torch.float32
    back = unpack(statistics, packed)
    assert back.keys() == sums.keys() and float(back["l/count"]) == ROWS
    assert packed["l/sum"].dtype == packed["l/rest"].dtype == torch.float32
    torch.testing.assert_close(back["l/sum"], sums["l/sum"], atol=1e-12, rtol=0)  # in two pieces of float32
    error = (back["l/sketch"] - sums["l/sketch"]).abs()
    assert (error <= 2**-11 * sums["l/sketch"].abs().amax(0)).all() and error.max() > 0


def test_half_precision_is_of_the_sketch_about_the_mean():
    """With a mean a thousand times as large as the variation, a sketch rounded as it is loses the variation."""
    x = inputs(mean=1000.0)
    asked = Request(source="inputs", layers={"l": "nystrom"}, shapes={"l": (30, K)}, seed=0, options={"width": 8})
    statistics = create_statistics(asked)
    sums = {f"l/{key}": value for key, value in statistics["l"].measure(x).items()}

    exact, scale = statistics["l"].measure(x - x.mean(0))["sketch"], sums["l/sketch"].abs().amax(0)
    plain = (sums["l/sketch"] / scale).half().double() * scale
    through = unpack(statistics, pack(statistics, sums))
    assert (through["l/sketch"] - sums["l/sketch"]).norm() < 1e-2 * exact.norm()
    assert (plain - sums["l/sketch"]).norm() > exact.norm()


def test_a_client_without_examples_adds_nothing():
    asked = Request(source="inputs", layers={"l": "nystrom"}, shapes={"l": (30, K)}, seed=0, options={"width": 8})
    statistics = create_statistics(asked)
    empty = {f"l/{key}": torch.zeros(shape, dtype=torch.float64) for key, shape in statistics["l"].shapes().items()}
    assert not any(value.any() for value in unpack(statistics, pack(statistics, empty)).values())


# -- what one image can change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gram", "nystrom"])
def test_one_image_changes_no_sum_by_more_than_the_sensitivity(kind):
    """The bound holds for any rows, and rows along one line come within a tenth of it."""
    asked = Request(source="inputs", layers={"l": kind}, shapes={"l": (30, K)}, seed=0, options={"width": K})
    statistic = create_statistics(asked)["l"]
    bound = statistic.sensitivity(2.0, 7)
    draw = torch.Generator().manual_seed(0)
    for line in (False, True):
        rows = 50 * torch.randn(1 if line else 7, K, generator=draw, dtype=torch.float64).expand(7, K)
        change = statistic.measure(clip(rows, 2.0))
        for key, most in bound.items():
            # The triangle that travels holds each entry off the diagonal once.
            assert float(change[key].norm()) <= most * (1 + 1e-9)
            if line:
                assert float(change[key].norm()) > most * (0.7 if key == "gram" else 0.9)


def test_rows_of_an_image_are_drawn_by_the_image():
    values = torch.arange(4 * 10 * 2, dtype=torch.float32).view(4, 10, 2)
    images, sampling = torch.tensor([5, 9, 2, 7]), Sampling(tokens=3)
    kept = thin(values, images, sampling, seed=0)
    assert kept.shape == (4, 3, 2)
    turned = thin(values.flip(0), images.flip(0), sampling, seed=0).flip(0)
    assert torch.equal(kept, turned)
    assert not torch.equal(kept - values[:, :1], thin(values, images + 1, sampling, seed=0) - values[:, :1])
    assert torch.equal(thin(values, images, Sampling(tokens=10), seed=0), values)


def test_moments_of_no_rows_are_dead():
    clients = Clients({"l": inputs()[:0]})
    asked = Request(source="inputs", layers={"l": "gram"}, shapes={"l": (30, K)}, seed=0)
    assert moments(asked, clients.ask(asked), "l", True).alive == 0


@pytest.mark.parametrize(
    ("options", "most"),
    [({"sketch": "exact"}, 1e-3), ({"sketch": "nystrom", "pilot": 0.0, "width": 24}, 5e-3),
     ({"sketch": "nystrom", "pilot": 1.0, "width": 24}, 2e-3)],
)  # fmt: skip
def test_over_the_wire_a_split_changes_the_start_by_rounding_alone(options, most):
    """In float64 it changes 1e-8 (test_every_start.py); here sums are float32, sketches half, and the mean is
    three times as large as the first direction. The control: other rows of the same inputs."""
    x = inputs(60, 600, mean=3.0)
    pooled, split, other = (
        projector(Clients({"l": x[rows]}, cuts, wire=True).start(**options).layers["l"].A)
        for rows, cuts in ((slice(0, 400), []), (slice(0, 400), [1, 100, 300]), (slice(200, 600), []))
    )
    assert (pooled - split).norm() < most < 0.1 < (pooled - other).norm()


@pytest.mark.parametrize("sketch", ["exact", "nystrom"])
def test_a_large_mean_costs_no_digits(sketch):
    """Inputs whose mean is a thousand times their deviation, in float32 and over the wire: the directions that the same
    inputs about their mean have, where sums about zero would hold nothing but the mean's rounding."""
    x = inputs(mean=1000.0).float().double()
    width = {"width": 20} if sketch == "nystrom" else {}
    held = [
        captured(Clients({"l": rows}, cuts=[100], wire=True).start(sketch=sketch, **width), x)
        for rows in (x, x - x.mean(0))
    ]
    assert abs(held[0] - held[1]) < 1e-3 and held[0] > (0.9 if sketch == "nystrom" else 1 - 1e-6)
    moment = (x.float().T @ x.float()).double() - ROWS * torch.outer(x.mean(0), x.mean(0))  # the control
    centred = (x - x.mean(0)).T @ (x - x.mean(0))
    assert (moment - centred).norm() > 0.05 * centred.norm()
