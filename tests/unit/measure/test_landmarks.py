"""Levels and origin from labelled points."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.measure.landmarks import fit_landmarks, label_points
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid


def _points(**heights):
    return {int(name[1:]): [0.0, 0.0, s] for name, s in heights.items()}


def test_discs_give_levels_and_the_origin(make_geometry):
    marks = fit_landmarks(
        {"discs": _points(d3=60.0, d4=44.0, d5=30.0)}, geometry=make_geometry(), key="T2Sag"
    )
    assert marks.kind == "C2-C3 disc"
    assert marks.anatomical
    assert marks.origin_s_mm == pytest.approx(60)
    assert marks.find(52).name == "C3"  # disc n lies above vertebra n
    assert marks.find(43.9).name == "C4"
    assert marks.find(44.0).name == "C3"  # the lower border belongs to the level
    # The ends are continued by one level of the neighbour's height, and marked.
    assert marks.find(75.9).name == "C2"
    assert marks.find(16.1).name == "C5"
    assert marks.find(15.9) is None
    assert marks.find(76.1) is None
    assert [level.approximate for level in marks.levels] == [True, False, False, True]


def test_a_missing_disc_is_interpolated_and_marked(make_geometry):
    marks = fit_landmarks({"discs": _points(d3=60.0, d5=30.0)}, geometry=make_geometry(), key="T2Sag")
    level = marks.find(40)
    assert level is not None
    assert (level.name, level.top_s_mm, level.approximate) == ("C4", pytest.approx(45), True)


def test_vertebrae_have_borders_midway(make_geometry):
    marks = fit_landmarks(
        {"vertebrae": _points(v2=70.0, v3=52.0, v4=36.0)}, geometry=make_geometry(), key="T2Sag"
    )
    assert marks.kind == "C2-C3 disc"
    assert marks.origin_s_mm == pytest.approx(61)
    assert [level.name for level in marks.levels] == ["C2", "C3", "C4"]
    assert marks.levels[1].bottom_s_mm == pytest.approx(44)


def test_two_distant_vertebrae_give_approximate_levels_and_no_origin(make_geometry):
    """C2 and T2 alone do not say where the C2-C3 disc is."""
    geometry = make_geometry(slices=300)
    marks = fit_landmarks({"vertebrae": _points(v2=140.0, v9=14.0)}, geometry=geometry, key="T2Sag")
    assert marks.kind == "top of the prepared cord"
    assert not marks.anatomical
    assert marks.origin_s_mm == pytest.approx(149.75)
    assert marks.find(14.0).name == "T2"
    assert all(level.approximate for level in marks.levels)


def test_pontomedullary_junction_is_second_choice_and_nothing_is_last(make_geometry):
    geometry = make_geometry()
    marks = fit_landmarks({"discs": _points(d50=78.0)}, geometry=geometry, key="T2Sag")
    assert (marks.kind, marks.origin_s_mm) == ("pontomedullary junction", pytest.approx(78))
    assert marks.levels == ()
    none = fit_landmarks({}, geometry=geometry, key="T2Sag")
    assert none.kind == "top of the prepared cord"
    assert none.origin_s_mm == pytest.approx(79.75)  # upper face of slice 159
    assert none.find(10) is None


def test_labels_out_of_order_give_no_levels(make_geometry):
    marks = fit_landmarks({"discs": _points(d3=30.0, d4=44.0)}, geometry=make_geometry(), key="T2Sag")
    assert marks.levels == ()


def test_points_are_projected_perpendicularly(make_geometry):
    """In a cord with slope 1 towards anterior, a point 10 mm in front of it projects 5 mm further up."""
    geometry = make_geometry(slope=(0.0, 1.0))
    marks = fit_landmarks({"discs": {3: [0.0, 40.0, 30.0]}}, geometry=geometry, key="T2Sag")
    assert marks.origin_s_mm == pytest.approx(35, abs=0.01)


def test_points_of_an_image():
    data = np.zeros((6, 6, 6), np.int16)
    data[1, 2, 3] = 4
    data[4, 4, 0] = data[4, 4, 2] = 7
    affine = np.diag([2.0, 2, 2, 1])
    grid = Grid(shape=data.shape, affine=affine)
    points = label_points(data, grid)
    assert sorted(points) == [4, 7]
    assert points[4] == pytest.approx([2, 4, 6])
    assert points[7] == pytest.approx([8, 8, 2])  # the middle of the two voxels
    shifted = np.eye(4)
    shifted[2, 3] = 5.0  # slab world = reference world + 5 mm
    assert label_points(data, grid, xfm=shifted)[4] == pytest.approx([2, 4, 1])
    assert label_points(np.zeros_like(data), grid) == {}


def test_real_discs(real_dev):
    path = real_dev / "derivatives/labels/sub-unf02/anat/sub-unf02_T2w_label-discs_dlabel.nii.gz"
    if not path.is_file():
        pytest.skip("no disc labels there")
    image = nib.load(path)
    points = label_points(np.asarray(image.dataobj), Grid(shape=image.shape, affine=image.affine))
    low = min(point[2] for point in points.values()) - 20
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = [-12, -12, low]
    line = Centerline(s_mm=np.array([low]), xy_mm=np.zeros((1, 2)), measured=np.ones(1, bool))
    geometry = Geometry(
        frame="centerline",
        anchor="T2Sag",
        grid=Grid(shape=(48, 48, 400), affine=affine),
        slabs=(),
        centerlines={"T2Sag": line},
    )
    marks = fit_landmarks({"discs": points}, geometry=geometry, key="T2Sag")
    assert marks.kind == "C2-C3 disc"
    heights = [level.top_s_mm - level.bottom_s_mm for level in marks.levels]
    assert [level.name for level in marks.levels][1:4] == ["C3", "C4", "C5"]
    assert all(10 < height < 30 for height in heights)
