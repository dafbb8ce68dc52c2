"""Quality of a session's images in plain words."""

from __future__ import annotations

import pytest

from bids_scseg.report.quality import (
    QUALITIES,
    outlier_sentence,
    quality_sentence,
    quality_table,
    read_outliers,
)
from bids_scseg.report.session import write_session_report

MEASURES = {
    "T2Sag_cord_cnr": 4.2, "T2Sag_coverage": 0.98, "T2Sag_centerline_residual_mm": 0.08,
    "T2Sag_extrapolated_mm": 7.0, "T2Sag_seam_mismatch_mm": 2.4, "T2Sag_edge_share": 0.0,
    "STIR_cord_cnr": 0.6, "STIR_coverage": 0.25, "STIR_centerline_residual_mm": None,
    "STIR_extrapolated_mm": 31.0, "STIR_seam_mismatch_mm": None, "STIR_edge_share": 0.0,
}  # fmt: skip
TABLE = (
    "participant_id\tsession_id\tstate\tstratum\toutliers\n"
    "sub-01\tn/a\tdone\tA\tSTIR: noise in the cord is high; cord area is low\n"
    "sub-02\tses-1\tdone\tA\tn/a\n"
    "sub-03\tn/a\tfailed\tn/a\tn/a\n"
)


def cells(table) -> dict[str, list[str]]:
    return {row[0].text.partition(" (")[0]: [cell.text for cell in row[1:]] for row in table.rows}


def test_values_beyond_the_marks_are_marked_in_signs_and_colour():
    table = quality_table(MEASURES, ["T2Sag", "STIR"])
    assert [header.text for header in table.headers] == ["Measure", "T2Sag", "STIR"]
    shown = cells(table)
    assert shown["Contrast-to-noise of the cord"] == ["4.2", "0.6\u00a0*"]
    assert shown["Coverage"] == ["98.0\u00a0%", "25.0\u00a0%\u00a0*"]
    assert shown["Seam mismatch"] == ["2.4\u00a0mm\u00a0*", "–"]
    assert shown["Distance from the centerline"] == ["0.08\u00a0mm", "–"]
    tones = {cell.tone for row in table.rows for cell in row if cell.text.endswith("*")}
    assert tones == {"caution"}
    assert "Noise in the cord" not in shown  # no sequence has it


def test_the_sentence_names_what_to_look_at():
    said = quality_sentence(MEASURES, ["T2Sag", "STIR"])
    assert "T2Sag: seam mismatch 2.4\u00a0mm" in said
    assert (
        "STIR: contrast-to-noise of the cord 0.6; STIR: coverage 25.0\u00a0%; STIR: extrapolated 31\u00a0mm"
        in said
    )
    assert "no proof of quality" in quality_sentence({}, ["T2Sag"])


@pytest.mark.parametrize("quality", QUALITIES, ids=lambda quality: quality.ending)
def test_what_is_not_known_is_never_odd(quality):
    assert not any(quality.odd(value) for value in (None, float("nan"), "n/a"))


def test_nothing_measured_no_table():
    assert quality_table({"lesion_count": 2}, ["T2Sag"]) is None


def test_words_of_the_group_level(tmp_path):
    assert read_outliers(tmp_path, "sub-01") is None
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "sessions.tsv").write_text(TABLE)
    assert read_outliers(tmp_path, "sub-01") == ("STIR: noise in the cord is high", "cord area is low")
    assert read_outliers(tmp_path, "sub-02_ses-1") == ()
    assert read_outliers(tmp_path, "sub-03") is None  # had no result then
    assert read_outliers(tmp_path, "sub-04") is None
    assert "noise in the cord is high; cord area is low." in outlier_sentence(
        read_outliers(tmp_path, "sub-01")
    )
    assert "did not stand out" in outlier_sentence(())
    assert "not judged it yet" in outlier_sentence(None)


@pytest.mark.parametrize("content", ["", "participant_id\n", "\x00\tx\n\x00\n", "sub-01"])
def test_a_broken_table_says_nothing(tmp_path, content):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "sessions.tsv").write_text(content)
    assert read_outliers(tmp_path, "sub-01") is None


def test_the_page_has_it(make_report, tmp_path):
    measures = {"lesion_count": 1, "T2Sag_cord_cnr": 0.4, "T2Sag_voxel_mm": "0.9 x 0.9 x 3"}
    report = make_report(sequences=1, slices=60, count=1, measures=measures, outliers=("noise <b>high</b>",))
    write_session_report(report, tmp_path / "s.html", figures_dir=tmp_path / "figures")
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert 'id="quality-table"' in page
    assert "Worth a look (* in the table): T2Sag: contrast-to-noise of the cord 0.4" in page
    assert "noise &lt;b&gt;high&lt;/b&gt;" in page
    assert '<a href="#quality">Quality</a>' in page
