"""A geometry applied again: the same case as the fit made, and no fit."""

from __future__ import annotations

import json

import numpy as np
import phantoms
import prepared_sessions as sessions
import pytest

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess import fuse, prepare
from bids_scseg.preprocess.reuse import GIVEN, prepare_given, restrict
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid

IMAGES, CORDS = sessions.session(shift=(2.0, 1.0))


@pytest.fixture(scope="module")
def fitted():
    return prepare.prepare_session(IMAGES, CORDS, sessions.RECIPE, register=False)


@pytest.fixture(scope="module")
def geometry(fitted):
    """As it comes from the file of an earlier run."""
    return Geometry.from_json(json.loads(json.dumps(fitted[0].geometry.to_json())))


def test_the_same_case_without_a_fit(fitted, geometry, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was fitted")

    monkeypatch.setattr(prepare, "chain_slabs", refuse)
    monkeypatch.setattr(fuse, "chain_slabs", refuse)
    monkeypatch.setitem(prepare.FRAMES, "centerline", refuse)
    case, report = prepare_given(geometry, IMAGES, CORDS, sessions.RECIPE)
    np.testing.assert_array_equal(case.image, fitted[0].image)
    np.testing.assert_array_equal(case.coverage, fitted[0].coverage)
    np.testing.assert_array_equal(case.cord, fitted[0].cord)
    assert case.geometry == fitted[0].geometry
    for mine, theirs in zip(report.sequences, fitted[1].sequences, strict=True):
        assert (mine.name, mine.files, mine.covered_mm) == (theirs.name, theirs.files, theirs.covered_mm)
        assert mine.residual_mm == pytest.approx(theirs.residual_mm, abs=1e-6)
        assert all(slab.reason == GIVEN and not slab.accepted for slab in mine.slabs)


def test_images_in_any_order(fitted, geometry):
    turned = {key: stack[::-1] for key, stack in IMAGES.items()}
    cords = {key: stack[::-1] for key, stack in CORDS.items()}
    case, _ = prepare_given(geometry, turned, cords, sessions.RECIPE)
    np.testing.assert_array_equal(case.image, fitted[0].image)


def test_fewer_sequences_on_the_same_grid(fitted, geometry):
    case, report = prepare_given(geometry, {"Sag": IMAGES["Sag"]}, CORDS, sessions.RECIPE)
    assert case.available == (True, False, False)
    assert case.geometry.grid == geometry.grid
    assert case.geometry.keys == ("Sag",)
    np.testing.assert_array_equal(case.coverage[0], fitted[0].coverage[0])
    assert [item.name for item in report.sequences] == ["Sag"]


def test_a_sequence_that_the_geometry_does_not_know_is_left_out(geometry):
    grid = sessions.AXIAL
    more = {**IMAGES, "Iso": [sessions.native(phantoms.Phantom(), grid, "iso")]}
    case, report = prepare_given(geometry, more, CORDS, sessions.RECIPE)
    assert case.available == (True, True, False)
    assert report.dropped == (("Iso", "the geometry given has no place for it"),)


def test_cords_elsewhere_are_told(geometry):
    """The cord moved by 6 mm between the runs, headers alike: it is not where the geometry has it."""
    images, cords = sessions.session(shift=(8.0, 1.0))
    _, report = prepare_given(geometry, images, cords, sessions.RECIPE)
    assert any("scatter" in line and line.startswith("Ax") for line in report.warnings)


def test_refusals(geometry):
    with pytest.raises(GeometryError, match="stands on Sag"):
        prepare_given(geometry, {"Ax": IMAGES["Ax"]}, CORDS, sessions.RECIPE)
    with pytest.raises(GeometryError, match="no image for slab 1 of Sag"):
        prepare_given(geometry, {"Sag": IMAGES["Sag"][1:]}, {}, sessions.RECIPE)
    data, grid, name = IMAGES["Ax"][0]
    moved = Grid(shape=grid.shape, affine=grid.affine + np.pad([[0.5]], ((0, 3), (3, 0))))
    with pytest.raises(GeometryError, match="no image for slab 0 of Ax"):
        prepare_given(geometry, {**IMAGES, "Ax": [(data, moved, name)]}, CORDS, sessions.RECIPE)
    with pytest.raises(CordNotFoundError, match="no sequence of this session shows the cord"):
        prepare_given(geometry, IMAGES, {}, sessions.RECIPE)
    with pytest.raises(GeometryError, match="leave --geometry out"):
        restrict(geometry, ["Ax"])
