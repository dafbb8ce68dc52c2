"""Sampling of volumes at points: linear interpolation and means over voxel footprints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bids_scseg.space.grid import FloatArray

CHUNK_POINTS = 2_000_000  # points mapped at once; bounds memory to about 200 MB


def sample_linear(volume: npt.NDArray[np.generic], ijk: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Linear interpolation at voxel indices.

    Parameters
    ----------
    volume : (i, j, k)
        Values at voxel centres.
    ijk : (..., 3)
        Indices; centres are integers. Beyond the outer centres the edge value holds, up to half a
        voxel; further out the result is 0.

    Returns
    -------
    (...) float32
    """
    from scipy.ndimage import map_coordinates

    index = np.asarray(ijk, dtype=np.float64)
    data = np.asarray(volume, dtype=np.float32)
    values = map_coordinates(data, np.moveaxis(index, -1, 0), order=1, mode="nearest", output=np.float32)
    upper = np.asarray(data.shape) - 0.5
    inside = ((index >= -0.5) & (index <= upper)).all(axis=-1)
    return np.where(inside, values, np.float32(0))


def footprint_offsets(spacing: FloatArray, step_mm: float) -> FloatArray:
    """Points that fill a voxel evenly.

    Parameters
    ----------
    spacing : (3,) float64
        Voxel size in mm.
    step_mm
        Largest distance between neighbouring points.

    Returns
    -------
    (n, 3) float64
        Offsets from the voxel centre in voxel units, symmetric about 0.
    """
    counts = np.maximum(np.ceil(spacing / step_mm - 1e-6).astype(int), 1)
    along = [(np.arange(n) + 0.5) / n - 0.5 for n in counts]
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 3)


def broadcast_affine(matrix: FloatArray, size: tuple[int, int, int], corner: FloatArray) -> list[FloatArray]:
    """Map a block of lattice indices by an affine, without ever holding the indices.

    Parameters
    ----------
    matrix : (4, 4)
        Index → anything.
    size
        Shape of the block.
    corner : (3,)
        Index of its first voxel.

    Returns
    -------
    Three (i, j, k) float64 arrays, one per coordinate.
    """
    i, j, k = (first + np.arange(n) for first, n in zip(corner, size, strict=True))
    return [
        (row[0] * i)[:, None, None] + (row[1] * j)[None, :, None] + (row[2] * k + row[3])[None, None, :]
        for row in matrix[:3]
    ]


def index_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, FloatArray]]:
    """Indices of all voxels in C order, in bounded pieces.

    Yields
    ------
    start : int
        Flat position of the piece's first voxel.
    ijk : (n, 3) float64
    """
    total = int(np.prod(shape))
    for start in range(0, total, CHUNK_POINTS):
        flat = np.arange(start, min(start + CHUNK_POINTS, total))
        yield start, np.stack(np.unravel_index(flat, shape), axis=1).astype(np.float64)
