"""Lists of checksums: of each owner, of all, and what is refused in them."""

from __future__ import annotations

import threading

import pytest

from bids_scseg import files
from bids_scseg.bids import checksums
from bids_scseg.errors import DataError, OutputError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180-2


def write(out, *names):
    for name in names:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("abc")


def test_lists_of_owners_and_of_all(tmp_path):
    write(tmp_path, "b.txt", "a.txt", "c.txt")
    checksums.record(tmp_path, "sub-01", ["b.txt", "a.txt", "absent.txt"])
    checksums.record(tmp_path, "sub-02", ["c.txt"])
    assert checksums.read_list(tmp_path, "sub-01") == {"a.txt": ABC, "b.txt": ABC}
    assert checksums.owners(tmp_path) == ("sub-01", "sub-02")
    assert checksums.has_list(tmp_path, "sub-01") and not checksums.has_list(tmp_path, "sub-03")
    checksums.merge(tmp_path)
    merged = (tmp_path / checksums.MERGED).read_text()
    assert merged == f"{ABC}  a.txt\n{ABC}  b.txt\n{ABC}  c.txt\n"
    (tmp_path / "a.txt").write_text("other")
    checksums.record(tmp_path, "sub-01", ["a.txt"], add=True)
    found = checksums.read_list(tmp_path, "sub-01")
    assert found["b.txt"] == ABC and found["a.txt"] != ABC
    checksums.forget(tmp_path, "sub-01")
    checksums.forget(tmp_path, "never there")
    assert checksums.read_list(tmp_path, "sub-01") == {}


def test_a_damaged_list_is_told_and_does_not_stop_the_others(tmp_path):
    write(tmp_path, "a.txt", "b.txt")
    checksums.record(tmp_path, "sub-01", ["a.txt"])
    (tmp_path / "logs/checksums/sub-01.sha256").write_text(f"{ABC} a.txt\n")
    with pytest.raises(DataError, match="no checksum"):
        checksums.read_list(tmp_path, "sub-01")
    checksums.record(tmp_path, "sub-02", ["b.txt"])
    checksums.merge(tmp_path)
    assert (tmp_path / checksums.MERGED).read_text() == f"{ABC}  b.txt\n"


def test_nothing_outside_is_read(tmp_path):
    with pytest.raises(OutputError, match="outside"):
        checksums.record(tmp_path, "sub-01", ["../x"])


def test_files_of_a_session_are_not_those_of_a_longer_label(tmp_path):
    write(tmp_path, "figures/sub-01_desc-a_figure.png", "figures/sub-01_ses-2_desc-a_figure.png")
    write(tmp_path, "figures/sub-011_desc-a_figure.png")
    outputs = ["sub-01/anat/sub-01_summary.json"]
    assert checksums.session_files(tmp_path, "sub-01", outputs) == (
        "sub-01/anat/sub-01_summary.json",
        "sub-01.html",
        "figures/sub-01_desc-a_figure.png",
    )
    assert "figures/sub-01_ses-2_desc-a_figure.png" in checksums.session_files(tmp_path, "sub-01_ses-2", [])


def test_files_of_the_group_level(tmp_path):
    names = ["group.html", "group/lesions.tsv", "phenotype/a.tsv", "sub-01/sub-01_sessions.tsv"]
    write(tmp_path, *names, "group/.half.tmp", "sub-01/anat/sub-01_mask.nii.gz")
    write(tmp_path, "group/ratings.tsv", "group/ratings_second-reader.tsv")  # people's, who may replace them
    checksums.record_group(tmp_path)
    assert sorted(checksums.read_list(tmp_path, "group")) == sorted(names)


def test_runs_side_by_side_leave_one_list_with_everything(tmp_path):
    names = [f"{n}.txt" for n in range(12)]
    write(tmp_path, *names)

    def finish(number, name):
        checksums.record(tmp_path, f"sub-{number}", [name])
        checksums.merge(tmp_path)

    threads = [threading.Thread(target=finish, args=item) for item in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / checksums.MERGED).read_text().splitlines()) == 12


def test_a_session_is_recorded_without_reading_those_of_all_others(tmp_path, monkeypatch):
    """Nor does it wait for another run that is at the list of all: a finished session would be lost."""
    write(tmp_path, "a.txt", "b.txt")
    checksums.record(tmp_path, "sub-01", ["a.txt"])
    monkeypatch.setattr(checksums, "owners", lambda _: pytest.fail("all lists"))
    with files.lock(tmp_path / checksums.LOCK):
        checksums.record(tmp_path, "sub-02", ["b.txt"])
        checksums.merge(tmp_path)
    assert checksums.read_list(tmp_path, "sub-02") == {"b.txt": ABC}
    assert not (tmp_path / checksums.MERGED).exists()
