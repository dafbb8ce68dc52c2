"""Lesion instances: numbered once in prepared space, restored with the same numbers to every lattice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import FloatArray, Grid

Labels = npt.NDArray[np.int32]
NativeLabels = npt.NDArray[np.uint16]
Connectivity = Literal[6, 18, 26]

#: A cord mask counts as cord from here on (it may be soft after resampling).
CORD_FROM = 0.5
#: Footprint fractions are compared to this precision, so rounding noise cannot decide a tie.
FRACTION_STEP = 1e-5
#: A lesion with at least this share of its volume inside a lattice keeps one voxel there, however small it
#: is.
KEEP_FROM = 0.5


def label_lesions(
    probability: npt.NDArray[np.floating],
    *,
    threshold: float,
    connectivity: Connectivity = 26,
    min_volume_mm3: float = 0.0,
    seed_threshold: float | npt.NDArray[np.floating] = 0.0,
    voxel_volume: float,
    cord: npt.NDArray[np.generic] | None = None,
) -> Labels:
    """Lesions as connected components of the thresholded probability.

    Parameters
    ----------
    probability : (i, j, k) float
        Lesion probability in prepared space.
    threshold
        Probability from which a voxel is lesion (itself included).
    connectivity
        6, 18 or 26.
    min_volume_mm3
        Smaller components are dropped.
    seed_threshold
        Components whose probability reaches this in no voxel are dropped: what is outlined from a low
        threshold counts only where the network is sure somewhere (hysteresis). 0: no such rule. An array
        (i, j, k) has a value for each voxel: :func:`seed_thresholds`.
    voxel_volume
        mm³ of one prepared voxel.
    cord : (i, j, k), optional
        Cord mask, 0–1. Nothing is lesion beyond the mask's ends; a component across one is cut there. Of the
        rest, one that touches no cord although its slices have some is dropped as lying outside it; one that
        touches it stays whole (masks end early at lesions), as does one in a gap of the mask, or where no
        cord is known at all.

    Returns
    -------
    (i, j, k) int32
        0 background; 1, 2, … from top (superior) to bottom by centroid, then from left to right and back to
        front. All zero without lesions.
    """
    above = (probability >= threshold).astype(np.uint8)
    if cord is not None:
        above &= _between_ends(np.asarray(cord) >= CORD_FROM)
    found: Labels = cc3d.connected_components(above, connectivity=connectivity).astype(np.int32)
    count = int(found.max())
    if count == 0:
        return np.zeros(probability.shape, np.int32)
    statistics = cc3d.statistics(found)
    sizes = np.asarray(statistics["voxel_counts"], dtype=np.float64)[: count + 1] * voxel_volume
    keep = sizes >= min_volume_mm3 - 1e-9
    if np.any(seed_threshold > threshold):
        keep &= np.isin(np.arange(count + 1), found[probability >= seed_threshold])
    if cord is not None:
        keep &= ~_outside_cord(found, np.asarray(cord) >= CORD_FROM, count)
    return _from_top(found, statistics["centroids"], keep)


def seed_thresholds(
    coverage: npt.NDArray[np.bool_], *, threshold: float, alone: float
) -> float | npt.NDArray[np.float32]:
    """Seed threshold of each voxel, by how many sequences cover it.

    Parameters
    ----------
    coverage : (sequence, i, j, k) bool
        Of the sequences that were used.
    threshold, alone
        Where several cover a voxel, and where at most one does; an ``alone`` of 0: as elsewhere.

    Returns
    -------
    The value, or (i, j, k) float32 where it differs.
    """
    if not alone or alone == threshold:
        return threshold
    return np.where(np.count_nonzero(coverage, axis=0) > 1, np.float32(threshold), np.float32(alone))


def number_from_top(found: Labels) -> Labels:
    """Lesions numbered anew 1, 2, …, in the order of :func:`label_lesions`; numbers may have gaps.

    Parameters
    ----------
    found : (i, j, k) int32
        Any positive numbers, 0 background.
    """
    statistics = cc3d.statistics(found)
    keep = np.asarray(statistics["voxel_counts"])[: int(found.max(initial=0)) + 1] > 0
    return _from_top(found, statistics["centroids"], keep)


def _from_top(found: Labels, centroids: npt.ArrayLike, keep: npt.NDArray[np.bool_]) -> Labels:
    """Components that are kept, numbered by their centroids: top to bottom, left to right, back to front."""
    count = keep.size - 1
    centroid = np.round(np.asarray(centroids, dtype=np.float64)[: count + 1], 6)
    order = np.lexsort((centroid[1:, 1], centroid[1:, 0], -centroid[1:, 2])) + 1
    numbers = np.zeros(count + 1, np.int32)
    kept = order[keep[order]]
    numbers[kept] = np.arange(1, kept.size + 1)
    return np.asarray(numbers[found])


def _between_ends(cord: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(1, 1, k) bool: slices between the ends of a cord, all where there is none.

    Beyond lie brainstem and cisterns, or fluid and the cauda, which a network takes for lesions in a cord.
    """
    ends = cord_ends(cord)
    inside = np.ones((1, 1, cord.shape[2]), bool)
    if ends is not None:
        inside[:, :, : ends[0]] = False
        inside[:, :, ends[1] + 1 :] = False
    return inside


def cord_ends(cord: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
    """First and last slice of an (i, j, k) bool mask that have cord; None where there is none."""
    with_cord = np.flatnonzero(cord.any(axis=(0, 1)))
    return (int(with_cord[0]), int(with_cord[-1])) if with_cord.size else None


def _outside_cord(found: Labels, cord: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """(count + 1,) bool: components in slices with cord that touch none of it."""
    where = found > 0
    slices = np.broadcast_to(cord.any(axis=(0, 1)), found.shape)
    known = np.bincount(found[where & slices], minlength=count + 1) > 0
    inside = np.bincount(found[where & cord], minlength=count + 1) > 0
    return np.asarray(known & ~inside)


def restore_labels(labels: Labels, geometry: Geometry, slab: Slab) -> NativeLabels:
    """The same lesions, with the same numbers, on a slab's native grid.

    Of each lesion, the native voxels with the highest footprint fraction are taken, as many as make up its
    volume within that grid. Restored volumes are unbiased: over 100 ellipsoids of 15 to 256 mm³ (median 74
    mm³) in 0.5 × 0.5 × 3 mm voxels their mean is 1.000 of the truth (0.988–1.013), in sagittal as in axial
    slices. Taking fractions from 0.5 on gives 0.84 in sagittal and 0.93 in axial slices (eight of them), and
    loses lesions thinner than half a slice.

    Parameters
    ----------
    labels : (i, j, k) int32
        Lesion numbers in prepared space.
    geometry
        The map.
    slab
        One of its slabs.

    Returns
    -------
    uint16 array of the slab's shape. One voxel belongs to one lesion: the one that fills more of it, at a tie
    the smaller number; equal fractions within a lesion go by voxel order. A lesion of which at least half
    lies in the grid keeps at least one voxel.
    """
    return _restore(
        labels,
        geometry,
        grid=slab.grid,
        to_index=lambda ijk: slab.to_index(geometry.to_world(ijk, key=slab.key)),
        restore=lambda part, cut, grid: cut.restore(part, dataclasses.replace(slab, grid=grid)),
    )


def restore_labels_onto(labels: Labels, geometry: Geometry, *, key: str, grid: Grid) -> NativeLabels:
    """Like :func:`restore_labels`, onto any lattice in the reference world, along a centerline."""
    return _restore(
        labels,
        geometry,
        grid=grid,
        to_index=lambda ijk: grid.to_index(geometry.to_world(ijk, key=key)),
        restore=lambda part, cut, onto: cut.restore_onto(part, key=key, grid=onto),
    )


def _restore(
    labels: Labels,
    geometry: Geometry,
    *,
    grid: Grid,
    to_index: Callable[[FloatArray], FloatArray],
    restore: Callable[[npt.NDArray[np.float32], Geometry, Grid], npt.NDArray[np.float32]],
) -> NativeLabels:
    if labels.shape != geometry.grid.shape:
        raise GeometryError(f"labels of shape {labels.shape}", expected=f"{geometry.grid.shape}")
    count = int(labels.max(initial=0))
    if count > np.iinfo(np.uint16).max:
        raise GeometryError(f"{count} lesions", expected="at most 65535", remedy="raise the threshold")
    where = np.argwhere(labels > 0)
    numbers = labels[tuple(where.T)]
    parts = []
    for number in np.unique(numbers):
        voxels = where[numbers == number]
        box = _native_box(voxels, to_index, grid)
        if box is None:
            continue
        low, onto = box
        first = max(int(voxels[:, 2].min()) - 2, 0)
        last = min(int(voxels[:, 2].max()) + 3, labels.shape[2])
        part = (labels[:, :, first:last] == number).astype(np.float32)
        fraction = restore(part, _cut(geometry, first, last), onto)
        whole = len(voxels) * geometry.grid.voxel_volume / grid.voxel_volume
        parts.append(_candidates(fraction, low, int(number), whole=whole, shape=grid.shape))
    return _assign(parts, grid.shape)


def _native_box(
    voxels: npt.NDArray[np.intp], to_index: Callable[[FloatArray], FloatArray], grid: Grid
) -> tuple[npt.NDArray[np.intp], Grid] | None:
    """Piece of the native grid that a lesion's voxels can reach; None if none of it lies inside."""
    ends = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=np.float64)
    index = to_index((voxels[:, None, :] + ends).reshape(-1, 3))
    low = np.maximum(np.floor(index.min(axis=0)).astype(np.intp) - 1, 0)
    stop = np.minimum(np.ceil(index.max(axis=0)).astype(np.intp) + 2, grid.shape)
    size = stop - low
    if (size < 1).any():
        return None
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(low)
    return low, Grid(shape=(int(size[0]), int(size[1]), int(size[2])), affine=affine)


def _cut(geometry: Geometry, first: int, last: int) -> Geometry:
    """The same map for the prepared slices [first, last) alone."""
    affine = geometry.grid.affine.copy()
    affine[:3, 3] = geometry.grid.to_world([0, 0, first])
    shape = geometry.grid.shape
    return dataclasses.replace(geometry, grid=Grid(shape=(shape[0], shape[1], last - first), affine=affine))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidates:
    """Voxels a lesion may take: flat index and footprint fraction, both (n,); and how many it takes."""

    number: int
    flat: npt.NDArray[np.intp]
    fraction: FloatArray
    quota: int


def _candidates(
    fraction: npt.NDArray[np.float32],
    low: npt.NDArray[np.intp],
    number: int,
    *,
    whole: float,
    shape: tuple[int, int, int],
) -> _Candidates:
    local = np.argwhere(fraction > FRACTION_STEP)
    value = np.round(fraction[tuple(local.T)].astype(np.float64) / FRACTION_STEP) * FRACTION_STEP
    flat = np.ravel_multi_index(tuple((local + low).T), shape)
    total = float(fraction.sum(dtype=np.float64))
    quota = int(np.floor(total + 0.5))
    if quota == 0 and total >= KEEP_FROM * whole:
        quota = 1
    return _Candidates(number=number, flat=np.asarray(flat), fraction=value, quota=quota)


def _assign(parts: list[_Candidates], shape: tuple[int, int, int]) -> NativeLabels:
    """Give voxels to lesions, fullest first, until each lesion has its quota or no voxel is left for it."""
    out = np.zeros(shape, np.uint16)
    if not parts:
        return out
    number = np.concatenate([np.full(part.flat.size, part.number) for part in parts])
    flat = np.concatenate([part.flat for part in parts])
    fraction = np.concatenate([part.fraction for part in parts])
    order = np.lexsort((flat, number, -fraction))
    left = {part.number: part.quota for part in parts}
    view = out.reshape(-1)
    for lesion, voxel in zip(number[order].tolist(), flat[order].tolist(), strict=True):
        if left[lesion] > 0 and view[voxel] == 0:
            view[voxel] = lesion
            left[lesion] -= 1
    return out
