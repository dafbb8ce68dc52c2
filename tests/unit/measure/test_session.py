"""The session's row."""

from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.measure.landmarks import Landmarks, Level
from bids_scseg.measure.lesions import lesion_table
from bids_scseg.measure.schema import to_frame
from bids_scseg.measure.session import Provenance, _near_threshold, session_columns, session_row

NAMES = ("T2Sag", "T2Ax")
PROVENANCE = Provenance(threshold=0.4, model="cord-lesion", model_sha256="ab12", version="0.1.0")
MARKS = Landmarks(
    origin_s_mm=60.0,
    kind="C2-C3 disc",
    levels=(
        Level(name="C3", top_s_mm=60.25, bottom_s_mm=40.25, approximate=False),
        Level(name="C4", top_s_mm=40.25, bottom_s_mm=20.25, approximate=False),
        Level(name="C5", top_s_mm=20.25, bottom_s_mm=0.25, approximate=False),
    ),
)


def _row(geometry, labels, cord, coverage, *, probability=None, landmarks=MARKS, flags=()):
    probability = (labels > 0).astype(np.float32) if probability is None else probability
    shared = {
        "coverage": coverage,
        "cord": cord,
        "geometry": geometry,
        "anchor": "T2Sag",
        "sequences": NAMES,
        "landmarks": landmarks,
    }
    image = np.zeros((2, *geometry.grid.shape), np.float32)
    lesions = lesion_table(labels, probability, image=image, **shared)
    return session_row(lesions, labels, probability, provenance=PROVENANCE, flags=flags, **shared)


def _empty(geometry):
    shape = geometry.grid.shape
    return np.zeros(shape, np.int32), np.ones((2, *shape), bool)


def test_totals_and_levels(make_geometry, round_cord):
    geometry = make_geometry()
    labels, coverage = _empty(geometry)
    cord = round_cord(geometry)
    labels[22:26, 22:26, 90:110] = 1  # 40 mm³ at s 45-54.5: C3
    labels[22:26, 22:26, 70:80] = 2  # 20 mm³ at s 35-39.5: C4
    row = _row(geometry, labels, cord, coverage, flags=("cord cut at the top", "seam"))
    area = cord[:, :, 0].sum() * 0.25
    assert row["lesion_count"] == 2
    assert row["lesion_volume_mm3"] == pytest.approx(60)
    assert row["cord_volume_mm3"] == pytest.approx(area * 80)
    assert row["lesion_load"] == pytest.approx(60 / (area * 80))
    assert row["cord_length_mm"] == row["examined_length_mm"] == pytest.approx(80)
    assert row["not_examined_mm"] == 0
    assert row["beyond_masks_mm"] == pytest.approx(100 - 80, abs=5)  # what the slabs show above and below
    assert (row["C3_lesion_count"], row["C3_lesion_volume_mm3"]) == (1, pytest.approx(40))
    assert row["C3_lesion_load"] == pytest.approx(40 / (area * 20))
    assert (row["C4_lesion_count"], row["C5_lesion_count"], row["C6_lesion_count"]) == (1, 0, None)
    assert row["flags"] == "cord cut at the top; seam"
    assert row["sequences"] == "T2Sag+T2Ax"
    assert row["model_sha256"] == "ab12"


def test_a_session_without_lesions_is_a_row_of_zeros(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    labels, coverage = _empty(geometry)
    row = _row(geometry, labels, round_cord(geometry), coverage)
    for name in (
        "lesion_count",
        "lesion_volume_mm3",
        "lesion_load",
        "C5_lesion_count",
        "near_threshold_mass",
    ):
        assert row[name] == 0
    assert row["flags"] is None


def test_gaps_are_not_examined(make_geometry, round_cord):
    """T2Ax covers slices 0-59 and 100-159, T2Sag nothing; the mask, made on T2Ax, ends at the gap as well."""
    geometry = make_geometry()
    labels, coverage = _empty(geometry)
    coverage[0] = False
    coverage[1][:, :, 60:100] = False
    cord = round_cord(geometry) * coverage[1]
    row = _row(geometry, labels, cord, coverage)
    assert row["cord_length_mm"] == pytest.approx(80)
    assert row["examined_length_mm"] == pytest.approx(60)
    assert row["not_examined_mm"] == pytest.approx(20)
    assert row["T2Sag_examined_mm"] == 0
    assert row["T2Ax_examined_mm"] == pytest.approx(60)
    assert row["sequences"] == "T2Ax"
    # C4 lies in slices 41-80, half of it examined; a level wholly in the gap is missing, not zero.
    assert row["C4_lesion_count"] == 0
    gap = Landmarks(
        origin_s_mm=60,
        kind="C2-C3 disc",
        levels=(Level(name="C4", top_s_mm=49, bottom_s_mm=31, approximate=False),),
    )
    assert _row(geometry, labels, cord, coverage, landmarks=gap)["C4_lesion_count"] is None


def test_lengths_follow_the_cord(make_geometry, round_cord):
    geometry = make_geometry(slope=(0.0, 0.75))  # 1.25 mm of cord per mm of height
    labels, coverage = _empty(geometry)
    row = _row(geometry, labels, round_cord(geometry), coverage)
    assert row["examined_length_mm"] == pytest.approx(100)


def test_half_of_the_cord_covered_counts_less_does_not(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    labels, coverage = _empty(geometry)
    coverage[0][:, :20] = False  # the dorsal edge of the cord alone: y from -5 to -2 mm
    coverage[1][:, :30] = False  # all but the ventral edge
    row = _row(geometry, labels, round_cord(geometry), coverage)
    assert row["T2Sag_examined_mm"] == pytest.approx(30)
    assert row["T2Ax_examined_mm"] == 0


def test_nothing_examined_is_not_no_lesion(make_geometry):
    geometry = make_geometry(slices=60)
    labels, coverage = _empty(geometry)
    row = _row(geometry, labels, np.zeros(geometry.grid.shape), np.zeros_like(coverage))
    assert row["lesion_count"] is None
    assert row["examined_length_mm"] == 0


def test_probability_near_the_threshold(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    labels, coverage = _empty(geometry)
    probability = np.zeros(geometry.grid.shape, np.float32)
    probability[20, 20, 10:18] = 0.45  # 8 voxels within 0.1 of 0.4
    probability[21, 20, 10:14] = 0.9
    row = _row(geometry, labels, round_cord(geometry), coverage, probability=probability)
    assert row["near_threshold_volume_mm3"] == pytest.approx(1.0)
    assert row["near_threshold_mass"] == pytest.approx(3.6 / 7.2)


@pytest.mark.parametrize(("threshold", "near"), [(0.05, 1.0), (0.1, 1.0), (0.11, 1.0), (0.5, 0.0)])
def test_sure_background_is_not_near_a_low_threshold(threshold, near):
    nothing = np.zeros((8, 8, 40), np.float32)
    found = _near_threshold(nothing, threshold, 0.125)
    assert found == {"near_threshold_volume_mm3": 0, "near_threshold_mass": 0}
    nothing[:, :, :10] = 0.005  # background that is not quite zero
    assert _near_threshold(nothing, threshold, 0.125)["near_threshold_volume_mm3"] == 0
    nothing[4, 4, 20:28] = 0.02
    assert _near_threshold(nothing, threshold, 0.125)["near_threshold_volume_mm3"] == near


def test_the_row_fills_the_schema(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    labels, coverage = _empty(geometry)
    row = _row(geometry, labels, round_cord(geometry), coverage)
    columns = session_columns(NAMES)
    assert set(row) == {column.name for column in columns}
    frame = to_frame([row], columns)
    assert frame["lesion_count"].dtype == "Int64"
    assert frame["C3_lesion_load"].isna().all()
