"""Smooth random fields."""

from __future__ import annotations

import numpy as np

from bids_scseg.synth.subject import Floats, Rng


def smooth_noise(shape: tuple[int, ...], rng: Rng, *, period_vox: float | tuple[float, ...]) -> Floats:
    """Unit-variance random field over ``shape`` (float32) that varies over about ``period_vox`` voxels."""
    periods = period_vox if isinstance(period_vox, tuple) else (period_vox,) * len(shape)
    coarse = tuple(max(2, round(n / period) + 2) for n, period in zip(shape, periods, strict=True))
    field = rng.standard_normal(coarse, np.float32)
    for axis, n in enumerate(shape):
        last = coarse[axis] - 1
        at = np.linspace(0.5, last - 0.5, n) if last > 1 else np.linspace(0, 1, n)
        field = interpolate_axis(field, at, axis)
    deviation = float(field.std())
    return field / np.float32(deviation) if deviation > 0 else field


def interpolate_axis(field: Floats, at: np.ndarray[tuple[int], np.dtype[np.float64]], axis: int) -> Floats:
    """Linear interpolation along one axis at fractional indices ``at`` (at least two samples, clamped)."""
    low = np.clip(at.astype(int), 0, field.shape[axis] - 2)
    shape = [-1 if a == axis else 1 for a in range(field.ndim)]
    weight = np.clip(at - low, 0, 1).astype(np.float32).reshape(shape)
    return np.asarray(field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight)
