"""Files: whole or absent whatever happens to the writer; locks that end with their process; limits."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from file_systems import flock_of_nfs
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg import files
from bids_scseg.errors import BusyError, DataError, DiskFullError, OutputError

WRITER = """
import sys, time
from pathlib import Path
from bids_scseg import files
def write(stream):
    stream.write(b"new" * 100_000); stream.flush()
    print("half", flush=True); time.sleep(60)
files.write_atomically(Path(sys.argv[1]), write)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_remains_that_are_swept(tmp_path):
    path = files.write_text(tmp_path / "a.txt", "old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"half\n"
    assert files.sweep(tmp_path) == ()  # somebody is writing
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert len(files.sweep(tmp_path)) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_sweeping_leaves_other_files_alone_and_never_fails(tmp_path):
    for name in (".hidden", "a.tmp", ".nii.gz"):
        (tmp_path / name).write_text("x")
    assert files.sweep(tmp_path) == files.sweep(tmp_path / "absent") == ()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number", range(25))
def test_writers_and_sweepers_at_once(tmp_path, number):
    contents = [bytes([n]) * 50_000 for n in range(6)]
    threads = [threading.Thread(target=files.write_bytes, args=(tmp_path / "a", item)) for item in contents]
    threads += [threading.Thread(target=files.sweep, args=(tmp_path,)) for _ in range(20)]
    for thread in threads[number:] + threads[:number]:  # sweepers first, writers first, and between
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EFBIG, DiskFullError),
        (errno.EROFS, OutputError),
    ],
)
def test_a_full_disk_is_told_apart(tmp_path, number, kind):
    def fail(_stream):
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=os.strerror(number)) as caught:
        files.write_atomically(tmp_path / "a", fail)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 73
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_a_file_system_is_a_full_disk(tmp_path):
    """The system itself refuses, in the middle of a file."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DiskFullError):
            files.write_bytes(tmp_path / "a", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_numpys_words_for_a_full_disk_are_understood(tmp_path):
    def fail(_stream):
        raise OSError("2228224 requested and 262144 written")

    with pytest.raises(DiskFullError, match="the disk is full"):
        files.write_atomically(tmp_path / "a.npy", fail)
    assert files.tells_of_full_disk("Traceback ...\nOSError: 12 requested and 4 written")
    assert not files.is_full(OSError("something else")) and not files.tells_of_full_disk("something else")


def test_names_that_are_no_text_can_be_written_about(tmp_path):
    text = os.fsdecode(b"sub-01_\xff.nii.gz")
    assert files.write_text(tmp_path / "a", text).read_text() == "sub-01_\\udcff.nii.gz"


# -- locks -----------------------------------------------------------------------------------------


def test_a_lock_is_refused_or_waited_for(tmp_path):
    path = tmp_path / "inner" / ".lock"
    with files.lock(path), pytest.raises(BusyError, match="somebody"), files.lock(path, what="somebody"):
        pass
    holder = path.open()
    fcntl.flock(holder, fcntl.LOCK_EX)
    threading.Timer(0.3, holder.close).start()
    start = time.monotonic()
    with files.lock(path, wait_s=30):
        assert 0.1 < time.monotonic() - start < 20


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with files.lock(tmp_path / ".lock"), files.lock(tmp_path / ".lock"):
        files.write_text(tmp_path / "a", "x")
    assert "has no locks" in caplog.text
    young, old = tmp_path / ".b.1.tmp", tmp_path / ".c.1.tmp"
    young.write_text("")
    old.write_text("")
    os.utime(old, (0, 0))
    assert files.sweep(tmp_path) == (old,)


def test_over_nfs_remains_are_told_from_files_in_the_making(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    held, left = tmp_path / ".a.1.tmp", tmp_path / ".b.1.tmp"
    left.write_text("x")
    with held.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert files.is_held(held) and not files.is_held(left)
        assert files.sweep(tmp_path) == (left,)
    assert files.sweep(tmp_path) == (held,)


def test_a_file_that_may_only_be_read_can_be_asked(tmp_path):
    path = tmp_path / ".lock"
    with files.lock(path):
        path.chmod(0o444)
        assert files.is_held(path)
    assert not files.is_held(path)


def test_a_lock_in_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), files.lock(tmp_path / "file" / ".lock"):
        pass


# -- reading ---------------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pipe, "no regular file"),
        (lambda path: path.mkdir(), "cannot be read|no regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text("{"), "as JSON"),
        (lambda path: path.write_text("[" * 200_000), "as JSON"),
        (lambda path: path.write_text("[" * 61 + "]" * 61), "nests deeper than 60"),
        (lambda path: path.write_text('{"a":' * 70 + "1" + "}" * 70), "nests deeper than 60"),
        (lambda path: path.write_text("9" * 5000), "as JSON"),
        (lambda path: path.write_text(" " * 2000), "larger than 1000 bytes"),
    ],
)
def test_json_of_others_is_bounded(tmp_path, make, words):
    path = tmp_path / "a.json"
    make(path)
    with pytest.raises(DataError, match=words) as caught:
        files.read_json(path, max_bytes=1000 if "larger" in words else files.MAX_JSON_BYTES)
    assert str(path) in str(caught.value)


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert files.read_json(tmp_path / "a.json") == {"a": [1]}


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists, max_leaves=8))
def test_shallow_json_comes_through(data):
    assert files.parse_json(json.dumps(data)) == data


def test_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_what_leads_out_of_a_folder(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    root.mkdir()
    store.mkdir()
    (store / "a").touch()
    (root / "own").touch()
    (root / "inside").symlink_to("own")
    (root / "outside").symlink_to(store / "a")
    (root / "folder").symlink_to(store)
    (root / "circle").symlink_to("circle")
    (tmp_path / "alias").symlink_to(root)
    names = ("own", "inside", "outside", "folder/a", "circle", "absent")
    for base in (root, tmp_path / "alias"):
        out = [name for name in names if files.leads_out(base / name, root)]
        assert out == ["outside", "folder/a"]
        assert out == [name for name in names if files.leads_out(root / name, base)]
