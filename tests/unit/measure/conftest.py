"""A geometry by hand: straight or tilted cord, sagittal and axial slabs, round cord mask."""

from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

SPACING = 0.5


def _affine(spacing, origin):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


@pytest.fixture(scope="session")
def make_geometry():
    """Prepared grid of 48 x 48 x n, cord centre at world (slope_x s, slope_y s, s), s = 0 in slice 0.

    T2Sag: sagittal, 3 mm slices along R and 0.5 mm in plane; T2Ax: axial, 3 mm slices along S.
    """

    def make(slices=160, slope=(0.0, 0.0), shape=(48, 48)):
        size = (*shape, slices)
        middle = [-(n - 1) / 2 * SPACING for n in shape]
        grid = Grid(shape=size, affine=_affine([SPACING] * 3, [*middle, 0.0]))
        s = np.arange(-20.0, slices * SPACING + 20, 1.0)
        line = Centerline(s_mm=s, xy_mm=np.outer(s, slope), measured=np.ones(s.size, bool))
        reach = slices * SPACING
        sag = Grid(shape=(24, 200, slices + 40), affine=_affine([3, 0.5, 0.5], [-34.3, -50.2, -10.1]))
        ax = Grid(shape=(120, 200, int(reach / 3) + 6), affine=_affine([0.5, 0.5, 3], [-30.2, -49.9, -8.0]))
        slabs = (
            Slab(key="T2Sag", index=0, file="sag", grid=sag),
            Slab(key="T2Ax", index=0, file="ax", grid=ax),
        )
        return Geometry(
            frame="centerline",
            anchor="T2Sag",
            grid=grid,
            slabs=slabs,
            centerlines={"T2Sag": line, "T2Ax": line},
        )

    return make


@pytest.fixture(scope="session")
def offsets():
    """(i, j, k) offsets of prepared voxels from the cord's centre: right mm, front mm, s mm."""

    def make(geometry):
        i, j, k = np.indices(geometry.grid.shape)
        ni, nj, _ = geometry.grid.shape
        return (i - (ni - 1) / 2) * SPACING, (j - (nj - 1) / 2) * SPACING, k * SPACING

    return make


@pytest.fixture(scope="session")
def round_cord(offsets):
    """(i, j, k) float mask of a cord of 5 mm radius in axial slices."""

    def make(geometry, radius=5.0):
        right, front, _ = offsets(geometry)
        return (np.hypot(right, front) <= radius).astype(np.float32)

    return make
