"""Multiple sclerosis lesions in the cord: where, how large, and how well each sequence shows them.

The distributions follow the literature as quoted in the project's specification: 1.8-3.2 lesions per patient;
lateral 59 %, posterior 35 %, anterior 6 %; 67 % in grey and white matter; mean cross-sections 8.5, 11.3, 4.3
mm2; mean lengths 17.6, 24.8, 18.3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bids_scseg.synth.contrast import FAINT_CNR, SEQUENCES, VISIBLE_CNR
from bids_scseg.synth.painting import in_grey_matter
from bids_scseg.synth.subject import (
    FORAMEN_MM,
    Anatomy,
    Doubles,
    Floats,
    Rng,
    project,
    table_index,
    to_subject,
    z_axis,
)

#: Share of subjects without any lesion (ours).
LESION_FREE_SHARE = 0.2
#: Mean number of lesions beyond the first in a subject who has any: 1 + 1.6 = 2.6, within the reported
#: 1.8-3.2.
EXTRA_LESIONS = 1.6
#: Columns: share, mean cross-section (mm2), mean length (mm).
COLUMNS = {"lateral": (0.59, 8.5, 17.6), "dorsal": (0.35, 11.3, 24.8), "ventral": (0.06, 4.3, 18.3)}
#: Share of lesions that reach the grey matter.
GREY_SHARE = 0.67
#: Cervical, thoracic and conus: shares of lesions (cervical and dorsal predominance), as ranges of vertebrae.
REGIONS = (("C1", "C7", 0.58), ("T1", "T11", 0.39), ("T12", "L1", 0.03))
#: Log-normal spread of cross-section and length.
AREA_SIGMA, LENGTH_SIGMA = 0.5, 0.45
#: Most lesions stay under half of the cord's cross-section and within a few segments.
MAX_AREA_SHARE, MAX_LENGTH_MM, MIN_LENGTH_MM = 0.48, 60.0, 5.0
#: Least distance along the cord between two lesions, mm, so that they are two components in every image.
GAP_MM = 7.0
#: Width of a lesion's soft edge in mm.
EDGE_MM = 0.8
#: Percent visible, faint, invisible by sequence.
DETECTABILITY: dict[str, tuple[int, int, int]] = {
    "T2Sag": (60, 25, 15), "STIR": (85, 10, 5), "T2StarAx": (75, 15, 10), "T2Ax": (70, 20, 10),
    "T1Sag": (25, 35, 40), "MP2RAGE": (85, 10, 5), "PSIR": (90, 5, 5), "PSIR thoracic": (50, 25, 25),
}  # fmt: skip
CLASSES = ("visible", "faint", "invisible")


class _Placed(Protocol):
    """Anything that lies along the cord."""

    @property
    def arc_mm(self) -> float: ...

    @property
    def length_mm(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesion:
    """One lesion.

    Attributes
    ----------
    column
        ``lateral left``, ``lateral right``, ``dorsal`` or ``ventral``.
    grey
        Whether the lesion reaches the grey matter; if not it is cut out there.
    z_mm, arc_mm
        Height of its centre in subject space, and arc length along the cord from the C2-C3 disc.
    length_mm
        Extent along the cord (arc length).
    area_mm2
        Cross-section at its centre.
    centre
        ``(u / a, v / b)`` of its axis, relative to the cord's half axes.
    radii_mm
        Half axes in the cross-section, before the cord cuts them.
    angle
        Turn of those axes, radians.
    outline
        ``(3, 3)``: amplitude, phase, change of phase per mm along the cord, of the outline's 2nd to 4th
        harmonic.
    detectability, cnr
        Class and wanted contrast-to-noise by sequence name.
    """

    column: str
    grey: bool
    z_mm: float
    arc_mm: float
    length_mm: float
    area_mm2: float
    centre: tuple[float, float]
    radii_mm: tuple[float, float]
    angle: float
    outline: Doubles
    detectability: dict[str, str]
    cnr: dict[str, float]


def draw_lesions(
    rng: Rng,
    anatomy: Anatomy,
    n: int | None = None,
    *,
    first_z_mm: float | None = None,
    present: tuple[Lesion, ...] = (),
) -> tuple[Lesion, ...]:
    """Lesions of one subject, from the top of the cord downwards.

    Parameters
    ----------
    rng, anatomy
        Source of randomness, and the cord that carries the lesions.
    n
        Number of lesions; drawn where None (about 20 % of subjects have none). Fewer where the cord has no
        room.
    first_z_mm
        Height at which one lesion is to lie (subject space), e.g. at the seam of two slabs.
    present
        Lesions that are already there; they are kept, and count towards ``n``.
    """
    if n is None:
        n = 0 if rng.random() < LESION_FREE_SHARE else 1 + int(rng.poisson(EXTRA_LESIONS))
    placed = list(present)
    for number in range(len(present), n):
        for _ in range(30):
            lesion = _draw_lesion(rng, anatomy, z_mm=first_z_mm if number == 0 else None)
            if all(apart(lesion, other) for other in placed):
                placed.append(lesion)
                break
    return tuple(sorted(placed, key=lambda lesion: -lesion.arc_mm))


def draw_lesion_at(rng: Rng, anatomy: Anatomy, *, z_mm: float) -> Lesion:
    """One lesion at a height of the cord (subject space, mm); all else is drawn as in `draw_lesions`."""
    return _draw_lesion(rng, anatomy, z_mm=z_mm)


def apart(one: _Placed, other: _Placed) -> bool:
    """Whether two lesions lie far enough from each other to be two components in every image."""
    return abs(one.arc_mm - other.arc_mm) > (one.length_mm + other.length_mm) / 2 + GAP_MM


def lesion_fraction(anatomy: Anatomy, lesion: Lesion, points: npt.ArrayLike) -> Floats:
    """How much of each point belongs to the lesion.

    Parameters
    ----------
    anatomy, lesion
        The cord and the lesion.
    points
        World RAS+ mm, ``(n, 3)``.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` float32 in 0..1; soft at the lesion's edge, 0 outside the cord.
    """
    foot, u, v = project(anatomy.profiles, to_subject(anatomy, points).T.astype(np.float32))
    return fraction_at(anatomy, lesion, foot=foot, u=u, v=v)


def fraction_at(anatomy: Anatomy, lesion: Lesion, *, foot: Floats, u: Floats, v: Floats) -> Floats:
    """`lesion_fraction` of points given by foot point and in-plane position (mm), ``(n,)`` each."""
    profiles = anatomy.profiles
    arc = np.interp(foot, z_axis(), profiles.arc) - lesion.arc_mm
    along = np.abs(arc) / (lesion.length_mm / 2)
    taper = np.clip(1 - along**2.6, 0, 1) ** (1 / 2.6)
    out = np.zeros(foot.shape, np.float32)
    live = np.flatnonzero(taper > 0)
    if live.size:
        at = table_index(foot[live])
        out[live] = _cross_section(
            lesion,
            arc=arc[live],
            taper=taper[live],
            u=u[live],
            v=v[live],
            half_axes=(profiles.cord_rl[at], profiles.cord_ap[at]),
            grey_size=profiles.grey[at],
        )
    return out


def volume_mm3(anatomy: Anatomy, lesion: Lesion, step_mm: float = 0.4) -> float:
    """Volume of the lesion (integral of its fraction) in mm3, by summation over discs across the cord."""
    arcs = np.arange(-lesion.length_mm / 2, lesion.length_mm / 2, 1.0) + lesion.arc_mm + 0.5
    return float(sum(_area(anatomy, lesion, float(arc), step_mm) for arc in arcs))


def _area(anatomy: Anatomy, lesion: Lesion, arc_mm: float, step_mm: float = 0.4) -> float:
    """Cross-section of the lesion in mm2 at a position along the cord."""
    foot = float(np.interp(arc_mm, anatomy.profiles.arc, z_axis()))
    half = np.arange(-9, 9, step_mm, dtype=np.float32) + np.float32(step_mm / 2)
    u, v = (axis.ravel() for axis in np.meshgrid(half, half, indexing="ij"))
    where = np.full(u.shape, foot, np.float32)
    return float(fraction_at(anatomy, lesion, foot=where, u=u, v=v).sum() * step_mm**2)


def _cross_section(
    lesion: Lesion,
    *,
    arc: npt.NDArray[np.floating],
    taper: npt.NDArray[np.floating],
    u: Floats,
    v: Floats,
    half_axes: tuple[Floats, Floats],
    grey_size: Floats,
) -> Floats:
    a, b = half_axes
    du, dv = u - lesion.centre[0] * a, v - lesion.centre[1] * b
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    p, q = (cos * du + sin * dv) / lesion.radii_mm[0], (-sin * du + cos * dv) / lesion.radii_mm[1]
    theta = np.arctan2(q, p)
    wave = np.ones_like(theta)
    for harmonic, (amplitude, phase, twist) in enumerate(lesion.outline, start=2):
        wave = wave + amplitude * np.cos(harmonic * theta + phase + twist * arc)
    size = float(np.sqrt(lesion.radii_mm[0] * lesion.radii_mm[1]))
    inside = (taper - np.hypot(p, q) / wave) * size
    rho = np.hypot(u / a, v / b)
    fraction = np.clip(0.5 + inside / EDGE_MM, 0, 1) * np.clip((1 - rho) * b / 0.3, 0, 1)
    if not lesion.grey:
        fraction = fraction * ~in_grey_matter(np.abs(u) / a, v / b, grey_size)
    return np.asarray(fraction, np.float32)


def _draw_lesion(rng: Rng, anatomy: Anatomy, *, z_mm: float | None) -> Lesion:
    names = list(COLUMNS)
    name = names[rng.choice(3, p=[COLUMNS[n][0] for n in names])]
    _, mean_area, mean_length = COLUMNS[name]
    length = float(np.clip(_lognormal(rng, mean_length, LENGTH_SIGMA), MIN_LENGTH_MM, MAX_LENGTH_MM))
    z = _draw_height(rng, anatomy, length) if z_mm is None else z_mm
    at = table_index(np.array([z]))[0]
    a, b = float(anatomy.profiles.cord_rl[at]), float(anatomy.profiles.cord_ap[at])
    area = min(_lognormal(rng, mean_area, AREA_SIGMA), MAX_AREA_SHARE * np.pi * a * b)
    grey = bool(rng.random() < GREY_SHARE)
    column, centre = _draw_centre(rng, name, grey)
    stretch = rng.uniform(1.0, 1.7)
    radius = float(np.sqrt(area / np.pi))
    detectability = _draw_classes(rng, thoracic=z < anatomy.level_z["T1"][1])
    lesion = Lesion(
        column=column,
        grey=grey,
        z_mm=z,
        arc_mm=float(np.interp(z, z_axis(), anatomy.profiles.arc)),
        length_mm=length,
        area_mm2=float(area),
        centre=centre,
        radii_mm=(radius / stretch**0.5, radius * stretch**0.5),
        angle=float(np.arctan2(-centre[0] * 0.6, 1.0) + rng.normal(0, 0.3)),
        outline=np.stack([rng.uniform(0, 0.1, 3), rng.uniform(0, 6.3, 3), rng.normal(0, 0.12, 3)], axis=1),
        detectability=detectability,
        cnr={sequence: _draw_cnr(rng, grade) for sequence, grade in detectability.items()},
    )
    return _scaled_to_area(anatomy, lesion)


def _scaled_to_area(anatomy: Anatomy, lesion: Lesion) -> Lesion:
    """The lesion with its radii scaled until what lies in the cord has the wanted cross-section."""
    low, high = 0.3, 4.0
    for _ in range(8):
        middle = float(np.sqrt(low * high))
        trial = _with_radii(lesion, middle)
        if _area(anatomy, trial, lesion.arc_mm) < lesion.area_mm2:
            low = middle
        else:
            high = middle
    final = _with_radii(lesion, float(np.sqrt(low * high)))
    return replace(final, area_mm2=_area(anatomy, final, lesion.arc_mm))


def _with_radii(lesion: Lesion, factor: float) -> Lesion:
    return replace(lesion, radii_mm=(lesion.radii_mm[0] * factor, lesion.radii_mm[1] * factor))


def _lognormal(rng: Rng, mean: float, sigma: float) -> float:
    """A log-normal value whose mean is ``mean``."""
    return float(mean * np.exp(rng.normal(-(sigma**2) / 2, sigma)))


def _draw_height(rng: Rng, anatomy: Anatomy, length_mm: float) -> float:
    """Height of a lesion's centre: region by its share, uniform within, and the lesion inside the cord."""
    first, last, _ = REGIONS[rng.choice(len(REGIONS), p=[share for *_, share in REGIONS])]
    high = min(anatomy.level_z[first][1], FORAMEN_MM - 4 - length_mm / 2)
    low = max(anatomy.level_z[last][0], anatomy.conus_z + 6 + length_mm / 2)
    return float(rng.uniform(min(low, high), high))


def _draw_centre(rng: Rng, name: str, grey: bool) -> tuple[str, tuple[float, float]]:
    """Column and axis of a lesion; those that reach the grey matter lie further in."""
    inwards = 0.8 if grey else 1.0
    side = 1.0 if rng.random() < 0.5 else -1.0
    if name == "dorsal":
        return name, (float(rng.normal(0, 0.12)), float(-0.62 * inwards + rng.normal(0, 0.04)))
    if name == "ventral":
        return name, (side * float(rng.uniform(0.05, 0.3)), float(0.74 * inwards + rng.normal(0, 0.03)))
    centre = (side * (0.70 * inwards + float(rng.normal(0, 0.04))), float(rng.normal(-0.15, 0.10)))
    return f"lateral {'right' if side > 0 else 'left'}", centre


def _draw_classes(rng: Rng, *, thoracic: bool) -> dict[str, str]:
    """Detectability of a lesion in each sequence, drawn independently."""
    classes: dict[str, str] = {}
    for sequence in SEQUENCES:
        key = f"{sequence} thoracic" if thoracic and f"{sequence} thoracic" in DETECTABILITY else sequence
        classes[sequence] = CLASSES[rng.choice(3, p=np.array(DETECTABILITY[key]) / 100)]
    return classes


def _draw_cnr(rng: Rng, grade: str) -> float:
    """A contrast-to-noise ratio within its class, clear of the class's bounds."""
    if grade == "visible":
        return float(min(VISIBLE_CNR + 0.35 + rng.gamma(2.0, 0.8), 7.0))
    if grade == "faint":
        return float(rng.uniform(FAINT_CNR + 0.15, VISIBLE_CNR - 0.2))
    return float(rng.uniform(0.0, FAINT_CNR - 0.2))
