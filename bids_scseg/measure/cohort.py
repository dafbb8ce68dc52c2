"""The cohort's long tables, built from what the participant level wrote and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bids_scseg.errors import DataError
from bids_scseg.measure.lesions import LESION_COLUMNS, sequence_columns
from bids_scseg.measure.schema import Column, Value, data_dictionary, parse_frame, to_frame
from bids_scseg.measure.session import SESSION_COLUMNS, examined_columns, level_columns

#: Endings of the columns that repeat per sequence: they tell which sequences a table was made with.
LESION_SUFFIXES = tuple(column.name.removeprefix("x") for column in sequence_columns(("x",)))
SESSION_SUFFIX = examined_columns(("x",))[0].name.removeprefix("x")
#: A session is done in this state; any other is listed as not done.
DONE = "done"
#: Columns of which all sessions of a cohort ought to have the same value.
UNIFORM = ("model", "model_sha256", "threshold", "version")

KEY_COLUMNS: tuple[Column, ...] = (
    Column(name="participant_id", dtype="str", description="Participant, with the prefix sub-."),
    Column(
        name="session_id",
        dtype="str",
        description="Session, with the prefix ses-; n/a if there are no sessions.",
    ),
)
STATE_COLUMNS: tuple[Column, ...] = (
    Column(name="state", dtype="str", description="How processing ended: done, or what it ended with."),
    Column(name="cause", dtype="str", description="Why it was not done."),
    Column(name="remedy", dtype="str", description="What can be done about it."),
)
PARTICIPANT_COLUMNS: tuple[Column, ...] = (
    KEY_COLUMNS[0],
    Column(name="sessions", dtype="Int64", description="Number of sessions that were processed to the end."),
    Column(name="sessions_failed", dtype="Int64", description="Number of sessions that were not."),
    Column(name="first_session", dtype="str", description="First session done, by label."),
    Column(name="last_session", dtype="str", description="Last session done, by label."),
    Column(name="mean_lesion_count", dtype="float64", description="Lesions per session done, mean."),
    Column(
        name="mean_lesion_volume_mm3",
        dtype="float64",
        units="mm^3",
        description="Total lesion volume per session done, mean.",
    ),
    Column(
        name="mean_lesion_load",
        dtype="float64",
        description="Lesion volume divided by cord volume, mean of the sessions done.",
    ),
    Column(
        name="last_lesion_load",
        dtype="float64",
        description="Lesion volume divided by cord volume, last session done.",
    ),
    Column(
        name="min_examined_length_mm",
        dtype="float64",
        units="mm",
        description="Shortest examined length of cord among the sessions done.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOutputs:
    """What the participant level left of one session; paths that do not exist are None.

    Attributes
    ----------
    subject, session
        BIDS labels without prefix; session None where there are none.
    lesions
        Lesion table of the fused instances (``…_seg-lesions_dseg.tsv``).
    summary
        ``…_summary.json``: the session row (:mod:`bids_scseg.measure.session`) at the top or under
        ``measures``.
    log
        ``logs/sub-X[_ses-Y].json`` with ``state``, ``cause``, ``remedy``.
    """

    subject: str
    session: str | None = None
    lesions: Path | None = None
    summary: Path | None = None
    log: Path | None = None

    @property
    def label(self) -> str:
        """``sub-X`` or ``sub-X_ses-Y``."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def keys(self) -> dict[str, Value]:
        """Values of the key columns."""
        return {
            "participant_id": f"sub-{self.subject}",
            "session_id": f"ses-{self.session}" if self.session else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortTables:
    """The cohort.

    Attributes
    ----------
    lesions, sessions, participants
        One row per lesion, per session (failed ones too, without numbers), per participant.
    dictionaries
        BIDS data dictionary of each of the three, by its name.
    failed
        (session label, cause) of sessions without results.
    flags
        What to know before comparing sessions, one sentence each.
    """

    lesions: pd.DataFrame
    sessions: pd.DataFrame
    participants: pd.DataFrame
    dictionaries: dict[str, dict[str, dict[str, str]]]
    failed: tuple[tuple[str, str], ...]
    flags: tuple[str, ...]


def build(outputs: Iterable[SessionOutputs]) -> CohortTables:
    """Put the sessions' outputs together.

    Parameters
    ----------
    outputs
        One entry per session, in any order.

    Returns
    -------
    CohortTables, sorted by participant and session; empty frames with the same columns for no sessions. A
    session counts as done if its log says so (or there is no log) and its summary and lesion table are there.

    Raises
    ------
    DataError
        If a file cannot be read, or a session is given twice.
    """
    ordered = sorted(outputs, key=lambda item: (item.subject, item.session or ""))
    labels = [item.label for item in ordered]
    double = sorted({label for label in labels if labels.count(label) > 1})
    if double:
        raise DataError(f"session given twice: {', '.join(double)}", expected="one entry per session")
    states = [_state(item) for item in ordered]
    done = [item for item, state in zip(ordered, states, strict=True) if state["state"] == DONE]
    sessions, session_schema = _sessions(ordered, states)
    lesions, lesion_schema = _lesions(done)
    participants = to_frame(_participants(sessions), PARTICIPANT_COLUMNS)
    return CohortTables(
        lesions=lesions,
        sessions=sessions,
        participants=participants,
        dictionaries={
            "lesions": data_dictionary(lesion_schema),
            "sessions": data_dictionary(session_schema),
            "participants": data_dictionary(PARTICIPANT_COLUMNS),
        },
        failed=tuple(
            (item.label, str(state["cause"] or state["state"]))
            for item, state in zip(ordered, states, strict=True)
            if state["state"] != DONE
        ),
        flags=tuple(_flags(sessions)),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read ({error})", file=path, expected="a JSON object", remedy="run the session again"
        ) from error
    if not isinstance(data, dict):
        raise DataError(
            "not a JSON object", file=path, expected="a JSON object", remedy="run the session again"
        )
    return data


def _state(item: SessionOutputs) -> dict[str, Value]:
    log = {} if item.log is None else _read_json(item.log)
    state = {name: log.get(name) for name in ("state", "cause", "remedy")}
    state["state"] = state["state"] or DONE
    if state["state"] == DONE and (item.summary is None or item.lesions is None):
        state |= {"state": "incomplete", "cause": "outputs are missing", "remedy": "run the session again"}
    return state


def _measures(item: SessionOutputs) -> dict[str, Value]:
    if item.summary is None:
        return {}
    data = _read_json(item.summary)
    return dict(data.get("measures", data))


def _sessions(
    ordered: Sequence[SessionOutputs], states: Sequence[Mapping[str, Value]]
) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    found = [
        _measures(item) if state["state"] == DONE else {} for item, state in zip(ordered, states, strict=True)
    ]
    sequences = _sequences([name for row in found for name in row], (SESSION_SUFFIX,))
    measured = SESSION_COLUMNS + examined_columns(sequences) + level_columns()
    schema = KEY_COLUMNS + STATE_COLUMNS + measured
    names = {column.name for column in measured}
    rows = [
        item.keys | dict(state) | {name: value for name, value in row.items() if name in names}
        for item, state, row in zip(ordered, states, found, strict=True)
    ]
    return to_frame(rows, schema), schema


def _lesions(done: Sequence[SessionOutputs]) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    tables = [(item, _read_table(item.lesions)) for item in done if item.lesions is not None]
    sequences = _sequences([str(name) for _, table in tables for name in table.columns], LESION_SUFFIXES)
    schema = KEY_COLUMNS + LESION_COLUMNS + sequence_columns(sequences)
    names = {column.name for column in schema}
    rows: list[dict[str, Value]] = []
    for item, table in tables:
        typed = parse_frame(table, schema)
        kept = [name for name in typed.columns if name in names]
        for values in typed[kept].astype(object).itertuples(index=False, name=None):
            plain = (None if pd.isna(value) else value for value in values)
            rows.append(item.keys | dict(zip(kept, plain, strict=True)))
    return to_frame(rows, schema), schema


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read ({error})", file=path, expected="a TSV table", remedy="run the session again"
        ) from error


def _sequences(names: Iterable[str], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Sequences whose columns occur, in order of appearance."""
    own = {column.name for column in (*LESION_COLUMNS, *SESSION_COLUMNS)}
    found = [
        name.removesuffix(suffix)
        for name in names
        for suffix in suffixes
        if name.endswith(suffix) and name not in own
    ]
    return tuple(dict.fromkeys(found))


def _participants(sessions: pd.DataFrame) -> Iterable[dict[str, Value]]:
    """One row per participant: sessions are sorted, so the first row is the first session."""
    for participant, rows in sessions.groupby("participant_id", sort=True):
        done = rows[rows["state"] == DONE]
        labels = [None if pd.isna(label) else str(label) for label in done["session_id"]]
        yield {
            "participant_id": str(participant),
            "sessions": len(done),
            "sessions_failed": len(rows) - len(done),
            "first_session": labels[0] if labels else None,
            "last_session": labels[-1] if labels else None,
            "mean_lesion_count": _mean(done["lesion_count"]),
            "mean_lesion_volume_mm3": _mean(done["lesion_volume_mm3"]),
            "mean_lesion_load": _mean(done["lesion_load"]),
            "last_lesion_load": float(done["lesion_load"].iloc[-1]) if labels else None,
            "min_examined_length_mm": float(done["examined_length_mm"].min()) if labels else None,
        }


def _mean(values: pd.Series) -> float | None:
    known = values.dropna().astype("float64")
    return float(known.mean()) if len(known) else None


def _flags(sessions: pd.DataFrame) -> Iterable[str]:
    done = sessions[sessions["state"] == DONE]
    for name in UNIFORM:
        values = sorted({str(value) for value in done[name].dropna()})
        if len(values) > 1:
            yield f"Sessions differ in {name}: {', '.join(values)}; their numbers are not comparable."
    kinds = sorted({str(value) for value in done["arc_origin"].dropna()})
    if len(kinds) > 1:
        yield f"Arc length counts from different origins: {', '.join(kinds)}."
    failed = len(sessions) - len(done)
    if failed:
        yield f"{failed} of {len(sessions)} sessions have no results."
