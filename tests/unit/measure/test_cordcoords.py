"""Cord coordinates against lines and circles that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.measure.cordcoords import centerline_of, cord_coordinates, section_index, slice_arc_mm
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid


def _geometry(line=None):
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = [-11.75, -11.75, 0.0]
    lines = {} if line is None else {"T2Sag": line}
    grid = Grid(shape=(48, 48, 160), affine=affine)
    return Geometry(frame="centerline", anchor="T2Sag", grid=grid, slabs=(), centerlines=lines)


def _arch(radius=60.0):
    """A cord on a circle in the sagittal plane, centre 60 mm in front of its middle at s = 40."""
    s = np.arange(0.0, 80.1, 0.5)
    y = radius - np.sqrt(radius**2 - (s - 40) ** 2)
    return Centerline(s_mm=s, xy_mm=np.column_stack([np.zeros_like(y), y]), measured=np.ones(s.size, bool))


def test_on_a_circle_radius_and_angle_come_back():
    radius = 60.0
    geometry = _geometry(_arch(radius))
    polar = np.array([-0.3, 0.0, 0.2, 0.35])  # angle along the circle, rad
    front = np.array([3.0, -2.0, 4.0, -4.0])  # towards the circle's centre
    world = np.column_stack(
        [np.full(4, 1.5), radius - (radius - front) * np.cos(polar), 40 + (radius - front) * np.sin(polar)]
    )
    points = cord_coordinates(geometry.to_prepared(world, key="T2Sag"), geometry, key="T2Sag")
    assert points.s_mm == pytest.approx(40 + radius * np.sin(polar), abs=0.02)
    assert points.u_mm == pytest.approx(np.full(4, 1.5), abs=1e-6)
    assert points.v_mm == pytest.approx(front, abs=0.02)


def test_arc_of_slices():
    arc = slice_arc_mm(_geometry(_arch()), "T2Sag")
    # From s = 10 to 70 the circle spans 2 asin(30/60) = 60 degrees.
    assert arc[20:140].sum() == pytest.approx(60 * np.pi / 3, abs=0.3)
    assert slice_arc_mm(_geometry(), "T2Sag") == pytest.approx(np.full(160, 0.5))


def test_without_a_centerline_the_middle_axis_counts():
    geometry = _geometry()
    assert centerline_of(geometry, "T1").at(12.0) == pytest.approx([0, 0])
    points = cord_coordinates([[23.5, 25.5, 10]], geometry, key="T1")
    assert (points.s_mm[0], points.u_mm[0], points.v_mm[0]) == pytest.approx((5, 0, 1))


def test_no_points():
    assert cord_coordinates(np.zeros((0, 3)), _geometry(), key="T2Sag").s_mm.shape == (0,)


@given(st.floats(12, 68), st.floats(-8, 8), st.floats(-8, 8), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_sections_and_coordinates_are_inverse(s, u, v, slope_x, slope_y):
    nodes = np.arange(-20.0, 100, 1.0)
    line = Centerline(
        s_mm=nodes, xy_mm=np.outer(nodes, [slope_x, slope_y]), measured=np.ones(nodes.size, bool)
    )
    geometry = _geometry(line)
    index = section_index(s, geometry, key="T2Sag", u=np.array([u]), v=np.array([v]))
    points = cord_coordinates(index.reshape(-1, 3), geometry, key="T2Sag")
    assert (points.s_mm[0], points.u_mm[0], points.v_mm[0]) == pytest.approx((s, u, v), abs=1e-6)
