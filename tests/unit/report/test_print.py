"""Pages on paper: every section is there, nothing is blank, cut or out of shape."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Page, browser
from cohort_tree import make_tree

from bids_scseg.report.session import write_session_report
from bids_scseg.workflows.group import write_group

#: Width of A4 between the margins of the style sheet, in CSS pixels: (210 - 2 x 13) mm at 96 per inch.
PAPER = 695
SECTIONS = (
    "[...document.querySelectorAll('.toc a')].map((a) => document.querySelector(a.getAttribute('href')))"
    ".map((part) => [part.id, part.getBoundingClientRect().height, part.innerText.trim().length])"
)
#: Of each canvas that paper shows: how far its shape is from that of its pixels, and how many colours it has.
CANVASES = """[...document.querySelectorAll('canvas')].filter((canvas) => canvas.offsetParent !== null)
.map((canvas) => { const box = canvas.getBoundingClientRect();
const { width, height } = canvas;
const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, width, height).data.buffer);
return [box.width / box.height / (width / height), new Set(pixels).size, width / box.width]; })"""
PICTURES = """[...document.querySelectorAll('main img')].filter((image) => image.offsetParent !== null)
.map((image) => [image.naturalWidth, image.clientWidth, image.clientHeight])"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@contextmanager
def on_paper(page: Page, path: Path) -> Iterator[None]:
    """A page as it is printed, while it is open."""
    page.complaints.clear()
    page.open(path)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.command("Emulation.setEmulatedMedia", media="print")
    page.resize(PAPER, 980)
    page.settle()
    page.evaluate("Promise.all([...document.images].map((image) => image.decode().catch(() => null)))")
    try:
        yield
    finally:
        page.command("Emulation.setEmulatedMedia", media="")
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def sheets(page: Page) -> int:
    """Pages of the PDF that the browser prints with its own settings: without backgrounds."""
    data = page.command("Page.printToPDF", preferCSSPageSize=True)["data"]
    return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(data)))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    bids, out = make_tree(tmp_path_factory.mktemp("tree"), participants=30, failed=2)
    write_group(out, dataset=bids, facts={"dataset": "demo"})
    return out / "group.html"


def test_the_cohorts_page_on_paper(chromium, cohort):
    with on_paper(chromium, cohort):
        for name, height, letters in chromium.evaluate(SECTIONS):
            assert height > 20, name
            assert letters > 5, name
        drawn = chromium.evaluate(CANVASES)
        assert len(drawn) == 8  # five distributions, a scatter plot, two maps
        for shape, colours, fineness in drawn:
            assert shape == pytest.approx(1, abs=0.03)
            assert colours > 5
            assert fineness > 2  # pixels for each of the screen's
        pictures = chromium.evaluate(PICTURES)
        assert len(pictures) == 28
        assert all(natural > 0 and height > 20 for natural, _, height in pictures)
        # lengths stay to scale: all of one width
        assert len({width for _, width, _ in pictures}) == 1
        assert chromium.evaluate("document.documentElement.scrollWidth") <= PAPER
        hidden = "[...document.querySelectorAll('button, input, textarea')].every((part) => !part.offsetWidth"
        assert chromium.evaluate(f"{hidden} || part.closest('th, .tile-session'))")
        assert 3 <= sheets(chromium) <= 9
    assert chromium.complaints == []


def test_paper_says_what_was_chosen_and_shows_the_legend(chromium, cohort):
    chromium.open(cohort)
    for name, value in (("colour", "sex"), ("flag", "flagged")):
        chromium.evaluate(
            f"(() => {{ const field = document.getElementById('by-{name}'); field.value = '{value}';"
            "field.dispatchEvent(new Event('change')); })()"
        )
    chromium.settle()
    chromium.command("Emulation.setEmulatedMedia", media="print")
    try:
        words = chromium.evaluate("document.querySelector('.bar').innerText")
    finally:
        chromium.command("Emulation.setEmulatedMedia", media="")
    assert "show: with flags or outliers; colours: sex" in words
    assert {"F", "M"} <= set(words.split())
    assert " of 28 sessions" in words


def test_a_sessions_page_on_paper(chromium, make_report, tmp_path):
    report = make_report(sequences=2, slices=160, count=2)
    path = tmp_path / "sub-01.html"
    write_session_report(report, path, figures_dir=tmp_path / "figures")
    entries = "document.querySelectorAll('.viewer canvas').length"
    with on_paper(chromium, path):
        assert chromium.evaluate(entries) == 2
        assert chromium.evaluate(CANVASES) == []  # what only a screen can use is not printed
        for name, height, letters in chromium.evaluate(SECTIONS):
            assert (height > 20 and letters > 5) or name == "viewer", name
        pictures = chromium.evaluate(PICTURES)
        assert len(pictures) >= 6
        assert all(natural > 0 and height > 20 for natural, _, height in pictures)
        assert chromium.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
        assert chromium.evaluate("document.documentElement.scrollWidth") <= PAPER
        assert 2 <= sheets(chromium) <= 9
    assert chromium.complaints == []


def test_a_report_without_lesions_prints_too(chromium, make_report, tmp_path):
    report = replace(make_report(sequences=1, slices=80, count=1), lesions=())
    path = tmp_path / "sub-01.html"
    write_session_report(report, path, figures_dir=tmp_path / "figures")
    with on_paper(chromium, path):
        assert all(height > 20 for name, height, _ in chromium.evaluate(SECTIONS) if name != "viewer")
