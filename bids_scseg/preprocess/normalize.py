"""Intensities: z-score over the voxels that a sequence covers, or contrast against the cord."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CONSTANT = 1e-6  # standard deviation, relative to the largest value, below which an image carries nothing

CORE_SHARE = 0.9  # share of cord from which a voxel counts as the cord's inside, ours
LEVEL_SIGMA_MM = 15.0  # smoothing of the cord's level along S-I: longer than most lesions, ours
CLIP = 6.0  # in units of the cord's spread; lesions reach 7, fluid and fat far more, ours
MAD_TO_SD = 1.4826  # of a normal distribution
FEW_VOXELS = 20  # below this many voxels the cord says nothing about itself, ours


def zscore(volume: npt.NDArray[np.generic], coverage: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Zero mean and unit standard deviation over covered voxels.

    Parameters
    ----------
    volume : (i, j, k)
        Values of one sequence.
    coverage : (i, j, k) bool
        Where they are data.

    Returns
    -------
    (i, j, k) float32
        0 where not covered; 0 everywhere if fewer than two voxels are covered or all are equal.
    """
    out = np.zeros(volume.shape, np.float32)
    if is_constant(volume, coverage):
        return out
    values = volume[coverage].astype(np.float64)
    out[coverage] = (values - values.mean()) / values.std()
    return out


def is_constant(volume: npt.NDArray[np.generic], coverage: npt.NDArray[np.bool_]) -> bool:
    """Whether the covered voxels carry no contrast at all (or are fewer than two)."""
    values = volume[coverage].astype(np.float64)
    return bool(values.size < 2 or values.std() <= CONSTANT * max(float(np.abs(values).max()), 1e-30))


def cord_score(
    volume: npt.NDArray[np.generic],
    coverage: npt.NDArray[np.bool_],
    cord: npt.NDArray[np.floating],
    *,
    spacing_mm: float,
) -> npt.NDArray[np.float32]:
    """Contrast against the cord, in units of the cord's own spread.

    Lesions differ from the cord by about one such unit, fluid and bone by ten; a z-score over the window is
    ruled by the latter. Here the cord's median along S-I, smoothed, becomes 0, its spread 1, and what differs
    by more than `CLIP` is clipped.

    Parameters
    ----------
    volume : (i, j, k)
        Values of one sequence.
    coverage : (i, j, k) bool
        Where they are data.
    cord : (i, j, k)
        Share of each voxel in the cord, 0-1.
    spacing_mm
        Voxel size along the third axis (S-I).

    Returns
    -------
    (i, j, k) float32
        Within ±6; 0 where not covered. :func:`zscore`, clipped, where the sequence covers next to no cord or
        the cord is constant.
    """
    core = coverage & (cord >= CORE_SHARE)
    if int(core.sum()) < FEW_VOXELS:
        return np.clip(zscore(volume, coverage), -CLIP, CLIP)
    values = volume.astype(np.float32)
    residual = values - cord_level(values, core, sigma_vox=LEVEL_SIGMA_MM / spacing_mm)
    inside = residual[core]
    spread = MAD_TO_SD * float(np.median(np.abs(inside - np.median(inside))))
    if spread <= CONSTANT * max(float(np.abs(values[coverage]).max()), 1e-30):
        return np.clip(zscore(volume, coverage), -CLIP, CLIP)
    return np.where(coverage, np.clip(residual / np.float32(spread), -CLIP, CLIP), 0).astype(np.float32)


def cord_level(
    values: npt.NDArray[np.float32], core: npt.NDArray[np.bool_], *, sigma_vox: float
) -> npt.NDArray[np.float32]:
    """The cord's median in each slice, smoothed along S-I and carried to slices without cord: (k,).

    Slices weigh by their voxels in ``core`` (i, j, k), of which there must be one at least.
    """
    weight = core.sum(axis=(0, 1)).astype(np.float64)
    slices = np.flatnonzero(weight)
    median = np.zeros(len(weight))
    for k in slices:
        median[k] = np.median(values[:, :, k][core[:, :, k]])
    total = ndimage.gaussian_filter1d(weight, sigma_vox, mode="constant")
    level = ndimage.gaussian_filter1d(weight * median, sigma_vox, mode="constant")
    known = np.flatnonzero(total > 1e-3 * total.max())
    smooth = np.interp(np.arange(len(weight)), known, level[known] / total[known])
    return np.asarray(smooth, np.float32)
