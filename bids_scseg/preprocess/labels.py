"""Native label maps in prepared space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.space.geometry import Geometry, Slab, seam_weight
from bids_scseg.space.grid import FloatArray
from bids_scseg.space.resample import index_chunks, sample_linear

BoolArray: TypeAlias = npt.NDArray[np.bool_]

LABEL_SHARE = 0.5  # a prepared voxel belongs to a label from this share on (specification)


def labels_to_prepared(
    geometry: Geometry, label: npt.NDArray[np.generic], slab: Slab
) -> npt.NDArray[np.int32]:
    """Bring a native label map of one slab to prepared space.

    Parameters
    ----------
    geometry
        Of the session.
    label : (i, j, k) integers
        0 is background.
    slab
        One of the geometry's slabs.

    Returns
    -------
    (i, j, k) int32
        Where the labels' linearly interpolated shares reach one half together, the label with the largest
        share; else 0. (Nearest neighbours would leave the steps of thick slices.)
    """
    return _labels_of_slab(geometry, label, slab)[0]


def session_labels_to_prepared(
    geometry: Geometry, labels: Sequence[npt.NDArray[np.generic] | None], *, key: str
) -> npt.NDArray[np.int32]:
    """Fuse the native label maps of one sequence, seams as in its image.

    Parameters
    ----------
    geometry
        Of the session.
    labels
        One map per slab, uppermost first, numbered consistently; None where a slab has none.
    key
        Sequence.

    Returns
    -------
    (i, j, k) int32
        As :func:`labels_to_prepared`; the serving slab decides wherever it covers, else any slab that does.
    """
    out = np.zeros(geometry.grid.shape, np.int32)
    open_, served = np.ones(out.shape, bool), []
    for slab, label in zip(geometry.slabs_of(key), labels, strict=True):
        if label is not None:
            values, covered = _labels_of_slab(geometry, label, slab)
            own = covered & (seam_weight(geometry.s_mm, slab.serves, 0.0) > 0)
            out[own] = values[own]
            open_ &= ~own
            served.append((values, covered))
    for values, covered in served:
        rest = open_ & covered
        out[rest] = values[rest]
        open_ &= ~rest
    return out


def _labels_of_slab(
    geometry: Geometry, label: npt.NDArray[np.generic], slab: Slab
) -> tuple[npt.NDArray[np.int32], BoolArray]:
    """Prepared labels (i, j, k) and where the slab covers."""
    if label.shape != slab.grid.shape:
        raise GeometryError(f"label of shape {label.shape}", file=slab.file, expected=f"{slab.grid.shape}")
    integer = np.rint(np.asarray(label)).astype(np.int32)
    names = np.unique(integer[integer != 0])
    out, covered = np.zeros(geometry.grid.shape, np.int32), np.zeros(geometry.grid.shape, bool)
    for start, ijk in index_chunks(geometry.grid.shape):
        index = slab.to_index(geometry.to_world(ijk, key=slab.key))
        covered.reshape(-1)[start : start + len(ijk)] = slab.grid.contains(index)
        if names.size:
            out.reshape(-1)[start : start + len(ijk)] = _vote(integer, names, index)
    return out, covered


def _vote(
    integer: npt.NDArray[np.int32], names: npt.NDArray[np.int32], index: FloatArray
) -> npt.NDArray[np.int32]:
    """Label (n,) int32 with the largest share at (n, 3) native indices, 0 below one half in all."""
    where = np.argwhere(integer)
    near = ((index > where.min(axis=0) - 1) & (index < where.max(axis=0) + 1)).all(axis=1)
    out = np.zeros(len(index), np.int32)
    points = index[near]
    inside = sample_linear(integer != 0, points) >= LABEL_SHARE
    if inside.any():
        shares = np.stack([sample_linear(integer == name, points[inside]) for name in names])
        chosen = np.zeros(len(points), np.int32)
        chosen[inside] = names[np.argmax(shares, axis=0)]
        out[near] = chosen
    return out
