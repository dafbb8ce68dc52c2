"""One clear line at the start for what would fail later."""

from __future__ import annotations

import os
import tempfile

import pytest

from bids_scseg.cli.checks import check_startup, check_writable
from bids_scseg.cli.parser import parse
from bids_scseg.errors import MissingToolError, OutputError


def options(tmp_path, *more):
    return parse(["bids", str(tmp_path / "out"), "participant", *more])


def test_a_folder_that_is_there_or_can_be_made_is_fine_and_left_as_it_was(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"out: is not a folder"):
        check_startup(options(tmp_path))


def test_a_share_that_refuses_files_is_named_whatever_its_permissions_say(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def refuse(*_, **__):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Read-only file system\).*without :ro"):
        check_startup(options(tmp_path))
    check_startup(options(tmp_path, "--dry-run"))  # writes nothing, so it may


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        check_startup(options(tmp_path))


def test_a_read_only_root_without_a_temporary_folder_is_told_what_it_needs(tmp_path, monkeypatch):
    def none(*_):
        raise FileNotFoundError(
            2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']"
        )

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(OutputError, match=r"^/tmp: no temporary folder can be written\. .*add --tmpfs /tmp"):
        check_startup(options(tmp_path))
    check_startup(options(tmp_path, "--dry-run"))


def test_levels_of_an_absent_toolbox_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="for --levels sct"):
        check_startup(options(tmp_path, "--levels", "sct"))
    check_startup(options(tmp_path, "--levels", "auto"))
