"""Differences over seeds: against scipy's paired test, a hand-made correction, and drawn test sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedinit.report.runs.significance import Sample, holm, paired, sampling_error


def test_the_paired_test_is_scipys():
    draw = np.random.default_rng(0)
    one, other = draw.normal(80, 3, 6), draw.normal(79, 3, 6)
    found = paired(Sample(dict(enumerate(one))), Sample(dict(enumerate(other))))
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9) and found.seeds == 6
    assert found.mean == pytest.approx((one - other).mean())
    assert found.half == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_seeds_are_paired_by_number_and_only_those_of_both():
    """Law: an offset that is the same for every seed is beyond any noise between seeds, and a seed of one does not
    count. The negative control: unpaired, the same figures differ by nothing to speak of."""
    one = {0: 70.0, 1: 80.0, 2: 90.01, 7: 10.0}
    other = {2: 89.0, 1: 79.01, 0: 69.0, 9: 99.0}
    found = paired(Sample(one), Sample(other))
    assert found.seeds == 3 and found.mean == pytest.approx(1.0) and found.p is not None and found.p < 0.001
    assert stats.ttest_ind([70, 80, 90.01], [69, 79.01, 89]).pvalue > 0.9


def test_where_there_is_nothing_to_judge_by():
    assert paired(Sample({0: 1.0}), Sample({0: 0.5})) == paired(Sample({3: 1.0}), Sample({3: 0.5}))
    alone = paired(Sample({0: 1.0}), Sample({0: 0.5}))
    assert (alone.mean, alone.seeds, alone.half, alone.p) == (0.5, 1, None, None)
    none = paired(Sample({0: 1.0}), Sample({1: 1.0}))
    assert math.isnan(none.mean) and none.p is None
    assert paired(Sample({0: 1.0, 1: 2.0}), Sample({0: 1.0, 1: 2.0})).p == 1.0
    for same in (0.5, 0.1, 1e-3):  # as steps of one image are in two seeds; 0.1 leaves rounding
        alike = paired(Sample({0: 61.2 + same, 1: 59.6 + same}), Sample({0: 61.2, 1: 59.6}))
        assert (alike.mean, alike.half, alike.p) == (pytest.approx(same), None, None)
    assert paired(Sample({0: 61.3, 1: 59.6}), Sample({0: 61.2, 1: 59.4})).p is not None, "the control"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9, None]) == [1.0, 1.0, None] and holm([]) == []
    assert holm([0.04]) == [0.04], "one question is not corrected"


def test_the_sampling_error_is_that_of_drawn_test_sets():
    accuracy, images = [90.0, 60.0, 75.0], [200, 100, 50]
    draw = np.random.default_rng(1)
    drawn = [100 * draw.binomial(n, a / 100, 20_000) / n for a, n in zip(accuracy, images, strict=True)]
    assert sampling_error(accuracy, images) == pytest.approx(np.mean(drawn, axis=0).std(), rel=0.03)


def test_a_samples_deviation_is_of_n_less_one():
    sample = Sample({2: 3.0, 0: 1.0, 1: float("nan")})
    assert sample.mean == 2.0 and sample.std == pytest.approx(2**0.5)
    assert Sample({0: 1.0}).std is None and math.isnan(Sample({}).mean)


def test_all_of_few_images_right_is_no_certainty():
    right, wrong = (sampling_error([share], [24]) for share in (100.0, 0.0))
    assert 1 < right < 10 and wrong == pytest.approx(right)
    assert sampling_error([100.0], [10**8]) < 1e-3
