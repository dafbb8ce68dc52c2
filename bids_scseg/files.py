"""Files that are whole or not there, locks that end with their process, and reading with a limit.

The one place where files get their final names. A file is written under a temporary name in its own folder,
brought to the disk, and renamed: whoever is killed at whatever moment leaves the old content or none. Remains
of a killed writer bear names that no reader looks for; :func:`sweep` takes them away.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bids_scseg.errors import BusyError, DataError, DiskFullError, OutputError

LOG = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # end of the names under which files are written; they start with a dot
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # disk, quota, limit of the process
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")  # numpy's words for it, without a number
NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})  # file systems without locks
REMAINS_S = 86400.0  # where there are no locks, a temporary file of this age is nobody's (ours)
LOCK_POLL_S = 0.1
MAX_JSON_BYTES = 16_000_000  # of JSON that others wrote: a hundred times the largest sidecar seen (ours)
MAX_JSON_DEPTH = 60  # BIDS metadata nest three deep; beyond some hundred, Python's own limit strikes (ours)
CHUNK = 1 << 20


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file so that a reader sees the old content, the new content, or no file, never a part.

    Parameters
    ----------
    path
        Final name; its folder is made where needed.
    write
        Writes the content into a binary stream.

    Raises
    ------
    DiskFullError
        If the disk, a quota or a limit of file sizes is reached.
    OutputError
        If folder or file cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the tempfile module: its files are private, and outputs follow the user's umask.
        with _open_held(temporary) as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write bytes; see :func:`write_atomically`."""
    return write_atomically(path, lambda stream: stream.write(content))


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text with its line ends as given; see :func:`write_atomically`."""
    return write_bytes(path, encode(text))


def encode(text: str) -> bytes:
    r"""UTF-8; parts of file names that are no text (bytes beyond UTF-8) become ``\udcXX``."""
    return text.encode("utf-8", errors="backslashreplace")


def write_error(error: OSError, path: object) -> OutputError:
    """The error of ours that a failed write deserves."""
    if is_full(error):
        return DiskFullError(
            f"cannot be written ({error.strerror or 'the disk is full'})",  # numpy gives two numbers
            file=path,
            remedy="free space and run the same command again; finished steps are kept",
        )
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        file=path,
        remedy="check the permissions of the folder",
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left to write."""
    if not isinstance(error, OSError):
        return False
    return error.errno in FULL or (error.errno is None and bool(CUT_SHORT.search(str(error))))


def tells_of_full_disk(text: str) -> bool:
    """Whether a traceback says so; graphs pass errors on as text only."""
    return bool(CUT_SHORT.search(text)) or any(os.strerror(number) in text for number in FULL)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one under which files are written: being written, or what a kill left."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def sweep(folder: Path) -> tuple[Path, ...]:
    """Remove what killed writers left in a folder (not in those below it); nothing that is being written.

    Returns
    -------
    What was removed. A folder that is absent or cannot be read: nothing.
    """
    removed = []
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            path = Path(entry.path)
            if is_temporary(entry.name):
                with suppress(OSError):
                    if _remove_remains(path):
                        removed.append(path)
    return tuple(removed)


@contextmanager
def lock(path: Path, *, wait_s: float = 0.0, what: str = "another run is working here") -> Iterator[None]:
    """Hold a file for this process; released when the process ends, however it ends.

    On a file system without locks there is no protection, and a warning says so.

    Parameters
    ----------
    path
        The lock file; it and its folder are made, and stay.
    wait_s
        How long to wait for whoever holds it.
    what
        Found by whom the lock is refused.

    Raises
    ------
    BusyError
        If somebody else holds it for longer.
    OutputError
        If the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError as error:
        raise write_error(error, path) from error
    with stream:
        if not _acquire(stream, path, wait_s):
            raise BusyError(what, file=path.parent, remedy="wait for it, then run again")
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds a file's lock; the file need only be readable.

    A shared lock is tried: over NFS an exclusive one is refused for a file that is not open for writing.

    Raises
    ------
    OSError
        If the file cannot be opened, or its file system has no locks.
    """
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path is, or lies behind, a link to a place outside of a folder."""
    # Not Path.resolve(): it raises for links that lead in circles.
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> object:
    """Parse a JSON file that somebody else wrote, within bounds of size and depth.

    A byte order mark is passed over. Nothing but a regular file is opened: a pipe may never end.

    Raises
    ------
    DataError
        If it is no regular file, too large, not UTF-8, not JSON, or nests too deeply.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), file=path)


def read_text(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> str:
    """A text file within a bound of size, without a byte order mark; see :func:`read_json`."""
    try:
        # Not blocking: opening a pipe that nobody writes would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError("is no regular file", file=path, expected="a text file")
            content = stream.read(max_bytes + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a text file") from error
    if len(content) > max_bytes:
        raise DataError(f"is larger than {max_bytes} bytes", file=path, expected="a file of its kind")
    return text


def read_toml(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Parse a TOML file that somebody else wrote, within a bound of size.

    Raises
    ------
    DataError
        If it is no regular file, too large, not UTF-8 or not TOML.
    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also nesting without end
        raise DataError(f"not valid TOML ({error})", file=path) from error


def parse_json(text: str, *, file: object = None) -> object:
    """Parse JSON of limited depth.

    Raises
    ------
    DataError
        If it is not JSON, nests deeper than 60, or holds a number of thousands of digits.
    """
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot be read as JSON ({error})", file=file) from error
    if _depth(data) > MAX_JSON_DEPTH:
        raise DataError(f"nests deeper than {MAX_JSON_DEPTH}", file=file, expected="plain metadata")
    return data


def _depth(data: object) -> int:
    """How deep lists and objects nest, without recursion; counting stops beyond the limit."""
    level, depth = [data], 0
    while level and depth <= MAX_JSON_DEPTH:
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [value for item in inner for value in (item.values() if isinstance(item, dict) else item)]
        depth += bool(inner)
        if not inner:
            break
    return depth


def _open_held(path: Path) -> BinaryIO:
    """A new file under a lock, which tells :func:`sweep` that somebody is writing it."""
    while True:
        stream = path.open("xb")
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()  # swept in the moment between making and locking it


def _remove_remains(path: Path) -> bool:
    """Remove a temporary file that nobody is writing; whether it was one.

    Its lock is held until it is gone: a writer that has just made it waits for the lock, and then sees that
    it must make another (:func:`_open_held`).
    """
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # held, or a file system without locks
            old = time.time() - path.stat().st_mtime > REMAINS_S
            if error.errno not in NO_LOCKS or not old:
                return False
        if not os.fstat(stream.fileno()).st_nlink:
            return False  # somebody else removed it, and the name may be another file's by now
        path.unlink()
    return True


def _acquire(stream: BinaryIO, path: Path, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_POLL_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise write_error(error, path) from error
            LOG.warning("%s: this file system has no locks; do not run two at once", path.parent)
            return True
        else:
            return True


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
