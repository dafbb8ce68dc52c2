from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import prepared_sessions
import pytest
from scipy import ndimage

from bids_scseg.bids.references import LesionMap
from bids_scseg.errors import DataError, GeometryError, ImageError
from bids_scseg.preprocess.prepare import fit
from bids_scseg.recipe.study import ImageFile
from bids_scseg.space.grid import Grid
from bids_scseg.training.reference import place_maps, read_lesions

RECIPE = prepared_sessions.RECIPE
# one lesion in the upper slab, one across the seam (heights: the slabs meet at 0), one in the lower slab
LESIONS = phantoms.Phantom(lesions=((0, 0, 28, 4), (0, 0, 0, 5), (0, 0, -28, 4)))


@pytest.fixture(scope="module")
def geometry():
    images, cords = prepared_sessions.session()
    return fit(images, cords, RECIPE, register=False)[0]


def covered(geometry) -> np.ndarray:
    """The heights of the two slabs, without the grid's margin."""
    return np.broadcast_to(np.abs(geometry.s_mm) < 44, geometry.grid.shape).copy()


def drawn(folder: Path, name: str, grid: Grid, values: np.ndarray, *, of: str | None = None) -> LesionMap:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(values, grid.affine), path)
    image = None
    if of is not None:
        image = ImageFile(path=of, relative=of, entities=(), suffix="T2w", grid=grid)
    return LesionMap(path=str(path), image=image, grid=grid, whole=of is None, group=of or "whole")


def slab_maps(folder: Path, *, numbers=(1, 2, 3)) -> list[LesionMap]:
    out = []
    for name, grid in (("up", prepared_sessions.UPPER), ("low", prepared_sessions.LOWER)):
        values = phantoms.lesion_labels(LESIONS, grid)
        table = np.array([0, *numbers])
        out.append(drawn(folder, name, grid, table[values].astype(np.uint8), of=name))
    return out


def test_masks_of_two_slabs_become_numbered_lesions_and_the_seam_counts_once(
    tmp_path: Path, geometry
) -> None:
    label, notes = place_maps(
        slab_maps(tmp_path, numbers=(1, 1, 1)), geometry, covered=covered(geometry), recipe=RECIPE
    )
    assert label.dtype == np.uint8
    lesions = np.unique(label[(label > 0) & (label < 255)])
    assert lesions.tolist() == [1, 2, 3]
    # volumes of balls of 4, 5 and 4 mm cut by the cord's radius of 5 mm: 268, 524, 268 mm³
    volume = np.bincount(label[label < 255], minlength=4)[1:] * geometry.grid.voxel_volume
    assert volume == pytest.approx([268, 524, 268], rel=0.15)
    assert notes == ()


def test_numbers_of_one_map_are_kept_and_an_empty_map_is_a_lesion_free_case(tmp_path: Path, geometry) -> None:
    values = phantoms.lesion_labels(LESIONS, prepared_sessions.UPPER) * 7
    whole = drawn(tmp_path, "a", prepared_sessions.UPPER, values.astype(np.uint8))
    label, _ = place_maps([whole], geometry, covered=covered(geometry), recipe=RECIPE)
    assert np.unique(label[label < 255]).tolist() == [0, 7, 14]
    empty = drawn(tmp_path, "b", prepared_sessions.UPPER, np.zeros(values.shape, np.uint8))
    label, _ = place_maps([empty], geometry, covered=covered(geometry), recipe=RECIPE)
    assert set(np.unique(label)) == {0, 255}


def test_where_nobody_annotated_does_not_count(tmp_path: Path, geometry) -> None:
    upper = slab_maps(tmp_path)[:1]
    label, notes = place_maps(upper, geometry, covered=covered(geometry), recipe=RECIPE)
    heights = geometry.s_mm
    middle = label[12, 12]
    assert (middle[(heights < -8) & (heights > -44)] == 255).all()  # the upper slab ends at -5 mm
    assert (middle[heights > 0] != 255).all()
    assert "no annotated image" in notes[0]
    # where no sequence has data, there is nothing to count either
    label, notes = place_maps(upper, geometry, covered=np.zeros(label.shape, bool), recipe=RECIPE)
    assert 255 not in label
    assert notes == ()


def test_several_sequences_are_joined(tmp_path: Path, geometry) -> None:
    only_first = phantoms.Phantom(lesions=LESIONS.lesions[:1])
    upper = drawn(
        tmp_path, "up", prepared_sessions.UPPER,
        phantoms.lesion_labels(only_first, prepared_sessions.UPPER).astype(np.uint8), of="up",
    )  # fmt: skip
    second = phantoms.Phantom(lesions=LESIONS.lesions[1:2])
    axial = drawn(
        tmp_path, "ax", prepared_sessions.AXIAL,
        phantoms.lesion_labels(second, prepared_sessions.AXIAL).astype(np.uint8), of="ax",
    )  # fmt: skip
    label, _ = place_maps([upper, axial], geometry, covered=covered(geometry), recipe=RECIPE)
    assert np.unique(label[label < 255]).tolist() == [0, 1, 2]


def test_a_fused_map_is_taken_and_a_map_of_nothing_is_not(tmp_path: Path, geometry) -> None:
    grid = geometry.fused_grid("Sag")
    fused = drawn(tmp_path, "f", grid, phantoms.lesion_labels(LESIONS, grid).astype(np.uint8))
    label, _ = place_maps([replace(fused, whole=False)], geometry, covered=covered(geometry), recipe=RECIPE)
    assert np.unique(label[label < 255]).tolist() == [0, 1, 2, 3]
    odd = phantoms.lattice(spacing=(2, 2, 2), size_mm=(40, 40, 40))
    stray = replace(drawn(tmp_path, "s", odd, np.zeros(odd.shape, np.uint8)), whole=False)
    with pytest.raises(GeometryError, match="expected the lattice of up"):
        place_maps([stray], geometry, covered=covered(geometry), recipe=RECIPE)


def test_a_map_of_an_image_that_is_not_used_is_refused_alone_and_left_out_beside_others(
    tmp_path: Path, geometry
) -> None:
    grid = prepared_sessions.UPPER
    other = drawn(tmp_path, "o", grid, np.zeros(grid.shape, np.uint8), of="other")
    with pytest.raises(DataError, match=r"drawn on other only.*bids-filter-file"):
        place_maps([other], geometry, covered=covered(geometry), recipe=RECIPE)
    _, notes = place_maps([*slab_maps(tmp_path), other], geometry, covered=covered(geometry), recipe=RECIPE)
    assert "o.nii.gz is not used" in notes[0]


def test_soft_masks_are_cut_and_bad_values_refused(tmp_path: Path) -> None:
    grid = phantoms.lattice(spacing=(1, 1, 1), size_mm=(4, 4, 4))
    values = np.zeros(grid.shape, np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = 0.4, 0.5, 1.0
    found = read_lesions(Path(drawn(tmp_path, "soft", grid, values).path))
    assert found[:3, 0, 0].tolist() == [0, 1, 1]
    values[0, 0, 0] = -1
    with pytest.raises(DataError, match="below 0"):
        read_lesions(Path(drawn(tmp_path, "bad", grid, values).path))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match="cannot be read"):
        read_lesions(tmp_path / "broken.nii.gz")


def test_shades_are_neither_lesions_nor_shares(tmp_path: Path) -> None:
    """A mask of 0 and 255 that was smoothed would grow by far, or fall into shells that count as lesions."""
    drawn_as = (phantoms.lesion_labels(LESIONS, prepared_sessions.UPPER) > 0).astype(np.float32)
    soft = ndimage.gaussian_filter(drawn_as, 0.8)
    for name, values, words in (
        ("float", soft * 255, "values between whole numbers, up to"),
        ("byte", np.round(soft * 255).astype(np.uint8), "values that differ from voxel to voxel"),
        ("low", soft * 0.4, "nothing of it would be lesion"),
    ):
        with pytest.raises(DataError, match=words):
            read_lesions(Path(drawn(tmp_path, name, prepared_sessions.UPPER, values).path))


def test_numbers_of_touching_lesions_and_rounded_numbers_are_numbers(tmp_path: Path) -> None:
    grid = phantoms.lattice(spacing=(1, 1, 1), size_mm=(12, 12, 12))
    values = np.zeros(grid.shape, np.float32)
    for number in range(1, 5):
        values[2:5, 2:5, 2 * number : 2 * number + 2] = number
    rounded = values * 1.00002
    for name, given in (("exact", values), ("rounded", rounded)):
        assert np.array_equal(read_lesions(Path(drawn(tmp_path, name, grid, given).path)), values)


def test_255_lesions_are_too_many(tmp_path: Path, geometry) -> None:
    grid = prepared_sessions.UPPER
    values = np.zeros(grid.shape, np.int16)
    values[:] = 254
    values[: grid.shape[0] // 2] = 255
    with pytest.raises(DataError, match="255 lesions"):
        place_maps([drawn(tmp_path, "m", grid, values)], geometry, covered=covered(geometry), recipe=RECIPE)


def test_one_synthetic_lesion_in_two_pieces_stays_one(tmp_path: Path, geometry) -> None:
    """Its table says that numbers are lesions; a map of one value without such a table is a mask."""
    values = (phantoms.lesion_labels(LESIONS, prepared_sessions.UPPER) > 0).astype(np.uint8)
    found = drawn(tmp_path, "whole_dseg", prepared_sessions.UPPER, values)
    pieces = []
    for _ in range(2):
        label, _ = place_maps([found], geometry, covered=covered(geometry), recipe=RECIPE)
        pieces.append(np.unique(label[(label > 0) & (label < 255)]).size)
        found.table.write_text("index\trealised_T2Sag\n1\tvisible\n")
    assert pieces == [2, 1]


def test_a_map_of_the_whole_session_is_straightened_by_the_cord_that_it_was_made_with(
    tmp_path: Path, geometry
) -> None:
    """The truth of a synthetic session lies where its cord is; the scans saw the cord 3 mm beside that."""
    values = phantoms.lesion_labels(LESIONS, prepared_sessions.UPPER).astype(np.uint8)
    here = drawn(tmp_path, "a_seg-lesions_res-iso_desc-truth_dseg", prepared_sessions.UPPER, values)
    expected, _ = place_maps([here], geometry, covered=covered(geometry), recipe=RECIPE)
    moved = prepared_sessions.UPPER.affine.copy()
    moved[:3, 3] += (3, -1, 0)
    there = Grid(shape=prepared_sessions.UPPER.shape, affine=moved)
    truth = drawn(tmp_path, "b_seg-lesions_res-iso_desc-truth_dseg", there, values)
    off, _ = place_maps([truth], geometry, covered=covered(geometry), recipe=RECIPE)
    cord = np.asarray(prepared_sessions.session()[1]["Sag"][1]).astype(np.uint8)
    drawn(tmp_path, "b_res-iso_label-SC_desc-truth_mask", there, cord)
    label, _ = place_maps([truth], geometry, covered=covered(geometry), recipe=RECIPE)

    def overlap(found: np.ndarray) -> float:
        one, two = (expected > 0) & (expected < 255), (found > 0) & (found < 255)
        return 2 * (one & two).sum() / (one.sum() + two.sum())

    assert overlap(off) < 0.6
    assert overlap(label) > 0.95


def test_a_corrected_map_on_a_grid_of_its_own_lies_where_its_world_says(tmp_path: Path, geometry) -> None:
    """The same lesions drawn on the slab's voxels and on 1 mm cubes of another extent."""
    up, cubes = (
        prepared_sessions.UPPER,
        phantoms.lattice(spacing=(1, 1, 1), size_mm=(40, 44, 44), center=(0, 0, 22)),
    )
    on_slab = drawn(tmp_path, "a", up, (phantoms.lesion_labels(LESIONS, up) > 0).astype(np.uint8), of="up")
    expected, _ = place_maps([on_slab], geometry, covered=covered(geometry), recipe=RECIPE)
    values = (phantoms.lesion_labels(LESIONS, cubes) > 0).astype(np.uint8)
    plain = drawn(tmp_path, "b_label-lesion_desc-manual_mask", cubes, values)
    world = ImageFile(path="up", relative="up", entities=(), suffix="T2w", grid=up)
    for own in (replace(plain, whole=False), replace(plain, whole=False, world=world)):
        label, _ = place_maps([own], geometry, covered=covered(geometry), recipe=RECIPE)
        both = (label > 0) & (label < 255), (expected > 0) & (expected < 255)
        inside = np.broadcast_to((geometry.s_mm > 5) & (geometry.s_mm < 40), label.shape)
        one, two = (part & inside for part in both)
        assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.85
