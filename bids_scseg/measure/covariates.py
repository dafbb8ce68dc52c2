"""What a dataset says of its participants and sessions, joined to the cohort's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bids_scseg import files
from bids_scseg.errors import DataError
from bids_scseg.measure.schema import Column, Value, parse_frame

PARTICIPANTS = "participants.tsv"
#: They say whose a row is: never covariates, whichever table has them.
IDENTIFIERS = ("participant_id", "session_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Covariates:
    """Covariates of a dataset.

    Attributes
    ----------
    columns
        Their schema; all numbers are ``float64``.
    participants
        Participant (with prefix) → values.
    sessions
        (participant, session), with prefixes → values.
    flags
        What could not be joined, one sentence each.
    """

    columns: tuple[Column, ...] = ()
    participants: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    sessions: Mapping[tuple[str, str], Mapping[str, Value]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def of(self, participant: str, session: str | None) -> dict[str, Value]:
        """Values of one session; what is not known is absent."""
        own = self.sessions.get((participant, session), {}) if session else {}
        return {**self.participants.get(participant, {}), **own}


def read_covariates(
    dataset: Path, participants: Iterable[str], *, taken: Iterable[str] = (), follow_links: bool = False
) -> Covariates:
    """Read ``participants.tsv`` and the ``sub-X_sessions.tsv`` of a raw dataset.

    Parameters
    ----------
    dataset
        Its root.
    participants
        Participants (with prefix) of the cohort: others are not read.
    taken
        Names of columns that the cohort's tables have already: a covariate of that name gets the prefix
        ``participants_`` or ``sessions_``.
    follow_links
        Whether tables may be links to places outside of the dataset.

    Returns
    -------
    Covariates; empty where the dataset has no such tables. Columns without any value are left out. A table
    that is a link out of the dataset is not read, and a flag says so.

    Raises
    ------
    DataError
        If a table cannot be read, or has no column of identifiers, or one row twice.
    """
    wanted = set(participants)
    tables = {who: dataset / who / f"{who}_sessions.tsv" for who in sorted(wanted)}
    there = [path for path in (dataset / PARTICIPANTS, *tables.values()) if path.is_file()]
    outside = [] if follow_links else [path for path in there if files.leads_out(path, dataset)]
    usable = set(there) - set(outside)
    people, columns = _read(dataset / PARTICIPANTS, "participant_id", names=set(taken), usable=usable)
    names = set(taken) | {column.name for column in columns}  # the same for every participant's table
    sessions: dict[tuple[str, str], Mapping[str, Value]] = {}
    for participant, path in tables.items():
        rows, more = _read(path, "session_id", names=names, usable=usable)
        sessions |= {(participant, label): row for label, row in rows.items()}
        known = {column.name for column in columns}
        columns += [column for column in more if column.name not in known]
    absent = len(wanted - people.keys()) if dataset / PARTICIPANTS in usable else 0
    return Covariates(
        columns=_settled(columns, [*people.values(), *sessions.values()]),
        participants={key: row for key, row in people.items() if key in wanted},
        sessions=sessions,
        flags=tuple(_flags(absent, len(wanted), outside)),
    )


def _flags(absent: int, wanted: int, outside: list[Path]) -> Iterable[str]:
    if absent:
        yield f"participants.tsv has no row for {absent} of {wanted} participants."
    if outside:
        more = (
            f" and {len(outside) - 1} others are links that lead" if outside[1:] else " is a link that leads"
        )
        yield (
            f"{outside[0].name}{more} out of the dataset: not read; copy the tables into it, or allow links "
            "with --follow-links."
        )


def _read(
    path: Path, key: str, *, names: set[str], usable: set[Path]
) -> tuple[dict[str, dict[str, Value]], list[Column]]:
    """Rows of a table by their label with prefix, and the columns; nothing of a table that is not usable."""
    if path not in usable:
        return {}, []
    short, prefix = ("sub-", "participants_") if key == "participant_id" else ("ses-", "sessions_")
    frame = _own(_table(path, key), prefix, names)
    return {_prefixed(label, short): row for label, row in _rows(frame, key)}, list(_columns(frame, path))


def _table(path: Path, key: str) -> pd.DataFrame:
    try:
        text = pd.read_csv(
            path, sep="\t", dtype="str", keep_default_na=False, na_values=["n/a", ""], encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a TSV table") from error
    if key not in text.columns:
        raise DataError(f"no column {key}", file=path, expected="the columns that BIDS asks for")
    found = text[key].dropna()
    if found.duplicated().any():
        double = sorted(set(found[found.duplicated()]))
        raise DataError(f"{', '.join(double[:5])} stands there twice", file=path, expected="one row for each")
    text = text[text[key].notna()]
    rest = parse_frame(text.drop(columns=key).reset_index(drop=True), ())
    rest.insert(0, key, text[key].reset_index(drop=True))
    return rest.dropna(axis="columns", how="all")


def _own(frame: pd.DataFrame, prefix: str, taken: set[str]) -> pd.DataFrame:
    """Rename what would collide with the cohort's own columns (never the identifiers)."""
    return frame.rename(
        columns={
            name: f"{prefix}{name}" for name in frame.columns if name in taken and name not in IDENTIFIERS
        }
    )


def _rows(frame: pd.DataFrame, key: str) -> Iterable[tuple[str, dict[str, Value]]]:
    for row in frame.to_dict("records"):
        known = {str(name): value for name, value in row.items() if not pd.isna(value)}
        yield str(row[key]), {name: value for name, value in known.items() if name not in IDENTIFIERS}


def _columns(frame: pd.DataFrame, path: Path) -> Iterable[Column]:
    described = _dictionary(path.with_suffix(".json"))
    for name in frame.columns:
        if name in IDENTIFIERS:
            continue
        about = described.get(str(name).removeprefix("participants_").removeprefix("sessions_"), {})
        words = about.get("Description") or about.get("LongName") or f"Covariate, from {path.name}."
        yield Column(
            name=str(name),
            dtype="str" if pd.api.types.is_string_dtype(frame[name]) else "float64",
            description=" ".join(str(words).split()),
            units=str(about.get("Units", "")),
        )


def _settled(columns: Iterable[Column], rows: list[Mapping[str, Value]]) -> tuple[Column, ...]:
    """A column that is text in one participant's table is text in all."""
    words = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    return tuple(
        Column(name=c.name, dtype="str" if c.name in words else "float64", description=c.description,
               units=c.units)
        for c in columns
    )  # fmt: skip


def _dictionary(path: Path) -> dict[str, dict[str, Any]]:
    """A data dictionary beside a table; nothing where there is none that can be used."""
    try:
        data = files.read_json(path)
    except DataError:
        return {}
    known = data if isinstance(data, dict) else {}
    return {str(key): value for key, value in known.items() if isinstance(value, dict)}


def _prefixed(label: str, prefix: str) -> str:
    return label if label.startswith(prefix) else prefix + label
