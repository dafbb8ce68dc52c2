"""The cohort in numbers: means with intervals, loads per level, differences between groups.

All of it takes the sessions of one stratum that nobody has rated "fail". Sessions of one participant are not
independent: intervals resample participants, and comparisons take each participant's first session.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bids_scseg.measure.schema import Column, Value, to_frame
from bids_scseg.measure.session import CORD_LEVELS
from bids_scseg.measure.statistics import bootstrap_mean, bootstrap_ratio, holm

FloatArray = npt.NDArray[np.float64]

#: What is summarised and compared: column, name, factor and unit for people.
METRICS: tuple[tuple[str, str, float, str], ...] = (
    ("lesion_count", "Lesions", 1.0, ""),
    ("lesion_volume_mm3", "Lesion volume", 1.0, "mm³"),
    ("lesion_load", "Lesion load", 100.0, "%"),
)
#: Bootstrap resamples for the page: ends of the intervals repeat to about 5 % of their width.
RESAMPLES = 1999
#: A group needs so many participants (ours: the normal approximation of the rank tests holds from about 5).
MIN_GROUP = 5
#: A covariate with more values than this is a number, not a set of groups; one with fewer numbers is a set.
MOST_GROUPS = 6
#: Participants from which a rank correlation is computed (ours).
MIN_PAIRS = 10
#: Covariates that are compared; more would leave nothing after the correction (ours).
MOST_COVARIATES = 12
#: 97.5th percentile of the normal distribution: ends of 95 % intervals.
Z_95 = 1.959964

SUMMARY_COLUMNS: tuple[Column, ...] = (
    Column(name="metric", dtype="str", description="What is summarised; a column of the session table."),
    Column(name="level", dtype="str", description="Vertebral level; n/a for the whole cord."),
    Column(name="stratum", dtype="str", description="Stratum of the sessions."),
    Column(name="sessions", dtype="Int64", description="Sessions with a value (of the level: examined)."),
    Column(name="participants", dtype="Int64", description="Their participants."),
    Column(name="mean", dtype="float64", description="Mean over the sessions."),
    Column(name="ci_low", dtype="float64", description="Lower end of its 95 % interval (bootstrap)."),
    Column(name="ci_high", dtype="float64", description="Upper end."),
    Column(name="median", dtype="float64", description="Median over the sessions."),
    Column(name="q1", dtype="float64", description="First quartile."),
    Column(name="q3", dtype="float64", description="Third quartile."),
    Column(name="with_lesion", dtype="float64", description="Share of the sessions with a value above 0."),
    Column(name="with_lesion_ci_low", dtype="float64", description="Lower end of its 95 % interval."),
    Column(name="with_lesion_ci_high", dtype="float64", description="Upper end."),
)  # fmt: skip

COMPARISON_COLUMNS: tuple[Column, ...] = (
    Column(name="covariate", dtype="str", description="What the participants differ in."),
    Column(name="metric", dtype="str", description="What is compared; a column of the session table."),
    Column(name="stratum", dtype="str", description="Stratum of the sessions."),
    Column(
        name="test",
        dtype="str",
        description="Mann-Whitney U (two groups), Kruskal-Wallis (more) or Spearman (a number); two-sided.",
    ),
    Column(name="participants", dtype="Int64", description="Participants compared, one session each."),
    Column(name="groups", dtype="str", description="Groups with their size and median."),
    Column(
        name="effect",
        dtype="str",
        description="Kind of effect size: Cliff's delta (second minus first group), epsilon squared, or "
        "Spearman's rho.",
    ),
    Column(name="effect_size", dtype="float64", description="Effect size."),
    Column(
        name="ci_low",
        dtype="float64",
        description="Lower end of its 95 % interval; n/a for epsilon squared.",
    ),
    Column(name="ci_high", dtype="float64", description="Upper end."),
    Column(name="p", dtype="float64", description="p-value, uncorrected."),
    Column(name="p_holm", dtype="float64", description="p-value, corrected over this table (Holm)."),
    Column(name="left_out", dtype="Int64", description="Participants of the stratum without a value."),
    Column(name="left_out_why", dtype="str", description="Why participants were left out."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Sessions that the statistics leave out, and why."""

    reason: str
    sessions: int


def counted(sessions: pd.DataFrame, stratum: str) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
    """The sessions that enter the statistics of a stratum, and those that do not.

    Parameters
    ----------
    sessions
        Session table with ``state``, ``stratum`` and ``rating``.
    stratum
        Its letter.
    """
    done = sessions["state"] == "done"
    own = done & (sessions["stratum"] == stratum).fillna(False).astype(bool)
    failed = (sessions["rating"] == "fail").fillna(False).astype(bool)
    blind = sessions["lesion_count"].isna()
    reasons = (
        ("without a result", ~done),
        ("of another stratum", done & ~own),
        ("rated fail", own & failed),
        ("no cord examined", own & ~failed & blind),
    )
    left = tuple(LeftOut(reason=name, sessions=int(rows.sum())) for name, rows in reasons if rows.any())
    return sessions[own & ~failed & ~blind], left


def summarise(sessions: pd.DataFrame, stratum: str) -> pd.DataFrame:
    """Means with intervals of the whole cord and of each vertebral level.

    Parameters
    ----------
    sessions
        The counted sessions (:func:`counted`).
    stratum
        Its letter, for the table.

    Returns
    -------
    Frame with the columns of :data:`SUMMARY_COLUMNS`; levels that no session shows are left out.
    """
    rows = [_summary(sessions, name, None, name) for name, *_ in METRICS]
    rows += [_summary(sessions, "lesion_load", level, f"{level}_lesion_load") for level in CORD_LEVELS]
    return to_frame(
        ({**row, "stratum": stratum} for row in rows if row["sessions"] or row["level"] is None),
        SUMMARY_COLUMNS,
    )


def _summary(sessions: pd.DataFrame, metric: str, level: str | None, column: str) -> dict[str, Value]:
    known = sessions[sessions[column].notna()]
    values = known[column].astype("float64").to_numpy()
    people = known["participant_id"].tolist()
    mean = bootstrap_mean(values, groups=people, resamples=RESAMPLES)
    above = (
        pd.DataFrame({"who": people, "n": 1.0, "yes": (values > 0).astype(float)}).groupby("who").sum()
        if len(values)
        else pd.DataFrame({"n": [], "yes": []})
    )
    share = bootstrap_ratio(above["yes"].to_numpy(float), above["n"].to_numpy(float), resamples=RESAMPLES)
    quartiles = np.percentile(values, (25, 50, 75)) if len(values) else np.full(3, np.nan)
    return {
        "metric": metric, "level": level, "sessions": len(values), "participants": len(set(people)),
        "mean": mean.mean, "ci_low": mean.low, "ci_high": mean.high,
        "q1": float(quartiles[0]), "median": float(quartiles[1]), "q3": float(quartiles[2]),
        "with_lesion": share.mean, "with_lesion_ci_low": share.low, "with_lesion_ci_high": share.high,
    }  # fmt: skip


def compare(sessions: pd.DataFrame, covariates: Sequence[str], stratum: str) -> pd.DataFrame:
    """Differences of the lesion metrics between groups of participants, corrected by Holm's method.

    Parameters
    ----------
    sessions
        The counted sessions (:func:`counted`), by participant and session.
    covariates
        Columns; those that are not fit for a comparison are passed over, as are those beyond the twelfth.
    stratum
        Its letter, for the table.

    Returns
    -------
    Frame with the columns of :data:`COMPARISON_COLUMNS`; empty where nothing can be compared.
    """
    first = sessions.drop_duplicates("participant_id")
    fit = [name for name in covariates if _kind(first[name]) is not None][:MOST_COVARIATES]
    rows = [_comparison(first, name, metric) for name in fit for metric, *_ in METRICS]
    corrected = holm([float(str(row["p"])) for row in rows])
    return to_frame(
        ({**row, "stratum": stratum, "p_holm": p} for row, p in zip(rows, corrected, strict=True)),
        COMPARISON_COLUMNS,
    )


def _kind(values: pd.Series) -> str | None:
    """``groups``, ``number``, or None for a covariate that cannot be compared."""
    known = values.dropna()
    counts = known.value_counts()
    if 2 <= len(counts) <= MOST_GROUPS:
        return "groups" if (counts >= MIN_GROUP).sum() >= 2 else None
    return "number" if pd.api.types.is_numeric_dtype(values) and len(known) >= MIN_PAIRS else None


def _comparison(first: pd.DataFrame, covariate: str, metric: str) -> dict[str, Value]:
    known = first[first[covariate].notna() & first[metric].notna()]
    groups = known.groupby(known[covariate].astype("object"), sort=True)[metric]
    left = len(first) - len(known)
    why = [f"{left} without a value"] if left else []
    if _kind(first[covariate]) == "number":
        found = _correlation(known[covariate].to_numpy(float), known[metric].to_numpy(float))
        return {
            "covariate": covariate, "metric": metric, "participants": len(known), "left_out": left,
            "left_out_why": "; ".join(why) or None, **found,
        }  # fmt: skip
    sets = {str(name): values.to_numpy(float) for name, values in groups}
    small = {name: values for name, values in sets.items() if values.size < MIN_GROUP}
    sets = {name: values for name, values in sets.items() if name not in small}
    lost = sum(values.size for values in small.values())
    why += [f"{lost} in groups of fewer than {MIN_GROUP} ({', '.join(small)})"] if small else []
    return {
        "covariate": covariate, "metric": metric, "participants": len(known) - lost, "left_out": left + lost,
        "left_out_why": "; ".join(why) or None, **_difference(sets),
    }  # fmt: skip


def _correlation(x: FloatArray, y: FloatArray) -> dict[str, Value]:
    from scipy import stats

    if x.size < MIN_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"test": "Spearman", "effect": "Spearman's rho", "effect_size": None, "p": float("nan")}
    result = stats.spearmanr(x, y)
    rho = float(result.statistic)
    # Fisher's transformation with the standard error of Bonett and Wright (2000).
    reach = Z_95 * np.sqrt((1 + rho**2 / 2) / (x.size - 3))
    at = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    return {
        "test": "Spearman", "effect": "Spearman's rho", "effect_size": rho, "p": float(result.pvalue),
        "ci_low": float(np.tanh(at - reach)), "ci_high": float(np.tanh(at + reach)),
    }  # fmt: skip


def _difference(sets: dict[str, FloatArray]) -> dict[str, Value]:
    from scipy import stats

    words = "; ".join(f"{name}: n = {v.size}, median {np.median(v):.3g}" for name, v in sets.items())
    values = list(sets.values())
    same = len(values) < 2 or np.ptp(np.concatenate(values)) == 0
    if len(values) <= 2:
        known: dict[str, Value] = {"test": "Mann-Whitney U", "effect": "Cliff's delta", "groups": words}
        if same:
            return {**known, "effect_size": 0.0 if len(values) == 2 else None, "p": float("nan")}
        low, high = _delta_interval(values[0], values[1])
        p = float(stats.mannwhitneyu(values[0], values[1]).pvalue)
        return {
            **known, "effect_size": cliffs_delta(values[0], values[1]), "p": p, "ci_low": low, "ci_high": high
        }  # fmt: skip
    known = {"test": "Kruskal-Wallis", "effect": "epsilon squared", "groups": words}
    if same:
        return {**known, "effect_size": 0.0, "p": float("nan")}
    result = stats.kruskal(*values)
    n = sum(v.size for v in values)
    size = (float(result.statistic) - len(values) + 1) / (n - len(values))
    return {**known, "effect_size": max(size, 0.0), "p": float(result.pvalue)}


def cliffs_delta(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Cliff's delta: how much more often a value of the second group exceeds one of the first than not.

    Parameters
    ----------
    first, second : (n,), (m,)
        At least one finite number each.

    Returns
    -------
    −1 (all of the second below all of the first) to 1.
    """
    one, two = np.sort(np.asarray(first, np.float64)), np.asarray(second, np.float64)
    below = np.searchsorted(one, two, side="left").sum()
    above = one.size * two.size - np.searchsorted(one, two, side="right").sum()
    return float((below - above) / (one.size * two.size))


def _delta_interval(first: FloatArray, second: FloatArray) -> tuple[float, float]:
    """Percentile bootstrap, the groups resampled separately; repeatable."""
    rng = np.random.default_rng(0)
    found = [
        cliffs_delta(rng.choice(first, first.size), rng.choice(second, second.size)) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def comparable(columns: Iterable[Column], sessions: pd.DataFrame) -> list[str]:
    """Covariates by which the page may colour, split and compare: those with at least two values."""
    return [
        column.name
        for column in columns
        if column.name in sessions.columns and sessions[column.name].dropna().nunique() >= 2
    ]
