"""People's verdicts on sessions: written by the group page, read back by the next run."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_scseg import files
from bids_scseg.errors import DataError
from bids_scseg.measure.schema import Column

#: Where the exported table is to be put, below the output folder.
RATINGS_FILE = "group/ratings.tsv"
VERDICTS = ("pass", "fail", "unsure")
NO_VERDICT = ("", "n/a")
#: A session with this verdict leaves the statistics.
EXCLUDING = "fail"

RATING_COLUMNS: tuple[Column, ...] = (
    Column(name="rating", dtype="str", description="Verdict of a person: pass, fail or unsure."),
    Column(name="rating_note", dtype="str", description="What that person noted."),
    Column(name="rated", dtype="str", description="When, UTC."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What one person said of a session: a verdict, a note, or both; empty where nothing was said."""

    rating: str = ""
    note: str = ""
    rated: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Verdicts by session label (``sub-X[_ses-Y]``), and what is odd about them."""

    by_label: Mapping[str, Rating] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def read_ratings(path: Path, labels: Collection[str]) -> Ratings:
    """Read the table that the group page exports.

    Parameters
    ----------
    path
        Table with ``participant_id``, ``session_id`` (may be absent), ``rating``, ``note``, ``rated``; the
        last row of a session counts, also where it takes a verdict back. Quotes are characters like others.
    labels
        Sessions of the cohort.

    Returns
    -------
    Ratings of the cohort's sessions, with notes without a verdict; empty without the file. Rows with an
    unknown verdict, and of sessions that are not there, are left out and counted in the flags.

    Raises
    ------
    DataError
        If the table cannot be read or lacks a column.
    """
    if not path.is_file():
        return Ratings()
    found: dict[str, Rating] = {}
    unclear = strangers = 0
    for row in _rows(path):
        label, verdict = _label(row), row["rating"].strip().lower()
        if label not in labels:
            strangers += 1
        elif verdict not in (*VERDICTS, *NO_VERDICT):
            unclear += 1
        else:
            rating = verdict if verdict in VERDICTS else ""
            found[label] = Rating(rating=rating, note=_cell(row, "note"), rated=_cell(row, "rated"))
    said = {label: rating for label, rating in found.items() if rating != Rating()}
    return Ratings(by_label=said, flags=tuple(_flags(path.name, unclear, strangers)))


def _rows(path: Path) -> Sequence[Mapping[str, str]]:
    """Rows as written: the page puts nothing into quotes, so a quote is part of a note."""
    text = io.StringIO(files.read_text(path), newline="")
    reader = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"cannot be read ({error})", file=path, expected="the table that group.html exports"
        ) from error
    lacking = [name for name in ("participant_id", "rating") if name not in (reader.fieldnames or ())]
    if lacking:
        raise DataError(
            f"no column {lacking[0]}", file=path, expected="the table that group.html exports",
            remedy="export it again, or take the file away",
        )  # fmt: skip
    return rows


def _flags(name: str, unclear: int, strangers: int) -> list[str]:
    flags = []
    if unclear:
        flags.append(f"{unclear} rows of {name} have a rating other than {', '.join(VERDICTS)}: not used.")
    if strangers:
        flags.append(f"{strangers} rows of {name} are of sessions that are not here: not used.")
    return flags


def _label(row: Mapping[str, str]) -> str:
    session = _cell(row, "session_id")
    return row["participant_id"].strip() + (f"_{session}" if session else "")


def _cell(row: Mapping[str, str], name: str) -> str:
    text = " ".join(row.get(name, "").split())
    return "" if text == "n/a" else text
