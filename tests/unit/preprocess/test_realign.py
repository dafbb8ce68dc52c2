"""Two sessions brought together: a known displacement, wrong starts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import phantoms
import pytest
from hypothesis import given
from scipy.spatial.transform import Rotation
from strategies import rigids

from bids_scseg.preprocess import realign as module
from bids_scseg.preprocess.realign import Timepoint, coarser, cord_line, laid_upon, mean_rigid, realign
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid, transform_points

PHANTOM = phantoms.Phantom()
#: Cord and vertebrae, where a transform is judged.
POINTS = np.array([[x, y, z] for x in (-8, 8) for y in (-20, 0, 20) for z in (-35, 0, 35)], dtype=float)


def moved(shift, turn):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    out[:3, 3] = shift
    return out


def session(move=None, *, center=(0.0, 0.0, 0.0), noise=0) -> Timepoint:
    """The phantom, moved, in a sagittal scan of 3 mm slices; its centerline as it truly is."""
    move = np.eye(4) if move is None else move
    grid = phantoms.lattice(spacing=(3.0, 1.0, 1.0), size_mm=(42, 84, 110), center=center, orientation="PSR")
    image = phantoms.rendered(PHANTOM, grid, moved=move, samples=2)
    image = image + np.random.default_rng(noise).normal(0, 3, image.shape).astype(np.float32)
    z = np.arange(-70.0, 71.0, 1.0)
    line = transform_points(move, np.column_stack([PHANTOM.center(z), z]))
    inside = grid.contains(grid.to_index(line))
    s = np.arange(np.ceil(line[inside][0, 2]), np.floor(line[inside][-1, 2]) + 1)
    xy = np.column_stack([np.interp(s, line[:, 2], line[:, axis]) for axis in (0, 1)])
    box = Grid(shape=(48, 48, s.size * 2), affine=np.diag([0.5, 0.5, 0.5, 1.0]))
    affine = box.affine.copy()
    affine[:3, 3] = (-12, -12, s[0])
    geometry = Geometry(
        frame="centerline",
        anchor="T2Sag",
        grid=Grid(shape=box.shape, affine=affine),
        slabs=(Slab(key="T2Sag", index=0, file="x", grid=grid),),
        centerlines={"T2Sag": Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))},
    )
    return Timepoint(image=image.astype(np.float32), grid=grid, geometry=geometry)


def off(found, move) -> float:
    """Largest distance between where two transforms take the phantom, mm."""
    return float(
        np.linalg.norm(transform_points(found, POINTS) - transform_points(move, POINTS), axis=1).max()
    )


@pytest.mark.parametrize(
    "move",
    [moved((3.0, -4.0, 2.0), (2.0, 1.0, -4.0)), moved((1.0, 6.0, 27.0), (3.0, 0.0, 0.0))],
    ids=["a little", "more than a vertebra"],
)
def test_a_known_displacement_is_found(move):
    first, second = session(), session(move, center=move[:3, 3], noise=1)
    found = realign(first, second)
    assert found.accepted, found.reason
    assert found.registered
    assert off(found.xfm, move) < 0.5
    assert found.inverse_mm < 0.5
    assert found.similarity_after > found.similarity_before
    back = realign(second, first)
    assert off(back.xfm @ found.xfm, np.eye(4)) < 0.3


def test_the_same_images_keep_their_headers(monkeypatch):
    """Nothing is better than the truth: the registration cannot raise a perfect similarity."""
    nudge = moved((0.3, 0.0, 0.0), (0, 0, 0))
    monkeypatch.setattr(module, "register_rigid", lambda *_, seed: nudge)
    first = session()
    found = realign(first, first)
    assert found.accepted
    assert not found.registered
    assert (found.xfm == np.eye(4)).all()
    assert found.similarity_after == pytest.approx(1.0)


def test_directions_that_disagree_are_not_taken(monkeypatch):
    shifts = iter([moved((2.0, 0, 0), (0, 0, 0)), moved((0.0, 0, 0), (0, 0, 0))])
    monkeypatch.setattr(module, "register_rigid", lambda *_, seed: next(shifts))
    found = realign(session(), session(noise=1))
    assert not found.registered
    assert found.inverse_mm == pytest.approx(2.0)
    assert "two directions" in found.reason


def test_another_person_is_refused(monkeypatch):
    monkeypatch.setattr(module, "register_rigid", lambda *_, seed: np.eye(4))
    first, rng = session(), np.random.default_rng(3)
    second = replace(first, image=rng.normal(100, 20, first.image.shape).astype(np.float32))
    found = realign(first, second)
    assert not found.accepted
    assert "not alike" in found.reason


def test_levels_that_contradict_the_images_refuse_them(monkeypatch):
    monkeypatch.setattr(module, "register_rigid", lambda *_, seed: np.eye(4))
    first = session()
    levels = [replace(first, origin_mm=np.array([0.0, 0.0, height])) for height in (0.0, 12.0)]
    found = realign(*levels)
    assert not found.accepted
    assert "levels disagree by 12 mm" in found.reason


def test_too_little_cord_in_both_images_is_not_registered():
    """The second patient lies 190 mm higher: no start reaches that far."""
    up = moved((0, 0, 190.0), (0, 0, 0))
    found = realign(session(), session(up, center=(0, 0, 190.0)))
    assert not found.accepted
    assert "mm of cord lie in both images" in found.reason


def test_a_session_without_centerline_is_refused():
    first = session()
    line = first.geometry.centerlines["T2Sag"]
    blind = replace(line, measured=np.zeros(line.s_mm.size, bool))
    other = replace(first, geometry=replace(first.geometry, centerlines={"T2Sag": blind}))
    assert "no centerline" in realign(first, other).reason
    assert cord_line(other.geometry).shape == (0, 3)


def test_a_line_is_laid_upon_its_moved_self():
    z = np.arange(-40.0, 41.0, 4.0)
    line = np.column_stack([0.1 * z, 0.002 * z**2, z])
    there = transform_points(moved((5.0, -3.0, 10.0), (0, 0, 0)), line)
    start = laid_upon(line, there, along_mm=10.0)
    assert transform_points(start, line) == pytest.approx(there, abs=0.2)


@given(rigids(), rigids())
def test_a_mean_lies_between(one, other):
    at = np.array([1.0, 2.0, 3.0])
    mean = mean_rigid(one, other, at=at)
    assert mean[:3, :3] @ mean[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
    middle = (transform_points(one, at) + transform_points(other, at)) / 2
    assert transform_points(mean, at) == pytest.approx(middle)
    assert mean_rigid(other, one, at=at) == pytest.approx(mean, abs=1e-9)


def test_blocks_keep_their_place():
    """1 mm voxels in twos, 3 mm slices as they are; the middle of a block is between its voxels."""
    grid = Grid(shape=(5, 4, 3), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    image = np.arange(60, dtype=np.float32).reshape(grid.shape)
    small, lattice = coarser(image, grid)
    assert small.shape == lattice.shape == (2, 2, 3)
    assert lattice.spacing.tolist() == [2.0, 2.0, 3.0]
    assert lattice.to_world([0, 0, 0]).tolist() == [0.5, 0.5, 0.0]
    assert small[0, 0, 0] == image[:2, :2, 0].mean()
