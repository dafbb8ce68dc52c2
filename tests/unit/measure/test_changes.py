"""Which sessions are compared, in which order, and what their tables say."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

import pandas as pd
import pytest

from bids_scseg.measure import changes
from bids_scseg.measure.changes import (
    PairFindings,
    differing,
    flags_of,
    tabulate,
)
from bids_scseg.measure.longitudinal import Match
from bids_scseg.measure.timeline import SessionPair, session_order, session_pairs
from bids_scseg.measure.volume_noise import Change


def sessions(*rows):
    """(participant, session, stratum, rating, threshold) of sessions with a result."""
    names = ("participant_id", "session_id", "stratum", "rating", "threshold")
    table = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    facts = {
        "state": "done", "sequences": "T2Sag+STIR", "lesion_count": 1, "lesion_volume_mm3": 50.0,
        "cord_area_mm2": 60.0,
    }  # fmt: skip
    return table.assign(**facts)


def labels(pairs):
    return [(pair.before, pair.after) for pair in pairs]


TABLE = sessions(
    ("sub-1", "ses-b", "A", None, 0.5),
    ("sub-1", "ses-a", "A", "pass", 0.5),
    ("sub-1", "ses-c", "A", "fail", 0.5),
    ("sub-1", "ses-d", "B", None, 0.3),
    ("sub-2", "ses-a", "A", None, 0.5),
)


def test_neighbours_by_label_without_those_rated_fail():
    pairs, trajectories = session_pairs(TABLE)
    assert labels(pairs) == [("ses-a", "ses-b"), ("ses-b", "ses-d")]
    assert [pair.order for pair in pairs] == ["labels", "labels"]
    assert [pair.refusal for pair in pairs] == ["", "measured otherwise: different threshold"]
    assert list(trajectories) == ["sub-1"]


@pytest.mark.parametrize(
    "names",
    [("1", "2", "10"), ("M0", "M6", "M12"), ("01", "1", "2"), ("1", "M0", "baseline"), ("2a3", "2a10", "10")],
)
def test_numbers_in_labels_are_in_order(names):
    assert sorted(sorted(names), key=session_order) == list(names)
    table = sessions(*(("sub-1", f"ses-{name}", "A", None, 0.5) for name in sorted(names)))
    pairs, trajectories = session_pairs(table)
    assert labels(pairs) == [(f"ses-{one}", f"ses-{other}") for one, other in pairwise(names)]
    assert [label for label, _ in trajectories["sub-1"]] == [f"sub-1_ses-{name}" for name in names]


def test_sessions_of_one_date_are_ordered_by_label():
    table = sessions(*(("sub-1", f"ses-{name}", "A", None, 0.5) for name in ("10", "2")))
    times = {f"sub-1_ses-{name}": datetime(2001, 1, 1) for name in ("10", "2")}
    assert labels(session_pairs(table, times)[0]) == [("ses-2", "ses-10")]


def test_dates_count_only_if_all_are_known():
    times = {"sub-1_ses-a": datetime(2001, 1, 1), "sub-1_ses-b": datetime(2000, 1, 1)}
    assert labels(session_pairs(TABLE, times)[0]) == [("ses-a", "ses-b"), ("ses-b", "ses-d")]
    times["sub-1_ses-d"] = datetime(2000, 1, 31)
    pairs, trajectories = session_pairs(TABLE, times)
    assert labels(pairs) == [("ses-b", "ses-d"), ("ses-d", "ses-a")]
    assert pairs[0].days == pytest.approx(30)
    assert trajectories["sub-1"][0] == ("sub-1_ses-b", 0.0)


def test_a_cohort_without_repeated_sessions_has_no_pairs():
    assert session_pairs(TABLE[TABLE["participant_id"] == "sub-2"]) == ([], {})
    single = sessions(("sub-1", None, "A", None, 0.5), ("sub-2", None, "A", None, 0.5))
    assert session_pairs(single) == ([], {})


def test_a_session_of_which_no_cord_was_examined_is_not_one_without_lesions():
    table = TABLE.assign(lesion_count=pd.array([None, 1, 1, 1, 1], dtype="Int64"))
    assert [pair.refusal for pair in session_pairs(table)[0]] == ["no cord was examined in ses-b"] * 2


def test_who_decided_on_lesions_is_said():
    table = TABLE.assign(mask_origin=["manual", "model", "model", "manual", "model"])
    (first, second), _ = session_pairs(table)
    assert first.note == "lesions decided by model before, by manual after"
    assert second.note == ""


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("T2Sag+STIR", "STIR+T2Sag", None),
        ("T2Sag+STIR", "T2Sag", "STIR only before"),
        ("T2Sag", "T2Ax", "T2Sag only before; T2Ax only after"),
        (float("nan"), "T2Sag", "T2Sag only after"),
        ("", "", None),
    ],
)
def test_sequences_that_differ(one, other, words):
    assert differing(one, other) == words


CHANGE = Change(mm3=10.0, sd_mm3=5.0)


def match(fate, before, after):
    return Match(
        fate=fate, before=before, after=after, volume_before_mm3=40.0 * len(before),
        volume_after_mm3=50.0 * len(after), change=CHANGE, examined=1.0, shift_mm=None,
    )  # fmt: skip


def test_rows_of_a_pair():
    pair = SessionPair(participant="sub-1", before="ses-a", after="ses-b", order="dates", days=731.0)
    found = PairFindings(
        state="compared",
        alignment="levels",
        matches=(match("enlarged", (1,), (1,)), match("new", (), (2,)), match("not examined", (2,), ())),
        extras=({}, {"other_probability": 0.3}, {}),
        total=Change(mm3=60.0, sd_mm3=10.0),
    )
    lesions = pd.DataFrame(
        [
            {"participant_id": "sub-1", "session_id": f"ses-{s}", "index": n, "volume_mm3": 45.0,
             "level": "C3", "column": "dorsal"}
            for s in "ab" for n in (1, 2)
        ]
    )  # fmt: skip
    changes, pairs = tabulate([pair], [found], sessions=TABLE, lesions=lesions)
    assert changes["fate"].tolist() == ["enlarged", "new", "not examined"]
    assert changes["track"].tolist() == [1, 2, 3]
    assert changes["z"].tolist()[0] == 2.0
    assert changes["beyond_noise"].tolist()[:2] == [True, True]
    assert changes.loc[2, ["volume_after_mm3", "volume_change_mm3", "z"]].isna().all()
    row = pairs.iloc[0]
    assert (row["new"], row["enlarged"], row["not_examined"], row["new_beyond_noise"]) == (1, 1, 1, 1)
    # What was not examined does not count: 40 before, 50 + 50 after.
    assert (row["lesion_volume_before_mm3"], row["lesion_volume_after_mm3"]) == (40.0, 100.0)
    assert row["lesion_volume_change_ci_low_mm3"] == pytest.approx(60 - 19.6)
    assert row["lesion_volume_change_mm3_per_year"] == pytest.approx(60 / (731 / 365.25))


def test_short_intervals_are_no_change_per_year():
    pair = SessionPair(participant="sub-1", before="ses-a", after="ses-b", order="dates", days=7.0)
    found = PairFindings(state="totals only", reason="no image", total=Change(mm3=60.0, sd_mm3=10.0))
    _, pairs = tabulate([pair], [found], sessions=TABLE, lesions=TABLE.iloc[:0])
    row = pairs.iloc[0]
    assert (row["lesion_volume_change_mm3"], row["volume_basis"]) == (60.0, "all")
    assert pd.isna(row["lesion_volume_change_mm3_per_year"])


def test_flags_count_what_was_not_matched():
    found = [PairFindings(state="refused"), PairFindings(state="totals only"), PairFindings(state="compared")]
    pair = SessionPair(participant="sub-1", before="a", after="b", order="labels")
    refused, totals = flags_of([pair] * 3, found)
    assert refused.startswith("1 of 3 pairs of sessions are not compared")
    assert "only their totals" in totals
    assert flags_of([pair], [found[2]]) == ()


def test_tracks_of_many_participants_take_one_walk_over_the_pairs():
    facts = {"before": "ses-a", "after": "ses-b", "order": "labels"}
    pairs = [SessionPair(participant=f"sub-{n}", **facts) for n in range(400)]
    found = [PairFindings(state="compared", matches=(match("stable", (1,), (1,)),))] * len(pairs)
    walks = 0

    class Counted(list):
        def __iter__(self):
            nonlocal walks
            walks += 1
            return super().__iter__()

    numbers = changes._tracks(Counted(pairs), found)
    assert len(numbers) == 2 * len(pairs)
    assert set(numbers.values()) == {1}
    assert walks == 1
