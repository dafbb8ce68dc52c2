"""Draws a procedural subject and evaluates its tissues on any lattice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bids_scseg.synth.painting import MUSCLE_GRID, paint
from bids_scseg.synth.subject import (
    AREA_MM2,
    CAUDA_EQUINA,
    FORAMEN_MM,
    SEGMENT_MM,
    STEP_MM,
    VERTEBRAE,
    Anatomy,
    Doubles,
    Floats,
    Profiles,
    Rng,
    centerline_world,
    cord_area_mm2,
    cord_coordinates,
    level_of,
    smooth_nodes,
    to_subject,
    to_world,
    z_axis,
)
from bids_scseg.synth.tissues import CORD_TISSUES, N_TISSUES, Tissue

__all__ = [
    "CORD_TISSUES",
    "N_TISSUES",
    "Anatomy",
    "Tissue",
    "centerline_world",
    "cord_area_mm2",
    "cord_coordinates",
    "draw_anatomy",
    "level_of",
    "tissue_map",
    "to_subject",
    "to_world",
]

#: Points painted at once: small enough for the processor's cache.
CHUNK = 1 << 15
#: Spread (standard deviation) of the cord's area between subjects; reported are 8-12 %.
AREA_CV = 0.09


def draw_anatomy(rng: Rng, *, cord_scale: float = 1.0, cauda: tuple[float, float] = CAUDA_EQUINA) -> Anatomy:
    """A subject drawn from ``rng``; the same state of ``rng`` gives the same subject.

    Parameters
    ----------
    rng
        Source of everything random.
    cord_scale
        Factor of the area of cord and brainstem, beyond what varies between healthy subjects: below 1 for
        atrophy.
    cauda
        How the cauda equina looks, see `Anatomy.cauda`.
    """
    z = z_axis()
    stature = float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12))
    slope = _draw_slope(rng, z, stature)
    arc = _arc_from_slope(slope, z)
    discs, levels = _levels(z, arc, stature)
    profiles = _draw_profiles(rng, z, slope=slope, arc=arc, discs=discs, levels=levels, cord_scale=cord_scale)
    tilt = np.deg2rad(rng.normal(0, [2.0, 2.5, 3.0]))
    return Anatomy(
        profiles=profiles,
        disc_z=discs,
        level_z=levels,
        rotation=_rotation(tilt),
        offset=rng.uniform([-12, -25, 0], [12, 15, 60]),
        conus_z=_middle(levels["L1"]) - 8,
        muscle=_draw_muscles(rng),
        wobble=_draw_wobble(rng),
        shape=np.clip(rng.normal(1, 0.1, 12), 0.75, 1.25),
        cauda=cauda,
    )


def tissue_map(anatomy: Anatomy, shape: tuple[int, int, int], affine: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The subject's tissues at the voxel centres of a lattice.

    Parameters
    ----------
    anatomy
        The subject.
    shape
        Voxels ``(i, j, k)``.
    affine
        Index → world RAS+ mm, ``(4, 4)``; any orientation, oblique too.

    Returns
    -------
    numpy.ndarray
        `Tissue` values, ``(i, j, k)`` uint8; air outside the subject.
    """
    turn = anatomy.rotation.T
    matrix = np.asarray(affine, float)
    steps, start = turn @ matrix[:3, :3], turn @ (matrix[:3, 3] - anatomy.offset)
    ijk = [np.arange(n, dtype=np.float32) for n in shape]
    out = np.empty(shape, np.uint8)
    rows = max(1, CHUNK // (shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        i = ijk[0][first : first + rows]
        grid = [
            np.float32(start[a])
            + np.float32(steps[a, 0]) * i[:, None, None]
            + np.float32(steps[a, 1]) * ijk[1][None, :, None]
            + np.float32(steps[a, 2]) * ijk[2][None, None, :]
            for a in range(3)
        ]
        xyz = np.stack([axis.ravel() for axis in grid])
        for at in range(0, xyz.shape[1], CHUNK):
            flat = out[first : first + rows].reshape(-1)
            flat[at : at + CHUNK] = paint(anatomy, xyz[:, at : at + CHUNK])
    return out


def _middle(span: tuple[float, float]) -> float:
    return (span[0] + span[1]) / 2


def _rotation(angles: Doubles) -> Doubles:
    """Rotation about x, then y, then z by ``angles`` in radians."""
    turns = []
    for axis, angle in enumerate(angles):
        one, two = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        turns.append(turn)
    return np.asarray(turns[2] @ turns[1] @ turns[0])


def _draw_slope(rng: Rng, z: Doubles, stature: float) -> Doubles:
    """Slopes dx/dz and dy/dz of the cord ``(2, n)``: lordosis, kyphosis, a little scoliosis."""
    lordosis, lean, kyphosis = rng.normal(0, 0.12), rng.normal(0, 0.09), rng.normal(0, 0.08)
    nodes = {
        100.0: 0.25, 55.0: 0.22 + lean, 30.0: 0.06 + lean - lordosis, 0.0: 0.02 + lean - lordosis,
        -45.0: 0.18 + lean + lordosis, -95.0: 0.42 + lean + lordosis / 2, -150.0: 0.28 + kyphosis,
        -210.0: 0.03, -290.0: -0.18 - kyphosis, -380.0: -0.28 - kyphosis, -460.0: -0.1,
    }  # fmt: skip
    slope_y = smooth_nodes({k * stature: v for k, v in nodes.items()}, z)
    slope_x = np.zeros_like(z)
    for period in (700.0, 330.0):
        # amplitude in mm of the sideways swing, then its derivative
        swing = rng.normal(0, 2.0) * 2 * np.pi / period
        slope_x += swing * np.cos(2 * np.pi * z / period + rng.uniform(0, 2 * np.pi))
    return np.stack([slope_x, slope_y])


def _arc_from_slope(slope: Doubles, z: Doubles) -> Doubles:
    arc = np.cumsum(np.sqrt(1 + (slope**2).sum(0))) * STEP_MM
    return np.asarray(arc - np.interp(0.0, z, arc))


def _levels(
    z: Doubles, arc: Doubles, stature: float
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Heights of the discs and of the vertebrae between them; the C2-C3 disc is at z = 0."""
    heights = np.array([0.0, *np.cumsum(list(SEGMENT_MM.values()))]) * stature
    edges = np.interp(-heights, arc, z)
    discs = {f"{VERTEBRAE[i + 1]}-{VERTEBRAE[i + 2]}": float(edge) for i, edge in enumerate(edges[:-1])}
    levels = {"C1": (24.0 * stature, FORAMEN_MM), "C2": (0.0, 24.0 * stature)}
    levels |= {name: (float(edges[i + 1]), float(edges[i])) for i, name in enumerate(SEGMENT_MM)}
    return discs, levels


def _draw_profiles(
    rng: Rng,
    z: Doubles,
    *,
    slope: Doubles,
    arc: Doubles,
    discs: dict[str, float],
    levels: dict[str, tuple[float, float]],
    cord_scale: float,
) -> Profiles:
    """All tables along z."""
    mid = {name: _middle(span) for name, span in levels.items()}
    tables = {
        "slope_x": slope[0], "slope_y": slope[1], "arc": arc,
        "x": _integrate(slope[0], z), "y": _integrate(slope[1], z),
        **_cord_tables(rng, z, mid, cord_scale),
        **_canal_tables(rng, z, mid),
        **_vertebra_tables(rng, z, mid, discs=discs, levels=levels),
        **_outline_tables(rng, z, mid),
    }  # fmt: skip
    return Profiles(**{name: np.ascontiguousarray(table, np.float32) for name, table in tables.items()})


def _integrate(slope: Doubles, z: Doubles) -> Doubles:
    curve = np.cumsum(slope) * STEP_MM
    return np.asarray(curve - np.interp(0.0, z, curve))


def _at(
    mid: dict[str, float], values: dict[str, float], extra: dict[float, float] | None = None
) -> dict[float, float]:
    return {mid[level]: value for level, value in values.items()} | (extra or {})


def _cord_tables(rng: Rng, z: Doubles, mid: dict[str, float], scale: float) -> dict[str, Doubles]:
    """Half axes of the cord (then of the brainstem) and relative size of its grey matter."""
    size = scale * float(np.clip(rng.normal(1.0, AREA_CV), 0.78, 1.25))
    wave = sum(
        rng.normal(0, 0.012) * np.sin(2 * np.pi * z / p + rng.uniform(0, 6.3)) for p in (23.0, 51.0, 110.0)
    )
    stem = {FORAMEN_MM + 4: 88.0, FORAMEN_MM + 14: 150.0, FORAMEN_MM + 20: 220.0, FORAMEN_MM + 26: 620.0,
            FORAMEN_MM + 42: 640.0, FORAMEN_MM + 50: 420.0, FORAMEN_MM + 62: 380.0}  # fmt: skip
    area = smooth_nodes(_at(mid, AREA_MM2, stem), z) * size * (1 + wave)
    ratio = {"C1": 1.28, "C2": 1.40, "C3": 1.50, "C5": 1.72, "C6": 1.70, "T1": 1.45, "T3": 1.28, "T8": 1.22,
             "T11": 1.18, "L1": 1.1}  # fmt: skip
    flat = smooth_nodes(_at(mid, ratio, {FORAMEN_MM + 20: 1.2}), z) * float(
        np.clip(rng.normal(1, 0.06), 0.85, 1.15)
    )
    grey = {
        "C1": 0.85,
        "C3": 0.95,
        "C5": 1.08,
        "C7": 1.05,
        "T2": 0.78,
        "T7": 0.75,
        "T10": 0.95,
        "T12": 1.3,
        "L1": 1.35,
    }
    return {
        "cord_rl": np.sqrt(area / np.pi * flat),
        "cord_ap": np.sqrt(area / np.pi / flat),
        "grey": smooth_nodes(_at(mid, grey), z),
    }


def _canal_tables(rng: Rng, z: Doubles, mid: dict[str, float]) -> dict[str, Doubles]:
    """Half axes of the dural sac, its anterior shift relative to the cord, and the fat around it."""
    size = float(np.clip(rng.normal(1.0, 0.08), 0.82, 1.22))
    wide = {
        "C1": 11.5,
        "C2": 10.5,
        "C3": 9.6,
        "C5": 9.8,
        "C7": 9.4,
        "T2": 7.8,
        "T6": 7.4,
        "T10": 7.8,
        "L1": 9.0,
        "L2": 9.2,
    }
    deep = {
        "C1": 8.6,
        "C2": 7.4,
        "C3": 6.4,
        "C5": 6.2,
        "C7": 6.4,
        "T2": 6.2,
        "T6": 6.2,
        "T10": 6.8,
        "L1": 7.8,
        "L2": 8.0,
    }
    cistern = {FORAMEN_MM + 8: 14.0, FORAMEN_MM + 24: 19.0, FORAMEN_MM + 60: 20.0}
    # negative: the sac lies behind the cord, i.e. the cord lies in front, as in the thoracic kyphosis
    lean = rng.normal(0, 0.35)
    shift = {"C1": -0.6 + lean, "C3": -0.1 + lean, "C5": 0.1 + lean, "C7": -0.2, "T3": -0.8,
             "T6": -1.5 + lean, "T9": -0.9, "L1": 0.0}  # fmt: skip
    narrow = 1 - 0.5 * np.exp(-(((z - mid["T6"]) / 60) ** 2)) * 0.1
    return {
        "sac_rl": smooth_nodes(_at(mid, wide, cistern), z) * size,
        "sac_ap": smooth_nodes(_at(mid, deep, cistern), z) * size * narrow,
        "sac_shift": smooth_nodes(_at(mid, shift), z),
        "fat_post": smooth_nodes(
            _at(mid, {"C1": 1.5, "C4": 1.0, "C7": 1.6, "T3": 2.6, "T8": 3.2, "L2": 4.5}), z
        ),
        "fat_side": smooth_nodes(_at(mid, {"C1": 2.0, "C4": 1.6, "T3": 1.8, "L2": 2.5}), z),
    }


def _vertebra_tables(
    rng: Rng,
    z: Doubles,
    mid: dict[str, float],
    *,
    discs: dict[str, float],
    levels: dict[str, tuple[float, float]],
) -> dict[str, Doubles]:
    """Vertebral bodies, phase within a vertebra (0 at its lower disc, 1 at its upper), spinous processes."""
    size = float(np.clip(rng.normal(1.0, 0.06), 0.85, 1.15))
    half = {"C2": 9.0, "C3": 9.5, "C6": 11.0, "T1": 13.0, "T4": 12.5, "T8": 14.5, "T12": 19.0, "L2": 22.0}
    deep = {"C2": 14.0, "C3": 14.5, "C6": 16.0, "T1": 17.0, "T4": 20.0, "T8": 26.0, "T12": 29.0, "L2": 32.0}
    dens = {9.0: 8.5, 16.0: 5.5, 33.0: 4.5, 37.0: 0.5}
    edges = np.array(sorted([levels["C1"][1], *discs.values(), levels["L2"][0]]))
    which = np.clip(np.searchsorted(edges, z) - 1, 0, len(edges) - 2)
    low, period = edges[which], np.diff(edges)[which]
    height = {"C3": 4.6, "C7": 5.0, "T3": 3.8, "T8": 4.6, "T12": 6.5, "L2": 9.5}
    spine = {
        "C1": 4.0,
        "C2": 20.0,
        "C3": 15.0,
        "C5": 17.0,
        "C6": 22.0,
        "C7": 31.0,
        "T2": 31.0,
        "T8": 32.0,
        "L2": 30.0,
    }
    lean = {"C2": 0.35, "C5": 0.35, "C7": 0.4, "T3": 0.75, "T7": 1.1, "T11": 0.5, "L2": 0.15}
    return {
        "body_half_rl": smooth_nodes(_at(mid, half, dens), z) * size,
        "body_ap": smooth_nodes(_at(mid, deep, {9.0: 13.5, 16.0: 11.0, 33.0: 9.5, 37.0: 0.5}), z) * size,
        "phase": np.clip((z - low) / period, 0, 1),
        "period": period,
        "disc_half": smooth_nodes(_at(mid, height), z) / 2 * rng.uniform(0.8, 1.1),
        "spinous_mm": smooth_nodes(_at(mid, spine), z) * size,
        "spinous_slope": smooth_nodes(_at(mid, lean), z) + rng.normal(0, 0.05),
    }


def _outline_tables(rng: Rng, z: Doubles, mid: dict[str, float]) -> dict[str, Doubles]:
    """The skin around the cord (half width, distance in front and behind) and the fat under it."""
    neck, trunk = float(np.clip(rng.normal(1, 0.1), 0.8, 1.25)), float(np.clip(rng.normal(1, 0.1), 0.8, 1.25))
    chin, slouch = rng.uniform(-22, 4), rng.normal(0, 5)
    shoulder = mid["C7"] + rng.uniform(-8, 12)
    wide = {200.0: 8.0, 190.0: 40.0, 160.0: 68.0, 110.0: 78.0, 60.0: 74.0, 25.0: 66.0, -15.0: 59.0 * neck,
            shoulder + 22: 62.0 * neck, shoulder: 85.0 * trunk, shoulder - 25: 150.0 * trunk,
            shoulder - 60: 195.0 * trunk, -300.0: 190.0 * trunk}  # fmt: skip
    front = {200.0: 10.0, 190.0: 60.0, 150.0: 100.0, 60.0: 100.0, chin + 22: 92.0, chin + 8: 84.0,
             chin - 3: 62.0 * neck, shoulder + 30: 52.0 * neck, shoulder: 58.0 * neck,
             shoulder - 40: 85.0 * trunk, shoulder - 90: 125.0 * trunk, -300.0: 135.0 * trunk}  # fmt: skip
    back = {200.0: 10.0, 190.0: 50.0, 150.0: 85.0, 100.0: 88.0, 50.0: 74.0, 10.0: 57.0 * neck,
            -40.0: 56.0 * neck + slouch, shoulder - 20: 66.0 * neck + slouch,
            shoulder - 90: 62.0 * trunk, -300.0: 62.0 * trunk}  # fmt: skip
    fat = {100.0: 3.0, 30.0: 4.0, -30.0: 5.0, shoulder: 8.0, -150.0: 8.0, -300.0: 11.0}
    thick = rng.uniform(0.6, 2.0)
    return {
        "skin_half_rl": smooth_nodes(wide, z),
        "skin_ant": smooth_nodes(front, z),
        "skin_post": smooth_nodes(back, z),
        "subcutis": smooth_nodes(fat, z) * thick,
    }


def _draw_muscles(rng: Rng) -> Floats:
    """Half distance in mm to the nearest border between muscles on `MUSCLE_GRID`.

    Muscles are the cells of seeds in the plane across the cord, mirrored left to right, drifting along it.
    """
    grid = MUSCLE_GRID
    x = ((np.arange(grid.size) - grid.size / 2) * grid.step_mm).astype(np.float32)
    seeds = rng.uniform([4, -75], [130, 60], (34, 2))
    drift = rng.normal(0, 4.0, (grid.stations, 34, 2)).cumsum(0)
    out = np.empty((grid.stations, grid.size, grid.size), np.float32)
    for station in range(grid.stations):
        right = seeds + drift[station] - drift[grid.stations // 2]
        every = np.concatenate([right, right * [-1, 1]]).astype(np.float32)
        first, second = _two_smallest(
            (x - every[:, 0, None]) ** 2, np.float32(1.6) * (x - every[:, 1, None]) ** 2
        )
        out[station] = (np.sqrt(second) - np.sqrt(first)) / 2
    return out


def _two_smallest(rows: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """Smallest and second smallest over n of ``rows[n][:, None] + columns[n][None]``, ``(x, y)`` each."""
    first = np.full((rows.shape[1], columns.shape[1]), np.inf, np.float32)
    second, each, larger = first.copy(), np.empty_like(first), np.empty_like(first)
    for row, column in zip(rows, columns, strict=True):
        np.add(row[:, None], column[None], out=each)
        np.maximum(first, each, out=larger)
        np.minimum(second, larger, out=second)
        np.minimum(first, each, out=first)
    return first, second


def _draw_wobble(rng: Rng) -> Doubles:
    """Smooth deformation ``(2, 3, 4)``: amplitude (mm), wave numbers along the other axes (1/mm), phase."""
    out = np.empty((2, 3, 4))
    for wave, (amplitude, period) in enumerate(((3.0, 110.0), (1.3, 37.0))):
        out[wave, :, 0] = rng.normal(0, amplitude, 3)
        out[wave, :, 1:3] = 2 * np.pi / (period * rng.uniform(0.7, 1.4, (3, 2)))
        out[wave, :, 3] = rng.uniform(0, 2 * np.pi, 3)
    return out
