"""Intervals, tests and corrections against numbers worked by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.errors import DataError
from bids_scseg.measure import statistics
from bids_scseg.measure.statistics import (
    bootstrap_f1,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    paired_wilcoxon,
)

NAN = float("nan")


def test_interval_of_a_normal_sample_is_about_the_textbook_one():
    values = np.random.default_rng(1).normal(5, 2, 200)
    found = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert (found.n, found.subjects, found.reason) == (200, 200, "")


def test_the_same_seed_gives_the_same_interval():
    values = [0.1, 0.5, 0.9, 0.3]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, resamples=99, seed=3) != bootstrap_mean(values, resamples=99, seed=4)


def test_images_of_one_subject_are_drawn_together():
    # Four subjects with 50 equal images each: 200 values carry the information of four.
    values = np.repeat([0.0, 0.4, 0.6, 1.0], 50)
    naive = bootstrap_mean(values)
    honest = bootstrap_mean(values, groups=np.repeat(["a", "b", "c", "d"], 50).tolist())
    assert naive.mean == pytest.approx(0.5)
    assert honest.mean == pytest.approx(0.5)
    assert (honest.n, honest.subjects) == (200, 4)
    assert honest.high - honest.low > 4 * (naive.high - naive.low)


def test_degenerate_samples():
    none = bootstrap_mean([])
    assert math.isnan(none.mean)
    assert (none.n, none.reason) == (0, "no values")
    one = bootstrap_mean([0.7])
    assert one.mean == 0.7
    assert math.isnan(one.low)
    assert one.reason == "one subject only"
    alone = bootstrap_mean([0.2, 0.4], groups=["a", "a"])
    assert (alone.mean, alone.n, alone.subjects) == (pytest.approx(0.3), 2, 1)
    assert math.isnan(alone.high)
    alike = bootstrap_mean([0.5, 0.5, 0.5])
    assert (alike.low, alike.mean, alike.high) == (0.5, 0.5, 0.5)
    with pytest.raises(DataError, match="1 of 2 values"):
        bootstrap_mean([0.5, NAN])
    with pytest.raises(DataError, match="groups"):
        bootstrap_mean([0.5], groups=["a", "b"])


def test_pooled_ratio_weighs_subjects_by_their_lesions():
    # 1 of 2, 9 of 10, and a subject without lesions: 10 of 12, not the mean of 0.5 and 0.9.
    found = bootstrap_ratio([1, 9, 0], [2, 10, 0])
    assert found.mean == pytest.approx(10 / 12)
    assert (found.n, found.subjects) == (2, 2)
    assert 0.5 <= found.low <= found.mean <= found.high <= 0.9
    assert bootstrap_ratio([0], [0]).reason == "no values"
    with pytest.raises(DataError, match="below 0"):
        bootstrap_ratio([1], [-1])
    with pytest.raises(DataError, match="parts"):
        bootstrap_ratio([1], [1, 2])


def test_pooled_f1_by_hand():
    # 3 of 6 lesions found, 3 of 4 right: 2 · 0.5 · 0.75 / 1.25.
    found = bootstrap_f1([1, 2, 0], [1, 4, 1], [1, 2, 0], [1, 2, 1])
    assert found.mean == pytest.approx(0.6)
    assert 0 <= found.low < 0.6 < found.high <= 1
    assert (found.n, found.reason) == (3, "")
    assert bootstrap_f1([0, 0], [1, 1], [0, 0], [0, 0]).mean == 0
    assert bootstrap_f1([0, 0], [0, 0], [0, 0], [1, 1]).reason == "no values"
    assert bootstrap_f1([1], [1], [1], [1]).reason == "one subject only"
    # One of two subjects has lesions: a quarter of the resamples has none.
    assert bootstrap_f1([1, 0], [1, 0], [1, 0], [1, 0]).reason == "too many resamples have no true lesion"


def test_pooled_f1_draws_in_batches_what_it_would_draw_at_once(monkeypatch):
    sums = np.random.default_rng(1).integers(1, 9, (4, 40)).astype(float)
    sums[0], sums[2] = np.minimum(sums[0], sums[1]), np.minimum(sums[2], sums[3])
    at_once = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=999)
    wanted = statistics._resampled_sums(sums, resamples=999, seed=0)
    assert np.array_equal(wanted, sums @ at_once.T)
    whole = bootstrap_f1(*sums)
    monkeypatch.setattr(statistics, "BATCH_NUMBERS", 40 * 7)
    assert np.array_equal(statistics._resampled_sums(sums, resamples=999, seed=0), wanted)
    assert bootstrap_f1(*sums) == whole


def test_pooled_f1_of_many_subjects_needs_little_memory():
    ones = np.ones(20_000)
    tracemalloc.start()
    bootstrap_f1(ones, ones, ones, ones, resamples=999)  # 160 MB, if drawn at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_intervals_lie_within_the_data(values):
    found = bootstrap_mean(values, resamples=199)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_signed_ranks_by_hand():
    # Six differences, all positive, without ties: of the 64 signs one is as extreme at each side.
    test = paired_wilcoxon([1, 2, 3, 4, 5, 6], [0.9, 1.8, 2.7, 3.6, 4.5, 5.4])
    assert test.p == pytest.approx(2 / 64)
    assert test.mean_difference == pytest.approx(0.35)
    assert test.median_difference == pytest.approx(0.35)
    assert (test.n, test.zeros, test.reason) == (6, 0, "")


def test_zero_differences_are_left_out_and_counted():
    zeros = paired_wilcoxon([1, 2, 3, 4, 5, 6, 7, 7], [0.9, 1.8, 2.7, 3.6, 4.5, 5.4, 7, 7])
    assert (zeros.n, zeros.zeros) == (8, 2)
    assert zeros.p == pytest.approx(2 / 64)
    assert zeros.mean_difference == pytest.approx(2.1 / 8)


def test_ties_that_differ_by_rounding_are_ties():
    # Differences of 0.1 by many ways; all equal and positive: 2 of 2⁶ sign patterns are as extreme.
    test = paired_wilcoxon([0.3, 0.4, 0.8, 0.9, 0.2, 0.7], [0.2, 0.3, 0.7, 0.8, 0.1, 0.6])
    assert test.p == pytest.approx(2 / 64)


def test_too_few_pairs_have_no_p_but_a_reason():
    few = paired_wilcoxon([1, 2, 3, 4, 5], [0, 1.5, 2, 3, 1])
    assert math.isnan(few.p)
    assert few.reason.startswith("5 of 5 pairs differ")
    same = paired_wilcoxon([1, 2], [1, 2])
    assert math.isnan(same.p)
    assert (same.zeros, same.reason) == (2, "no pair differs")
    none = paired_wilcoxon([], [])
    assert (none.n, none.reason) == (0, "no pairs")
    assert math.isnan(none.mean_difference)
    with pytest.raises(DataError, match="pairs"):
        paired_wilcoxon([1], [1, 2])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=6, max_size=8))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_two_does_not_matter(pairs):
    one, two = zip(*pairs, strict=True)
    assert paired_wilcoxon(one, two).p == pytest.approx(paired_wilcoxon(two, one).p, nan_ok=True)


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, and 0.04 raised to 0.06.
    assert holm([0.04, 0.01, NAN, 0.03]) == pytest.approx((0.06, 0.03, NAN, 0.06), nan_ok=True)
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()
    assert math.isnan(holm([NAN])[0])
    with pytest.raises(DataError, match="0 to 1"):
        holm([1.2])
