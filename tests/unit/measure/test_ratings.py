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


def test_the_last_row_counts_and_a_rating_can_be_taken_back(tmp_path):
    found = read(tmp_path, HEAD + "sub-02\tn/a\tfail\tx\t\nsub-02\tn/a\tpass\ty\t\nsub-01\tses-b\tn/a\tz\t\n")
    assert found.by_label == {"sub-02": Rating(rating="pass", note="y")}
    assert found.flags == ()


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
