"""Anatomical landmarks along the cord: vertebral levels and the origin of arc length, from label images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.cordcoords import cord_coordinates
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray, Grid, transform_points

LabelKind = Literal["discs", "vertebrae"]
Anatomy = Literal["C2-C3 disc", "pontomedullary junction"]
Origin = Anatomy | Literal["top of the prepared cord"]

#: Values of label images (Spinal Cord Toolbox's convention): vertebra n is 1 = C1 … 7 = C7, 8 = T1 … 19 =
#: T12, 20 = L1 … 24 = L5, 25 = S1; disc n is the disc above vertebra n, so 3 is C2-C3; 50 is the
#: pontomedullary junction.
VERTEBRAE = (
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 13)),
    *(f"L{n}" for n in range(1, 6)),
    "S1",
)
DISC_C2C3 = 3
PONTOMEDULLARY_JUNCTION = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One vertebral level: [bottom, top) along s in mm; approximate where a border was interpolated."""

    name: str
    top_s_mm: float
    bottom_s_mm: float
    approximate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Landmarks:
    """Landmarks of one session, as positions s (mm, grid frame) along the anchor's centerline.

    Attributes
    ----------
    origin_s_mm
        Where arc length is 0.
    kind
        What that place is; ``top of the prepared cord`` (the uppermost cord mask and the grid's margin) is
        no anatomy: such arc lengths must not be compared between subjects or dates.
    levels
        Vertebral levels from top to bottom; empty without labels.
    source
        Who labelled them, in words; empty without labels.
    """

    origin_s_mm: float
    kind: Origin
    levels: tuple[Level, ...] = ()
    source: str = ""

    @property
    def anatomical(self) -> bool:
        """Whether arc length counts from a place in the anatomy."""
        return self.kind in get_args(Anatomy)

    @property
    def ranges(self) -> tuple[tuple[str, float, float], ...]:
        """(name, bottom, top) of the levels, mm along s."""
        return tuple((level.name, level.bottom_s_mm, level.top_s_mm) for level in self.levels)

    def find(self, s_mm: float) -> Level | None:
        """The level at a position; None outside all of them."""
        return next((level for level in self.levels if level.bottom_s_mm <= s_mm < level.top_s_mm), None)


def label_points(
    data: npt.NDArray[Any], grid: Grid, *, xfm: npt.ArrayLike | None = None
) -> dict[int, FloatArray]:
    """Centre of each value of a label image (single voxels, or regions).

    Parameters
    ----------
    data : (i, j, k)
        Integer values, 0 = nothing.
    grid
        Its lattice.
    xfm : (4, 4), optional
        Reference world mm → this image's world mm, where it was drawn on a slab that has been registered.

    Returns
    -------
    value → (3,) reference world mm. Empty for an empty image.
    """
    index = np.argwhere(data > 0)
    values = np.round(np.asarray(data[tuple(index.T)], dtype=np.float64)).astype(int)
    ras = grid.to_world(index)
    if xfm is not None:
        ras = transform_points(np.linalg.inv(np.asarray(xfm, dtype=np.float64)), ras)
    return {int(value): np.asarray(ras[values == value].mean(axis=0)) for value in np.unique(values)}


def fit_landmarks(
    points: Mapping[LabelKind, Mapping[int, npt.ArrayLike]],
    *,
    geometry: Geometry,
    key: str,
) -> Landmarks:
    """Landmarks from labelled points.

    Each point is projected perpendicularly onto the centerline. Borders between levels are the discs; without
    discs, midway between neighbouring vertebrae. Where labels are missing in between, borders are
    interpolated evenly and the levels marked approximate; the outermost level is continued by its neighbour's
    height, marked likewise.

    Parameters
    ----------
    points
        By kind: value → world mm (see :func:`label_points`). May be empty.
    geometry, key
        The map, and the sequence (the anchor) whose centerline counts.

    Returns
    -------
    Landmarks. The origin is the C2-C3 disc (labelled, or midway between labelled C2 and C3), else the
    pontomedullary junction, else the top of the prepared grid.
    """
    placed = {kind: _place(found, geometry, key) for kind, found in points.items()}
    discs, bodies = placed.get("discs", {}), placed.get("vertebrae", {})
    top = float(geometry.s_mm[-1] + geometry.grid.spacing[2] / 2)
    origin, kind = _origin(discs, bodies, top)
    borders = _from_discs(discs) or _from_bodies(bodies)
    return Landmarks(origin_s_mm=origin, kind=kind, levels=_levels(borders))


def _place(points: Mapping[int, npt.ArrayLike], geometry: Geometry, key: str) -> dict[int, float]:
    if not points:
        return {}
    values = sorted(points)
    ras = np.array([points[value] for value in values], dtype=np.float64)
    found = cord_coordinates(geometry.to_prepared(ras, key=key), geometry, key=key)
    return {value: float(s) for value, s in zip(values, found.s_mm, strict=True)}


def _origin(discs: Mapping[int, float], bodies: Mapping[int, float], top: float) -> tuple[float, Origin]:
    if DISC_C2C3 in discs:
        return discs[DISC_C2C3], "C2-C3 disc"
    if {2, 3} <= bodies.keys():
        return (bodies[2] + bodies[3]) / 2, "C2-C3 disc"
    for found in (discs, bodies):
        if PONTOMEDULLARY_JUNCTION in found:
            return found[PONTOMEDULLARY_JUNCTION], "pontomedullary junction"
    return top, "top of the prepared cord"


#: Upper border of each vertebra n: position and whether it was measured.
Borders = dict[int, tuple[float, bool]]


def _spine(found: Mapping[int, float]) -> Borders:
    """Vertebral values, gaps filled evenly; those out of order (upside down) are left out altogether."""
    values = sorted(value for value in found if 1 <= value <= len(VERTEBRAE))
    position = [found[value] for value in values]
    if len(values) < 2 or (np.diff(position) >= 0).any():
        return {}
    filled = range(values[0], values[-1] + 1)
    at = np.interp(filled, values, position)
    return {n: (float(s), n in found) for n, s in zip(filled, at, strict=True)}


def _from_discs(discs: Mapping[int, float]) -> Borders:
    borders = _spine(discs)
    if not borders:
        return {}
    first, last = min(borders), max(borders)
    above = 2 * borders[first][0] - borders[first + 1][0]
    below = 2 * borders[last][0] - borders[last - 1][0]
    ends: Borders = {last + 1: (below, False)}
    if first > 1:
        ends[first - 1] = (above, False)
    return borders | ends


def _from_bodies(bodies: Mapping[int, float]) -> Borders:
    centres = _spine(bodies)
    if not centres:
        return {}
    first, last = min(centres), max(centres)
    borders: Borders = {
        n: ((centres[n - 1][0] + centres[n][0]) / 2, centres[n - 1][1] and centres[n][1])
        for n in range(first + 1, last + 1)
    }
    borders[first] = (2 * centres[first][0] - borders[first + 1][0], False)
    borders[last + 1] = (2 * centres[last][0] - borders[last][0], False)
    return borders


def _levels(borders: Borders) -> tuple[Level, ...]:
    return tuple(
        Level(
            name=VERTEBRAE[n - 1],
            top_s_mm=borders[n][0],
            bottom_s_mm=borders[n + 1][0],
            approximate=not (borders[n][1] and borders[n + 1][1]),
        )
        for n in sorted(borders)
        if n + 1 in borders and n <= len(VERTEBRAE)
    )
