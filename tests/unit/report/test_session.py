"""The page of a session: complete, escaped, self-contained, honest about nothing found and nothing known."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bids_scseg.measure.extent import Beyond
from bids_scseg.report.records import Flag
from bids_scseg.report.session import (
    paragraphs,
    safe,
    summary_sentence,
    write_failure_report,
    write_session_report,
)

EVIL = "<script>alert('x')</script>\"&.nii.gz"


class Page(HTMLParser):
    """Tags with attributes, and the text outside script and style."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = path.read_text(encoding="utf-8")
        self._quiet = 0
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._quiet += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._quiet -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._quiet else data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def assert_self_contained(page: Page) -> None:
    assert "http:" not in page.raw and "https:" not in page.raw
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        for name in ("src", "href"):
            address = attrs.get(name) or ""
            assert not re.match(r"(?!data:image/)[a-z]+:|//", address), address[:80]
    assert all((attrs.get("src") or "").startswith("data:image/") for attrs in page.all("img"))
    assert all(len((attrs.get("alt") or "").split()) >= 3 for attrs in page.all("img"))
    running = [attrs for attrs in page.all("script") if attrs.get("type") != "application/json"]
    assert running and not any(running)  # no address, nothing but the page's own text
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    inner = {attrs["href"][1:] for attrs in page.all("a") if (attrs.get("href") or "").startswith("#")}
    assert inner <= targets


@pytest.fixture(scope="module")
def written(make_report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    report = make_report(
        sequences=2, slices=60, count=2,
        left_out=((EVIL, EVIL),), dataset=EVIL, card=EVIL,
        methods=f"## Methods\n\n{EVIL}\n\n## References\n\n1. x",
        flags=(Flag(severity="note", title=EVIL), Flag(severity="serious", title="Cord cut", text=EVIL)),
        links=((EVIL, "javascript:alert(1)"), ("table", "sub-01/anat/a b.tsv")), references=(EVIL,),
        measures={"lesion_count": 2, "lesion_volume_mm3": 120.0, "lesion_load": 0.0123,
                  "examined_length_mm": 28.0, "not_examined_mm": 2.0},
    )  # fmt: skip
    write_session_report(report, folder / "sub-01_ses-1.html", figures_dir=folder / "figures")
    return Page(folder / "sub-01_ses-1.html"), folder


def test_page_is_self_contained_and_small(written):
    page, folder = written
    assert_self_contained(page)
    assert (folder / "sub-01_ses-1.html").stat().st_size < 6_000_000
    assert "default-src 'none'" in page.raw


def test_everything_shown_is_escaped(written):
    page, _ = written
    assert "<script>alert" not in page.raw
    assert page.text.count(EVIL) >= 7
    assert "javascript:" not in page.raw


def test_page_tells_the_main_things(written):
    page, _ = written
    words = " ".join(page.text.split())
    for phrase in (
        "sub-01_ses-1",
        "research use only",
        "2 lesions with a total volume of 120 mm³ (1.23 % of the examined cord)",
        "T2Sag and STIR",
        "a further 2 mm of cord",
        "serious warning first",
        "imputed",
        "Radiological display",
        "lateral right",
        "T2StarAx",
    ):
        assert phrase in words, phrase
    assert page.text.index("serious") < page.text.index("Lesions over each sequence")
    assert page.all("table")[0].get("data-sortable", "absent") is None  # lesions sort


def test_figures_are_files_too(written):
    page, folder = written
    names = sorted(path.name for path in (folder / "figures").glob("*.png"))
    assert len(names) == len(page.all("img"))
    assert all(re.fullmatch(r"sub-01_ses-1_desc-[A-Za-z0-9]+_figure\.png", name) for name in names)
    linked = {attrs["href"] for attrs in page.all("a") if (attrs.get("href") or "").startswith("figures/")}
    assert linked == {f"figures/{name}" for name in names}


def test_figures_of_an_earlier_run_go_and_those_of_others_stay(make_report, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    stale, other = (
        figures / "sub-01_ses-1_desc-lesion09_figure.png",
        figures / "sub-01_desc-lesion09_figure.png",
    )
    stale.write_bytes(b"x")
    other.write_bytes(b"x")
    report = make_report(sequences=1, slices=40, count=0)
    write_session_report(report, tmp_path / "x.html", figures_dir=figures)
    assert not stale.exists() and other.exists()
    page = Page(tmp_path / "x.html")
    assert_self_contained(page)
    words = " ".join(page.text.split())
    assert "marked no lesion" in words and "No lesion was marked" in words
    assert "Alignment" not in words  # one sequence has nothing to be aligned with


def test_a_session_without_usable_sequences_still_has_a_page(make_report, tmp_path):
    report = make_report(sequences=1, slices=40, count=0, measures={"lesion_count": None}, lesions=())
    report = replace(report, sequences=(), labels=None, probability=None)
    write_session_report(report, tmp_path / "x.html", figures_dir=tmp_path / "figures")
    page = Page(tmp_path / "x.html")
    assert "nothing can be said about lesions" in page.text and not page.all("img")


@pytest.mark.parametrize("perhaps", [False, True])
def test_no_lesion_between_the_ends_of_short_masks_is_not_no_lesion(make_report, perhaps, tmp_path):
    beyond = Beyond(
        key="T2Sag", shown_mm=240, masked_mm=38, above_mm=60, below_mm=142, perhaps_no_cord=perhaps
    )  # fmt: skip
    report = replace(
        make_report(sequences=1, slices=40, count=0),
        measures={"lesion_count": 0, "examined_length_mm": 38.0}, beyond=beyond, lesions=(),
    )  # fmt: skip
    write_session_report(report, tmp_path / "x.html", figures_dir=tmp_path / "figures")
    words = " ".join(Page(tmp_path / "x.html").text.split())
    loud = not perhaps  # else what lies beyond may well be head
    assert ("go on far beyond the cord masks" in summary_sentence(report)) is loud
    assert ("No lesion was marked between the ends of the cord masks" in words) is loud


def test_unknown_is_not_none(make_report):
    blank = make_report(sequences=1, slices=40, count=0)
    zero = replace(blank, measures={"lesion_count": 0, "examined_length_mm": 200.0, "not_examined_mm": 31.0})
    assert summary_sentence(zero) == (
        "The model marked no lesion in the 200 mm of cord examined, using T2Sag. Nothing is known about a "
        "further 31 mm of cord, which no sequence covers. Read the serious warning first."
    )
    unknown = replace(blank, measures={"lesion_count": None})
    assert "no lesion" not in summary_sentence(unknown)


def test_many_lesions_keep_the_page_small(make_report, tmp_path, monkeypatch):
    from bids_scseg.report import session

    monkeypatch.setattr(session, "MOST_CLOSEUPS", 2)
    labels = np.zeros((48, 48, 60), np.int16)
    for number in range(1, 6):
        labels[20 : 21 + number, 24, number * 10] = number
    report = make_report(sequences=1, slices=60, count=0, labels=labels)
    write_session_report(report, tmp_path / "x.html", figures_dir=tmp_path / "figures")
    page = Page(tmp_path / "x.html")
    assert "The 2 largest lesions are shown; 3 more are in the table" in page.text
    shown = [path.name for path in (tmp_path / "figures").glob("*lesion*")]
    assert sorted(shown) == ["sub-01_ses-1_desc-lesion04_figure.png", "sub-01_ses-1_desc-lesion05_figure.png"]


@pytest.mark.parametrize(
    ("normalize", "unit", "other"),
    [
        ("coverage", "in standard deviations of the prepared image", "the cord's spread"),
        ("cord", "in units of the cord's spread", "standard deviations of the prepared image"),
    ],
)
def test_contrasts_have_the_unit_of_the_prepared_images(make_report, tmp_path, normalize, unit, other):
    report = make_report(sequences=1, slices=40, count=1, normalize=normalize)
    rows = tuple({**row, "T2Sag_contrast": 1.5, "T2Sag_cnr": 3.0} for row in report.lesions)
    write_session_report(replace(report, lesions=rows), tmp_path / "x.html", figures_dir=tmp_path / "figures")
    words = Page(tmp_path / "x.html").text
    assert words.count(unit) == 2  # close up, and in the table's words
    assert other not in words


def test_outlines_are_told_with_what_they_must_reach(make_report, tmp_path):
    report = make_report(sequences=1, slices=40, count=1, threshold=0.2)
    for seeded, words in (
        ("", "(probability from 0.2)"),
        (
            "0.5 (0.8 where one sequence alone sees)",
            "0.2, where it reaches 0.5 (0.8 where one sequence alone",
        ),
    ):
        page = replace(report, seeded=seeded)
        write_session_report(page, tmp_path / "x.html", figures_dir=tmp_path / "figures")
        assert words in " ".join(Page(tmp_path / "x.html").text.split())


def test_failure_page(tmp_path):
    write_failure_report(
        "sub-09",
        tmp_path / "f.html",
        cause=f"{EVIL}: truncated",
        remedy="Copy it again.",
        facts={"T2Sag": EVIL},
    )
    page = Page(tmp_path / "f.html")
    assert_self_contained(page)
    assert "<script>alert" not in page.raw and "Copy it again." in page.text
    assert "does not count as lesion-free" in page.text
    assert "list it with its state and without numbers" in page.text  # as group/sessions.tsv does
    assert "There are no lesion results" not in page.text  # those of an earlier run may be in place


def test_names_of_files_are_tame():
    assert safe("sub-01_ses-1") == "sub-01_ses-1"
    assert safe("../<x>/y", alphanumeric=True) == "xy"
    assert safe("///") == "x"


def test_paragraphs_leave_headings_and_references_to_the_page():
    text = "## Methods\n\nOne\nline.\n\nTwo.\n\n## References\n\n1. Three."
    assert paragraphs(text) == ["One line.", "Two."]
    assert paragraphs("") == []
