"""Lesions as level sets of random fields: another way to draw them, for tests.

A model that has learnt how `lesions` draws its outlines would look better on such lesions than it is. Here
place, size, outline, edge and contrast come from other code and other distributions; the literature's means
(columns, cross-sections, lengths, `lesions.COLUMNS`) are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_scseg.synth.contrast import FAINT_CNR, SEQUENCES, VISIBLE_CNR
from bids_scseg.synth.lesions import CLASSES, COLUMNS, DETECTABILITY, GREY_SHARE
from bids_scseg.synth.subject import Anatomy, Doubles, Floats, Rng, table_index, z_axis

#: Shape parameters of the gamma distributions of cross-section and length.
AREA_GAMMA, LENGTH_GAMMA = 5.0, 6.0
#: Bounds: a cross-section of most lesions under half of the cord; lengths in mm.
AREA_BOUNDS_MM2, AREA_SHARE, LENGTH_BOUNDS_MM = (2.0, 30.0), 0.48, (5.0, 50.0)
#: The field that roughens the surface: waves, their lengths in mm across and along, deviation of the level.
WAVES, ACROSS_MM, ALONG_MM, ROUGHNESS = 12, (3.0, 9.0), (6.0, 24.0), 0.22
#: Width of the soft edge, mm.
EDGE_MM = (0.4, 1.4)
#: Angular sector of each column's centre, degrees from dorsal towards the side, and its radius (relative to
#: the cord's surface) for lesions in the white matter and for those that reach the grey matter.
SECTORS = {"dorsal": (0.0, 25.0), "lateral": (55.0, 115.0), "ventral": (150.0, 175.0)}
RADII = ((0.60, 0.85), (0.35, 0.65))
#: Contrast-to-noise of each class: bounds of a uniform distribution, clear of the classes' bounds.
CNR_BOUNDS = {
    "visible": (VISIBLE_CNR + 0.2, 6.0),
    "faint": (FAINT_CNR + 0.1, VISIBLE_CNR - 0.15),
    "invisible": (0.0, FAINT_CNR - 0.15),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blob:
    """One lesion; the attributes that it shares with `lesions.Lesion` mean the same.

    Attributes
    ----------
    column, grey, z_mm, arc_mm, length_mm, area_mm2, centre, detectability, cnr
        As in `lesions.Lesion`.
    radii_mm
        Half axes in the cross-section, right and anterior.
    waves
        Wave vector in rad per mm (arc, right, anterior) and phase of each wave ``(n, 4)``.
    edge_mm
        Width of the soft edge.
    """

    column: str
    grey: bool
    z_mm: float
    arc_mm: float
    length_mm: float
    area_mm2: float
    centre: tuple[float, float]
    radii_mm: tuple[float, float]
    waves: Doubles
    edge_mm: float
    detectability: dict[str, str]
    cnr: dict[str, float]


def draw_blob(rng: Rng, anatomy: Anatomy, *, z_mm: float) -> Blob:
    """A lesion at a height of the cord, with the literature's mean sizes."""
    names = list(COLUMNS)
    name = names[rng.choice(3, p=[COLUMNS[n][0] for n in names])]
    _, mean_area, mean_length = COLUMNS[name]
    at = table_index(np.array([z_mm]))[0]
    a, b = float(anatomy.profiles.cord_rl[at]), float(anatomy.profiles.cord_ap[at])
    area = float(np.clip(rng.gamma(AREA_GAMMA, mean_area / AREA_GAMMA), *AREA_BOUNDS_MM2))
    area = min(area, AREA_SHARE * np.pi * a * b)
    length = float(np.clip(rng.gamma(LENGTH_GAMMA, mean_length / LENGTH_GAMMA), *LENGTH_BOUNDS_MM))
    grey = bool(rng.random() < GREY_SHARE)
    column, centre = _place(rng, name, grey)
    ratio = float(np.exp(rng.normal(0, 0.3)))
    radius = float(np.sqrt(area / np.pi))
    grades: dict[str, str] = {
        n: CLASSES[rng.choice(3, p=np.array(DETECTABILITY[n]) / 100)] for n in SEQUENCES
    }
    blob = Blob(
        column=column,
        grey=grey,
        z_mm=z_mm,
        arc_mm=float(np.interp(z_mm, z_axis(), anatomy.profiles.arc)),
        length_mm=length,
        area_mm2=area,
        centre=centre,
        radii_mm=(radius * ratio**0.5, radius / ratio**0.5),
        waves=_draw_waves(rng),
        edge_mm=float(rng.uniform(*EDGE_MM)),
        detectability=grades,
        cnr={n: float(rng.uniform(*CNR_BOUNDS[grade])) for n, grade in grades.items()},
    )
    return _scaled(blob, a, b)


def _place(rng: Rng, name: str, grey: bool) -> tuple[str, tuple[float, float]]:
    """Column and centre relative to the half axes, from an angle and a radius."""
    angle = np.deg2rad(rng.uniform(*SECTORS[name]))
    side = 1.0 if rng.random() < 0.5 else -1.0
    radius = rng.uniform(*RADII[int(grey)])
    centre = (side * float(radius * np.sin(angle)), float(-radius * np.cos(angle)))
    return (f"lateral {'right' if side > 0 else 'left'}" if name == "lateral" else name), centre


def _draw_waves(rng: Rng) -> Doubles:
    across = 2 * np.pi / rng.uniform(*ACROSS_MM, WAVES)
    along = 2 * np.pi / rng.uniform(*ALONG_MM, WAVES)
    turn, phase = rng.uniform(0, 2 * np.pi, (2, WAVES))
    return np.stack([along, across * np.cos(turn), across * np.sin(turn), phase], axis=1)


def _scaled(blob: Blob, a: float, b: float) -> Blob:
    """The blob with its radii such that what lies in the cord at its middle has the wanted area."""
    half = np.arange(-9, 9, 0.3, dtype=np.float32)
    u, v = (axis.ravel() for axis in np.meshgrid(half, half, indexing="ij"))
    arc, axes = np.zeros_like(u), (np.full_like(u, a), np.full_like(u, b))
    low, high = 0.4, 4.0
    area = 0.0
    for _ in range(9):
        middle = float(np.sqrt(low * high))
        trial = replace(blob, radii_mm=(blob.radii_mm[0] * middle, blob.radii_mm[1] * middle))
        area = float(blob_fraction(trial, arc=arc, u=u, v=v, half_axes=axes).sum() * 0.09)
        low, high = (middle, high) if area < blob.area_mm2 else (low, middle)
    return replace(trial, area_mm2=area)


def blob_fraction(
    blob: Blob, *, arc: Floats, u: Floats, v: Floats, half_axes: tuple[Floats, Floats]
) -> Floats:
    """Share of the lesion at points ``(n,)``: arc length from its centre, mm right and anterior of the cord.

    Soft at the edge, 0 outside the cord, float32.
    """
    a, b = half_axes
    p, q = (u - blob.centre[0] * a) / blob.radii_mm[0], (v - blob.centre[1] * b) / blob.radii_mm[1]
    along = np.abs(arc) / (blob.length_mm / 2)
    distance = (p * p + q * q + along**3) ** 0.5
    phase = blob.waves[:, :3] @ np.stack([arc, u, v]).astype(float) + blob.waves[:, 3:]
    rough = ROUGHNESS * np.sqrt(2 / len(blob.waves)) * np.cos(phase).sum(axis=0)
    size = float(np.sqrt(blob.radii_mm[0] * blob.radii_mm[1]))
    inside = (1 + rough - distance) * size / (blob.edge_mm / 4)
    share = 1 / (1 + np.exp(-np.clip(inside, -30, 30)))
    share = np.where(share < 0.02, 0, share) * (np.hypot(u / a, v / b) < 1)
    return np.asarray(share, np.float32)
