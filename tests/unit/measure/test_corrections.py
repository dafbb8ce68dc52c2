"""A reader's mask in the place of the model's: what was left alone stays, what was drawn counts as drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import GeometryError
from bids_scseg.measure.corrections import Drawn, correct_lesions
from bids_scseg.measure.instances import label_lesions, restore_labels
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

VOXEL_MM3 = 0.125  # prepared: 0.5 mm cubes
NATIVE_MM3 = 3.0  # 1 x 1 x 3 mm, sagittal slices


def sagittal(low_mm: float, slices: int, *, code: str = "RAS") -> Grid:
    """Sagittal slices of 3 mm round the cord, from a height on; ``PIL``: axes in another order."""
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-10.5, -15.0, low_mm]
    grid = Grid(shape=(8, 31, slices), affine=affine)
    return grid if code == "RAS" else turned(grid)


def turned(grid: Grid) -> Grid:
    """The same voxels with axes P, I, L, as some viewers save."""
    a, b, c = grid.shape
    flip = np.array([[0, 0, -1, a - 1], [-1, 0, 0, b - 1], [0, -1, 0, c - 1], [0, 0, 0, 1.0]])
    return Grid(shape=(b, c, a), affine=grid.affine @ flip)


def turned_values(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[::-1, ::-1, ::-1].transpose(1, 2, 0))


UPPER, LOWER = sagittal(0.0, 60), sagittal(-50.0, 60)


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    """A bent cord; two slabs that share 10 mm, the lower one registered by 1.5 mm."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = [-11.75, -11.75, -50.0]
    s = np.linspace(-60, 70, 40)
    line = Centerline(s_mm=s, xy_mm=np.stack([np.sin(s / 20), 0.03 * s], axis=1), measured=np.ones(40, bool))
    moved = np.eye(4)
    moved[1, 3] = 1.5
    return Geometry(
        frame="centerline",
        anchor="T2Sag",
        grid=Grid(shape=(48, 48, 220), affine=affine),
        slabs=(
            Slab(key="T2Sag", index=0, file="upper", grid=UPPER, serves=(5.0, np.inf)),
            Slab(key="T2Sag", index=1, file="lower", grid=LOWER, xfm=moved, serves=(-np.inf, 5.0)),
        ),
        centerlines={"T2Sag": line},
    )


def balls(*where: tuple[float, float, float, float]) -> np.ndarray:
    """Lesions in prepared space: (i, j, k) and radius, in voxels."""
    index = np.stack(np.mgrid[:48, :48, :220], axis=-1)
    mask = np.zeros((48, 48, 220), np.float32)
    for *centre, radius in where:
        mask[np.linalg.norm(index - centre, axis=-1) <= radius] = 1
    return label_lesions(mask, threshold=0.5, voxel_volume=VOXEL_MM3)


# In voxels of 0.5 mm; k = 100 is height 0. Two lie a voxel apart: on native voxels they touch.
MODEL = balls((20, 24, 190, 5), (18, 24, 150, 4), (28, 24, 150, 4), (24, 24, 60, 6))


def whole(geometry: Geometry) -> Slab:
    return geometry.lattice_in_world(geometry.fused_grid("T2Sag"))


def shown(geometry: Geometry, slab: Slab) -> np.ndarray:
    return restore_labels(MODEL, geometry, slab).astype(np.int32)


def volumes(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel())[1:] * VOXEL_MM3


@pytest.mark.parametrize("numbered", [False, True])
def test_a_mask_saved_unchanged_changes_nothing(geometry, numbered):
    slab = whole(geometry)
    values = shown(geometry, slab)
    values = values if numbered else (values > 0).astype(np.int32)
    assert len(np.unique(MODEL)) == 5
    found = correct_lesions(MODEL, [Drawn(values=values, slab=slab)], geometry)
    np.testing.assert_array_equal(found.labels, MODEL)
    assert (found.kept, found.redrawn, found.beyond, found.origin) == (4, 0, 0, "manual")
    assert found.outside_mm3 == 0


def test_so_does_a_mask_whose_axes_the_viewer_turned(geometry):
    slab = whole(geometry)
    values = turned_values((shown(geometry, slab) > 0).astype(np.int32))
    other = geometry.lattice_in_world(turned(slab.grid))
    np.testing.assert_allclose(
        np.sort(slab.grid.corners(), axis=0), np.sort(other.grid.corners(), axis=0), atol=1e-9
    )
    found = correct_lesions(MODEL, [Drawn(values=values, slab=other)], geometry)
    assert (found.kept, found.redrawn) == (4, 0)
    np.testing.assert_array_equal(found.labels, MODEL)


def test_masks_of_the_slabs_saved_unchanged_change_nothing(geometry):
    drawn = [Drawn(values=(shown(geometry, slab) > 0).astype(np.int32), slab=slab) for slab in geometry.slabs]
    np.testing.assert_array_equal(correct_lesions(MODEL, drawn, geometry).labels, MODEL)


def test_one_lesion_goes_and_one_comes(geometry):
    slab = whole(geometry)
    before = shown(geometry, slab)
    values = (before > 0).astype(np.int32)
    values[before == 1] = 0
    i, j, k = np.rint(slab.to_index(geometry.to_world([24, 24, 110], key="T2Sag"))).astype(int)
    values[i, j - 2 : j + 3, k - 3 : k + 4] = 1  # 35 voxels
    found = correct_lesions(MODEL, [Drawn(values=values, slab=slab)], geometry)
    assert (found.kept, found.redrawn, found.origin) == (3, 1, "manual")
    expected = [*volumes(MODEL)[1:3], 35 * NATIVE_MM3, volumes(MODEL)[3]]
    np.testing.assert_allclose(volumes(found.labels), expected, rtol=0.03)
    back = restore_labels(found.labels, geometry, slab)
    assert 2 * ((back > 0) & (values > 0)).sum() / ((back > 0).sum() + (values > 0).sum()) > 0.97


def test_an_empty_mask_says_no_lesion(geometry):
    slab = whole(geometry)
    found = correct_lesions(MODEL, [Drawn(values=np.zeros(slab.grid.shape, np.int32), slab=slab)], geometry)
    assert not found.labels.any()
    assert (found.kept, found.redrawn, found.beyond, found.origin) == (0, 0, 0, "manual")


def test_a_lesion_that_grew_is_the_readers_voxels(geometry):
    slab = whole(geometry)
    before = shown(geometry, slab)
    values = (before > 0).astype(np.int32)
    last = np.argwhere(before == 4)[:, 2].max()
    grown = (before[:, :, last] == 4)[:, :, None]
    values[:, :, last + 1 : last + 3] |= grown
    found = correct_lesions(MODEL, [Drawn(values=values, slab=slab)], geometry)
    assert (found.kept, found.redrawn) == (3, 1)
    drawn = int((before == 4).sum() + 2 * grown.sum()) * NATIVE_MM3
    assert volumes(found.labels)[3] == pytest.approx(drawn, rel=0.03)


def test_numbers_split_and_join_what_touches(geometry):
    slab = whole(geometry)
    values = shown(geometry, slab)
    gap = np.argwhere(values == 3)[:, 0].min() - np.argwhere(values == 2)[:, 0].max()
    assert gap <= 1, "two and three must touch for this test to test anything"
    joined = np.where(values == 3, 2, values)
    assert len(volumes(correct_lesions(MODEL, [Drawn(values=joined, slab=slab)], geometry).labels)) == 3
    split = values.copy()
    heights = np.argwhere(values == 4)[:, 2]
    split[:, :, : int(np.median(heights))][split[:, :, : int(np.median(heights))] == 4] = 9
    found = correct_lesions(MODEL, [Drawn(values=split, slab=slab)], geometry)
    assert (found.kept, found.redrawn) == (3, 2)


def test_what_the_mask_does_not_reach_stays_the_models(geometry):
    upper = geometry.slabs[0]  # from height 0 on: the lowest lesion lies at -20
    found = correct_lesions(MODEL, [Drawn(values=np.zeros(UPPER.shape, np.int32), slab=upper)], geometry)
    assert (found.kept, found.redrawn, found.beyond, found.origin) == (0, 0, 1, "mixed")
    np.testing.assert_array_equal(found.labels > 0, MODEL == 4)


def test_a_drawing_in_a_registered_slab_moves_with_it(geometry):
    lower = geometry.slabs[1]
    centre = geometry.to_world([24, 24, 40], key="T2Sag")
    i, j, k = np.rint(lower.to_index(centre)).astype(int)
    values = np.zeros(LOWER.shape, np.int32)
    values[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 1
    empty = np.zeros_like(MODEL)
    found = correct_lesions(empty, [Drawn(values=values, slab=lower)], geometry)
    middle = np.argwhere(found.labels).mean(axis=0)
    expected = geometry.to_prepared(lower.to_world([i, j, k]), key="T2Sag")
    np.testing.assert_allclose(middle, expected, atol=0.6)


def test_a_grid_of_its_own_in_the_same_world(geometry):
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = [-12, -12, -40]
    slab = geometry.lattice_in_world(Grid(shape=(17, 17, 60), affine=affine))
    values = np.zeros(slab.grid.shape, np.float64)
    values[7:11, 7:11, 40:46] = 1
    found = correct_lesions(MODEL, [Drawn(values=values.astype(np.int32), slab=slab)], geometry)
    assert volumes(found.labels)[-1] == pytest.approx(4 * 4 * 6 * 1.5**3, rel=0.03)


def test_a_speck_between_prepared_centres_is_not_lost(geometry):
    affine = np.diag([0.2, 0.2, 0.2, 1.0])
    world = geometry.to_world([24.5, 24.5, 110.5], key="T2Sag")  # amid eight prepared voxels
    affine[:3, 3] = world - 0.2 * np.array([5, 5, 5])
    slab = geometry.lattice_in_world(Grid(shape=(11, 11, 11), affine=affine))
    values = np.zeros(slab.grid.shape, np.int32)
    values[5, 5, 5] = 1
    empty = np.zeros_like(MODEL)
    assert len(volumes(correct_lesions(empty, [Drawn(values=values, slab=slab)], geometry).labels)) == 1


def test_a_mask_of_another_place_is_refused(geometry):
    affine = UPPER.affine.copy()
    affine[:3, 3] += [0, 0, 500]
    far = geometry.lattice_in_world(Grid(shape=UPPER.shape, affine=affine), file="far.nii.gz")
    with pytest.raises(GeometryError, match=r"far\.nii\.gz: its field of view does not meet"):
        correct_lesions(MODEL, [Drawn(values=np.zeros(UPPER.shape, np.int32), slab=far)], geometry)
    values = np.zeros(whole(geometry).grid.shape, np.int32)
    values[:, 0, 0] = 1  # a corner of the image, 15 mm before the cord
    with pytest.raises(GeometryError, match="none of its 8 lesion voxels"):
        correct_lesions(MODEL, [Drawn(values=values, slab=whole(geometry))], geometry)


def test_what_is_drawn_beside_the_window_is_told(geometry):
    slab = whole(geometry)
    values = (shown(geometry, slab) > 0).astype(np.int32)
    values[3, 0:2, 50] = 1
    found = correct_lesions(MODEL, [Drawn(values=values, slab=slab)], geometry)
    assert found.outside_mm3 == pytest.approx(2 * NATIVE_MM3)
    np.testing.assert_array_equal(found.labels, MODEL)


@given(
    places=st.lists(
        st.tuples(st.integers(14, 34), st.integers(14, 34), st.integers(20, 200), st.floats(2.5, 6)),
        max_size=5,
    )
)
def test_property_of_the_unchanged_mask(geometry, places):
    model = balls(*places)
    slab = whole(geometry)
    values = (restore_labels(model, geometry, slab) > 0).astype(np.int32)
    found = correct_lesions(model, [Drawn(values=values, slab=slab)], geometry)
    assert len(volumes(found.labels)) == len(volumes(model))
    np.testing.assert_allclose(volumes(found.labels), volumes(model), rtol=0.05)
