"""Lesion statistics against numbers worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bids_scseg.measure.cordcoords import cord_column, cord_coordinates, slice_arc_mm
from bids_scseg.measure.landmarks import Landmarks, Level
from bids_scseg.measure.lesions import LESION_COLUMNS, lesion_columns, lesion_table
from bids_scseg.measure.schema import data_dictionary

FOV = Landmarks(origin_s_mm=80.0, kind="top of the prepared cord")
NAMES = ("T2Sag", "T2Ax")


def _table(labels, geometry, cord, *, probability=None, image=None, coverage=None, landmarks=FOV):
    shape = geometry.grid.shape
    return lesion_table(
        labels,
        (labels > 0).astype(np.float32) if probability is None else probability,
        image=np.zeros((2, *shape), np.float32) if image is None else image,
        coverage=np.ones((2, *shape), bool) if coverage is None else coverage,
        cord=cord,
        geometry=geometry,
        anchor="T2Sag",
        sequences=NAMES,
        landmarks=landmarks,
    )


def test_box_in_a_straight_cord(make_geometry, round_cord):
    geometry = make_geometry()
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[26:30, 18:22, 60:80] = 1  # 2 x 2 x 10 mm; centre i 27.5, j 19.5, k 69.5
    row = _table(labels, geometry, round_cord(geometry)).iloc[0]
    assert row["name"] == "lesion-01"
    assert row["volume_mm3"] == pytest.approx(40)
    assert row["length_mm"] == pytest.approx(10)
    assert row["max_equivalent_diameter_mm"] == pytest.approx(2 * np.sqrt(4 / np.pi))
    # (27.5 - 23.5) / 2 = 2 mm right, (19.5 - 23.5) / 2 = 2 mm behind, s = 34.75 mm
    assert row[["centre_x_mm", "centre_y_mm", "centre_z_mm"]].tolist() == pytest.approx([2, -2, 34.75])
    assert row["arc_length_mm"] == pytest.approx(80 - 34.75)
    assert not row["arc_origin_anatomical"]
    assert row["radius_mm"] == pytest.approx(np.sqrt(8))
    assert row["radius_normalised"] == pytest.approx(np.sqrt(8) / 5, rel=0.02)
    assert row["angle_deg"] == pytest.approx(135)
    assert row["max_axial_damage_ratio"] == pytest.approx(4 / (25 * np.pi), rel=0.02)
    assert row["in_cord_fraction"] == 1
    assert np.isnan(row["dorsal_bridge_mm"])  # its inner face is 1 mm off the midsagittal plane
    assert row["level"] is None or np.isnan(row["level"])


def test_bridges_in_the_midsagittal_plane(make_geometry, round_cord):
    geometry = make_geometry()
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[22:26, 16:26, 60:80] = 1  # front -4 to +1 mm
    labels[22:26, 15:16, 70:72] = 1  # at its worst -4.5 mm
    row = _table(labels, geometry, round_cord(geometry)).iloc[0]
    assert row["dorsal_bridge_mm"] == pytest.approx(0.5, abs=0.15)  # surface at -5 mm
    assert row["ventral_bridge_mm"] == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize("slope", [(0.0, 0.5), (0.4, 0.0), (0.2, -0.4)])
def test_cylinder_in_a_tilted_cord(make_geometry, offsets, slope):
    """Lesion and cord are cylinders about the tilted axis, cut perpendicularly to it."""
    geometry = make_geometry(slope=slope)
    cosine = 1 / np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2)
    index = np.stack(np.indices(geometry.grid.shape), axis=-1).reshape(-1, 3)
    points = cord_coordinates(index, geometry, key="T2Sag")
    shape = geometry.grid.shape
    arc = ((points.s_mm - 40) / cosine).reshape(shape)
    radius = np.hypot(points.u_mm, points.v_mm).reshape(shape)
    off = np.hypot(points.u_mm - 1.5, points.v_mm).reshape(shape)
    cord = (radius <= 5).astype(np.float32)
    labels = ((off <= 2.5) & (np.abs(arc) <= 6)).astype(np.int32)
    row = _table(labels, geometry, cord).iloc[0]
    assert row["volume_mm3"] == pytest.approx(np.pi * 2.5**2 * 12, rel=0.03)
    assert row["length_mm"] == pytest.approx(12, abs=0.5)
    assert row["max_equivalent_diameter_mm"] == pytest.approx(5, rel=0.04)
    assert row["max_axial_damage_ratio"] == pytest.approx(0.25, rel=0.06)
    assert row["radius_mm"] == pytest.approx(1.5, abs=0.05)
    assert row["angle_deg"] == pytest.approx(90, abs=2)
    assert row["arc_length_mm"] == pytest.approx(40 / cosine, abs=0.1)  # origin at s = 80, centre at s = 40
    assert slice_arc_mm(geometry, "T2Sag").sum() == pytest.approx(80 / cosine)


@pytest.mark.parametrize(
    ("right", "front", "column"),
    [
        (0, -3, "dorsal"),
        (1, -3, "dorsal"),
        (0, 3, "ventral"),
        (3, 0, "lateral right"),
        (-3, -1, "lateral left"),
        (0.4, 0.4, "central"),
    ],
)
def test_columns_by_construction(make_geometry, offsets, round_cord, right, front, column):
    geometry = make_geometry(slices=80)
    x, y, s = offsets(geometry)
    labels = ((np.hypot(x - right, y - front) <= 1.3) & (np.abs(s - 20) < 5)).astype(np.int32)
    assert _table(labels, geometry, round_cord(geometry)).iloc[0]["column"] == column


def test_columns_follow_the_ellipse():
    # In a cord twice as wide as deep (1, 1) scales to (1/6, 1/3): 27° from the ventral midline.
    assert cord_column(1.0, 1.0, half_u_mm=6, half_v_mm=3) == "ventral"
    assert cord_column(-3.0, 0.5, half_u_mm=6, half_v_mm=3) == "lateral left"
    assert cord_column(1.0, 1.0, half_u_mm=float("nan"), half_v_mm=3) is None


def test_contrast_and_coverage(make_geometry, round_cord):
    geometry = make_geometry()
    cord = round_cord(geometry)
    rng = np.random.default_rng(0)
    image = rng.normal(1.0, 0.5, (2, *geometry.grid.shape)).astype(np.float32)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[22:28, 20:26, 60:80] = 1
    image[0][labels == 1] += 2.0
    image[0][:, :, :30] = 50  # farther than 10 mm from the lesion: must not matter
    image[0][cord < 0.5] = -50  # nor may what is not cord
    coverage = np.ones((2, *geometry.grid.shape), bool)
    coverage[1][:, :, 65:] = False
    row = _table(labels, geometry, cord, image=image, coverage=coverage).iloc[0]
    assert row["T2Sag_covered_fraction"] == 1
    assert row["T2Sag_contrast"] == pytest.approx(2, abs=0.05)
    assert row["T2Sag_cnr"] == pytest.approx(4, abs=0.15)
    assert row["T2Ax_covered_fraction"] == pytest.approx(0.25)  # slices 60-64 of 60-79
    absent = np.zeros_like(coverage)
    row = _table(labels, geometry, cord, image=image, coverage=absent).iloc[0]
    assert row["T2Ax_covered_fraction"] == 0
    assert np.isnan(row["T2Ax_contrast"])


def test_without_a_cord_mask_what_needs_one_is_missing(make_geometry):
    geometry = make_geometry(slices=60)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[26:30, 18:22, 20:40] = 1
    row = _table(labels, geometry, np.zeros(geometry.grid.shape)).iloc[0]
    assert row["volume_mm3"] == pytest.approx(40)
    for name in ("max_axial_damage_ratio", "radius_normalised", "in_cord_fraction", "T2Sag_cnr"):
        assert np.isnan(row[name])
    assert row["radius_mm"] > 0


def test_a_lesion_that_sticks_out_of_the_cord(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[:, :, 20:40] = 1  # far wider than the cord
    row = _table(labels, geometry, round_cord(geometry)).iloc[0]
    assert row["max_axial_damage_ratio"] == pytest.approx(1)
    assert row["in_cord_fraction"] == pytest.approx(25 * np.pi / 24**2, rel=0.02)
    assert row["dorsal_bridge_mm"] == 0


def test_a_lesion_cut_where_the_cord_mask_ends_says_so(make_geometry, round_cord):
    geometry = make_geometry(slices=60)
    cord = round_cord(geometry)
    cord[:, :, 40:] = 0
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[22:26, 22:26, 34:40] = 1
    labels[22:26, 22:26, 10:20] = 2
    assert _table(labels, geometry, cord)["at_mask_end"].tolist() == [True, False]


def test_levels_and_origin(make_geometry, round_cord):
    geometry = make_geometry()
    marks = Landmarks(
        origin_s_mm=50.0,
        kind="C2-C3 disc",
        levels=(
            Level(name="C3", top_s_mm=50.0, bottom_s_mm=33.0, approximate=False),
            Level(name="C4", top_s_mm=33.0, bottom_s_mm=20.0, approximate=True),
        ),
    )
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[22:26, 22:26, 80:90] = 1  # s 42.25
    labels[22:26, 22:26, 45:51] = 2  # s 23.75
    labels[22:26, 22:26, 5:9] = 3
    table = _table(labels, geometry, round_cord(geometry), landmarks=marks)
    assert table["level"].tolist()[:2] == ["C3", "C4"]
    assert table["level"].isna().tolist() == [False, False, True]
    assert table["level_approximate"].tolist()[:2] == [False, True]
    assert table["arc_length_mm"].tolist() == pytest.approx([50 - 42.25, 50 - 23.75, 50 - 3.25])
    assert table["arc_origin_anatomical"].all()


def test_no_lesions_give_an_empty_frame_of_the_same_types(make_geometry, round_cord):
    geometry = make_geometry(slices=40)
    labels = np.zeros(geometry.grid.shape, np.int32)
    empty = _table(labels, geometry, round_cord(geometry))
    labels[20:24, 20:24, 10:20] = 1
    full = _table(labels, geometry, round_cord(geometry))
    assert len(empty) == 0
    assert (empty.dtypes == full.dtypes).all()
    assert list(empty.columns) == [column.name for column in lesion_columns(NAMES)]


def test_the_schema_is_fixed_and_described():
    names = [column.name for column in LESION_COLUMNS]
    assert names[:4] == ["index", "name", "volume_mm3", "length_mm"]
    assert len(set(names)) == len(names)
    described = data_dictionary(lesion_columns(NAMES))
    assert all(len(entry["Description"]) > 15 for entry in described.values())
    assert described["volume_mm3"]["Units"] == "mm^3"
    # BIDS defines these two columns itself and wants its own types.
    assert (described["index"]["Format"], described["name"]["Format"]) == ("integer", "string")


def test_speed(make_geometry, round_cord):
    """A long cord with 12 lesions and six sequences stays well within three seconds."""
    geometry = make_geometry(slices=700)
    labels = np.zeros(geometry.grid.shape, np.int32)
    for number in range(12):
        labels[22:28, 18:24, 650 - 50 * number : 685 - 50 * number] = number + 1
    shape = geometry.grid.shape
    start = time.perf_counter()
    table = lesion_table(
        labels,
        (labels > 0).astype(np.float32),
        image=np.zeros((6, *shape), np.float32),
        coverage=np.ones((6, *shape), bool),
        cord=round_cord(geometry),
        geometry=geometry,
        anchor="T2Sag",
        sequences=("a", "b", "c", "d", "e", "f"),
        landmarks=FOV,
    )
    assert len(table) == 12
    assert time.perf_counter() - start < 6  # twice the budget: the machine may be busy
