"""Random draws of geometry and acquisition for whole-image training, and their application to volumes.

A draw is a record of plain numbers; applying it is deterministic, so every example can be replayed.
Lattices here are 1 mm isotropic with axes towards Right, Anterior and Superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rng = np.random.Generator
Shape = tuple[int, int, int]

ELASTIC_NODES = 5  # control points along each axis of a patch
SUPERIOR = 2  # axis towards the head


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpConfig:
    """Ranges of the random geometry: rotation about R-L, A-P, S-I in degrees; scales; elastic mm."""

    rotation_deg: tuple[float, float, float] = (25.0, 15.0, 20.0)
    scale: float = 0.2
    anisotropy: float = 0.08
    elastic_mm: float = 4.0
    elastic: float = 0.5  # probability
    identity: float = 0.1  # probability of no change but the shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Warp:
    """Where each voxel of a patch is taken from.

    Attributes
    ----------
    matrix : (3, 3) float64
        Patch offset from its centre to source offset.
    centre : (3,) float64
        Source index of the patch centre.
    nodes : (3, n, n, n) float32
        Displacements on control points over the patch, source voxels; all 0 for none.
    """

    matrix: Doubles
    centre: Doubles
    nodes: Floats


def draw_warp(rng: Rng, config: WarpConfig, *, centre: npt.ArrayLike) -> Warp:
    """Rotation, scale, left-right flip and elastic displacement round a source position."""
    nodes = np.zeros((3, *(ELASTIC_NODES,) * 3), np.float32)
    matrix = np.eye(3)
    if rng.random() >= config.identity:
        angles = np.deg2rad(rng.uniform(-1, 1, 3) * config.rotation_deg)
        scale = np.exp(rng.uniform(-1, 1) * config.scale + rng.uniform(-1, 1, 3) * config.anisotropy)
        matrix = _rotation(angles) * scale
        if rng.random() < config.elastic:
            nodes = rng.normal(0, config.elastic_mm / 2, nodes.shape).astype(np.float32)
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0, 1.0])
    return Warp(matrix=matrix, centre=np.asarray(centre, float), nodes=nodes)


def _rotation(angles: Doubles) -> Doubles:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", angles).as_matrix())


def warp_coordinates(warp: Warp, shape: Shape) -> Floats:
    """Source indices (3, i, j, k) of every voxel of a patch."""
    offsets = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    matrix = warp.matrix.astype(np.float32)
    out = np.empty((3, *shape), np.float32)
    for axis in range(3):
        part = [matrix[axis, a] * offsets[a] for a in range(3)]
        out[axis] = part[0][:, None, None] + part[1][None, :, None] + part[2][None, None, :]
        out[axis] += np.float32(warp.centre[axis])
    if warp.nodes.any():
        out += np.stack([stretch(field, shape) for field in warp.nodes])
    return out


def stretch(field: Floats, shape: Shape) -> Floats:
    """Linear interpolation of a coarse field (a, b, c) to ``shape``, its outer nodes on the outer voxels."""
    out = field
    for axis, n in enumerate(shape):
        at = np.linspace(0, out.shape[axis] - 1, n)
        low = np.minimum(at.astype(int), max(out.shape[axis] - 2, 0))
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, out.shape[axis] - 1)
        out = out.take(low, axis) * (1 - weight) + out.take(high, axis) * weight
    return np.asarray(out, np.float32)


def take_labels(volume: npt.NDArray[np.uint8], coordinates: Floats) -> npt.NDArray[np.uint8]:
    """Nearest labels at source indices; 0 outside."""
    index = np.rint(coordinates).astype(np.int32)
    inside = np.ones(index.shape[1:], bool)
    for axis, n in enumerate(volume.shape):
        inside &= (index[axis] >= 0) & (index[axis] < n)
        np.clip(index[axis], 0, n - 1, out=index[axis])
    return np.where(inside, volume[index[0], index[1], index[2]], np.uint8(0))


def take_values(volume: Floats, coordinates: Floats) -> Floats:
    """Linearly interpolated values at source indices; 0 outside."""
    taken = ndimage.map_coordinates(volume, coordinates, order=1, mode="grid-constant", cval=0.0)
    return np.asarray(taken, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """How an image was acquired, as far as it shows on a 1 mm lattice.

    Attributes
    ----------
    axis
        Slice axis, or -1 for a volume acquired isotropically.
    step
        Distance between slices, voxels.
    thickness
        Thickness of a slice, voxels (below ``step``: gaps).
    start
        Index of the first slice.
    """

    axis: int = -1
    step: float = 1.0
    thickness: float = 1.0
    start: float = 0.0


def draw_acquisition(rng: Rng, *, axial: float = 0.4, sagittal: float = 0.15) -> Acquisition:
    """Axial stacks of 2 to 17 mm, sagittal stacks of 2 to 4 mm, or an isotropic volume."""
    kind = rng.random()
    if kind >= axial + sagittal:
        return Acquisition()
    axial_stack = kind < axial
    step = float(np.exp(rng.uniform(np.log(2), np.log(17)))) if axial_stack else float(rng.uniform(2, 4))
    return Acquisition(
        axis=SUPERIOR if axial_stack else 0,
        step=step,
        thickness=step * float(rng.uniform(0.4, 1.0)),
        start=float(rng.uniform(0, step)),
    )


def acquire(volume: Floats, acquisition: Acquisition) -> Floats:
    """The volume as thick slices, interpolated linearly to its lattice; constant beyond the outer ones."""
    if acquisition.axis < 0:
        return volume
    axis, n = acquisition.axis, volume.shape[acquisition.axis]
    blurred = ndimage.uniform_filter1d(
        volume, max(1, round(acquisition.thickness)), axis=axis, mode="nearest"
    )
    where = np.arange(min(acquisition.start, n - 1), n, acquisition.step)
    slices = blurred.take(np.minimum(np.rint(where).astype(int), n - 1), axis)
    at = np.interp(np.arange(n), where, np.arange(len(where)))
    low = np.minimum(at.astype(int), max(len(where) - 2, 0))
    weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    high = np.minimum(low + 1, len(where) - 1)
    return np.asarray(slices.take(low, axis) * (1 - weight) + slices.take(high, axis) * weight, np.float32)


def draw_view(
    rng: Rng, shape: Shape, *, least: Shape, focus: npt.ArrayLike, whole: float = 0.45
) -> tuple[slice, ...]:
    """The part of a patch that the image covers; what lies outside is padding.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        Patch size.
    least
        Smallest extent along each axis, voxels.
    focus
        Index that stays inside.
    whole
        Probability, for each axis, that the patch is covered from end to end.
    """
    view = []
    for n, small, centre in zip(shape, least, np.asarray(focus, float), strict=True):
        if rng.random() < whole or small >= n:
            view.append(slice(0, n))
            continue
        size = int(rng.integers(small, n + 1))
        first = int(np.clip(centre - rng.uniform(0.15, 0.85) * size, 0, n - size))
        view.append(slice(first, first + size))
    return tuple(view)


def draw_blobs(rng: Rng, cord: npt.NDArray[np.bool_], *, share: float = 0.4) -> npt.NDArray[np.bool_]:
    """Lesion-like ellipsoids inside the cord, so that a finder does not stop at lesions.

    Parameters
    ----------
    rng
        Source of randomness.
    cord : (i, j, k) bool
        Cord of the patch.
    share
        Probability that there are any.

    Returns
    -------
    (i, j, k) bool
        Up to three ellipsoids with half axes of 1.5 to 4 voxels across and 3 to 15 along the cord.
    """
    blobs = np.zeros(cord.shape, bool)
    places = np.flatnonzero(cord)
    if not places.size or rng.random() >= share:
        return blobs
    for _ in range(int(rng.integers(1, 4))):
        centre = np.unravel_index(int(places[rng.integers(places.size)]), cord.shape)
        radii = rng.uniform((1.5, 1.5, 3.0), (4.0, 4.0, 15.0))
        box = tuple(slice(max(0, int(c - r)), int(c + r) + 1) for c, r in zip(centre, radii, strict=True))
        offsets = np.ogrid[box]
        distance = sum(((o - c) / r) ** 2 for o, c, r in zip(offsets, centre, radii, strict=True))
        blobs[box] |= (distance <= 1)[tuple(slice(0, n) for n in blobs[box].shape)]
    return blobs & cord


def normalise(volume: Floats, coverage: npt.NDArray[np.bool_]) -> Floats:
    """Z-score over covered voxels; 0 elsewhere and for a constant image."""
    inside = volume[coverage]
    spread = float(inside.std()) if inside.size else 0.0
    if spread <= 0:
        return np.zeros_like(volume)
    return np.where(coverage, (volume - inside.mean()) / spread, 0).astype(np.float32)


def perturb(volume: Floats, rng: Rng) -> Floats:
    """Random appearance of a real image: gamma, inversion, bias field, blur, noise."""
    low, high = np.percentile(volume, (0.5, 99.8))
    image = np.clip((volume - low) / max(float(high - low), 1e-6), 0, 1.3).astype(np.float32)
    if rng.random() < 0.5:
        image = image ** np.float32(np.exp(rng.uniform(-0.6, 0.6)))
    if rng.random() < 0.12:
        image = np.where(image > 0.02, 1.05 - image, image).astype(np.float32)
    if rng.random() < 0.5:
        nodes = rng.normal(0, rng.uniform(0.05, 0.5), (4, 4, 4)).astype(np.float32)
        image = image * np.exp(stretch(nodes, _shape(image)))
    if rng.random() < 0.3:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(0, 0.08)) * rng.standard_normal(image.shape, np.float32)
    return np.asarray(image, np.float32)


def _shape(volume: npt.NDArray[np.generic]) -> Shape:
    return (volume.shape[0], volume.shape[1], volume.shape[2])
