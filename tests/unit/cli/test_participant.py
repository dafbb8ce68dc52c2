"""What a run decides before it starts: folders, method for cords, what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_scseg.cli import participant
from bids_scseg.errors import DiskFullError, MissingToolError, UsageError
from bids_scseg.options import RunOptions
from bids_scseg.workflows.job import SessionOutcome

OPTIONS = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant", nprocs=8)


def test_derivatives_of_one_name_are_refused(tmp_path):
    folders = [tmp_path / name / "labels" for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    options = replace(
        OPTIONS, output_dir=tmp_path / "out", derivatives=tuple(("labels", folder) for folder in folders)
    )
    with pytest.raises(UsageError, match="two derivatives folders are called 'labels'"):
        participant.check_folders(options, tmp_path / "raw")


def test_a_derivatives_folder_called_sct_does_not_hide_the_method(tmp_path, monkeypatch):
    monkeypatch.setattr(participant, "find_sct", lambda: None)
    with pytest.raises(MissingToolError):
        participant.load_models(replace(OPTIONS, cord="sct", derivatives=(("sct", tmp_path),)))


def test_a_session_whose_log_finds_no_room_has_failed_and_ends_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise DiskFullError("cannot be written (x)", file=tmp_path, remedy="free space")

    monkeypatch.setattr(participant, "write_outcome", full)
    done = SessionOutcome(label="sub-1", state="done")
    logged = participant._logged(tmp_path, done, {})
    assert (logged.state, logged.step, logged.ends_run) == ("failed", "log", True)
    assert logged.file == str(tmp_path)
    own = SessionOutcome(label="sub-1", state="failed", cause="its own", ends_run=True)
    assert participant._logged(tmp_path, own, {}) is own
    busy = SessionOutcome(label="sub-1", state="busy")
    assert participant._logged(tmp_path, busy, {}) is busy
