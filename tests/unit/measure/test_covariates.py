"""Covariates of a dataset."""

from __future__ import annotations

import json

import pytest

from bids_scseg.errors import DataError
from bids_scseg.measure.covariates import read_covariates


def write(folder, name, *rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_values_types_and_descriptions(tmp_path):
    write(
        tmp_path,
        "participants.tsv",
        ("participant_id", "age", "sex", "empty", "mixed"),
        ("sub-01", "34", "F", "n/a", "1"),
        ("02", "n/a", "M", "n/a", "two"),
        ("sub-99", "1", "M", "n/a", "3"),
    )
    (tmp_path / "participants.json").write_text(json.dumps({"age": {"Description": "Age", "Units": "year"}}))
    found = read_covariates(tmp_path, {"sub-01", "sub-02", "sub-03"})
    assert [(c.name, c.dtype, c.units) for c in found.columns] == [
        ("age", "float64", "year"), ("sex", "str", ""), ("mixed", "str", "")
    ]  # fmt: skip
    assert found.columns[0].description == "Age"
    assert found.of("sub-01", None) == {"age": 34.0, "sex": "F", "mixed": "1"}
    assert found.of("sub-02", "ses-1") == {"sex": "M", "mixed": "two"}
    assert found.of("sub-03", None) == {}
    assert found.flags == ("participants.tsv has no row for 1 of 3 participants.",)


def test_sessions_add_to_participants(tmp_path):
    write(tmp_path, "participants.tsv", ("participant_id", "edss"), ("sub-01", "1"))
    head = ("session_id", "edss", "weeks")
    write(tmp_path, "sub-01/sub-01_sessions.tsv", head, ("ses-a", "2.5", "0"), ("b", "3", "12"))
    found = read_covariates(tmp_path, {"sub-01"})
    assert found.of("sub-01", "ses-b") == {"edss": 1.0, "sessions_edss": 3.0, "weeks": 12.0}
    assert found.of("sub-01", "ses-c") == {"edss": 1.0}
    assert [column.name for column in found.columns] == ["edss", "sessions_edss", "weeks"]


def test_names_that_are_taken_get_a_prefix(tmp_path):
    write(tmp_path, "participants.tsv", ("participant_id", "state", "session_id"), ("sub-01", "well", "x"))
    found = read_covariates(tmp_path, {"sub-01"}, taken={"state", "participant_id", "session_id"})
    assert [column.name for column in found.columns] == ["participants_state"]


def test_a_dataset_without_tables_has_no_covariates(tmp_path):
    found = read_covariates(tmp_path, {"sub-01"})
    assert found.columns == ()
    assert found.flags == ()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("name", "age"), ("sub-01", "3")], "no column participant_id"),
        ([("participant_id", "age"), ("sub-01", "3"), ("sub-01", "4")], "stands there twice"),
    ],
)
def test_unusable_tables_are_named(tmp_path, rows, words):
    write(tmp_path, "participants.tsv", *rows)
    with pytest.raises(DataError, match=words) as caught:
        read_covariates(tmp_path, {"sub-01"})
    assert "participants.tsv" in str(caught.value)
