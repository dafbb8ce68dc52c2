from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.inference.box import axis_map, footprint_mean, linear_weights, sample
from bids_scseg.preprocess.frames import Estimates, SlabEstimate, fit_box
from bids_scseg.recipe.model import GridSpec
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

SPEC = GridSpec(spacing_mm=1.0, window_vox=None, margin_mm=0.0)


def rotation(degrees: float) -> np.ndarray:
    """About the first axis."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def native(order: tuple[int, int, int], signs: tuple[int, int, int], *, tilt: float = 0.0) -> Grid:
    """A lattice of 0.6 x 0.8 x 3.3 mm voxels whose axes are permuted, flipped and tilted."""
    spacing = (0.6, 0.8, 3.3)
    affine = np.zeros((4, 4))
    for axis, (world, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[world, axis] = sign * step
    affine[:3, 3], affine[3, 3] = (4, -7, 11), 1
    return Grid(shape=(21, 18, 7), affine=rotation(tilt) @ affine)


def box(grid: Grid) -> Geometry:
    slab = Slab(key="image", index=0, file="", grid=grid)
    return fit_box(Estimates(anchor="image", slabs=(SlabEstimate(slab=slab),)), SPEC)


@pytest.mark.parametrize(
    "grid",
    [native((0, 1, 2), (1, 1, 1)), native((1, 2, 0), (-1, 1, -1)), native((2, 0, 1), (1, -1, 1), tilt=17)],
    ids=["axial", "sagittal", "tilted"],
)
def test_agrees_with_the_general_map(grid: Grid) -> None:
    geometry = box(grid)
    image = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    there = axis_map(geometry.grid, grid)
    back = axis_map(grid, geometry.grid)
    assert there is not None and back is not None
    volume, coverage = geometry.apply([image], key="image")
    found = sample(image, there, geometry.grid)
    np.testing.assert_allclose(found, volume, atol=1e-5)
    np.testing.assert_array_equal(sample(np.ones(grid.shape), there, geometry.grid) > 0, coverage)
    restored = footprint_mean(found, back, grid, step_mm=1.0)
    np.testing.assert_allclose(restored, geometry.restore(volume, geometry.slabs[0]), atol=1e-5)


def test_oblique_lattices_do_not_correspond() -> None:
    assert axis_map(native((0, 1, 2), (1, 1, 1)), native((0, 1, 2), (1, 1, 1), tilt=5)) is None


def test_weights_by_hand() -> None:
    # 3 samples; points: at 0.25 | half a voxel outside | just beyond | mean of 1 and 2
    index = np.array([[0.25, 0.25], [-0.5, 2.5], [-0.51, 2.51], [1.0, 2.0]])
    expected = [[0.75, 0.25, 0], [0.5, 0, 0.5], [0, 0, 0], [0, 0.5, 0.5]]
    np.testing.assert_allclose(linear_weights(index, 3), expected)
    np.testing.assert_allclose(linear_weights(np.array([[0.0]]), 1), [[1.0]])
