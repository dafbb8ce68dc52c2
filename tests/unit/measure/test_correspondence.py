"""The same place in two sessions has the same coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rigids

from bids_scseg.measure.cordcoords import centerline_of, cord_to_world
from bids_scseg.measure.correspondence import (
    ArcMap,
    arc_map,
    arc_map_of_origins,
    coordinates_of,
    examined_by,
    in_other,
    lesion_points,
    position_of,
    share_examined,
    shared_points,
)
from bids_scseg.space.grid import Grid, transform_points


def test_one_place_of_the_anatomy_is_enough():
    arcs = arc_map_of_origins(10.0, 25.0)
    assert arcs.to_second([0.0, 40.0]).tolist() == [15.0, 55.0]
    assert arcs.shared([10.0]).tolist() == [17.5]  # midway between 10 and 25
    assert arcs.reversed.shared([25.0]).tolist() == [17.5]


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=20))
def test_there_and_back_is_the_same_place(arc):
    arcs = ArcMap(first_mm=np.array([0.0, 50.0, 100.0]), second_mm=np.array([20.0, 72.0, 118.0]))
    there = arcs.to_second(arc)
    assert arcs.reversed.to_second(there) == pytest.approx(arc)
    assert arcs.reversed.shared(there) == pytest.approx(arcs.shared(arc))


@given(rigids(max_degrees=5.0, max_mm=8.0))
def test_a_rigid_move_is_undone(make_geometry, move):
    """The second session is the first one moved as a whole: no place may have other coordinates there."""
    first = make_geometry(slope=(0.05, 0.1))
    s = np.linspace(15, 60, 10)
    line = centerline_of(first, "T2Sag")
    world = np.column_stack([line.at(s) + np.array([2.0, -1.0]), s])
    points = coordinates_of(world, first)
    arcs = arc_map(first, first, xfm=np.eye(4))
    assert in_other(points, first, first, arcs=arcs) == pytest.approx(world, abs=2e-3)
    # Moved along its own cord by 7 mm, nothing changes across the cord.
    along = line.tangent(np.array([0.0]))[0]
    shifted = np.eye(4)
    shifted[:3, 3] = 7 * along
    moved = in_other(points, first, first, arcs=arc_map(first, first, xfm=shifted))
    assert moved == pytest.approx(transform_points(shifted, world), abs=0.05)


def test_points_fill_a_lesion(make_geometry):
    geometry = make_geometry()
    grid = Grid(shape=(20, 40, 40), affine=np.diag([3.0, 0.5, 0.5, 1.0]) @ np.eye(4))
    labels = np.zeros(grid.shape, np.uint16)
    labels[2, 4:8, 10:20] = 3
    found = lesion_points(labels, grid, geometry)
    assert list(found) == [3]
    # 3 x 0.5 x 0.5 mm voxels in pieces of at most 1 mm: three of each of the 40 voxels.
    assert found[3].s_mm.size == 120
    # Right of the cord by 5 to 7 mm, in front by 2 to 3.5 mm, 5 to 9.5 mm high.
    assert (found[3].u_mm.min(), found[3].u_mm.max()) == pytest.approx((5.0, 7.0))
    assert (found[3].v_mm.min(), found[3].v_mm.max()) == pytest.approx((2.0, 3.5))
    assert lesion_points(np.zeros(grid.shape, np.uint16), grid, geometry) == {}


def test_shared_points_are_those_of_either_side(make_geometry):
    geometry = make_geometry()
    points = coordinates_of(np.array([[1.0, 2.0, 30.0]]), geometry)
    arcs = arc_map_of_origins(0.0, 8.0)
    mine = shared_points(points, geometry, arcs)
    lower = coordinates_of(np.array([[1.0, 2.0, 38.0]]), geometry)
    assert shared_points(lower, geometry, arcs.reversed) == pytest.approx(mine)


def test_what_no_image_covers_was_not_examined(make_geometry):
    """The sagittal slab reaches from -10 to 89.5 mm, the cord in its centerline from -20 to 99 mm."""
    geometry = make_geometry()
    world = np.array([[0.0, 0.0, 40.0], [0.0, 0.0, 79.0], [0.0, 0.0, 200.0], [20.0, 0.0, 40.0]])
    seen = examined_by(world, geometry)
    assert seen["T2Sag"].tolist() == [True, True, False, False]  # the last is outside the window
    assert share_examined(seen) == 0.5
    assert share_examined({}) == 0.0


def test_positions_are_the_inverse_of_arc_length(make_geometry):
    line = centerline_of(make_geometry(slope=(0.2, -0.1)), "T2Sag")
    s = np.array([-30.0, 0.0, 33.3, 140.0])
    assert position_of(line.arc_length(s), line) == pytest.approx(s)


def test_cord_coordinates_lead_back(make_geometry):
    geometry = make_geometry(slope=(0.1, 0.2))
    world = np.array([[1.0, 3.0, 20.0], [4.0, 5.0, 40.0]])
    there = coordinates_of(world, geometry)
    assert cord_to_world(there, geometry, key="T2Sag") == pytest.approx(world, abs=2e-3)
