"""Experiments: scores of several models, trained from several seeds, on the same images; their summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType

import numpy as np

from bids_scseg.errors import DataError
from bids_scseg.measure.agreement import SurfaceDistances
from bids_scseg.measure.evaluate import ImageKey, ImageResult
from bids_scseg.measure.evaluation import EVERYBODY, Comparison, compare, summary_rows
from bids_scseg.measure.overlap import OverlapScores
from bids_scseg.measure.statistics import Interval

NAN = float("nan")
_UNMEASURED = SurfaceDistances(average=NAN, robust=NAN, largest=NAN)
_OWN = ("arm", "seed", "setting", "case", "subject", "threshold", "min_volume_mm3", "shared_mm3")
#: Columns of ``results.tsv``.
TRIAL_COLUMNS = (*_OWN, *(item.name for item in fields(OverlapScores)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One test case, judged by the model of one arm and seed in one setting.

    Attributes
    ----------
    arm, seed
        Which model.
    setting
        Which sequences it was given.
    case, subject
        Whose image.
    threshold, min_volume_mm3
        Chosen on validation cases in the same setting.
    scores
        Agreement with the truth, where the sequences given have data.
    shared_mm3
        Volume that prediction and truth have in common.
    """

    arm: str
    seed: int
    setting: str
    case: str
    subject: str
    threshold: float
    min_volume_mm3: float
    scores: OverlapScores
    shared_mm3: float

    def to_row(self) -> dict[str, str | float | bool | None]:
        """A row of ``results.tsv``; what is undefined is None."""
        values = {**{name: getattr(self, name) for name in _OWN}, **asdict(self.scores)}
        return {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in values.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> TrialRow:
        """Inverse of :meth:`to_row` (DataError if it is none)."""
        try:
            scores = {item.name: _value(row[item.name], str(item.type)) for item in fields(OverlapScores)}
            own = {
                item.name: _value(row[item.name], str(item.type)) for item in fields(cls) if item.name in _OWN
            }
            return cls(**own, scores=OverlapScores(**scores))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"no row of results ({error!r})", expected=f"columns {list(TRIAL_COLUMNS)}"
            ) from error


def _value(value: object, kind: str) -> object:
    if kind == "str":
        return str(value)
    if kind == "int":
        return int(str(value))
    return NAN if value is None else float(str(value))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrialSummary:
    """One arm in one setting, over its seeds.

    Attributes
    ----------
    arm, setting
        Which.
    seeds
        Those that are there.
    images, lesion_free
        Test images per seed; of how many the truth is empty (in this setting).
    undefined
        Metric to (image, seed) pairs in which it is undefined; they are in no mean.
    metrics
        Metric to mean over images and seeds, with its interval over subjects; pooled ones begin with
        ``pooled_``.
    by_seed
        Metric to its mean over images for each seed, in the order of ``seeds``.
    comparisons
        Metric to the comparison with the baseline in the same setting; empty for the baseline itself.
    """

    arm: str
    setting: str
    seeds: tuple[int, ...]
    images: int
    lesion_free: int
    undefined: Mapping[str, int]
    metrics: Mapping[str, Interval]
    by_seed: Mapping[str, tuple[float, ...]]
    comparisons: Mapping[str, Comparison] = field(default_factory=lambda: MappingProxyType({}))


def summarise_trials(rows: Sequence[TrialRow], *, baseline: str, seed: int = 0) -> tuple[TrialSummary, ...]:
    """Means over images and seeds with intervals over subjects, and each arm against the baseline.

    All images and seeds of a subject are resampled together. Comparisons pair the same image and seed, take
    the mean for each subject, and are corrected (Holm) over the arms, for each setting and metric apart. The
    seeds of an arm differ in initialisation and drawing of patches; intervals over subjects do not contain
    what another seed would change (see ``by_seed``).

    Parameters
    ----------
    rows
        Of any number of arms, seeds and settings.
    baseline
        Arm that the others are compared with; where it is not there, nothing is compared.
    seed
        Of the bootstrap.

    Returns
    -------
    By setting, then arm, each in order of appearance.
    """
    out: list[TrialSummary] = []
    for setting in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == setting]
        arms = {arm: [row for row in here if row.arm == arm] for arm in dict.fromkeys(r.arm for r in here)}
        results = {arm: [_result(row) for row in own] for arm, own in arms.items()}
        found = compare(results, baseline, seed=seed) if baseline in results and len(results) > 1 else ()
        for arm, own in arms.items():
            against = {item.metric: item for item in found if item.prediction == arm}
            out.append(_summary(own, results[arm], against, seed=seed))
    return tuple(out)


def _result(row: TrialRow) -> ImageResult:
    """A row as the evaluation knows images; the same image under another seed is another image."""
    return ImageResult(
        key=ImageKey(prediction=row.arm, image=f"{row.case} {row.seed}", subject=row.subject),
        scores=row.scores,
        distances=_UNMEASURED,
        shared_mm3=row.shared_mm3,
        lesions=(),
        table=np.zeros((1, 1), np.int64),
        calibration=None,
    )


def _summary(
    rows: Sequence[TrialRow],
    results: Sequence[ImageResult],
    comparisons: Mapping[str, Comparison],
    *,
    seed: int,
) -> TrialSummary:
    seeds = tuple(sorted({row.seed for row in rows}))
    over_all = {row.metric: row for row in summary_rows(results, EVERYBODY, EVERYBODY, seed=seed)}
    known = {name: row for name, row in over_all.items() if row.interval.n}
    first = [row for row in rows if row.seed == seeds[0]]
    return TrialSummary(
        arm=rows[0].arm,
        setting=rows[0].setting,
        seeds=seeds,
        images=len(first),
        lesion_free=sum(row.scores.truth_count == 0 for row in first),
        undefined={name: row.undefined for name, row in known.items()},
        metrics={name: row.interval for name, row in known.items()},
        by_seed={name: _by_seed(rows, name, seeds) for name in ("f1", "dice", "sensitivity", "precision")},
        comparisons={name: item for name, item in comparisons.items() if item.images > item.undefined},
    )


def _by_seed(rows: Iterable[TrialRow], metric: str, seeds: Sequence[int]) -> tuple[float, ...]:
    kept: dict[int, list[float]] = {seed: [] for seed in seeds}
    for row in rows:
        value = float(getattr(row.scores, metric))
        if not np.isnan(value):
            kept[row.seed].append(value)
    return tuple(float(np.mean(values)) if values else NAN for values in kept.values())
