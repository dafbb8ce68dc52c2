from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import affines

from bids_scseg.errors import GeometryError
from bids_scseg.space.grid import Grid


def test_plane_and_axes_of_a_psr_volume_by_hand():
    # Index axis 0 runs to P, 1 to S, 2 to R; 3 mm along R: a sagittal stack.
    affine = np.array([[0, 0, 3.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    grid = Grid(shape=(4, 5, 6), affine=affine)
    assert grid.plane() == "sag"
    assert grid.canonical_axes() == ((2, 1), (0, -1), (1, 1))
    assert grid.voxel_volume == pytest.approx(3.0)
    np.testing.assert_allclose(grid.spacing, [1, 1, 3])


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 5), "ax"), ((1, 3, 1), "cor"), ((3, 1, 1), "sag"), ((0.8, 0.8, 0.9), "iso")],
)
def test_plane_from_spacing(spacing, plane):
    assert Grid(shape=(5, 5, 5), affine=np.diag([*spacing, 1.0])).plane() == plane


@given(affines(), st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_index_world_round_trip(affine, ijk):
    grid = Grid(shape=(7, 8, 9), affine=affine)
    np.testing.assert_allclose(grid.to_index(grid.to_world(ijk)), ijk, atol=1e-6)


def test_contains_ends_half_a_voxel_beyond_the_outer_centres():
    grid = Grid(shape=(2, 2, 2), affine=np.eye(4))
    assert grid.contains([[-0.5, 0, 0], [1.5, 1, 1], [-0.51, 0, 0], [1.51, 0, 0]]).tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3), np.diag([1.0, 1.0, np.inf, 1.0])]
)
def test_unusable_affines_are_refused(affine):
    with pytest.raises(GeometryError):
        Grid(shape=(2, 2, 2), affine=affine)


@given(affines())
def test_json_round_trip_and_arrays_are_read_only(affine):
    grid = Grid(shape=(3, 4, 5), affine=affine)
    assert Grid.from_json(grid.to_json()) == grid
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1
