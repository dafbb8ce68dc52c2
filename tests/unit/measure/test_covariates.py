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


def test_every_participant_gets_the_same_columns(tmp_path):
    people = ("sub-01", "sub-02", "sub-03")
    for number, who in enumerate(people):
        write(tmp_path, f"{who}/{who}_sessions.tsv", ("session_id", "edss"), ("ses-a", str(number)))
    found = read_covariates(tmp_path, people)
    assert [column.name for column in found.columns] == ["edss"]
    assert [found.of(who, "ses-a") for who in people] == [{"edss": 0.0}, {"edss": 1.0}, {"edss": 2.0}]


@pytest.mark.parametrize("taken", [(), ("participant_id", "session_id")])
def test_identifiers_are_never_covariates(tmp_path, taken):
    write(tmp_path, "participants.tsv", ("participant_id", "session_id", "age"), ("sub-01", "ses-x", "3"))
    head = ("participant_id", "session_id", "edss")
    write(tmp_path, "sub-01/sub-01_sessions.tsv", head, ("sub-99", "ses-a", "2"))
    found = read_covariates(tmp_path, {"sub-01"}, taken=taken)
    assert found.of("sub-01", "ses-a") == {"age": 3.0, "edss": 2.0}
    assert [column.name for column in found.columns] == ["age", "edss"]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"age": ' * 90 + "1" + "}" * 90, "[1]", '{"age": 1}'])
def test_a_dictionary_that_cannot_be_used_is_passed_over(tmp_path, text):
    write(tmp_path, "participants.tsv", ("participant_id", "age"), ("sub-01", "34"))
    (tmp_path / "participants.json").write_text(text)
    found = read_covariates(tmp_path, {"sub-01"})
    assert found.columns[0].description == "Covariate, from participants.tsv."


def test_links_out_of_the_dataset_are_followed_only_if_allowed(tmp_path):
    dataset = tmp_path / "bids"
    write(tmp_path, "secret.tsv", ("participant_id", "age"), ("sub-01", "34"))
    write(dataset, ".git/annex/x.tsv", ("session_id", "edss"), ("ses-a", "2"))
    (dataset / "sub-01").mkdir()
    (dataset / "participants.tsv").symlink_to(tmp_path / "secret.tsv")
    (dataset / "sub-01/sub-01_sessions.tsv").symlink_to("../.git/annex/x.tsv")
    found = read_covariates(dataset, {"sub-01"})
    assert found.of("sub-01", "ses-a") == {"edss": 2.0}
    assert len(found.flags) == 1
    assert "participants.tsv is a link that leads out of the dataset" in found.flags[0]
    followed = read_covariates(dataset, {"sub-01"}, follow_links=True)
    assert followed.of("sub-01", "ses-a") == {"age": 34.0, "edss": 2.0}
    assert followed.flags == ()
