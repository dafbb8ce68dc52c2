"""The sessions of a participant in time, and which of them are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import pandas as pd

from bids_scseg.measure.ratings import EXCLUDING
from bids_scseg.measure.strata import STRATUM_KEYS

DAYS_PER_YEAR = 365.25
NUMBER = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPair:
    """Two sessions that follow each other.

    Attributes
    ----------
    participant
        With prefix.
    before, after
        Sessions in time, with prefix.
    order
        ``dates`` or ``labels``.
    days
        Between them; None without dates.
    refusal
        Why they must not be compared; empty if they may be.
    note
        What to know of the comparison; may be empty.
    """

    participant: str
    before: str
    after: str
    order: str
    days: float | None = None
    refusal: str = ""
    note: str = ""

    @property
    def labels(self) -> tuple[str, str]:
        """Labels of the sessions, earlier first."""
        return f"{self.participant}_{self.before}", f"{self.participant}_{self.after}"


def session_order(label: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key of session labels: their numbers compare as numbers, so M6 comes before M12.

    Labels that differ in leading zeros alone are ordered by their text.
    """
    parts = NUMBER.split(label)  # text and digits take turns, so that like is compared with like
    return tuple(int(part) if n % 2 else part for n, part in enumerate(parts)), label


def session_pairs(
    sessions: pd.DataFrame, times: Mapping[str, datetime] | None = None
) -> tuple[list[SessionPair], dict[str, tuple[tuple[str, float | None], ...]]]:
    """Pairs of sessions that follow each other, for each participant with two sessions or more that count.

    Sessions count that are done and not rated "fail". They are ordered by their dates where all of the
    participant are known, else by label (:func:`session_order`). Only neighbours are paired: n - 1 pairs say
    all that happened, each over the shortest time.

    Parameters
    ----------
    sessions
        Session table (:mod:`bids_scseg.measure.cohort`).
    times
        Session label → time of acquisition.

    Returns
    -------
    Pairs, and the participants' trajectories (see :class:`CohortChanges`). Pairs of different strata are
    refused.
    """
    known = times or {}
    usable = sessions[(sessions["state"] == "done") & sessions["session_id"].notna()]
    usable = usable[(usable["rating"] != EXCLUDING).fillna(True).astype(bool)]
    pairs: list[SessionPair] = []
    trajectories = {}
    for participant, rows in usable.groupby("participant_id", sort=True):
        if len(rows) < 2:
            continue
        records: dict[str, dict[str, Any]] = {
            str(row["session_id"]): {str(key): value for key, value in row.items()}
            for row in rows.to_dict("records")
        }
        ordered = _ordered(str(participant), sorted(records, key=session_order), known)
        trajectories[str(participant)] = tuple(
            (f"{participant}_{session}", _round(years)) for session, years in ordered
        )
        for (before, first), (after, last) in pairwise(ordered):
            dated = first is not None and last is not None
            pairs.append(
                SessionPair(
                    participant=str(participant),
                    before=before,
                    after=after,
                    order="dates" if dated else "labels",
                    days=(last - first) * DAYS_PER_YEAR if first is not None and last is not None else None,
                    refusal=_unlike(records[before], records[after]),
                    note=_hands(records[before], records[after]),
                )
            )
    return pairs, trajectories


def _round(years: float | None) -> float | None:
    return None if years is None else round(years, 4)


def _ordered(
    participant: str, sessions: Sequence[str], times: Mapping[str, datetime]
) -> list[tuple[str, float | None]]:
    """Sessions in time, with years since the first; None where they are ordered by label."""
    dates = [times.get(f"{participant}_{session}") for session in sessions]
    if any(date is None for date in dates):
        return [(session, None) for session in sessions]
    found = [(date, session) for date, session in zip(dates, sessions, strict=True) if date]
    dated = sorted(found, key=lambda item: item[0])  # stable: of one date, the order of the labels
    first = dated[0][0]
    return [(session, (date - first).total_seconds() / 86400 / DAYS_PER_YEAR) for date, session in dated]


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Why two sessions must not be compared; empty if they may be."""
    for row in (before, after):
        if pd.isna(row["lesion_count"]):
            return f"no cord was examined in {row['session_id']}"
    if before["stratum"] == after["stratum"]:
        return ""
    keys = [key for key in STRATUM_KEYS if str(before.get(key)) != str(after.get(key))]
    return f"measured otherwise: different {', '.join(keys) or 'strata'}"


def _hands(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Whether a reader decided on the lesions of one session only: the noise of readers is another one."""
    first, last = (_word(row.get("mask_origin")) or "model" for row in (before, after))
    return "" if first == last else f"lesions decided by {first} before, by {last} after"


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
