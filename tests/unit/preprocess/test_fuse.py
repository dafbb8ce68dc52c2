"""Slabs chained by header or registration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_scseg.errors import GeometryError
from bids_scseg.preprocess import fuse
from bids_scseg.space.grid import Grid, transform_points

SIZE = (40.0, 90.0, 80.0)
POINTS = np.array([[x, y, z] for x in (-10, 10) for y in (-25, 10) for z in (-15, 0, 15)], dtype=float)


def slab(height: float, *, orientation: str = "PSR", spacing: tuple[float, ...] = (3.0, 1.0, 1.0)) -> Grid:
    return phantoms.lattice(spacing=spacing, size_mm=SIZE, center=(0, 0, height), orientation=orientation)


def moved(shift: tuple[float, float, float], turn: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    out[:3, 3] = shift
    return out


def chain(
    move: npt.NDArray[np.float64], *, gain: float = 1.0, register: bool = True, orientation: str = "PSR"
) -> fuse.SlabFit:
    phantom, rng = phantoms.Phantom(), np.random.default_rng(1)
    upper, lower = slab(20), slab(-20)
    a, b = phantoms.rendered(phantom, upper), phantoms.rendered(phantom, lower, moved=move)
    b = gain * (b + rng.normal(0, 2, b.shape)).astype(np.float32)
    cord = phantoms.cord_mask(phantom, lower, moved=move)
    stored, grid = phantoms.restored_as(b, lower, orientation)
    mask, _ = phantoms.restored_as(cord, lower, orientation)
    cords = [mask.astype(bool), phantoms.cord_mask(phantom, upper)]
    return fuse.chain_slabs([stored, a], [grid, upper], cords, register=register)[0]


def test_known_misplacement_is_found() -> None:
    move = moved((1.0, -2.0, 3.0), (1.0, 0.5, -1.0))
    fit = chain(move, gain=0.5)
    error = np.linalg.norm(transform_points(fit.xfm, POINTS) - transform_points(move, POINTS), axis=1)
    assert fit.accepted
    assert error.max() < 0.5
    assert fit.similarity_after > fit.similarity_before
    assert fit.scale == pytest.approx(2.0, rel=0.1)
    assert fit.overlap_mm == pytest.approx(40.0, abs=1)


def test_registration_repeats_itself_and_ignores_storage() -> None:
    move = moved((0.5, 1.0, -2.0), (0.0, 0.0, 0.0))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = chain(move)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert (chain(move).xfm == first.xfm).all()
    assert np.allclose(chain(move, orientation="LAS").xfm, first.xfm, atol=1e-5)


def test_a_move_beyond_the_limit_is_refused() -> None:
    fit = chain(moved((0.0, 0.0, 11.0), (0.0, 0.0, 0.0)))
    assert not fit.accepted
    assert (fit.xfm == np.eye(4)).all()
    assert fit.reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Registration failed with error code 1"), "Registration failed with error code 1"),
        (ValueError("filename\n does not exist"), "filename does not exist"),
        (GeometryError("grid shape (0, 4, 4)", expected="three positive sizes"), "grid shape (0, 4, 4)"),
    ],
)
def test_a_registration_that_fails_leaves_the_header_and_says_so(monkeypatch, error, words) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fuse, "register_rigid", fail)
    fit = chain(moved((2.0, 0.0, 0.0), (0.0, 0.0, 0.0)), gain=0.5)
    assert not fit.accepted
    assert (fit.xfm == np.eye(4)).all()
    assert fit.reason.startswith(f"the registration failed: {words}")
    assert fit.scale == pytest.approx(2.0, rel=0.1)
    assert fit.similarity_before > 0 and np.isnan(fit.similarity_after)


def test_a_crop_without_voxels_leaves_the_header(monkeypatch) -> None:
    crop = fuse.crop_near
    monkeypatch.setattr(fuse, "crop_near", lambda *args: crop(*args[:3], 900.0, 950.0))
    fit = chain(moved((2.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    assert fit.reason.startswith("the registration failed: grid shape")


def test_header_stands_where_the_recipe_says_so() -> None:
    fit = chain(moved((2.0, 0.0, 0.0), (0.0, 0.0, 0.0)), register=False, gain=0.5)
    assert not fit.accepted
    assert (fit.xfm == np.eye(4)).all()
    assert fit.scale == pytest.approx(2.0, rel=0.1)


def test_little_overlap_leaves_the_header() -> None:
    grids = [slab(40), slab(-30)]  # 10 mm in common
    images = [np.ones(grid.shape, np.float32) for grid in grids]
    fit = fuse.chain_slabs(images, grids, [None, None], register=True)[1]
    assert not fit.accepted
    assert "10 mm" in fit.reason


def test_stacks_apart_keep_header_and_scale() -> None:
    grids = [slab(100), slab(-100)]
    images = [np.ones(grid.shape, np.float32) for grid in grids]
    fit = fuse.chain_slabs(images, grids, [None, None], register=True)[1]
    assert fit.overlap_mm == 0
    assert (fit.scale, fit.scale_by) == (1.0, "unmatched")


def facing(
    gap_mm: float, *, gain: float = 0.5, masks: tuple[bool, bool] = (True, True), orientation: str = "PSR"
) -> fuse.SlabFit:
    """Two slabs one above the other with noise, the lower one `gain` times as bright."""
    phantom, rng = phantoms.Phantom(), np.random.default_rng(2)
    grids = [slab(40 + gap_mm / 2), slab(-40 - gap_mm / 2)]
    images = [phantoms.rendered(phantom, grid) + rng.normal(0, 4, grid.shape) for grid in grids]
    stored = [
        phantoms.restored_as(factor * image, grid, orientation)
        for factor, image, grid in zip((1, gain), images, grids, strict=True)
    ]
    cords = [
        phantoms.restored_as(phantoms.cord_mask(phantom, grid), grid, orientation)[0] if there else None
        for there, grid in zip(masks, grids, strict=True)
    ]
    return fuse.chain_slabs([i for i, _ in stored], [g for _, g in stored], cords, register=True)[1]


@pytest.mark.parametrize("orientation", ["PSR", "LAI"])
@pytest.mark.parametrize("gap_mm", [0.0, 5.0, 25.0])
def test_without_overlap_the_facing_cords_give_the_scale(gap_mm: float, orientation: str) -> None:
    fit = facing(gap_mm, orientation=orientation)
    assert fit.scale_by == "cord"
    assert fit.scale == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("gap_mm", "gain", "masks"),
    [
        (35.0, 0.5, (True, True)),
        (0.0, 0.1, (True, True)),
        (0.0, 0.5, (True, False)),
        (0.0, 0.5, (False, False)),
    ],
)
def test_the_scale_stays_where_the_cords_cannot_tell(
    gap_mm: float, gain: float, masks: tuple[bool, bool]
) -> None:
    """Too far apart, a ratio that is no gain setting, a slab without cord."""
    fit = facing(gap_mm, gain=gain, masks=masks)
    assert (fit.scale, fit.scale_by) == (1.0, "unmatched")


def test_an_overlap_gives_the_scale_whatever_the_cords_say() -> None:
    grids = [slab(20), slab(-20)]
    images = [np.full(grids[0].shape, 10.0), np.full(grids[1].shape, 5.0)]
    cords = [phantoms.cord_mask(phantoms.Phantom(), grid) for grid in grids]
    images[1][cords[1]] = 4.0
    fit = fuse.chain_slabs(images, grids, cords, register=False)[1]
    assert (fit.scale, fit.scale_by) == (2.0, "overlap")


def test_a_cord_too_thin_to_have_an_inside_counts_as_a_whole() -> None:
    grids = [slab(40, spacing=(5.0, 2.0, 2.0)), slab(-40, spacing=(5.0, 2.0, 2.0))]
    images = [
        factor * phantoms.rendered(phantoms.Phantom(), grid)
        for factor, grid in zip((1, 2), grids, strict=True)
    ]
    cords = [phantoms.cord_mask(phantoms.Phantom(), grid) for grid in grids]
    assert not fuse._inside(fuse.canonical_view(cords[0], grids[0])[0]).any()
    fit = fuse.chain_slabs(images, grids, cords, register=False)[1]
    assert fit.scale_by == "cord"
    assert fit.scale == pytest.approx(0.5, rel=0.1)


def test_a_third_slab_is_chained_to_the_second() -> None:
    phantom = phantoms.Phantom()
    grids = [slab(60), slab(20), slab(-20)]
    images = [
        gain * phantoms.rendered(phantom, grid) for gain, grid in zip((1, 0.5, 0.25), grids, strict=True)
    ]
    cords = [phantoms.cord_mask(phantom, grid) for grid in grids]
    fits = fuse.chain_slabs(images, grids, cords, register=False)
    assert [fit.scale for fit in fits] == pytest.approx([1.0, 2.0, 4.0], rel=0.05)


def test_chaining_composes_reference_to_slab() -> None:
    above = fuse.SlabFit(xfm=moved((0, 0, 0), (0, 0, 90)))
    step = fuse.SlabFit(xfm=moved((1, 0, 0), (0, 0, 0)))
    # reference (1, 0, 0) -> upper slab (0, 1, 0) -> lower slab (1, 1, 0)
    assert np.allclose(transform_points(fuse._chained(above, step).xfm, [1, 0, 0]), [1, 1, 0])


def test_constant_overlap_has_no_similarity() -> None:
    grid = slab(0)
    flat = np.ones(grid.shape, np.float32)
    value = fuse.similarity(flat, grid, flat, grid, points=grid.to_world(np.argwhere(flat)), xfm=np.eye(4))
    assert np.isnan(value)


def test_itk_transform_turns_about_its_centre() -> None:
    # A quarter turn about z with centre (1, 0, 0) and translation (0, 0, 2): (2, 0, 0) goes to (1, 1, 2).
    parameters = [0, -1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 2]
    assert np.allclose(transform_points(fuse._affine_from_itk(parameters, [1, 0, 0]), [2, 0, 0]), [1, 1, 2])


@given(orientation=st.sampled_from(["RAS", "LPS", "PSR", "SRP", "IAL"]))
def test_canonical_view_shows_the_same_world(orientation: str) -> None:
    grid = phantoms.lattice(spacing=(1, 2, 3), size_mm=(8, 10, 12), rotation_deg=(10, 0, 5))
    data = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    view, back = fuse.canonical_view(*phantoms.restored_as(data, grid, orientation))
    assert (view == data).all()
    assert back == grid


def test_uppermost_first_does_not_depend_on_order_or_storage() -> None:
    grids = [slab(-20), slab(60, orientation="LAS"), slab(20, orientation="SRP")]
    assert fuse.uppermost_first(grids) == [1, 2, 0]
