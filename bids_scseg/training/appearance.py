"""Grey matter and surroundings of the cord of made-up contrast, in patches while a training runs.

Bright anterior horns are what a lesion network takes for lesions first, and few people's horns are at hand.
Here a patch gets horns of its own: their shape follows the cord's outline in every slice and changes slowly
along it, their contrast runs from none to stronger than in axial T2*w. They count as cord without lesion.
What surrounds the cord, fluid mostly, is brightened or dimmed: how bright it is depends on the scanner's
settings more than on anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.training.config import PaintConfig
from bids_scseg.training.paint import PURE, Spacing, average, sign_of
from bids_scseg.training.sample import Sample

Floats = npt.NDArray[np.float32]
Rng = np.random.Generator

#: All of these are ours, wide enough to hold what axial T2*w shows. Positions and widths are shares of the
#: cord's half widths: distance of the horns from the middle, their bend outwards to the ends, half widths
#: of the bridge, of the anterior and of the posterior horn, and how far the horns reach to front and back.
ASIDE, BEND, BRIDGE = (0.15, 0.40), (0.0, 0.5), (0.03, 0.15)
WIDE, NARROW = (0.10, 0.32), (0.04, 0.14)
FRONT, BACK = (0.30, 0.70), (0.40, 0.80)
#: Widths and contrast change along the cord by this relative deviation, over this length in mm.
CHANGE, CHANGE_MM = 0.3, 8.0
#: Share of sequences that show the horns; share of these where contrast is against that of lesions.
SHOWN, REVERSED = 0.7, 0.15
#: Softness of the horns' surface in voxels.
SOFT_VOX = (0.5, 1.2)
#: Factor of values outside the cord, about the cord's mean, log-uniform; share of sequences that change.
DIMMED, CHANGED = (0.15, 1.5), 0.7
#: Sequences whose fluid can be as dark as the cord or darker, with long echoes and short repetitions or
#: flow; and the factor that makes it so. Real axial T2*w has surroundings from -6 to 2 spreads of the cord.
DARKENED, DARK = ("T2StarAx", "T2Ax"), (-1.0, 0.15)
LEAST_VOXELS = 30  # of pure cord in a slice or patch, below which nothing is drawn
SLICE_MM2 = 15.0  # least cord in a slice, mm²: less is a rest of it


def add_grey(
    sample: Sample,
    cord: Floats,
    rng: Rng,
    *,
    config: PaintConfig,
    sequences: Sequence[str],
    spacings: Sequence[Spacing],
) -> Sample:
    """The sample with horns of its own, by ``config.grey``.

    Mean and spread of the cord without lesions stay in every sequence, as normalisation would make them.

    Parameters
    ----------
    sample
        A patch, prepared with intensities normalised to the cord.
    cord : (i, j, k) float32
        Share of cord in each voxel.
    rng, config
        Where the draw comes from; share of patches that are changed, contrast, strength of anterior horns.
    sequences
        Names of the channels.
    spacings
        Size of a native voxel along (R, A, S) of each channel, mm.

    Raises
    ------
    DataError
        If it is not known whether lesions are bright or dark in one of the sequences.
    """
    if rng.random() >= config.grey:
        return sample
    share = draw_horns(rng, cord, front=config.grey_front)
    if not share.any():
        return sample
    image = sample.image.copy()
    for channel in np.flatnonzero(sample.available):
        if rng.random() >= SHOWN:
            continue
        sign = sign_of(sequences[channel]) * (-1 if rng.random() < REVERSED else 1)
        added = sign * rng.uniform(*config.grey_contrast) * average(share, spacings[channel], rng)
        inside = sample.coverage[channel]
        pure = inside & (cord >= PURE) & (sample.label == 0)
        image[channel] = np.where(inside, _like_before(image[channel], added, pure), image[channel])
    return replace(sample, image=image)


def change_surroundings(sample: Sample, cord: Floats, rng: Rng, *, probability: float) -> Sample:
    """The sample with other contrast between the cord and what surrounds it, by ``probability``.

    Parameters
    ----------
    sample
        A patch whose intensities are normalised to the cord: 0 is the cord's mean.
    cord : (i, j, k) float32
        Share of cord in each voxel; in part that share stays.
    rng, probability
        Where the draw comes from; share of patches that are changed.
    """
    if rng.random() >= probability:
        return sample
    image = sample.image.copy()
    for channel in np.flatnonzero(sample.available):
        if rng.random() < CHANGED:
            factor = np.float32(np.exp(rng.uniform(*np.log(DIMMED))))
            image[channel] = np.clip(image[channel] * (cord + (1 - cord) * factor), -CLIP, CLIP)
    return replace(sample, image=image)


def darken_fluid(
    sample: Sample, cord: Floats, rng: Rng, *, probability: float, sequences: Sequence[str]
) -> Sample:
    """The sample with surroundings as dark as the cord or darker in axial scans, each by ``probability``.

    Parameters
    ----------
    sample, cord, rng
        As of :func:`change_surroundings`.
    probability
        Share of axial T2- and T2*-weighted channels that are changed.
    sequences
        Names of the channels.
    """
    if not probability:
        return sample
    image = sample.image.copy()
    for channel in np.flatnonzero(sample.available):
        if sequences[channel] in DARKENED and rng.random() < probability:
            factor = np.float32(rng.uniform(*DARK))
            image[channel] = np.clip(image[channel] * (cord + (1 - cord) * factor), -CLIP, CLIP)
    return replace(sample, image=image)


def _like_before(before: Floats, added: Floats, pure: npt.NDArray[np.bool_]) -> Floats:
    """The sum, with the mean and standard deviation in ``pure`` that the image had."""
    if np.count_nonzero(pure) < LEAST_VOXELS:
        return before
    after = before + added
    old, new = before[pure], after[pure]
    if not new.std() > 0:
        return before
    out = (after - new.mean()) * (old.std() / new.std()) + old.mean()
    return np.asarray(np.clip(out, -CLIP, CLIP), np.float32)


def draw_horns(rng: Rng, cord: Floats, *, front: float = 0.0) -> Floats:
    """Share of grey matter (i, j, k) in each voxel, 0 outside the cord and where a slice has hardly any.

    Anterior horns are stronger than the rest by up to ``front``, and shares may then exceed 1.
    """
    places = _in_cord(cord)
    if places is None:
        return np.zeros_like(cord)
    across, along, vox = places
    change = 1 + CHANGE * _wave(rng, cord.shape[2])
    aside = np.abs(across)
    middle = float(rng.uniform(-0.2, 0.2))
    line = rng.uniform(*ASIDE) + rng.uniform(*BEND) * (along - middle) ** 2
    wide, narrow = rng.uniform(*WIDE), rng.uniform(*NARROW)
    width = (narrow + (wide - narrow) / (1 + np.exp(-(along - middle) * 8))) * change
    horns = width - np.abs(aside - line)
    reach = np.minimum(rng.uniform(*FRONT) - along, rng.uniform(*BACK) + along)
    bridge = np.minimum(rng.uniform(*BRIDGE) * change - np.abs(along - middle), line - aside)
    distance = np.maximum(np.minimum(horns, reach), bridge) * vox
    strength = np.clip(1 + CHANGE * _wave(rng, cord.shape[2]), 0.2, 2.0)
    share = strength / (1 + np.exp(-np.clip(distance * 4 / rng.uniform(*SOFT_VOX), -30, 30)))
    if front:
        share = share * (1 + rng.uniform(0, front) / (1 + np.exp(-(along - middle) * 8)))
    return np.asarray(np.where(cord > 0, share * cord, 0), np.float32)


def _in_cord(cord: Floats) -> tuple[Floats, Floats, Floats] | None:
    """Places from the cord's middle in half widths, R-L and A-P, and the half width in voxels, by slice."""
    mass = cord.sum(axis=(0, 1))
    enough = mass * 0.25 >= SLICE_MM2
    if not enough.any():
        return None
    safe = np.where(enough, mass, 1)
    out = []
    for axis in (0, 1):
        index = np.arange(cord.shape[axis], dtype=np.float32)
        line = cord.sum(axis=1 - axis)  # (n, k)
        centre = (line * index[:, None]).sum(0) / safe
        spread = (line * (index[:, None] - centre) ** 2).sum(0) / safe
        half = np.where(enough, np.maximum(2 * np.sqrt(spread), 1), 1)  # of an ellipse, twice the deviation
        shape = (-1, 1) if axis == 0 else (1, -1)
        out.append((index.reshape(*shape, 1) - centre) / half)
        out.append(half)
    across, half_i, along, half_j = out
    far = np.where(enough, 0, np.inf)  # slices without cord: nothing is near
    # slices with a rest of cord reach far beyond their half width of 1
    return (
        across + far,
        np.asarray(np.clip(along, -3, 3), np.float32),
        np.asarray(np.sqrt(half_i * half_j), np.float32),
    )


def _wave(rng: Rng, size: int) -> Floats:
    """Smooth noise along the cord with mean 0 and unit standard deviation."""
    noise = ndimage.gaussian_filter1d(rng.standard_normal(size), CHANGE_MM / 0.5 / 2, mode="wrap")
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), np.float32)
