"""What a run decides before it starts: folders, method for cords, what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_scseg.cli import participant
from bids_scseg.errors import MissingToolError, UsageError
from bids_scseg.options import RunOptions

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
