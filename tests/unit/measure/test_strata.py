"""Strata and outliers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_scseg.measure.strata import MIN_SESSIONS, assign_strata, find_outliers, robust_z

ALIKE = {
    "state": "done", "model": "m", "model_sha256": "a", "threshold": 0.5, "seed_threshold": 0.0,
    "seed_threshold_alone": 0.0, "min_volume_mm3": 2.0,
    "cord_method": "sct", "cord_sha256": None, "numerical_version": "1",
}  # fmt: skip


def table(*changes: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([{**ALIKE, **change} for change in changes])


def test_sessions_measured_alike_share_a_letter_and_the_largest_is_a():
    frame = table({"threshold": 0.3}, {}, {}, {"state": "failed"})
    letters, strata = assign_strata(frame)
    assert letters == ["B", "A", "A", None]
    assert [(stratum.name, stratum.sessions) for stratum in strata] == [("A", 2), ("B", 1)]
    assert dict(strata[1].facts)["threshold"] == "0.3"


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"model_sha256": "b"}, {"threshold": 0.4}, {"cord_method": "builtin"},
     {"numerical_version": "2"}, {"cord_method": None}, {"cord_sha256": "c" * 64}, {"min_volume_mm3": 3.0},
     {"seed_threshold": 0.8},
     {"seed_threshold_alone": 0.9}],
)  # fmt: skip
def test_each_part_makes_a_stratum(change):
    assert len(assign_strata(table({}, {}, change))[1]) == 2


def test_many_strata_have_names_of_their_own():
    letters, _ = assign_strata(table(*({"threshold": n / 100} for n in range(60))))
    assert len(set(letters)) == 60
    assert {"Z", "AA", "BH"} <= set(letters)


def test_robust_z_of_known_numbers():
    # Median 5, deviations 5 4 3 2 1 0 1 2 3 4 95: median deviation 3, so the last is 95 / (1.4826 * 3).
    values = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100]
    assert robust_z(values)[-1] == pytest.approx(95 / (1.4826 * 3))
    assert robust_z(values)[5] == 0


def test_mostly_equal_values_do_not_make_outliers_of_a_common_rest():
    """A fifth of the sessions has a gap of 12 mm: the middle 80 % reach from 0 to 12, z is 2.56 for them."""
    assert robust_z([0] * 80 + [12] * 20)[-1] == pytest.approx(2.563)
    # One in a hundred is odd: the mean deviation is 0.12.
    assert robust_z([0] * 99 + [12])[-1] == pytest.approx(12 / (1.2533 * 0.12))


@given(arrays(float, st.integers(0, 40), elements=st.floats(-1e6, 1e6)))
def test_robust_z_is_finite_and_needs_enough_values(values):
    found = robust_z(values)
    assert np.isfinite(found).all()
    assert values.size >= MIN_SESSIONS or not found.any()


def cohort(**columns: list[object]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"stratum": ["A"] * count, **columns})


def test_a_noisy_session_stands_out_in_words():
    ratios = [*np.linspace(9, 11, 20), 1.5]
    found = find_outliers(cohort(T2Sag_cord_cnr=ratios), ["T2Sag"])
    assert found[:-1] == [None] * 20
    assert found[-1].startswith("T2Sag: contrast-to-noise ratio of the cord is low: 1.5, cohort median 9.95")
    assert "\u2212" in found[-1]
    assert find_outliers(cohort(T2Sag_cord_cnr=[*ratios[:-1], 90.0]), ["T2Sag"])[-1] is None  # good, not odd


def test_trifles_are_not_odd_however_alike_the_others_are():
    small = [*np.linspace(0.10, 0.11, 20), 0.4]
    large = [*np.linspace(0.10, 0.11, 20), 1.4]
    assert find_outliers(cohort(STIR_centerline_residual_mm=small), ["STIR"])[-1] is None
    assert "distance of the cord" in find_outliers(cohort(STIR_centerline_residual_mm=large), ["STIR"])[-1]


def test_strata_are_judged_apart():
    frame = cohort(cord_area_mm2=[60.0 + n % 3 for n in range(12)] + [90.0 + n % 3 for n in range(12)])
    assert any(find_outliers(frame.assign(stratum="A"), [])) is False
    frame["stratum"] = ["A"] * 12 + ["B"] * 12
    frame.loc[0, "cord_area_mm2"] = 91.0
    found = find_outliers(frame, [])
    assert found[0] is not None
    assert found[1:] == [None] * 23


def test_missing_values_do_not_matter():
    frame = cohort(cord_area_mm2=[60.0 + n % 3 for n in range(12)] + [None, 95.0])
    found = find_outliers(frame, [])
    assert found[-2] is None
    assert found[-1] is not None
