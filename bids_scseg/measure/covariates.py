"""What a dataset says of its participants and sessions, joined to the cohort's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bids_scseg.errors import DataError
from bids_scseg.measure.schema import Column, Value, parse_frame

PARTICIPANTS = "participants.tsv"


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


def read_covariates(dataset: Path, participants: Iterable[str], *, taken: Iterable[str] = ()) -> Covariates:
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

    Returns
    -------
    Covariates; empty where the dataset has no such tables. Columns without any value are left out.

    Raises
    ------
    DataError
        If a table cannot be read, or has no column of identifiers, or one row twice.
    """
    wanted, names = set(participants), set(taken)
    path = dataset / PARTICIPANTS
    frame = _table(path, "participant_id") if path.is_file() else pd.DataFrame({"participant_id": []})
    frame = _own(frame, "participants_", names)
    people = {_prefixed(key, "sub-"): row for key, row in _rows(frame, "participant_id", path)}
    columns = list(_columns(frame, "participant_id", path))
    sessions: dict[tuple[str, str], Mapping[str, Value]] = {}
    for participant in sorted(wanted):
        own = dataset / participant / f"{participant}_sessions.tsv"
        if not own.is_file():
            continue
        table = _own(_table(own, "session_id"), "sessions_", names | {column.name for column in columns})
        sessions |= {
            (participant, _prefixed(key, "ses-")): row for key, row in _rows(table, "session_id", own)
        }
        known = {column.name for column in columns}
        columns += [column for column in _columns(table, "session_id", own) if column.name not in known]
    absent = sorted(wanted - people.keys()) if path.is_file() else []
    flags = (
        [f"participants.tsv has no row for {len(absent)} of {len(wanted)} participants."] if absent else []
    )
    return Covariates(
        columns=_settled(columns, [*people.values(), *sessions.values()]),
        participants={key: row for key, row in people.items() if key in wanted},
        sessions=sessions,
        flags=tuple(flags),
    )


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
    keys = {"participant_id", "session_id"}
    return frame.rename(
        columns={name: f"{prefix}{name}" for name in frame.columns if name in taken and name not in keys}
    )


def _rows(frame: pd.DataFrame, key: str, path: Path) -> Iterable[tuple[str, dict[str, Value]]]:
    for row in frame.to_dict("records"):
        yield (
            str(row[key]),
            {str(name): value for name, value in row.items() if name != key and not pd.isna(value)},
        )


def _columns(frame: pd.DataFrame, key: str, path: Path) -> Iterable[Column]:
    described = _dictionary(path.with_suffix(".json"))
    for name in frame.columns:
        if name in (key, "participant_id", "session_id"):
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
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in data.items() if isinstance(value, dict)}
        if isinstance(data, dict)
        else {}
    )


def _prefixed(label: str, prefix: str) -> str:
    return label if label.startswith(prefix) else prefix + label
