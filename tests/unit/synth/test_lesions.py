"""Lesion statistics against the specification, and the shape of single lesions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bids_scseg.synth.anatomy import Anatomy, centerline_world, cord_coordinates
from bids_scseg.synth.contrast import FAINT_CNR, SEQUENCES, VISIBLE_CNR
from bids_scseg.synth.lesions import (
    CLASSES,
    DETECTABILITY,
    GAP_MM,
    MAX_AREA_SHARE,
    Lesion,
    _draw_classes,
    _draw_cnr,
    draw_lesions,
    lesion_fraction,
    volume_mm3,
)
from bids_scseg.synth.subject import cord_area_mm2


@pytest.fixture(scope="module")
def cohort(subject: Anatomy) -> list[tuple[Lesion, ...]]:
    rng = np.random.default_rng(0)
    return [draw_lesions(rng, subject) for _ in range(140)]


@pytest.fixture(scope="module")
def every(cohort: list[tuple[Lesion, ...]]) -> list[Lesion]:
    return [lesion for patient in cohort for lesion in patient]


def test_counts(cohort: list[tuple[Lesion, ...]]) -> None:
    counts = np.array([len(patient) for patient in cohort])
    assert np.mean(counts == 0) == pytest.approx(0.2, abs=0.08)
    assert 1.8 <= counts[counts > 0].mean() <= 3.2


def test_columns_sizes_and_lengths(every: list[Lesion]) -> None:
    # share, mm2, mm as quoted in the specification; tolerances are three standard errors of about 280 lesions
    quoted = {"lateral": (0.59, 8.5, 17.6), "dorsal": (0.35, 11.3, 24.8)}
    for column, (share, area, length) in quoted.items():
        some = [lesion for lesion in every if lesion.column.startswith(column)]
        assert len(some) / len(every) == pytest.approx(share, abs=0.07)
        assert np.mean([lesion.area_mm2 for lesion in some]) == pytest.approx(area, rel=0.13)
        assert np.mean([lesion.length_mm for lesion in some]) == pytest.approx(length, rel=0.13)
    ventral = [lesion for lesion in every if lesion.column == "ventral"]
    assert 0.02 < len(ventral) / len(every) < 0.11
    assert np.mean([lesion.area_mm2 for lesion in ventral]) == pytest.approx(4.3, rel=0.4)


def test_grey_matter_and_regions(every: list[Lesion], subject: Anatomy) -> None:
    assert np.mean([lesion.grey for lesion in every]) == pytest.approx(0.67, abs=0.07)
    cervical = np.mean([lesion.z_mm > subject.level_z["C7"][0] for lesion in every])
    lumbar = np.mean([lesion.z_mm < subject.level_z["T12"][0] for lesion in every])
    assert cervical > 0.45
    assert lumbar < 0.05


def test_most_lesions_are_short_and_narrow(every: list[Lesion], subject: Anatomy) -> None:
    # two segments: about 35 mm in the neck
    assert np.mean([lesion.length_mm < 35 for lesion in every]) > 0.8
    share = [lesion.area_mm2 / cord_area_mm2(subject, lesion.z_mm)[0] for lesion in every]
    assert max(share) < MAX_AREA_SHARE + 0.05


def test_lesions_of_a_patient_are_apart(cohort: list[tuple[Lesion, ...]]) -> None:
    for patient in cohort:
        for upper, lower in pairwise(patient):
            assert upper.arc_mm - lower.arc_mm > (upper.length_mm + lower.length_mm) / 2 + GAP_MM


def test_column_is_where_the_lesion_lies(subject: Anatomy, every: list[Lesion]) -> None:
    for lesion in every[:40]:
        centre = centerline_world(subject, lesion.z_mm)[0]
        points = centre + np.random.default_rng(0).uniform([-7, -6, -2], [7, 6, 2], (4000, 3))
        weight = lesion_fraction(subject, lesion, points)
        _, u, v, _ = cord_coordinates(subject, points)
        mean_u, mean_v = np.average(u, weights=weight), np.average(v, weights=weight)
        side = {"lateral right": mean_u, "lateral left": -mean_u, "dorsal": -mean_v, "ventral": mean_v}
        assert side[lesion.column] > 0.5


def test_fraction_stays_in_the_cord_and_out_of_spared_grey_matter(
    subject: Anatomy, every: list[Lesion]
) -> None:
    lesion = max(every, key=lambda each: each.area_mm2)
    centre = centerline_world(subject, lesion.z_mm)[0]
    points = centre + np.random.default_rng(1).uniform(-9, 9, (20000, 3))
    fraction = lesion_fraction(subject, lesion, points)
    rho = cord_coordinates(subject, points)[3]
    assert fraction.min() >= 0
    assert fraction.max() == pytest.approx(1.0)
    assert not fraction[rho >= 1].any()
    spared = lesion_fraction(subject, replace(lesion, grey=False), points)
    whole = lesion_fraction(subject, replace(lesion, grey=True), points)
    assert np.all(spared <= whole)
    assert 0 < spared.sum() < whole.sum()


def test_volume_is_the_integral_of_the_fraction(subject: Anatomy, every: list[Lesion]) -> None:
    lesion = every[0]
    centre = centerline_world(subject, lesion.z_mm)[0]
    half = np.array([9.0, 20.0, lesion.length_mm / 2 + 2])
    points = centre + np.random.default_rng(2).uniform(-half, half, (300_000, 3))
    expected = lesion_fraction(subject, lesion, points).mean() * np.prod(2 * half)
    assert volume_mm3(subject, lesion) == pytest.approx(expected, rel=0.06)


def test_detectability_shares() -> None:
    rng = np.random.default_rng(0)
    for thoracic in (False, True):
        drawn = [_draw_classes(rng, thoracic=thoracic) for _ in range(1200)]
        for sequence in SEQUENCES:
            key = "PSIR thoracic" if thoracic and sequence == "PSIR" else sequence
            shares = [100 * np.mean([d[sequence] == grade for d in drawn]) for grade in CLASSES]
            np.testing.assert_allclose(shares, DETECTABILITY[key], atol=5)


def test_contrast_lies_within_its_class() -> None:
    rng = np.random.default_rng(0)
    assert min(_draw_cnr(rng, "visible") for _ in range(300)) >= VISIBLE_CNR
    faint = [_draw_cnr(rng, "faint") for _ in range(300)]
    assert FAINT_CNR <= min(faint) <= max(faint) < VISIBLE_CNR
    assert max(_draw_cnr(rng, "invisible") for _ in range(300)) < FAINT_CNR


def test_wanted_number_place_and_kept_lesions(subject: Anatomy) -> None:
    rng = np.random.default_rng(3)
    assert draw_lesions(rng, subject, 0) == ()
    first = draw_lesions(rng, subject, 2, first_z_mm=-120.0)
    assert any(lesion.z_mm == -120.0 for lesion in first)
    later = draw_lesions(rng, subject, 3, present=first)
    assert len(later) == 3
    assert set(first) < set(later)
