"""SHA-256 of every output, in the form of ``sha256sum``: a list for each session, and one of all.

A session's list is written when it is complete and removed before its files change, so a session without a
list is unfinished. The list of all is rebuilt from those now and then and at the end of a run, as
``status.tsv`` is from the sessions' logs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from bids_scseg import files
from bids_scseg.bids import dataset
from bids_scseg.bids.write import rebuild, safe_join, write_text
from bids_scseg.errors import DataError

FOLDER = "logs/checksums"
MERGED = "logs/sha256sums.txt"
LOCK = "logs/.checksums.lock"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
MAX_LIST_BYTES = 50_000_000  # half a million files
DATASET = "dataset"  # owner of the files at the root
GROUP = "group"  # owner of what the group level makes
GROUP_FILES = ("group.html", "group/**/*", "phenotype/**/*", "sub-*/sub-*_sessions.*", "participants.*")
GROUP_INPUTS = "group/ratings*"  # people's verdicts: theirs to replace, also one file for each reader
ROOT_FILES = ("dataset_description.json", *dataset.ROOT_FILES)


def record(out: Path, owner: str, paths: Iterable[str], *, add: bool = False) -> None:
    """Write the checksums of an owner's files; the list of all is :func:`merge`'s.

    Parameters
    ----------
    out
        The output folder.
    owner
        Label of a session, ``dataset``, or ``group``.
    paths
        Its files, relative to `out`; absent ones are left out.
    add
        Keep the other entries of its list, for owners of which only some files were written again.
    """
    known = dict(read_list(out, owner)) if add else {}
    for path in paths:
        known.pop(path, None)
        with suppress(FileNotFoundError, IsADirectoryError):
            known[path] = files.sha256(safe_join(out, path))
    write_text(out, _name(owner), _text(known))


def forget(out: Path, owner: str) -> None:
    """Remove an owner's list: its files are about to change."""
    with suppress(FileNotFoundError):
        safe_join(out, _name(owner)).unlink()


def read_list(out: Path, owner: str) -> Mapping[str, str]:
    """Relative path → SHA-256 of an owner's files; empty without a list.

    Raises
    ------
    DataError
        If the list is damaged.
    """
    path = safe_join(out, _name(owner))
    if not path.exists():
        return {}
    found = {}
    for line in files.read_text(path, max_bytes=MAX_LIST_BYTES).splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            raise DataError("a line that is no checksum", file=path, expected="SHA-256, two spaces, path")
        found[match[2]] = match[1]
    return found


def has_list(out: Path, owner: str) -> bool:
    """Whether an owner has a list."""
    return safe_join(out, _name(owner)).is_file()


def owners(out: Path) -> tuple[str, ...]:
    """Whose lists there are, sorted."""
    return tuple(sorted(path.name.removesuffix(".sha256") for path in (out / FOLDER).glob("[!.]*.sha256")))


def merge(out: Path) -> None:
    """Rebuild the list of all, or let whoever is at it do so; a damaged list is left out.

    Verification tells of the latter. It reads every list: not for after each session.
    """
    rebuild(out, LOCK, lambda: write_text(out, MERGED, _text(_all(out))))


def _all(out: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in owners(out):
        with suppress(DataError):
            found |= read_list(out, owner)
    return found


def record_group(out: Path) -> None:
    """Write the checksums of what the group level has made, not of what it reads there."""
    given = set(out.glob(GROUP_INPUTS))
    found = [path for pattern in GROUP_FILES for path in out.glob(pattern) if path.is_file()]
    made = [path for path in found if path not in given and not path.name.startswith(".")]
    record(out, GROUP, (path.relative_to(out).as_posix() for path in made))
    merge(out)


def session_files(out: Path, label: str, outputs: Iterable[str]) -> tuple[str, ...]:
    """All files of a session: its derivatives as its summary lists them, the summary, page and figures."""
    figures = (path.name for path in (out / "figures").glob(f"{label}_*") if not path.name.startswith("."))
    own = [name for name in figures if "_ses-" in label or not name.startswith(f"{label}_ses-")]
    return (*sorted(outputs), f"{label}.html", *(f"figures/{name}" for name in sorted(own)))


def _name(owner: str) -> str:
    return f"{FOLDER}/{owner}.sha256"


def _text(entries: Mapping[str, str]) -> str:
    return "".join(f"{entries[path]}  {path}\n" for path in sorted(entries))
