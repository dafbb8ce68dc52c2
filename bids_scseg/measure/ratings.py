"""People's verdicts on sessions: written by the group page, read back by the next run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bids_scseg.errors import DataError
from bids_scseg.measure.schema import Column

#: Where the exported table is to be put, below the output folder.
RATINGS_FILE = "group/ratings.tsv"
VERDICTS = ("pass", "fail", "unsure")
#: A session with this verdict leaves the statistics.
EXCLUDING = "fail"

RATING_COLUMNS: tuple[Column, ...] = (
    Column(name="rating", dtype="str", description="Verdict of a person: pass, fail or unsure."),
    Column(name="rating_note", dtype="str", description="What that person noted."),
    Column(name="rated", dtype="str", description="When, UTC."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One verdict."""

    rating: str
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
        last row of a session counts.
    labels
        Sessions of the cohort.

    Returns
    -------
    Ratings of the cohort's sessions; empty without the file. Rows without a known verdict, and of sessions
    that are not there, are left out and counted in the flags.

    Raises
    ------
    DataError
        If the table cannot be read or lacks a column.
    """
    if not path.is_file():
        return Ratings()
    try:
        table = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read ({error})", file=path, expected="the table that group.html exports"
        ) from error
    lacking = [name for name in ("participant_id", "rating") if name not in table.columns]
    if lacking:
        raise DataError(
            f"no column {lacking[0]}", file=path, expected="the table that group.html exports",
            remedy="export it again, or take the file away",
        )  # fmt: skip
    found: dict[str, Rating] = {}
    unclear = strangers = 0
    for values in table.to_dict("records"):
        row = {str(key): value for key, value in values.items()}
        label, verdict = _label(row), str(row["rating"]).strip().lower()
        if label not in labels:
            strangers += 1
        elif verdict not in VERDICTS:
            unclear += verdict not in ("", "n/a")
        else:
            found[label] = Rating(rating=verdict, note=_cell(row, "note"), rated=_cell(row, "rated"))
    return Ratings(by_label=found, flags=tuple(_flags(path.name, unclear, strangers)))


def _flags(name: str, unclear: int, strangers: int) -> list[str]:
    flags = []
    if unclear:
        flags.append(f"{unclear} rows of {name} have a rating other than {', '.join(VERDICTS)}: not used.")
    if strangers:
        flags.append(f"{strangers} rows of {name} are of sessions that are not here: not used.")
    return flags


def _label(row: Mapping[str, object]) -> str:
    session = _cell(row, "session_id")
    return str(row["participant_id"]).strip() + (f"_{session}" if session else "")


def _cell(row: Mapping[str, object], name: str) -> str:
    text = " ".join(str(row.get(name, "")).split())
    return "" if text == "n/a" else text
