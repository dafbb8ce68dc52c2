"""The run's logs: one JSON per session, from which ``status.tsv`` is rebuilt now and then."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

from bids_scseg.bids import checksums
from bids_scseg.bids.write import rebuild, write_json, write_text
from bids_scseg.workflows.job import SessionOutcome

LOCK = "logs/.status.lock"
REBUILD_S = 30.0  # between rebuilds of what is made from the files of all sessions (ours)
REBUILD_SHARE = 0.05  # of a run's time that they may take: they read every session's files (ours)

STATUS_COLUMNS = (
    "session", "state", "step", "cause", "file", "remedy", "seconds", "peak_memory_gb", "device",
    "warnings",
)  # fmt: skip


def write_outcome(out: Path, outcome: SessionOutcome, *, run: dict[str, object]) -> None:
    """Write ``logs/<label>.json``.

    Parameters
    ----------
    out
        The derivatives folder.
    outcome
        How the session ended.
    run
        Facts of the run (versions, checksums, seed, command) that belong in the log.
    """
    write_json(out, f"logs/{outcome.label}.json", {**outcome.to_json(), "run": run})


def read_outcomes(out: Path) -> list[dict[str, object]]:
    """All session logs of a derivatives folder, sorted by label; broken files are left out."""
    found = []
    for path in sorted((out / "logs").glob("sub-*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and isinstance(data.get("label"), str):
            found.append(data)
    return found


def write_status(out: Path) -> None:
    """Rebuild ``logs/status.tsv`` from the sessions' logs, or let another run that is at it do so."""
    # One at a time, from reading to writing: a run with an older view must not write last.
    rebuild(out, LOCK, lambda: write_text(out, "logs/status.tsv", _table(out)))


class Derived:
    """What is made from the files of all sessions: ``status.tsv`` and the list of all checksums.

    Made anew after every session it would cost a run of thousands more than the sessions themselves.

    Parameters
    ----------
    out
        The derivatives folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._next = -float("inf")  # the first session's row is there at once

    def renew(self, *, now: bool = False) -> None:
        """Rebuild them if the last time is long enough ago, or at once.

        Raises
        ------
        OutputError
            If they cannot be written.
        """
        start = time.monotonic()
        if start < self._next and not now:
            return
        write_status(self._out)
        checksums.merge(self._out)
        end = time.monotonic()
        self._next = end + max(REBUILD_S, (end - start) / REBUILD_SHARE)


def _table(out: Path) -> str:
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(STATUS_COLUMNS)
    for data in read_outcomes(out):
        table.writerow([_cell(data.get("label" if name == "session" else name)) for name in STATUS_COLUMNS])
    return text.getvalue()


def _cell(value: object) -> str:
    text = "; ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return " ".join(text.split()) if value is not None and text else "n/a"
