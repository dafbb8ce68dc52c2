"""Lesion and cord statistics of many subjects against the specification.

The fast tests look at thousands of drawn lesions, without images; the slow one measures in images whether
lesions are as well visible as drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from bids_scseg.synth import lesions as room
from bids_scseg.synth.anatomy import Anatomy, cord_area_mm2, draw_anatomy, level_of
from bids_scseg.synth.contrast import SEQUENCES
from bids_scseg.synth.lesions import Lesion, draw_lesions
from bids_scseg.synth.scenario import SIX, training_scenario
from bids_scseg.synth.session import Realised, realised_class, scan_session

#: Percent visible, faint, invisible as specified, kept apart from the generator's own table.
TABLE = {
    "T2Sag": (60, 25, 15), "STIR": (85, 10, 5), "T2StarAx": (75, 15, 10), "T2Ax": (70, 20, 10),
    "T1Sag": (25, 35, 40), "MP2RAGE": (85, 10, 5),
}  # fmt: skip
PSIR = {"cervical": (90, 5, 5), "thoracic": (50, 25, 25)}
CLASSES = ("visible", "faint", "invisible")
#: Share, mean cross-section (mm2), its share of the cervical cord, mean length (mm) by column.
COLUMNS = {
    "lateral": (0.59, 8.5, 0.12, 17.6),
    "dorsal": (0.35, 11.3, 0.16, 24.8),
    "ventral": (0.06, 4.3, 0.06, 18.3),
}
SUBJECTS, ANATOMIES = 3000, 30


@pytest.fixture(scope="module")
def anatomies() -> list[Anatomy]:
    return [draw_anatomy(np.random.default_rng([5, number])) for number in range(ANATOMIES)]


@pytest.fixture(scope="module")
def cohort(anatomies: list[Anatomy]) -> list[tuple[Lesion, ...]]:
    """Lesions with their wanted cross-section: fitting the shape to it takes most of the time."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_scaled_to_area", lambda _, lesion: lesion)
        return [draw_lesions(rng, anatomies[n % ANATOMIES]) for n in range(SUBJECTS)]


@pytest.fixture(scope="module")
def drawn(cohort: list[tuple[Lesion, ...]], anatomies: list[Anatomy]) -> pd.DataFrame:
    rows = []
    for number, patient in enumerate(cohort):
        anatomy = anatomies[number % ANATOMIES]
        for lesion in patient:
            level = level_of(anatomy, lesion.z_mm)
            low, high = anatomy.level_z[level]
            rows.append(
                {"column": lesion.column.split()[0], "side": lesion.column, "grey": lesion.grey,
                 "level": level, "area": lesion.area_mm2, "length": lesion.length_mm,
                 "segments": lesion.length_mm / (high - low),
                 "share": lesion.area_mm2 / cord_area_mm2(anatomy, lesion.z_mm)[0],
                 "thoracic": lesion.z_mm < anatomy.level_z["T1"][1], **lesion.detectability}
            )  # fmt: skip
    return pd.DataFrame(rows)


def near(share: float, count: int) -> float:
    """Four standard errors of a share."""
    return 4 * float(np.sqrt(share * (1 - share) / count))


def test_lesions_per_subject(cohort: list[tuple[Lesion, ...]]) -> None:
    counts = np.array([len(patient) for patient in cohort])
    assert np.mean(counts == 0) == pytest.approx(0.2, abs=near(0.2, SUBJECTS))
    assert 1.8 <= counts.mean() < counts[counts > 0].mean() <= 3.2


def test_columns(drawn: pd.DataFrame) -> None:
    for column, (share, *_) in COLUMNS.items():
        assert (drawn.column == column).mean() == pytest.approx(share, abs=near(share, len(drawn)))
    left, right = ((drawn.side == f"lateral {side}").sum() for side in ("left", "right"))
    assert left / (left + right) == pytest.approx(0.5, abs=near(0.5, left + right))


@pytest.mark.parametrize("column", COLUMNS)
def test_sizes(drawn: pd.DataFrame, column: str) -> None:
    # limits (half of the cord, 60 mm, room between lesions) take 1 to 4 % off the means; ventral ones are few
    _, area, share, length = COLUMNS[column]
    some = drawn[drawn.column == column]
    rel = 0.10 if column == "ventral" else 0.055
    assert some.area.mean() == pytest.approx(area, rel=rel)
    assert some.length.mean() == pytest.approx(length, rel=rel)
    # the percentages hold where they were measured, in the neck; the thoracic cord is thinner
    assert some[~some.thoracic].share.mean() == pytest.approx(share, abs=0.02)


def test_extent(drawn: pd.DataFrame) -> None:
    assert (drawn.segments <= 2).mean() > 0.9
    assert drawn.share.max() < 0.5


def test_grey_matter(drawn: pd.DataFrame) -> None:
    assert drawn.grey.mean() == pytest.approx(0.67, abs=near(0.67, len(drawn)))


def test_regions(drawn: pd.DataFrame) -> None:
    # the neck holds a quarter of the cord's length and half of the lesions; the conus next to none
    assert 0.5 < (~drawn.thoracic).mean() < 0.6
    assert (drawn.level.isin(["T12", "L1", "L2"])).mean() < 0.06


def test_detectability(drawn: pd.DataFrame) -> None:
    for sequence, percent in TABLE.items():
        _assert_shares(drawn[sequence], percent)
    for region, percent in PSIR.items():
        _assert_shares(drawn.PSIR[drawn.thoracic == (region == "thoracic")], percent)


def _assert_shares(classes: pd.Series, percent: Sequence[int]) -> None:
    for grade, wanted in zip(CLASSES, percent, strict=True):
        assert (classes == grade).mean() == pytest.approx(wanted / 100, abs=near(wanted / 100, len(classes)))


def test_sequences_show_lesions_independently(drawn: pd.DataFrame) -> None:
    neck = drawn[~drawn.thoracic]  # PSIR depends on the region
    visible = {sequence: (neck[sequence] == "visible").to_numpy(float) for sequence in SEQUENCES}
    for one, other in combinations(SEQUENCES, 2):
        # a correlation's standard error is 1 / sqrt(n)
        assert abs(np.corrcoef(visible[one], visible[other])[0, 1]) < 4 / np.sqrt(len(neck))


def test_cord_areas(anatomies: list[Anatomy]) -> None:
    # subjects differ by 9 %: the mean of 30 has a standard error of 1.7 %
    area = {
        level: np.mean([cord_area_mm2(a, sum(a.level_z[level]) / 2)[0] for a in anatomies])
        for level in ("C3", "C5", "T3", "T8", "T11")
    }
    for level, expected in {"C3": 66.0, "C5": 71.0, "T3": 39.0}.items():
        assert area[level] == pytest.approx(expected, rel=0.06)
    assert area["T11"] > 1.2 * area["T8"]  # lumbar enlargement


# ---------------------------------------------------------------------------------------------- in the images


def _measure(number: int, sequences: tuple[str, ...]) -> list[dict[str, object]]:
    """Drawn and realised class of each lesion of one subject in each sequence that covers it."""
    rng = np.random.default_rng([6, number])
    anatomy = draw_anatomy(rng)
    lesions = draw_lesions(rng, anatomy, 5)  # 16 subjects have as many as 39 usual ones
    realised = Realised()
    scenario = training_scenario(rng, sequences)
    for scan, image in scan_session(rng, anatomy=anatomy, lesions=lesions, scenario=scenario):
        realised.add(scan, image)
    return [
        {"sequence": sequence, "drawn": lesion.detectability[sequence], "realised": realised_class(value)}
        for sequence, values in realised.cnr.items()
        for lesion, value in zip(lesions, values, strict=True)
        if np.isfinite(value)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [SIX, ("PSIR",)], ids=("six", "psir"))
def test_images_show_lesions_as_drawn(sequences: tuple[str, ...]) -> None:
    rows = pd.DataFrame([row for number in range(16) for row in _measure(number, sequences)])
    assert (rows.drawn == rows.realised).mean() > 0.9
    for sequence, some in rows.groupby("sequence"):
        assert len(some) > 30, sequence
        for grade in CLASSES:
            # drawn shares are tested above; here the same lesions, so that no sampling error comes between
            difference = (some.realised == grade).mean() - (some.drawn == grade).mean()
            assert abs(difference) < 0.09, (sequence, grade)
            if sequence in TABLE:
                wanted = TABLE[sequence][CLASSES.index(grade)] / 100
                limit = near(wanted, len(some)) + 0.03
                assert (some.realised == grade).mean() == pytest.approx(wanted, abs=limit), sequence
