"""People's verdicts."""

from __future__ import annotations

import pytest

from bids_scseg.errors import DataError
from bids_scseg.measure.ratings import Rating, read_ratings

HEAD = "participant_id\tsession_id\trating\tnote\trated\n"
LABELS = {"sub-01_ses-a", "sub-01_ses-b", "sub-02"}


def read(tmp_path, text):
    (tmp_path / "ratings.tsv").write_text(text, encoding="utf-8")
    return read_ratings(tmp_path / "ratings.tsv", LABELS)


def test_verdicts_with_and_without_sessions(tmp_path):
    first = "sub-01\tses-a\tfail\tmoved, a lot\t2026-01-02T03:04:05Z\n"
    found = read(tmp_path, HEAD + first + "sub-02\tn/a\tPass\tn/a\tn/a\n")
    assert found.by_label == {
        "sub-01_ses-a": Rating(rating="fail", note="moved, a lot", rated="2026-01-02T03:04:05Z"),
        "sub-02": Rating(rating="pass"),
    }
    assert found.flags == ()


def test_the_last_row_counts_also_when_it_takes_a_rating_back(tmp_path):
    found = read(tmp_path, HEAD + "sub-02\tn/a\tfail\tx\t\nsub-02\tn/a\tpass\ty\t\n")
    assert found.by_label == {"sub-02": Rating(rating="pass", note="y")}
    found = read(tmp_path, HEAD + "sub-02\tn/a\tfail\tx\tearly\nsub-02\tn/a\tn/a\tn/a\tlate\n")
    assert found.by_label == {"sub-02": Rating(rated="late")}
    found = read(tmp_path, HEAD + "sub-02\tn/a\tfail\tx\t\nsub-02\tn/a\tn/a\tn/a\tn/a\n")
    assert found.by_label == {}
    assert found.flags == ()


def test_a_note_needs_no_verdict(tmp_path):
    found = read(tmp_path, HEAD + "sub-01\tses-b\tn/a\tz\t\n")
    assert found.by_label == {"sub-01_ses-b": Rating(note="z")}
    assert found.flags == ()


@pytest.mark.parametrize("note", ['"ghost at C3', '"ghost" at C3', 'ghost at "C3"', '"', '""', "'", "\\"])
def test_quotes_are_characters_like_others(tmp_path, note):
    found = read(tmp_path, HEAD + f"sub-02\tn/a\tfail\t{note}\tx\nsub-01\tses-a\tpass\tn/a\tn/a\n")
    assert found.by_label == {
        "sub-02": Rating(rating="fail", note=note, rated="x"),
        "sub-01_ses-a": Rating(rating="pass"),
    }


def test_short_and_long_rows_and_other_line_ends(tmp_path):
    text = HEAD.replace("\n", "\r\n") + "sub-02\tn/a\tfail\r\nsub-01\tses-a\tpass\tx\ty\tmore\t\r\n"
    assert read(tmp_path, text).by_label == {
        "sub-02": Rating(rating="fail"),
        "sub-01_ses-a": Rating(rating="pass", note="x", rated="y"),
    }


def test_what_cannot_be_used_is_counted(tmp_path):
    found = read(tmp_path, HEAD + "sub-02\tn/a\tgood\t\t\nsub-09\tn/a\tfail\t\t\n")
    assert found.by_label == {}
    assert len(found.flags) == 2
    assert "1 rows of ratings.tsv have a rating other than pass, fail, unsure" in found.flags[0]
    assert "not here" in found.flags[1]


def test_no_file_is_no_rating_and_a_wrong_one_is_an_error(tmp_path):
    assert read_ratings(tmp_path / "none.tsv", LABELS).by_label == {}
    with pytest.raises(DataError, match="no column rating"):
        read(tmp_path, "participant_id\tnote\nsub-02\tx\n")
    with pytest.raises(DataError, match="no column participant_id"):
        read(tmp_path, "")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, HEAD + "sub-02\tn/a\tfail\t" + "x" * 200_000 + "\tx\n")
