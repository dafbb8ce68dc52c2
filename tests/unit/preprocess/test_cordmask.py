"""What of a mask is cord: clean-up, found cords, edges of the image, partial volume."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess import cordmask
from bids_scseg.space.grid import Grid

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


def test_a_find_must_be_sure_over_20_mm_in_all() -> None:
    """As in noise: 500 mm³ in five thick slices of seven, of which the network is sure of two."""
    grid = phantoms.lattice(spacing=(1, 1, 5), size_mm=(40, 40, 75))
    prob = np.zeros(grid.shape, np.float32)
    for k, surest in {0: 0.97, 1: 0.9, 4: 1.0, 5: 0.98, 6: 0.9}.items():
        prob[18:23, 18:23, k] = surest
    with pytest.raises(CordNotFoundError, match="625 mm3 over 10 mm that are sure"):
        cordmask.found_cord(prob, grid)
    prob[20, 20, :2] = 1.0  # one voxel in each of two more
    assert cordmask.found_cord(prob, grid).sum() == 5 * 25


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


def _profile(*parts: tuple[int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Sections from above: ``(how many, mm2, highest probability)`` each."""
    count, area, surest = zip(*parts, strict=True)
    return np.repeat(np.asarray(area, float), count), np.repeat(np.asarray(surest, float), count)


CORD = (100, 45, 1.0)


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        pytest.param([(100, 50, 1.0)], 100, id="nothing thin"),
        pytest.param([CORD, (3, 20, 0.9), (4, 6, 0.8), (20, 22, 0.9)], 102, id="a thin place and roots"),
        pytest.param([CORD, (6, 0, 0), (5, 24, 0.9), (20, 0, 0), (3, 10, 0.9)], 101, id="roots in pieces"),
        # above lie 20 sections of 45, 20 of 30 and 10 of 18 mm2: 80 % of the median is 24
        pytest.param(
            [CORD, (20, 30, 1.0), (12, 18, 0.9), (6, 0, 0), (40, 24, 0.9)], 130, id="conus, bundles"
        ),
        pytest.param([CORD, (20, 30, 1.0), (12, 18, 0.9), (6, 0, 0), (40, 25, 0.9)], 178, id="larger ones"),
        pytest.param([CORD, (9, 5, 0.9), (60, 25, 1.0)], 169, id="thin cord that comes back"),
        pytest.param([CORD, (6, 0, 0), (10, 25, 0.9), (19, 25, 0.98)], 101, id="19 mm sure"),
        pytest.param([CORD, (6, 0, 0), (14, 25, 1.0), (5, 25, 0.9), (6, 25, 1.0)], 131, id="20 of 25 mm"),
        pytest.param([CORD, (6, 0, 0), (14, 25, 1.0), (6, 25, 0.9), (6, 25, 1.0)], 101, id="19 of 25 mm"),
        pytest.param([CORD, (6, 0, 0), (10, 25, 0.9), (20, 25, 0.98)], 136, id="20 mm sure"),
        pytest.param([CORD, (6, 0, 0), (10, 25, 0.9), (20, 25, 0.97)], 101, id="20 mm not quite sure"),
        pytest.param([CORD, (6, 0, 0), (40, 35.9, 0.9)], 101, id="just less than 80 % of the area"),
        pytest.param([CORD, (6, 0, 0), (40, 36.1, 0.9)], 146, id="not less"),
        pytest.param([(80, 45, 1.0), (50, 45, 0.9), (6, 0, 0), (30, 20, 0.9)], 166, id="in doubt above too"),
        pytest.param([(110, 45, 1.0), (29, 45, 0.9), (6, 0, 0), (30, 20, 0.9)], 140, id="20 mm of 50 sure"),
        pytest.param([(110, 45, 1.0), (30, 45, 0.9), (6, 0, 0), (30, 20, 0.9)], 176, id="19 mm of 50 sure"),
        pytest.param([(40, 20, 0.9), (8, 5, 0.9), (80, 60, 1.0)], 128, id="the strand is above"),
        # (45 + 4 + 4 + 4 + 12) / 5 = 13.8 < 15, and (45 + 45 + 4 + 4 + 4) / 5 is not
        pytest.param([(30, 45, 1.0), (3, 4, 0.9), (60, 12, 0.9)], 31, id="lumbar spine"),
        pytest.param([(20, 45, 1.0), (6, 0, 0), (60, 16, 0.9)], 86, id="more roots than cord"),
        pytest.param([(0, 0, 0)], 0, id="empty"),
    ],
)
def test_where_roots_lead_on_from_the_cord(parts: list[tuple[int, float, float]], start: int) -> None:
    # 1 mm sections: the mean is one over five of them
    assert cordmask.roots_start(*_profile(*parts), 1.0) == start


@pytest.mark.parametrize(
    ("thickness", "parts", "start"),
    [
        # 2 mm: three sections count, (45 + 0 + 21) / 3 = 22 and (0 + 21 + 21) / 3 = 14
        pytest.param(2.0, [(40, 45, 1.0), (1, 0, 0), (10, 21, 0.9)], 41, id="three sections"),
        # 0.8 mm: five count, (45 + 45 + 0 + 0 + 0) / 5 = 18 and (45 + 0 + 0 + 0 + 14) / 5 = 11.8
        pytest.param(0.8, [(99, 45, 1.0), (3, 0, 0), (30, 14, 0.9)], 100, id="five sections"),
        pytest.param(2.0, [(40, 45, 1.0), (3, 0, 0), (9, 21, 1.0), (5, 21, 0.9)], 41, id="18 mm sure"),
        pytest.param(2.0, [(40, 45, 1.0), (3, 0, 0), (10, 21, 1.0), (5, 21, 0.9)], 58, id="20 mm sure"),
        # what lies 50 mm above are 25 sections, of which 13 have 60 mm2
        pytest.param(2.0, [(30, 20, 1.0), (13, 60, 1.0), (3, 0, 0), (14, 47, 0.9)], 44, id="25 sections"),
        pytest.param(2.0, [(30, 20, 1.0), (11, 60, 1.0), (3, 0, 0), (14, 47, 0.9)], 58, id="most are thin"),
    ],
)
def test_lengths_of_roots_are_in_mm(thickness: float, parts: list, start: int) -> None:
    assert cordmask.roots_start(*_profile(*parts), thickness) == start


@pytest.mark.parametrize("thickness", [0.8, 1.0, 2.0])
@pytest.mark.parametrize("taper", [0, 10])
def test_cord_beyond_a_hole_in_the_neck_stays(thickness: float, taper: int) -> None:
    """Levels C1 to T6, a hole at C7: below it the cord has half of the area above; one mm of ten in doubt."""
    s = np.arange(0, 230, thickness)
    area = np.interp(s, [0, 60, 90, 110, 150, 230], [75, 73, 78, 65, 45, 38])
    hole = np.clip((np.abs(s - 115) - 5) / max(taper, 1e-3), 0, 1)
    surest = np.where((hole > 0.3) & (s % 10 >= 1), 1.0, 0.9)
    assert cordmask.roots_start(area * hole, surest, thickness) == len(s)


def _cord_and_roots() -> tuple[np.ndarray, np.ndarray, Grid]:
    """Probabilities, the cord in them, and their lattice (superior at the end)."""
    grid = phantoms.lattice(size_mm=(40, 40, 160))
    prob = np.zeros(grid.shape, np.float32)
    prob[17:21, 15:21, 5:45] = 0.9
    prob[18:20, 17:19, 45:56] = 0.7
    prob[18:20, 18:20, 56:60] = 0.95
    prob[16:24, 16:22, 60:] = 1.0
    cord = np.zeros(grid.shape, bool)
    cord[16:24, 16:22, 60:] = True
    return prob, cord, grid


def test_roots_below_the_conus_are_no_cord() -> None:
    prob, cord, grid = _cord_and_roots()
    found, cleaned = cordmask.found_cord(prob, grid), cordmask.clean_cord(prob, grid)
    assert (found & cord).sum() == cord.sum()
    assert (found & ~cord).sum() <= 4 * 4  # of the tip
    assert cleaned[18, 18, 5], "a mask of the user's is left alone"
    lowest = int(np.flatnonzero(found.any((0, 1)))[0])
    assert cordmask.cut_below(cleaned, found, grid) == lowest - 5 > 50


def test_what_is_cut_below_does_not_count_gaps_nor_the_upper_end() -> None:
    grid = phantoms.lattice(spacing=(1, 1, 2), size_mm=(10, 10, 100))
    before = np.zeros(grid.shape, bool)
    before[4:6, 4:6, 5:15] = before[4:6, 4:6, 20:50] = True
    after = before.copy()
    after[:, :, :22] = after[:, :, 45:] = False
    assert cordmask.cut_below(before, after, grid) == 2 * (10 + 2)
    assert cordmask.cut_below(before[..., ::-1], after[..., ::-1], grid) == 2 * 5


def test_a_false_outline_in_fluid_does_not_take_the_cord_below_with_it() -> None:
    grid = phantoms.lattice(size_mm=(40, 40, 120))
    prob = np.zeros(grid.shape, np.float32)
    prob[16:24, 16:24, 40:] = 1.0
    prob[10:30, 10:30, 25:35] = 1.0  # 400 mm2, a gap of 5 mm above and below would be bridged
    prob[16:24, 16:24, 35:40] = prob[16:24, 16:24, 20:25] = 1.0
    prob[17:23, 17:23, :20] = 0.9
    found = cordmask.found_cord(prob, grid)
    assert found[20, 20, :25].all() and not found[..., 25:35].any()


def test_roots_are_not_told_without_probabilities_in_thick_slices_nor_above() -> None:
    prob, _, grid = _cord_and_roots()
    mask = prob > 0.5
    assert (cordmask.found_cord(mask.astype(np.float32), grid) == cordmask.clean_cord(mask, grid)).all()
    thick = Grid(shape=grid.shape, affine=grid.affine @ np.diag([1, 1, 2.1, 1]))
    assert (cordmask.found_cord(prob, thick) == cordmask.clean_cord(prob, thick)).all()
    upside_down = prob[:, :, ::-1]
    assert (cordmask.found_cord(upside_down, grid) == cordmask.clean_cord(upside_down, grid)).all()


@given(orientation=st.sampled_from(ORIENTATIONS))
def test_found_cords_do_not_depend_on_storage(orientation: str) -> None:
    prob, _, grid = _cord_and_roots()
    found = cordmask.found_cord(prob, grid)
    expected, _ = phantoms.restored_as(found, grid, orientation)
    stored, other = phantoms.restored_as(prob, grid, orientation)
    assert (cordmask.found_cord(stored, other) == expected).all()
    cleaned = cordmask.clean_cord(stored, other)
    assert cordmask.cut_below(cleaned, expected, other) == cordmask.cut_below(prob > 0.5, found, grid)


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
