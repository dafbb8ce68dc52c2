"""The cohort in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.measure.comparisons import (
    COMPARISON_COLUMNS,
    MIN_GROUP,
    SUMMARY_COLUMNS,
    cliffs_delta,
    compare,
    counted,
    summarise,
)
from bids_scseg.measure.schema import Column
from bids_scseg.measure.session import CORD_LEVELS

NUMBERS = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


def sessions(count: int, **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "participant_id": [f"sub-{n:02d}" for n in range(count)],
            "state": "done", "stratum": "A", "rating": None,
            "lesion_count": pd.Series(range(count), dtype="Int64"),
            "lesion_volume_mm3": np.arange(count, dtype=float) * 50,
            "lesion_load": np.arange(count, dtype=float) / 100,
            **{f"{level}_lesion_load": np.full(count, np.nan) for level in CORD_LEVELS},
        }
    )  # fmt: skip
    return frame.assign(**columns)


def test_who_is_counted_and_who_is_not():
    frame = sessions(6)
    frame.loc[0, "state"] = "failed"
    frame.loc[1, "stratum"] = "B"
    frame.loc[2, "rating"] = "fail"
    frame.loc[3, "lesion_count"] = pd.NA
    frame.loc[4, "rating"] = "unsure"
    used, left = counted(frame, "A")
    assert used["participant_id"].tolist() == ["sub-04", "sub-05"]
    assert {item.reason: item.sessions for item in left} == {
        "without a result": 1, "of another stratum": 1, "rated fail": 1, "no cord examined": 1
    }  # fmt: skip


def test_summary_of_known_numbers():
    frame = sessions(5, C3_lesion_load=[0.0, 0.1, np.nan, np.nan, 0.2])
    rows = summarise(frame, "A").set_index(["metric", "level"])
    assert list(summarise(frame, "A").columns) == [column.name for column in SUMMARY_COLUMNS]
    whole = rows.loc[("lesion_count", np.nan)]
    assert (whole["sessions"], whole["mean"], whole["median"], whole["q1"], whole["q3"]) == (5, 2, 2, 1, 3)
    assert whole["with_lesion"] == pytest.approx(0.8)
    assert whole["ci_low"] < 2 < whole["ci_high"]
    level = rows.loc[("lesion_load", "C3")]
    assert (level["sessions"], level["mean"], level["with_lesion"]) == (
        3,
        pytest.approx(0.1),
        pytest.approx(2 / 3),
    )
    assert [name for name in rows.index.get_level_values(1) if isinstance(name, str)] == ["C3"]


def test_sessions_of_one_participant_are_not_independent():
    """Twice the same five people is no more knowledge: the interval stays."""
    once, twice = sessions(5), pd.concat([sessions(5), sessions(5)], ignore_index=True)
    first, second = (summarise(frame, "A").iloc[0] for frame in (once, twice))
    assert second["sessions"] == 10
    assert second["participants"] == 5
    assert second["ci_low"] == pytest.approx(first["ci_low"])
    assert second["ci_high"] == pytest.approx(first["ci_high"])


def test_an_empty_cohort_has_a_summary_without_numbers():
    rows = summarise(sessions(0), "A")
    assert rows["sessions"].tolist() == [0, 0, 0]
    assert rows["mean"].isna().all()
    assert len(compare(sessions(0, sex=[]), ["sex"], "A")) == 0


@pytest.mark.parametrize(
    ("first", "second", "delta"),
    [([1, 2], [3, 4], 1.0), ([3, 4], [1, 2], -1.0), ([1, 2], [1, 2], 0.0), ([0, 0], [0, 1], 0.5)],
)
def test_cliffs_delta_by_hand(first, second, delta):
    assert cliffs_delta(first, second) == delta


@given(NUMBERS, NUMBERS)
def test_cliffs_delta_is_the_share_of_pairs(first, second):
    signs = np.sign(np.subtract.outer(second, first))
    assert cliffs_delta(first, second) == pytest.approx(signs.mean())


def test_two_groups_are_compared_with_effect_and_correction():
    frame = sessions(20, sex=["F"] * 10 + ["M"] * 10)
    rows = compare(frame, ["sex"], "A").set_index("metric")
    assert list(compare(frame, ["sex"], "A").columns) == [column.name for column in COMPARISON_COLUMNS]
    row = rows.loc["lesion_count"]
    assert row["test"] == "Mann-Whitney U"
    assert row["effect_size"] == 1.0  # all men above all women
    assert row["groups"] == "F: n = 10, median 4.5; M: n = 10, median 14.5"
    assert row["p"] == pytest.approx(0.000183, rel=0.02)  # U = 0 of 100, normal approximation
    assert row["p_holm"] == pytest.approx(3 * row["p"])  # three metrics, all alike


def test_small_groups_and_missing_values_are_left_out_and_told():
    site = ["Lyon"] * 6 + ["Oslo"] * 6 + ["Porto"] * 2 + [None] * 3
    row = compare(sessions(17, site=site), ["site"], "A").iloc[0]
    assert row["participants"] == 12
    assert row["left_out"] == 5
    assert row["left_out_why"] == f"3 without a value; 2 in groups of fewer than {MIN_GROUP} (Porto)"


def test_more_groups_and_numbers_have_their_tests():
    frame = sessions(18, site=["a", "b", "c"] * 6, age=np.arange(18.0))
    rows = compare(frame, ["site", "age"], "A")
    tests = dict(zip(rows["covariate"], rows["test"], strict=True))
    assert tests == {"site": "Kruskal-Wallis", "age": "Spearman"}
    age = rows[rows["covariate"] == "age"].iloc[0]
    assert age["effect_size"] == pytest.approx(1.0)
    assert age["ci_low"] > 0.9
    # no difference between the sites: a shuffle of equal spacing
    assert rows[rows["covariate"] == "site"]["effect_size"].max() < 0.05


def test_only_the_first_session_of_a_participant_is_compared():
    frame = pd.concat([sessions(12), sessions(12).assign(lesion_count=99)], ignore_index=True)
    frame["sex"] = ["F", "M"] * 12
    rows = compare(frame.sort_values("participant_id", kind="stable"), ["sex"], "A")
    assert rows["participants"].tolist() == [12] * 3
    assert "median 99" not in rows["groups"].iloc[0]


def test_what_cannot_be_compared_is_passed_over():
    frame = sessions(12, note=[f"text {n}" for n in range(12)], alike=["x"] * 12)
    assert len(compare(frame, ["note", "alike"], "A")) == 0
    same = sessions(12, sex=["F", "M"] * 6, lesion_count=0)
    row = compare(same, ["sex"], "A").set_index("metric").loc["lesion_count"]
    assert np.isnan(row["p"])
    assert row["effect_size"] == 0


def test_columns_are_described():
    assert all(isinstance(c, Column) and c.description for c in (*SUMMARY_COLUMNS, *COMPARISON_COLUMNS))
