"""Changes between the sessions of participants: tables of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from bids_scseg.measure.longitudinal import FATES, Match, tracks
from bids_scseg.measure.schema import Column, Value, to_frame
from bids_scseg.measure.timeline import DAYS_PER_YEAR, SessionPair
from bids_scseg.measure.volume_noise import Change

State = Literal["compared", "totals only", "refused"]
Alignment = Literal["registration", "start", "levels", "not needed", "none"]

#: Shorter intervals are not made into changes per year: noise would be multiplied (ours).
LEAST_DAYS = 30.0

CHANGE_COLUMNS: tuple[Column, ...] = (
    Column(name="participant_id", dtype="str", description="Participant, with the prefix sub-."),
    Column(name="session_before", dtype="str", description="Earlier session, with the prefix ses-."),
    Column(name="session_after", dtype="str", description="Later session, with the prefix ses-."),
    Column(
        name="track",
        dtype="Int64",
        description="Number of the lesion over all sessions of the participant; lesions that merged or split "
        "share one.",
    ),
    Column(
        name="fate",
        dtype="str",
        description="What became of it: stable, enlarged, shrunken, new, resolved, merged, split, or not "
        "examined by the other session.",
    ),
    Column(
        name="lesions_before", dtype="str", description="Its numbers in the earlier session, joined by +."
    ),
    Column(name="lesions_after", dtype="str", description="Its numbers in the later session, joined by +."),
    Column(
        name="volume_before_mm3",
        dtype="float64",
        units="mm^3",
        description="Summed volume in the earlier session; 0 if it was not there.",
    ),
    Column(
        name="volume_after_mm3",
        dtype="float64",
        units="mm^3",
        description="Summed volume in the later session; 0 if it was not there.",
    ),
    Column(
        name="volume_change_mm3",
        dtype="float64",
        units="mm^3",
        description="Later minus earlier volume; n/a if it was not examined.",
    ),
    Column(
        name="volume_change_sd_mm3",
        dtype="float64",
        units="mm^3",
        description="Standard deviation of that change by measurement noise.",
    ),
    Column(name="z", dtype="float64", description="Change divided by its standard deviation."),
    Column(
        name="beyond_noise",
        dtype="boolean",
        description="Whether the change is beyond noise: z of 1.96 or more in either direction.",
    ),
    Column(
        name="examined_elsewhere",
        dtype="float64",
        description="Share of its place that the other session examined; the smallest of its lesions.",
    ),
    Column(
        name="other_probability",
        dtype="float64",
        description="Of a lesion without partner: highest lesion probability at its place in the other "
        "session; close below the threshold, or the seed threshold where there is one, it may be the same "
        "lesion.",
    ),
    Column(
        name="sequences_differ",
        dtype="str",
        description="Sequences that cover its place in one of the two sessions only; n/a if none.",
    ),
    Column(
        name="shift_mm",
        dtype="float64",
        units="mm",
        description="Distance between its centres in the two sessions, in cord coordinates.",
    ),
    Column(
        name="level",
        dtype="str",
        description="Vertebral level of its largest lesion in the later session, else in the earlier one.",
    ),
    Column(name="column", dtype="str", description="Column of the cord of that lesion."),
)
_VOLUME = (
    ("before", "Volume of the lesions that count, earlier session."),
    ("after", "Volume of the lesions that count, later session."),
    ("change", "Later minus earlier."),
    ("change_ci_low", "Lower end of the change's 95 % interval by measurement noise."),
    ("change_ci_high", "Upper end of that interval."),
)
PAIR_COLUMNS: tuple[Column, ...] = (
    *CHANGE_COLUMNS[:3],
    Column(
        name="state",
        dtype="str",
        description="compared; totals only (lesions could not be matched); or refused.",
    ),
    Column(name="reason", dtype="str", description="Why lesions were not matched, or what to know."),
    Column(name="order", dtype="str", description="What the sessions are ordered by: dates or labels."),
    Column(
        name="days", dtype="float64", units="day", description="Days between them; n/a without their dates."
    ),
    Column(
        name="alignment",
        dtype="str",
        description="How places were brought together: registration of the images; start (centerlines or "
        "headers: registering found nothing better); levels (no image: vertebral levels); not needed (no "
        "lesions); none.",
    ),
    Column(
        name="similarity",
        dtype="float64",
        description="Correlation of the aligned images round the cord.",
    ),
    Column(
        name="inverse_mm",
        dtype="float64",
        units="mm",
        description="Mean difference between registering there and back, along the cord.",
    ),
    Column(
        name="apart_mm",
        dtype="float64",
        units="mm",
        description="Median distance between the aligned centerlines.",
    ),
    Column(
        name="sequences_differ",
        dtype="str",
        description="Sequences that only one of the two sessions has; n/a if none.",
    ),
    Column(name="lesion_count_before", dtype="Int64", description="Lesions, earlier session."),
    Column(name="lesion_count_after", dtype="Int64", description="Lesions, later session."),
    *(
        Column(name=fate.replace(" ", "_"), dtype="Int64", description=f"Rows of the lesion table: {fate}.")
        for fate in FATES
    ),
    Column(
        name="new_beyond_noise",
        dtype="Int64",
        description="New lesions whose volume is beyond noise.",
    ),
    Column(
        name="volume_basis",
        dtype="str",
        description="Which lesions count in the volumes: those at places that both sessions examined, or all "
        "(lesions were not matched).",
    ),
    *(
        Column(name=f"lesion_volume_{name}_mm3", dtype="float64", units="mm^3", description=words)
        for name, words in _VOLUME
    ),
    Column(name="lesion_volume_z", dtype="float64", description="Change divided by its standard deviation."),
    Column(
        name="lesion_volume_change_mm3_per_year",
        dtype="float64",
        units="mm^3/year",
        description="Change per year; n/a without dates or below 30 days.",
    ),
    Column(
        name="cord_area_change_mm2",
        dtype="float64",
        units="mm^2",
        description="Change of the median area of the cord mask, each session over the cord it shows.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairFindings:
    """What the comparison of two sessions came to.

    Attributes
    ----------
    state, reason
        Whether lesions were matched, and why not.
    alignment
        How places were brought together.
    facts
        ``similarity``, ``inverse_mm`` and ``apart_mm`` of the alignment, where known.
    matches
        What became of the lesions; empty unless compared.
    extras
        For each match ``other_probability`` and ``sequences_differ``.
    total
        Change of the total volume; None if refused or not known.
    """

    state: State
    reason: str = ""
    alignment: Alignment = "none"
    facts: Mapping[str, float] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    extras: tuple[Mapping[str, Value], ...] = ()
    total: Change | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortChanges:
    """Changes over a cohort.

    Attributes
    ----------
    lesions, pairs
        One row per match of lesions, per pair of sessions.
    trajectories
        Participant → (session label, years since the first session or None) in time; those with two usable
        sessions or more.
    flags
        What to know, one sentence each.
    """

    lesions: pd.DataFrame
    pairs: pd.DataFrame
    trajectories: Mapping[str, tuple[tuple[str, float | None], ...]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def tabulate(
    pairs: Sequence[SessionPair],
    findings: Sequence[PairFindings],
    *,
    sessions: pd.DataFrame,
    lesions: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of what became of lesions, and of pairs of sessions.

    Parameters
    ----------
    pairs, findings
        The pairs, by participant and in time, and what their comparison came to.
    sessions, lesions
        The cohort's tables.

    Returns
    -------
    Frames with :data:`CHANGE_COLUMNS` and :data:`PAIR_COLUMNS`.
    """
    rows = {_label(row): row for row in sessions.to_dict("records")}
    known = {
        (_label(row), int(str(row["index"]))): row
        for row in lesions.to_dict("records")
        if not pd.isna(row["index"])
    }
    numbers = _tracks(pairs, findings)
    changes = [
        _change_row(pair, match, extra, known, numbers)
        for pair, found in zip(pairs, findings, strict=True)
        for match, extra in zip(found.matches, found.extras, strict=True)
    ]
    pair_rows = [
        _pair_row(pair, found, rows[pair.labels[0]], rows[pair.labels[1]])
        for pair, found in zip(pairs, findings, strict=True)
    ]
    return to_frame(changes, CHANGE_COLUMNS), to_frame(pair_rows, PAIR_COLUMNS)


def _label(row: Mapping[object, object]) -> str:
    return "_".join(str(row[key]) for key in ("participant_id", "session_id") if isinstance(row[key], str))


def _tracks(pairs: Sequence[SessionPair], findings: Sequence[PairFindings]) -> dict[tuple[str, int], int]:
    """(session label, lesion) → track, numbered within each participant."""
    own: dict[str, list[tuple[str, str, Sequence[Match]]]] = {}
    for pair, found in zip(pairs, findings, strict=True):
        own.setdefault(pair.participant, []).append((*pair.labels, found.matches))
    out: dict[tuple[str, int], int] = {}
    for matched in own.values():
        out |= tracks(matched)
    return out


def _change_row(
    pair: SessionPair,
    match: Match,
    extra: Mapping[str, Value],
    lesions: Mapping[tuple[str, int], Mapping[object, object]],
    numbers: Mapping[tuple[str, int], int],
) -> dict[str, Value]:
    label, own = (pair.labels[1], match.after) if match.after else (pair.labels[0], match.before)
    largest = max((lesions[label, number] for number in own), key=lambda row: float(str(row["volume_mm3"])))
    judged = match.fate != "not examined"
    return {
        **_keys(pair),
        "track": numbers[label, own[0]],
        "fate": match.fate,
        "lesions_before": "+".join(map(str, match.before)) or None,
        "lesions_after": "+".join(map(str, match.after)) or None,
        "volume_before_mm3": match.volume_before_mm3 if judged or match.before else None,
        "volume_after_mm3": match.volume_after_mm3 if judged or match.after else None,
        "volume_change_mm3": match.change.mm3 if judged else None,
        "volume_change_sd_mm3": match.change.sd_mm3 if judged else None,
        "z": match.change.z if judged else None,
        "beyond_noise": match.change.beyond_noise if judged else None,
        "examined_elsewhere": match.examined,
        "shift_mm": match.shift_mm,
        "level": _text(largest["level"]),
        "column": _text(largest["column"]),
        **extra,
    }


def _pair_row(
    pair: SessionPair,
    found: PairFindings,
    before: Mapping[object, object],
    after: Mapping[object, object],
) -> dict[str, Value]:
    row: dict[str, Value] = {
        **_keys(pair),
        "state": found.state,
        "reason": "; ".join(words for words in (found.reason, pair.note) if words) or None,
        "order": pair.order,
        "days": pair.days,
        "alignment": found.alignment,
        **found.facts,
        "sequences_differ": differing(before["sequences"], after["sequences"]),
    }
    if found.state == "refused":
        return row
    if found.state == "compared":
        fates = [match.fate for match in found.matches]
        row |= {fate.replace(" ", "_"): fates.count(fate) for fate in FATES}
        row["new_beyond_noise"] = sum(
            match.fate == "new" and match.change.beyond_noise for match in found.matches
        )
    return row | {
        "lesion_count_before": _whole(before["lesion_count"]),
        "lesion_count_after": _whole(after["lesion_count"]),
        "cord_area_change_mm2": _difference(before["cord_area_mm2"], after["cord_area_mm2"]),
        **_volumes(pair, found, before, after),
    }


def _volumes(
    pair: SessionPair,
    found: PairFindings,
    before: Mapping[object, object],
    after: Mapping[object, object],
) -> dict[str, Value]:
    if found.total is None:
        return {}
    low, high = found.total.interval
    judged = [match for match in found.matches if match.fate != "not examined"]
    compared = found.state == "compared"
    year = DAYS_PER_YEAR / pair.days if pair.days is not None and pair.days >= LEAST_DAYS else None
    return {
        "volume_basis": "examined by both" if compared else "all",
        "lesion_volume_before_mm3": sum(match.volume_before_mm3 for match in judged)
        if compared
        else _number(before["lesion_volume_mm3"]),
        "lesion_volume_after_mm3": sum(match.volume_after_mm3 for match in judged)
        if compared
        else _number(after["lesion_volume_mm3"]),
        "lesion_volume_change_mm3": found.total.mm3,
        "lesion_volume_change_ci_low_mm3": low,
        "lesion_volume_change_ci_high_mm3": high,
        "lesion_volume_z": found.total.z,
        "lesion_volume_change_mm3_per_year": None if year is None else found.total.mm3 * year,
    }


def differing(one: object, other: object) -> str | None:
    """Sequences that only one of two sessions has ("STIR only before"); None if none."""
    first, last = (set(str(text).split("+")) if isinstance(text, str) else set() for text in (one, other))
    parts = [
        f"{'+'.join(sorted(names))} only {when}"
        for names, when in ((first - last, "before"), (last - first, "after"))
        if names
    ]
    return "; ".join(parts) or None


def _keys(pair: SessionPair) -> dict[str, Value]:
    return {
        "participant_id": pair.participant, "session_before": pair.before, "session_after": pair.after,
    }  # fmt: skip


def flags_of(pairs: Sequence[SessionPair], findings: Iterable[PairFindings]) -> tuple[str, ...]:
    """What to know of the comparisons, one sentence for each kind of trouble."""
    states = [found.state for found in findings]
    out = []
    for state, words in (
        ("refused", "are not compared: measured otherwise, or without examined cord"),
        ("totals only", "could not be aligned: only their totals are compared"),
    ):
        if count := states.count(state):  # type: ignore[arg-type]
            out.append(f"{count} of {len(pairs)} pairs of sessions {words} (group/session_changes.tsv).")
    return tuple(out)


def _number(value: object) -> float | None:
    if value is None or value is pd.NA or not isinstance(value, int | float | np.number):
        return None
    return float(value) if np.isfinite(value) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else round(number)


def _difference(before: object, after: object) -> float | None:
    first, last = _number(before), _number(after)
    return None if first is None or last is None else last - first


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
