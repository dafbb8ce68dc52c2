"""The run's logs: one JSON per session, from which ``status.tsv`` is rebuilt."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from bids_scseg import files
from bids_scseg.bids.write import write_json, write_text
from bids_scseg.workflows.job import SessionOutcome

STATUS_WAIT_S = 120.0  # for other runs, which need milliseconds for the same

STATUS_COLUMNS = (
    "session", "state", "step", "cause", "file", "remedy", "seconds", "peak_memory_gb", "device",
    "warnings",
)  # fmt: skip


def write_outcome(out: Path, outcome: SessionOutcome, *, run: dict[str, object]) -> None:
    """Write ``logs/<label>.json`` and rebuild ``logs/status.tsv``.

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
    """Rebuild ``logs/status.tsv`` from the sessions' logs; safe to do from several runs at once."""
    # One at a time, from reading to writing: a run with an older view must not write last.
    with files.lock(out / "logs" / ".status.lock", wait_s=STATUS_WAIT_S):
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(STATUS_COLUMNS)
        for data in read_outcomes(out):
            table.writerow(
                [_cell(data.get("label" if name == "session" else name)) for name in STATUS_COLUMNS]
            )
        write_text(out, "logs/status.tsv", text.getvalue())


def _cell(value: object) -> str:
    text = "; ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return " ".join(text.split()) if value is not None and text else "n/a"
