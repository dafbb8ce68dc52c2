"""The page of a cohort: what it says without its scripts, and that no text of a dataset becomes markup."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from cohort_tree import make_tree

from bids_scseg.measure.cohort import CohortTables, build
from bids_scseg.report.group import GroupPage, summary_sentence, write_group_page
from bids_scseg.report.group_data import page_data
from bids_scseg.workflows.group import find_outputs

EVIL = "</script><script>alert(1)</script><!--"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> CohortTables:
    _, out = make_tree(tmp_path_factory.mktemp("tree"), participants=12, failed=2, thumbnails=False)
    return build(find_outputs(out))


def written(tmp_path, page: GroupPage) -> str:
    write_group_page(tmp_path / "group.html", page)
    return (tmp_path / "group.html").read_text(encoding="utf-8")


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="cohort">(.*?)</script>', text)[1])


def changed(cohort: CohortTables, **columns: object) -> CohortTables:
    sessions = cohort.sessions.copy()
    for name, value in columns.items():
        sessions.loc[0, name] = value
    parts = {name: getattr(cohort, name) for name in CohortTables.__dataclass_fields__}
    return CohortTables(**{**parts, "sessions": sessions})


def test_page_says_what_was_done(cohort, tmp_path):
    failures = [
        {"label": "sub-011", "state": "failed", "step": "cord", "cause": "no cord", "remedy": "Look."}
    ]
    facts = {"title": "demo", "dataset": "ds"}
    text = written(tmp_path, GroupPage(cohort=cohort, failures=failures, facts=facts))
    lesions = int(cohort.sessions["lesion_count"].sum())
    assert f"10 sessions of 10 participants were processed; the model marked {lesions} lesions" in text
    assert "1 session ended without a result" in text
    assert "Look." in text
    assert "http:" not in text
    assert "https:" not in text
    assert "There is nothing to compare" in text  # no covariates, fewer than five per manufacturer


def test_every_number_is_embedded_once_and_rounded(cohort):
    data = page_data(cohort, reports={"sub-001": "sub-001.html"}, thumbnails={})
    assert [session["label"] for session in data["sessions"]] == [f"sub-{n:03d}" for n in range(1, 11)]
    assert data["sessions"][0]["report"] == "sub-001.html"
    assert data["sessions"][1]["report"] == ""
    at = [metric["key"] for metric in data["metrics"]].index("lesion_load")
    load = cohort.sessions["lesion_load"].iloc[0]
    # shown in percent, five significant digits
    assert data["sessions"][0]["m"][at] == pytest.approx(load * 100, rel=1e-4)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_not_examined_is_not_no_lesion(cohort):
    """The trees' cords end at 180 to 420 mm: beyond its own end a session has -1, within it 0 or more."""
    data = page_data(cohort, reports={}, thumbnails={})
    for session in data["sessions"]:
        found = cohort.maps[session["label"]]
        bins = len(found["cord_mm"])
        assert min(session["along"][:bins]) >= 0
        assert set(session["along"][bins:]) <= {-1}
        hit = [n for n, volume in enumerate(found["lesion_mm3"]) if volume > 0]
        assert [n for n, share in enumerate(session["along"]) if share > 0] == hit
    assert data["along"]["count"] == max(len(found["cord_mm"]) for found in cohort.maps.values())


def test_sessions_without_an_origin_are_left_out_along_the_cord_only(cohort):
    maps = {label: {**found, "anatomical": False} for label, found in cohort.maps.items()}
    parts = {name: getattr(cohort, name) for name in CohortTables.__dataclass_fields__}
    data = page_data(CohortTables(**{**parts, "maps": maps}), reports={}, thumbnails={})
    assert {session["along"] is None for session in data["sessions"]} == {True}
    assert all(len(session["across"]) == 4 * 24 for session in data["sessions"])


def test_texts_of_a_dataset_stay_texts(cohort, tmp_path):
    evil = changed(cohort, flags=EVIL, outliers=EVIL, rating_note=EVIL, manufacturer=EVIL)
    failures = [{"label": EVIL, "state": "failed", "cause": EVIL}]
    page = GroupPage(
        cohort=evil, failures=failures, facts={"dataset": EVIL}, reports={"sub-001": "javascript:alert(1)"}
    )
    text = written(tmp_path, page)
    assert "<script>alert" not in text
    assert "<!--" not in text
    assert "javascript:" not in text
    session = embedded(text)["sessions"][0]
    assert session["flags"] == session["outliers"] == session["note"] == EVIL
    assert session["report"] == ""


def test_only_the_page_itself_may_run(cohort, tmp_path):
    text = written(tmp_path, GroupPage(cohort=cohort))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 4  # two scripts, two style sheets


def test_mixed_sessions_are_a_serious_warning(cohort, tmp_path):
    text = written(tmp_path, GroupPage(cohort=cohort))
    assert "not all measured alike" not in text
    mixed = build_mixed(cohort)
    text = written(tmp_path, GroupPage(cohort=mixed))
    assert "not all measured alike" in text
    assert "the statistics are those of stratum A" in text
    assert {session["stratum"] for session in embedded(text)["sessions"]} == {"A", "B"}


def build_mixed(cohort: CohortTables) -> CohortTables:
    from bids_scseg.measure.strata import assign_strata

    mixed = changed(cohort, threshold=0.4)
    letters, strata = assign_strata(mixed.sessions)
    mixed.sessions["stratum"] = pd.Series(letters, dtype="str")
    parts = {name: getattr(mixed, name) for name in CohortTables.__dataclass_fields__}
    return CohortTables(**{**parts, "strata": strata})


def test_empty_cohort(tmp_path):
    text = written(tmp_path, GroupPage(cohort=build([])))
    assert "No session has a result yet." in text
    assert embedded(text)["sessions"] == []


def test_summary_sentence_says_where_readers_had_a_hand():
    rows = [
        {"participant_id": "sub-1", "lesion_count": 2, "mask_origin": "model"},
        {"participant_id": "sub-2", "lesion_count": 1, "mask_origin": "manual"},
    ]
    assert summary_sentence(rows, []) == (
        "2 sessions of 2 participants were processed; the model and its readers marked 3 lesions, and none "
        "in 0 sessions (readers corrected 1 session)."
    )


def test_summary_sentence_counts_unexamined_sessions_apart():
    rows = [{"participant_id": "sub-1", "lesion_count": 2}, {"participant_id": "sub-1", "lesion_count": None}]
    assert summary_sentence(rows, []) == (
        "2 sessions of 1 participant were processed; the model marked 2 lesions, and none in 0 sessions. "
        "In 1 session no cord was examined."
    )
