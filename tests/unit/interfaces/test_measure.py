"""Landmarks from label files: those drawn on a slab move with the slab."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.interfaces.measure import (
    MeasureLesions,
    extent_notes,
    landmarks_from_json,
    read_json,
    read_landmarks,
    write_json,
)
from bids_scseg.interfaces.sct import LabelDiscs
from bids_scseg.measure.landmarks import Landmarks
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid
from bids_scseg.workflows.session import DISCS_TO_MEASURE

SHIFT_MM = 6.0  # the lower slab's world lies so much higher than the reference world


def grid_at(low_mm: float) -> Grid:
    affine = np.eye(4)
    affine[:3, 3] = [-10, -10, low_mm]
    return Grid(shape=(20, 20, 60), affine=affine)


@pytest.fixture
def geometry() -> Geometry:
    """A straight cord along S; the upper slab where its header says, the lower one moved by 6 mm."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = [-11.75, -11.75, -60.0]
    moved = np.eye(4)
    moved[2, 3] = SHIFT_MM
    s = np.linspace(-60, 60, 20)
    line = Centerline(s_mm=s, xy_mm=np.zeros((20, 2)), measured=np.ones(20, bool))
    return Geometry(
        frame="centerline",
        anchor="T2Sag",
        grid=Grid(shape=(48, 48, 240), affine=affine),
        slabs=(
            Slab(key="T2Sag", index=0, file="upper", grid=grid_at(0.0)),
            Slab(key="T2Sag", index=1, file="lower", grid=grid_at(-50.0), xfm=moved),
        ),
        centerlines={"T2Sag": line},
    )


def write_labels(path, low_mm, **voxels):
    data = np.zeros((20, 20, 60), np.uint8)
    for value, k in voxels.items():
        data[10, 10, k] = int(value.removeprefix("disc"))
    nib.save(nib.Nifti1Image(data, grid_at(low_mm).affine), path)
    return str(path)


def test_labels_of_a_registered_slab_move_with_it(geometry, tmp_path):
    upper = write_labels(tmp_path / "upper_seg-discs_dseg.nii.gz", 0.0, disc3=40, disc4=20)
    # world -50 + 46 = -4 in the slab's world is -10 in the reference world
    lower = write_labels(tmp_path / "lower_seg-discs_dseg.nii.gz", -50.0, disc5=46)
    marks, warnings = read_landmarks([upper, lower], geometry)
    assert warnings == []
    assert (marks.kind, marks.origin_s_mm) == ("C2-C3 disc", pytest.approx(40.0))
    levels = {level.name: (level.top_s_mm, level.bottom_s_mm) for level in marks.levels}
    assert levels["C4"] == (pytest.approx(20.0), pytest.approx(-10.0))


def test_labels_on_a_lattice_of_their_own_stay_in_the_reference_world(geometry, tmp_path):
    own = write_labels(tmp_path / "own_seg-discs_dseg.nii.gz", -20.0, disc3=50, disc4=10)
    marks, _ = read_landmarks([own], geometry)
    assert marks.origin_s_mm == pytest.approx(30.0)


def test_the_first_file_counts_where_two_have_the_same_label(geometry, tmp_path):
    first = write_labels(tmp_path / "first_seg-discs_dseg.nii.gz", 0.0, disc3=40)
    second = write_labels(tmp_path / "second_seg-discs_dseg.nii.gz", 0.0, disc3=30)
    assert read_landmarks([first, second], geometry)[0].origin_s_mm == pytest.approx(40.0)


def test_empty_labels_are_left_out_and_told(geometry, tmp_path):
    empty = write_labels(tmp_path / "empty_seg-discs_dseg.nii.gz", 0.0)
    marks, warnings = read_landmarks([empty], geometry)
    assert marks.kind == "top of the prepared cord"
    assert len(warnings) == 1
    assert "labels not used" in warnings[0]
    assert empty in warnings[0]


def test_what_labels_are_follows_from_their_entity_alone(geometry, tmp_path):
    bodies = write_labels(tmp_path / "sub-disc01_seg-vertebrae_dseg.nii.gz", 0.0, disc3=40, disc4=20)
    marks, _ = read_landmarks([bodies], geometry)
    # the border between two bodies lies midway, at world 30; a disc would be the border itself
    assert {level.name: level.bottom_s_mm for level in marks.levels}["C3"] == pytest.approx(30.0)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    values = {"a": [np.float32("nan"), np.inf, -np.inf, 1.5], "b": (np.int64(2), None, True), "c": np.nan}
    path = Path(write_json(tmp_path / "x.json", values))
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert read_json(path) == {"a": [None, None, None, 1.5], "b": [2, None, True], "c": None}
    with pytest.raises(TypeError, match="Path is not plain data"):
        write_json(tmp_path / "y.json", {"a": tmp_path})


def test_a_warning_of_the_plan_does_not_label_the_spine_again(tmp_path):
    """It goes to the measures past the toolbox, whose spine model may take hours."""
    assert "warnings" not in LabelDiscs.input_spec().copyable_trait_names()
    both = MeasureLesions(warnings=["of the plan"], level_warnings=["of the levels"])
    assert (both.inputs.warnings, both.inputs.level_warnings) == (["of the plan"], ["of the levels"])
    assert ("warnings", "level_warnings") in DISCS_TO_MEASURE


def test_masks_that_end_long_before_the_image_are_told(geometry):
    cord = np.zeros(geometry.grid.shape, np.float32)
    cord[20:28, 20:28, 130:160] = 1  # 15 mm of two slabs that show 116 mm
    flags = extent_notes(Landmarks(origin_s_mm=0.0, kind="top of the prepared cord"), geometry, cord)
    assert len(flags) == 1
    assert "T2Sag shows 116 mm along S-I, the cord masks reach over 15 mm of it" in flags[0]
    cord[20:28, 20:28, :] = 1
    assert extent_notes(Landmarks(origin_s_mm=0.0, kind="C2-C3 disc"), geometry, cord) == []


def test_only_a_place_in_the_anatomy_counts_as_one():
    known = {"origin_s_mm": 1.0, "levels": []}
    assert landmarks_from_json({**known, "kind": "C2-C3 disc"}).anatomical
    assert not landmarks_from_json({**known, "kind": "field of view"}).anatomical  # a word of older results
