"""Lesions painted into real images: shares of voxels, contrast against the cord around, and what came of it.

An implant is one lesion in cord coordinates. Each image of the session is painted with the same implants: the
mean of the lesion over each voxel's footprint, times an amplitude that gives the wanted contrast-to-noise
against the cord near the lesion in that very image. Voxels outside the cord mask keep their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.space.grid import Grid
from bids_scseg.space.resample import footprint_offsets
from bids_scseg.synth.blobs import Blob, blob_fraction
from bids_scseg.synth.contrast import LESION_SIGN
from bids_scseg.synth.cords import CordImage, cord_points, ring_voxels
from bids_scseg.synth.lesions import Lesion, fraction_at
from bids_scseg.synth.scanner import MAX_DARKER, SURROUND_MM
from bids_scseg.synth.subject import Anatomy, Doubles, Floats, Rng, table_index, z_axis

#: Points within a voxel lie at most this far apart, mm.
STEP_MM = 0.35
#: Blur of a lesion's edge by the scanner's point spread, in-plane voxels (as of computed scans).
POINT_SPREAD_VOX = 0.45
#: Contrast is measured within this share of the way from the cord's centre to its surface: masks drawn by
#: hand hold mixed voxels at their edge.
PURE_RADIUS = 0.7
#: Least number of voxels of lesion-free cord to compare with.
LEAST_AROUND = 8
#: A bright lesion reaches this share of the way from the cord's intensity to the fluid's beside it, but may
#: always exceed the cord by the lower of these shares (fluid is not bright in all T2*-weighted scans), never
#: by more than the upper (ours, after what lesions look like).
FLUID_SHARE, BRIGHTER = 0.8, (0.35, 0.9)
#: The brightest tenth of what lies around the cord counts as fluid.
FLUID_PERCENTILE = 90
#: Texture within a lesion: its relative deviation, number of waves and range of their lengths in mm.
TEXTURE_SD, TEXTURE_WAVES, TEXTURE_MM = 0.15, 8, (2.0, 7.0)
#: Neighbourhood along the cord in which its level is measured, mm (standard deviation): receive fields vary
#: over centimetres.
LEVEL_MM = 8.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Implant:
    """One lesion to paint.

    Attributes
    ----------
    lesion
        Place, size, shape and wanted contrasts.
    waves
        Texture: wave vector in rad per mm (arc, right, anterior) and phase of each wave ``(n, 4)``; no row
        for an even lesion.
    multiplicative
        Whether the lesion scales the intensity of its voxels (and with it their noise and texture); else it
        adds to it.
    """

    lesion: Lesion | Blob
    waves: Doubles
    multiplicative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """Where implants lie in one image.

    Attributes
    ----------
    near
        Flat indices ``(n,)`` of the voxels of the cord mask.
    cord
        Share of cord in them ``(n,)``.
    height, arc
        Of their centres along the cord: height in the tables, arc length, mm ``(n,)``.
    radius
        Relative to the cord's surface ``(n,)``.
    lesions
        Share of each implant in them ``(implant, n)`` float32, 0 to 1.
    weights
        The same with texture and point spread: what the amplitude is multiplied with ``(implant, n)``.
    """

    near: npt.NDArray[np.intp]
    cord: Floats
    height: Floats
    arc: Floats
    radius: Floats
    lesions: Floats
    weights: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Painted:
    """One image with its implants.

    Attributes
    ----------
    data
        ``(i, j, k)`` float32; the input's value wherever the cord mask is 0.
    lesions
        Implant numbers from 1 ``(i, j, k)`` uint8: voxels at least half filled.
    cnr
        Contrast-to-noise of each implant ``(implant,)``, positive in the sequence's direction; NaN where the
        image does not cover it.
    volume_mm3
        Volume of each implant in the image ``(implant,)``.
    amplitude
        What was added where the lesion fills a voxel, relative to the cord around ``(implant,)``; 0 where it
        is not covered.
    """

    data: Floats
    lesions: npt.NDArray[np.uint8]
    cnr: Doubles
    volume_mm3: Doubles
    amplitude: Doubles


def draw_waves(rng: Rng) -> Doubles:
    """Texture of a lesion, see `Implant`: plane waves in random directions."""
    direction = rng.normal(size=(TEXTURE_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(*TEXTURE_MM, size=(TEXTURE_WAVES, 1))
    phase = rng.uniform(0, 2 * np.pi, (TEXTURE_WAVES, 1))
    return np.concatenate([2 * np.pi / length * direction, phase], axis=1)


def fraction(anatomy: Anatomy, lesion: Lesion | Blob, place: tuple[Floats, Floats, Floats]) -> Floats:
    """How much of each point belongs to a lesion, ``(n,)``; points as `cords.cord_points` gives them."""
    foot, u, v = place
    if isinstance(lesion, Lesion):
        return fraction_at(anatomy, lesion, foot=foot, u=u, v=v)
    at = table_index(foot)
    half_axes = (anatomy.profiles.cord_rl[at], anatomy.profiles.cord_ap[at])
    return blob_fraction(lesion, arc=_arc_from(anatomy, lesion, foot), u=u, v=v, half_axes=half_axes)


def _arc_from(anatomy: Anatomy, lesion: Lesion | Blob, foot: Floats) -> Floats:
    """Arc length in mm from a lesion's centre, of points at heights ``foot`` ``(n,)``."""
    arc = np.interp(foot, z_axis(), anatomy.profiles.arc) - lesion.arc_mm
    return np.asarray(arc, np.float32)


def shares(image: CordImage, anatomy: Anatomy, implants: Sequence[Implant]) -> Shares:
    """Means of the implants over each voxel's footprint, in the voxels of the cord mask.

    Parameters
    ----------
    image, anatomy
        An image and the cord's tables in its world.
    implants
        In the session's order.
    """
    near = np.flatnonzero(image.cord > 0)
    ijk = np.stack(np.unravel_index(near, image.grid.shape), axis=1).astype(float)
    foot, u, v = cord_points(anatomy, image.grid.to_world(ijk))
    at = table_index(foot)
    arc = np.interp(foot, z_axis(), anatomy.profiles.arc).astype(np.float32)
    scale = image.thickness_mm / image.grid.spacing
    offsets = footprint_offsets(image.thickness_mm, STEP_MM) * scale
    cord = image.cord.reshape(-1)[near]
    parts = np.zeros((len(implants), near.size), np.float32)
    weights = np.zeros_like(parts)
    reach = float(np.abs(image.grid.affine[:3, :3]).sum())
    for number, implant in enumerate(implants):
        some = np.flatnonzero(np.abs(arc - implant.lesion.arc_mm) < implant.lesion.length_mm / 2 + reach)
        part, rough = _footprint_means(image.grid, ijk[some], offsets, anatomy, implant)
        parts[number, some] = part * cord[some]
        weights[number] = _spread(rough, some, near, image) * cord
    radius = np.hypot(u / anatomy.profiles.cord_rl[at], v / anatomy.profiles.cord_ap[at])
    return Shares(near=near, cord=cord, height=foot, arc=arc, radius=radius, lesions=parts, weights=weights)


def _footprint_means(
    grid: Grid, ijk: Doubles, offsets: Doubles, anatomy: Anatomy, implant: Implant
) -> tuple[Floats, Floats]:
    """Mean of a lesion over each voxel, without and with its texture."""
    plain, rough = np.zeros(len(ijk), np.float32), np.zeros(len(ijk), np.float32)
    for offset in offsets:
        foot, u, v = cord_points(anatomy, grid.to_world(ijk + offset))
        part = fraction(anatomy, implant.lesion, (foot, u, v))
        plain += part
        rough += part * _texture(implant.waves, np.stack([_arc_from(anatomy, implant.lesion, foot), u, v]))
    return plain / np.float32(len(offsets)), rough / np.float32(len(offsets))


def _texture(waves: Doubles, place: Floats) -> Floats:
    """Factor at points ``(3, n)``, 1 on average."""
    if not len(waves):
        return np.ones(place.shape[1], np.float32)
    phase = waves[:, :3] @ place + waves[:, 3:]
    return np.asarray(1 + TEXTURE_SD * np.sqrt(2 / len(waves)) * np.cos(phase).sum(axis=0), np.float32)


def _spread(
    values: Floats, some: npt.NDArray[np.intp], near: npt.NDArray[np.intp], image: CordImage
) -> Floats:
    """The in-plane point spread of what lies in the voxels ``near[some]``, in all of ``near``."""
    out = np.zeros(near.size, np.float32)
    if not some.size or not values.any():
        return out
    ijk = np.stack(np.unravel_index(near[some], image.grid.shape))
    low = np.maximum(ijk.min(axis=1) - 3, 0)
    high = np.minimum(ijk.max(axis=1) + 4, image.grid.shape)
    box = np.zeros(high - low, np.float32)
    box[tuple(ijk - low[:, None])] = values
    plane = image.grid.plane()
    across = int(np.argmax(image.grid.spacing)) if plane != "iso" else -1
    sigma = [0.0 if axis == across else POINT_SPREAD_VOX for axis in range(3)]
    box = ndimage.gaussian_filter(box, sigma)
    every = np.stack(np.unravel_index(near, image.grid.shape))
    inside = np.flatnonzero(np.all((every >= low[:, None]) & (every < high[:, None]), axis=0))
    out[inside] = box[tuple(every[:, inside] - low[:, None])]
    return out


def paint_implants(image: CordImage, anatomy: Anatomy, implants: Sequence[Implant]) -> Painted:
    """Paint a session's implants into one of its images.

    Parameters
    ----------
    image, anatomy
        An image and the cord's tables in its world.
    implants
        In the session's order; without any, the data come back as they are.

    Returns
    -------
    Painted
        Signs and contrasts are those of the image's sequence (`contrast.LESION_SIGN`,
        `lesions.DETECTABILITY`).
    """
    where = shares(image, anatomy, implants)
    data = image.data.copy()
    flat = data.reshape(-1)
    before = flat[where.near]
    sign = LESION_SIGN[image.sequence]
    ring = _ring(image, anatomy)
    total = where.lesions.sum(axis=0) if len(implants) else np.zeros(where.near.size, np.float32)
    level = _level(before, where)
    after = before.copy()
    regions = [_region(where, number, total) for number in range(len(implants))]
    relative = np.zeros(len(implants))
    for number, (implant, region) in enumerate(zip(implants, regions, strict=True)):
        wanted = sign * implant.lesion.cnr[image.sequence]
        factor = before if implant.multiplicative else level
        relative[number] = _amplitude(
            before, where.weights[number] * factor, region=region, wanted=wanted, fluid=_fluid(ring, implant)
        )
        after += np.float32(relative[number]) * where.weights[number] * factor
    flat[where.near] = after
    return Painted(
        data=data,
        lesions=_numbers(image, where),
        cnr=np.array([sign * _measured(after, after - before, region) for region in regions]),
        volume_mm3=where.lesions.sum(axis=1, dtype=float) * image.grid.voxel_volume,
        amplitude=relative,
    )


def _numbers(image: CordImage, where: Shares) -> npt.NDArray[np.uint8]:
    out = np.zeros(image.grid.shape, np.uint8)
    for number, share in enumerate(where.lesions, start=1):
        out.reshape(-1)[where.near[share >= 0.5]] = number
    return out


# ------------------------------------------------------------------------------------------------- contrast


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Region:
    """Voxels of a lesion and of the lesion-free cord around it, as positions in ``Shares.near``.

    ``mixed``: the lesion fills no voxel away from the cord's edge.
    """

    lesion: npt.NDArray[np.intp]
    around: npt.NDArray[np.intp]
    mixed: bool = field(default=False)

    @property
    def covered(self) -> bool:
        """Whether contrast can be measured."""
        return self.lesion.size > 0 and self.around.size >= LEAST_AROUND


def _region(where: Shares, number: int, total: Floats) -> _Region:
    """Where the contrast of an implant is measured, as `scanner` does it in computed scans."""
    share = where.lesions[number]
    pure = (where.cord >= 0.9) & (where.radius < PURE_RADIUS)
    inside = np.flatnonzero((share >= 0.5) & pure)
    mixed = inside.size < 3
    if mixed:
        inside = np.flatnonzero(share >= 0.5)
    if not inside.size:
        inside = np.flatnonzero(share > max(0.15, 0.7 * float(share.max(initial=0.0))))
    if not inside.size:
        return _Region(lesion=inside, around=inside)
    free = pure & (total < 0.03)
    span = where.arc[inside]
    near = (where.arc > span.min() - SURROUND_MM) & (where.arc < span.max() + SURROUND_MM)
    around = np.flatnonzero(free & near)
    if around.size < LEAST_AROUND:
        around = np.flatnonzero(free)
    return _Region(lesion=inside, around=around, mixed=mixed)


def _level(values: Floats, where: Shares) -> Floats:
    """Typical intensity of the cord at the height of each voxel, ``(n,)``: a smooth curve along it."""
    pure = np.flatnonzero((where.cord >= 0.9) & (where.radius < PURE_RADIUS))
    if pure.size < LEAST_AROUND:
        return np.full(values.shape, np.median(values) if values.size else 0, np.float32)
    arcs, slot = np.unique(np.rint(where.arc[pure]).astype(int), return_inverse=True)
    medians = ndimage.median(values[pure], slot, np.arange(arcs.size))
    grid = np.arange(arcs[0], arcs[-1] + 1)
    curve = ndimage.gaussian_filter1d(np.interp(grid, arcs, medians), LEVEL_MM, mode="nearest")
    return np.asarray(np.interp(where.arc, grid, curve), np.float32)


def _ring(image: CordImage, anatomy: Anatomy) -> tuple[Floats, Floats]:
    """Arc length in mm and intensity of the voxels round the cord mask, ``(n,)`` each."""
    ijk = ring_voxels(image)
    foot, _, _ = cord_points(anatomy, image.grid.to_world(ijk))
    arc = np.interp(foot, z_axis(), anatomy.profiles.arc).astype(np.float32)
    return arc, image.data[tuple(ijk.T)]


def _fluid(ring: tuple[Floats, Floats], implant: Implant) -> float:
    """Intensity of the fluid beside a lesion; 0 where nothing is known."""
    arc, values = ring
    near = np.abs(arc - implant.lesion.arc_mm) < implant.lesion.length_mm / 2 + SURROUND_MM
    return float(np.percentile(values[near], FLUID_PERCENTILE)) if near.any() else 0.0


def _amplitude(values: Floats, weights: Floats, *, region: _Region, wanted: float, fluid: float) -> float:
    """What to multiply ``weights`` with for the wanted contrast-to-noise (0 if not covered).

    The cord under a lesion need not have the mean of its surroundings: the difference is made up for, as the
    definition of contrast-to-noise asks, but a lesion never turns against its sign, and is not brighter than
    lesions are (`FLUID_SHARE`, `BRIGHTER`). The weights hold the cord's level, so the amplitude is relative
    to it.
    """
    if not region.covered:
        return 0.0
    around = values[region.around]
    present = 0.0 if region.mixed else float(values[region.lesion].mean()) - float(around.mean())
    reach = float(weights[region.lesion].mean())
    lacking = wanted * float(around.std()) - present
    if np.signbit(wanted):  # of a dark lesion that is not seen, too: -0.0
        return float(np.clip(lacking / max(reach, 1e-6), -MAX_DARKER, 0))
    cord = max(float(around.mean()), 1e-6)
    brightest = float(np.clip(FLUID_SHARE * (fluid / cord - 1), *BRIGHTER))
    return float(np.clip(lacking / max(reach, 1e-6), 0, brightest))


def _measured(after: Floats, added: Floats, region: _Region) -> float:
    """Signed contrast-to-noise in the painted image; NaN where lesion or surroundings are not covered."""
    if not region.covered:
        return float("nan")
    around = after[region.around]
    part = added if region.mixed else after - around.mean()
    return float(part[region.lesion].mean() / max(float(around.std()), 1e-6))
