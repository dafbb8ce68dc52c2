"""The cohort's long tables, built from what the participant level wrote and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bids_scseg import files
from bids_scseg.errors import DataError
from bids_scseg.measure.comparisons import (
    COMPARISON_COLUMNS,
    SUMMARY_COLUMNS,
    LeftOut,
    comparable,
    compare,
    counted,
    summarise,
)
from bids_scseg.measure.covariates import Covariates
from bids_scseg.measure.lesions import LESION_COLUMNS, sequence_columns
from bids_scseg.measure.quality import CORD_COLUMNS, SCANNER_COLUMNS, sequence_quality_columns
from bids_scseg.measure.ratings import EXCLUDING, RATING_COLUMNS, Rating, Ratings
from bids_scseg.measure.schema import Column, Value, data_dictionary, parse_frame, to_frame
from bids_scseg.measure.session import MODEL_ORIGIN, SESSION_COLUMNS, examined_columns, level_columns
from bids_scseg.measure.strata import STRATUM_KEYS, Stratum, assign_strata, find_outliers
from bids_scseg.measure.timeline import session_order

#: Endings of the columns that repeat per sequence: they tell which sequences a table was made with.
LESION_SUFFIXES = tuple(column.name.removeprefix("x") for column in sequence_columns(("x",)))
SESSION_SUFFIX = examined_columns(("x",))[0].name.removeprefix("x")
#: A session is done in this state; any other is listed as not done.
DONE = "done"
VOXEL_COLUMN = Column(
    name="anchor_voxel",
    dtype="str",
    description="Voxel size of the anchor as acquired, in tenths of a millimetre, from the smallest side to "
    "the largest.",
)
#: What people may want to compare beside a dataset's own covariates.
OWN_COVARIATES = (*SCANNER_COLUMNS, VOXEL_COLUMN)
#: How the sidecar of a cord mask begins, and what it says of who made the mask.
CORD_BY = "Spinal cord, by "
CORD_SOURCES = {
    "built-in network": "builtin",
    "sct_deepseg": "sct",
    "given mask": "given",
    "manual correction": "corrected",
}

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
RUN_COLUMNS: tuple[Column, ...] = (
    Column(
        name="stratum",
        dtype="str",
        description="Sessions with the same letter were measured alike: same model, thresholds, smallest "
        "lesion, cord method and weights, and numerical version. Numbers of different strata must not be "
        "pooled.",
    ),
    Column(
        name="seed_threshold",
        dtype="float64",
        description="Lesions whose probability nowhere reached this were dropped; 0: there was no such rule.",
    ),
    Column(
        name="seed_threshold_alone",
        dtype="float64",
        description="The same where one sequence alone covers; 0: as elsewhere.",
    ),
    Column(name="min_volume_mm3", dtype="float64", units="mm^3", description="Smaller lesions were dropped."),
    Column(
        name="cord_method", dtype="str", description="What finds the cord in images without a given mask."
    ),
    Column(
        name="cord_sha256",
        dtype="str",
        description="SHA-256 of what finds the cord: weights of the built-in network, or the Spinal Cord "
        "Toolbox's release and network; n/a where neither does.",
    ),
    Column(
        name="cord_source",
        dtype="str",
        description="Who made the cords of its images: builtin, sct, given (masks of the user's), corrected "
        "(by a reader), joined by +.",
    ),
    VOXEL_COLUMN,
    Column(
        name="numerical_version",
        dtype="str",
        description="Version of the computations: the same input gives the same numbers.",
    ),
    Column(
        name="outliers",
        dtype="str",
        description="What stands out among the sessions of the stratum (robust z-score from 3.5), separated "
        "by semicolons; n/a if nothing does.",
    ),
)
PARTICIPANT_COLUMNS: tuple[Column, ...] = (
    KEY_COLUMNS[0],
    Column(name="sessions", dtype="Int64", description="Number of sessions that were processed to the end."),
    Column(name="sessions_failed", dtype="Int64", description="Number of sessions that were not."),
    Column(
        name="sessions_left_out",
        dtype="Int64",
        description="Number of sessions done that are left out of what follows: rated fail, or of another "
        "stratum.",
    ),
    Column(name="stratum", dtype="str", description="Stratum of the sessions that count."),
    Column(name="first_session", dtype="str", description="First session that counts, by label."),
    Column(name="last_session", dtype="str", description="Last session that counts, by label."),
    Column(name="mean_lesion_count", dtype="float64", description="Lesions per session that counts, mean."),
    Column(
        name="mean_lesion_volume_mm3",
        dtype="float64",
        units="mm^3",
        description="Total lesion volume per session that counts, mean.",
    ),
    Column(
        name="mean_lesion_load",
        dtype="float64",
        description="Lesion volume divided by cord volume, mean of the sessions that count.",
    ),
    Column(
        name="last_lesion_load",
        dtype="float64",
        description="Lesion volume divided by cord volume, last session that counts.",
    ),
    Column(
        name="min_examined_length_mm",
        dtype="float64",
        units="mm",
        description="Shortest examined length of cord among the sessions that count.",
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
    cords
        Sidecars of the cord masks.
    """

    subject: str
    session: str | None = None
    lesions: Path | None = None
    summary: Path | None = None
    log: Path | None = None
    cords: tuple[Path, ...] = ()

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
    summary, comparisons
        The largest stratum in numbers, and differences between groups in it.
    strata
        What was measured alike.
    left_out
        Sessions that summary and comparisons leave out.
    covariates
        Columns of the session table that describe participants, sessions and scanners.
    maps
        Session label → lesions in cord coordinates (:mod:`bids_scseg.measure.cordmap`).
    """

    lesions: pd.DataFrame
    sessions: pd.DataFrame
    participants: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    dictionaries: dict[str, dict[str, dict[str, str]]]
    failed: tuple[tuple[str, str], ...]
    flags: tuple[str, ...]
    strata: tuple[Stratum, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    covariates: tuple[Column, ...] = ()
    maps: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def build(
    outputs: Iterable[SessionOutputs],
    *,
    covariates: Covariates | None = None,
    ratings: Ratings | None = None,
) -> CohortTables:
    """Put the sessions' outputs together.

    Parameters
    ----------
    outputs
        One entry per session, in any order.
    covariates
        What the raw dataset says of participants and sessions.
    ratings
        People's verdicts; sessions rated "fail" leave the statistics.

    Returns
    -------
    CohortTables, sorted by participant and session; empty frames with the same columns for no sessions. A
    session counts as done if its log says so (or there is no log) and its summary and lesion table are there.

    Raises
    ------
    DataError
        If a file cannot be read, or a session is given twice.
    """
    ordered = sorted(outputs, key=lambda item: (item.subject, session_order(item.session or "")))
    labels = [item.label for item in ordered]
    if len(set(labels)) < len(labels):
        double = sorted({label for label in labels if labels.count(label) > 1})
        raise DataError(f"session given twice: {', '.join(double)}", expected="one entry per session")
    states = [_state(item) for item in ordered]
    done = [item for item, state in zip(ordered, states, strict=True) if state["state"] == DONE]
    summaries = [
        _summary(item) if state["state"] == DONE else {} for item, state in zip(ordered, states, strict=True)
    ]
    known, judged = covariates or Covariates(), ratings or Ratings()
    sessions, session_schema = _sessions(ordered, states, summaries, covariates=known, ratings=judged)
    strata, main = _strata(sessions)
    lesions, lesion_schema = _lesions(done)
    participants = to_frame(_participants(sessions, main), PARTICIPANT_COLUMNS)
    used, left_out = counted(sessions, main)
    described = (*known.columns, *OWN_COVARIATES)
    return CohortTables(
        lesions=lesions,
        sessions=sessions,
        participants=participants,
        summary=summarise(used, main),
        comparisons=compare(used, comparable(described, used), main),
        dictionaries=_dictionaries(lesion_schema, session_schema),
        failed=tuple(
            (item.label, str(state["cause"] or state["state"]))
            for item, state in zip(ordered, states, strict=True)
            if state["state"] != DONE
        ),
        flags=(*_flags(sessions, strata), *known.flags, *judged.flags),
        strata=strata,
        left_out=left_out,
        covariates=described,
        maps={
            item.label: found["cord_map"]
            for item, found in zip(ordered, summaries, strict=True)
            if isinstance(found.get("cord_map"), Mapping)
        },
    )


def _dictionaries(
    lesions: Sequence[Column], sessions: Sequence[Column]
) -> dict[str, dict[str, dict[str, str]]]:
    schemas = {
        "lesions": lesions, "sessions": sessions, "participants": PARTICIPANT_COLUMNS,
        "summary": SUMMARY_COLUMNS, "comparisons": COMPARISON_COLUMNS,
    }  # fmt: skip
    return {name: data_dictionary(schema) for name, schema in schemas.items()}


def measured_columns(outputs: Iterable[SessionOutputs]) -> set[str]:
    """Names of the session table's own columns, which covariates must not bear."""
    sequences = _sequences(
        [name for item in outputs if item.summary is not None for name in _summary(item)], (SESSION_SUFFIX,)
    )
    return {column.name for column in (*KEY_COLUMNS, *STATE_COLUMNS, *RUN_COLUMNS, *RATING_COLUMNS)} | {
        column.name for column in _measured(sequences)
    }


def _measured(sequences: Sequence[str]) -> tuple[Column, ...]:
    return (
        *SESSION_COLUMNS, *SCANNER_COLUMNS, *CORD_COLUMNS, *examined_columns(sequences),
        *sequence_quality_columns(sequences), *level_columns(),
    )  # fmt: skip


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


def _summary(item: SessionOutputs) -> dict[str, Any]:
    """The session row with cord map and run; what the summary does not say of the run comes from the log."""
    if item.summary is None:
        return {}
    data = _read_json(item.summary)
    row = dict(data.get("measures", data))
    log = {} if item.log is None else _read_json(item.log).get("run") or {}
    run = {**log, **(data.get("run") or {})}
    version = log.get("numerical_version") or run.get("numerical_version")
    return {
        **row,
        "mask_origin": row.get("mask_origin") or MODEL_ORIGIN,  # summaries before there were corrections
        "cord_method": run.get("cord_method"),
        "cord_sha256": run.get("cord_sha256"),
        "cord_source": _cord_source(item.cords),
        "anchor_voxel": _voxel(row.get(f"{row.get('anchor')}_voxel_mm")),
        **{name: _number(run.get(name, 0.0)) for name in ("seed_threshold", "seed_threshold_alone")},
        "min_volume_mm3": _number(run.get("min_volume_mm3")),
        "numerical_version": version,
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cord_source(sidecars: Iterable[Path]) -> str | None:
    """Who made the cords of a session's images, sorted; None where no sidecar says so."""
    found = set()
    for path in sidecars:
        try:
            data = files.read_json(path)
        except DataError:
            continue  # verification is there to find damaged files
        said = str(data.get("Description", "")) if isinstance(data, dict) else ""
        who = said.removeprefix(CORD_BY)
        found |= {kind for words, kind in CORD_SOURCES.items() if said != who and who.startswith(words)}
    return "+".join(sorted(found)) or None


def _voxel(sides: object) -> str | None:
    """``0.47 x 0.47 x 3.3`` as ``0.5 × 0.5 × 3.3 mm``: scanners of one protocol differ in the third digit."""
    try:
        return " × ".join(f"{float(side):.1f}".removesuffix(".0") for side in str(sides).split(" x ")) + " mm"
    except ValueError:
        return None


def _sessions(
    ordered: Sequence[SessionOutputs],
    states: Sequence[Mapping[str, Value]],
    summaries: Sequence[Mapping[str, Any]],
    *,
    covariates: Covariates,
    ratings: Ratings,
) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    sequences = _sequences([name for row in summaries for name in row], (SESSION_SUFFIX,))
    measured = _measured(sequences)
    schema = (*KEY_COLUMNS, *STATE_COLUMNS, *RUN_COLUMNS, *RATING_COLUMNS, *covariates.columns, *measured)
    names = {column.name for column in (*measured, *RUN_COLUMNS)}
    rows = [
        covariates.of(f"sub-{item.subject}", f"ses-{item.session}" if item.session else None)
        | item.keys
        | dict(state)
        | _rating(ratings.by_label.get(item.label))
        | {name: value for name, value in row.items() if name in names}
        for item, state, row in zip(ordered, states, summaries, strict=True)
    ]
    frame = to_frame(rows, schema)
    frame["stratum"] = pd.Series(assign_strata(frame)[0], dtype="str")
    frame["outliers"] = pd.Series(find_outliers(frame, sequences), dtype="str")
    return frame, schema


def _rating(found: Rating | None) -> dict[str, Value]:
    if found is None:
        return {}
    return {
        "rating": found.rating or None, "rating_note": found.note or None, "rated": found.rated or None,
    }  # fmt: skip


def _strata(sessions: pd.DataFrame) -> tuple[tuple[Stratum, ...], str]:
    """The strata, and the letter of the largest."""
    strata = assign_strata(sessions)[1]
    return strata, strata[0].name if strata else "A"


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


def _participants(sessions: pd.DataFrame, main: str) -> Iterable[dict[str, Value]]:
    """One row per participant: sessions are sorted, so the first row is the first session."""
    for participant, rows in sessions.groupby("participant_id", sort=True):
        done = rows[rows["state"] == DONE]
        passed = done[(done["rating"] != EXCLUDING).fillna(True).astype(bool)]
        letters = passed["stratum"].tolist()
        own = main if main in letters or not letters else max(sorted(set(letters)), key=letters.count)
        counts = passed[passed["stratum"] == own]
        labels = [None if pd.isna(label) else str(label) for label in counts["session_id"]]
        yield {
            "participant_id": str(participant),
            "sessions": len(done),
            "sessions_failed": len(rows) - len(done),
            "sessions_left_out": len(done) - len(counts),
            "stratum": own if labels else None,
            "first_session": labels[0] if labels else None,
            "last_session": labels[-1] if labels else None,
            "mean_lesion_count": _mean(counts["lesion_count"]),
            "mean_lesion_volume_mm3": _mean(counts["lesion_volume_mm3"]),
            "mean_lesion_load": _mean(counts["lesion_load"]),
            "last_lesion_load": float(counts["lesion_load"].iloc[-1]) if labels else None,
            "min_examined_length_mm": float(counts["examined_length_mm"].min()) if labels else None,
        }


def _mean(values: pd.Series) -> float | None:
    known = values.dropna().astype("float64")
    return float(known.mean()) if len(known) else None


def _flags(sessions: pd.DataFrame, strata: Sequence[Stratum]) -> Iterable[str]:
    done = sessions[sessions["state"] == DONE]
    if len(strata) > 1:
        facts = [dict(stratum.facts) for stratum in strata]
        for name in STRATUM_KEYS:
            values = sorted({found[name] for found in facts})
            if len(values) > 1:
                yield f"Sessions differ in {name}: {', '.join(values)}; their numbers are not comparable."
    by_hand = int((done["mask_origin"].fillna(MODEL_ORIGIN) != MODEL_ORIGIN).sum())
    if by_hand:
        yield (
            f"In {by_hand} of {len(done)} sessions a reader corrected the lesions (mask_origin); those of "
            "the others are the model's."
        )
    kinds = sorted({str(value) for value in done["arc_origin"].dropna()})
    if len(kinds) > 1:
        yield f"Arc length counts from different origins: {', '.join(kinds)}."
    cords = done["cord_source"].dropna().astype(str).value_counts().sort_index()
    if len(cords) > 1:
        counts = ", ".join(f"{name} in {count}" for name, count in cords.items())
        yield f"Cords come from different sources (cord_source): {counts} sessions; they err differently."
    sources = sorted({str(value) for value in done["levels_from"].dropna()})
    if len(sources) > 1:
        yield f"Vertebral levels come from different sources (levels_from): {', '.join(sources)}."
    failed = len(sessions) - len(done)
    if failed:
        yield f"{failed} of {len(sessions)} sessions have no results."
