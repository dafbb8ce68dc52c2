"""The viewer in a session's page: what it is given, and that it works in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser
from PIL import Image

from bids_scseg.report import pages, viewer
from bids_scseg.report.session import write_session_report
from bids_scseg.report.viewer import library, viewer_data


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_lesion_numbers_and_cord_come_back_exactly(make_report):
    report = make_report(slices=80, count=3)
    many = report.labels.astype(np.int32)
    many[many == 3] = 700  # beyond a byte
    data = viewer_data(replace(report, labels=many))
    pixels = picture(data["masks"]).astype(int)
    ni, nj, nk = data["shape"]
    numbers = (pixels[..., 0] + 256 * pixels[..., 1]).reshape(ni, nj, nk)
    assert (numbers == many).all()  # 48 x 48 at 0.5 mm is the whole window
    assert ((pixels[..., 2] > 0).reshape(ni, nj, nk) == report.cord).all()
    assert [lesion["number"] for lesion in data["lesions"]] == [1, 2, 700]


def test_grey_volumes_keep_their_order_and_what_is_not_covered_is_black(make_report):
    report = make_report(sequences=3, slices=80)
    data = viewer_data(report)
    grey = picture(data["sequences"][0]["uri"])[..., 0].reshape(data["shape"]).astype(float)
    view = report.sequences[0]
    assert np.corrcoef(grey.ravel(), view.prepared.ravel())[0, 1] > 0.9
    third = picture(data["sequences"][2]["uri"])[..., 0].reshape(data["shape"])
    assert np.percentile(third[~report.sequences[2].coverage], 99) <= 8  # lossy at the border only


def test_a_wide_window_is_cut_round_the_cord(make_report):
    report = make_report(slices=60)
    wide = replace(
        report,
        sequences=tuple(
            replace(
                view,
                prepared=np.pad(view.prepared, ((8, 8), (8, 8), (0, 0))),
                coverage=np.pad(view.coverage, ((8, 8), (8, 8), (0, 0))),
            )
            for view in report.sequences
        ),
        labels=np.pad(report.labels, ((8, 8), (8, 8), (0, 0))),
        cord=np.pad(report.cord, ((8, 8), (8, 8), (0, 0))),
    )
    assert viewer_data(wide)["shape"] == viewer_data(report)["shape"] == [48, 48, 60]
    assert viewer_data(wide)["lesions"] == viewer_data(report)["lesions"]
    assert viewer_data(wide)["masks"] == viewer_data(report)["masks"]


def test_it_knows_what_each_sequence_examined_and_where_levels_end(make_report):
    report = make_report(sequences=4, slices=80)
    data = viewer_data(report)
    assert [sequence["examined"] for sequence in data["sequences"]] == [
        [(0, 80)], [(0, 80)], [(48, 80)], [(40, 76)]
    ]  # fmt: skip
    assert data["levels"] == [["C1", 36.0, 70.0], ["C2", 2.0, 36.0], ["C3", -32.0, 2.0]]


def test_large_volumes_keep_within_the_budget(make_report, monkeypatch):
    report = make_report(slices=60)
    best = viewer_data(report)
    monkeypatch.setattr(viewer, "BUDGET", 20_000)
    assert len(json.dumps(viewer_data(report))) < len(json.dumps(best))


def test_without_sequences_or_with_an_endless_grid_there_is_no_viewer(make_report, monkeypatch):
    report = make_report(slices=60)
    assert viewer_data(replace(report, sequences=())) is None
    monkeypatch.setattr(viewer, "MOST_PIXELS", 59)
    assert viewer_data(report) is None


def test_the_library_is_the_published_one():
    source, packed = library()
    folder = (pages.ASSETS / viewer.LIBRARY).parent
    assert hashlib.sha256(source.encode()).hexdigest() in (folder / "README.md").read_text(encoding="utf-8")
    assert "Redistribution" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert len(packed) < 2_000_000


@pytest.fixture(scope="module")
def written(make_report, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    report = make_report(sequences=2, slices=160, count=2)
    bare = replace(report, sequences=tuple(replace(view, natives=()) for view in report.sequences))
    write_session_report(bare, folder / "sub-01_ses-1.html", figures_dir=folder / "figures")
    return folder / "sub-01_ses-1.html"


@pytest.fixture(scope="module")
def partly(make_report, tmp_path_factory) -> Path:
    """The third sequence covers slices 96 to 159, no one the lowest twelve; levels end at slice 14."""
    folder = tmp_path_factory.mktemp("partly")
    report = make_report(sequences=3, slices=160, count=2)
    covered = np.arange(160) >= 12
    views = tuple(replace(view, natives=(), coverage=view.coverage & covered) for view in report.sequences)
    assert report.levels[3] == ("C4", 14.0, 48.0)
    cut = replace(report, sequences=views, levels=report.levels[:4])
    write_session_report(cut, folder / "sub-01_ses-1.html", figures_dir=folder / "figures")
    return folder / "sub-01_ses-1.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def words(page: Page) -> str:
    return page.evaluate("document.getElementById('viewer-words').textContent")


def slider(page: Page) -> tuple[int, str]:
    """What the strip tells those who do not see it: percent and words."""
    now, said = page.evaluate(
        "['aria-valuenow', 'aria-valuetext'].map("
        "(name) => document.getElementById('viewer-strip').getAttribute(name))"
    )
    return int(now), said


def test_it_draws_jumps_to_lesions_and_switches_sequences(chromium, written):
    chromium.complaints.clear()
    chromium.open(written)
    chromium.box("#viewer")
    chromium.wait("document.documentElement.dataset.viewer !== undefined")
    if chromium.evaluate("document.documentElement.dataset.viewer") != "ready":
        pytest.skip(f"this browser has no WebGL 2: {words(chromium)}")
    chromium.evaluate("document.querySelectorAll('#lesion-table .jump')[1].click()")
    chromium.wait("document.getElementById('viewer-words').textContent.includes('lesion 2')")
    assert chromium.evaluate("document.querySelector('#lesion-table tr.current .jump').textContent") == "2"
    before = chromium.command("Page.captureScreenshot")["data"]
    chromium.evaluate("document.querySelectorAll('#viewer-sequences button')[1].click()")
    chromium.wait("document.getElementById('viewer-words').textContent.startsWith('STIR')")
    chromium.settle()
    assert chromium.command("Page.captureScreenshot")["data"] != before
    chromium.evaluate("document.getElementById('viewer-strip').focus()")
    place = words(chromium)
    chromium.press("PageDown")
    chromium.wait(f"document.getElementById('viewer-words').textContent !== {json.dumps(place)}")
    assert slider(chromium)[1] in words(chromium)
    assert chromium.complaints == []
    assert chromium.foreign == []


def test_without_webgl_it_says_so_and_the_strip_still_works(chromium, written):
    script = chromium.command(
        "Page.addScriptToEvaluateOnNewDocument",
        source="const real = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        "return kind === 'webgl2' ? null : real.call(this, kind, ...rest); };",
    )
    try:
        chromium.open(written)
        chromium.box("#viewer")
        chromium.wait("document.documentElement.dataset.viewer === 'absent'")
    finally:
        chromium.command("Page.removeScriptToEvaluateOnNewDocument", **script)
    assert chromium.evaluate("document.getElementById('viewer-absent').innerText").startswith("This browser")
    assert chromium.evaluate("document.getElementById('viewer-strip').width") > 100
    assert chromium.foreign == []


def test_the_strip_says_where_it_is(chromium, written):
    chromium.open(written)
    box = chromium.box("#viewer-strip")
    for share in (0.1, 0.5, 0.9):
        at = (box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        chromium.drag(at, at)
        assert slider(chromium)[0] == pytest.approx(100 * share, abs=2)
    chromium.evaluate("document.getElementById('viewer-strip').focus()")
    before = slider(chromium)[0]
    chromium.press("PageUp")
    assert slider(chromium)[0] < before


def go(page: Page, k: int, *, slices: int = 160) -> str:
    """Click the strip at a slice; what is said of it."""
    box = page.box("#viewer-strip")
    at = (box["x"] + (slices - 1 - k) / slices * box["width"], box["y"] + box["height"] / 2)
    page.drag(at, at)
    below = f"{(slices - 1 - k) * 0.5:.1f} mm below"
    page.wait(f"document.getElementById('viewer-words').textContent.includes({json.dumps(below)})")
    return words(page).removesuffix(f", {below} the top of the prepared image")


def test_it_names_levels_only_where_they_are_and_says_what_was_not_examined(chromium, partly):
    chromium.complaints.clear()
    chromium.open(partly)
    chromium.box("#viewer")
    chromium.wait("document.documentElement.dataset.viewer !== undefined")
    if chromium.evaluate("document.documentElement.dataset.viewer") != "ready":
        pytest.skip(f"this browser has no WebGL 2: {words(chromium)}")
    # Beside the cord, where no lesion is, whatever the slice.
    assert go(chromium, 155) == "T2Sag: no lesion here"  # above C1
    assert go(chromium, 116) == "T2Sag: no lesion here, level C1"
    assert go(chromium, 115) == "T2Sag: no lesion here, level C2"
    assert go(chromium, 14) == "T2Sag: no lesion here, level C4"
    assert go(chromium, 13) == "T2Sag: no lesion here"
    assert go(chromium, 11) == "T2Sag: not examined by any sequence"
    chromium.evaluate("document.querySelectorAll('#viewer-sequences button')[2].click()")
    chromium.wait("document.getElementById('viewer-words').textContent.startsWith('T2StarAx')")
    assert go(chromium, 96) == "T2StarAx: no lesion here, level C2"
    assert go(chromium, 95) == "T2StarAx: not examined by T2StarAx, level C2"
    assert go(chromium, 5) == "T2StarAx: not examined by any sequence"
    chromium.evaluate("document.querySelectorAll('#lesion-table .jump')[0].click()")
    chromium.wait("document.getElementById('viewer-words').textContent.includes('lesion 1')")
    assert words(chromium).startswith("T2StarAx: lesion 1, not examined by T2StarAx, level C4, ")
    assert chromium.complaints == []


def test_the_strip_has_names_of_levels_in_their_middle(chromium, partly):
    script = chromium.command(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.drawn = {}; const real = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, x, ...rest) {"
        "window.drawn[text] = x; return real.call(this, text, x, ...rest); };",
    )
    try:
        chromium.open(partly)
        chromium.box("#viewer-strip")
        chromium.wait("'C4' in window.drawn")
    finally:
        chromium.command("Page.removeScriptToEvaluateOnNewDocument", **script)
    width = chromium.evaluate("document.getElementById('viewer-strip').clientWidth")
    drawn = chromium.evaluate("window.drawn")
    # Slice 159 is the first of 160 from the left; the middles are at 133, 99, 65 and 31.
    expected = {f"C{n + 1}": width * (159.5 - (133 - 34 * n)) / 160 for n in range(4)}
    assert drawn == pytest.approx(expected)
