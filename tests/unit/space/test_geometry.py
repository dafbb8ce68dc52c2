from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import affines, rigids

from bids_scseg.errors import GeometryError
from bids_scseg.space import geometry as module
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab, seam_weight
from bids_scseg.space.grid import Grid


def centered(shape, affine, at=(0.0, 0.0, 0.0)):
    """A grid whose middle voxel lies at a world point."""
    matrix = np.array(affine, dtype=float)
    matrix[:3, 3] = np.asarray(at) - matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape=shape, affine=matrix)


def curved(amplitude=6.0):
    s = np.arange(-60.0, 61.0)
    xy = np.stack([amplitude * np.sin(s / 25), amplitude * np.cos(s / 40)], axis=1)
    return Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))


def geometry(slabs, *, length=80, line=None, grid=None, spacing=0.5):
    grid = grid or centered((48, 48, length), np.diag([spacing] * 3 + [1.0]))
    lines = {slab.key: line for slab in slabs} if line is not None else {}
    return Geometry(frame="centerline", anchor="A", grid=grid, slabs=tuple(slabs), centerlines=lines)


@given(affines(), rigids(), st.integers(0, 2**31))
def test_coordinates_round_trip_to_a_millionth_of_a_millimetre(affine, xfm, seed):
    slab = Slab(key="A", index=0, file="a", grid=centered((20, 20, 20), affine), xfm=xfm)
    space = geometry([slab], line=curved())
    ijk = np.random.default_rng(seed).uniform(-5, 50, (40, 3))
    world = space.to_world(ijk, key="A")
    np.testing.assert_allclose(space.to_prepared(world, key="A"), ijk, atol=2e-6)
    native = slab.to_index(world)
    np.testing.assert_allclose(slab.to_world(native), world, atol=1e-6)


@given(affines(0.5, 3.0), rigids(5, 3))
def test_linear_ramps_survive_apply_exactly(affine, xfm):
    grid = centered((40, 40, 40), affine)
    slab = Slab(key="A", index=0, file="a", grid=grid, xfm=xfm)
    space = geometry([slab], line=curved(), length=40)
    ijk = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    ramp = slab.to_world(ijk) @ [0.3, -0.2, 0.5]
    volume, coverage = space.apply([ramp], key="A")
    prepared = np.stack(np.meshgrid(*map(np.arange, space.grid.shape), indexing="ij"), axis=-1)
    world = space.to_world(prepared, key="A")
    index = slab.to_index(world)
    interior = ((index >= 0) & (index <= np.asarray(grid.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(volume[interior], (world @ [0.3, -0.2, 0.5])[interior], atol=2e-4)
    assert not volume[~coverage].any()


def test_the_shear_keeps_the_cord_in_the_middle_of_every_slice():
    line = curved()
    grid = centered((120, 120, 60), np.diag([0.5, 0.5, 1.0, 1.0]))
    slab = Slab(key="A", index=0, file="a", grid=grid)
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    cord = np.linalg.norm(world[..., :2] - line.at(world[..., 2]), axis=-1) < 5
    volume, _ = geometry([slab], line=line).apply([cord.astype(np.float32)], key="A")
    for k in range(0, 80, 7):
        i, j = np.meshgrid(np.arange(48), np.arange(48), indexing="ij")
        weight = volume[:, :, k]
        assert np.average(i, weights=weight) == pytest.approx(23.5, abs=0.1)
        assert np.average(j, weights=weight) == pytest.approx(23.5, abs=0.1)


@given(affines(0.5, 3.0), rigids(5, 3), st.integers(0, 2**31))
def test_restored_maps_keep_their_sum(affine, xfm, seed):
    rng = np.random.default_rng(seed)
    slab = Slab(key="A", index=0, file="a", grid=centered((64, 64, 64), affine), xfm=xfm)
    space = geometry([slab], line=curved(3.0), length=60)
    index = np.stack(np.meshgrid(*map(np.arange, space.grid.shape), indexing="ij"), axis=-1)
    centre, radius = rng.uniform([20, 20, 25], [28, 28, 35]), rng.uniform(6, 9)
    blob = np.clip(radius + 0.5 - np.linalg.norm(index - centre, axis=-1), 0, 1)
    inside = slab.grid.contains(slab.to_index(space.to_world(index[blob > 0], key="A"))).all()
    restored = space.restore(blob, slab)
    assume(inside)  # a sphere that the slab cuts loses what lies outside
    native = restored.sum() * slab.grid.voxel_volume
    assert native == pytest.approx(blob.sum() * space.grid.voxel_volume, rel=0.05)


def test_restore_after_apply_is_the_identity_inside_and_zero_outside():
    grid = centered((60, 60, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    slab = Slab(key="A", index=0, file="a", grid=grid)
    space = geometry([slab], line=curved(3.0), length=60)
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    smooth = np.cos(world @ [0.05, 0.03, 0.02]).astype(np.float32)
    volume, _ = space.apply([smooth], key="A")
    restored = space.restore(volume, slab)
    index = space.to_prepared(world, key="A")
    inside = ((index > 3) & (index < np.asarray(space.grid.shape) - 4)).all(axis=-1)
    outside = ((index < -4) | (index > np.asarray(space.grid.shape) + 3)).any(axis=-1)
    assert np.abs(restored - smooth)[inside].max() < 0.003  # linear interpolation of a 100 mm wave
    assert not restored[outside].any()


@given(st.permutations([0, 1, 2]), st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3))
def test_the_result_does_not_depend_on_how_the_input_is_stored(order, signs):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(30, 31, 32)).astype(np.float32)
    affine = np.diag([0.8, 0.9, 1.1, 1.0])
    grid = centered(data.shape, affine)
    slicer = tuple(slice(None, None, sign) for sign in signs)
    stored = data[slicer].transpose(order)
    flip = np.eye(4)
    for axis, sign in enumerate(signs):
        if sign < 0:
            flip[axis, axis], flip[axis, 3] = -1, data.shape[axis] - 1
    permute = np.eye(4)[:, [*order, 3]]
    other = Grid(shape=stored.shape, affine=grid.affine @ flip @ permute)
    volumes = [
        geometry([Slab(key="A", index=0, file="a", grid=g)], line=curved(3.0), length=40).apply([d], key="A")[
            0
        ]
        for g, d in ((grid, data), (other, stored))
    ]
    np.testing.assert_allclose(volumes[0], volumes[1], atol=1e-5)


def test_two_slabs_switch_at_the_seam_and_fill_in_for_each_other():
    low = Slab(
        key="A", index=1, file="b", grid=centered((60, 60, 40), np.eye(4), (0, 0, -10)), serves=(-np.inf, 0)
    )
    high = Slab(
        key="A", index=0, file="a", grid=centered((60, 60, 18), np.eye(4), (0, 0, 12)), serves=(0, np.inf)
    )
    space = geometry([low, high], length=80)  # s from -19.75 to 19.75
    volume, coverage = space.apply([np.ones((60, 60, 18)), np.full((60, 60, 40), 2.0)], key="A")
    middle = volume[24, 24]
    s = space.s_mm
    assert coverage.all()
    assert (middle[s < 0] == 2).all()
    assert (middle[s > 3.0] == 1).all()  # the upper slab starts at s = 3
    assert (middle[(s > 0) & (s < 2.9)] == 2).all()  # below its start the lower slab fills in


@given(st.floats(-30, 30), st.floats(0, 10))
def test_seam_weights_of_abutting_slabs_sum_to_one(seam, feather):
    s = np.linspace(-50, 50, 201)
    total = seam_weight(s, (-np.inf, seam), feather) + seam_weight(s, (seam, np.inf), feather)
    np.testing.assert_allclose(total, 1)


def test_fused_grid_encloses_all_slabs_on_the_uppermost_lattice():
    upper = Slab(key="A", index=0, file="a", grid=centered((20, 10, 30), np.diag([2.0, 1, 1, 1]), (0, 0, 20)))
    lower = Slab(key="A", index=1, file="b", grid=centered((20, 10, 30), np.diag([2.0, 1, 1, 1]), (0, 0, -5)))
    fused = geometry([upper, lower]).fused_grid("A")
    np.testing.assert_allclose(fused.spacing, upper.grid.spacing)
    assert fused.shape == (20, 10, 55)
    index = upper.grid.to_index(fused.to_world([0, 0, 0]))
    np.testing.assert_allclose(index, np.round(index), atol=1e-9)


def sagittal(shape, at=0.0):
    """A sagittal slab as files have it, with its short axis, that from left to right, last."""
    turned = np.array([[0, 0, 3.3, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1.0]])
    return Slab(key="A", index=0, file="a", grid=centered(shape, turned, (0, 0, at)))


@pytest.mark.parametrize("shape", [(600, 600, 16), (1200, 1200, 4)])
def test_large_slices_are_fused_piece_by_piece(shape):
    slab = sagittal(shape)
    image = np.ones(shape, np.float32)
    space = geometry([slab])
    tracemalloc.start()
    try:
        volume, coverage = space.sample([image], key="A", grid=slab.grid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (volume == 1).all() and coverage.all()
    assert peak < volume.nbytes + coverage.nbytes + 80e6  # all at once: 690 MB for the first


@pytest.mark.parametrize("voxels", [50, 700, 4000])
@pytest.mark.parametrize("fused", [True, False])
def test_the_size_of_the_pieces_changes_nothing(voxels, fused, monkeypatch):
    upper, lower = sagittal((40, 50, 9), at=8), sagittal((40, 50, 9), at=-8)
    stack = [replace(upper, serves=(0, np.inf)), replace(lower, index=1, serves=(-np.inf, 0), scale=0.8)]
    images = list(np.random.default_rng(0).random((2, 40, 50, 9), np.float32))
    space = geometry(stack, line=curved())
    grid = space.fused_grid("A") if fused else None
    whole = space.sample(images, key="A", grid=grid, feather_mm=3.0)
    monkeypatch.setattr(module, "BLOCK_VOXELS", voxels)
    pieces = space.sample(images, key="A", grid=grid, feather_mm=3.0)
    np.testing.assert_allclose(pieces[0], whole[0], atol=1e-6)
    assert (pieces[1] == whole[1]).all()


def test_windows_are_mapped_64_slices_at_a_time():
    assert list(module._blocks((48, 48, 100))) == [
        (slice(0, 48), slice(0, 64)),
        (slice(0, 48), slice(64, 100)),
    ]


def test_json_round_trip_through_text():
    slab = Slab(
        key="A", index=0, file="a", grid=centered((9, 8, 7), np.eye(4)), serves=(-np.inf, 3.5), scale=1.2
    )
    space = geometry([slab], line=curved())
    assert Geometry.from_json(json.loads(json.dumps(space.to_json(), allow_nan=False))) == space


@pytest.mark.parametrize("broken", [{}, {"version": 1}, {"version": 99}, {"version": 1, "grid": 3}])
def test_malformed_geometry_json_is_refused(broken):
    with pytest.raises(GeometryError):
        Geometry.from_json(broken)


def test_wrong_number_of_images_and_wrong_maps_are_refused():
    space = geometry([Slab(key="A", index=0, file="a", grid=centered((9, 8, 7), np.eye(4)))])
    with pytest.raises(GeometryError, match="one per slab"):
        space.apply([], key="A")
    with pytest.raises(GeometryError, match="map of shape"):
        space.restore(np.zeros((2, 2, 2)), space.slabs[0])


@pytest.mark.parametrize(
    ("place", "value"),
    [((0, 0), np.nan), ((0, 3), np.inf), ((0, 1), 3.0), ((2, 2), -1.0), ((3, 0), 1.0), ((1, 1), 1.01)],
)
def test_a_transform_that_does_more_than_turn_and_move_is_refused(place, value):
    """Not finite, a shear (of determinant 1), a mirror, a projection, a scale."""
    xfm = np.eye(4)
    xfm[place] = value
    with pytest.raises(GeometryError, match="not rigid"):
        Slab(key="A", index=0, file="a", grid=centered((5, 5, 5), np.eye(4)), xfm=xfm)
