"""Maps of a session in cord coordinates."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bids_scseg.measure.cordmap import BIN_MM, RING_EDGES, SECTORS, cord_map
from bids_scseg.measure.landmarks import Landmarks, Level

MARKS = Landmarks(
    origin_s_mm=60.0,
    kind="C2-C3 disc",
    levels=(Level(name="C3", top_s_mm=60.0, bottom_s_mm=42.0, approximate=False),),
)


def made(geometry, cord, labels=None, *, coverage=None, marks=MARKS):
    labels = np.zeros(cord.shape, np.int32) if labels is None else labels
    coverage = np.ones((1, *cord.shape), bool) if coverage is None else coverage
    return cord_map(labels, coverage=coverage, cord=cord, geometry=geometry, landmarks=marks)


def across(found, name):
    return np.array(found[f"across_{name}_mm3"]).reshape(len(RING_EDGES), SECTORS)


def test_volumes_and_places_along_a_straight_cord(make_geometry, round_cord):
    geometry = make_geometry()  # s from 0 to 79.5 mm, origin at 60: 19.5 mm above it, 60 mm below
    cord = round_cord(geometry)
    labels = np.zeros(cord.shape, np.int32)
    labels[23:25, 23:25, 70:80] = 1  # 10 mm³ at s 35 to 39.5: 20.5 to 25 mm below the origin
    found = made(geometry, cord, labels)
    assert found["first"] == -4
    assert found["anatomical"] is True
    assert sum(found["cord_mm"]) == pytest.approx(80, abs=0.1)
    assert sum(found["lesion_mm3"]) == pytest.approx(labels.sum() * 0.125)
    hit = {(n + found["first"]) * BIN_MM for n, volume in enumerate(found["lesion_mm3"]) if volume}
    assert hit <= {20.0, 25.0}
    assert 20.0 in hit
    area = cord[:, :, 0].sum() * 0.25
    assert found["cord_mm3"][2:-1] == pytest.approx([area * BIN_MM] * (len(found["cord_mm3"]) - 3), rel=0.02)
    assert found["levels"] == [["C3", pytest.approx(0.0), pytest.approx(18.0)]]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("i", "j", "angle"), [(0, 1, 0.0), (1, 0, 90.0), (0, -1, 180.0), (-1, 0, -90.0), (1, 1, 45.0)]
)
def test_sides_across_the_cord(make_geometry, round_cord, i, j, angle):
    """A lesion 3 mm from the middle of a cord of 5 mm radius: ring 0.55 to 0.8, on its own side."""
    geometry = make_geometry(slices=60)
    cord, labels = round_cord(geometry), np.zeros((48, 48, 60), np.int32)
    length = np.hypot(i, j)
    at = (round(23.5 + 6.4 * i / length), round(23.5 + 6.4 * j / length))
    labels[at[0], at[1], 20:40] = 1
    found = across(made(geometry, cord, labels), "lesion")
    ring, sector = np.unravel_index(found.argmax(), found.shape)
    assert RING_EDGES[ring] == 0.55
    middle = -180 + (sector + 0.5) * 360 / SECTORS
    assert abs((middle - angle + 180) % 360 - 180) <= 15


def test_all_examined_cord_is_in_both_maps(make_geometry, round_cord):
    geometry = make_geometry(slices=60, slope=(0.1, 0.2))
    cord = round_cord(geometry)
    found = made(geometry, cord)
    total = cord.sum() * 0.125
    assert sum(found["cord_mm3"]) == pytest.approx(total, rel=1e-3)
    assert across(found, "cord").sum() == pytest.approx(total, rel=1e-3)
    # an ellipse of second moments has as much area in each quarter
    quarters = np.roll(across(found, "cord"), 3, axis=1).reshape(4, 4, 6).sum(axis=(0, 2))
    assert quarters == pytest.approx([total / 4] * 4, rel=0.05)


def test_what_is_not_covered_is_not_examined(make_geometry, round_cord):
    geometry = make_geometry(slices=80)
    cord = round_cord(geometry)
    coverage = np.ones((1, *cord.shape), bool)
    coverage[..., :40] = False  # the lower half: s below 20 mm, 40 mm and more below the origin
    found = made(geometry, cord, coverage=coverage)
    assert sum(found["cord_mm"]) == pytest.approx(40, abs=0.1)
    assert sum(found["examined_mm"]) == pytest.approx(20, abs=0.1)
    assert sum(found["cord_mm3"]) == pytest.approx(cord[..., 40:].sum() * 0.125, rel=1e-3)
    nothing = made(geometry, cord, coverage=np.zeros_like(coverage))
    assert nothing["cord_mm"] == nothing["across_cord_mm3"] == []


def test_without_a_landmark_the_origin_is_not_anatomical(make_geometry, round_cord):
    geometry = make_geometry(slices=40)
    marks = Landmarks(origin_s_mm=19.75, kind="top of the prepared cord")
    found = made(geometry, round_cord(geometry), marks=marks)
    assert found["anatomical"] is False
    assert found["levels"] == []
