"""Uncertainty and tests over subjects: bootstrap intervals, paired tests, correction for several tests.

What cannot be computed is NaN with a reason beside it, never an exception or a silent number. Images of one
subject are not independent: intervals resample subjects, and paired tests take one number per subject.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError

FloatArray = npt.NDArray[np.float64]
NAN = float("nan")

#: Confidence level of all intervals.
LEVEL = 0.95
#: Bootstrap resamples: scipy's default; the ends of a 95 % interval then repeat to about 2 % of its width.
RESAMPLES = 9999
#: Subjects drawn at once, over all resamples of a batch: bounds memory to tens of megabytes.
BATCH_NUMBERS = 2_000_000
#: From six non-zero differences on, an exact two-sided signed-rank test can reach p < 0.05 (2 / 2⁶ = 0.031;
#: with five the smallest p is 0.0625).
MIN_DIFFERENCES = 6
#: With more undefined resamples than this there is no interval: it would speak of a chosen part (ours).
MAX_UNDEFINED = 0.05
#: Differences closer to 0 than this are equal scores that rounding tells apart.
ZERO = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean (or a ratio of sums) with its bootstrap interval.

    Attributes
    ----------
    mean
        The value; NaN without data.
    low, high
        Ends of the interval; NaN where `reason` says why.
    n
        Values that entered: images, or subjects of a ratio.
    subjects
        Independent units that were resampled.
    reason
        Why there is no interval; empty where there is one.
    """

    mean: float
    low: float
    high: float
    n: int
    subjects: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Wilcoxon's signed-rank test of paired scores.

    Attributes
    ----------
    n, zeros
        Pairs; how many of them do not differ (Wilcoxon's rule leaves those out of the ranks).
    mean_difference, median_difference
        Of first minus second, over all pairs; NaN without pairs.
    p
        Two-sided, uncorrected; NaN where `reason` says why.
    reason
        Why there is no p; empty where there is one.
    """

    n: int
    zeros: int
    mean_difference: float
    median_difference: float
    p: float
    reason: str = ""


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of values with a bootstrap interval, subjects being resampled.

    Parameters
    ----------
    values : (n,)
        Scores without NaN: leave undefined ones out and count them.
    groups : (n,), optional
        Subject of each value; all values of a subject are drawn together. Without it each value is a subject.
    level, resamples, seed
        Confidence level, number of resamples, seed: the same give the same interval.

    Returns
    -------
    Interval
        Bias-corrected and accelerated (BCa). No values: all NaN. One subject: no interval. All subjects
        alike: an interval of width 0.

    Raises
    ------
    DataError
        If a value is NaN or infinite, or the lengths differ.
    """
    value = _finite(values)
    labels = list(range(value.size)) if groups is None else list(groups)
    if len(labels) != value.size:
        raise DataError(f"{len(labels)} groups for {value.size} values", expected="one for each")
    number = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    index = np.array([number[label] for label in labels], dtype=np.intp)
    sums = np.bincount(index, weights=value, minlength=len(number)).astype(np.float64)
    counts = np.bincount(index, minlength=len(number)).astype(np.float64)
    return _ratio(sums, counts, n=value.size, level=level, resamples=resamples, seed=seed)


def bootstrap_ratio(
    parts: npt.ArrayLike,
    wholes: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Pooled ratio Σ parts / Σ wholes with a bootstrap interval, for example lesions found of all lesions.

    Parameters
    ----------
    parts, wholes : (subjects,)
        One entry per subject; subjects whose whole is 0 have nothing to say and are left out.
    level, resamples, seed
        As in :func:`bootstrap_mean`.

    Returns
    -------
    Interval; its ``n`` and ``subjects`` are the subjects that entered.

    Raises
    ------
    DataError
        If a number is NaN, infinite or (a whole) negative, or the lengths differ.
    """
    part, whole = _finite(parts), _finite(wholes)
    if part.size != whole.size:
        raise DataError(f"{part.size} parts of {whole.size} wholes", expected="one for each")
    if (whole < 0).any():
        raise DataError(f"a whole of {whole.min():g}", expected="none below 0")
    used = whole > 0
    return _ratio(part[used], whole[used], n=int(used.sum()), level=level, resamples=resamples, seed=seed)


def _ratio(
    parts: FloatArray, wholes: FloatArray, *, n: int, level: float, resamples: int, seed: int
) -> Interval:
    from scipy import stats

    subjects = parts.size
    if subjects == 0:
        return Interval(mean=NAN, low=NAN, high=NAN, n=0, subjects=0, reason="no values")
    mean = float(parts.sum() / wholes.sum())
    if subjects == 1:
        return Interval(mean=mean, low=NAN, high=NAN, n=n, subjects=1, reason="one subject only")
    if np.ptp(parts / wholes) <= ZERO:
        return Interval(mean=mean, low=mean, high=mean, n=n, subjects=subjects)
    found = stats.bootstrap(
        (parts, wholes),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_NUMBERS // subjects),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high), n=n, subjects=subjects)


def bootstrap_f1(
    found: npt.ArrayLike,
    true: npt.ArrayLike,
    right: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Pooled F1 with a percentile bootstrap interval: harmonic mean of Σ found/Σ true, Σ right/Σ predicted.

    Parameters
    ----------
    found, true, right, predicted : (subjects,)
        Lesions: found of the true ones, right of the predicted ones; one entry per subject.
    level, resamples, seed
        As in :func:`bootstrap_mean`.

    Returns
    -------
    Interval; 0 where something is there and nothing found, NaN without true lesions. Resamples without true
    lesions are left out; if they are more than 5 %, there is no interval.

    Raises
    ------
    DataError
        If a number is NaN or infinite.
    """
    sums = np.stack([_finite(values) for values in (found, true, right, predicted)])
    subjects = sums.shape[1]
    value = float(_f1_of(sums.sum(axis=1)))
    reason = "no values" if np.isnan(value) else "one subject only" if subjects == 1 else ""
    low = high = NAN
    if not reason:
        scores = _f1_of(_resampled_sums(sums, resamples=resamples, seed=seed))
        defined = scores[~np.isnan(scores)]
        if defined.size < (1 - MAX_UNDEFINED) * resamples:
            reason = "too many resamples have no true lesion"
        else:
            low, high = (float(end) for end in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean=value, low=low, high=high, n=subjects, subjects=subjects, reason=reason)


def _resampled_sums(sums: FloatArray, *, resamples: int, seed: int) -> FloatArray:
    """Sums over the subjects of each resample, (rows, resamples), from (rows, subjects)."""
    rng = np.random.default_rng(seed)
    subjects = sums.shape[1]
    batch = max(1, BATCH_NUMBERS // subjects)
    share = np.full(subjects, 1 / subjects)
    out = np.empty((sums.shape[0], resamples))
    for start in range(0, resamples, batch):  # drawn one after another: batches do not change what is drawn
        count = min(batch, resamples - start)
        out[:, start : start + count] = sums @ rng.multinomial(subjects, share, size=count).T
    return out


def _f1_of(sums: FloatArray) -> FloatArray:
    """F1 of (4, ...) sums: found, true, right, predicted."""
    found, true, right, predicted = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = np.where(true > 0, found / true, NAN)
        precision = np.where(predicted > 0, right / predicted, 0.0)
        total = sensitivity + precision
        return np.asarray(np.where(total == 0, 0.0, 2 * sensitivity * precision / total))


def paired_wilcoxon(first: npt.ArrayLike, second: npt.ArrayLike) -> PairedTest:
    """Wilcoxon's signed-rank test, two-sided, of paired scores; zero differences are left out and counted.

    Parameters
    ----------
    first, second : (n,)
        Scores of the same subjects in the same order, one per subject, without NaN.

    Returns
    -------
    PairedTest
        Exact where differences are few and without ties (scipy's choice). p is NaN with a reason if fewer
        than six differences are not zero: no result could fall below 0.05 then.

    Raises
    ------
    DataError
        If a score is NaN or infinite, or the lengths differ.
    """
    from scipy import stats

    one, two = _finite(first), _finite(second)
    if one.size != two.size:
        raise DataError(f"{one.size} scores against {two.size}", expected="pairs")
    difference = one - two
    kept = difference[np.abs(difference) > ZERO]
    p, reason = NAN, ""
    if one.size == 0:
        reason = "no pairs"
    elif kept.size == 0:
        reason = "no pair differs"
    elif kept.size < MIN_DIFFERENCES:
        reason = f"{kept.size} of {one.size} pairs differ; below {MIN_DIFFERENCES} no p can fall under 0.05"
    else:
        # Rounding must not break ties: 0.3 - 0.2 and 0.2 - 0.1 are the same difference.
        p = float(stats.wilcoxon(np.round(kept, 12), zero_method="wilcox", alternative="two-sided").pvalue)
    return PairedTest(
        n=one.size,
        zeros=one.size - kept.size,
        mean_difference=float(difference.mean()) if one.size else NAN,
        median_difference=float(np.median(difference)) if one.size else NAN,
        p=p,
        reason=reason,
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction of one family of tests.

    Parameters
    ----------
    p_values
        Uncorrected; NaN are tests that were not made: they stay NaN and do not count in the family.

    Returns
    -------
    Corrected values in the same order, at most 1.

    Raises
    ------
    DataError
        If a p lies outside 0–1.
    """
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    values = np.asarray(list(p_values), dtype=np.float64)
    known = ~np.isnan(values)
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise DataError(f"p-values {values[known].tolist()}", expected="numbers from 0 to 1")
    if known.any():
        values[known] = multipletests(values[known], method="holm")[1]
    return tuple(float(value) for value in values)


def _finite(values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        raise DataError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite",
            expected="defined values",
            remedy="leave undefined values out and count them",
        )
    return array
