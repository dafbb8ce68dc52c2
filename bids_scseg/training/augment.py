"""Cord-specific augmentation of prepared patches.

Spatial changes are shared by all sequences of a case, intensity changes are drawn for each. A draw is a
record of plain numbers; applying it is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.intensity.array import AdjustContrast, GaussianSmooth
from monai.transforms.spatial.array import Affine
from torch.nn import functional

from bids_scseg.preprocess.normalize import CLIP
from bids_scseg.training.acquisition import Scene, draw_ratio, draw_scan, renormalised, scan
from bids_scseg.training.config import AugmentConfig
from bids_scseg.training.sample import IGNORE, Sample
from bids_scseg.training.volume import stretch

Floats = npt.NDArray[np.float32]
Rng = np.random.Generator

BIAS_NODES = 4  # control points of the bias field along each axis
ELASTIC_NODES = (7, 7, 4)  # control points of displacements: 4 mm apart in a patch of 24 mm, ours
SPACING_MM = 0.5  # of the prepared grid, to turn a blur in mm into voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialDraw:
    """Mirror axes, a scale, a rotation about S-I in radians, and displacements in plane (mm, with a seed)."""

    flips: tuple[int, ...] = ()
    scale: float = 1.0
    angle: float = 0.0
    elastic_mm: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityDraw:
    """What happens to one sequence; None or 0: nothing."""

    gamma: float = 0.0
    invert: bool = False
    contrast: float = 0.0
    blur_mm: float = 0.0
    low_resolution: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    seed: int = 0


def draw_spatial(rng: Rng, config: AugmentConfig) -> SpatialDraw:
    """Draw what all sequences share."""
    flips = tuple(axis for axis in config.flip_axes if rng.random() < config.flip)
    draw = SpatialDraw(flips=flips)
    if config.elastic and rng.random() < config.elastic:
        bend = float(rng.uniform(*config.elastic_mm))
        draw = replace(draw, elastic_mm=bend, seed=int(rng.integers(2**31)))
    if rng.random() >= config.spatial:
        return draw
    scale = 1 + float(rng.uniform(-1, 1)) * config.scale
    return replace(draw, scale=scale, angle=float(np.deg2rad(rng.uniform(-1, 1) * config.rotation_deg)))


def draw_intensity(rng: Rng, config: AugmentConfig) -> IntensityDraw:
    """Draw what happens to one sequence."""

    def maybe(probability: float, low: float, high: float) -> float:
        value = float(rng.uniform(low, high))
        return value if rng.random() < probability else 0.0

    return IntensityDraw(
        gamma=maybe(config.gamma, *config.gamma_range),
        invert=bool(rng.random() < config.invert),
        blur_mm=maybe(config.blur, *config.blur_mm),
        low_resolution=maybe(config.low_resolution, *config.low_resolution_factor),
        bias=maybe(config.bias, 0.0, config.bias_strength),
        noise=maybe(config.noise, *config.noise_sd),
        seed=int(rng.integers(2**31)),
        contrast=_log_uniform(rng, *config.contrast_factor)
        if config.contrast and rng.random() < config.contrast
        else 0.0,
    )


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def apply_spatial(sample: Sample, draw: SpatialDraw) -> Sample:
    """Mirror, then bend, then rotate about S-I and scale round the middle; labels go to the nearest voxel."""
    axes = tuple(axis + 1 for axis in draw.flips)
    image, coverage = np.flip(sample.image, axes), np.flip(sample.coverage, axes)
    label = np.flip(sample.label, draw.flips)
    if draw.elastic_mm:
        image, coverage, label = _bend(image, coverage, label, draw, there=np.flatnonzero(sample.available))
    if draw.scale != 1.0 or draw.angle:
        # missing sequences are zeros wherever they are moved
        there = np.flatnonzero(sample.available)
        nearest = _affine(
            np.concatenate([coverage[there], label[None]], dtype=np.float32), draw, mode="nearest"
        )
        linear = _affine(image[there], draw, mode="bilinear")
        image, coverage = np.zeros_like(image), np.zeros_like(coverage)
        coverage[there], label = nearest[:-1] > 0.5, nearest[-1].astype(np.uint8)
        label[~coverage[there].any(axis=0)] = IGNORE  # what is moved in from outside is no background
        image[there] = linear * coverage[there]
    return replace(
        sample,
        image=np.ascontiguousarray(image, np.float32),
        coverage=np.ascontiguousarray(coverage),
        label=np.ascontiguousarray(label),
    )


def _bend(
    image: Floats,
    coverage: npt.NDArray[np.bool_],
    label: npt.NDArray[np.uint8],
    draw: SpatialDraw,
    *,
    there: npt.NDArray[np.intp],
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """Displace in plane by smooth fields that vary slowly along S-I."""
    size = label.shape
    grid = torch.from_numpy(_places(draw, size))[None]

    def moved(volume: Floats, mode: str) -> Floats:
        tensor = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None]
        out = functional.grid_sample(tensor, grid, mode=mode, padding_mode="border", align_corners=True)
        return np.asarray(out[0], np.float32)

    nearest = moved(np.concatenate([coverage[there], label[None]], dtype=np.float32), "nearest")
    image, coverage, linear = np.zeros_like(image), np.zeros_like(coverage), moved(image[there], "bilinear")
    coverage[there] = nearest[:-1] > 0.5
    image[there] = linear * coverage[there]
    return image, coverage, nearest[-1].astype(np.uint8)


def _places(draw: SpatialDraw, size: tuple[int, ...]) -> Floats:
    """Where each voxel's value comes from, as ``grid_sample`` wants it: (i, j, k, 3), axes in reverse."""
    rng = np.random.default_rng(draw.seed)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in size]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    for axis in (0, 1):
        nodes = rng.normal(0, draw.elastic_mm, ELASTIC_NODES).astype(np.float32)
        mm = stretch(nodes, (size[0], size[1], size[2]))
        places[..., axis] += mm / SPACING_MM * 2 / max(size[axis] - 1, 1)
    return np.ascontiguousarray(places[..., ::-1])


def _affine(volume: Floats, draw: SpatialDraw, *, mode: str) -> Floats:
    # the matrix maps output to input positions, so a scale above 1 shrinks: dividing makes it enlarge
    factor = (1 / draw.scale,) * 3
    transform = Affine(
        rotate_params=(0.0, 0.0, draw.angle),
        scale_params=factor,
        mode=mode,
        padding_mode="zeros",
        image_only=True,
    )
    moved: Floats = np.asarray(transform(torch.from_numpy(volume)), np.float32)
    return moved


def apply_intensity(volume: Floats, coverage: npt.NDArray[np.bool_], draw: IntensityDraw) -> Floats:
    """Change one sequence (i, j, k); what is not covered stays 0."""
    rng = np.random.default_rng(draw.seed)
    image: Any = torch.from_numpy(np.ascontiguousarray(volume))[None]
    if draw.gamma:
        image = AdjustContrast(gamma=draw.gamma, retain_stats=True)(image)
    if draw.invert:
        image = -image
    if draw.contrast:
        image = _contrast(image, draw.contrast)
    if draw.blur_mm:
        image = GaussianSmooth(sigma=draw.blur_mm / SPACING_MM)(image)
    if draw.low_resolution > 1:
        image = _lower_resolution(image, draw.low_resolution)
    out = np.array(image[0], np.float32)
    if draw.bias:
        nodes = rng.normal(0, draw.bias, (BIAS_NODES,) * 3).astype(np.float32)
        out *= np.exp(stretch(nodes, (out.shape[0], out.shape[1], out.shape[2])))
    if draw.noise:
        out += np.float32(draw.noise) * rng.standard_normal(out.shape, np.float32)
    return np.where(coverage, out, np.float32(0))


def _contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Values about 0 multiplied by a factor; the largest, at which others are clipped, stays."""
    most = float(image.abs().max())
    if factor > 1 or not most:
        return torch.clamp(image * factor, -most, most)
    return image * (factor + (1 - factor) * (image / most) ** 2)


def _lower_resolution(image: torch.Tensor, factor: float) -> torch.Tensor:
    """In-plane resolution lowered by ``factor`` and interpolated back: (1, i, j, k)."""
    size = image.shape[1:]
    small = (max(2, round(size[0] / factor)), max(2, round(size[1] / factor)), size[2])
    lowered = functional.interpolate(torch.as_tensor(image)[None], size=small, mode="trilinear")
    return functional.interpolate(lowered, size=size, mode="trilinear")[0]


def augment(sample: Sample, rng: Rng, config: AugmentConfig, *, scene: Scene | None = None) -> Sample:
    """Draw and apply.

    With ``config.renormalise`` or ``config.physical`` intensities change first, while the cord of the
    ``scene`` is still where the images show it; these need one.
    """
    if config.renormalise or config.physical:
        if scene is None:
            raise ValueError("augment.renormalise and augment.physical need the patch's cord")
        image = sample.image.copy()
        for channel in np.flatnonzero(sample.available):
            image[channel] = _taken(sample, int(channel), rng, config, scene)
        return apply_spatial(replace(sample, image=image), draw_spatial(rng, config))
    moved = apply_spatial(sample, draw_spatial(rng, config))
    image = moved.image.copy()
    for channel in np.flatnonzero(moved.available):
        draw = draw_intensity(rng, config)
        changed = apply_intensity(moved.image[channel], moved.coverage[channel], draw)
        image[channel] = _levelled(changed, moved.coverage[channel], rng, config)
    return replace(moved, image=image)


def _taken(sample: Sample, channel: int, rng: Rng, config: AugmentConfig, scene: Scene) -> Floats:
    """One sequence with its changes in the order of a scanner: resolution, field and noise, normalisation.

    What follows the normalisation is the factor by which an imperfect cord mask misses the spread, and the
    level that a part of a cord has when the whole is normalised.
    """
    before, coverage = sample.image[channel], sample.coverage[channel]
    draw, taking = draw_intensity(rng, config), draw_scan(rng, config)
    ratio = draw_ratio(rng) if taking is None else taking.ratio
    noise = draw.noise if taking is None else 0.0  # that of the scanner is of native voxels
    out = apply_intensity(before, coverage, replace(draw, contrast=0.0, noise=noise))
    if taking is not None:
        out = scan(out, coverage, taking, spacing=scene.spacings[channel], normalize=scene.normalize)
    if config.renormalise:
        out = renormalised(out, coverage, scene, ratio=ratio)
    elif taking is not None:
        out = np.clip(out, -CLIP, CLIP)
    # fluid that had been clipped is brighter than it looks: it does not fade with a larger spread
    beyond = (np.abs(before) >= CLIP) & (scene.cord < 0.5)
    out = np.where(beyond, np.copysign(np.float32(CLIP), out), out)
    out = apply_intensity(out, coverage, IntensityDraw(contrast=draw.contrast))
    return _levelled(out, coverage, rng, config)


def _levelled(image: Floats, coverage: npt.NDArray[np.bool_], rng: Rng, config: AugmentConfig) -> Floats:
    """At another level than the patch was brought to: a session is normalised as a whole, a patch alone."""
    return drifted(image, coverage, rng.normal(0, config.level, 2)) if config.level else image


def drifted(image: Floats, coverage: npt.NDArray[np.bool_], ends: npt.NDArray[np.float64]) -> Floats:
    """One sequence (i, j, k) raised along S-I by a straight line, within `CLIP`, where it is covered.

    What was clipped before moves as well.

    ``ends`` (2,): offset of the first and of the last slice, in units of the normalised image.
    """
    line = np.linspace(float(ends[0]), float(ends[1]), image.shape[-1]).astype(np.float32)
    return np.asarray(np.where(coverage, np.clip(image + line, -CLIP, CLIP), image), np.float32)
