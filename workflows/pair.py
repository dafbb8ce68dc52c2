"""Two sessions of one participant: aligned, their lesions matched, in a worker process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.given import read_geometry
from bids_scseg.bids.timepoints import SessionFiles, origin_world, read_anchor, read_map
from bids_scseg.errors import DataError, ScsegError
from bids_scseg.measure.changes import Alignment, PairFindings, differing
from bids_scseg.measure.cordcoords import CordPoints, centerline_of, cord_to_world
from bids_scseg.measure.correspondence import (
    ArcMap,
    arc_map,
    arc_map_of_origins,
    coordinates_of,
    examined_by,
    in_other,
    lesion_points,
    share_examined,
    shared_points,
)
from bids_scseg.measure.longitudinal import EXAMINED_FROM, Match, PlacedLesion, match_lesions, total_change
from bids_scseg.measure.schema import Value
from bids_scseg.measure.volume_noise import volume_change
from bids_scseg.preprocess.fuse import FAILURES
from bids_scseg.preprocess.realign import Realignment, Timepoint, realign
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray, Grid
from bids_scseg.space.resample import sample_linear

#: Seed of the registrations' sampling.
SEED = 0
NO_IMAGE = "an image of the anchor is not there (name the raw dataset)"

Sizes = dict[int, tuple[float, float]]
#: Values with their lattice.
ProbabilityMap = tuple[npt.NDArray[np.float32], Grid]
#: Lesion number → its places in the world of its own session and of the other one, both (n, 3) mm.
Places = dict[int, tuple[FloatArray, FloatArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSession:
    """One session of a pair, as a worker needs it; paths and plain data only.

    Attributes
    ----------
    files
        Its files.
    sizes, centres
        Lesion number → volume mm³ and length mm; centroid, reference world mm.
    origin_s_mm, origin_kind
        Where arc length counts from, if that is a place of the anatomy.
    """

    files: SessionFiles
    sizes: Sizes
    centres: Mapping[int, tuple[float, float, float]]
    origin_s_mm: float | None = None
    origin_kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairJob:
    """Two sessions to be compared, earlier first; a cached alignment of the two in order of their labels."""

    sessions: tuple[TimedSession, TimedSession]
    cached: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Loaded:
    """A session in memory."""

    session: TimedSession
    geometry: Geometry
    points: Mapping[int, CordPoints]


def needs_alignment(job: PairJob) -> bool:
    """Where neither session has a lesion there is nothing to place."""
    return any(session.sizes for session in job.sessions)


def compare_pair(job: PairJob) -> tuple[PairFindings, Mapping[str, Any] | None]:
    """Align two sessions and match their lesions; what cannot be read or aligned leaves totals only.

    Returns
    -------
    Findings, and the alignment as plain data for the cache (None where images were not registered).
    """
    earlier, later = job.sessions
    total = volume_change(earlier.sizes.values(), later.sizes.values())
    if not needs_alignment(job):
        return PairFindings(state="compared", alignment="not needed", total=total), None
    try:
        loaded = _load(earlier), _load(later)
    except ScsegError as error:
        return PairFindings(state="totals only", reason=str(error), total=total), None
    realigned, facts, note = _realigned(loaded, job.cached)
    arcs, how = _arcs(loaded, realigned)
    if arcs is None:
        return PairFindings(state="totals only", reason=note, total=total), facts
    return _matched(loaded, arcs, how, realigned, note), facts


def _load(session: TimedSession) -> _Loaded:
    """Geometry and lesions of a session.

    Raises
    ------
    ScsegError
        If one is missing or cannot be read.
    """
    found = session.files
    if found.geometry is None or (session.sizes and found.lesions is None):
        what = "geometry" if found.geometry is None else "image of the numbered lesions"
        raise DataError(f"{found.label} has no {what}", remedy="run the session again")
    geometry = read_geometry(found.geometry)
    points: Mapping[int, CordPoints] = {}
    if session.sizes and found.lesions is not None:
        points = lesion_points(*read_map(found.lesions), geometry)
    return _Loaded(session=session, geometry=geometry, points=points)


def _realigned(
    loaded: tuple[_Loaded, _Loaded], cached: Mapping[str, Any] | None
) -> tuple[Realignment | None, Mapping[str, Any] | None, str]:
    """Alignment by image from the session with the lower label to the other one, as data too, and a note.

    Always in the same direction, so that it does not depend on which session is the earlier one.
    """
    first, second = sorted(loaded, key=lambda item: item.session.files.label)
    if first.geometry.anchor != second.geometry.anchor:
        anchors = " and ".join(item.geometry.anchor for item in loaded)
        return None, None, f"the anchors differ ({anchors})"
    if first.session.files.image is None or second.session.files.image is None:
        return None, None, NO_IMAGE
    found = _from_cache(cached)
    if found is None:
        try:
            known = first.session.origin_kind == second.session.origin_kind
            ends = (_timepoint(item, with_origin=known) for item in (first, second))
            found = realign(*ends, seed=SEED)
        except (ScsegError, *FAILURES) as error:
            return None, None, f"the images could not be registered: {error}"
    return found, _to_cache(found), "" if found.registered and found.accepted else found.reason


def _timepoint(loaded: _Loaded, *, with_origin: bool) -> Timepoint:
    image, grid = read_anchor(loaded.session.files, loaded.geometry)
    origin = loaded.session.origin_s_mm
    return Timepoint(
        image=image,
        grid=grid,
        geometry=loaded.geometry,
        origin_mm=origin_world(loaded.geometry, origin) if with_origin and origin is not None else None,
    )


def _arcs(loaded: tuple[_Loaded, _Loaded], realigned: Realignment | None) -> tuple[ArcMap | None, Alignment]:
    """Positions along the cord that are the same, earlier session first; None if nothing tells."""
    earlier, later = loaded
    if realigned is not None and realigned.accepted:
        first, second = sorted(loaded, key=lambda item: item.session.files.label)
        arcs = arc_map(first.geometry, second.geometry, xfm=realigned.xfm)
        return (
            arcs if first is earlier else arcs.reversed,
            "registration" if realigned.registered else "start",
        )
    origins = [item.session.origin_s_mm for item in loaded]
    if origins[0] is None or origins[1] is None or earlier.session.origin_kind != later.session.origin_kind:
        return None, "none"
    arc = [
        float(centerline_of(item.geometry, item.geometry.anchor).arc_length(s)[0])
        for item, s in zip(loaded, (origins[0], origins[1]), strict=True)
    ]
    return arc_map_of_origins(arc[0], arc[1]), "levels"


def _matched(
    loaded: tuple[_Loaded, _Loaded],
    arcs: ArcMap,
    how: Alignment,
    realigned: Realignment | None,
    note: str,
) -> PairFindings:
    earlier, later = loaded
    before, there = _placed(earlier, later, arcs)
    after, back = _placed(later, earlier, arcs.reversed)
    matches = match_lesions(before, after)
    facts = {}
    if realigned is not None and how != "levels":
        facts = {
            "similarity": realigned.similarity_after,
            "inverse_mm": realigned.inverse_mm,
            "apart_mm": realigned.apart_mm,
        }
    return PairFindings(
        state="compared",
        reason=note,
        alignment=how,
        facts=facts,
        matches=matches,
        extras=_extras(matches, loaded, (there, back)),
        total=total_change(matches, before, after),
    )


def _placed(own: _Loaded, other: _Loaded, arcs: ArcMap) -> tuple[list[PlacedLesion], Places]:
    """Lesions of a session in shared coordinates, and their places in both worlds."""
    placed: list[PlacedLesion] = []
    worlds: Places = {}
    for number, size in own.session.sizes.items():
        points = own.points.get(number)
        if points is None:  # so small that no voxel of the image is its own
            points = coordinates_of(np.array([own.session.centres[number]]), own.geometry)
        there = in_other(points, own.geometry, other.geometry, arcs=arcs)
        worlds[number] = cord_to_world(points, own.geometry, key=own.geometry.anchor), there
        placed.append(
            PlacedLesion(
                number=number,
                volume_mm3=size[0],
                length_mm=size[1],
                points=shared_points(points, own.geometry, arcs),
                examined=share_examined(examined_by(there, other.geometry)),
            )
        )
    return placed, worlds


def _extras(
    matches: Sequence[Match], loaded: tuple[_Loaded, _Loaded], worlds: tuple[Places, Places]
) -> tuple[dict[str, Value], ...]:
    """What else the images say of each match; a probability map is read at most once."""
    maps: dict[int, ProbabilityMap | None] = {}
    out = []
    for match in matches:
        row = _extra(match, loaded, worlds)
        if not match.before or not match.after:
            side = 1 if match.after else 0
            if 1 - side not in maps:
                maps[1 - side] = _probability_map(loaded[1 - side])
            number = (match.after or match.before)[0]
            row["other_probability"] = _highest(maps[1 - side], worlds[side][number][1])
        out.append(row)
    return tuple(out)


def _extra(
    match: Match,
    loaded: tuple[_Loaded, _Loaded],
    worlds: tuple[Places, Places],
) -> dict[str, Value]:
    """Sequences that cover a match in one of the sessions only."""
    side = 1 if match.after else 0
    numbers = match.after if match.after else match.before
    own, other = loaded[side], loaded[1 - side]
    world = np.concatenate([worlds[side][number][1] for number in numbers])
    here = np.concatenate([worlds[side][number][0] for number in numbers])
    seen = [_covering(here, own.geometry), _covering(world, other.geometry)]
    return {"sequences_differ": differing(*(seen if side == 0 else seen[::-1]))}


def _covering(world: FloatArray, geometry: Geometry) -> str:
    """Sequences that cover most of some places, joined by +."""
    seen = examined_by(world, geometry)
    return "+".join(key for key, here in seen.items() if here.mean() >= EXAMINED_FROM)


def _probability_map(loaded: _Loaded) -> ProbabilityMap | None:
    """A session's lesion probability with its lattice; None if it cannot be read."""
    path = loaded.session.files.probability
    if path is None:
        return None
    try:
        return read_map(path)
    except ScsegError:
        return None


def _highest(found: ProbabilityMap | None, world: FloatArray) -> float | None:
    """Highest probability at some places."""
    if found is None:
        return None
    data, grid = found
    return float(sample_linear(data, grid.to_index(world)).max(initial=0.0))


# -- alignments as plain data ----------------------------------------------------------------------


def _to_cache(found: Realignment) -> dict[str, Any]:
    data = {name: _plain(value) for name, value in asdict(found).items()}
    return json.loads(json.dumps(data)) if data else {}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _from_cache(data: Mapping[str, Any] | None) -> Realignment | None:
    """An alignment of the cache; None if there is none or it is damaged."""
    if data is None or set(data) != {item.name for item in fields(Realignment)}:
        return None
    try:
        xfm = np.asarray(data["xfm"], dtype=np.float64)
        numbers = {
            name: float("nan") if value is None else float(value)
            for name, value in data.items()
            if name not in ("xfm", "accepted", "registered", "reason")
        }
    except (TypeError, ValueError):
        return None
    if xfm.shape != (4, 4) or not np.isfinite(xfm).all():
        return None
    return Realignment(
        xfm=xfm,
        accepted=data["accepted"] is True,
        registered=data["registered"] is True,
        reason=str(data["reason"]),
        **numbers,
    )
