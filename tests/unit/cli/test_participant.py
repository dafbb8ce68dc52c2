"""What a run decides before it starts: folders, method for cords, sessions at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_scseg.cli import participant
from bids_scseg.errors import MissingToolError, UsageError
from bids_scseg.options import RunOptions

OPTIONS = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant", nprocs=8)


@pytest.mark.parametrize(
    ("memory", "total", "workers"),
    [
        (float("inf"), 20, 8),  # a system that does not tell
        (9.9, 20, 3),  # 2 GB for the network, 2 GB for each session
        (1.0, 20, 1),
        (64.0, 2, 2),
    ],
)
def test_sessions_at_once(monkeypatch, memory, total, workers):
    monkeypatch.setattr(participant, "free_memory_gb", lambda: memory)
    assert participant.worker_count(OPTIONS, total) == workers


@pytest.mark.parametrize(
    ("limit", "expected"), [("2000000000", 2.0), ("max", 8.192), ("64000000000", 8.192), (None, 8.192)]
)
def test_a_containers_memory_limit_counts(tmp_path, monkeypatch, limit, expected):
    info, maximum = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    if limit is not None:
        maximum.write_text(f"{limit}\n")
    monkeypatch.setattr(participant, "MEMORY_INFO", info)
    monkeypatch.setattr(participant, "MEMORY_LIMIT", maximum)
    assert participant.free_memory_gb() == pytest.approx(expected)


def test_a_system_that_does_not_tell_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(participant, "MEMORY_INFO", tmp_path / "absent")
    monkeypatch.setattr(participant, "MEMORY_LIMIT", tmp_path / "absent")
    assert participant.free_memory_gb() == float("inf")


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
