"""What a scanner does to a patch's intensities, and the normalisation that follows it in every real image.

Real scans are normalised after coil, slices and noise have acted, and lesions take part in the cord's median
and spread. Here a patch, normalised already, is taken back to a level of ``ratio`` spreads, multiplied by a
field, given noise of native voxels, and normalised anew by the recipe's own rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.preprocess.normalize import CLIP, CORE_SHARE, cord_ratio, cord_score
from bids_scseg.training.paint import SPACING_MM, Spacing, average, spread_back

if TYPE_CHECKING:
    from bids_scseg.training.config import AugmentConfig

Floats = npt.NDArray[np.float32]
Rng = np.random.Generator

#: Level of the cord in units of its spread, log-uniform; real cords have 5 to 16.
RATIO = (5.0, 16.0)
#: Largest change in plane by the coils, as a share, across a window of so many mm.
GRADIENT, ACROSS_MM = 0.12, 24.0
#: Fall-off along S-I: by this factor, log-uniform, over so many mm (the length is ours).
FALL, FALL_MM = (1.0, 4.0), (50.0, 200.0)
#: Slices that are so much thicker than the next larger side of a voxel are excited one by one, ours.
SLICED = 1.5
LEAST_CORE = 100  # voxels of cord in a patch, below which it says nothing about itself, ours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """What is known of a patch beside its images.

    Attributes
    ----------
    cord : (i, j, k) float32
        Share of cord in each voxel.
    spacings
        Size of a native voxel along (R, A, S) of each channel, mm.
    normalize
        Rule by which the images are normalised, as in the recipe.
    """

    cord: Floats
    spacings: Sequence[Spacing]
    normalize: Literal["cord", "cord-ratio"] = "cord"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanDraw:
    """How one sequence is taken.

    Attributes
    ----------
    ratio
        Level of the cord in units of its spread.
    gradient, angle
        Change in plane as a share, across `ACROSS_MM`, and its direction from R to A in radians.
    slice_sd
        Standard deviation of the brightness of native slices, as a share.
    fall_per_mm
        Logarithm of brightness lost in a mm, upwards if positive; at the bright end of the patch nothing is.
    noise
        Standard deviation of the noise at the bright end, in units of the cord's spread.
    seed
        Of slices and noise.
    """

    ratio: float
    gradient: float = 0.0
    angle: float = 0.0
    slice_sd: float = 0.0
    fall_per_mm: float = 0.0
    noise: float = 0.0
    seed: int = 0


def draw_scan(rng: Rng, config: AugmentConfig) -> ScanDraw | None:
    """By ``augment.physical`` how a sequence is taken; None: as it was."""
    if not config.physical or rng.random() >= config.physical:
        return None
    fall = rng.uniform(*np.log(FALL)) / rng.uniform(*FALL_MM)
    return ScanDraw(
        ratio=draw_ratio(rng),
        gradient=float(rng.uniform(0, GRADIENT)),
        angle=float(rng.uniform(0, 2 * np.pi)),
        slice_sd=float(rng.uniform(0, config.slice_sd)),
        fall_per_mm=float(fall if rng.random() < 0.5 else -fall),
        noise=float(rng.uniform(*config.noise_sd)),
        seed=int(rng.integers(2**31)),
    )


def draw_ratio(rng: Rng) -> float:
    """Level of a cord in units of its spread."""
    return float(np.exp(rng.uniform(*np.log(RATIO))))


def scan(
    volume: Floats,
    coverage: npt.NDArray[np.bool_],
    draw: ScanDraw,
    *,
    spacing: Spacing,
    normalize: Literal["cord", "cord-ratio"],
) -> Floats:
    """One sequence taken again.

    The level that falls along S-I is followed, as both rules of normalisation do away from an image's ends:
    ``cord`` subtracts it, ``cord-ratio`` divides by it, and with it the noise.

    Parameters
    ----------
    volume, coverage : (i, j, k)
        Normalised values, and where they are data.
    draw
        What is done.
    spacing
        Size of a native voxel along (R, A, S), mm.
    normalize
        Rule by which the values are normalised.

    Returns
    -------
    (i, j, k) float32
        In the same units, not clipped; 0 where not covered.
    """
    rng = np.random.default_rng(draw.seed)
    along = np.arange(volume.shape[2], dtype=np.float32) * np.float32(SPACING_MM * draw.fall_per_mm)
    fall = np.exp(-(along - along.min()))
    ratio = np.float32(draw.ratio)
    taken = (volume + ratio) * (_gradient(volume.shape, draw) * _slices(volume.shape, draw, spacing, rng))
    taken -= ratio
    if normalize == "cord":
        taken *= fall
    if draw.noise:
        noise = np.float32(draw.noise) * native_noise(rng, volume.shape, spacing)
        taken += noise if normalize == "cord" else noise / fall
    return np.where(coverage, taken, np.float32(0)).astype(np.float32, copy=False)


def native_noise(rng: Rng, shape: tuple[int, ...], spacing: Spacing) -> Floats:
    """Noise (i, j, k) with unit standard deviation that is alike within a native voxel."""
    noise = average(rng.standard_normal(shape, np.float32), spacing, rng)
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def renormalised(volume: Floats, coverage: npt.NDArray[np.bool_], scene: Scene, *, ratio: float) -> Floats:
    """One sequence normalised anew by the recipe's rule, within ±6.

    Parameters
    ----------
    volume, coverage : (i, j, k)
        Values in units of the cord's spread, and where they are data.
    scene
        The cord in the patch, and the rule.
    ratio
        Level of the cord in the same units: what `cord-ratio` divides by.

    Returns
    -------
    (i, j, k) float32
        As it was, clipped, where the patch covers next to no cord.
    """
    if np.count_nonzero(coverage & (scene.cord >= CORE_SHARE)) < LEAST_CORE:
        return np.clip(volume, -CLIP, CLIP)
    if scene.normalize == "cord-ratio":
        return cord_ratio(volume + np.float32(ratio), coverage, scene.cord, spacing_mm=SPACING_MM)
    return cord_score(volume, coverage, scene.cord, spacing_mm=SPACING_MM)


def _gradient(shape: tuple[int, ...], draw: ScanDraw) -> Floats:
    """Factor (i, j, 1), 1 in the middle."""
    across, along = (
        (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(SPACING_MM)
        for size in shape[:2]
    )
    place = np.cos(draw.angle) * across[:, None] + np.sin(draw.angle) * along[None]
    return np.asarray(1 + draw.gradient * place / ACROSS_MM, np.float32)[:, :, None]


def _slices(shape: tuple[int, ...], draw: ScanDraw, spacing: Spacing, rng: Rng) -> Floats:
    """Factor of each native slice, interpolated: 1 where voxels are about as thick as wide."""
    axis = int(np.argmax(spacing))
    step = round(spacing[axis] / SPACING_MM)
    if step < 2 or spacing[axis] < SLICED * max(size for n, size in enumerate(spacing) if n != axis):
        return np.ones((1, 1, 1), np.float32)
    first = int(rng.integers(step))
    gains = rng.normal(1, draw.slice_sd, -(-(shape[axis] + first) // step)).astype(np.float32)
    return spread_back(gains, shape[axis], step=step, first=first).reshape(
        [-1 if n == axis else 1 for n in range(3)]
    )
