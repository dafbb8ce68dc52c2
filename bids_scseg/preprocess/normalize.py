"""Intensities: z-score over the voxels that a sequence covers, or contrast against the cord."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CONSTANT = 1e-6  # standard deviation, relative to the largest value, below which an image carries nothing

CORE_SHARE = 0.9  # share of cord from which a voxel counts as the cord's inside, ours
EDGE_MM = 1.0  # of the cord's edge in plane: a mask may be so much too wide, ours
LEAST_LEVEL = 0.05  # of the highest level along the cord; below it there is no ratio, ours
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
    spread = _spread(residual[core])
    if spread <= CONSTANT * max(float(np.abs(values[coverage]).max()), 1e-30):
        return np.clip(zscore(volume, coverage), -CLIP, CLIP)
    return np.where(coverage, np.clip(residual / np.float32(spread), -CLIP, CLIP), 0).astype(np.float32)


def cord_ratio(
    volume: npt.NDArray[np.generic],
    coverage: npt.NDArray[np.bool_],
    cord: npt.NDArray[np.floating],
    *,
    spacing_mm: float,
) -> npt.NDArray[np.float32]:
    """Contrast relative to the cord's level, in units of the spread of that ratio.

    As :func:`cord_score`, with two differences: values are divided by the level, so that where the coil sees
    less the same tissue has the same value, and the cord's edge takes no part in level and spread
    (:func:`eroded_core`), so that a mask that is too wide changes neither.

    Parameters
    ----------
    volume : (i, j, k)
        Values of one sequence; 0 is no signal.
    coverage : (i, j, k) bool
        Where they are data.
    cord : (i, j, k)
        Share of each voxel in the cord, 0-1.
    spacing_mm
        Voxel size, the same along all axes; the third is S-I.

    Returns
    -------
    (i, j, k) float32
        Within ±6; 0 where not covered. Where the level is not above 5 % of its highest everywhere, as in
        images with negative values, it is subtracted only. :func:`zscore`, clipped, where the sequence
        covers next to no cord or the cord is constant.
    """
    core = eroded_core(cord, coverage, spacing_mm=spacing_mm)
    if int(core.sum()) < FEW_VOXELS:
        return np.clip(zscore(volume, coverage), -CLIP, CLIP)
    values = volume.astype(np.float32)
    level = cord_level(values, core, sigma_vox=LEVEL_SIGMA_MM / spacing_mm)
    relative = values - level
    if level.min() > LEAST_LEVEL * level.max():
        relative = relative / level
    spread = _spread(relative[core])
    if spread <= CONSTANT * max(float(np.abs(relative[coverage]).max()), 1e-30):
        return np.clip(zscore(volume, coverage), -CLIP, CLIP)
    return np.where(coverage, np.clip(relative / np.float32(spread), -CLIP, CLIP), 0).astype(np.float32)


def eroded_core(
    cord: npt.NDArray[np.floating], coverage: npt.NDArray[np.bool_], *, spacing_mm: float
) -> npt.NDArray[np.bool_]:
    """The covered cord without its outer millimetre in plane; with it where fewer than 20 voxels remain.

    Parameters
    ----------
    cord, coverage : (i, j, k)
        Share of each voxel in the cord, 0-1, and where there are data.
    spacing_mm
        Voxel size in plane.

    Returns
    -------
    (i, j, k) bool
    """
    inside = cord >= CORE_SHARE
    reach = int(EDGE_MM / spacing_mm + 1e-6)
    i, j = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = (i**2 + j**2) * spacing_mm**2 <= EDGE_MM**2 + 1e-6
    core = np.zeros_like(inside)
    occupied = np.nonzero(inside.any(axis=2))
    if occupied[0].size:
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in occupied)
        core[box] = ndimage.binary_erosion(inside[box], disc[:, :, None])
    core &= coverage
    return core if int(core.sum()) >= FEW_VOXELS else np.asarray(coverage & inside)


def _spread(values: npt.NDArray[np.float32]) -> float:
    """Standard deviation by the median absolute deviation."""
    return MAD_TO_SD * float(np.median(np.abs(values - np.median(values))))


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
