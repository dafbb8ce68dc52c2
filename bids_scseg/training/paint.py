"""Lesions painted into patches while a training runs, and sequences shown in each other's place.

Few real cords without lesions are at hand, and lesions painted into their files once are soon known by heart.
Here every patch gets lesions of its own, in prepared space: any place in the cord, any size, smooth or rough,
averaged over the thickness of each sequence's slices, faint to as bright as fluid. The ranges are wider than
what lesions show, so that these lie within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.errors import DataError
from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.synth.contrast import FAINT_CNR, LESION_SIGN
from bids_scseg.synth.lesions import COLUMNS, DETECTABILITY
from bids_scseg.training.config import PaintConfig
from bids_scseg.training.sample import IGNORE, Sample

Floats = npt.NDArray[np.float32]
Rng = np.random.Generator
Spacing = tuple[float, float, float]

SPACING_MM = 0.5  # of the prepared grid
#: Median and log-deviation of a lesion's cross-section and length, and their bounds. Dorsal and lateral
#: lesions average 9 and 8 mm² and 15 and 13 mm (docs/synthetic.md); the spread is ours, wider.
AREA_MM2, AREA_LOG_SD, AREA_BOUNDS = 8.0, 0.6, (1.5, 35.0)
LENGTH_MM, LENGTH_LOG_SD, LENGTH_BOUNDS = 12.0, 0.6, (3.0, 60.0)
#: Share of the cord's section and median length of wide lesions, ours.
WIDE_SHARE, WIDE_LENGTH_MM = (0.25, 0.6), 18.0
#: Ours: exponents of the superellipsoids, ratio of their half axes, slant along S-I, softness in mm.
EXPONENT, RATIO_LOG_SD, SLANT, EDGE_MM = (1.6, 4.0), 0.35, 0.12, (0.2, 1.2)
#: Ours: the surface is roughened by smooth noise of this amplitude (share of the radius) and length in mm.
ROUGHNESS, ROUGH_MM = (0.0, 0.35), (1.0, 4.0)
#: Texture within a lesion: relative deviation and length in mm, ours.
TEXTURE, TEXTURE_MM = (0.0, 0.3), (1.0, 3.0)
#: Where centres by columns lie: angle from R to A in degrees (lateral ones on either side), deviation around
#: it on both sides, distance from the middle as a share of the cord's half widths (ours).
COLUMN_ANGLES, COLUMN_SPREAD, COLUMN_RADII = (
    {"lateral": 0.0, "dorsal": -90.0, "ventral": 90.0},
    35.0,
    (0.35, 0.8),
)
#: How readily a sequence shows a lesion: the share that the generator draws by (docs/synthetic.md) to the
#: power of an exponent between these bounds, drawn for each lesion (ours). Some are seen in one sequence,
#: others in all.
EASE = (0.2, 4.0)
FAINT = 0.5  # share of the other sequences where it is faint, ours
#: Share of lesions of which one sequence at least is made to show them, ours.
SHOWN = 0.95
#: Spread of the cord is taken within this distance along S-I (the definition of contrast-to-noise).
SURROUND_MM = 10.0
PURE, LEAST_VOXELS = 0.9, 30  # share of cord in voxels that are compared with, and how many are needed
LEAST_MM3 = 8.0  # a smaller lesion is not painted
MARGIN_VOX = 2  # between lesions


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One lesion in a patch: centre in voxels, half axes in mm, and the rest of its form."""

    centre: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    angle: float
    slant: tuple[float, float]
    exponent: float
    edge_mm: float
    roughness: float
    rough_mm: float


def paint(
    sample: Sample,
    cord: Floats,
    rng: Rng,
    config: PaintConfig,
    *,
    sequences: Sequence[str],
    spacings: Sequence[Spacing],
) -> Sample:
    """The sample with lesions of its own, by ``config.probability``.

    Parameters
    ----------
    sample
        A patch; what it shows already is left alone.
    cord : (i, j, k) float32
        Share of cord in each voxel.
    rng, config
        Where the draw comes from, and how many lesions.
    sequences
        Names of the channels.
    spacings
        Size of a native voxel along (R, A, S) of each channel, mm.

    Raises
    ------
    DataError
        If it is not known whether lesions are bright or dark in one of the sequences.
    """
    if rng.random() >= config.probability:
        return sample
    for _ in range(int(rng.integers(config.lesions[0], config.lesions[1] + 1))):
        wide = bool(config.wide) and rng.random() < config.wide
        sample = _add(sample, cord, rng, config, wide=wide, sequences=sequences, spacings=spacings)
    return sample


def exchange(
    sample: Sample, rng: Rng, *, probability: float, sequences: Sequence[str]
) -> tuple[Sample, npt.NDArray[np.intp]]:
    """Show a sequence in place of another that is missing and in which lesions have the same sign.

    Real images are at hand for some sequences only: an encoder that never saw one learns from its kin. Each
    of the available sequences moves with the given probability.

    Returns
    -------
    Sample
        With its channels moved.
    (S,) int
        Where each channel came from.
    """
    signs = [sign_of(name) for name in sequences]
    order = np.arange(len(sequences))
    available = sample.available.copy()
    for source in np.flatnonzero(sample.available):
        free = [n for n in range(len(signs)) if not available[n] and signs[n] == signs[source]]
        if free and rng.random() < probability:
            target = int(rng.choice(free))
            order[target], order[source] = order[source], order[target]
            available[target], available[source] = True, False
    moved = replace(sample, image=sample.image[order], coverage=sample.coverage[order], available=available)
    return moved, order


def sign_of(name: str) -> int:
    """+1 where a sequence shows lesions bright, -1 where dark (DataError if that is not known)."""
    if name not in LESION_SIGN:
        raise DataError(
            f"sequence {name}",
            file="paint",
            expected=f"one of {list(LESION_SIGN)}: whether its lesions are bright is unknown",
            remedy="set paint.probability, paint.grey and sampling.exchange to 0",
        )
    return LESION_SIGN[name]


def _add(
    sample: Sample,
    cord: Floats,
    rng: Rng,
    config: PaintConfig,
    *,
    wide: bool,
    sequences: Sequence[str],
    spacings: Sequence[Spacing],
) -> Sample:
    """One more lesion; the same sample where the drawn one has no room."""
    free = (cord >= 0.5) & (sample.label == 0)
    places = np.argwhere(free)
    if not len(places):
        return sample
    if config.columns and not wide and rng.random() < config.columns:
        places = column_place(rng, free, cord, places)
    shape = draw_wide(rng, places, cord) if wide else draw_shape(rng, places)
    box, share = fill(shape, rng, cord)
    if not share.size or share.sum() * SPACING_MM**3 < LEAST_MM3:
        return sample
    taken = ndimage.binary_dilation(sample.label[box] != 0, iterations=MARGIN_VOX)
    if np.any(taken & (share >= 0.25)):
        return sample
    image, mean, seen = sample.image.copy(), np.zeros_like(share), np.zeros(share.shape, bool)
    shown = _degrees(rng, sample, box, share, sequences=sequences, contrast=config.contrast)
    texture = _smooth(rng, share.shape, rng.uniform(*TEXTURE_MM)) * rng.uniform(*TEXTURE)
    for channel, cnr in shown.items():
        part = average(share, spacings[channel], rng)
        spread = _spread(image[channel], cord, sample, box=box, channel=channel)
        added = sign_of(sequences[channel]) * cnr * spread * part * (1 + texture)
        change = _change(image[(channel, *box)], added, sample.coverage[(channel, *box)])
        seen |= change >= config.least_contrast * spread
        mean += part / len(shown)
    label = sample.label.copy()
    # where cord and fluid mix, a lesion may leave no trace: that must not be learned as one
    view = label[box]
    view[(mean >= 0.5) & (view == 0)] = IGNORE
    view[(mean >= 0.5) & seen & (sample.label[box] == 0)] = 1
    return replace(sample, image=image, label=label)


def _change(view: Floats, added: Floats, coverage: npt.NDArray[np.bool_]) -> Floats:
    """Add to what is covered of a view, in place and within `CLIP`; the size of what it came to."""
    before = view.copy()
    view += np.where(coverage, added, 0).astype(np.float32)
    np.clip(view, -CLIP, CLIP, out=view)
    return np.asarray(np.abs(view - before), np.float32)


def draw_shape(rng: Rng, places: npt.NDArray[np.int64]) -> Shape:
    """A lesion with its centre at one of the places ``(n, 3)`` in voxels."""
    area = float(np.clip(rng.lognormal(np.log(AREA_MM2), AREA_LOG_SD), *AREA_BOUNDS))
    return _shape_of(rng, places, area_mm2=area, length_mm=LENGTH_MM)


def column_place(
    rng: Rng, free: npt.NDArray[np.bool_], cord: Floats, places: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """A place ``(1, 3)`` in a column, in the slice of a random one of ``places`` ``(n, 3)``.

    Columns have the generator's shares (`bids_scseg.synth.lesions.COLUMNS`). Where the cord is not free
    there, the random place itself.
    """
    chosen = places[rng.integers(len(places))]
    names = list(COLUMNS)
    name = names[int(rng.choice(len(names), p=[COLUMNS[one][0] for one in names]))]
    angle = np.deg2rad(COLUMN_ANGLES[name] + rng.uniform(-COLUMN_SPREAD, COLUMN_SPREAD))
    away = rng.uniform(*COLUMN_RADII) * np.array([np.cos(angle), np.sin(angle)])
    if name == "lateral" and rng.random() < 0.5:
        away[0] = -away[0]
    section = cord[..., chosen[2]].astype(np.float64)
    index = np.indices(section.shape)
    centre = (index * section).sum(axis=(1, 2)) / section.sum()
    spread = ((index - centre[:, None, None]) ** 2 * section).sum(axis=(1, 2)) / section.sum()
    half = 2 * np.sqrt(spread)  # of an ellipse, twice the deviation
    i, j = np.rint(centre + away * half).astype(int)
    inside = 0 <= i < free.shape[0] and 0 <= j < free.shape[1] and free[i, j, chosen[2]]
    return np.array([[i, j, chosen[2]]]) if inside else chosen[None]


def draw_wide(rng: Rng, places: npt.NDArray[np.int64], cord: Floats) -> Shape:
    """A lesion as wide as a good part of the cord, whose mean section over the patch's slices is taken."""
    section = cord.sum(axis=(0, 1)) * SPACING_MM**2
    area = float(rng.uniform(*WIDE_SHARE)) * float(section[section > 0].mean())
    return _shape_of(rng, places, area_mm2=area, length_mm=WIDE_LENGTH_MM)


def _shape_of(rng: Rng, places: npt.NDArray[np.int64], *, area_mm2: float, length_mm: float) -> Shape:
    length = float(np.clip(rng.lognormal(np.log(length_mm), LENGTH_LOG_SD), *LENGTH_BOUNDS))
    ratio = float(np.exp(rng.normal(0, RATIO_LOG_SD)))
    radius = float(np.sqrt(area_mm2 / np.pi))
    i, j, k = places[rng.integers(len(places))]
    return Shape(
        centre=(float(i), float(j), float(k)),
        half_mm=(radius * ratio, radius / ratio, length / 2),
        angle=float(rng.uniform(0, np.pi)),
        slant=(float(rng.normal(0, SLANT)), float(rng.normal(0, SLANT))),
        exponent=float(rng.uniform(*EXPONENT)),
        edge_mm=float(rng.uniform(*EDGE_MM)),
        roughness=float(rng.uniform(*ROUGHNESS)),
        rough_mm=float(rng.uniform(*ROUGH_MM)),
    )


def fill(shape: Shape, rng: Rng, cord: Floats) -> tuple[tuple[slice, slice, slice], Floats]:
    """The box around a lesion and its share in the box's voxels, 0 outside the cord."""
    reach = np.array([max(shape.half_mm[:2])] * 2 + [shape.half_mm[2]]) * (1 + shape.roughness) + 2.5
    low = np.maximum(np.floor(np.array(shape.centre) - reach / SPACING_MM).astype(int), 0)
    high = np.minimum(np.ceil(np.array(shape.centre) + reach / SPACING_MM).astype(int) + 1, cord.shape)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    i, j, k = np.ogrid[box]
    z = (k - shape.centre[2]) * SPACING_MM
    x = (i - shape.centre[0]) * SPACING_MM - shape.slant[0] * z
    y = (j - shape.centre[1]) * SPACING_MM - shape.slant[1] * z
    turn, lean = np.cos(shape.angle), np.sin(shape.angle)
    parts = (x * turn + y * lean, y * turn - x * lean, z)
    near = sum(np.abs(d / h) ** shape.exponent for d, h in zip(parts, shape.half_mm, strict=True))
    rough = shape.roughness * _smooth(rng, near.shape, shape.rough_mm)
    distance = (1 + rough - near ** (1 / shape.exponent)) * min(shape.half_mm[:2])
    share = 1 / (1 + np.exp(-np.clip(distance * 4 / shape.edge_mm, -30, 30)))
    return box, np.asarray(np.where(share < 0.02, 0, share) * cord[box], np.float32)


def average(share: Floats, spacing: tuple[float, float, float], rng: Rng) -> Floats:
    """Means over native voxels that begin anywhere, interpolated back: what a scanner leaves of a lesion."""
    out = share
    for axis, size in enumerate(spacing):
        step = round(size / SPACING_MM)
        if step >= 2:
            out = _average_along(out, axis, step=step, first=int(rng.integers(step)))
    return out


def _average_along(share: Floats, axis: int, *, step: int, first: int) -> Floats:
    size = share.shape[axis]
    count = -(-(size + first) // step)
    pad = [(0, 0)] * 3
    pad[axis] = (first, count * step - size - first)
    lines = np.moveaxis(np.pad(share, pad), axis, -1)
    means = lines.reshape(*lines.shape[:-1], count, step).mean(axis=-1)
    return np.moveaxis(spread_back(means, size, step=step, first=first), -1, axis)


def spread_back(native: Floats, size: int, *, step: int, first: int) -> Floats:
    """Values of native voxels along the last axis, interpolated linearly to a grid of ``size`` voxels.

    A native voxel is ``step`` voxels of the grid long; of the first one, ``first`` lie before the grid.
    """
    count = native.shape[-1]
    where = np.clip((np.arange(size) + first + 0.5) / step - 0.5, 0, count - 1)
    low = np.minimum(where.astype(int), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    part = (where - low).astype(np.float32)
    return np.asarray(native[..., low] * (1 - part) + native[..., high] * part, np.float32)


def _degrees(
    rng: Rng,
    sample: Sample,
    box: tuple[slice, slice, slice],
    share: Floats,
    *,
    sequences: Sequence[str],
    contrast: tuple[float, float],
) -> dict[int, float]:
    """Contrast-to-noise by channel that covers most of the lesion; visible in one of them nearly always.

    Of a visible lesion it is log-uniform within ``contrast``, of a faint one below that.
    """
    inside = share >= 0.5
    covering = [
        int(n)
        for n in np.flatnonzero(sample.available)
        if inside.any() and sample.coverage[(n, *box)][inside].mean() > 0.5
    ]
    out = {}
    shares = np.array([DETECTABILITY[sequences[n]][0] / 100 for n in covering])
    ease = np.exp(rng.uniform(*np.log(EASE)))
    certain = int(rng.choice(covering, p=shares / shares.sum())) if covering and rng.random() < SHOWN else -1
    for channel, share_visible in zip(covering, shares**ease, strict=True):
        if channel == certain or rng.random() < share_visible:
            out[channel] = float(np.exp(rng.uniform(np.log(contrast[0]), np.log(contrast[1]))))
        else:
            bounds = (FAINT_CNR, max(contrast[0], FAINT_CNR)) if rng.random() < FAINT else (0.0, FAINT_CNR)
            out[channel] = float(rng.uniform(*bounds))
    return out


def _spread(
    image: Floats, cord: Floats, sample: Sample, *, box: tuple[slice, slice, slice], channel: int
) -> float:
    """Standard deviation of lesion-free cord near the box; 1, the normalised cord's, where little is seen."""
    margin = round(SURROUND_MM / SPACING_MM)
    heights = slice(max(box[2].start - margin, 0), box[2].stop + margin)
    free = (cord[..., heights] >= PURE) & (sample.label[..., heights] == 0)
    values = image[..., heights][free & sample.coverage[channel][..., heights]]
    return float(np.clip(values.std(), 0.3, 2.0)) if values.size >= LEAST_VOXELS else 1.0


def _smooth(rng: Rng, shape: tuple[int, ...], length_mm: float) -> Floats:
    """Noise with unit standard deviation and a correlation length."""
    noise = rng.standard_normal(shape, np.float32)
    smooth = ndimage.gaussian_filter(noise, length_mm / SPACING_MM / 2, mode="wrap")
    return np.asarray(smooth / max(float(smooth.std()), 1e-6), np.float32)
