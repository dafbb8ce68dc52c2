"""The procedural subject: sizes, coordinates, and evaluation on any lattice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from bids_scseg.synth.anatomy import (
    CORD_TISSUES,
    Anatomy,
    Tissue,
    centerline_world,
    cord_area_mm2,
    cord_coordinates,
    draw_anatomy,
    level_of,
    tissue_map,
)


def _axial(anatomy: Anatomy, height: float, step: float = 0.4) -> tuple[tuple[int, int, int], np.ndarray]:
    """A one-slice lattice across the z axis through the cord at a height."""
    affine = np.diag([step, step, 1.0, 1.0])
    affine[:3, 3] = centerline_world(anatomy, height)[0] - [60 * step / 2, 60 * step / 2, 0]
    return (60, 60, 1), affine


def test_mean_cord_areas_follow_the_literature() -> None:
    # 66 mm2 at C3, 71 at C5, 39 at T3; a subject deviates by 9 %, the mean of 9 by 3 %
    subjects = [draw_anatomy(np.random.default_rng(seed)) for seed in range(9)]
    for level, expected in {"C3": 66.0, "C5": 71.0, "T3": 39.0}.items():
        areas = [cord_area_mm2(s, sum(s.level_z[level]) / 2)[0] for s in subjects]
        assert np.mean(areas) == pytest.approx(expected, rel=0.08)


def test_lumbar_enlargement_and_conus(subject: Anatomy) -> None:
    area = {
        level: cord_area_mm2(subject, sum(subject.level_z[level]) / 2)[0] for level in ("T6", "T11", "L2")
    }
    assert area["T11"] > 1.15 * area["T6"] > 0
    assert subject.conus_z < subject.level_z["T12"][0]


def test_atrophy_takes_cord_and_leaves_the_sac() -> None:
    healthy, thin = (draw_anatomy(np.random.default_rng(3), cord_scale=scale) for scale in (1.0, 0.6))
    for height in (-50.0, -250.0):
        ratio = cord_area_mm2(thin, height)[0] / cord_area_mm2(healthy, height)[0]
        assert ratio == pytest.approx(0.6, rel=1e-3)
    for name in ("sac_rl", "sac_ap", "x", "y"):
        np.testing.assert_array_equal(getattr(thin.profiles, name), getattr(healthy.profiles, name))


def test_cauda_equina_by_sparseness_and_place() -> None:
    shares, fronts = [], []
    for cauda in ((2.0, 1.0), (0.9, 1.0), (-0.5, 1.0), (-0.5, -2.0)):
        anatomy = draw_anatomy(np.random.default_rng(3), cauda=cauda)
        shape, affine = _axial(anatomy, anatomy.conus_z - 15, step=0.2)
        affine[:2, 3] = centerline_world(anatomy, anatomy.conus_z - 15)[0][:2] - 6
        painted = tissue_map(anatomy, shape, affine)
        assert not np.isin(painted, CORD_TISSUES).any()
        roots = np.argwhere(painted[:, :, 0] == Tissue.ROOT)
        shares.append(len(roots) / (painted == Tissue.CSF).sum())
        fronts.append(roots[:, 1].max() * 0.2 - 6 if len(roots) else None)
    assert shares[0] == 0
    assert 0 < shares[1] < shares[3] < shares[2]
    assert fronts[2] == pytest.approx(1.0, abs=0.4)
    assert fronts[3] == pytest.approx(-2.0, abs=0.4)


def test_painted_cord_has_the_stated_area(subject: Anatomy) -> None:
    height = sum(subject.level_z["C4"]) / 2
    affine = _axial(subject, height, step=0.2)[1]
    affine[:2, 3] = centerline_world(subject, height)[0][:2] - 6
    painted = np.isin(tissue_map(subject, (60, 60, 1), affine), CORD_TISSUES).sum() * 0.04
    # the slice across z cuts the tilted cord obliquely: the area grows by 1 / cos(tilt)
    line = centerline_world(subject, [height - 1, height + 1])
    tangent = (line[1] - line[0]) / np.linalg.norm(line[1] - line[0])
    assert painted * tangent[2] == pytest.approx(cord_area_mm2(subject, height)[0], rel=0.03)


def test_coordinates_on_and_beside_the_cord(subject: Anatomy) -> None:
    centre = centerline_world(subject, [-300.0, -100.0, 0.0])
    arc, u, v, rho = cord_coordinates(subject, centre)
    assert np.all(np.diff(arc) > 0)
    assert arc[2] == pytest.approx(0.0, abs=0.05)  # the C2-C3 disc is the origin
    np.testing.assert_allclose(np.hypot(u, v), 0, atol=0.05)
    assert rho.max() < 0.02
    _, right, _, _ = cord_coordinates(subject, centre + np.array([3, 0, 0]))
    _, _, front, _ = cord_coordinates(subject, centre + np.array([0, 3, 0]))
    assert np.all(right > 2.8)
    assert np.all(front > 2.4)


def test_arc_length_is_length_along_the_curve(subject: Anatomy) -> None:
    line = centerline_world(subject, np.arange(-200.0, 0.5, 0.5))
    length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
    arc = cord_coordinates(subject, line[[0, -1]])[0]
    assert arc[1] - arc[0] == pytest.approx(length, rel=0.003)


def test_any_orientation_of_the_lattice_shows_the_same(subject: Anatomy) -> None:
    shape, affine = _axial(subject, -50.0, step=2.0)
    plain = tissue_map(subject, shape, affine)
    flipped = affine @ np.array([[-1, 0, 0, 59], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    turned = tissue_map(subject, (60, 1, 60), flipped)
    assert (np.swapaxes(turned[::-1], 1, 2) == plain).mean() > 0.999  # equal but for rounding at borders


def test_same_seed_same_subject() -> None:
    one, other = (draw_anatomy(np.random.default_rng(4)) for _ in range(2))
    shape, affine = _axial(one, -20.0, step=2.0)
    np.testing.assert_array_equal(tissue_map(one, shape, affine), tissue_map(other, shape, affine))


def test_every_tissue_exists(subject: Anatomy) -> None:
    affine = np.diag([4.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = subject.offset + np.array([-110, -150, -380])
    seen = np.unique(tissue_map(subject, (55, 90, 110), affine))
    assert set(seen) == {int(tissue) for tissue in Tissue}


def test_order_from_the_cord_outwards(subject: Anatomy) -> None:
    centre = centerline_world(subject, -45.0)[0]
    line = np.eye(4)
    line[:3, :3] *= 0.25
    line[:3, 3] = centre
    row = tissue_map(subject, (600, 1, 1), line)[:, 0, 0]
    first = {
        tissue: int(np.argmax(row == tissue))
        for tissue in (Tissue.CSF, Tissue.MUSCLE, Tissue.SKIN, Tissue.AIR)
    }
    assert row[0] in CORD_TISSUES
    assert first[Tissue.CSF] < first[Tissue.MUSCLE] < first[Tissue.SKIN] < first[Tissue.AIR]


def test_levels_are_contiguous_and_named(subject: Anatomy) -> None:
    assert level_of(subject, -1.0) == "C3"
    assert level_of(subject, 1.0) == "C2"
    spans = list(subject.level_z.values())
    assert all(upper[0] == pytest.approx(lower[1]) for upper, lower in pairwise(spans))
    assert subject.disc_z["C2-C3"] == pytest.approx(0.0, abs=0.3)
    assert subject.disc_z["C7-T1"] == pytest.approx(-85, abs=15)
