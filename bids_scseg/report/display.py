"""What a figure shows of a volume: slices, strips, crops and grey windows, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.report.records import BoolArray, Labels, NativeImage
from bids_scseg.space.grid import FloatArray, Grid

Array = npt.NDArray[Any]
Side = Literal["sagittal", "coronal"]

WINDOW_PERCENTILES = (1.0, 99.5)  # ours: keeps fat and flow from eating the grey scale
HALF_SLAB_MM = 1.0  # strips are means over ±1 mm, which calms noise and keeps 5 mm lesions
WINDOW_RADIUS_MM = 9.0  # cord and CSF: what grey windows of prepared images are made for
EVEN_SIGMA_MM = 15.0  # brightness along the cord is evened out over about a vertebra (ours)
EVEN_STEP = 4  # slices between those that are looked at: the result is smooth anyway
EXAMINED_RADIUS_MM = 4.0  # about the radius of the cord: coverage is judged there
EXAMINED_SHARE = 0.5  # of that disc, from which a slice counts as examined


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canonical:
    """An image turned so that its index axes run towards R, A and S.

    Attributes
    ----------
    image : (R, A, S) float
        Intensities; non-finite values are 0.
    cord : (R, A, S) bool or None
        Cord mask.
    spacing : (3,) float64
        Voxel size in mm.
    line : (n, 3) float64
        Centerline in indices of this array.
    measured : (n,) bool
        Whether each point of it was seen.
    """

    image: Array
    cord: BoolArray | None
    spacing: FloatArray
    line: FloatArray
    measured: BoolArray


def canonical(native: NativeImage) -> Canonical:
    """Turn an image, its mask and its centerline to R, A, S without interpolation."""
    axes = native.grid.canonical_axes()
    image = np.nan_to_num(np.asarray(native.image, dtype=np.float32), posinf=0, neginf=0)
    cord = None if native.cord is None else turn(np.asarray(native.cord, dtype=bool), axes)
    order = [axis for axis, _ in axes]
    return Canonical(
        image=turn(image, axes),
        cord=cord if cord is not None and cord.any() else None,
        spacing=native.grid.spacing[order],
        line=canonical_points(native.centerline_ras, native.grid),
        measured=np.asarray(native.measured, dtype=bool),
    )


def turn(volume: Array, axes: tuple[tuple[int, int], ...]) -> Array:
    """Transpose and flip a volume so that its axes run towards R, A, S."""
    turned = np.transpose(volume, [axis for axis, _ in axes])
    return turned[tuple(slice(None, None, sign) for _, sign in axes)]


def canonical_points(ras: npt.ArrayLike, grid: Grid) -> FloatArray:
    """(n, 3) world mm to (n, 3) indices of the turned array."""
    index = grid.to_index(np.asarray(ras, dtype=np.float64).reshape(-1, 3))
    columns = [
        index[:, axis] if sign > 0 else grid.shape[axis] - 1 - index[:, axis]
        for axis, sign in grid.canonical_axes()
    ]
    return np.stack(columns, axis=-1)


def grey_window(values: Array) -> tuple[float, float]:
    """Grey window (low, high) from the values to be shown; (0, 1) if they are empty or constant."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, WINDOW_PERCENTILES))
    return (low, high) if high > low else (low, low + 1.0)


def even_window(volume: Array, coverage: BoolArray, spacing_mm: float) -> tuple[FloatArray, FloatArray]:
    """Grey window of every slice, smooth along the cord, for display only.

    Coils see the ends of their field faintly; one window for a whole cord would show them black.

    Parameters
    ----------
    volume : (ni, nj, K) float
        Prepared image.
    coverage : (ni, nj, K) bool
        Where it has data.
    spacing_mm
        Voxel size.

    Returns
    -------
    low, high : (K,) float64
        Values to be shown black and white; 0 and 1 throughout if nothing is covered.
    """
    inside = disc((volume.shape[0], volume.shape[1]), WINDOW_RADIUS_MM / spacing_mm)
    where = np.flatnonzero(coverage[inside].mean(axis=0) >= EXAMINED_SHARE)[::EVEN_STEP]
    if not where.size:
        return np.zeros(volume.shape[2]), np.ones(volume.shape[2])
    values = np.where(coverage[:, :, where][inside], volume[:, :, where][inside], np.nan)
    seen = np.zeros(volume.shape[2], dtype=bool)
    seen[where] = True
    low, high = (
        _smooth_over(seen, limit, EVEN_SIGMA_MM / spacing_mm)
        for limit in np.nanpercentile(values, WINDOW_PERCENTILES, axis=0)
    )
    return low, np.maximum(high, low + 1e-6)


def _smooth_over(seen: BoolArray, values: Array, sigma: float) -> FloatArray:
    """(K,) Gaussian mean over the seen slices; beyond them the nearest value."""
    from scipy import ndimage

    weight = seen.astype(np.float64)
    total = weight.copy()
    total[seen] = values
    parts = [ndimage.gaussian_filter1d(part, sigma, mode="constant") for part in (total, weight)]
    near = np.interp(
        np.arange(seen.size), np.flatnonzero(seen), (parts[0] / np.maximum(parts[1], 1e-12))[seen]
    )
    return np.asarray(near)


def disc(shape: tuple[int, int], radius_vox: float) -> BoolArray:
    """(ni, nj) bool: a disc in the middle of a slice."""
    i, j = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((i - (shape[0] - 1) / 2) ** 2 + (j - (shape[1] - 1) / 2) ** 2 <= radius_vox**2)


def examined_slices(coverage: BoolArray, spacing_mm: float) -> BoolArray:
    """(K,) bool: slices in which the sequence covers at least half of a cord-sized disc."""
    inside = disc(coverage.shape[:2], EXAMINED_RADIUS_MM / spacing_mm)
    return np.asarray(coverage[inside].mean(axis=0) >= EXAMINED_SHARE)


def strip(volume: Array, spacing_mm: float, *, side: Side = "sagittal") -> FloatArray:
    """(ni, nj, K) to (nj, K) or, coronal, (ni, K): mean over ±1 mm about the middle."""
    axis = 0 if side == "sagittal" else 1
    middle = (volume.shape[axis] - 1) / 2
    reach = HALF_SLAB_MM / spacing_mm
    first, last = int(np.ceil(middle - reach)), int(np.floor(middle + reach))
    return np.asarray(volume.take(range(max(first, 0), last + 1), axis=axis).mean(axis=axis))


def projection(volume: Array, *, side: Side = "sagittal") -> Array:
    """Maximum along R-L (sagittal) or A-P (coronal)."""
    return np.asarray(volume.max(axis=0 if side == "sagittal" else 1))


def runs(flags: BoolArray) -> list[tuple[int, int]]:
    """Half-open [start, stop) runs of True."""
    padded = np.concatenate([[False], np.asarray(flags, dtype=bool), [False]])
    edges = np.flatnonzero(np.diff(padded.astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def lesion_numbers(labels: Labels | None) -> list[int]:
    """Numbers of the lesions in a label volume, ascending."""
    if labels is None:
        return []
    return [int(number) for number in np.unique(labels) if number > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a lesion lies on the prepared grid: centre and half-open slice range.

    Attributes
    ----------
    number
        Label of the lesion.
    centre
        Mean index along (R, A, S).
    k_range
        Slices [start, stop) that it occupies.
    voxels
        Its size.
    """

    number: int
    centre: tuple[float, float, float]
    k_range: tuple[int, int]
    voxels: int


def extents(labels: Labels | None) -> list[Extent]:
    """One :class:`Extent` per lesion, by number; empty without lesions."""
    found = []
    for number in lesion_numbers(labels):
        i, j, k = np.nonzero(np.asarray(labels == number))
        centre = (float(i.mean()), float(j.mean()), float(k.mean()))
        found.append(
            Extent(number=number, centre=centre, k_range=(int(k.min()), int(k.max()) + 1), voxels=i.size)
        )
    return found


def spread(low: int, high: int, count: int) -> list[int]:
    """Up to ``count`` distinct integers evenly within [low, high], ends included."""
    if high < low:
        return []
    return sorted({round(float(value)) for value in np.linspace(low, high, min(count, high - low + 1))})


def cord_range(view: Canonical, axis: int) -> tuple[int, int]:
    """First and last index of the cord along an axis: of the mask, else of the centerline, else all."""
    last = view.image.shape[axis] - 1
    if view.cord is not None:
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(view.cord.any(axis=others))
        return int(where[0]), int(where[-1])
    if view.line.size:
        values = np.clip(np.rint(view.line[:, axis]), 0, last)
        return int(values.min()), int(values.max())
    return 0, last


def sagittal_indices(view: Canonical, count: int) -> list[int]:
    """R-L indices of sagittal slices through the cord: percentiles of its voxels, so that bends count."""
    if view.cord is not None:
        points = np.nonzero(view.cord)[0]
    elif view.line.size:
        points = np.rint(view.line[:, 0]).astype(int)
    else:
        points = np.array([view.image.shape[0] // 2])
    share = np.linspace(15, 85, count) if count > 1 else np.array([50.0])
    picked = {int(value) for value in np.rint(np.percentile(points, share))}
    return sorted(index for index in picked if 0 <= index < view.image.shape[0]) or [view.image.shape[0] // 2]


def slice_centre(view: Canonical, k: int) -> tuple[float, float]:
    """(R, A) index of the cord in a slice: of its mask, else the next centerline point, else the middle."""
    if view.cord is not None and view.cord[:, :, k].any():
        i, j = np.nonzero(view.cord[:, :, k])
        return float(i.mean()), float(j.mean())
    if view.line.size:
        nearest = int(np.argmin(np.abs(view.line[:, 2] - k)))
        return float(view.line[nearest, 0]), float(view.line[nearest, 1])
    return (view.image.shape[0] - 1) / 2, (view.image.shape[1] - 1) / 2
