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
