"""Statistics of the cohort's page in a real browser: they follow ratings as another run would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser
from cohort_tree import make_tree

from bids_scseg.measure.cohort import build
from bids_scseg.measure.ratings import Rating, Ratings
from bids_scseg.report.group import _summary_table
from bids_scseg.workflows.group import find_outputs, write_group

PARTICIPANTS, SESSIONS = 24, 2
INTERVALS = (5, 9)  # columns of the summary that are resampled
CELLS = (
    "[...document.querySelectorAll('#summary-table tbody tr')]"
    ".map((row) => [...row.cells].map((cell) => cell.textContent))"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    bids, out = make_tree(folder, participants=PARTICIPANTS, sessions=SESSIONS, failed=1, thumbnails=False)
    write_group(out, dataset=bids, facts={})
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(chromium, tree) -> Page:
    chromium.open(tree / "group.html")
    chromium.evaluate("localStorage.clear()")
    chromium.open(tree / "group.html")
    return chromium


def fail(page: Page, *numbers: int) -> list[str]:
    """Rate sessions by their place in the table's order, and wait for the intervals; their labels."""
    labels = []
    for number in numbers:
        label = f"sub-{number // SESSIONS + 1:03d}_ses-{number % SESSIONS + 1}"
        page.evaluate(
            f"[...document.querySelectorAll('#session-rows tr')].find((row) => row.cells[0].textContent === "
            f"'{label}').click()"
        )
        page.settle()
        page.press("f")
        labels.append(label)
    page.wait("!document.getElementById('summary-table').hasAttribute('aria-busy')")
    return labels


def text(page: Page, element: str) -> str:
    return page.evaluate(f"document.getElementById('{element}').innerText")


def ends(cell: str) -> tuple[float, float]:
    low, high = (re.sub("\u202f", "", part) for part in cell.split(" to "))
    return float(low), float(high)


def test_the_summary_is_that_of_a_run_with_these_ratings(page, tree):
    before = page.evaluate(CELLS)
    failed = fail(page, 0, 5, 6, 7)
    shown = page.evaluate(CELLS)
    assert shown != before
    ratings = Ratings(by_label={label: Rating(rating="fail") for label in failed})
    expected = _summary_table(build(find_outputs(tree), ratings=ratings))
    assert len(shown) == len(expected.rows)
    for row, known in zip(shown, expected.rows, strict=True):
        for column, (cell, wanted) in enumerate(zip(row, known, strict=True)):
            if column not in INTERVALS:
                assert cell == wanted.text, (row, column)
                continue
            (low, high), (a, b) = ends(cell), ends(wanted.text)
            # Another stream of random numbers: ends repeat to a few percent of the width, and in steps where
            # a few participants have all there is.
            reach = 0.15 if float(row[3]) >= 15 else 0.5
            assert low == pytest.approx(a, abs=reach * (b - a) + 1e-3), (row, column)
            assert high == pytest.approx(b, abs=reach * (b - a) + 1e-3), (row, column)
    assert text(page, "left-out") == "Left out: 1 without a result, 4 rated fail."
    assert "4 sessions excluded since the page was written" in text(page, "statistics-when")
    assert page.complaints == []


def test_taking_ratings_back_restores_the_tables_of_the_run(page):
    before = page.evaluate(CELLS)
    drawn = page.evaluate("document.getElementById('whiskers').outerHTML")
    fail(page, 3)
    assert page.evaluate("document.getElementById('whiskers').outerHTML") != drawn
    fail(page, 3)  # the same key again takes it back
    assert page.evaluate(CELLS) == before
    assert page.evaluate("document.getElementById('whiskers').outerHTML") == drawn
    assert text(page, "statistics-when") == "As of the last run of the group level."


def test_tests_of_differences_say_that_they_do_not_follow(page):
    hidden = "document.getElementById('comparisons-stale').hidden"
    assert page.evaluate(hidden) is True
    fail(page, 0, 2, 3)  # the first session of one participant, both of another
    assert page.evaluate(hidden) is False
    words = text(page, "comparisons-stale")
    assert "do not follow your ratings" in words
    assert "3 sessions excluded since, and this touches 2 participants" in words


def test_a_session_that_no_test_compares_is_said_to_be_none(page):
    fail(page, 1)  # a second session
    assert "1 session excluded since, and none of them" in text(page, "comparisons-stale")
    page.command("Emulation.setEmulatedMedia", media="print")
    try:
        assert "none of them" in text(page, "comparisons-stale")
    finally:
        page.command("Emulation.setEmulatedMedia", media="")
