"""What ``--version`` says, and that its checksums mean something."""

from __future__ import annotations

import importlib.metadata
import re

from bids_scseg.cli.version import LIBRARIES, code_checksum, library_checksum, version_text


def test_every_part_is_there_with_a_checksum():
    text = version_text()
    assert re.search(r"^code: sha256 [0-9a-f]{64}$", text, re.MULTILINE)
    for name in ("cord-finder", "cord-lesion"):
        assert re.search(rf"^model {name}: sha256 [0-9a-f]{{64}}$", text, re.MULTILINE)
    for name in LIBRARIES:
        version = re.escape(importlib.metadata.version(name))
        assert re.search(rf"^{name} {version}( \(sha256 [0-9a-f]{{16}}\))?$", text, re.MULTILINE)
    assert "sct_deepseg: " in text


def test_the_toolbox_is_named_with_release_and_models(tmp_path, monkeypatch):
    tools, folder = tmp_path / "bin", tmp_path / "data" / "deepseg_models" / "spinalcord"
    tools.mkdir()
    folder.mkdir(parents=True)
    (tools / "sct_deepseg").touch(mode=0o755)
    (tmp_path / "version.txt").write_text("7.3\n")
    (folder / "source.json").write_text("{}")
    monkeypatch.setenv("PATH", str(tools))
    text = version_text()
    assert f"sct_deepseg: release 7.3 at {tools / 'sct_deepseg'} (calls are those of SCT 7.3)" in text
    assert re.search(r"^sct model spinalcord: sha256 44136fa3", text, re.MULTILINE)


def test_the_code_s_checksum_follows_its_content_and_names(tmp_path):
    (tmp_path / "a.py").write_text("1\n")
    (tmp_path / "notes.txt").write_text("no code")
    before = code_checksum(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.py").write_text("compiled")
    (tmp_path / "notes.txt").write_text("still no code")
    assert code_checksum(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = code_checksum(tmp_path)
    (tmp_path / "b.py").write_text("2\n")
    assert len({before, renamed, code_checksum(tmp_path)}) == 3


def test_code_behind_a_link_counts(tmp_path):
    """The workflows are a link in the repository and a folder once installed: the same checksum."""
    linked, plain, source = tmp_path / "linked", tmp_path / "plain", tmp_path / "source"
    for folder in (linked, plain / "workflows", source):
        folder.mkdir(parents=True)
    for folder in (plain / "workflows", source):
        (folder / "job.py").write_text("x = 1\n")
    (linked / "workflows").symlink_to(source)
    assert code_checksum(linked) == code_checksum(plain)


def record(monkeypatch, text):
    class Installed:
        def read_text(self, name):
            assert name == "RECORD"
            return text

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    return library_checksum("whatever")


def test_a_library_s_checksum_is_that_of_its_files_not_of_its_place(monkeypatch):
    one = "lib/a.py,sha256=abc,1\nlib/b.py,sha256=def,2\n"
    moved = (
        "../../bin/tool,sha256=xyz,9\nlib/b.py,sha256=def,2\nlib/a.py,sha256=abc,1\nlib/__pycache__/a.pyc,,\n"
        "lib-1.dist-info/INSTALLER,sha256=zzz,4\n"
    )
    first = record(monkeypatch, one)
    assert first is not None and len(first) == 64
    assert record(monkeypatch, moved) == first
    assert record(monkeypatch, one.replace("abc", "abx")) != first
    assert record(monkeypatch, None) is None


def test_an_absent_library_has_none():
    assert library_checksum("no-such-library-anywhere") is None
