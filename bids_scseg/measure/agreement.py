"""Agreement of surfaces and of volumes: distances between masks, limits of agreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, GeometryError

Mask = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
NAN = float("nan")

#: Percentile of the robust Hausdorff distance.
ROBUST_PERCENTILE = 95.0
#: Limits of agreement are the bias ± 1.96 standard deviations (Bland and Altman 1986).
LIMITS = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceDistances:
    """Distances in mm between the surfaces of two masks; all NaN if either is empty.

    Attributes
    ----------
    average
        Mean over the surface voxels of both masks of the distance to the other's surface.
    robust
        The larger of the two directed 95th percentiles.
    largest
        Hausdorff distance.
    """

    average: float
    robust: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsOfAgreement:
    """Bland and Altman's summary of paired measurements, second minus first.

    Attributes
    ----------
    n
        Pairs.
    bias, deviation
        Mean and standard deviation (n - 1) of the differences.
    lower, upper
        Bias ± 1.96 deviations.
    concordance
        Lin's concordance correlation coefficient (variances with n); NaN where neither varies.
    reason
        Why numbers are NaN; empty where none is.
    """

    n: int
    bias: float
    deviation: float
    lower: float
    upper: float
    concordance: float
    reason: str = ""


def surface_distances(truth: Mask, prediction: Mask, *, spacing: npt.ArrayLike) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    A surface voxel is one of the mask with a face neighbour outside it; beyond the array all is outside.
    Distances run between voxel centres.

    Parameters
    ----------
    truth, prediction : (i, j, k)
        Masks on one lattice, nonzero is lesion.
    spacing : (3,)
        mm between voxel centres along each axis.

    Returns
    -------
    SurfaceDistances, symmetric in the two masks; NaN if either is empty.

    Raises
    ------
    GeometryError
        If the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise GeometryError(f"prediction of shape {prediction.shape}", expected=f"the truth's {truth.shape}")
    one, two = truth > 0, prediction > 0
    if not one.any() or not two.any():
        return SurfaceDistances(average=NAN, robust=NAN, largest=NAN)
    box = _bounding_box(one | two)
    there, back = _directed(one[box], two[box], spacing=np.asarray(spacing, dtype=np.float64))
    return SurfaceDistances(
        average=float(np.concatenate([there, back]).mean()),
        robust=float(max(np.percentile(side, ROBUST_PERCENTILE) for side in (there, back))),
        largest=float(max(there.max(), back.max())),
    )


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    ends = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ends.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(ends)


def _directed(
    one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_], *, spacing: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Distance of each surface voxel of the first to the second's surface, and the other way round."""
    from scipy import ndimage

    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (one, two)]
    maps = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return np.asarray(maps[1][surfaces[0]]), np.asarray(maps[0][surfaces[1]])


def limits_of_agreement(first: npt.ArrayLike, second: npt.ArrayLike) -> LimitsOfAgreement:
    """Bias and limits of agreement of paired measurements, for example volumes of truth and prediction.

    Parameters
    ----------
    first, second : (n,)
        Finite numbers; the difference is second minus first.

    Returns
    -------
    LimitsOfAgreement; one pair has a bias alone, none has nothing.

    Raises
    ------
    DataError
        If a number is not finite or the lengths differ.
    """
    one, two = (np.asarray(values, dtype=np.float64).ravel() for values in (first, second))
    if one.size != two.size or not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise DataError(f"{one.size} against {two.size} measurements", expected="pairs of finite numbers")
    if one.size < 2:
        bias = float((two - one).mean()) if one.size else NAN
        return LimitsOfAgreement(
            n=one.size, bias=bias, deviation=NAN, lower=NAN, upper=NAN, concordance=NAN,
            reason="fewer than two pairs",
        )  # fmt: skip
    difference = two - one
    bias, deviation = float(difference.mean()), float(difference.std(ddof=1))
    spread = float(one.var() + two.var() + (one.mean() - two.mean()) ** 2)
    shared = float(((one - one.mean()) * (two - two.mean())).mean())
    return LimitsOfAgreement(
        n=one.size,
        bias=bias,
        deviation=deviation,
        lower=bias - LIMITS * deviation,
        upper=bias + LIMITS * deviation,
        concordance=2 * shared / spread if spread > 0 else NAN,
    )
