"""Cord clean-up, centres per slice, robust centerlines, extension by consensus."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess import align
from bids_scseg.preprocess.frames import reference_axes
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.grid import Grid

ORIENTATIONS = ("RAS", "LAS", "LPS", "PSR", "ASL", "SRP")


def line(s: object, x: object, *, y: object = 0.0) -> Centerline:
    s = np.asarray(s, dtype=float)
    xy = np.stack([np.broadcast_to(x, s.shape), np.broadcast_to(y, s.shape)], axis=1)
    return Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))


# -- clean-up --------------------------------------------------------------------------------------


def test_empty_mask_names_the_file() -> None:
    grid = phantoms.lattice(size_mm=(4, 4, 4))
    with pytest.raises(CordNotFoundError, match=r"sub-01_T2w\.nii\.gz"):
        align.clean_cord(np.zeros(grid.shape, bool), grid, file="sub-01_T2w.nii.gz")


def test_probabilities_are_cut_at_one_half_and_nan_is_background() -> None:
    grid = phantoms.lattice(size_mm=(5, 5, 5))
    prob = np.full(grid.shape, np.nan, np.float32)
    prob[1:4, 1:4, :] = 0.49
    prob[2, 2, :] = 0.51
    assert align.clean_cord(prob, grid).sum() == 5


def test_shape_must_match() -> None:
    with pytest.raises(GeometryError):
        align.clean_cord(np.ones((2, 2, 2)), phantoms.lattice(size_mm=(4, 4, 4)))


def test_keeps_the_cord_across_a_gap_and_drops_what_lies_beside_it() -> None:
    grid = phantoms.lattice(size_mm=(60, 60, 120))
    phantom = phantoms.Phantom(sway_mm=2)
    cord = phantoms.cord_mask(phantom, grid)
    cord[:, :, 55:70] = False  # 15 mm without mask: below the limit of 20 mm
    blob = np.zeros_like(cord)
    blob[2:9, 2:9, 50:57] = True  # 343 mm3, 20 mm aside
    assert (align.clean_cord(cord | blob, grid) == cord).all()


@pytest.mark.parametrize(("gap_mm", "thick_mm", "kept"), [(30, 30, True), (30, 4, False), (70, 30, False)])
def test_a_large_part_continues_the_cord_further_along(gap_mm: int, thick_mm: int, kept: bool) -> None:
    grid = phantoms.lattice(size_mm=(30, 30, 180))
    mask = np.zeros(grid.shape, bool)
    mask[10:20, 10:20, :60] = True
    mask[10:20, 10:20, 60 + gap_mm : 60 + gap_mm + thick_mm] = True  # 3000 or 400 mm3
    assert align.clean_cord(mask, grid)[:, :, 60:].any() == kept


def test_two_missing_thick_slices_do_not_cut_the_cord() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 7.5), size_mm=(30, 30, 75))
    mask = np.zeros(grid.shape, bool)
    mask[12:20, 12:20] = True
    mask[:, :, 4:6] = False
    assert (align.clean_cord(mask, grid) == mask).all()


def test_a_long_thin_chain_outweighs_a_lump() -> None:
    """Two parts of cord, 4000 and 2400 mm3; a lump of 8000 mm3, of which a section counts 150 mm2."""
    grid = phantoms.lattice(size_mm=(80, 40, 140))
    cord, lump = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    cord[10:18, 10:18, 20:80] = True
    cord[10:18, 10:18, 95:135] = True
    lump[45:65, 10:30, 0:20] = True
    assert (align.clean_cord(cord | lump, grid) == cord).all()


@pytest.mark.parametrize(
    ("box", "why"),
    [
        (np.s_[10:14, 10:14, 20:32], "192 mm3 over 12 mm: as in images without cord"),
        (np.s_[10:18, 10:18, 20:32], "768 mm3, but 12 mm long"),
    ],
)
def test_what_is_found_where_there_is_no_cord_is_refused(box: tuple[slice, ...], why: str) -> None:
    grid = phantoms.lattice(size_mm=(40, 40, 100))
    mask = np.zeros(grid.shape, bool)
    mask[box] = True
    assert align.clean_cord(mask, grid).any(), why
    with pytest.raises(CordNotFoundError, match=r"no spinal cord found .* over 12 mm"):
        align.found_cord(mask, grid, file="x.nii.gz")


def test_half_of_a_short_field_of_view_is_enough() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 3), size_mm=(40, 40, 3))
    mask = np.zeros(grid.shape, bool)
    mask[10:18, 10:18] = True  # 192 mm3 in the one slice that there is
    assert (align.found_cord(mask, grid) == mask).all()


def test_a_brain_on_top_of_the_cord_is_cut_off() -> None:
    grid = phantoms.lattice(size_mm=(60, 60, 140))
    cord, brain = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    cord[26:34, 26:34, :100] = True
    brain[10:50, 10:50, 100:] = True
    assert (align.found_cord(cord | brain, grid) == cord).all()
    assert align.clean_cord(cord | brain, grid)[:, :, 100:].any(), "a mask of the user's is left alone"


@pytest.mark.parametrize("thick_mm", [1.0, 5.0])
def test_what_was_taken_off_a_found_cord_does_not_come_back(thick_mm: float) -> None:
    """A swelling of 28 mm at the top of a cord whose rim is partial volume."""
    grid = phantoms.lattice(spacing=(1, 1, thick_mm), size_mm=(60, 60, 70))
    i, j, k = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    radius = np.where(k * thick_mm < 50, np.hypot(i - 30, j - 30) - 5, np.hypot(i - 30, j - 38) - 14)
    share = np.clip(0.5 - radius, 0, 1).astype(np.float32)
    cord = align.found_cord(share, grid)
    weights = align.near(share, cord)
    assert cord.any(axis=(0, 1)).sum() == 50 / thick_mm
    assert not weights[..., round(50 / thick_mm) :].any()
    assert (align.clean_cord(weights, grid) == cord).all()
    assert (weights[cord] == share[cord]).all()
    assert ((weights > 0) & ~cord).any()  # the rim is still there


def _sections(*parts: tuple[int, int]) -> np.ndarray:
    """Sections from above: ``(how many, mm2)`` each."""
    return np.concatenate([np.full(count, float(area)) for count, area in parts])


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        pytest.param([(100, 50)], 100, id="nothing thin"),
        pytest.param([(100, 45), (3, 20), (4, 6), (20, 22)], 102, id="a thin place and roots"),
        pytest.param([(100, 45), (6, 0), (5, 24), (20, 0), (3, 10)], 101, id="roots in pieces"),
        pytest.param([(60, 70), (40, 26), (6, 0), (40, 25)], 146, id="thin thoracic cord after a gap"),
        pytest.param([(80, 60), (8, 5), (40, 60)], 128, id="cord that leaves the image and comes back"),
        pytest.param([(40, 20), (8, 5), (80, 60)], 128, id="the strand is at the other end"),
        # (45 + 4 + 4 + 4 + 12) / 5 = 13.8 < 15, and (45 + 45 + 4 + 4 + 4) / 5 is not
        pytest.param([(30, 45), (3, 4), (60, 12)], 31, id="lumbar spine, more roots than cord"),
        pytest.param(
            [(100, 45), (20, 30), (12, 18), (6, 0), (20, 44)], 130, id="conus, then a clump of roots"
        ),
        pytest.param([(100, 45), (20, 30), (6, 0), (20, 38)], 146, id="no conus: too thick before the gap"),
        pytest.param([(100, 70), (15, 40), (6, 0), (30, 38)], 115 + 1, id="cut: far less than before"),
        pytest.param([(0, 0)], 0, id="empty"),
    ],
)
def test_where_a_strand_leads_on_from_the_cord(parts: list[tuple[int, int]], start: int) -> None:
    # 1 mm sections: the mean is one over five of them, as (20 + 20 + 20 + 6 + 6) / 5 = 14.4 < 15
    assert align.tail_starts(_sections(*parts), 1.0) == start


@pytest.mark.parametrize("turned", [False, True])
def test_roots_below_the_conus_are_no_cord(turned: bool) -> None:
    grid = phantoms.lattice(size_mm=(40, 40, 160))
    cord, roots = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    cord[16:24, 16:22, 60:] = True
    cord[18:20, 18:20, 56:60] = True
    roots[18:20, 17:19, 45:56] = True
    roots[17:21, 15:21, 5:45] = True
    mask = cord | roots
    if turned:  # towards the head: the rule is the same at both ends
        mask, cord = mask[:, :, ::-1], cord[:, :, ::-1]
    found = align.found_cord(mask, grid)
    assert not (found & ~cord).any()
    assert (cord & ~found).sum() <= 4 * 4  # of the thin tip
    assert (align.clean_cord(mask, grid) == mask).all(), "a mask of the user's is left alone"


def test_closing_fills_one_voxel_in_plane_but_not_between_slices() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 1), size_mm=(9, 9, 9))
    mask = np.zeros(grid.shape, bool)
    mask[2:7, 2:7, :] = True
    hole, slit = mask.copy(), mask.copy()
    hole[4, 4, 4] = False
    slit[:, :, 4] = False
    assert (align.clean_cord(hole, grid) == mask).all()
    assert (align.clean_cord(slit, grid) == slit).all()


def test_closing_does_not_eat_the_cord_at_the_edge_of_the_image() -> None:
    grid = phantoms.lattice(size_mm=(6, 6, 10))
    mask = np.zeros(grid.shape, bool)
    mask[:3] = True
    assert (align.clean_cord(mask, grid) == mask).all()


@given(orientation=st.sampled_from(ORIENTATIONS))
def test_clean_up_does_not_depend_on_storage(orientation: str) -> None:
    grid = phantoms.lattice(spacing=(1, 0.8, 2), size_mm=(30, 30, 60))
    mask = phantoms.cord_mask(phantoms.Phantom(sway_mm=2), grid)
    mask[::3, ::2, ::5] = False
    stored, other = phantoms.restored_as(mask, grid, orientation)
    expected, _ = phantoms.restored_as(align.clean_cord(mask, grid), grid, orientation)
    assert (align.clean_cord(stored, other) == expected).all()


def test_edge_share_counts_sides_but_not_top_and_bottom() -> None:
    grid = phantoms.lattice(size_mm=(6, 6, 10))
    mask = np.zeros(grid.shape, bool)
    mask[2:4, 2:4, :] = True
    assert align.touches_edge(mask, grid) == 0
    mask[0:2, 2, :3] = True  # 3 of 10 slices reach the side
    assert align.touches_edge(mask, grid) == pytest.approx(0.3)


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


def test_partial_weights_keep_fractions_round_the_cord_only() -> None:
    grid = phantoms.lattice(size_mm=(12, 12, 6))
    prob = np.zeros(grid.shape, np.float32)
    prob[4:7, 4:7, :] = 0.9
    prob[3, 5, 2] = 0.3  # rim
    prob[10, 10, 2] = 0.4  # far away
    weights = align.partial_weights(prob, align.clean_cord(prob, grid))
    assert weights is not None
    assert weights[3, 5, 2] == pytest.approx(0.3)
    assert weights[10, 10, 2] == 0
    assert align.partial_weights(prob > 0.5, prob > 0.5) is None
