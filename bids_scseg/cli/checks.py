"""What can be known to fail before anything is read: said in one line at the start, not an hour later."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bids_scseg.errors import MissingToolError, OutputError
from bids_scseg.interfaces.sct import SCT_RELEASE, find_sct
from bids_scseg.options import RunOptions
from bids_scseg.workflows.plugins import check_plugin

REMEDY = "choose a writable folder; in a container, mount it without :ro and run as its owner (-u)"


def check_startup(options: RunOptions) -> None:
    """Check folders that will be written, and tools that were asked for by name.

    Raises
    ------
    OutputError
        If output or work folder cannot be written, or there is no temporary folder.
    MissingToolError
        If levels are to come from SCT and it is not installed, or a scheduler's command is absent.
    UsageError
        If the work folder cannot be handed to a scheduler.
    """
    check_plugin(options)
    if not (options.dry_run or options.boilerplate_only):
        for folder in (options.output_dir, options.work):
            check_writable(folder)
        check_temporary()
    if options.levels == "sct" and find_sct() is None:
        raise MissingToolError(
            "sct_deepseg is not on the PATH",
            expected=f"Spinal Cord Toolbox {SCT_RELEASE}, for --levels sct",
            remedy="install it, or use --levels auto",
        )


def check_writable(folder: Path) -> None:
    """Whether a folder can be written, or made where it does not exist yet; nothing is left behind.

    Permission bits do not tell on network shares and read-only mounts, so a file is really made.

    Raises
    ------
    OutputError
        If it cannot.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        why = "is not a folder" if there == folder else f"is not a folder, so {folder} cannot be made"
        raise OutputError(why, file=there, remedy="choose another output folder")
    if there != folder and os.access(there, os.W_OK | os.X_OK):
        return  # it will be made, and is none of ours to write into
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", file=there, remedy=REMEDY) from error


def check_temporary() -> None:
    """Whether there is a folder for temporary files, which the toolbox and libraries' caches need.

    Raises
    ------
    OutputError
        If there is none, as in a container with a read-only root and nothing mounted on ``/tmp``.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise OutputError(
            "no temporary folder can be written",
            file=os.environ.get("TMPDIR") or "/tmp",  # noqa: S108 - named, not used
            remedy="in a container with a read-only root add --tmpfs /tmp; "
            "elsewhere set TMPDIR to a writable folder",
        ) from error
