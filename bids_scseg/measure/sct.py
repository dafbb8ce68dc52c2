"""Lesion statistics by the definitions of the Spinal Cord Toolbox's ``sct_analyze_lesion``, for comparison.

They are taken slice by slice on a native mask, where the project's own are taken across the cord in prepared
space.
"""

from __future__ import annotations

from typing import Any, Literal

import cc3d
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import interpolate

from bids_scseg.errors import GeometryError
from bids_scseg.measure.schema import Column, Value, to_frame
from bids_scseg.space.grid import FloatArray, Grid

SCT_CONNECTIVITY: Literal[18] = 18
#: Smoothing of the cord's B-spline centerline in ``sct_analyze_lesion``: residual sum of squares, voxels².
#: With it the toolbox's lengths are met to 1e-5.
SCT_SMOOTH = 30.0
SPLINE_DEGREE = 3

SCT_COLUMNS: tuple[Column, ...] = (
    Column(name="label", dtype="Int64", description="Number of the lesion, 18-connected."),
    Column(name="volume_mm3", dtype="float64", units="mm^3", description="Voxels times their volume."),
    Column(
        name="length_mm",
        dtype="float64",
        units="mm",
        description="Sum over its slices of slice thickness divided by the cosine of the cord's angle.",
    ),
    Column(
        name="max_equivalent_diameter_mm",
        dtype="float64",
        units="mm",
        description="Diameter of the circle with its largest slice-wise area times that cosine.",
    ),
    Column(
        name="max_axial_damage_ratio",
        dtype="float64",
        description="Largest slice-wise ratio of lesion area to cord area.",
    ),
)


def sct_lesion_table(lesion: npt.NDArray[Any], cord: npt.NDArray[Any] | None, *, grid: Grid) -> pd.DataFrame:
    """Measure the lesions of a native mask slice by slice.

    Parameters
    ----------
    lesion : (i, j, k)
        Lesion mask, nonzero is lesion, any orientation.
    cord : (i, j, k) or None
        Cord mask on the same lattice, 0–1; where given, only lesion voxels inside it (> 0) count.
    grid
        The lattice.

    Returns
    -------
    Frame of :data:`SCT_COLUMNS`, one row per lesion in order of components; only volumes are known without a
    cord.

    Raises
    ------
    GeometryError
        If a mask does not have the lattice's shape.
    """
    for name, mask in (("lesion", lesion), ("cord", cord)):
        if mask is not None and mask.shape != grid.shape:
            raise GeometryError(f"{name} mask of shape {mask.shape}", expected=f"{grid.shape}")
    upright = _upright(lesion, grid) > 0
    spacing = grid.spacing[[axis for axis, _ in grid.canonical_axes()]]
    area = None if cord is None else _upright(cord, grid).astype(np.float64)
    labels = cc3d.connected_components(upright.astype(np.uint8), connectivity=SCT_CONNECTIVITY)
    if area is not None:
        labels = labels * (area > 0)
    cosine = None if area is None else slice_cosines(area, spacing)
    rows = [
        _row(labels == number, int(number), area, cosine, spacing) for number in np.unique(labels[labels > 0])
    ]
    return to_frame(rows, SCT_COLUMNS)


def _upright(volume: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """The same voxels with axes closest to R, A, S, in increasing order."""
    order = grid.canonical_axes()
    turned = np.transpose(volume, [axis for axis, _ in order])
    return np.flip(turned, [index for index, (_, sign) in enumerate(order) if sign < 0])


def slice_cosines(cord: FloatArray, spacing: FloatArray) -> FloatArray:
    """Cosine of the angle between the cord and the slice normal.

    Parameters
    ----------
    cord : (i, j, k)
        Cord mask with slices along the last axis.
    spacing : (3,)
        mm.

    Returns
    -------
    (k,) float64; NaN outside the cord's first and last slice, 1 everywhere for a cord of fewer than two
    slices.
    """
    mass = cord.sum(axis=(0, 1))
    seen = np.flatnonzero(mass > 0)
    cosine = np.full(cord.shape[2], np.nan)
    if seen.size == 0:
        return cosine
    inside = np.arange(seen[0], seen[-1] + 1)
    if seen.size < 2:
        cosine[inside] = 1.0
        return cosine
    profiles = (cord.sum(axis=1)[:, seen], cord.sum(axis=0)[:, seen])
    centres = [(np.arange(len(p))[:, None] * p).sum(axis=0) / mass[seen] for p in profiles]
    slopes = [_spline_slope(seen, x, inside) * step for x, step in zip(centres, spacing[:2], strict=True)]
    cosine[inside] = spacing[2] / np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + spacing[2] ** 2)
    return cosine


def _spline_slope(z: npt.NDArray[np.intp], x: FloatArray, at: npt.NDArray[np.intp]) -> FloatArray:
    """Slope (voxels per slice) of a smoothing spline through the cord's centres."""
    degree = SPLINE_DEGREE if z.size > SPLINE_DEGREE else 1
    spline = interpolate.UnivariateSpline(z, x, k=degree, s=SCT_SMOOTH)
    return np.asarray(spline.derivative()(at))


def _row(
    lesion: npt.NDArray[np.bool_],
    number: int,
    cord: FloatArray | None,
    cosine: FloatArray | None,
    spacing: FloatArray,
) -> dict[str, Value]:
    row: dict[str, Value] = {"label": number, "volume_mm3": float(lesion.sum() * spacing.prod())}
    if cord is None or cosine is None:
        return row
    counts = lesion.sum(axis=(0, 1))
    here = np.flatnonzero(counts)
    area = counts[here] * spacing[0] * spacing[1] * cosine[here]
    row["length_mm"] = float((spacing[2] / cosine[here]).sum())
    row["max_equivalent_diameter_mm"] = float(2 * np.sqrt(area.max() / np.pi))
    row["max_axial_damage_ratio"] = float((counts[here] / cord.sum(axis=(0, 1))[here]).max())
    return row
