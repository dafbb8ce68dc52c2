"""Changes over time on the cohort's page: what it holds, and in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser
from cohort_tree import make_tree
from timed_sessions import write_timed_session

from bids_scseg.measure.cohort import build
from bids_scseg.report.trajectories import summary, trajectory_data
from bids_scseg.workflows.group import find_outputs, write_group
from bids_scseg.workflows.longitudinal import compare_sessions

EVIL = "<img src=x onerror=alert(1)>"
PAIRS = 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three participants followed over two sessions among five scanned once."""
    bids, out = make_tree(tmp_path_factory.mktemp("tree"), participants=8)
    for number in range(1, PAIRS + 1):
        for old in out.rglob(f"*sub-00{number}*"):
            if old.is_file():
                old.unlink()
        write_timed_session(out, f"sub-00{number}_ses-1", [(0.0, -2.0, 90.0, 3.0), (2.0, 0.0, 60.0, 2.5)])
        lesions = [(0.0, -2.0, 90.0, 3.0), (2.0, 0.0, 60.0, 3.6), (0.0, 2.0, 45.0, 2.5)][: number + 1]
        write_timed_session(out, f"sub-00{number}_ses-2", lesions, changes={"flags": EVIL})
    table = "session_id\tacq_time\nses-1\t2020-01-01T00:00:00\nses-2\t2021-01-01T00:00:00\n"
    for number in range(1, PAIRS + 1):
        (bids / f"sub-00{number}").mkdir()
        (bids / f"sub-00{number}/sub-00{number}_sessions.tsv").write_text(table)
    write_group(out, dataset=bids, facts={})
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(chromium, tree) -> Page:
    chromium.complaints.clear()
    chromium.open(tree / "group.html")
    return chromium


def visible(page: Page, rows: str) -> int:
    return page.evaluate(
        f"[...document.querySelectorAll({json.dumps(rows)})].filter((row) => !row.hidden).length"
    )


def text(page: Page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def test_the_page_holds_every_pair_once(tree):
    outputs = find_outputs(tree)
    cohort = build(outputs)
    changes = compare_sessions(tree, cohort, outputs)
    labels = [item.label for item in outputs]
    data = trajectory_data(changes, labels)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [path["participant"] for path in data["paths"]] == ["sub-001", "sub-002", "sub-003"]
    assert [labels[n] for n in data["paths"][1]["sessions"]] == ["sub-002_ses-1", "sub-002_ses-2"]
    last = data["pairs"][2]
    assert (labels[last["before"]], labels[last["after"]]) == ("sub-003_ses-1", "sub-003_ses-2")
    assert sorted(lesion["fate"] for lesion in last["lesions"]) == ["enlarged", "new", "stable"]
    assert last["lesion_volume_change_mm3"] == pytest.approx(
        4 / 3 * np.pi * (3.6**3 - 2.5**3 + 2.5**3), rel=1e-3
    )
    assert summary(changes).startswith(
        "3 pairs of sessions of 3 participants: lesions were matched in 3 (2 new"
    )


def test_without_repeated_sessions_the_page_says_so(tmp_path):
    _, out = make_tree(tmp_path, participants=2, thumbnails=False)
    write_group(out, facts={})
    page = (out / "group.html").read_text(encoding="utf-8")
    assert "No participant has two sessions that count" in page
    data = json.loads(re.search(r'<script type="application/json" id="cohort">(.*?)</script>', page)[1])
    assert (data["trajectories"]["paths"], data["trajectories"]["pairs"]) == ([], [])
    assert summary(None) == ""
    assert trajectory_data(None, [])["pairs"] == []


def test_lines_and_pairs_are_drawn_without_complaints(page):
    assert visible(page, "#trajectory-rows tr") == PAIRS
    spoken = page.evaluate("document.getElementById('trajectory-plot').getAttribute('aria-label')")
    assert "over years since the first session" in spoken
    assert "3 participants" in spoken
    assert "3 rise, 0 fall, 0 stay" in spoken  # in volume: one lesion of each has grown
    assert page.complaints == []
    assert page.foreign == []


@pytest.mark.parametrize("width", [800, 1280, 1920])
def test_nothing_sticks_out_sideways(page, width):
    page.resize(width, 900)
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_row_selects_its_session_and_shows_the_lesions(page):
    page.evaluate("document.querySelectorAll('#trajectory-rows button')[2].click()")
    page.settle()
    assert text(page, "#panel-title") == "sub-003_ses-2"
    assert "sub-003" in text(page, "#trajectory-rows tr.current")
    assert "Lesions of sub-003" in text(page, "#trajectory-lesions h3")
    fates = page.evaluate(
        "[...document.querySelectorAll('#trajectory-lesions tbody tr')]"
        ".map((row) => row.cells[2].textContent)"
    )
    assert sorted(fates) == ["enlarged", "new", "stable"]
    page.press("Escape")
    assert visible(page, "#trajectory-lesions tr") == 0


def test_the_keyboard_goes_from_session_to_session(page):
    page.evaluate("document.getElementById('trajectory-plot').focus()")
    page.press("ArrowRight")
    assert text(page, "#panel-title") == "sub-001_ses-1"
    page.press("ArrowRight")
    assert text(page, "#panel-title") == "sub-001_ses-2"
    page.press("ArrowLeft")
    assert text(page, "#panel-title") == "sub-001_ses-1"


def test_filters_leave_pairs_out(page):
    page.evaluate(
        "(() => { const field = document.getElementById('by-text'); field.value = 'sub-002';"
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    page.settle()
    assert visible(page, "#trajectory-rows tr") == 1
    assert "1 participant;" in text(page, "#trajectory-about")
    page.evaluate("document.getElementById('clear').click()")
    page.settle()
    assert visible(page, "#trajectory-rows tr") == PAIRS


def test_another_metric_is_drawn(page):
    page.evaluate(
        "(() => { const field = document.getElementById('trajectory-metric'); field.value = 'lesion_count';"
        "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    page.settle()
    # 2, 3 and 3 lesions after 2.
    assert "2 rise, 0 fall, 1 stay" in text(page, "#trajectory-about")
    spoken = page.evaluate("document.getElementById('trajectory-plot').getAttribute('aria-label')")
    assert spoken.startswith("Lesions over")


def test_texts_of_a_dataset_stay_texts(page):
    page.evaluate("document.querySelectorAll('#trajectory-rows button')[0].click()")
    page.settle()
    assert page.evaluate("document.querySelectorAll('img[src=\"x\"]').length") == 0
    assert EVIL in text(page, "#panel-about")
    assert page.complaints == []
