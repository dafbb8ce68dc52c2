"""Random contrasts on tissue maps, so that a network learns shapes and surroundings, not one contrast.

The idea is that of synthesis by domain randomisation: intensities are drawn anew for every training example,
partly around physically plausible contrasts and partly at random.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.synth.anatomy import draw_anatomy, tissue_map
from bids_scseg.synth.contrast import TEMPLATES
from bids_scseg.synth.fields import interpolate_axis, smooth_noise
from bids_scseg.synth.subject import Anatomy, Floats, Rng, centerline_world
from bids_scseg.synth.tissues import CORD_TISSUES, N_TISSUES, Tissue

#: Share of contrasts drawn around a plausible template; the rest is random. The specification's mix.
CONDITIONED_SHARE = 0.7
#: The least difference between cord and fluid, relative to the image's range, in most examples.
MIN_CORD_FLUID = 0.12
#: Share of examples in which cord and fluid may look alike.
ALIKE_SHARE = 0.05
#: Size of a stored tissue map in mm: right-left, anterior-posterior, superior-inferior.
MAP_EXTENT_MM = (200.0, 200.0, 260.0)
#: Heights of a map's centre, mm from the C2-C3 disc, one range for each third of the maps: the neck, where
#: most cord scans are made; anywhere from the brain to the lumbar spine; and where the cord ends.
CENTRE_RANGES_MM = ((-110.0, 45.0), (-340.0, 45.0), (-340.0, -260.0))
#: Factors of the cord's area in half of the maps: in multiple sclerosis it shrinks while the sac stays, and a
#: finder that has seen healthy cords alone outlines thin ones too wide.
CORD_SCALE = (0.6, 1.15)
#: Ranges of the cauda equina's looks (`Anatomy.cauda`): a few strands, or a bundle at the back of the sac.
SPARSENESS, FRONT_MM = (-0.3, 1.5), (-3.0, 2.0)
#: Tissues whose signal comes from air: always dark.
EMPTY_TISSUES = (Tissue.AIR, Tissue.LUNG)


def random_contrast(tissue: npt.NDArray[np.uint8], rng: Rng) -> Floats:
    """An image of a tissue map with random contrast, texture, blur, bias field and noise.

    Parameters
    ----------
    tissue
        `Tissue` values ``(i, j, k)`` uint8 on a lattice of about 1 mm, axes in any order.
    rng
        Source of everything random.

    Returns
    -------
    numpy.ndarray
        ``(i, j, k)`` float32, non-negative, arbitrary scale (about 0 to 1.5). An all-air map gives noise.
    """
    means, spread = _draw_means(rng)
    image = means[tissue]
    image += _texture(tissue, spread, rng)
    image = _partial_volume(image, rng)
    image *= _bias(tissue.shape, rng)
    np.maximum(image, 0, out=image)
    noise = np.float32(rng.uniform(0.003, 0.06) if rng.random() < 0.9 else 0.12)
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.hypot(real, imaginary) ** np.float32(rng.uniform(0.8, 1.25)))


def write_tissue_maps(out: Path, *, count: int, seed: int, spacing_mm: float = 1.0) -> list[Path]:
    """Write tissue maps of random subjects as ``tissue_000.npy``, ``tissue_001.npy``, …

    Parameters
    ----------
    out
        Folder, created where absent.
    count
        Number of maps; each is a new subject seen through its own field of view.
    seed
        Map ``n`` depends on ``(seed, n)`` only.
    spacing_mm
        Edge of a voxel.

    Returns
    -------
    list of pathlib.Path
        The files written: uint8 ``(i, j, k)`` of `Tissue` values, axes towards right, anterior, superior.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path = out / f"tissue_{number:03d}.npy"
        np.save(path, random_view(_draw_subject(rng), rng, spacing_mm=spacing_mm), allow_pickle=False)
        paths.append(path)
    return paths


def _draw_subject(rng: Rng) -> Anatomy:
    """A subject whose cord may be thin, with a cauda equina of random looks."""
    scale = float(rng.uniform(*CORD_SCALE)) if rng.random() < 0.5 else 1.0
    cauda = (float(rng.uniform(*SPARSENESS)), float(rng.uniform(*FRONT_MM)))
    return draw_anatomy(rng, cord_scale=scale, cauda=cauda)


def random_view(anatomy: Anatomy, rng: Rng, *, spacing_mm: float = 1.0) -> npt.NDArray[np.uint8]:
    """The subject's tissues in a box of `MAP_EXTENT_MM` at a random height, slightly turned."""
    shape = (
        round(MAP_EXTENT_MM[0] / spacing_mm),
        round(MAP_EXTENT_MM[1] / spacing_mm),
        round(MAP_EXTENT_MM[2] / spacing_mm),
    )
    height = rng.uniform(*CENTRE_RANGES_MM[int(rng.integers(len(CENTRE_RANGES_MM)))])
    centre = centerline_world(anatomy, height)[0] + rng.uniform([-25, -25, 0], [25, 45, 0])
    affine = np.eye(4)
    affine[:3, :3] = _small_rotation(rng) * spacing_mm
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    return tissue_map(anatomy, shape, affine)


def _small_rotation(rng: Rng, degrees: float = 8.0) -> npt.NDArray[np.float64]:
    """A rotation about the x axis by a normal angle."""
    angle = np.deg2rad(rng.normal(0, degrees))
    return np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])


def _draw_means(rng: Rng) -> tuple[Floats, Floats]:
    """Mean intensity and amplitude of the texture of each tissue, ``(N_TISSUES,)`` each."""
    if rng.random() < CONDITIONED_SHARE:
        name = list(TEMPLATES)[rng.integers(len(TEMPLATES))]
        means = TEMPLATES[name] / max(TEMPLATES[name].max(), 1e-3) + rng.normal(0, 0.06, N_TISSUES)
    else:
        means = rng.uniform(0.05, 1.0, N_TISSUES)
    means[Tissue.CORD_GREY] = means[Tissue.CORD_WHITE] + rng.normal(0, 0.06)
    means[Tissue.BRAINSTEM] = means[Tissue.CORD_WHITE] + rng.normal(0, 0.05)
    gap = means[Tissue.CSF] - means[Tissue.CORD_WHITE]
    if abs(gap) < MIN_CORD_FLUID and rng.random() > ALIKE_SHARE:
        means[Tissue.CSF] = means[Tissue.CORD_WHITE] + np.copysign(rng.uniform(MIN_CORD_FLUID, 0.5), gap)
    for empty in EMPTY_TISSUES:
        means[empty] = abs(rng.normal(0, 0.02))
    spread = rng.uniform(0.01, 0.14, N_TISSUES)
    spread[list(CORD_TISSUES)] *= 0.35
    spread[list(EMPTY_TISSUES)] = 0.005
    return np.clip(means, 0, 1.6).astype(np.float32), spread.astype(np.float32)


def _texture(tissue: npt.NDArray[np.uint8], spread: Floats, rng: Rng) -> Floats:
    """Blobs at two scales; in some tissues thresholded, so that a tissue falls apart into two intensities."""
    fine = smooth_noise(tissue.shape, rng, period_vox=rng.uniform(2, 5))
    broad = smooth_noise(tissue.shape, rng, period_vox=rng.uniform(8, 30))
    field = 0.6 * fine + 0.7 * broad
    hard = (rng.random(N_TISSUES) < 0.3)[tissue]
    blobs = np.where(hard, np.sign(field), field)
    return np.asarray(spread[tissue] * blobs, np.float32)


def _partial_volume(image: Floats, rng: Rng) -> Floats:
    """In-plane blur and, often, thick slices along one axis."""
    sigma = rng.uniform(0.25, 0.9)
    image = ndimage.gaussian_filter(image, sigma)
    if rng.random() < 0.6:
        axis, thick = int(rng.integers(3)), int(rng.integers(2, 6))
        image = ndimage.uniform_filter1d(image, thick, axis=axis)
        if rng.random() < 0.5:
            # as stored slices that are interpolated back to the lattice
            kept = np.arange(int(rng.integers(thick)), image.shape[axis], thick)
            if len(kept) > 1:
                where = np.interp(np.arange(image.shape[axis]), kept, np.arange(len(kept)))
                image = interpolate_axis(image.take(kept, axis), where, axis)
    return image


def _bias(shape: tuple[int, ...], rng: Rng) -> Floats:
    """Receive field: a smooth random part and, often, the fall-off of a surface coil along one axis."""
    field = 0.2 * smooth_noise(shape, rng, period_vox=max(shape) / rng.uniform(1.5, 4)) * rng.uniform(0, 1.5)
    if rng.random() < 0.6:
        axis = int(rng.integers(3))
        ramp = np.linspace(-1, 1, shape[axis], dtype=np.float32) * np.float32(rng.normal(0, 0.7))
        field = field + ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.exp(np.clip(field, -2.5, 1.0)).astype(np.float32)
