"""The procedural subject: a record of profiles along the cord, and coordinates relative to the cord.

Subject space is RAS+ mm with the C2-C3 disc (seen from the cord) at z = 0. The cord runs along z; everything
that varies along it is a table over z. A rotation and an offset place the subject in the scanner's world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

#: Arrays of real numbers; the docstrings say which precision.
Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Rng = np.random.Generator

#: Step of every table along z, mm.
STEP_MM = 0.5
#: The tables' range along z, mm relative to the C2-C3 disc (brain at the top, below the conus at the bottom).
Z_MIN_MM, Z_MAX_MM = -470.0, 210.0
#: Where the cord becomes the brainstem (foramen magnum), mm above the C2-C3 disc.
FORAMEN_MM = 41.0
#: Height of a vertebra and the disc below it, mm, from C3 downwards (adult means, rounded).
SEGMENT_MM = {
    "C3": 17.5, "C4": 17.0, "C5": 16.5, "C6": 16.5, "C7": 18.0,
    "T1": 20.0, "T2": 21.0, "T3": 21.5, "T4": 22.0, "T5": 22.5, "T6": 23.0,
    "T7": 23.5, "T8": 24.0, "T9": 24.5, "T10": 25.5, "T11": 26.5, "T12": 28.0, "L1": 33.0, "L2": 34.0,
}  # fmt: skip
VERTEBRAE = ("C1", "C2", *SEGMENT_MM)
#: Mean cord area in mm2 at mid-vertebra. C3, C5 and T3 as specified; the others follow the usual course: a
#: cervical enlargement, a thin thoracic cord, a lumbar enlargement at T11-T12, and the conus ending at L1-L2.
AREA_MM2 = {
    "C1": 70.0, "C2": 67.0, "C3": 66.0, "C4": 70.0, "C5": 71.0, "C6": 65.0, "C7": 55.0, "T1": 47.0, "T2":
    41.5, "T3": 39.0, "T4": 38.0, "T5": 37.0, "T6": 36.5, "T7": 36.5, "T8": 37.0, "T9": 38.5, "T10": 43.0,
    "T11": 50.0, "T12": 48.0, "L1": 22.0, "L2": 1.0,
}  # fmt: skip


#: How the cauda equina looks where nothing else is asked for, see `Anatomy.cauda`.
CAUDA_EQUINA = (0.9, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profiles:
    """Tables along z (n,), float32; lengths in mm unless said otherwise."""

    x: Floats
    y: Floats
    slope_x: Floats
    slope_y: Floats
    arc: Floats
    cord_rl: Floats
    cord_ap: Floats
    grey: Floats
    sac_rl: Floats
    sac_ap: Floats
    sac_shift: Floats
    fat_post: Floats
    fat_side: Floats
    body_half_rl: Floats
    body_ap: Floats
    phase: Floats
    period: Floats
    disc_half: Floats
    spinous_mm: Floats
    spinous_slope: Floats
    skin_half_rl: Floats
    skin_ant: Floats
    skin_post: Floats
    subcutis: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """One procedural subject.

    Attributes
    ----------
    profiles
        Tables along z.
    disc_z
        z of each disc in mm (subject space, at the cord's centre), keyed by the two vertebrae, e.g.
        ``C2-C3``.
    level_z
        ``(lower, upper)`` z of each vertebra in mm.
    rotation, offset
        World = ``rotation @ subject + offset`` (3×3; mm).
    conus_z
        z of the cord's lower end in mm.
    muscle
        Half distance in mm to the border between two muscles, ``(station, x, y)``, see `painting`.
    wobble
        Amplitudes, wave numbers and phases ``(2, 3, 4)`` of the smooth deformation of the surroundings.
    shape
        Scalars that vary between subjects (sizes of organs relative to the mean, 12 values near 1).
    cauda
        Roots of the cauda equina: ``(sparseness, front)``. They fill two thirds of their part of the sac at
        -0.5, a fifth at 0.9, none at 2; that part lies behind ``front``, mm anterior to the cord's centre.
    """

    profiles: Profiles
    disc_z: dict[str, float]
    level_z: dict[str, tuple[float, float]]
    rotation: Doubles
    offset: Doubles
    conus_z: float
    muscle: Floats
    wobble: Doubles
    shape: Doubles
    cauda: tuple[float, float] = CAUDA_EQUINA


def table_index(z: Floats) -> npt.NDArray[np.intp]:
    """Index into the profile tables of heights ``z`` in mm; beyond the tables, their ends."""
    count = round((Z_MAX_MM - Z_MIN_MM) / STEP_MM)
    return np.asarray(np.clip(np.rint((z - Z_MIN_MM) / STEP_MM), 0, count), np.intp)


def z_axis() -> Doubles:
    """The z positions of the tables in mm, ``(n,)``."""
    return np.asarray(np.arange(Z_MIN_MM, Z_MAX_MM + STEP_MM / 2, STEP_MM), float)


def to_subject(anatomy: Anatomy, points: npt.ArrayLike) -> Doubles:
    """World points ``(n, 3)`` in mm in subject space."""
    return np.asarray((np.asarray(points, float) - anatomy.offset) @ anatomy.rotation)


def to_world(anatomy: Anatomy, points: npt.ArrayLike) -> Doubles:
    """Subject-space points ``(n, 3)`` in mm in the world."""
    return np.asarray(np.asarray(points, float) @ anatomy.rotation.T + anatomy.offset)


def centerline_world(anatomy: Anatomy, z: npt.ArrayLike) -> Doubles:
    """The cord's centre in world mm ``(n, 3)`` at subject heights ``z`` ``(n,)``."""
    height = np.atleast_1d(np.asarray(z, float))
    axis, profiles = z_axis(), anatomy.profiles
    sub = np.stack([np.interp(height, axis, profiles.x), np.interp(height, axis, profiles.y), height], axis=1)
    return to_world(anatomy, sub)


def project(profiles: Profiles, xyz: Floats) -> tuple[Floats, Floats, Floats]:
    """Foot point and in-plane position relative to the cord of subject points ``(3, n)``.

    Returns the foot point's z (mm), u (mm to the right) and v (mm anterior), each ``(n,)`` float32. Two
    Newton steps from the point's own height; exact near the cord, approximate more than about 60 mm away from
    it.
    """
    x, y, z = xyz
    foot = z
    for _ in range(2):
        at = table_index(foot)
        sx, sy = profiles.slope_x[at], profiles.slope_y[at]
        along = (x - profiles.x[at]) * sx + (y - profiles.y[at]) * sy + (z - foot)
        foot = foot + along / (1 + sx * sx + sy * sy)
        foot = np.clip(foot, z - 40, z + 40)
    at = table_index(foot)
    near = foot - (Z_MIN_MM + at.astype(np.float32) * np.float32(STEP_MM))
    sx, sy = profiles.slope_x[at], profiles.slope_y[at]
    u = x - profiles.x[at] - sx * near
    dy, dz = y - profiles.y[at] - sy * near, z - foot
    # in the plane across the cord, the anterior axis is (0, 1, -sy) / sqrt(1 + sy²)
    v = (dy - sy * dz) / np.sqrt(1 + sy * sy)
    return foot.astype(np.float32), u.astype(np.float32), v.astype(np.float32)


def cord_coordinates(anatomy: Anatomy, points: npt.ArrayLike) -> tuple[Floats, Floats, Floats, Floats]:
    """Coordinates relative to the cord of world points.

    Parameters
    ----------
    anatomy
        The subject.
    points
        World RAS+ mm, ``(n, 3)``.

    Returns
    -------
    arc, u, v, rho
        Each ``(n,)`` float32: arc length in mm from the C2-C3 disc (positive upwards), mm to the right, mm
        anterior, and the radius relative to the cord's surface (1 on the surface).
    """
    foot, u, v = project(anatomy.profiles, to_subject(anatomy, points).T.astype(np.float32))
    at = table_index(foot)
    profiles = anatomy.profiles
    rho = np.hypot(u / profiles.cord_rl[at], v / profiles.cord_ap[at])
    arc = np.interp(foot, z_axis(), profiles.arc).astype(np.float32)
    return arc, u, v, rho.astype(np.float32)


def cord_area_mm2(anatomy: Anatomy, z: npt.ArrayLike) -> Doubles:
    """Cross-section of the cord in mm2, perpendicular to it, at subject heights ``z`` in mm."""
    at = table_index(np.atleast_1d(np.asarray(z, float)))
    profiles = anatomy.profiles
    return np.pi * profiles.cord_rl[at].astype(float) * profiles.cord_ap[at]


def level_of(anatomy: Anatomy, z: float) -> str:
    """Name of the vertebra at subject height ``z`` in mm (the nearest one beyond the ends)."""
    for name, (low, high) in anatomy.level_z.items():
        if low <= z < high:
            return name
    return VERTEBRAE[0] if z > 0 else VERTEBRAE[-1]


def smooth_nodes(nodes: dict[float, float], z: Doubles) -> Doubles:
    """Shape-preserving cubic through ``{z: value}``, constant beyond the ends."""
    where = np.array(sorted(nodes))
    curve = PchipInterpolator(where, [nodes[w] for w in where])
    return np.asarray(curve(np.clip(z, where[0], where[-1])))
