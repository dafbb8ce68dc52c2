"""What the group level found over time, on the page of a session."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from timed_sessions import write_timed_session

from bids_scseg.report.history import history_facts, read_history, rows_of
from bids_scseg.report.records import History
from bids_scseg.report.session import write_session_report
from bids_scseg.workflows.group import write_group

EVIL = "<b>x</b>"
STAYS, GONE, COMES = (0.0, -2.0, 90.0, 3.0), (-2.0, 1.0, 30.0, 2.5), (0.0, 2.0, 45.0, 2.5)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    write_timed_session(root, "sub-01_ses-1", [STAYS, GONE])
    write_timed_session(root, "sub-01_ses-2", [STAYS, COMES])
    write_timed_session(root, "sub-01_ses-3", [STAYS], changes={"threshold": 0.3})
    write_timed_session(root, "sub-02_ses-1", [STAYS])
    write_group(root, facts={})
    return root


def test_a_session_knows_those_before_and_after(out):
    found = read_history(out, "sub-01_ses-2")
    assert [label for label, _, _ in found.sessions] == ["sub-01_ses-1", "sub-01_ses-2", "sub-01_ses-3"]
    assert [count for _, count, _ in found.sessions] == [2, 2, 1]
    assert [row["state"] for row in found.pairs] == ["compared", "refused"]
    assert sorted(row["fate"] for row in found.lesions) == ["new", "resolved", "stable"]
    # Of the third session nothing was matched: its pair was refused.
    assert read_history(out, "sub-01_ses-3").lesions == ()


@pytest.mark.parametrize("label", ["sub-02_ses-1", "sub-01", "sub-09_ses-1"])
def test_a_session_that_was_not_compared_has_no_history(out, label):
    assert read_history(out, label) is None


def test_tables_that_cannot_be_read_are_no_history(tmp_path):
    assert read_history(tmp_path, "sub-01_ses-1") is None
    (tmp_path / "group").mkdir()
    (tmp_path / "group/session_changes.tsv").write_text("nothing\there\n1\t2\n")
    assert read_history(tmp_path, "sub-01_ses-1") is None


def test_lines_of_other_participants_are_not_parsed(tmp_path, monkeypatch):
    lines = [
        "participant_id\tsession_id\tx",
        *(f"sub-{n:02d}\tses-1\t{n}" for n in range(50)),
        "sub-07\tses-2",
    ]
    parsed = []
    reader = csv.reader

    def watched(rows, *how, **more):
        return reader((parsed.append(row) or row for row in rows), *how, **more)

    monkeypatch.setattr(csv, "reader", watched)
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    found = rows_of("sub-07", tmp_path / "t.tsv")
    assert [(row["session_id"], row["x"]) for row in found] == [("ses-1", "7"), ("ses-2", "n/a")]
    assert len(parsed) == 3


def test_a_table_with_its_columns_in_another_order_is_read(tmp_path):
    (tmp_path / "t.tsv").write_text("x\tparticipant_id\n1\tsub-1\n2\tsub-10\n")
    assert rows_of("sub-1", tmp_path / "t.tsv") == [{"x": "1", "participant_id": "sub-1"}]


def test_the_facts_are_in_words_tables_and_a_picture(out):
    facts = history_facts(read_history(out, "sub-01_ses-2"), repeated=True)
    assert "compared 2 of 3 sessions" in facts["history_words"]
    texts = [[cell.text for cell in row] for row in facts["history_pairs"].rows]
    assert texts[0][3] == "1 new, 1 stable, 1 resolved"
    assert texts[1][3] == "refused"
    assert "different threshold" in texts[1][6]
    marks = facts["history_chart"]["marks"]
    assert [mark["own"] for mark in marks] == [False, True, False]
    # Volumes of 179, 179 and 113 mm³: the first two at the top of the area, the third at 63 % of it.
    assert marks[0]["y"] == marks[1]["y"] == 14.0
    assert marks[2]["y"] == pytest.approx(120 - 106 * 27 / (27 + 2.5**3), abs=0.1)
    assert facts["history_chart"]["lines"] == ["60.0,14.0 310.0,14.0"]  # the third was measured otherwise
    assert facts["history_chart"]["apart"]


@pytest.mark.parametrize(
    ("states", "words", "lines"),
    [
        (("compared", "totals only", "compared"), "compared 4 sessions", [4]),
        (("compared", "refused", "compared"), "compared 4 sessions", [2, 2]),
        (("refused", "refused", "compared"), "compared 2 of 4 sessions", [2]),
        (("refused", "refused", "refused"), "no two sessions of this participant could be compared", []),
    ],
)
def test_lines_join_what_was_compared(states, words, lines):
    history = History(
        label="sub-1_ses-2",
        sessions=tuple((f"sub-1_ses-{n}", 1.0, 10.0 + n) for n in range(4)),
        pairs=tuple({"state": state} for state in states),
        lesions=(),
    )
    facts = history_facts(history, repeated=True)
    assert words in facts["history_words"]
    chart = facts["history_chart"]
    assert len(chart["marks"]) == 4
    assert [len(points.split()) for points in chart["lines"]] == lines
    assert chart["apart"] == ("refused" in states)


def test_no_line_passes_over_a_session_without_a_volume_that_was_refused():
    history = History(
        label="sub-1_ses-0",
        sessions=(("sub-1_ses-0", 1.0, 10.0), ("sub-1_ses-1", None, None), ("sub-1_ses-2", 1.0, 12.0)),
        pairs=({"state": "refused"}, {"state": "refused"}),
        lesions=(),
    )
    assert history_facts(history, repeated=True)["history_chart"]["lines"] == []


def test_before_the_group_level_the_page_leads_to_no_page_that_is_not_there(make_report, tmp_path):
    report = make_report(slices=60, label="sub-01_ses-2")
    write_session_report(report, tmp_path / "page.html", figures_dir=tmp_path / "figures")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Changes over time" in page
    assert "group.html" not in page


def test_without_a_comparison_the_page_says_how_to_get_one():
    assert "--reports-only" in history_facts(None, repeated=True)["history_words"]
    assert history_facts(None, repeated=False)["history_words"] == ""


def test_the_session_page_shows_it_escaped(out, make_report, tmp_path):
    found = read_history(out, "sub-01_ses-2")
    evil = [{**row, "reason": EVIL, "session_before": EVIL} for row in found.pairs]
    report = make_report(slices=60, label="sub-01_ses-2", history=replace(found, pairs=tuple(evil)))
    write_session_report(report, tmp_path / "page.html", figures_dir=tmp_path / "figures")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert 'href="group.html#trajectories"' in page
    assert page.count("<circle") >= 3
    assert page.count("<polyline") == 1
    assert "Sessions without a line between them were not compared." in page
    assert "Changes over time" in page
    assert "Lesion volume by session" in page


def test_a_session_without_others_has_no_such_section(make_report, tmp_path):
    report = make_report(slices=60, label="sub-01")
    write_session_report(report, tmp_path / "page.html", figures_dir=tmp_path / "figures")
    assert "Changes over time" not in (tmp_path / "page.html").read_text(encoding="utf-8")
