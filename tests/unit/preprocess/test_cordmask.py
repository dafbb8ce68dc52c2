"""What of a mask is cord: clean-up, found cords, edges of the image, partial volume."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess import cordmask

ORIENTATIONS = ("RAS", "LAS", "LPS", "PSR", "ASL", "SRP")


def test_empty_mask_names_the_file() -> None:
    grid = phantoms.lattice(size_mm=(4, 4, 4))
    with pytest.raises(CordNotFoundError, match=r"sub-01_T2w\.nii\.gz"):
        cordmask.clean_cord(np.zeros(grid.shape, bool), grid, file="sub-01_T2w.nii.gz")


def test_probabilities_are_cut_at_one_half_and_nan_is_background() -> None:
    grid = phantoms.lattice(size_mm=(5, 5, 5))
    prob = np.full(grid.shape, np.nan, np.float32)
    prob[1:4, 1:4, :] = 0.49
    prob[2, 2, :] = 0.51
    assert cordmask.clean_cord(prob, grid).sum() == 5


def test_shape_must_match() -> None:
    with pytest.raises(GeometryError):
        cordmask.clean_cord(np.ones((2, 2, 2)), phantoms.lattice(size_mm=(4, 4, 4)))


def test_keeps_the_cord_across_a_gap_and_drops_what_lies_beside_it() -> None:
    grid = phantoms.lattice(size_mm=(60, 60, 120))
    phantom = phantoms.Phantom(sway_mm=2)
    cord = phantoms.cord_mask(phantom, grid)
    cord[:, :, 55:70] = False  # 15 mm without mask: below the limit of 20 mm
    blob = np.zeros_like(cord)
    blob[2:9, 2:9, 50:57] = True  # 343 mm3, 20 mm aside
    assert (cordmask.clean_cord(cord | blob, grid) == cord).all()


@pytest.mark.parametrize(("gap_mm", "thick_mm", "kept"), [(30, 30, True), (30, 4, False), (70, 30, False)])
def test_a_large_part_continues_the_cord_further_along(gap_mm: int, thick_mm: int, kept: bool) -> None:
    grid = phantoms.lattice(size_mm=(30, 30, 180))
    mask = np.zeros(grid.shape, bool)
    mask[10:20, 10:20, :60] = True
    mask[10:20, 10:20, 60 + gap_mm : 60 + gap_mm + thick_mm] = True  # 3000 or 400 mm3
    assert cordmask.clean_cord(mask, grid)[:, :, 60:].any() == kept


def test_two_missing_thick_slices_do_not_cut_the_cord() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 7.5), size_mm=(30, 30, 75))
    mask = np.zeros(grid.shape, bool)
    mask[12:20, 12:20] = True
    mask[:, :, 4:6] = False
    assert (cordmask.clean_cord(mask, grid) == mask).all()


def test_a_long_thin_chain_outweighs_a_lump() -> None:
    """Two parts of cord, 4000 and 2400 mm3; a lump of 8000 mm3, of which a section counts 150 mm2."""
    grid = phantoms.lattice(size_mm=(80, 40, 140))
    cord, lump = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    cord[10:18, 10:18, 20:80] = True
    cord[10:18, 10:18, 95:135] = True
    lump[45:65, 10:30, 0:20] = True
    assert (cordmask.clean_cord(cord | lump, grid) == cord).all()


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
    assert cordmask.clean_cord(mask, grid).any(), why
    with pytest.raises(CordNotFoundError, match=r"no spinal cord found .* over 12 mm"):
        cordmask.found_cord(mask, grid, file="x.nii.gz")


def test_half_of_a_short_field_of_view_is_enough() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 3), size_mm=(40, 40, 3))
    mask = np.zeros(grid.shape, bool)
    mask[10:18, 10:18] = True  # 192 mm3 in the one slice that there is
    assert (cordmask.found_cord(mask, grid) == mask).all()


def test_a_brain_on_top_of_the_cord_is_cut_off() -> None:
    grid = phantoms.lattice(size_mm=(60, 60, 140))
    cord, brain = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    cord[26:34, 26:34, :100] = True
    brain[10:50, 10:50, 100:] = True
    assert (cordmask.found_cord(cord | brain, grid) == cord).all()
    assert cordmask.clean_cord(cord | brain, grid)[:, :, 100:].any(), "a mask of the user's is left alone"


@pytest.mark.parametrize("thick_mm", [1.0, 5.0])
def test_what_was_taken_off_a_found_cord_does_not_come_back(thick_mm: float) -> None:
    """A swelling of 28 mm at the top of a cord whose rim is partial volume."""
    grid = phantoms.lattice(spacing=(1, 1, thick_mm), size_mm=(60, 60, 70))
    i, j, k = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    radius = np.where(k * thick_mm < 50, np.hypot(i - 30, j - 30) - 5, np.hypot(i - 30, j - 38) - 14)
    share = np.clip(0.5 - radius, 0, 1).astype(np.float32)
    cord = cordmask.found_cord(share, grid)
    weights = cordmask.near(share, cord)
    assert cord.any(axis=(0, 1)).sum() == 50 / thick_mm
    assert not weights[..., round(50 / thick_mm) :].any()
    assert (cordmask.clean_cord(weights, grid) == cord).all()
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
    assert cordmask.tail_starts(_sections(*parts), 1.0) == start


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
    found = cordmask.found_cord(mask, grid)
    assert not (found & ~cord).any()
    assert (cord & ~found).sum() <= 4 * 4  # of the thin tip
    assert (cordmask.clean_cord(mask, grid) == mask).all(), "a mask of the user's is left alone"


def test_closing_fills_one_voxel_in_plane_but_not_between_slices() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 1), size_mm=(9, 9, 9))
    mask = np.zeros(grid.shape, bool)
    mask[2:7, 2:7, :] = True
    hole, slit = mask.copy(), mask.copy()
    hole[4, 4, 4] = False
    slit[:, :, 4] = False
    assert (cordmask.clean_cord(hole, grid) == mask).all()
    assert (cordmask.clean_cord(slit, grid) == slit).all()


def test_closing_does_not_eat_the_cord_at_the_edge_of_the_image() -> None:
    grid = phantoms.lattice(size_mm=(6, 6, 10))
    mask = np.zeros(grid.shape, bool)
    mask[:3] = True
    assert (cordmask.clean_cord(mask, grid) == mask).all()


@given(orientation=st.sampled_from(ORIENTATIONS))
def test_clean_up_does_not_depend_on_storage(orientation: str) -> None:
    grid = phantoms.lattice(spacing=(1, 0.8, 2), size_mm=(30, 30, 60))
    mask = phantoms.cord_mask(phantoms.Phantom(sway_mm=2), grid)
    mask[::3, ::2, ::5] = False
    stored, other = phantoms.restored_as(mask, grid, orientation)
    expected, _ = phantoms.restored_as(cordmask.clean_cord(mask, grid), grid, orientation)
    assert (cordmask.clean_cord(stored, other) == expected).all()


def test_edge_share_counts_sides_but_not_top_and_bottom() -> None:
    grid = phantoms.lattice(size_mm=(6, 6, 10))
    mask = np.zeros(grid.shape, bool)
    mask[2:4, 2:4, :] = True
    assert cordmask.touches_edge(mask, grid) == 0
    mask[0:2, 2, :3] = True  # 3 of 10 slices reach the side
    assert cordmask.touches_edge(mask, grid) == pytest.approx(0.3)


def test_partial_weights_keep_fractions_round_the_cord_only() -> None:
    grid = phantoms.lattice(size_mm=(12, 12, 6))
    prob = np.zeros(grid.shape, np.float32)
    prob[4:7, 4:7, :] = 0.9
    prob[3, 5, 2] = 0.3  # rim
    prob[10, 10, 2] = 0.4  # far away
    weights = cordmask.partial_weights(prob, cordmask.clean_cord(prob, grid))
    assert weights is not None
    assert weights[3, 5, 2] == pytest.approx(0.3)
    assert weights[10, 10, 2] == 0
    assert cordmask.partial_weights(prob > 0.5, prob > 0.5) is None
