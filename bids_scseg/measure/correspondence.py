"""Places in the cords of two sessions of one person: the same place has the same coordinates.

The patient lies otherwise in each session and bends the neck otherwise, so places are compared in cord
coordinates: along the cord, and across it from each session's own centerline. Only what is along the cord has
to come from an alignment of the two worlds. The shared position is the mean of the two arc lengths that the
alignment brings together, so neither session is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.cordcoords import CordPoints, centerline_of, cord_coordinates, cord_to_world
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray, Grid, transform_points
from bids_scseg.space.resample import footprint_offsets

#: Distance of the positions along the cord at which two sessions are brought together (ours: the centerline
#: is smooth over 4 mm).
NODE_MM = 4.0
#: Voxels are cut into pieces of this size, so that a thick slice is not a single point (ours).
PIECE_MM = 1.0
#: Least step between matched positions: keeps the map invertible where a bend folds it (ours).
LEAST_STEP_MM = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArcMap:
    """Positions along two cords that are the same place.

    Attributes
    ----------
    first_mm, second_mm : (n,) float64
        Arc lengths along the anchors' centerlines of the two sessions, both strictly increasing, n ≥ 1.
        Between them linear, beyond the ends both go on alike.
    """

    first_mm: FloatArray
    second_mm: FloatArray

    @property
    def reversed(self) -> ArcMap:
        """The same with the sessions exchanged."""
        return ArcMap(first_mm=self.second_mm, second_mm=self.first_mm)

    def to_second(self, arc_mm: npt.ArrayLike) -> FloatArray:
        """(n,) arc lengths of the first session to those of the second."""
        arc = np.asarray(arc_mm, dtype=np.float64)
        below, above = np.minimum(arc - self.first_mm[0], 0), np.maximum(arc - self.first_mm[-1], 0)
        return np.asarray(np.interp(arc, self.first_mm, self.second_mm) + below + above)

    def shared(self, arc_mm: npt.ArrayLike) -> FloatArray:
        """(n,) arc lengths of the first session to the position that both sessions share, mm."""
        return np.asarray((np.asarray(arc_mm, dtype=np.float64) + self.to_second(arc_mm)) / 2)


def arc_map(first: Geometry, second: Geometry, *, xfm: npt.ArrayLike) -> ArcMap:
    """Bring the cords of two sessions together by a rigid transform.

    Parameters
    ----------
    first, second
        The sessions' geometries; their anchors' centerlines count.
    xfm : (4, 4)
        Reference world mm of the first session to that of the second.

    Returns
    -------
    ArcMap
        Nodes where the first session's cord was seen.
    """
    line, other = centerline_of(first, first.anchor), centerline_of(second, second.anchor)
    s = nodes_of(line)
    middle = CordPoints(s_mm=s, u_mm=np.zeros(s.size), v_mm=np.zeros(s.size))
    world = transform_points(xfm, cord_to_world(middle, first, key=first.anchor))
    foot = coordinates_of(world, second).s_mm
    arcs = line.arc_length(s), _increasing(other.arc_length(foot))
    return ArcMap(first_mm=arcs[0], second_mm=arcs[1])


def nodes_of(line: Centerline) -> FloatArray:
    """(n,) positions s along a centerline, evenly between the ends of what was measured."""
    seen = line.s_mm[line.measured] if line.measured.any() else line.s_mm
    count = max(round(float(seen[-1] - seen[0]) / NODE_MM), 1) + 1
    return np.linspace(seen[0], seen[-1], count) if seen[-1] > seen[0] else seen[:1].copy()


def _increasing(arc: FloatArray) -> FloatArray:
    steps = LEAST_STEP_MM * np.arange(arc.size)
    return np.asarray(np.maximum.accumulate(arc - steps) + steps)


def arc_map_of_origins(first_mm: float, second_mm: float) -> ArcMap:
    """Bring two cords together by the arc lengths of one place of the anatomy; distances from it agree."""
    return ArcMap(first_mm=np.array([first_mm]), second_mm=np.array([second_mm]))


def coordinates_of(world: FloatArray, geometry: Geometry) -> CordPoints:
    """(n, 3) reference world mm to cord coordinates along the anchor's centerline."""
    key = geometry.anchor
    return cord_coordinates(geometry.to_prepared(world, key=key), geometry, key=key)


def lesion_points(labels: npt.NDArray[np.generic], grid: Grid, geometry: Geometry) -> dict[int, CordPoints]:
    """Places that fill each lesion, in cord coordinates of its session.

    Parameters
    ----------
    labels : (i, j, k)
        Lesion numbers on a lattice of the reference world (that of the fused anchor); 0 is nothing.
    grid
        Its lattice.
    geometry
        The session's.

    Returns
    -------
    Lesion number → points of equal volume. Empty without lesions.
    """
    values = np.round(np.asarray(labels, dtype=np.float32)).astype(int)
    where = np.argwhere(values > 0)
    numbers = values[tuple(where.T)]
    offsets = footprint_offsets(grid.spacing, PIECE_MM)
    found = {}
    for number in np.unique(numbers).tolist():
        pieces = (where[numbers == number][:, None, :] + offsets).reshape(-1, 3)
        found[number] = coordinates_of(grid.to_world(pieces), geometry)
    return found


def shared_points(points: CordPoints, geometry: Geometry, arcs: ArcMap) -> FloatArray:
    """(n, 3) mm: shared position along the cord, and offsets to the right and to the front.

    Parameters
    ----------
    points, geometry
        Of one session.
    arcs
        From that session to the other.
    """
    along = arcs.shared(centerline_of(geometry, geometry.anchor).arc_length(points.s_mm))
    return np.column_stack([along, points.u_mm, points.v_mm])


def in_other(points: CordPoints, geometry: Geometry, other: Geometry, *, arcs: ArcMap) -> FloatArray:
    """(n, 3) reference world mm of the other session: where points of one session lie there.

    Parameters
    ----------
    points, geometry
        Of one session.
    other, arcs
        The other session, and the map from the one to the other.
    """
    arc = arcs.to_second(centerline_of(geometry, geometry.anchor).arc_length(points.s_mm))
    s_mm = position_of(arc, centerline_of(other, other.anchor))
    return cord_to_world(replace(points, s_mm=s_mm), other, key=other.anchor)


def position_of(arc_mm: FloatArray, line: Centerline) -> FloatArray:
    """(n,) arc lengths to positions s, mm: the inverse of :meth:`Centerline.arc_length`."""
    nodes = line.arc_length(line.s_mm)
    below, above = np.minimum(arc_mm - nodes[0], 0), np.maximum(arc_mm - nodes[-1], 0)
    return np.asarray(np.interp(arc_mm, nodes, line.s_mm) + below + above)


def examined_by(world: FloatArray, geometry: Geometry) -> dict[str, npt.NDArray[np.bool_]]:
    """Which places a session examined, by sequence.

    Parameters
    ----------
    world : (n, 3)
        Reference world mm.
    geometry
        The session's.

    Returns
    -------
    Sequence → (n,) bool: an image of it reaches there, between the ends of the cord found in the session, and
    within the prepared window.
    """
    height = geometry.height(world)
    lines = [line for line in geometry.centerlines.values() if line.measured.any()]
    ends = [(line.s_mm[line.measured][0], line.s_mm[line.measured][-1]) for line in lines]
    low, high = (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else (np.inf, -np.inf)
    inside = (height >= low) & (height <= high)
    inside &= geometry.grid.contains(geometry.to_prepared(world, key=geometry.anchor))
    return {
        key: inside
        & np.any([slab.grid.contains(slab.to_index(world)) for slab in geometry.slabs_of(key)], axis=0)
        for key in geometry.keys
    }


def share_examined(seen: Mapping[str, npt.NDArray[np.bool_]]) -> float:
    """Share of the places that at least one sequence examined; 0 without sequences or places."""
    found = np.any(list(seen.values()), axis=0) if seen else np.zeros(0, bool)
    return float(found.mean()) if found.size else 0.0
