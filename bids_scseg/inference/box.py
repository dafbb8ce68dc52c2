"""Fast resampling between an image and a box along its own axes, one axis at a time.

Gives what :meth:`bids_scseg.space.geometry.Geometry.apply` and ``restore`` give, much faster: without a
centerline and with parallel axes, linear interpolation and footprint means are products of
one-dimensional ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bids_scseg.space.grid import Grid
from bids_scseg.space.resample import footprint_offsets

Floats = npt.NDArray[np.float32]

MAX_SKEW_VOX = 0.25  # displacement across the image, by axes not quite parallel, that is neglected (ours)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisMap:
    """How the index axes of one lattice run along those of another.

    Attributes
    ----------
    axes
        For each axis of the target, the axis of the source along it.
    scale, offset
        (3,) source index = ``scale`` x target index + ``offset``, by target axis.
    """

    axes: tuple[int, int, int]
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]


def axis_map(target: Grid, source: Grid) -> AxisMap | None:
    """How two lattices' axes correspond; None if they are not parallel."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    linear = np.abs(matrix[:3, :3])
    axes = np.argmax(linear, axis=0)
    if sorted(axes) != [0, 1, 2]:
        return None
    rest = linear.copy()
    rest[axes, range(3)] = 0
    if (rest @ np.asarray(target.shape)).max() > MAX_SKEW_VOX:
        return None
    # the little skew that is left is taken at the middle of the target
    middle = (np.asarray(target.shape) - 1) / 2
    scale = matrix[axes, range(3)]
    centre = (matrix[:3, :3] @ middle + matrix[:3, 3])[axes]
    first, second, third = (int(axis) for axis in axes)
    return AxisMap(axes=(first, second, third), scale=scale, offset=centre - scale * middle)


def sample(volume: npt.NDArray[np.generic], mapping: AxisMap, target: Grid) -> Floats:
    """Linear interpolation of a volume at the voxel centres of a target lattice; 0 outside.

    Parameters
    ----------
    volume : (i, j, k)
        On the mapping's source lattice.
    mapping
        From :func:`axis_map`.
    target
        Its target lattice.
    """
    return _apply(volume, mapping, target, offsets=[np.zeros(1)] * 3)


def footprint_mean(
    volume: npt.NDArray[np.generic], mapping: AxisMap, target: Grid, *, step_mm: float
) -> Floats:
    """Mean of a volume over the footprint of each target voxel, sampled every ``step_mm``; 0 outside."""
    points = footprint_offsets(target.spacing, step_mm)
    return _apply(volume, mapping, target, offsets=[np.unique(points[:, axis]) for axis in range(3)])


def _apply(
    volume: npt.NDArray[np.generic], mapping: AxisMap, target: Grid, *, offsets: list[npt.NDArray[np.float64]]
) -> Floats:
    out = np.asarray(volume, dtype=np.float32).transpose(mapping.axes)
    for axis in range(3):
        index = np.arange(target.shape[axis])[:, None] + offsets[axis]
        weights = linear_weights(mapping.scale[axis] * index + mapping.offset[axis], out.shape[axis])
        out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def linear_weights(index: npt.NDArray[np.float64], size: int) -> Floats:
    """Weights of ``size`` samples in the mean of linear interpolations.

    Parameters
    ----------
    index : (n, m)
        Source indices of m points for each of n outputs. Within half a voxel beyond the outer centres the
        edge value holds; points further out count as 0.
    size
        Number of source samples.

    Returns
    -------
    (n, size) float32
    """
    weights = np.zeros((len(index), size), np.float64)
    inside = (index >= -0.5) & (index <= size - 0.5)
    at = np.clip(index, 0, size - 1)
    low = np.minimum(np.floor(at).astype(int), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    rows = np.arange(len(index))
    for point in range(index.shape[1]):
        share = inside[:, point] / index.shape[1]
        upper = at[:, point] - low[:, point]
        np.add.at(weights, (rows, low[:, point]), share * (1 - upper))
        np.add.at(weights, (rows, high[:, point]), share * upper)
    return weights.astype(np.float32)
