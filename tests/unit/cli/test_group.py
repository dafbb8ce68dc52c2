"""The group level on the command line: what is refused at the start, and two runs at once."""

from __future__ import annotations

import os
import tempfile

import pytest
from cohort_tree import make_tree

from bids_scseg import files
from bids_scseg.cli import group
from bids_scseg.cli.app import main


@pytest.fixture
def out(tmp_path):
    return make_tree(tmp_path, participants=1)[1]


def test_it_runs_again_and_again(out, capsys):
    for _ in range(2):
        assert main(["-", str(out), "group"]) == 0
        assert "1 sessions" in capsys.readouterr().err
    assert (out / "logs/checksums/group.sha256").is_file()


def test_a_folder_that_refuses_files_is_one_line_at_the_start(out, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, os.strerror(30))

    def never(*_, **__):
        pytest.fail("the run began")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(group, "write_group", never)
    assert main(["-", str(out), "group"]) == 73
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written (Read-only file system)" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_group_folder_of_somebody_else_is_named(out, capsys):
    (out / "group").mkdir(mode=0o555)
    assert main(["-", str(out), "group"]) == 73
    assert f"{out / 'group'}: cannot be written" in capsys.readouterr().err


def test_a_second_run_on_the_folder_is_refused_while_the_first_works(out, capsys, monkeypatch):
    monkeypatch.setattr(group, "LOCK_WAIT_S", 0.2)
    with files.lock(out / group.LOCK):
        assert main(["-", str(out), "group"]) == 75
    said = capsys.readouterr().err
    assert "another run of the group level is working here" in said
    assert "Wait for it, then run again" in said
    assert not (out / "group.html").exists()
    assert main(["-", str(out), "group"]) == 0
