"""Metrics profiles against their table of cases; a box is a range of slices of a 2 x 2 voxel column."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_scseg.errors import DataError, GeometryError
from bids_scseg.measure.overlap import (
    find_instances,
    froc_curve,
    match_lesions,
    overlap_table,
    score,
)
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.space.grid import Grid

NAN = float("nan")
ORDER = ("walsh2024", "anima", "neuropoly", "msms", "panoptica")


def _column(*ranges):
    mask = np.zeros((6, 6, 80), bool)
    for start, stop in ranges:
        mask[2:4, 2:4, start:stop] = True
    return mask


# F1 of each profile; voxels of 1 mm³, so a range of n slices holds 4 n mm³.
CASES = {
    "both empty": ((), (), (NAN, 0, 1, 1, NAN)),
    "truth empty, 1 prediction": ((), ((10, 18),), (NAN, 0, 0, 0, 0)),
    "truth present, prediction empty": (((10, 18),), (), (0, 0, 0, 0, 0)),
    # 88 voxels over 40 + 40: intersection over union 40/88 = 0.45 with each
    "one prediction spans 2 truths": (((10, 20), (22, 32)), ((10, 32),), (1, 1, 1, 1, 0)),
    # 36 + 36 of 80: 0.45 each
    "1 truth split into 2 predictions": (((10, 30),), ((10, 19), (21, 30)), (1, 1, 1, 1, 0)),
    # 20 within 80: 75 % outside, intersection over union 0.25
    "prediction 4x too long, contains truth": (((20, 25),), ((15, 35),), (0, 0, 1, 1, 0)),
    # 12 of 100 voxels
    "prediction = 12 % of truth, inside it": (((10, 35),), ((12, 15),), (1, 0, 1, 0, 0)),
    # 4 of the truth's 32 voxels, 156 of the prediction's 160 outside
    "big prediction touching truth (12.5 % of it)": (((10, 18),), ((17, 57),), (0, 0, 1, 0, 0)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("profile", ORDER)
def test_table_of_cases(case, profile):
    truth, prediction, expected = CASES[case]
    result = score(_column(*truth), _column(*prediction), profile=profile, voxel_volume_mm3=1.0)
    assert result.profile == profile
    assert result.f1 == pytest.approx(expected[ORDER.index(profile)], nan_ok=True)


def test_numbers_beside_f1():
    truth, prediction = _column((10, 20), (30, 40)), _column((10, 15), (50, 60))
    result = score(truth, prediction, profile="walsh2024", voxel_volume_mm3=0.5)
    assert result.dice == pytest.approx(2 * 20 / (80 + 60))
    assert (result.truth_mm3, result.predicted_mm3, result.difference_mm3) == (40, 30, -10)
    assert (result.truth_count, result.predicted_count, result.count_difference) == (2, 2, 0)
    assert (result.found, result.false_positives) == (1, 1)
    assert (result.sensitivity, result.precision, result.f1) == (0.5, 0.5, 0.5)


def test_precision_alone_is_undefined_where_nothing_is_predicted():
    result = score(_column((10, 20)), _column(), profile="walsh2024", voxel_volume_mm3=1)
    assert result.sensitivity == 0
    assert math.isnan(result.precision)
    assert result.f1 == 0
    assert result.dice == 0


def test_limits_of_walsh_are_inclusive_for_found_and_exclusive_for_false():
    # Exactly 10 % of 80 voxels found; the prediction of 8 lies wholly inside.
    ten = score(_column((0, 20)), _column((0, 2)), profile="walsh2024", voxel_volume_mm3=1)
    assert ten.found == 1
    # 12 of 40 voxels inside: exactly 70 % outside is not over 70 %.
    seventy = score(_column((0, 3)), _column((0, 10)), profile="walsh2024", voxel_volume_mm3=1)
    assert seventy.false_positives == 0
    # Anima is strict at 10 %.
    assert score(_column((0, 20)), _column((0, 2)), profile="anima", voxel_volume_mm3=1).found == 0


def test_anima_takes_predictions_until_65_percent_of_the_overlap():
    # Truth 40 slices. The first prediction covers 20 of them from inside; the second 8, but lies 75 %
    # outside. 20 of 28 slices are 71 % of the overlap: the second is not asked.
    truth = _column((0, 40))
    good = score(truth, _column((2, 22), (32, 64)), profile="anima", voxel_volume_mm3=1)
    assert good.found == 1
    # With 12 slices (60 %) it is asked, and spoils it.
    bad = score(truth, _column((2, 14), (32, 64)), profile="anima", voxel_volume_mm3=1)
    assert bad.found == 0


def test_anima_drops_small_components_on_both_sides():
    truth = np.zeros((9, 9, 9), bool)
    truth[1, 1, 1:4] = True  # 3 mm³: dropped
    truth[5, 5, 1:5] = True  # 4 mm³: kept
    result = score(truth, truth, profile="anima", voxel_volume_mm3=1)
    assert (result.truth_count, result.predicted_count, result.f1) == (1, 1, 1)


def _header_volume(spacing, degrees=0.0):
    """mm³ of a voxel by a header: directions and spacings in float32."""
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [degrees, degrees / 2, -degrees / 3], degrees=True)
    affine[:3, :3] = rotation.as_matrix() @ np.diag(spacing)
    return Grid(shape=(8, 8, 8), affine=affine.astype(np.float32)).voxel_volume


@pytest.mark.parametrize("degrees", [0, 3, 7, 11, 15, 20, 25, 90])
@pytest.mark.parametrize(
    ("spacing", "voxels"),
    [((1, 1, 3), 1), ((0.6, 0.5, 10), 1), ((0.5, 0.5, 4), 3), ((1, 1, 1), 3), ((0.5, 0.5, 3), 4),
     ((0.5, 0.5, 0.5), 24), ((0.3, 0.4, 0.5), 50), ((0.2, 0.2, 0.25), 300)],
)  # fmt: skip
def test_exactly_3_mm3_are_dropped_whatever_the_header_rounds(spacing, voxels, degrees):
    volume = _header_volume(spacing, degrees)
    assert voxels * volume == pytest.approx(3, rel=1e-6)
    mask = np.zeros((5, 1, voxels + 2), bool)
    mask[1, 0, :voxels] = True  # 3 mm³
    mask[3, 0, : voxels + 1] = True  # one voxel more
    found = find_instances(mask, profile=PROFILES["anima"], voxel_volume_mm3=volume)
    assert not found[1].any()
    assert (found[3] > 0).sum() == voxels + 1
    result = score(mask, mask, profile="anima", voxel_volume_mm3=volume)
    assert (result.truth_count, result.predicted_count, result.f1) == (1, 1, 1)


def test_without_a_smallest_volume_every_voxel_is_kept():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    assert find_instances(mask, profile=PROFILES["neuropoly"], voxel_volume_mm3=1e-3).max() == 1


@pytest.mark.parametrize(("profile", "count"), [("walsh2024", 1), ("anima", 2), ("neuropoly", 2)])
def test_connectivity(profile, count):
    mask = np.zeros((9, 9, 9), bool)
    mask[1:3, 1:3, 1:3] = mask[3:5, 3:5, 3:5] = True  # touch at a corner
    rules = PROFILES[profile]
    assert find_instances(mask, profile=rules, voxel_volume_mm3=1).max() == count


def test_panoptica_pairs_each_lesion_once():
    # Each half overlaps the truth at exactly 0.5: only one of them may have it.
    truth = np.zeros((4, 4, 40), np.int32)
    truth[:, :, 0:20] = 1
    halves = np.zeros_like(truth)
    halves[:, :, 0:10], halves[:, :, 10:20] = 1, 2
    found, right = PROFILES["panoptica"].match(overlap_table(truth, halves))
    assert found.tolist() == [True]
    assert right.tolist() == [True, False]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="walsh2024"):
        score(_column(), _column(), profile="nobody", voxel_volume_mm3=1)
    with pytest.raises(GeometryError, match="shape"):
        score(_column(), np.zeros((2, 2, 2)), profile="msms", voxel_volume_mm3=1)


def test_froc_curve_by_hand():
    # Image 1: two true lesions; predictions 0.9 (hit), 0.6 (nothing there), 0.4 (hit). Image 2: none; one
    # prediction of 0.6. At 0.9: 1 of 2, no false one; at 0.6: 2 false in 2 images; at 0.4: 2 of 2.
    first = np.array([[0, 0, 64, 0], [0, 128, 0, 0], [0, 0, 0, 128]])
    second = np.array([[500, 32]])
    match = PROFILES["walsh2024"].match
    curve = froc_curve([first, second], [[0.9, 0.6, 0.4], [0.6]], match=match)
    assert curve.cuts.tolist() == [0.9, 0.6, 0.4]
    assert curve.false_positives.tolist() == [0, 1, 1]
    assert curve.sensitivity.tolist() == [0.5, 0.5, 1]
    assert curve.score == pytest.approx((0.5 + 0.5 + 1 + 1 + 1) / 5)
    assert froc_curve([], [], match=match).cuts.size == 0
    assert froc_curve([np.array([[900], [32]])], [[]], match=match).score == 0  # nothing predicted
    assert math.isnan(froc_curve([second], [[0.6]], match=match).score)  # nothing to find


def test_a_lesion_below_the_cut_is_background():
    # One true lesion of 100 voxels, half covered by each of two predictions. With one of them, 0.5 is found.
    table = np.array([[900, 0, 0], [0, 50, 50]])
    curve = froc_curve([table], [[0.8, 0.3]], match=PROFILES["panoptica"].match)
    assert curve.sensitivity.tolist() == [1, 1]
    # The second one then is left without a partner.
    assert curve.false_positives.tolist() == [0, 1]


def test_matched_lesions():
    found = match_lesions(
        _column((10, 20), (30, 40)), _column((50, 60)), profile="walsh2024", voxel_volume_mm3=1
    )
    assert found.found.tolist() == [False, False]
    assert found.right.tolist() == [False]
    assert found.table.tolist() == [[2760, 40], [40, 0], [40, 0]]


def test_the_table_of_cases_is_complete():
    """Eight cases under five profiles, each with its boxes."""
    assert len(CASES) == 8
    assert set(ORDER) == set(PROFILES)
    assert all(len(expected) == len(ORDER) for _, _, expected in CASES.values())


@st.composite
def _masks(draw):
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    return rng.random((2, 6, 6, 8)) < draw(st.floats(0.02, 0.3))


@given(_masks(), st.sampled_from(ORDER))
def test_dice_is_symmetric_and_perfect_on_itself(masks, profile):
    one, two = masks
    ab, ba = (score(*pair, profile=profile, voxel_volume_mm3=4) for pair in ((one, two), (two, one)))
    if one.any() and two.any():
        assert ab.dice == pytest.approx(ba.dice)
    if one.any():
        itself = score(one, one, profile=profile, voxel_volume_mm3=4)
        assert itself.dice == itself.f1 == 1


@given(_masks(), st.sampled_from(ORDER))
def test_f1_does_not_depend_on_the_order_of_lesions(masks, profile):
    """Mirroring both masks renumbers the lesions and changes nothing else."""
    there = score(*masks, profile=profile, voxel_volume_mm3=4)
    mirrored = score(*(mask[::-1, ::-1, ::-1] for mask in masks), profile=profile, voxel_volume_mm3=4)
    if profile != "panoptica":  # ties at exactly 0.5 may pair differently, with the same counts
        assert there == mirrored or math.isnan(there.f1)
    assert there.f1 == pytest.approx(mirrored.f1, nan_ok=True)
