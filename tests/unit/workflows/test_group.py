"""The group level from output folders: tables, ratings that come back, strata, and folders as they are."""

from __future__ import annotations

import csv
import json
import re

import pytest
from cohort_tree import make_tree

from bids_scseg.errors import MissingInputError
from bids_scseg.workflows.group import IDENTITY, keep_identity, write_group


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path, participants=6, sessions=2, failed=1)


def test_tables_with_dictionaries_and_covariates(tree):
    bids, out = tree
    write_group(out, dataset=bids, facts={})
    for name in ("lesions", "sessions", "summary", "comparisons"):
        described = json.loads((out / f"group/{name}.json").read_text())
        with (out / f"group/{name}.tsv").open() as stream:
            assert stream.readline().rstrip("\n").split("\t") == list(described)
    sessions = rows(out / "group/sessions.tsv")
    assert len(sessions) == 12
    assert {row["sex"] for row in sessions} <= {"F", "M"}
    assert sessions[0]["edss"] == "1.5"  # of the session's own table
    assert sessions[0]["T2Sag_voxel_mm"] == "0.5 x 0.5 x 3"
    assert json.loads((out / "group/sessions.json").read_text())["age"]["Units"] == "year"
    assert [row["session_id"] for row in rows(out / "sub-006/sub-006_sessions.tsv")] == ["ses-1", "ses-2"]
    people = rows(out / "phenotype/spinal_cord_lesions.tsv")
    assert [row["participant_id"] for row in people] == [f"sub-{n:03d}" for n in range(1, 7)]
    assert people[-1]["sessions_failed"] == "1"


def test_without_the_dataset_there_are_no_covariates(tree):
    _, out = tree
    cohort = write_group(out, facts={})
    assert "sex" not in cohort.sessions.columns
    assert "manufacturer" in cohort.sessions.columns
    assert (out / "group.html").is_file()


def test_ratings_are_read_back_and_the_file_is_left_alone(tree):
    bids, out = tree
    write_group(out, dataset=bids, facts={})
    before = write_group(out, dataset=bids, facts={}).summary
    table = (
        "participant_id\tsession_id\trating\tnote\trated\nsub-001\tses-1\tfail\tmoved\t2026-01-01T00:00:00Z\n"
    )
    (out / "group/ratings.tsv").write_text(table)
    after = write_group(out, dataset=bids, facts={})
    assert (out / "group/ratings.tsv").read_text() == table
    assert after.summary["sessions"].iloc[0] == before["sessions"].iloc[0] - 1
    assert rows(out / "group/sessions.tsv")[0]["rating_note"] == "moved"
    first = rows(out / "phenotype/spinal_cord_lesions.tsv")[0]
    assert (first["sessions"], first["sessions_left_out"], first["first_session"]) == ("2", "1", "ses-2")


def test_sessions_of_another_threshold_are_a_stratum_of_their_own(tree):
    _, out = tree
    path = next((out / "sub-001/ses-1/anat").glob("*_summary.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.3, "lesion_load": 1e6}))
    cohort = write_group(out, facts={})
    assert [stratum.sessions for stratum in cohort.strata] == [10, 1]
    assert cohort.summary["sessions"].iloc[0] == 10
    assert cohort.summary["mean"].max() < 1e5
    assert any("threshold: 0.3, 0.5" in flag for flag in cohort.flags)
    assert "not all measured alike" in (out / "group.html").read_text()


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(MissingInputError, match="participant level first"):
        write_group(tmp_path, facts={})


def key_of(out):
    """What the browser keeps ratings under."""
    return re.search(r'"key":\s*"([0-9a-f]+)"', (out / "group.html").read_text())[1]


def test_ratings_in_the_browser_are_those_of_one_folder_wherever_it_lies(tmp_path):
    place = tmp_path / "out"
    keys = []
    for study in ("one", "two"):  # as with containers: every study's folder is mounted at one place
        make_tree(tmp_path, participants=1)
        for _ in range(2):
            write_group(place, facts={})
            keys.append(key_of(place))
        place.rename(tmp_path / study)
    write_group(tmp_path / "one", facts={})
    assert keys[0] == keys[1] == key_of(tmp_path / "one")
    assert keys[2] == keys[3] != keys[0]


@pytest.mark.parametrize("content", ["", "0" * 31, "z" * 32, "0" * 5000])
def test_a_damaged_identity_is_made_anew(tmp_path, content):
    (tmp_path / "group").mkdir()
    (tmp_path / IDENTITY).write_text(content)
    made = keep_identity(tmp_path)
    assert len(made) == 32 and made != content
    assert keep_identity(tmp_path) == made


def test_given_cords_among_found_ones_are_a_warning_and_a_group(tree):
    """Sidecars as the participant level writes them; the reader's own file beside them is none of those."""
    _, out = tree
    for number, summary in enumerate(sorted(out.glob("sub-*/ses-*/anat/*_summary.json"))):
        who = "given mask x.nii.gz" if number == 0 else "built-in network"
        stem = summary.name.removesuffix("_summary.json")
        for desc, said in (("T2w", f"Spinal cord, by {who}"), ("manual", "Spinal cord, by given mask y")):
            path = summary.with_name(f"{stem}_acq-sag_label-SC_desc-{desc}_mask.json")
            path.write_text(json.dumps({"Description": said}))
    cohort = write_group(out, facts={})
    assert cohort.sessions["cord_source"].value_counts().to_dict() == {"builtin": 10, "given": 1}
    page = (out / "group.html").read_text()
    assert "builtin in 10, given in 1 sessions" in page
    assert '"Cords from"' in page and '"Voxel size of the anchor"' in page
    assert "0.5 × 0.5 × 3 mm" in page
    assert {row["anchor_voxel"] for row in rows(out / "group/sessions.tsv")} == {"0.5 × 0.5 × 3 mm", "n/a"}
