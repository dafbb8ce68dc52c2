"""Geometry of a session: slabs, stacks, orientations, displacements and names."""

from __future__ import annotations

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.synth.anatomy import Anatomy
from bids_scseg.synth.protocol import Plane, Scan, lattice, plan_session, rigid, seam_heights
from bids_scseg.synth.scenario import SIX, SUBJECTS, Scenario, training_scenario


@pytest.fixture(scope="module")
def scans(subject: Anatomy) -> list[Scan]:
    return plan_session(np.random.default_rng(2), subject, SUBJECTS[0][0])


def _of(scans: list[Scan], sequence: str) -> list[Scan]:
    return [scan for scan in scans if scan.sequence == sequence]


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR", "PIL"])
def test_lattice_is_oriented_and_centred(codes: str) -> None:
    plane = Plane(
        codes=codes, voxel_mm=(3.0, 0.8, 1.0), fov_mm=(45, 40, 50), slices_along=0, thickness_mm=3.0
    )
    shape, affine = lattice(plane, centre=np.array([5.0, -3.0, 20.0]), turn=np.zeros(3))
    assert "".join(nib.aff2axcodes(affine)) == codes
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    np.testing.assert_allclose(middle, [5, -3, 20], atol=1e-4)
    size = dict(zip(codes.translate(str.maketrans("LPI", "RAS")), shape, strict=True))
    assert size == {"R": 15, "A": 50, "S": 50}


def test_rigid_is_a_rotation() -> None:
    matrix = rigid(np.array([0.1, -0.2, 0.3]), np.array([1.0, 2, 3]))
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize("slabs", [1, 2, 3])
def test_slabs_overlap_and_reach_from_brain_to_conus(slabs: int) -> None:
    heights = seam_heights(slabs)
    assert heights[0][1] == pytest.approx(58)
    assert heights[-1][0] == pytest.approx(-420)
    for upper, lower in pairwise(heights):
        assert lower[1] - upper[0] == pytest.approx(45)


def test_slabs_of_a_session_overlap_in_the_world(scans: list[Scan]) -> None:
    spans = []
    for scan in _of(scans, "T2Sag"):
        corners = np.stack(np.meshgrid(*[[0, n - 1] for n in scan.acquisition.shape]), -1).reshape(-1, 3)
        z = corners @ scan.acquisition.affine[2, :3] + scan.acquisition.affine[2, 3]
        spans.append((z.min(), z.max()))
    assert len(spans) == 2
    assert 30 < spans[1][1] - spans[0][0] < 60


def test_displacements_stay_within_two_millimetres(scans: list[Scan]) -> None:
    anchor = _of(scans, "T2Sag")
    np.testing.assert_allclose(anchor[0].acquisition.motion, np.eye(4), atol=1e-12)
    assert not np.allclose(anchor[1].acquisition.motion, np.eye(4))
    for sequence in SIX[2:]:
        moves = [scan.acquisition.motion for scan in _of(scans, sequence)]
        assert all(0.3 < np.linalg.norm(move[:3, 3]) <= 2.0 for move in moves)
        assert all(np.allclose(move, moves[0]) for move in moves)


def test_slab_misplacement_is_small(scans: list[Scan]) -> None:
    scan = _of(scans, "T2Sag")[1].acquisition
    centre = scan.affine[:3, :3] @ ((np.array(scan.shape) - 1) / 2) + scan.affine[:3, 3]
    moved = scan.motion[:3, :3] @ centre + scan.motion[:3, 3]
    assert np.linalg.norm(moved - centre) < 4
    angle = np.degrees(np.arccos((np.trace(scan.motion[:3, :3]) - 1) / 2))
    assert angle < 3


def test_masks_of_a_session_cannot_collide(scans: list[Scan]) -> None:
    names = [tuple(sorted(scan.entities.items())) for scan in scans if scan.sequence]
    assert len(set(names)) == len(names)
    for one in scans:
        for other in scans:
            if one.suffix != other.suffix and one.sequence and other.sequence:
                assert one.entities["acq"] != other.entities["acq"]


def test_stir_says_so(scans: list[Scan]) -> None:
    for scan in _of(scans, "STIR"):
        assert scan.suffix == "T2w"
        assert "stir" in scan.entities["acq"]
        assert scan.sidecar["InversionTime"] == pytest.approx(0.22)


def test_stacks_have_gaps_and_volumes_are_isotropic(scans: list[Scan]) -> None:
    for scan in _of(scans, "T2Ax"):
        spacing = np.linalg.norm(scan.acquisition.affine[:3, scan.acquisition.slice_axis])
        assert spacing > scan.acquisition.thickness_mm * 1.05
        assert spacing <= 7.5
    (volume,) = _of(scans, "MP2RAGE")
    np.testing.assert_allclose(np.linalg.norm(volume.acquisition.affine[:3, :3], axis=0), 1, rtol=1e-5)


def test_the_cases_of_the_demo_are_all_there() -> None:
    sessions = [scenario for case in SUBJECTS for scenario in case]
    assert len(SUBJECTS) <= 8
    assert any(set(s.sequences) == set(SIX) for s in sessions)
    assert any("T2Sag" not in s.sequences for s in sessions)
    assert any(s.lesions == 0 for s in sessions)
    assert any(s.seam for s in sessions)
    assert any(s.slabs == 3 and "T2Sag" in s.sequences for s in sessions)
    assert any(s.oblique for s in sessions)
    assert any(len(case) == 2 for case in SUBJECTS)
    assert {d for s in sessions for d in s.distractors} == {"brain", "gadolinium", "phase", "mt", "rerun"}


def test_oblique_scans_are_oblique(subject: Anatomy) -> None:
    scans = plan_session(np.random.default_rng(3), subject, Scenario(name="x", oblique=True))
    cosines = np.abs(_of(scans, "T2Sag")[0].acquisition.affine[:3, :3])
    cosines /= np.linalg.norm(cosines, axis=0)
    assert np.degrees(np.arccos(cosines.max(0))).max() > 1


def test_training_sessions_vary_and_are_small(subject: Anatomy) -> None:
    drawn = [training_scenario(np.random.default_rng(n)) for n in range(12)]
    assert len({scenario.slabs for scenario in drawn}) > 1
    scans = plan_session(np.random.default_rng(0), subject, drawn[0])
    assert max(np.prod(scan.acquisition.shape) for scan in scans) < 2_000_000
