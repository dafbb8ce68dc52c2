"""Which sessions of a cohort may be compared, and which images stand out among those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]
Side = Literal["low", "high", "both"]

#: Sessions that differ in one of these were not measured alike.
STRATUM_KEYS = (
    "model", "model_sha256", "threshold", "seed_threshold", "seed_threshold_alone", "min_volume_mm3",
    "cord_method", "cord_sha256", "numerical_version",
)  # fmt: skip
#: Modified z-score from which a value stands out (Iglewicz and Hoaglin 1993).
OUTLIER_FROM = 3.5
#: With fewer sessions medians and deviations say little (ours).
MIN_SESSIONS = 10
MAD_TO_SIGMA = 1.4826
#: Range from the 10th to the 90th percentile in standard deviations, normal distribution.
RANGE_TO_SIGMA = 2.563
#: Mean absolute deviation to standard deviation: where more than half of the values are alike.
MEAN_TO_SIGMA = 1.2533


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Sessions measured alike: a letter, how many, and what they have in common (name, value)."""

    name: str
    sessions: int
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A metric that is watched for outliers.

    Attributes
    ----------
    name
        Column, or its ending where it repeats per sequence.
    words
        What it is called.
    side
        Which direction is bad.
    least
        A value nearer to 0 than this is never odd, however alike the others are (ours).
    log
        Whether it is judged on a logarithmic scale (of itself plus ``least``), because it is positive and
        skewed.
    """

    name: str
    words: str
    side: Side
    least: float = 0.0
    log: bool = False


WATCHED_ONCE = (
    Watched(name="cord_area_mm2", words="cord area", side="both"),
    Watched(
        name="cord_area_odd_mm", words="length of cord with an odd area", side="high", least=10.0, log=True
    ),
    Watched(name="not_examined_mm", words="cord not examined", side="high", least=5.0),
    Watched(
        name="near_threshold_mass",
        words="share of probability near the threshold",
        side="high",
        least=0.05,
        log=True,
    ),
)
WATCHED_PER_SEQUENCE = (
    Watched(name="cord_cnr", words="contrast-to-noise ratio of the cord", side="low", log=True),
    Watched(name="cord_noise", words="noise in the cord", side="high", log=True),
    Watched(name="coverage", words="share of the cord covered", side="low"),
    Watched(
        name="centerline_residual_mm", words="distance of the cord from its centerline", side="high",
        least=0.5,
        log=True,
    ),
    Watched(name="extrapolated_mm", words="extrapolated centerline", side="high", least=20.0, log=True),
    Watched(name="seam_mismatch_mm", words="mismatch at a slab seam", side="high", least=1.0, log=True),
    Watched(name="edge_share", words="share of slices cut by the field of view", side="high", least=0.02),
)  # fmt: skip


def assign_strata(sessions: pd.DataFrame) -> tuple[list[str | None], tuple[Stratum, ...]]:
    """Sort sessions with results into strata that were measured alike.

    Parameters
    ----------
    sessions
        Session table with ``state`` and the columns of :data:`STRATUM_KEYS`.

    Returns
    -------
    letters, strata
        For each row the stratum's letter (A is the largest), None without a result; the strata by letter.
    """
    keys: list[tuple[str, ...] | None] = [
        tuple(_word(row[name]) for name in STRATUM_KEYS) if row["state"] == "done" else None
        for row in sessions.to_dict("records")
    ]
    counts: dict[tuple[str, ...], int] = {}
    for key in keys:
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts, key=lambda key: (-counts[key], key))
    letters = {key: _letter(number) for number, key in enumerate(ordered)}
    strata = tuple(
        Stratum(
            name=letters[key], sessions=counts[key], facts=tuple(zip(STRATUM_KEYS, key, strict=True))
        )
        for key in ordered
    )  # fmt: skip
    return [None if key is None else letters[key] for key in keys], strata


def _word(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "not recorded"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _letter(number: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)


def find_outliers(sessions: pd.DataFrame, sequences: Sequence[str]) -> list[str | None]:
    """What stands out in each session among those of its stratum, in words.

    Parameters
    ----------
    sessions
        Session table with ``stratum``; metrics that are no columns of it are passed over.
    sequences
        Sequences whose metrics repeat.

    Returns
    -------
    For each row one text (reasons separated by semicolons), None if nothing stands out. Nothing does in a
    stratum with fewer than 10 values of a metric.
    """
    reasons: list[list[str]] = [[] for _ in range(len(sessions))]
    for watched, column in _watched(sessions, sequences):
        values = np.asarray(sessions[column].astype("float64"), dtype=np.float64)
        for stratum in sorted({name for name in sessions["stratum"] if isinstance(name, str)}):
            here = (sessions["stratum"] == stratum).fillna(False).to_numpy(dtype=bool) & np.isfinite(values)
            score = np.zeros(len(values))
            score[here] = robust_z(
                np.log(np.maximum(values[here] + watched.least, 1e-6)) if watched.log else values[here]
            )
            middle = float(np.median(values[here])) if here.any() else 0.0
            for row in np.flatnonzero(_stands_out(score, values, watched)):
                reasons[row].append(_reason(watched, column, values[row], middle, score[row]))
    return ["; ".join(found) or None for found in reasons]


def _watched(sessions: pd.DataFrame, sequences: Sequence[str]) -> Iterable[tuple[Watched, str]]:
    for watched in WATCHED_ONCE:
        if watched.name in sessions.columns:
            yield watched, watched.name
    for name in sequences:
        for watched in WATCHED_PER_SEQUENCE:
            if f"{name}_{watched.name}" in sessions.columns:
                yield watched, f"{name}_{watched.name}"


def robust_z(values: npt.ArrayLike) -> FloatArray:
    """Modified z-scores: distance from the median in units of the scaled median absolute deviation.

    Where more than half of the values are alike, the range of the middle 80 % stands for it, or where that is
    0 too the mean absolute deviation; zeros for fewer than 10 values, and where all are alike.

    Parameters
    ----------
    values : (n,)
        Finite numbers.
    """
    value = np.asarray(values, dtype=np.float64)
    if value.size < MIN_SESSIONS:
        return np.zeros(value.size)
    off = value - np.median(value)
    low, high = np.percentile(off, (10, 90))
    scales = (
        MAD_TO_SIGMA * float(np.median(np.abs(off))),
        float(high - low) / RANGE_TO_SIGMA,
        MEAN_TO_SIGMA * float(np.abs(off).mean()),
    )
    rounding = 1e-9 * float(np.abs(off).max())
    scale = next((size for size in scales if size > rounding), None)
    return np.zeros(value.size) if scale is None else off / scale


def _stands_out(score: FloatArray, values: FloatArray, watched: Watched) -> npt.NDArray[np.bool_]:
    size = {"low": -score, "high": score, "both": np.abs(score)}[watched.side]
    return np.asarray((size >= OUTLIER_FROM) & (np.abs(np.nan_to_num(values)) >= watched.least))


def _reason(watched: Watched, column: str, value: float, middle: float, score: float) -> str:
    sequence = column.removesuffix(watched.name).rstrip("_")
    words = f"{sequence}: {watched.words}" if sequence else watched.words[0].upper() + watched.words[1:]
    verdict = "high" if score > 0 else "low"
    z = f"{score:+.1f}".replace("-", "\u2212")
    return f"{words} is {verdict}: {value:.3g}, cohort median {middle:.3g} (robust z {z})"
