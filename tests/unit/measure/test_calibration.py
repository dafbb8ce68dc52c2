"""Calibration by hand: curve, errors, sums over images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.errors import DataError, GeometryError
from bids_scseg.measure.calibration import add, calibrate, calibration_sums


def _volume(values):
    return np.asarray(values, dtype=np.float32).reshape(1, 1, -1)


def test_curve_by_hand():
    # Two voxels at 0.25, one of them lesion; two at 0.75, both lesion; six of sure background, one lesion.
    probability = _volume([0.25, 0.25, 0.75, 0.75, 0, 0, 0, 0, 0, 0])
    truth = _volume([1, 0, 1, 1, 1, 0, 0, 0, 0, 0])
    found = calibrate(calibration_sums(truth, probability))
    assert found.voxels.tolist() == [0, 0, 2, 0, 0, 0, 0, 2, 0, 0]
    assert found.predicted[[2, 7]].tolist() == [0.25, 0.75]
    assert found.observed[[2, 7]].tolist() == [0.5, 1]
    assert math.isnan(found.observed[0])
    assert found.expected_error == pytest.approx(0.25)
    assert found.largest_error == pytest.approx(0.25)
    assert found.brier == pytest.approx((0.75**2 + 0.25**2 + 2 * 0.25**2) / 4)
    assert (found.certain_voxels, found.certain_lesion) == (6, 1)
    # All ten: 2 · 0.25 + 2 · 0.25, and one lesion voxel where none is expected.
    assert found.whole_error == pytest.approx(2 / 10)


def test_probability_1_belongs_to_the_last_bin_and_borders_to_the_upper():
    found = calibrate(calibration_sums(_volume([1, 1]), _volume([1.0, 0.5])))
    assert found.voxels.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_voxels_outside_do_not_count():
    inside = _volume([1, 0]) > 0
    sums = calibration_sums(_volume([1, 1]), _volume([0.9, 0.9]), inside=inside)
    assert sums.voxels.sum() == 1


def test_nothing_to_calibrate():
    found = calibrate(add([]))
    assert math.isnan(found.expected_error)
    assert math.isnan(found.whole_error)
    assert math.isnan(found.brier)


def test_what_is_no_probability_is_refused():
    with pytest.raises(DataError, match="0–1"):
        calibration_sums(_volume([1]), _volume([1.5]))
    with pytest.raises(DataError, match="0–1"):
        calibration_sums(_volume([1]), _volume([np.nan]))
    with pytest.raises(GeometryError, match="shape"):
        calibration_sums(_volume([1, 0]), _volume([1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_two_images_add_up_to_one(seed):
    rng = np.random.default_rng(seed)
    probability = rng.random((4, 5, 6)).astype(np.float32)
    truth = rng.random((4, 5, 6)) < probability
    whole = calibrate(calibration_sums(truth, probability))
    parts = [calibration_sums(truth[at], probability[at]) for at in (slice(0, 2), slice(2, 4))]
    assert calibrate(add(parts)).expected_error == pytest.approx(whole.expected_error)
    assert calibrate(add(parts)).brier == pytest.approx(whole.brier)
