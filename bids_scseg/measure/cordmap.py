"""Where lesions lie in cord coordinates: small maps of one session that can be added over a cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.cordcoords import CordPoints, centerline_of, cord_coordinates, slice_arc_mm
from bids_scseg.measure.instances import CORD_FROM, Labels
from bids_scseg.measure.landmarks import Landmarks
from bids_scseg.measure.session import cord_range, examined_slices
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray

BoolArray = npt.NDArray[np.bool_]

#: Length of a bin along the cord: a sagittal slab's slice thickness is 2 to 4 mm (ours).
BIN_MM = 5.0
#: Borders of the rings across the cord, in radii of its elliptic cross-section; the last ring is open,
#: because a lesion may pass the mask's rim. The first is that of the column "central".
RING_EDGES = (0.0, 0.3, 0.55, 0.8)
#: Sectors across the cord, 15 degrees each, from dorsal over the patient's left and ventral to his right;
#: borders of the columns (±45 and ±135 degrees) are borders of sectors.
SECTORS = 24
#: Fewest cord voxels in a bin for its half-axes (ours: a slice of a thin cord).
MIN_VOXELS = 80


def cord_map(
    labels: Labels,
    *,
    coverage: npt.NDArray[np.bool_],
    cord: npt.NDArray[np.generic],
    geometry: Geometry,
    landmarks: Landmarks,
) -> dict[str, object]:
    """Lesion and examined cord along the cord and across it.

    Parameters
    ----------
    labels, cord : (i, j, k)
        Lesion numbers and cord mask (0–1) in the anchor's prepared space.
    coverage : (S, i, j, k) bool
        Where each sequence has data.
    geometry, landmarks
        The map, and where arc length counts from.

    Returns
    -------
    Plain data. ``bin_mm``; ``first``: number of the first bin (bin ``b`` reaches from ``b * bin_mm`` to
    ``(b + 1) * bin_mm`` below the origin); ``cord_mm``, ``examined_mm``: length of cord found, and of that
    examined, per bin; ``cord_mm3``, ``lesion_mm3``: volume of examined cord and of lesion, per bin;
    ``ring_edges``, ``sectors``; ``across_cord_mm3``, ``across_lesion_mm3``: the same over rings (from inside)
    and sectors (from dorsal over left, ventral and right), row by row; ``levels``: name, top and bottom in mm
    below the origin; ``anatomical``; ``origin_s_mm``: the origin along the grid's S-I axis.
    Without any examined cord the lists are empty.
    """
    mask = np.asarray(cord, dtype=np.float32) >= CORD_FROM
    within = cord_range(np.asarray(cord, dtype=np.float64), coverage)
    seen = np.asarray(examined_slices(np.asarray(cord, np.float64), coverage, geometry).any(axis=0)) & within
    line = centerline_of(geometry, geometry.anchor)
    origin = float(line.arc_length(landmarks.origin_s_mm)[0])
    out: dict[str, object] = {
        "bin_mm": BIN_MM, "ring_edges": list(RING_EDGES), "sectors": SECTORS,
        "anatomical": landmarks.anatomical, "origin_s_mm": landmarks.origin_s_mm,
        "levels": [
            [level.name, *(origin - line.arc_length([level.top_s_mm, level.bottom_s_mm])).tolist()]
            for level in landmarks.levels
        ],
    }  # fmt: skip
    if not seen.any():
        return {**out, "first": 0, **{key: [] for key in _LISTS}}
    return {**out, **_volumes(mask, labels > 0, within, seen, geometry, origin)}


def _volumes(
    mask: BoolArray, lesion: BoolArray, within: BoolArray, seen: BoolArray, geometry: Geometry, origin: float
) -> dict[str, object]:
    """The lists of the map: slices ``within`` the cord's ends, of which ``seen`` were examined."""
    line = centerline_of(geometry, geometry.anchor)
    where = np.argwhere((mask | lesion) & seen)
    points = cord_coordinates(where, geometry, key=geometry.anchor)
    below = origin - line.arc_length(points.s_mm)
    in_cord, in_lesion = mask[tuple(where.T)], lesion[tuple(where.T)]
    slices = origin - line.arc_length(geometry.s_mm)
    edges = _edges([below, slices[within]])
    voxel = geometry.grid.voxel_volume
    arc = slice_arc_mm(geometry, geometry.anchor)
    radius, angle = _polar(points, np.digitize(below, edges), in_cord)
    return {
        "first": round(edges[0] / BIN_MM),
        "cord_mm": _along(slices[within], edges, arc[within]),
        "examined_mm": _along(slices[seen], edges, arc[seen]),
        "cord_mm3": _along(below[in_cord], edges, voxel),
        "lesion_mm3": _along(below[in_lesion], edges, voxel),
        "across_cord_mm3": _across(radius[in_cord], angle[in_cord], voxel),
        "across_lesion_mm3": _across(radius[in_lesion], angle[in_lesion], voxel),
    }


_LISTS = ("cord_mm", "examined_mm", "cord_mm3", "lesion_mm3", "across_cord_mm3", "across_lesion_mm3")


def _edges(positions: Sequence[FloatArray]) -> FloatArray:
    low = min(float(found.min()) for found in positions if found.size)
    high = max(float(found.max()) for found in positions if found.size)
    return np.arange(np.floor(low / BIN_MM), np.floor(high / BIN_MM) + 2) * BIN_MM


def _along(positions: FloatArray, edges: FloatArray, weight: float | FloatArray) -> list[float]:
    weights = np.broadcast_to(np.asarray(weight, dtype=np.float64), positions.shape)
    return _rounded(np.histogram(positions, bins=edges, weights=weights)[0])


def _polar(
    points: CordPoints, bins: npt.NDArray[np.intp], in_cord: npt.NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Radius relative to the cord's ellipse in the same bin, and angle in degrees, of every point."""
    half = np.ones((2, points.s_mm.size))
    whole = np.array([_half_axis(points.u_mm[in_cord]), _half_axis(points.v_mm[in_cord])])
    half *= whole[:, None]
    for number in np.unique(bins):
        here = bins == number
        own = here & in_cord
        if own.sum() >= MIN_VOXELS:
            half[0, here], half[1, here] = _half_axis(points.u_mm[own]), _half_axis(points.v_mm[own])
    x, y = points.u_mm / half[0], points.v_mm / half[1]
    return np.hypot(x, y), np.degrees(np.arctan2(x, y))


def _half_axis(values: FloatArray) -> float:
    """Half-axis of the ellipse with these second moments: 2 standard deviations."""
    return max(2 * float(values.std()), 1e-6) if values.size else 1.0


def _across(radius: FloatArray, angle: FloatArray, voxel: float) -> list[float]:
    ring = np.digitize(radius, RING_EDGES) - 1
    sector = np.minimum(((angle + 180) / 360 * SECTORS).astype(int), SECTORS - 1)
    counts = np.bincount(ring * SECTORS + sector, minlength=len(RING_EDGES) * SECTORS)
    return _rounded(counts * voxel)


def _rounded(values: npt.NDArray[np.floating]) -> list[float]:
    return [round(float(value), 2) for value in values]
