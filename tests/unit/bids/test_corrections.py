"""Masks that readers corrected: which are taken, for what, and what is told of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bids_builders as build
import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.corrections import (
    check_corrections,
    correction_links,
    find_cord_corrections,
    read_cord,
    read_drawn,
    with_corrections,
)
from bids_scseg.bids.masks import is_correction
from bids_scseg.errors import DataError, GeometryError, ImageError
from bids_scseg.recipe.study import Plan, SequencePlan
from bids_scseg.space.grid import Grid

SHAPE = (6, 8, 10)
AFFINE = np.diag([3.0, 1.0, 1.0, 1.0])
LOW = np.array([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -8], [0, 0, 0, 1]])
AX_SHAPE, AX_AFFINE = (8, 8, 5), np.diag([1.0, 1.0, 4.0, 1.0])
SAG = build.image("acq-sag_T2w", Grid(shape=SHAPE, affine=AFFINE))
AX = build.image("acq-ax_T2w", Grid(shape=AX_SHAPE, affine=AX_AFFINE))
TOP = build.image("acq-two_chunk-1_T2w", Grid(shape=SHAPE, affine=AFFINE))
BOTTOM = build.image("acq-two_chunk-2_T2w", Grid(shape=SHAPE, affine=LOW))
SLABS = (TOP, BOTTOM)


def plan(*images, name: str = "T2Sag") -> Plan:
    """A plan with these images as slabs of one sequence, the anchor."""
    return Plan(
        subject="01", session=None, dataset="/data", recipe="r", missing=(), anchor=name,
        sequences=(SequencePlan(name=name, files=images),),
    )  # fmt: skip


def draw(root: Path, rest: str, *, shape=SHAPE, affine=AFFINE, data=None) -> Path:
    return build.write_nifti(root / f"sub-01/anat/sub-01_{rest}.nii.gz", shape, affine=affine, data=data)


def found(root: Path, images=(SAG,), *, others=()) -> Plan:
    return with_corrections(plan(*images), build.study(*images, *others), [root])


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("sub-01_acq-sag_label-lesion_desc-manual_mask.nii.gz", True),
        ("sub-01_desc-Manual_label-SC_seg.nii", True),
        ("sub-01_acq-ax_label-SC_desc-manualT2starw_mask.nii.gz", True),
        ("sub-01_T2w_seg-manual.nii.gz", False),  # other programs' name for what was never a result of ours
        ("sub-01_acq-manual_label-lesion_mask.nii.gz", False),
        ("sub-01_label-lesion_desc-T2w_mask.nii.gz", False),
    ],
)
def test_the_entity_says_it(name, verdict):
    assert is_correction(name) is verdict


# -- lesions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "acq-sag_label-lesion_desc-manual_mask",
        "acq-sag_desc-manual_label-lesion_mask",
        "acq-sag_seg-lesions_desc-manual_dseg",
        "acq-sag_T2w_label-lesion_desc-manual_seg",
        "acq-sag_label-lesion_desc-manualT2w_mask",
    ],
)
def test_a_corrected_mask_is_taken_for_its_image_and_said(tmp_path, rest):
    path = draw(tmp_path, rest)
    out = found(tmp_path, others=(AX,))
    assert out.corrections == ((SAG.relative, str(path)),)
    assert out.conflict == ""
    assert any("manual correction" in note and path.name in note for note in out.warnings)


@pytest.mark.parametrize(
    "rest",
    [
        "acq-sag_label-lesion_mask", "acq-sag_seg-lesions_dseg", "acq-sag_label-lesion_desc-manual_probseg",
        "space-MNI_label-lesion_desc-manual_mask", "acq-sag_T2w_lesion-manual",
    ],
)  # fmt: skip
def test_other_masks_are_not(tmp_path, rest):
    draw(tmp_path, rest)
    assert found(tmp_path).corrections == ()


def test_without_any_the_plan_is_as_it_was(tmp_path):
    assert with_corrections(plan(SAG), build.study(SAG), [tmp_path / "nowhere"]) == plan(SAG)


def test_a_manual_file_that_says_nothing_is_told_of_the_output_folder_alone(tmp_path):
    draw(tmp_path, "acq-sag_desc-manual_mask")
    assert "neither label-lesion nor label-SC" in found(tmp_path).warnings[0]
    elsewhere = with_corrections(plan(SAG), build.study(SAG), [tmp_path / "out", tmp_path])
    assert elsewhere.warnings == ()


def test_another_grid_belongs_to_the_image_that_is_named_and_else_to_none(tmp_path):
    odd = {"shape": (20, 20, 20), "affine": np.diag([0.7, 0.7, 0.7, 1.0])}
    path = draw(tmp_path, "acq-sag_label-lesion_desc-manual_mask", **odd)
    assert found(tmp_path).corrections == ((SAG.relative, str(path)),)
    path.rename(path.with_name("sub-01_label-lesion_desc-manual_mask.nii.gz"))
    (pair,) = found(tmp_path).corrections
    assert pair[0] == ""


def test_the_lattice_tells_where_the_name_does_not(tmp_path):
    draw(tmp_path, "label-lesion_desc-manual_mask", shape=AX_SHAPE, affine=AX_AFFINE)
    out = found(tmp_path, images=(SAG,), others=(AX,))
    assert out.corrections[0][0] == ""  # the axial image is not used: placed by its world
    assert any("does not use" in note for note in out.warnings)


def test_slabs_together_and_one_by_one(tmp_path):
    joined = {"shape": (6, 8, 18), "affine": LOW}
    whole = draw(tmp_path / "a", "acq-two_label-lesion_desc-manual_mask", **joined)
    assert found(tmp_path / "a", SLABS).corrections == ((TOP.relative, str(whole)),)
    one = draw(tmp_path / "b", "acq-two_chunk-1_label-lesion_desc-manual_mask")
    two = draw(tmp_path / "b", "acq-two_chunk-2_label-lesion_desc-manual_mask", affine=LOW)
    pairs = ((TOP.relative, str(one)), (BOTTOM.relative, str(two)))
    assert found(tmp_path / "b", SLABS).corrections == pairs
    draw(tmp_path / "b", "acq-two_label-lesion_desc-manual_mask", **joined)
    assert "3 corrected lesion masks of one session" in found(tmp_path / "b", SLABS).conflict


def test_slabs_whose_number_is_the_programs_own(tmp_path):
    """Two runs without ``chunk-``: the masks of this program bear chunk-1 and chunk-2."""
    upper = build.image("acq-hi_T2w", Grid(shape=SHAPE, affine=AFFINE))
    lower = build.image("acq-lo_T2w", Grid(shape=SHAPE, affine=LOW))
    draw(tmp_path, "acq-lo_chunk-2_label-lesion_desc-manual_mask", affine=LOW)
    assert found(tmp_path, (upper, lower)).corrections[0][0] == lower.relative


def test_two_masks_of_one_session_are_a_conflict_with_both_names(tmp_path):
    one = draw(tmp_path / "out", "acq-sag_label-lesion_desc-manual_mask")
    two = draw(tmp_path / "mine", "acq-sag_label-lesion_desc-manual_mask")
    out = with_corrections(plan(SAG), build.study(SAG), [tmp_path / "out", tmp_path / "mine"])
    assert out.corrections == ()
    assert str(one) in out.conflict
    assert str(two) in out.conflict
    with pytest.raises(DataError, match="keep one of them"):
        check_corrections(out)
    same = with_corrections(plan(SAG), build.study(SAG), [tmp_path / "out", tmp_path / "out" / ".." / "out"])
    assert (same.conflict, len(same.corrections)) == ("", 1)


# -- cords -----------------------------------------------------------------------------------------


def cords(root: Path, *images):
    return find_cord_corrections(build.study(*images), [root])


def test_cords_by_name_suffix_and_lattice(tmp_path):
    t1 = build.image("acq-sag_T1w", SAG.grid)
    path = draw(tmp_path / "a", "acq-sag_label-SC_desc-manual_mask")
    assert cords(tmp_path / "a", SAG, AX).masks == ((SAG.relative, str(path)),)
    both = cords(tmp_path / "a", SAG, t1)
    assert both.masks == ()
    assert "fits several images" in both.conflicts[0]
    assert "desc-manualT2w" in both.conflicts[0]
    path = draw(tmp_path / "b", "acq-sag_label-SC_desc-manualT1w_mask")
    assert cords(tmp_path / "b", SAG, t1).masks == ((t1.relative, str(path)),)
    moved = build.image("acq-sag_T1w", Grid(shape=SHAPE, affine=LOW))
    path = draw(tmp_path / "c", "acq-sag_label-SC_desc-manual_mask", affine=LOW)
    assert cords(tmp_path / "c", SAG, moved).masks == ((moved.relative, str(path)),)


def test_cords_of_nothing_and_broken_ones_are_told(tmp_path):
    draw(tmp_path, "acq-brain_label-SC_desc-manual_mask")
    assert "belongs to no image" in cords(tmp_path, SAG).notes[0]
    (tmp_path / "sub-01/anat/sub-01_acq-sag_label-SC_desc-manual_mask.nii.gz").write_bytes(b"x")
    assert "cannot be used" in cords(tmp_path, SAG).conflicts[0]


def test_two_cords_of_one_image_are_a_conflict(tmp_path):
    draw(tmp_path, "acq-sag_label-SC_desc-manual_mask")
    draw(tmp_path, "acq-sag_T2w_label-SC_desc-manual_seg")
    (conflict,) = cords(tmp_path, SAG).conflicts
    assert "sub-01_acq-sag_label-SC_desc-manual_mask.nii.gz" in conflict
    assert "sub-01_acq-sag_T2w_label-SC_desc-manual_seg.nii.gz" in conflict


def test_a_cord_on_another_grid_is_brought_to_its_image(tmp_path):
    data = np.zeros((20, 10, 12), np.float64)
    data[6:12, 2:6, 1:9] = 1
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    path = draw(tmp_path, "x", shape=data.shape, affine=fine, data=data)
    cord = read_cord(path, SAG.grid)
    assert cord.shape == SHAPE
    expected = np.zeros(SHAPE, np.float32)
    expected[2:4, 2:6, 1:9] = 1  # slices of 3 mm at 6 and 9 mm
    np.testing.assert_array_equal(cord, expected)
    far = Grid(shape=SHAPE, affine=AFFINE + np.pad([[500.0]], ((0, 3), (3, 0))))
    with pytest.raises(GeometryError, match="nothing of this cord mask lies in its image"):
        read_cord(path, far)


# -- voxels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
@pytest.mark.parametrize("qform", [True, False])
def test_every_viewers_labels_are_read(tmp_path, dtype, qform):
    data = np.zeros(SHAPE, dtype)
    data[1, 2, 3], data[4, 4, 4] = 1, 7
    path = build.write_nifti(tmp_path / "a.nii.gz", affine=AFFINE, data=data, qform=True)
    if not qform:
        image = nib.Nifti1Image(data, AFFINE)
        image.set_qform(None, code=0)
        image.set_sform(AFFINE, code=2)
        nib.save(image, path)
    values, grid = read_drawn(path)
    assert values.dtype == np.int32
    np.testing.assert_array_equal(values, data)
    assert grid == SAG.grid


def test_scaling_in_the_header_and_an_empty_mask_are_no_trouble(tmp_path):
    image = nib.Nifti1Image(np.array([0, 32767], np.int16)[np.zeros(SHAPE, int)], AFFINE)
    data = np.zeros(SHAPE, np.int16)
    data[2, 2, 2] = 32767
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(1 / 32767, 0)
    nib.save(image, tmp_path / "scaled.nii")
    assert read_drawn(tmp_path / "scaled.nii")[0].sum() == 1
    empty = build.write_nifti(tmp_path / "empty.nii.gz", affine=AFFINE, data=np.zeros(SHAPE, np.uint8))
    assert not read_drawn(empty)[0].any()


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "below 0, NaN or infinite"), (-1.0, "below 0"), (0.5, r"between whole numbers \(0.5")],
)
def test_values_that_are_no_labels(tmp_path, value, words):
    data = np.zeros(SHAPE, np.float32)
    data[1, 1, 1] = value
    path = build.write_nifti(tmp_path / "bad.nii.gz", affine=AFFINE, data=data)
    with pytest.raises(DataError, match=words) as caught:
        read_drawn(path)
    assert caught.value.file == str(path)
    assert caught.value.expected
    assert caught.value.remedy


def test_four_dimensions_are_no_mask(tmp_path):
    path = build.write_nifti(tmp_path / "4d.nii.gz", affine=AFFINE, data=np.zeros((*SHAPE, 2), np.uint8))
    with pytest.raises(ImageError, match="4 dimensions"):
        read_drawn(path)
    one = build.write_nifti(tmp_path / "3d.nii.gz", affine=AFFINE, data=np.zeros((*SHAPE, 1), np.uint8))
    assert read_drawn(one)[0].shape == SHAPE


def test_every_corrected_file_of_a_plan_is_looked_at(tmp_path):
    good = draw(tmp_path, "acq-sag_label-lesion_desc-manual_mask", data=np.zeros(SHAPE, np.uint8))
    bad = draw(tmp_path, "acq-sag_label-SC_desc-manual_mask", data=np.full(SHAPE, np.nan, np.float32))
    given = replace(plan(SAG), corrections=((SAG.relative, str(good)),))
    check_corrections(given)
    with pytest.raises(DataError, match="NaN"):
        check_corrections(replace(given, cord_masks=((SAG.relative, str(bad)),)))


def test_links_for_the_folders_that_are_used(tmp_path):
    mine = draw(tmp_path / "mine", "acq-sag_label-lesion_desc-manual_mask")
    used = replace(plan(SAG), corrections=((SAG.relative, str(mine)),))
    folders = {"my masks": tmp_path / "mine", "raw": tmp_path / "other"}
    assert correction_links([used], folders) == {"mymasks": tmp_path / "mine"}
    assert correction_links([plan(SAG)], folders) == {}
