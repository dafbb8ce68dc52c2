"""Distances and limits of agreement against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.errors import DataError, GeometryError
from bids_scseg.measure.agreement import limits_of_agreement, surface_distances


def _box(low, high, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_single_voxels_apart_by_the_spacing():
    one, two = _box((2, 2, 2), (3, 3, 3)), _box((2, 2, 5), (3, 3, 6))
    found = surface_distances(one, two, spacing=(1, 1, 0.5))
    assert (found.average, found.robust, found.largest) == (1.5, 1.5, 1.5)


def test_a_line_against_its_first_voxel():
    # Line of 5 voxels, 2 mm apart, against its first: 0, 2, 4, 6, 8 there, 0 back. Mean 20 / 6.
    line, first = _box((0, 0, 0), (1, 1, 5)), _box((0, 0, 0), (1, 1, 1))
    found = surface_distances(line, first, spacing=(1, 1, 2))
    assert found.average == pytest.approx(20 / 6)
    assert found.largest == 8
    assert found.robust == pytest.approx(6 + 0.8 * 2)  # 95 % of the way from the first to the fifth value


def test_the_inside_of_a_mask_is_no_surface():
    # A full cube and its hollow shell have the same outer surface, but the shell has an inner one too.
    cube = _box((2, 2, 2), (9, 9, 9))
    shell = cube & ~_box((4, 4, 4), (7, 7, 7))
    found = surface_distances(cube, cube, spacing=(1, 1, 1))
    assert found.largest == 0
    assert surface_distances(cube, shell, spacing=(1, 1, 1)).largest == 1


def test_empty_masks_have_no_distance():
    empty, box = _box((0, 0, 0), (0, 0, 0)), _box((2, 2, 2), (4, 4, 4))
    for pair in ((empty, box), (box, empty), (empty, empty)):
        assert math.isnan(surface_distances(*pair, spacing=(1, 1, 1)).average)
    with pytest.raises(GeometryError, match="shape"):
        surface_distances(box, box[:5], spacing=(1, 1, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.4))
def test_distances_are_symmetric_and_ordered(seed, density):
    one, two = np.random.default_rng(seed).random((2, 5, 6, 7)) < density
    there = surface_distances(one, two, spacing=(3, 0.5, 1))
    back = surface_distances(two, one, spacing=(3, 0.5, 1))
    if one.any() and two.any():
        assert there.average == pytest.approx(back.average)
        assert (there.robust, there.largest) == (back.robust, back.largest)
        assert 0 <= there.robust <= there.largest
        assert there.average <= there.largest + 1e-12


def test_limits_by_hand():
    # Differences 1, 2, 3: bias 2, deviation 1.
    found = limits_of_agreement([10, 20, 30], [11, 22, 33])
    assert (found.n, found.bias, found.deviation) == (3, 2, 1)
    assert (found.lower, found.upper) == pytest.approx((0.04, 3.96))
    # Variances 200/3 and 242/3, covariance 220/3, means 2 apart: 2 · 220/3 / (442/3 + 4).
    assert found.concordance == pytest.approx(440 / 454)


def test_perfect_and_degenerate_agreement():
    assert limits_of_agreement([1, 2], [1, 2]).concordance == 1
    assert math.isnan(limits_of_agreement([1, 1], [1, 1]).concordance)
    one = limits_of_agreement([1], [4])
    assert (one.bias, one.reason) == (3, "fewer than two pairs")
    assert math.isnan(limits_of_agreement([], []).bias)
    with pytest.raises(DataError, match="finite"):
        limits_of_agreement([1], [float("nan")])


@pytest.mark.slow
def test_another_implementation_agrees():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    one, two = np.random.default_rng(0).random((2, 10, 12, 14)) < 0.1
    found = surface_distances(one, two, spacing=(3, 0.5, 1))
    masks = [torch.from_numpy(mask)[None, None] for mask in (one, two)]
    options = {"include_background": True, "spacing": (3.0, 0.5, 1.0)}
    average = metrics.compute_average_surface_distance(*masks, symmetric=True, **options)
    robust = metrics.compute_hausdorff_distance(*masks, percentile=95, **options)
    assert found.average == pytest.approx(float(average), rel=1e-5)
    assert found.robust == pytest.approx(float(robust), rel=1e-5)
