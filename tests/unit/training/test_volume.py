from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.training.volume import (
    Acquisition,
    Warp,
    WarpConfig,
    acquire,
    draw_acquisition,
    draw_blobs,
    draw_view,
    draw_warp,
    normalise,
    stretch,
    take_labels,
    take_values,
    warp_coordinates,
)

SHAPE = (9, 11, 13)


def still(centre: tuple[float, float, float]) -> Warp:
    return Warp(matrix=np.eye(3), centre=np.array(centre), nodes=np.zeros((3, 2, 2, 2), np.float32))


def test_identity_warp_copies() -> None:
    volume = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8)
    at = warp_coordinates(still((4.0, 5.0, 6.0)), SHAPE)
    assert np.array_equal(take_labels(volume, at), volume)
    assert np.allclose(take_values(volume.astype(np.float32), at), volume, atol=1e-4)


def test_outside_is_zero() -> None:
    volume = np.ones(SHAPE, np.uint8)
    at = warp_coordinates(still((4.0, 5.0, 16.0)), SHAPE)  # shifted up by 10 of 13 voxels
    assert take_labels(volume, at).sum() == 9 * 11 * 3
    assert take_labels(volume, at)[:, :, :3].all()


def test_a_flip_mirrors_right_left() -> None:
    volume = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    warp = Warp(
        matrix=np.diag([-1.0, 1, 1]), centre=np.array([4.0, 5, 6]), nodes=np.zeros((3, 2, 2, 2), np.float32)
    )
    assert np.allclose(take_values(volume, warp_coordinates(warp, SHAPE)), volume[::-1], atol=1e-2)


@given(seed=st.integers(0, 10_000))
def test_draws_are_replayable_and_keep_volume_within_the_stated_scale(seed: int) -> None:
    config = WarpConfig()
    one, two = (draw_warp(np.random.default_rng(seed), config, centre=(1, 2, 3)) for _ in range(2))
    assert np.array_equal(one.matrix, two.matrix)
    assert np.array_equal(one.nodes, two.nodes)
    limit = np.exp(3 * (config.scale + config.anisotropy)) * 1.0001
    assert 1 / limit <= abs(np.linalg.det(one.matrix)) <= limit


def test_thick_slices_of_a_ramp_are_the_ramp_between_them() -> None:
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (3, 3, 40)).copy()
    seen = acquire(ramp, Acquisition(axis=2, step=5.0, thickness=5.0, start=2.0))
    # slices of odd thickness centred at 2, 7, … 37 average to their middle; beyond them the value stays
    assert np.allclose(seen[:, :, 2:38], ramp[:, :, 2:38], atol=1e-4)
    assert np.allclose(seen[:, :, :2], 2.0)
    assert np.allclose(seen[:, :, 38:], 37.0)


def test_isotropic_acquisition_is_the_volume_itself() -> None:
    volume = np.random.default_rng(1).random(SHAPE, np.float32)
    assert acquire(volume, Acquisition()) is volume


@given(seed=st.integers(0, 10_000))
def test_any_acquisition_keeps_shape_and_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.random((12, 14, 16), np.float32)
    seen = acquire(volume, draw_acquisition(rng))
    assert seen.shape == volume.shape
    assert volume.min() - 1e-5 <= seen.min() <= seen.max() <= volume.max() + 1e-5


@given(seed=st.integers(0, 10_000))
def test_views_hold_the_focus_or_the_edge_nearest_to_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    focus = rng.uniform(0, (47, 63, 95))
    view = draw_view(rng, (48, 64, 96), least=(30, 36, 12), focus=focus)
    for part, n, least in zip(view, (48, 64, 96), (30, 36, 12), strict=True):
        assert 0 <= part.start < part.stop <= n
        assert part.stop - part.start >= least
    for part, centre in zip(view, focus, strict=True):
        assert part.start - 1 <= centre <= part.stop


def test_normalise_uses_covered_voxels_only() -> None:
    volume = np.array([1.0, 3.0, 1000.0], np.float32).reshape(3, 1, 1)
    covered = np.array([True, True, False]).reshape(3, 1, 1)
    # mean 2, standard deviation 1
    assert normalise(volume, covered).ravel().tolist() == [-1.0, 1.0, 0.0]
    assert not normalise(np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2), bool)).any()
    assert not normalise(volume, np.zeros((3, 1, 1), bool)).any()


def test_stretch_keeps_corners_and_is_linear() -> None:
    field = np.zeros((2, 2, 2), np.float32)
    field[1] = 8.0
    wide = stretch(field, (9, 3, 3))
    assert wide.shape == (9, 3, 3)
    assert wide[:, 1, 1].tolist() == pytest.approx(list(range(9)))


@given(seed=st.integers(0, 10_000))
def test_blobs_lie_in_the_cord(seed: int) -> None:
    cord = np.zeros((20, 20, 30), bool)
    cord[6:14, 7:13] = True
    blobs = draw_blobs(np.random.default_rng(seed), cord, share=1.0)
    assert blobs.any()
    assert not (blobs & ~cord).any()
    assert not draw_blobs(np.random.default_rng(seed), cord, share=0.0).any()
    assert not draw_blobs(np.random.default_rng(seed), np.zeros_like(cord), share=1.0).any()
