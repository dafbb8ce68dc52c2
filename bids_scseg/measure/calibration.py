"""Calibration of probability maps: does a voxel of probability 0.7 belong to a lesion in 7 of 10 cases?

Sums are kept per image and added, so a cohort is as cheap as an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, GeometryError

FloatArray = npt.NDArray[np.float64]
NAN = float("nan")

#: Bins of equal width between 0 and 1 (a usual number; ours).
BINS = 10
#: Voxels below this probability are counted apart: nearly all of an image is sure background, and would make
#: any map look calibrated (ours).
CERTAIN_BELOW = 0.01
#: Rounding that a probability may exceed its range by.
ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationSums:
    """Sums over voxels, by bin of probability; add them over images with :func:`add`.

    Attributes
    ----------
    voxels, lesion : (bins,) int64
        Voxels of probability :data:`CERTAIN_BELOW` and more; how many of them are lesion.
    probability : (bins,) float64
        Sum of their probabilities.
    squared_error
        Sum of their squared errors.
    certain_voxels, certain_lesion
        The same counts for voxels below: sure background, and lesion missed there.
    certain_probability
        Sum of those voxels' probabilities.
    """

    voxels: npt.NDArray[np.int64]
    lesion: npt.NDArray[np.int64]
    probability: FloatArray
    squared_error: float
    certain_voxels: int
    certain_lesion: int
    certain_probability: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Calibration curve and its summary.

    Attributes
    ----------
    low, high : (bins,) float64
        Edges of the bins.
    voxels : (bins,) int64
        Voxels in each.
    predicted, observed : (bins,) float64
        Mean probability and share of lesion; NaN in empty bins.
    expected_error
        Expected calibration error: mean over voxels of |observed - predicted| of their bin; NaN without
        voxels.
    largest_error
        The largest of these over bins; NaN without voxels.
    brier
        Mean squared error of the same voxels; NaN without.
    whole_error
        Expected calibration error over all voxels, sure background included as one bin more.
    certain_voxels, certain_lesion
        Voxels below :data:`CERTAIN_BELOW`, and lesion voxels among them.
    """

    low: FloatArray
    high: FloatArray
    voxels: npt.NDArray[np.int64]
    predicted: FloatArray
    observed: FloatArray
    expected_error: float
    largest_error: float
    brier: float
    whole_error: float
    certain_voxels: int
    certain_lesion: int


def calibration_sums(
    truth: npt.NDArray[Any],
    probability: npt.NDArray[np.floating],
    *,
    inside: npt.NDArray[np.bool_] | None = None,
) -> CalibrationSums:
    """Sums of one image.

    Parameters
    ----------
    truth : (i, j, k)
        Mask, nonzero is lesion.
    probability : (i, j, k) float
        0–1.
    inside : (i, j, k) bool, optional
        Voxels that count; all without it (voxels outside the prediction's field of view have no probability).

    Raises
    ------
    GeometryError
        If the shapes differ.
    DataError
        If a probability lies outside 0–1 or is NaN.
    """
    if truth.shape != probability.shape:
        raise GeometryError(
            f"probability of shape {probability.shape}", expected=f"the truth's {truth.shape}"
        )
    use = np.ones(truth.shape, bool) if inside is None else inside
    p, y = probability[use].astype(np.float64), truth[use] > 0
    if not ((p >= -ROUNDING) & (p <= 1 + ROUNDING)).all():
        raise DataError("probabilities outside 0–1", expected="a probability map", remedy="check the files")
    p = np.clip(p, 0.0, 1.0)
    sure = p < CERTAIN_BELOW
    certain_probability = float(p[sure].sum())
    certain_lesion, certain_voxels = int(y[sure].sum()), int(sure.sum())
    p, y = p[~sure], y[~sure]
    index = np.minimum((p * BINS).astype(np.intp), BINS - 1)
    return CalibrationSums(
        voxels=np.bincount(index, minlength=BINS).astype(np.int64),
        lesion=np.bincount(index[y], minlength=BINS).astype(np.int64),
        probability=np.bincount(index, weights=p, minlength=BINS).astype(np.float64),
        squared_error=float(((p - y) ** 2).sum()),
        certain_voxels=certain_voxels,
        certain_lesion=certain_lesion,
        certain_probability=certain_probability,
    )


def add(sums: Sequence[CalibrationSums]) -> CalibrationSums:
    """Sums of several images together; zeros without any."""
    zero = np.zeros(BINS, np.int64)
    return CalibrationSums(
        voxels=sum((item.voxels for item in sums), zero),
        lesion=sum((item.lesion for item in sums), zero),
        probability=sum((item.probability for item in sums), np.zeros(BINS)),
        squared_error=sum(item.squared_error for item in sums),
        certain_voxels=sum(item.certain_voxels for item in sums),
        certain_lesion=sum(item.certain_lesion for item in sums),
        certain_probability=sum(item.certain_probability for item in sums),
    )


def calibrate(sums: CalibrationSums) -> Calibration:
    """Curve and errors from sums."""
    edges = np.arange(BINS + 1) / BINS
    some = sums.voxels > 0
    predicted, observed = np.full(BINS, NAN), np.full(BINS, NAN)
    predicted[some] = sums.probability[some] / sums.voxels[some]
    observed[some] = sums.lesion[some] / sums.voxels[some]
    gap = np.abs(observed - predicted)[some]
    total = int(sums.voxels.sum())
    weighted = float((gap * sums.voxels[some]).sum())
    certain_gap = abs(sums.certain_lesion - sums.certain_probability)
    whole = total + sums.certain_voxels
    return Calibration(
        low=edges[:-1],
        high=edges[1:],
        voxels=sums.voxels,
        predicted=predicted,
        observed=observed,
        expected_error=weighted / total if total else NAN,
        largest_error=float(gap.max()) if total else NAN,
        brier=sums.squared_error / total if total else NAN,
        whole_error=(weighted + certain_gap) / whole if whole else NAN,
        certain_voxels=sums.certain_voxels,
        certain_lesion=sums.certain_lesion,
    )
