"""Cord coordinates: where a point lies along and across the cord, and cross-sections perpendicular to it.

A point's foot is the centerline point whose perpendicular plane contains it. The plane is spanned by ``u``,
the patient's Right made perpendicular to the cord, and ``v``, which points Anterior (ventral). The cord is
taken not to be rotated about its own axis. All lengths are mm; ``s`` is the position along the grid's S-I
axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray
from bids_scseg.space.resample import sample_linear

CordColumn = Literal["dorsal", "lateral left", "lateral right", "ventral", "central"]

#: Newton steps to a point's foot; with cord curvature radii above 30 mm four leave less than 1e-3 mm.
FOOT_STEPS = 4
#: Sectors of the cross-section, degrees from the ventral midline after scaling the cord to a circle. Ours:
#: the dorsal and the ventral column each take the quarter between the horns, the lateral columns the rest.
VENTRAL_BELOW_DEG = 45.0
DORSAL_ABOVE_DEG = 135.0
#: Below this fraction of the cord's radius a lesion has no side (ours: about the grey commissure).
CENTRAL_BELOW = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CordPoints:
    """Points in cord coordinates: foot ``s_mm``, ``u_mm`` to the right, ``v_mm`` to the front, all (n,)."""

    s_mm: FloatArray
    u_mm: FloatArray
    v_mm: FloatArray


def centerline_of(geometry: Geometry, key: str) -> Centerline:
    """The centerline that prepared space follows: the sequence's own, else the straight middle axis."""
    line = geometry.centerlines.get(key)
    if line is not None:
        return line
    middle = geometry.axis_mm[None, :]
    return Centerline(s_mm=geometry.s_mm[:1], xy_mm=middle, measured=np.zeros(1, bool))


def slice_arc_mm(geometry: Geometry, key: str) -> FloatArray:
    """(k,) float64: length of centerline within each prepared slice, mm."""
    half = geometry.grid.spacing[2] / 2
    line = centerline_of(geometry, key)
    return np.asarray(line.arc_length(geometry.s_mm + half) - line.arc_length(geometry.s_mm - half))


def cord_coordinates(ijk: npt.ArrayLike, geometry: Geometry, *, key: str) -> CordPoints:
    """Prepared indices to cord coordinates.

    Parameters
    ----------
    ijk : (n, 3)
        Indices in the prepared space of ``key``.
    geometry, key
        The map and the sequence whose centerline counts.

    Returns
    -------
    CordPoints of n points; n may be 0.
    """
    line = centerline_of(geometry, key)
    index = np.asarray(ijk, dtype=np.float64).reshape(-1, 3)
    spacing, shape = geometry.grid.spacing, geometry.grid.shape
    s = geometry.s_mm[0] + index[:, 2] * spacing[2]
    across = (index[:, :2] - (np.asarray(shape[:2]) - 1) / 2) * spacing[:2] + line.at(s)
    point = np.column_stack([across, s])
    foot = s.copy()
    for _ in range(FOOT_STEPS):
        tangent = line.tangent(foot)
        along = ((point - _on_line(line, foot)) * tangent).sum(axis=1)
        foot = foot + along * tangent[:, 2]
    right, front = _across(line, foot)
    offset = point - _on_line(line, foot)
    return CordPoints(s_mm=foot, u_mm=(offset * right).sum(axis=1), v_mm=(offset * front).sum(axis=1))


def cord_to_world(points: CordPoints, geometry: Geometry, *, key: str) -> FloatArray:
    """(n, 3) reference world mm of points in cord coordinates: the inverse of :func:`cord_coordinates`."""
    line = centerline_of(geometry, key)
    right, front = _across(line, points.s_mm)
    place = _on_line(line, points.s_mm) + points.u_mm[:, None] * right + points.v_mm[:, None] * front
    return np.asarray(place @ geometry.grid.axes.T)


def section_index(
    s_mm: npt.ArrayLike, geometry: Geometry, *, key: str, u: FloatArray, v: FloatArray
) -> FloatArray:
    """Prepared indices of the points of planes perpendicular to the cord.

    Parameters
    ----------
    s_mm : (n,)
        Feet of the planes.
    geometry, key
        The map and the sequence whose centerline counts.
    u, v : (nu,), (nv,) float64
        Positions to the right and to the front within a plane, mm.

    Returns
    -------
    (n, nu, nv, 3) float64 indices, not limited to the grid.
    """
    line = centerline_of(geometry, key)
    s = np.atleast_1d(np.asarray(s_mm, dtype=np.float64))
    right, front = _across(line, s)
    point = (
        _on_line(line, s)[:, None, None]
        + u[None, :, None, None] * right[:, None, None]
        + v[None, None, :, None] * front[:, None, None]
    )
    spacing, shape = geometry.grid.spacing, geometry.grid.shape
    across = (point[..., :2] - line.at(point[..., 2])) / spacing[:2] + (np.asarray(shape[:2]) - 1) / 2
    up = (point[..., 2:] - geometry.s_mm[0]) / spacing[2]
    return np.concatenate([across, up], axis=-1)


def sample_sections(volume: npt.NDArray[np.generic], index: FloatArray) -> npt.NDArray[np.float32]:
    """Linear samples of a prepared volume (i, j, k) at (..., 3) indices; only slices in reach are read."""
    low = max(int(np.floor(index[..., 2].min())) - 1, 0)
    high = min(int(np.ceil(index[..., 2].max())) + 2, volume.shape[2])
    if high <= low:
        return np.zeros(index.shape[:-1], np.float32)
    return sample_linear(volume[:, :, low:high], index - np.array([0.0, 0.0, low]))


def cord_column(u_mm: float, v_mm: float, *, half_u_mm: float, half_v_mm: float) -> CordColumn | None:
    """Column of the cord in which a point lies; None where the cord's half-axes are not known (NaN).

    Parameters
    ----------
    u_mm, v_mm
        Offset from the cord's centre to the patient's right and front.
    half_u_mm, half_v_mm
        Half-axes of the cord's cross-section.
    """
    if not (half_u_mm > 0 and half_v_mm > 0):
        return None
    x, y = u_mm / half_u_mm, v_mm / half_v_mm
    if np.hypot(x, y) < CENTRAL_BELOW:
        return "central"
    angle = abs(np.degrees(np.arctan2(x, y)))
    if angle <= VENTRAL_BELOW_DEG:
        return "ventral"
    if angle >= DORSAL_ABOVE_DEG:
        return "dorsal"
    return "lateral right" if x > 0 else "lateral left"


def _on_line(line: Centerline, s_mm: FloatArray) -> FloatArray:
    return np.column_stack([line.at(s_mm), s_mm])


def _across(line: Centerline, s_mm: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Unit vectors (n, 3) to the right and to the front, perpendicular to the cord."""
    tangent = line.tangent(s_mm)
    right = np.array([1.0, 0.0, 0.0]) - tangent * tangent[:, :1]
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return right, np.asarray(np.cross(tangent, right), dtype=np.float64)
