"""What the system refuses ends the program with one line; a process needs neither home nor text for names."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from bids_scseg.cli import app, participant
from bids_scseg.errors import DataError, DiskFullError, MissingInputError, ScsegError


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.EACCES, MissingInputError, 66),
        (errno.ENOSPC, DiskFullError, 73),
        (errno.EIO, ScsegError, 1),
        (errno.ESTALE, ScsegError, 1),
        (errno.ENAMETOOLONG, MissingInputError, 66),
        (errno.ELOOP, MissingInputError, 66),
    ],
)
def test_what_the_system_refuses_is_one_line(number, kind, code, monkeypatch, capsys):
    def refuse(_options):
        raise OSError(number, os.strerror(number), "/data/x")

    monkeypatch.setattr(participant, "run_participant", refuse)
    assert app.main(["in", "out", "participant"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bids_scseg: /data/x: ") and os.strerror(number) in line
    assert type(app.of_system(OSError(number, "x", "f"))) is kind


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecursionError("maximum recursion depth exceeded"), 65, "nests too deeply"),
        (MemoryError(), 1, "memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (DataError("is odd"), 65, "is odd"),
    ],
)
def test_whatever_input_or_machine_bring_about_is_one_line(error, code, words, monkeypatch, capsys):
    def fail(_options):
        raise error

    monkeypatch.setattr(participant, "run_participant", fail)
    assert app.main(["in", "out", "participant"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bids_scseg: ") and words in line


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(_options):
        raise ZeroDivisionError

    monkeypatch.setattr(participant, "run_participant", fail)
    with pytest.raises(ZeroDivisionError):
        app.main(["in", "out", "participant"])


def test_a_user_whom_the_system_does_not_know_has_a_home(monkeypatch):
    monkeypatch.setenv("NIPYPE_CONFIG_DIR", "/somebody/else")
    monkeypatch.setenv("HOME", "/root")
    app.prepare_process()
    assert os.environ["HOME"] == "/root"
    assert os.environ["NIPYPE_CONFIG_DIR"] == os.devnull
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for unknown users
    app.prepare_process()
    assert os.environ["HOME"] == "/"


def test_names_that_are_no_text_can_be_printed(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    app.prepare_process()
    stream.write(os.fsdecode(b"sub-01_\xff.nii.gz"))
    stream.flush()
    assert stream.buffer.getvalue() == b"sub-01_\\udcff.nii.gz"
