"""Cord clean-up, centres per slice, robust centerlines, extension by consensus."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import CordNotFoundError
from bids_scseg.preprocess import align
from bids_scseg.preprocess.frames import reference_axes
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.grid import Grid

ORIENTATIONS = ("RAS", "LAS", "LPS", "PSR", "ASL", "SRP")


def line(s: object, x: object, *, y: object = 0.0) -> Centerline:
    s = np.asarray(s, dtype=float)
    xy = np.stack([np.broadcast_to(x, s.shape), np.broadcast_to(y, s.shape)], axis=1)
    return Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))


# -- centres ---------------------------------------------------------------------------------------


def test_centres_of_a_hand_made_mask() -> None:
    # Two voxels at i = 1, 2 and j = 3 in slice 4, spacing 1 x 1 x 2 mm: centre (1.5, 3), s = 8, area 2 mm2.
    grid = Grid(shape=(6, 6, 6), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[1:3, 3, 4] = True
    s, xy, area = align.measure_centers(mask, grid, np.eye(3))
    assert s.tolist() == [8.0]
    assert xy.tolist() == [[1.5, 3.0]]
    assert area.tolist() == [2.0]


def test_partial_volume_weights_shift_the_centre() -> None:
    grid = Grid(shape=(6, 6, 6), affine=np.eye(4))
    weights = np.zeros(grid.shape, np.float32)
    weights[1, 2, 3], weights[2, 2, 3] = 1.0, 0.5
    # (1 x 1 + 2 x 0.5) / 1.5 = 4/3
    assert align.measure_centers(weights, grid, np.eye(3))[1][0, 0] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "spacing, tilt, tolerance",
    [
        ((1.0, 1.0, 1.0), (0, 0, 0), 0.3),  # a quarter of a voxel: edges of a hard mask
        ((0.6, 0.6, 4.0), (12, -6, 0), 0.5),  # oblique axial
        ((3.0, 0.8, 0.8), (3, 0, 8), 0.7),  # sagittal: three slices across the cord
        ((0.8, 0.8, 0.8), (25, 15, 0), 0.5),
    ],
)
def test_centres_lie_on_the_cord_in_any_lattice(
    spacing: tuple[float, float, float], tilt: tuple[float, float, float], tolerance: float
) -> None:
    phantom = phantoms.Phantom(top_mm=35, bottom_mm=-35)
    grid = phantoms.lattice(spacing=spacing, size_mm=(48, 60, 100), rotation_deg=tilt)
    s, xy, area = align.measure_centers(phantoms.cord_mask(phantom, grid), grid, np.eye(3))
    assert np.linalg.norm(xy - phantom.center(s), axis=1).max() < tolerance
    # The phantom leans by up to 0.35 mm per mm, which tilted planes see as up to 16 % more area.
    assert np.median(area) == pytest.approx(np.pi * phantoms.CORD_RADIUS_MM**2, rel=0.2)


@given(orientation=st.sampled_from(ORIENTATIONS))
def test_centres_do_not_depend_on_storage(orientation: str) -> None:
    grid = phantoms.lattice(spacing=(0.7, 0.7, 3), size_mm=(40, 50, 60), rotation_deg=(10, 5, 0))
    mask = phantoms.cord_mask(phantoms.Phantom(), grid)
    axes = reference_axes(grid)
    expected = align.measure_centers(mask, grid, axes)
    stored, other = phantoms.restored_as(mask, grid, orientation)
    assert np.allclose(reference_axes(other), axes, atol=1e-9)
    for a, b in zip(align.measure_centers(stored, other, axes), expected, strict=True):
        assert np.allclose(a, b, atol=1e-9)


def test_a_transform_moves_the_centres_back() -> None:
    grid = phantoms.lattice(size_mm=(40, 40, 40))
    mask = phantoms.cord_mask(phantoms.Phantom(), grid)
    s, xy, _ = align.measure_centers(mask, grid, np.eye(3))
    move = np.eye(4)
    move[:3, 3] = (1, 2, 3)  # reference to slab: the slab shows everything 3 mm higher than the reference
    there, shifted, _ = align.measure_centers(mask, grid, np.eye(3), xfm=move)
    assert np.allclose(there, s - 3)
    assert np.allclose(shifted, xy - [1, 2])


def test_empty_mask_has_no_centres() -> None:
    grid = phantoms.lattice(size_mm=(4, 4, 4))
    s, xy, area = align.measure_centers(np.zeros(grid.shape, bool), grid, np.eye(3))
    assert s.size == 0
    assert xy.shape == (0, 2)
    assert area.size == 0


# -- fit -------------------------------------------------------------------------------------------


def test_a_straight_slanted_cord_is_exact() -> None:
    s = np.arange(0.0, 60, 3)
    fitted = align.fit_centerline(s, np.stack([0.2 * s, 5 - 0.4 * s], axis=1))
    assert np.allclose(fitted.xy_mm, np.stack([0.2 * fitted.s_mm, 5 - 0.4 * fitted.s_mm], axis=1), atol=0.02)
    assert fitted.measured.all()
    assert np.diff(fitted.s_mm).max() <= 1 + 1e-9
    assert fitted.s_mm[[0, -1]].tolist() == [-1.5, 58.5]  # half a slice beyond the outer centres


@given(bad=st.lists(st.integers(1, 12).map(lambda n: 3 * n), min_size=1, unique=True), size=st.floats(6, 40))
def test_outlier_slices_do_not_bend_the_line(bad: list[int], size: float) -> None:
    s = np.arange(0.0, 120, 3)
    true = np.stack([4 * np.sin(s / 25), 0.1 * s], axis=1)
    centres = true + np.random.default_rng(0).normal(0, 0.1, true.shape)
    centres[bad] += size
    assert align.find_outliers(s, centres)[bad].all()
    fitted = align.fit_centerline(s, centres)
    inner = fitted.measured & (fitted.s_mm > 3) & (fitted.s_mm < 114)
    expected = np.stack([4 * np.sin(fitted.s_mm / 25), 0.1 * fitted.s_mm], axis=1)
    assert np.linalg.norm(fitted.xy_mm - expected, axis=1)[inner].max() < 0.6


def test_a_run_of_bad_slices_is_rejected_too() -> None:
    s = np.arange(0.0, 120, 3)
    centres = np.stack([4 * np.sin(s / 25), 0.1 * s], axis=1)
    centres[20:23, 0] += 8  # 9 mm of cord
    assert np.flatnonzero(align.find_outliers(s, centres)).tolist() == [20, 21, 22]


def test_clean_slices_are_no_outliers() -> None:
    s = np.arange(0.0, 200, 1)
    centres = np.stack([10 * np.sin(s / 30), 0.4 * s], axis=1)
    assert not align.find_outliers(s, centres).any()


def test_a_long_gap_is_filled_but_not_measured() -> None:
    s = np.concatenate([np.arange(0.0, 31), np.arange(60.0, 91)])
    fitted = align.fit_centerline(s, np.stack([s * 0.1, s * 0], axis=1))
    assert fitted.is_measured([10, 34, 56, 80]).all()
    assert not fitted.is_measured([37, 45, 53]).any()
    assert fitted.at(45.0)[0] == pytest.approx(4.5, abs=0.1)


def test_a_gap_of_ten_millimetres_counts_as_measured() -> None:
    s = np.concatenate([np.arange(0.0, 31), np.arange(40.0, 71)])
    assert align.fit_centerline(s, np.zeros((s.size, 2))).measured.all()


def test_thick_slices_are_measured_throughout() -> None:
    s = np.arange(0.0, 80, 16.5)  # the coarsest stacks in use
    assert align.fit_centerline(s, np.zeros((s.size, 2))).measured.all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_slices_are_enough(n: int) -> None:
    s = np.arange(n) * 5.0 + 10
    fitted = align.fit_centerline(s, np.stack([s, -s], axis=1))
    assert np.allclose(fitted.at(s), np.stack([s, -s], axis=1), atol=0.1)
    assert fitted.is_measured(s).all()


def test_no_slice_is_an_error() -> None:
    with pytest.raises(CordNotFoundError):
        align.fit_centerline(np.zeros(0), np.zeros((0, 2)))


# -- extension -------------------------------------------------------------------------------------


def test_an_early_end_follows_the_anchor_with_its_own_offset() -> None:
    s = np.arange(0.0, 101)
    anchor = line(s, 0.1 * s)
    short = line(np.arange(40.0, 61), 0.1 * np.arange(40.0, 61) + 2.0)  # the same course, 2 mm to the right
    out = align.extend_centerline({"A": anchor, "B": short}, anchor="A", s_range=(0, 100))["B"]
    assert np.allclose(out.at(s)[:, 0], 0.1 * s + 2.0, atol=1e-9)
    assert out.is_measured(np.arange(40.0, 61)).all()
    assert not out.is_measured([10.0, 30, 70, 95]).any()


def test_measured_nodes_stay_as_they_are() -> None:
    short = line(np.arange(40.0, 61), np.sin(np.arange(40.0, 61)))
    lines = {"A": line(np.arange(0.0, 101), 0.0), "B": short}
    out = align.extend_centerline(lines, anchor="A", s_range=(0, 100))["B"]
    assert np.allclose(out.at(short.s_mm), short.xy_mm)


def test_offset_is_interpolated_inside_a_gap() -> None:
    s = np.arange(0.0, 101)
    own = Centerline(
        s_mm=s,
        xy_mm=np.stack([np.where(s < 50, 1.0, 3.0), s * 0], axis=1),
        measured=(s <= 20) | (s >= 80),
    )
    out = align.extend_centerline({"A": line(s, 0.05 * s), "B": own}, anchor="A", s_range=(0, 100))["B"]
    # offset at 20 mm: 1 - 1 = 0, at 80 mm: 3 - 4 = -1, so -0.5 at 50 mm where the anchor is at 2.5
    assert out.at(50.0)[0] == pytest.approx(2.0)


def test_constant_where_no_sequence_knows() -> None:
    out = align.extend_centerline({"A": line([0.0, 1, 2], [0.0, 1, 2])}, anchor="A", s_range=(-10, 20))["A"]
    assert out.at(-10.0)[0] == pytest.approx(0.0)
    assert out.at(20.0)[0] == pytest.approx(2.0)
    assert out.s_mm[0] <= -9
    assert out.s_mm[-1] >= 20


def test_others_prolong_the_anchor() -> None:
    far = np.arange(50.0, 101)
    lines = {"B": line(far, 0.1 * far + 1), "A": line(np.arange(0.0, 61), 0.0)}
    out = align.extend_centerline(lines, anchor="A", s_range=(0, 100))["A"]
    # At the anchor's end (60 mm) the other is at 7; at 100 mm at 11: so the anchor goes on to 0 + 4.
    assert out.at(100.0)[0] == pytest.approx(4.0)


def test_sequences_that_never_meet_are_joined_smoothly() -> None:
    lines = {"A": line(np.arange(0.0, 21), 0.0), "B": line(np.arange(60.0, 81), 4.0)}
    out = align.extend_centerline(lines, anchor="A", s_range=(0, 80))
    assert out["A"].at(40.0)[0] == pytest.approx(2.0, abs=0.1)
    assert out["B"].at(70.0)[0] == pytest.approx(4.0)
