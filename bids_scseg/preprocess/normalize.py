"""Intensities: z-score over the voxels that a sequence covers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CONSTANT = 1e-6  # standard deviation, relative to the largest value, below which an image carries nothing


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
