"""The cohort's page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser
from cohort_tree import make_tree

from bids_scseg.measure.cohort import build
from bids_scseg.measure.ratings import read_ratings
from bids_scseg.workflows.group import find_outputs, write_group

PARTICIPANTS = 60


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    bids, out = make_tree(tmp_path_factory.mktemp("tree"), participants=PARTICIPANTS, failed=2)
    write_group(out, dataset=bids, facts={"dataset": "demo"})
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


def shown(page: Page) -> dict[str, int]:
    """How many sessions each view shows."""
    return page.evaluate(
        "({said: Number(document.getElementById('shown').textContent.split(' ')[0]),"
        "counted: Number(document.getElementById('live-sessions').textContent),"
        "tiles: [...document.querySelectorAll('.tile-session')].filter((tile) => !tile.hidden).length,"
        "rows: [...document.querySelectorAll('#session-rows tr')].filter((row) => !row.hidden).length,"
        "plotted: Number(document.querySelector('.plot output').textContent.split(' ')[0])})"
    )


def choose(page: Page, element: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const field = document.getElementById({json.dumps(element)});"
        f"field.value = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input', {bubbles: true}));"
        "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    page.settle()


def test_it_opens_without_complaints_or_requests(page):
    assert set(shown(page).values()) == {PARTICIPANTS - 2}
    assert page.complaints == []
    assert page.foreign == []


@pytest.mark.parametrize("width", [800, 1280, 1920])
def test_nothing_sticks_out_sideways(page, width):
    page.resize(width, 900)
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_brush_filters_every_view_and_a_click_beside_takes_it_back(page):
    box = page.box(".plot canvas")
    middle = box["y"] + box["height"] / 2
    # the lower third of the axis of lesion load
    page.drag((box["x"] + 6, middle), (box["x"] + box["width"] / 3, middle))
    now = shown(page)
    assert 0 < now["said"] < PARTICIPANTS - 2
    assert len(set(now.values())) == 1
    page.drag((box["x"] + box["width"] - 20, box["y"] + 4), (box["x"] + box["width"] - 20, box["y"] + 4))
    assert set(shown(page).values()) == {PARTICIPANTS - 2}


def test_filter_by_text_and_by_flag(page):
    choose(page, "by-text", "siemens")
    with_siemens = shown(page)["said"]
    assert 0 < with_siemens < PARTICIPANTS - 2
    choose(page, "by-flag", "lesion-free")
    assert shown(page)["said"] < with_siemens
    page.evaluate("document.getElementById('clear').click()")
    page.settle()
    assert set(shown(page).values()) == {PARTICIPANTS - 2}


def test_a_click_shows_the_session_everywhere(page):
    page.evaluate("document.querySelectorAll('.tile-session')[2].click()")
    page.settle()
    label = page.evaluate("document.getElementById('panel-title').textContent")
    assert label.startswith("sub-")
    assert label in page.evaluate("document.querySelector('#session-rows tr.current').textContent")
    assert label in page.evaluate(
        "document.querySelector('.tile-session[aria-current]').getAttribute('aria-label')"
    )
    assert page.evaluate("document.querySelector('#panel-report a').getAttribute('href')") == f"{label}.html"


def test_rating_by_keyboard_survives_a_reload_and_comes_back(page, tree, tmp_path):
    page.press("ArrowRight")
    first = page.evaluate("document.getElementById('panel-title').textContent")
    page.press("f")
    assert shown(page)["counted"] == PARTICIPANTS - 3  # one that fails leaves the numbers, not the views
    assert shown(page)["said"] == PARTICIPANTS - 2
    page.press("n")
    for letter in "dim":
        page.press(letter)
    page.press("Escape")
    page.open(tree / "group.html")
    assert shown(page)["counted"] == PARTICIPANTS - 3
    page.evaluate(
        "window.URL.createObjectURL = (blob) => { window.saved = blob; return '#'; };"
        "document.getElementById('export').click()"
    )
    table = page.evaluate("window.saved.text()")
    assert table.splitlines()[0].split("\t") == ["participant_id", "session_id", "rating", "note", "rated"]
    assert table.splitlines()[1].split("\t")[:4] == [first, "n/a", "fail", "dim"]
    (tmp_path / "ratings.tsv").write_text(table, encoding="utf-8")
    outputs = find_outputs(tree)
    ratings = read_ratings(tmp_path / "ratings.tsv", {item.label for item in outputs})
    cohort = build(outputs, ratings=ratings)
    row = cohort.sessions.set_index("participant_id").loc[first]
    assert (row["rating"], row["rating_note"]) == ("fail", "dim")
    assert cohort.summary["sessions"].iloc[0] == PARTICIPANTS - 3
    assert [(item.reason, item.sessions) for item in cohort.left_out] == [
        ("without a result", 2),
        ("rated fail", 1),
    ]


def test_notes_come_back_as_they_were_written(page, tree, tmp_path):
    notes = ['"ghost at C3', 'a "quoted" word', "tab\there,\nline,\u0085next and \u0000nothing", '"']
    for number, note in enumerate(notes):
        page.evaluate(f"document.querySelectorAll('.tile-session')[{number}].click()")
        page.settle()
        page.evaluate(
            f"(() => {{ const field = document.getElementById('note'); field.value = {json.dumps(note)};"
            "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        page.settle()
    page.evaluate(
        "window.URL.createObjectURL = (blob) => { window.saved = blob; return '#'; };"
        "document.getElementById('export').click()"
    )
    (tmp_path / "ratings.tsv").write_text(page.evaluate("window.saved.text()"), encoding="utf-8")
    labels = {item.label for item in find_outputs(tree)}
    ratings = read_ratings(tmp_path / "ratings.tsv", labels)
    assert ratings.flags == ()
    assert {rating.rating for rating in ratings.by_label.values()} == {""}
    plain = ['"ghost at C3', 'a "quoted" word', "tab here, line, next and nothing", '"']
    assert sorted(rating.note for rating in ratings.by_label.values()) == sorted(plain)


def test_the_keyboard_reaches_the_plots(page):
    page.evaluate("document.querySelector('.plot canvas').focus()")
    page.press("ArrowRight")
    lowest = page.evaluate("document.getElementById('panel-title').textContent")
    page.press("ArrowRight")
    assert page.evaluate("document.getElementById('panel-title').textContent") != lowest
    assert "sessions; median" in page.evaluate(
        "document.querySelector('.plot canvas').getAttribute('aria-label')"
    )


def shift(page: Page, key: str) -> None:
    """Press a key with Shift."""
    for kind in ("keyDown", "keyUp"):
        page.command("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8)
    page.settle()


def values(page: Page, metric: str) -> list[float]:
    """Different values of a metric among the sessions, sorted."""
    return page.evaluate(
        "(() => { const data = JSON.parse(document.getElementById('cohort').textContent);"
        f"const n = data.metrics.findIndex(({{key}}) => key === {json.dumps(metric)});"
        "return [...new Set(data.sessions.map(({m}) => m[n]))].sort((a, b) => a - b); })()"
    )


def test_shift_and_arrows_keep_a_range(page):
    loads = values(page, "lesion_load")
    page.evaluate("document.querySelector('.plot canvas').focus()")
    for _ in range(4):
        shift(page, "ArrowRight")
    low = shown(page)
    assert len(set(low.values())) == 1  # all views
    free = page.evaluate("Number(document.getElementById('live-free').textContent)")
    assert low["said"] == max(free, 1) + 4  # the lowest value, and the next four
    shift(page, "ArrowLeft")
    assert shown(page)["said"] == low["said"] - 1
    page.press("Escape")
    assert shown(page)["said"] == PARTICIPANTS - 2
    page.press("ArrowRight")  # the session with the lowest value: a range begins where one is
    page.press("ArrowRight")
    for _ in range(len(loads) + 1):
        shift(page, "ArrowRight")
    assert shown(page)["said"] in (PARTICIPANTS - 2, PARTICIPANTS - 3)
    page.press("Escape")


def test_shift_and_arrows_keep_a_range_of_the_scatter_plot_in_both_directions(page):
    page.box(".plot.scatter canvas")
    page.evaluate("document.querySelector('.plot.scatter canvas').focus()")
    for _ in range(10):
        shift(page, "ArrowRight")
    tall = shown(page)["said"]
    assert 11 <= tall < PARTICIPANTS - 2
    for _ in range(2):  # from the largest of all to the largest of those in the range, and one further
        shift(page, "ArrowDown")
    assert tall - 2 <= shown(page)["said"] < tall
    page.press("Escape")
    assert shown(page)["said"] == PARTICIPANTS - 2
    assert page.complaints == []


def test_maps_say_which_groups_and_sessions_are_not_shown(chromium, tmp_path):
    bids, out = make_tree(tmp_path, participants=20, thumbnails=False)
    wards = [("A", 5), ("B", 4), ("C", 3), ("D", 3), ("E", 2), ("F", 1), ("n/a", 2)]
    column = [ward for ward, count in wards for _ in range(count)]
    lines = ["participant_id\tward", *(f"sub-{n:03d}\t{ward}" for n, ward in enumerate(column, start=1))]
    (bids / "participants.tsv").write_text("\n".join(lines) + "\n")
    write_group(out, dataset=bids, facts={})
    chromium.open(out / "group.html")
    chromium.box("#maps")
    choose(chromium, "map-split", "ward")
    said = "document.getElementById('map-unseen').textContent"
    assert chromium.evaluate(said) == (
        "Not shown: 3 sessions of 2 other groups (filter by words to see them); "
        "2 sessions without a value of ward."
    )
    choose(chromium, "by-text", "sub-018")  # of ward F
    assert chromium.evaluate(said) == ""
    assert chromium.evaluate("document.getElementById('map-along').getAttribute('aria-label')").startswith(
        "F: 1"
    )
    choose(chromium, "map-split", "")
    choose(chromium, "by-text", "")
    assert chromium.evaluate(said) == ""


def test_maps_split_and_change_units(page):
    choose(page, "map-split", "sex")
    choose(page, "map-unit", "mm")
    words = page.evaluate("document.getElementById('map-along').getAttribute('aria-label')")
    assert words.count("mm below the origin") == 2
    assert "dorsal" in page.evaluate("document.getElementById('map-across').getAttribute('aria-label')")
    assert page.complaints == []


@pytest.mark.parametrize(
    "changes",
    [
        {"participants": 1},
        {"participants": 12, "lesion_free": True, "covariates": False},
        {"participants": 12, "failed": 6, "thumbnails": False},
        {"participants": 3, "failed": 3},
    ],
    ids=["one session", "no lesions, no covariates", "half failed, no images", "nothing"],
)
def test_odd_cohorts_have_a_page_too(chromium, tmp_path, changes):
    bids, out = make_tree(tmp_path, **changes)
    write_group(out, dataset=bids, facts={})
    chromium.complaints.clear()
    chromium.open(out / "group.html")
    assert chromium.complaints == []
    done = changes["participants"] - changes.get("failed", 0)
    if done:
        assert set(shown(chromium).values()) == {done}
    assert ("There is none." in chromium.evaluate("document.getElementById('failed').innerText")) is not bool(
        changes.get("failed")
    )
