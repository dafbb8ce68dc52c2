"""Evaluation over images: summaries with intervals, strata of lesions, methods against a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bids_scseg.errors import DataError
from bids_scseg.measure.agreement import LimitsOfAgreement, limits_of_agreement
from bids_scseg.measure.calibration import Calibration, add, calibrate
from bids_scseg.measure.evaluate import METRICS, ImageResult
from bids_scseg.measure.overlap import FrocCurve, find_profile, froc_curve
from bids_scseg.measure.statistics import (
    Interval,
    PairedTest,
    bootstrap_f1,
    bootstrap_mean,
    bootstrap_ratio,
    holm,
    paired_wilcoxon,
)

NAN = float("nan")

#: Borders of the lesion size classes, mm³ (ours; a single 1 x 1 x 3 mm voxel is 3 mm³, and lesions of the
#: cord mostly have 20 to 500 mm³).
SIZE_BORDERS_MM3 = (20.0, 50.0, 100.0, 200.0, 500.0)
#: Relative: a volume so little below a border is on it, because voxel volumes come from rounded headers.
SIZE_ROUNDING = 1e-5
#: A bootstrap over fewer subjects gives intervals that are clearly too narrow; the border is ours.
FEW_SUBJECTS = 10
#: More distinct numbers than this in a cohort column are split at their median (ours).
MAX_NUMERIC_GROUPS = 6
#: Where a participant has no value.
NO_VALUE = "n/a"
#: The column name of the rows over everybody.
EVERYBODY = "all"
LEVELS = (
    *(f"C{n}" for n in range(1, 9)),
    *(f"T{n}" for n in range(1, 13)),
    *(f"L{n}" for n in range(1, 6)),
    *(f"S{n}" for n in range(1, 6)),
)
#: Metrics that are tested against the baseline.
TESTED = ("f1", "dice", "sensitivity", "precision", "average_distance_mm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One number over several images of one method.

    Attributes
    ----------
    prediction
        Name of the method.
    column, value
        Cohort column and its value; ``all`` and ``all`` for everybody.
    metric
        Name; pooled ones begin with ``pooled_``.
    interval
        The number with its interval.
    images, undefined
        Images of the group; how many of them are left out because the metric is not defined there: for a
        pooled one, for the subject with all images.
    """

    prediction: str
    column: str
    value: str
    metric: str
    interval: Interval
    images: int
    undefined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumRow:
    """Share of the lesions of one kind that are matched.

    Attributes
    ----------
    prediction
        Name of the method.
    by, stratum
        ``size``, ``level`` or ``column``, and which.
    measure
        ``sensitivity`` (true lesions found) or ``precision`` (predicted lesions that are right).
    lesions, matched
        Counts.
    interval
        Share with its interval over subjects.
    """

    prediction: str
    by: str
    stratum: str
    measure: str
    lesions: int
    matched: int
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A method against the baseline, one number per subject.

    Attributes
    ----------
    baseline, prediction, metric
        What is compared: prediction minus baseline.
    test
        Wilcoxon's test; p uncorrected.
    p_holm
        Corrected over the methods compared, for this metric; NaN where there is no p.
    difference
        Mean difference over subjects with its interval.
    images, undefined
        Images that both methods were given; how many of them lack the metric under either.
    """

    baseline: str
    prediction: str
    metric: str
    test: PairedTest
    p_holm: float
    difference: Interval
    images: int
    undefined: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MethodResult:
    """What one method has beyond the tables.

    Attributes
    ----------
    prediction
        Name.
    images, lesion_free, without_probability
        Images evaluated; of how many the truth is empty; how many have no probability map.
    volume, count
        Agreement of volumes (mm³) and of lesion counts over images.
    froc, calibration
        Over the images with a probability map; None without any.
    """

    prediction: str
    images: int
    lesion_free: int
    without_probability: int
    volume: LimitsOfAgreement
    count: LimitsOfAgreement
    froc: FrocCurve | None
    calibration: Calibration | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The whole.

    Attributes
    ----------
    profile, space
        Rules and lattice; printed in every result.
    baseline
        Method the others are compared with; empty for none.
    results
        Per image and method.
    summary, strata, comparisons, methods
        Over images.
    notes
        What could not be computed and why, one sentence each.
    """

    profile: str
    space: str
    baseline: str
    results: tuple[ImageResult, ...]
    summary: tuple[SummaryRow, ...]
    strata: tuple[StratumRow, ...]
    comparisons: tuple[Comparison, ...]
    methods: tuple[MethodResult, ...]
    notes: tuple[str, ...]


def group_labels(values: Mapping[str, str | None]) -> dict[str, str]:
    """Groups of a cohort column: its values, or two halves at the median of many numbers.

    Parameters
    ----------
    values
        Participant → value as in the table; None where missing.

    Returns
    -------
    Participant → group; missing values form the group ``n/a``.
    """
    known = {name: value for name, value in values.items() if value not in (None, "", NO_VALUE)}
    try:
        numbers = {name: float(str(value)) for name, value in known.items()}
    except ValueError:
        numbers = {}
    if not np.isfinite(list(numbers.values())).all():  # words such as nan and inf are numbers to Python
        numbers = {}
    if len(set(numbers.values())) <= MAX_NUMERIC_GROUPS:
        return {name: str(known.get(name, NO_VALUE)) for name in values}
    middle = float(np.median(list(numbers.values())))
    halves = {
        name: f"up to {middle:g}" if value <= middle else f"over {middle:g}"
        for name, value in numbers.items()
    }
    return {name: halves.get(name, NO_VALUE) for name in values}


def evaluate_all(
    results: Sequence[ImageResult],
    *,
    space: str,
    baseline: str | None = None,
    by: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Summaries, strata and comparisons over images.

    Parameters
    ----------
    results
        Images of one or several methods under one profile.
    space
        Name of the lattice of the evaluation.
    baseline
        Method with which the others are compared.
    by
        Cohort columns; each must be in the groups of every key.
    seed
        Of the bootstrap.

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        Without results, with results of several profiles, or if the baseline or a column is unknown.
    """
    names = tuple(dict.fromkeys(result.key.prediction for result in results))
    profiles = sorted({result.scores.profile for result in results})
    if len(profiles) != 1:
        raise DataError(f"results of {len(profiles)} profiles {profiles}", expected="results of one profile")
    if baseline is not None and baseline not in names:
        raise DataError(f"no prediction {baseline!r} to compare with", expected=f"one of {', '.join(names)}")
    for column in by:
        if any(column not in result.key.groups for result in results):
            raise DataError(f"no cohort column {column!r}", expected="a column that every image has")
    own = {name: [result for result in results if result.key.prediction == name] for name in names}
    strata = tuple(row for name in names for row in strata_rows(own[name], seed=seed))
    methods = tuple(_method(own[name]) for name in names)
    return Evaluation(
        profile=profiles[0],
        space=space,
        baseline=baseline or "",
        results=tuple(results),
        summary=tuple(row for name in names for row in _summary(own[name], by, seed=seed)),
        strata=strata,
        comparisons=() if baseline is None else compare(own, baseline, seed=seed),
        methods=methods,
        notes=tuple(_notes(results, methods, baseline)),
    )


def _summary(results: Sequence[ImageResult], by: Sequence[str], *, seed: int) -> Iterable[SummaryRow]:
    yield from summary_rows(results, EVERYBODY, EVERYBODY, seed=seed)
    for column in by:
        values = sorted({result.key.groups[column] for result in results}, key=_group_order)
        for value in values:
            group = [result for result in results if result.key.groups[column] == value]
            yield from summary_rows(group, column, value, seed=seed)


def _group_order(value: str) -> tuple[bool, bool, str]:
    """The lower half first, missing values last."""
    return value == NO_VALUE, value.startswith("over "), value


def summary_rows(
    results: Sequence[ImageResult], column: str, value: str, *, seed: int = 0
) -> Iterable[SummaryRow]:
    """Means of every metric over images, then pooled ratios; one method, one group.

    Of pooled ratios, ``undefined`` counts the images of subjects who have nothing to divide by.
    """
    table = [result.values for result in results]
    for metric in METRICS:
        defined = [
            (row[metric.name], result.key.subject)
            for row, result in zip(table, results, strict=True)
            if not np.isnan(row[metric.name])
        ]
        interval = bootstrap_mean([v for v, _ in defined], groups=[s for _, s in defined], seed=seed)
        yield SummaryRow(
            prediction=results[0].key.prediction, column=column, value=value, metric=metric.name,
            interval=interval, images=len(results), undefined=len(results) - len(defined),
        )  # fmt: skip
    for name, interval, undefined in _pooled(results, seed=seed):
        yield SummaryRow(
            prediction=results[0].key.prediction, column=column, value=value, metric=name,
            interval=interval, images=len(results), undefined=undefined,
        )  # fmt: skip


def _pooled(results: Sequence[ImageResult], *, seed: int) -> Iterable[tuple[str, Interval, int]]:
    """All lesions (or all volume) of all images at once; with it, the images of subjects that have none.

    F1 leaves nobody out: a subject without true lesions counts by its false ones. Without any true lesion it
    is not defined at all.
    """
    found = _by_subject(results, [r.scores.found for r in results], [r.scores.truth_count for r in results])
    right = _by_subject(
        results,
        [r.scores.predicted_count - r.scores.false_positives for r in results],
        [r.scores.predicted_count for r in results],
    )
    shared = _by_subject(
        results,
        [2 * r.shared_mm3 for r in results],
        [r.scores.truth_mm3 + r.scores.predicted_mm3 for r in results],
    )
    images = list(Counter(result.key.subject for result in results).values())
    f1 = bootstrap_f1(*found, *right, seed=seed)
    yield "pooled_sensitivity", bootstrap_ratio(*found, seed=seed), _without(found[1], images)
    yield "pooled_precision", bootstrap_ratio(*right, seed=seed), _without(right[1], images)
    yield "pooled_f1", f1, len(results) if np.isnan(f1.mean) else 0
    yield "pooled_dice", bootstrap_ratio(*shared, seed=seed), _without(shared[1], images)


def _without(wholes: Sequence[float], images: Sequence[int]) -> int:
    """Images of the subjects whose whole is 0; both in the order of subjects."""
    return sum(count for whole, count in zip(wholes, images, strict=True) if not whole > 0)


def _by_subject(
    results: Sequence[ImageResult], parts: Sequence[float], wholes: Sequence[float]
) -> tuple[list[float], list[float]]:
    sums: dict[str, tuple[float, float]] = {}
    for result, part, whole in zip(results, parts, wholes, strict=True):
        before = sums.get(result.key.subject, (0.0, 0.0))
        sums[result.key.subject] = (before[0] + part, before[1] + whole)
    return [part for part, _ in sums.values()], [whole for _, whole in sums.values()]


def size_class(volume_mm3: float) -> str:
    """Name of the size class of a volume; a border, up to rounding, belongs to the upper class."""
    borders = SIZE_BORDERS_MM3
    index = int(np.searchsorted(borders, volume_mm3 * (1 + SIZE_ROUNDING), side="right"))
    if index == 0:
        return f"under {borders[0]:g} mm³"
    if index == len(borders):
        return f"{borders[-1]:g} mm³ and more"
    return f"{borders[index - 1]:g} to {borders[index]:g} mm³"


def strata_rows(results: Sequence[ImageResult], *, seed: int = 0) -> Iterable[StratumRow]:
    """Sensitivity and precision by size, level and column of the lesions; one method.

    Lesions whose level or column is not known form no stratum of their own: see the notes of the evaluation.
    """
    for by in ("size", "level", "column"):
        for side, measure in (("truth", "sensitivity"), ("prediction", "precision")):
            found: dict[str, list[tuple[str, bool]]] = {}
            for result in results:
                for lesion in result.lesions:
                    name = size_class(lesion.volume_mm3) if by == "size" else getattr(lesion, by)
                    if lesion.side == side and name is not None:
                        found.setdefault(name, []).append((result.key.subject, lesion.matched))
            for stratum in sorted(found, key=stratum_order):
                yield _stratum(results[0].key.prediction, by, stratum, measure, found[stratum], seed=seed)


def _stratum(
    prediction: str, by: str, stratum: str, measure: str, lesions: Sequence[tuple[str, bool]], *, seed: int
) -> StratumRow:
    interval = bootstrap_mean(
        [float(matched) for _, matched in lesions], groups=[subject for subject, _ in lesions], seed=seed
    )
    return StratumRow(
        prediction=prediction,
        by=by,
        stratum=stratum,
        measure=measure,
        lesions=len(lesions),
        matched=sum(matched for _, matched in lesions),
        interval=interval,
    )


def stratum_order(name: str) -> tuple[int, float, str]:
    """Levels from top to bottom, sizes from small to large, other names by letter."""
    if name in LEVELS:
        return 0, LEVELS.index(name), ""
    sizes = [size_class(volume) for volume in (0.0, *SIZE_BORDERS_MM3)]
    return (1, sizes.index(name), "") if name in sizes else (2, 0, name)


def _method(results: Sequence[ImageResult]) -> MethodResult:
    scores = [result.scores for result in results]
    mapped = [result for result in results if result.calibration is not None]
    sums = [result.calibration for result in mapped if result.calibration is not None]
    return MethodResult(
        prediction=results[0].key.prediction,
        images=len(results),
        lesion_free=sum(item.truth_count == 0 for item in scores),
        without_probability=len(results) - len(mapped),
        volume=limits_of_agreement([s.truth_mm3 for s in scores], [s.predicted_mm3 for s in scores]),
        count=limits_of_agreement([s.truth_count for s in scores], [s.predicted_count for s in scores]),
        froc=_froc(mapped) if mapped else None,
        calibration=calibrate(add(sums)) if sums else None,
    )


def _froc(results: Sequence[ImageResult]) -> FrocCurve:
    scores = [[item.probability for item in r.lesions if item.side == "prediction"] for r in results]
    match = find_profile(results[0].scores.profile).match
    return froc_curve([result.table for result in results], scores, match=match)


def compare(
    results: Mapping[str, Sequence[ImageResult]], baseline: str, *, seed: int = 0
) -> tuple[Comparison, ...]:
    """Every other method against the baseline, paired by subject (means over a subject's images).

    Holm's correction runs over the methods compared, for each metric apart.

    Parameters
    ----------
    results
        Method → its images.
    baseline
        One of the methods.
    seed
        Of the bootstrap.
    """
    others = [name for name in results if name != baseline]
    found: list[Comparison] = []
    for metric in TESTED:
        rows = [_compare(results[baseline], results[name], metric, seed=seed) for name in others]
        corrected = holm([row.test.p for row in rows])
        found += [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    return tuple(found)


def _compare(
    baseline: Sequence[ImageResult], other: Sequence[ImageResult], metric: str, *, seed: int
) -> Comparison:
    reference = {result.key.image: result for result in baseline}
    pairs = [(reference[r.key.image], r) for r in other if r.key.image in reference]
    per_subject: dict[str, list[tuple[float, float]]] = {}
    for one, two in pairs:
        values = one.values[metric], two.values[metric]
        if not np.isnan(values).any():
            per_subject.setdefault(two.key.subject, []).append(values)
    means = [np.mean(values, axis=0) for values in per_subject.values()]
    before, after = [float(m[0]) for m in means], [float(m[1]) for m in means]
    differences = [second - first for first, second in zip(before, after, strict=True)]
    return Comparison(
        baseline=baseline[0].key.prediction,
        prediction=other[0].key.prediction,
        metric=metric,
        test=paired_wilcoxon(after, before),
        p_holm=NAN,
        difference=bootstrap_mean(differences, seed=seed),
        images=len(pairs),
        undefined=len(pairs) - sum(len(values) for values in per_subject.values()),
    )


def _notes(
    results: Sequence[ImageResult], methods: Sequence[MethodResult], baseline: str | None
) -> Iterable[str]:
    """What is missing and why."""
    for side, word in (("truth", "true"), ("prediction", "predicted")):
        lesions = [lesion for r in results for lesion in r.lesions if lesion.side == side]
        for what in ("level", "column"):
            unknown = sum(getattr(lesion, what) is None for lesion in lesions)
            if unknown:
                yield (
                    f"The {what} of {unknown} of {len(lesions)} {word} lesions is not known (no lesion table "
                    f"names it); they are in no row by {what}."
                )
    yield from _unequal_images(results)
    for method in methods:
        if method.without_probability:
            yield (
                f"{method.prediction}: {method.without_probability} of {method.images} images have no "
                "probability map; they are left out of FROC and calibration."
            )
    if len(methods) > 1 and baseline is None:
        yield "No baseline was named; the methods are not tested against each other."
    few = len({result.key.subject for result in results})
    if few < FEW_SUBJECTS:
        yield f"Intervals over few subjects (here {few}) are too narrow to be taken at their word."


def _unequal_images(results: Sequence[ImageResult]) -> Iterable[str]:
    """A warning if methods were given different images."""
    given: dict[str, set[str]] = {}
    for result in results:
        given.setdefault(result.key.prediction, set()).add(result.key.image)
    if len({frozenset(images) for images in given.values()}) > 1:
        counts = ", ".join(f"{name} {len(images)}" for name, images in given.items())
        shared = len(set.intersection(*given.values()))
        yield (
            f"The predictions do not have the same images ({counts}; {shared} in common): their means must "
            "not be compared. Tests use common images only."
        )
