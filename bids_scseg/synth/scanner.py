"""Images of a subject as a scanner would store them.

`expose` evaluates the subject on the lattice of an acquisition (what lies in each voxel), `develop` turns
that into signal: contrast, lesions, point spread with mild ringing, receive field, fluid flow, ghosts and
Rician noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from bids_scseg.synth.anatomy import tissue_map
from bids_scseg.synth.fields import smooth_noise
from bids_scseg.synth.lesions import Lesion, fraction_at
from bids_scseg.synth.painting import paint
from bids_scseg.synth.subject import Anatomy, Doubles, Floats, Rng, project, z_axis
from bids_scseg.synth.tissues import N_TISSUES, Tissue

#: Tissues near which voxels are sampled finely.
CANAL_TISSUES = (Tissue.CSF, Tissue.ROOT, Tissue.CORD_WHITE, Tissue.CORD_GREY, Tissue.BRAINSTEM)
#: Voxels count as pure cord from this share of cord on; contrast-to-noise is measured in them.
PURE_CORD = 0.9
#: Contrast-to-noise compares a lesion with cord within this distance along the cord, mm.
SURROUND_MM = 10.0
#: A lesion never exceeds these shares of the cord's intensity, brighter or darker.
MAX_BRIGHTER, MAX_DARKER = 1.1, 0.85
#: Stored integers are scaled so that the brightest voxels lie near this value.
INTEGER_RANGE = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Acquisition:
    """Geometry and quality of one scan.

    Attributes
    ----------
    sequence
        Name of the contrast, a key of `contrast.TEMPLATES`.
    shape, affine
        The stored lattice; index → world RAS+ mm.
    slice_axis
        Array axis across the slices.
    thickness_mm
        Slice thickness; less than the spacing where there are gaps.
    motion
        Rigid transform ``(4, 4)`` from scanner world to where the subject lay at reference time: the scan
        shows at world point p what the subject has at ``motion @ p``.
    snr
        Cord signal over noise.
    coil_mm
        Decay length of the receive field from the back of the neck, mm; 0 for none.
    flow, ghost
        Strength of the fluid's flow voids and of ghosts along the phase-encoding axis, 0 to about 1.
    phase_axis
        Array axis of phase encoding.
    noisy_air
        Whether places without signal show noise of full range, as a ratio image (MP2RAGE) does.
    """

    sequence: str
    shape: tuple[int, int, int]
    affine: Doubles
    slice_axis: int
    thickness_mm: float
    motion: Doubles
    snr: float
    coil_mm: float
    flow: float
    ghost: float
    phase_axis: int
    noisy_air: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """What lies in the voxels of an acquisition, before any noise.

    Attributes
    ----------
    intensity
        Mean tissue intensity ``(i, j, k)`` float32, without lesions.
    tissue
        Tissue within the voxel ``(i, j, k)`` uint8.
    cord, fluid
        Shares of cord and of CSF ``(i, j, k)`` float32.
    lesions
        Share of each lesion in the voxels ``near``, ``(lesion, n)`` float32.
    near
        Flat indices ``(n,)`` of the voxels sampled finely.
    arc
        Arc length in mm along the cord of those voxels ``(n,)``.
    """

    intensity: Floats
    tissue: npt.NDArray[np.uint8]
    cord: Floats
    fluid: Floats
    lesions: Floats
    near: npt.NDArray[np.intp]
    arc: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One scan with its truth.

    Attributes
    ----------
    data
        ``(i, j, k)`` int16.
    cord
        Cord mask ``(i, j, k)`` bool: voxels at least half filled with cord.
    lesions
        Lesion numbers from 1 ``(i, j, k)`` uint8: voxels at least half filled with a lesion.
    lesion_share
        Share of any lesion, ``(i, j, k)`` float32.
    cnr
        Realised signed contrast-to-noise of each lesion in the direction of the sequence's sign; NaN where
        the scan does not cover it.
    """

    data: npt.NDArray[np.int16]
    cord: npt.NDArray[np.bool_]
    lesions: npt.NDArray[np.uint8]
    lesion_share: Floats
    cnr: Doubles


def expose(
    anatomy: Anatomy, acquisition: Acquisition, *, intensities: Floats, lesions: tuple[Lesion, ...] = ()
) -> Exposure:
    """Evaluate the subject on the acquisition's lattice, averaging through each slice.

    Parameters
    ----------
    anatomy, acquisition
        Subject and scan.
    intensities
        Intensity of each tissue ``(N_TISSUES,)`` float32.
    lesions
        The subject's lesions.
    """
    placed = np.asarray(acquisition.motion @ acquisition.affine)
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    profile = acquisition.thickness_mm / spacing[acquisition.slice_axis]
    through = [0.0] if acquisition.thickness_mm < 1.5 else [-profile / 4, profile / 4]
    intensity = np.zeros(acquisition.shape, np.float32)
    close = np.zeros(acquisition.shape, bool)
    tissue = np.zeros(acquisition.shape, np.uint8)
    canal = np.isin(np.arange(N_TISSUES), CANAL_TISSUES)
    for step in through:
        labels = tissue_map(anatomy, acquisition.shape, _stepped(placed, acquisition.slice_axis, step))
        intensity += intensities[labels] / np.float32(len(through))
        close |= canal[labels]
        tissue = labels
    near = np.flatnonzero(_grown(close))
    fine = _Fine(anatomy, placed, shape=acquisition.shape, near=near)
    offsets = _offsets(spacing, profile, acquisition.slice_axis)
    cord, fluid, shares = fine.sample(offsets, intensities, lesions)
    intensity.reshape(-1)[near] = fine.mean
    return Exposure(
        intensity=intensity,
        tissue=tissue,
        cord=_scatter(cord, near, acquisition.shape),
        fluid=_scatter(fluid, near, acquisition.shape),
        lesions=shares,
        near=near,
        arc=fine.arc,
    )


def develop(
    exposure: Exposure, acquisition: Acquisition, rng: Rng, *, sign: int, cnr: npt.ArrayLike = ()
) -> Image:
    """Turn an exposure into a stored image.

    Parameters
    ----------
    exposure, acquisition
        What lies where, and how it was scanned.
    rng
        Source of texture, field, flow, ghosts and noise.
    sign
        +1 where lesions are brighter than the cord, -1 where darker.
    cnr
        Wanted contrast-to-noise of each lesion, ``(lesion,)``.
    """
    base = _transfer(_textured(exposure, acquisition, rng), acquisition, rng)
    field = _receive_field(acquisition, rng)
    pure = exposure.cord.reshape(-1)[exposure.near] > PURE_CORD
    level = _typical(base.reshape(-1)[exposure.near][pure], base)
    glow = _typical(field.reshape(-1)[exposure.near][pure], field)
    noise = level * glow / acquisition.snr
    shares = _blurred(exposure, acquisition)
    regions = _regions(exposure)
    amplitudes = [
        _amplitude(base, field, exposure, region=region, share=share, noise=noise, wanted=sign * target)
        for region, share, target in zip(regions, shares, np.asarray(cnr, float), strict=True)
    ]
    flat = base.reshape(-1)
    for amplitude, share in zip(amplitudes, shares, strict=True):
        flat[exposure.near] += np.float32(amplitude) * share
    image = _artefacts(base * field, exposure, acquisition, rng)
    image = _rician(image, noise, rng)
    if acquisition.noisy_air:
        void = np.exp(-((exposure.intensity / np.float32(0.04)) ** 2))
        image = image * (1 - void) + void * level * glow * rng.random(image.shape, np.float32) * np.float32(
            1.3
        )
    added = [
        amplitude * share * field.reshape(-1)[exposure.near]
        for amplitude, share in zip(amplitudes, shares, strict=True)
    ]
    reached = np.array(
        [sign * _measured(image, exposure, region, part) for region, part in zip(regions, added, strict=True)]
    )
    scale = INTEGER_RANGE / max(float(np.percentile(image[::2, ::2, ::2], 99.5)), 1e-6)
    data = np.clip(np.rint(image * np.float32(scale)), 0, 32000).astype(np.int16)
    instances, total = _lesion_maps(exposure)
    return Image(
        data=data, cord=exposure.cord >= 0.5, lesions=instances, lesion_share=total, cnr=reached.astype(float)
    )


# ------------------------------------------------------------------------------------------------- exposure


def _stepped(affine: Doubles, axis: int, step_vox: float) -> Doubles:
    out = affine.copy()
    out[:3, 3] += affine[:3, axis] * step_vox
    return out


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask and its 26-neighbourhood; many times faster than `scipy.ndimage.binary_dilation`."""
    out = mask
    for axis in range(3):
        wider = out.copy()
        one, other = ([slice(None)] * 3 for _ in range(2))
        one[axis], other[axis] = slice(1, None), slice(None, -1)
        wider[tuple(one)] |= out[tuple(other)]
        wider[tuple(other)] |= out[tuple(one)]
        out = wider
    return out


def _scatter(values: Floats, near: npt.NDArray[np.intp], shape: tuple[int, int, int]) -> Floats:
    out = np.zeros(shape, np.float32)
    out.reshape(-1)[near] = values
    return out


def _offsets(spacing: Doubles, profile: float, slice_axis: int) -> list[tuple[float, float, float]]:
    """Positions within a voxel, in voxels, at which it is sampled."""
    steps: list[list[float]] = []
    for axis in range(3):
        extent = profile if axis == slice_axis else 1.0
        count = 3 if extent * spacing[axis] > 1.4 else 2
        steps.append([extent * ((n + 0.5) / count - 0.5) for n in range(count)])
    return [(i, j, k) for i, j, k in product(*steps)]


class _Fine:
    """Fine sampling of the voxels near the cord."""

    def __init__(
        self, anatomy: Anatomy, affine: Doubles, *, shape: tuple[int, int, int], near: npt.NDArray[np.intp]
    ) -> None:
        self.anatomy = anatomy
        turn = anatomy.rotation.T
        self.steps = (turn @ affine[:3, :3]).astype(np.float32)
        start = (turn @ (affine[:3, 3] - anatomy.offset)).astype(np.float32)
        ijk = np.stack(np.unravel_index(near, shape)).astype(np.float32)
        self.centres = self.steps @ ijk + start[:, None]
        foot, _, _ = project(anatomy.profiles, self.centres)
        self.arc = np.interp(foot, z_axis(), anatomy.profiles.arc).astype(np.float32)
        self.mean = np.zeros(near.size, np.float32)

    def sample(
        self, offsets: list[tuple[float, float, float]], intensities: Floats, lesions: tuple[Lesion, ...]
    ) -> tuple[Floats, Floats, Floats]:
        """Shares of cord, fluid and each lesion; sets the mean intensity."""
        cord, fluid = np.zeros_like(self.arc), np.zeros_like(self.arc)
        shares = np.zeros((len(lesions), self.arc.size), np.float32)
        reach = [self._reach(lesion) for lesion in lesions]
        weight = np.float32(1 / len(offsets))
        for offset in offsets:
            points = self.centres + (self.steps @ np.array(offset, np.float32))[:, None]
            labels = np.concatenate(
                [paint(self.anatomy, points[:, at : at + 32768]) for at in range(0, points.shape[1], 32768)]
                or [np.zeros(0, np.uint8)]
            )
            self.mean += weight * intensities[labels]
            in_cord = (labels == Tissue.CORD_WHITE) | (labels == Tissue.CORD_GREY)
            cord += weight * in_cord
            fluid += weight * (labels == Tissue.CSF)
            for number, lesion in enumerate(lesions):
                some = reach[number][in_cord[reach[number]]]
                foot, u, v = project(self.anatomy.profiles, points[:, some])
                shares[number, some] += weight * fraction_at(self.anatomy, lesion, foot=foot, u=u, v=v)
        return cord, fluid, shares

    def _reach(self, lesion: Lesion) -> npt.NDArray[np.intp]:
        return np.flatnonzero(np.abs(self.arc - lesion.arc_mm) < lesion.length_mm / 2 + 6)


# ---------------------------------------------------------------------------------------------------- signal


def _typical(values: Floats, otherwise: Floats) -> float:
    return float(np.median(values)) if values.size else max(float(np.percentile(otherwise, 90)), 1e-3)


def _textured(exposure: Exposure, acquisition: Acquisition, rng: Rng) -> Floats:
    """Tissue intensities with inhomogeneity: strong in muscle, fat and organs, weak in the cord."""
    spacing = np.linalg.norm(acquisition.affine[:3, :3], axis=0)
    shape = acquisition.shape
    fine = smooth_noise(shape, rng, period_vox=tuple(2.0 / spacing + 0.5))
    broad = smooth_noise(shape, rng, period_vox=tuple(9.0 / spacing + 0.5))
    strength = np.full(N_TISSUES, 0.13, np.float32)
    strength[[Tissue.SOFT, Tissue.GLAND, Tissue.VESSEL]] = 0.22
    strength[[Tissue.CORD_WHITE, Tissue.CORD_GREY, Tissue.BRAINSTEM]] = 0.025
    strength[[Tissue.CSF, Tissue.BRAIN_GREY, Tissue.BRAIN_WHITE]] = 0.05
    factor = 1 + strength[exposure.tissue] * (np.float32(0.6) * fine + np.float32(0.6) * broad)
    return np.asarray(exposure.intensity * factor, np.float32)


def _in_plane(acquisition: Acquisition) -> tuple[int, int]:
    one, two = [axis for axis in range(3) if axis != acquisition.slice_axis]
    return one, two


def _transfer(image: Floats, acquisition: Acquisition, rng: Rng) -> Floats:
    """Point spread by a soft, slightly early cut of k-space: blur and mild Gibbs ringing in plane."""
    axes = _in_plane(acquisition)
    cut, width = rng.uniform(0.80, 0.95), rng.uniform(0.03, 0.07)
    spectrum = fft.rfft2(image, axes=axes)
    for number, axis in enumerate(axes):
        n = image.shape[axis]
        frequency = np.abs(fft.rfftfreq(n) if number == 1 else fft.fftfreq(n)) * 2
        window = 1 / (1 + np.exp((frequency - cut) / width)) * np.exp(-0.6 * frequency**2)
        spectrum *= window.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(fft.irfft2(spectrum, s=[image.shape[a] for a in axes], axes=axes), np.float32)


def _blurred(exposure: Exposure, acquisition: Acquisition) -> list[Floats]:
    """Lesion shares after the point spread, in the voxels near the cord."""
    sigma = [0.0 if axis == acquisition.slice_axis else 0.45 for axis in range(3)]
    out = []
    for share in exposure.lesions:
        where = np.flatnonzero(share > 0)
        if not where.size:
            out.append(share)
            continue
        volume = _scatter(share, exposure.near, acquisition.shape)
        ijk = np.stack(np.unravel_index(exposure.near[where], acquisition.shape))
        box = tuple(
            slice(max(int(low) - 3, 0), int(high) + 4)
            for low, high in zip(ijk.min(1), ijk.max(1), strict=True)
        )
        volume[box] = ndimage.gaussian_filter(volume[box], sigma)
        out.append(volume.reshape(-1)[exposure.near])
    return out


def _receive_field(acquisition: Acquisition, rng: Rng) -> Floats:
    """Receive field ``(i, j, k)``: smooth variation, and decay away from a coil behind the neck."""
    field: Floats = 0.10 * smooth_noise(
        acquisition.shape, rng, period_vox=tuple(n / 2.5 for n in acquisition.shape)
    )
    if acquisition.coil_mm > 0:
        y = np.zeros((1, 1, 1), np.float32)
        for a, n in enumerate(acquisition.shape):
            steps = np.arange(n, dtype=np.float32) * np.float32(acquisition.affine[1, a])
            y = y + steps.reshape([-1 if b == a else 1 for b in range(3)])
        field = field - np.clip(y - float(np.min(y)), 0, None) / acquisition.coil_mm
    return np.asarray(np.exp(field), np.float32)


def _artefacts(image: Floats, exposure: Exposure, acquisition: Acquisition, rng: Rng) -> Floats:
    """Flow voids in the fluid, streaks and ghosts along the phase-encoding axis."""
    spacing = np.linalg.norm(acquisition.affine[:3, :3], axis=0)
    if acquisition.flow > 0:
        blobs = smooth_noise(acquisition.shape, rng, period_vox=tuple(7.0 / spacing + 0.5))
        void = np.clip(blobs - 0.4, 0, 1.2) * np.float32(0.5 * acquisition.flow)
        image = image * (1 - void * exposure.fluid)
    if acquisition.ghost > 0:
        axis = acquisition.phase_axis
        beat = 1 if axis == 0 else 0
        along = [n if a == beat else 1 for a, n in enumerate(image.shape)]
        pulse = rng.standard_normal(along, np.float32)
        moving = image * (exposure.fluid + (exposure.tissue == Tissue.VESSEL))
        for shift in rng.integers(4, image.shape[axis] // 2, 3):
            streak = np.roll(moving, int(shift), axis) - np.roll(moving, -int(shift), axis)
            image = image + np.float32(0.03 * acquisition.ghost) * pulse * streak
        image = image + np.float32(0.02 * acquisition.ghost) * np.roll(image, image.shape[axis] // 3, axis)
    return np.asarray(np.maximum(image, 0), np.float32)


def _rician(image: Floats, sd: float, rng: Rng) -> Floats:
    real = image + np.float32(sd) * rng.standard_normal(image.shape, np.float32)
    return np.asarray(np.hypot(real, np.float32(sd) * rng.standard_normal(image.shape, np.float32)))


# --------------------------------------------------------------------------------------------------- lesions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Region:
    """Voxels of a lesion and of the lesion-free cord around it, as positions in ``Exposure.near``.

    ``mixed``: the lesion fills no pure cord, so that its voxels differ from the cord around by their fluid.
    """

    lesion: npt.NDArray[np.intp]
    around: npt.NDArray[np.intp]
    mixed: bool


def _regions(exposure: Exposure) -> list[_Region]:
    """For each lesion, where its contrast is measured.

    The lesion: voxels at least half filled by it, of pure cord if there are any (fluid at the cord's edge
    would count as lesion contrast), or its fullest voxels. Around: pure cord without any lesion, within
    `SURROUND_MM` of the lesion's voxels along the cord.
    """
    cord = exposure.cord.reshape(-1)[exposure.near]
    free = cord > PURE_CORD
    if len(exposure.lesions):
        free &= exposure.lesions.sum(0) < 0.03
    out = []
    for share in exposure.lesions:
        inside = np.flatnonzero((share >= 0.5) & (cord > PURE_CORD))
        mixed = inside.size < 3
        if mixed:
            inside = np.flatnonzero(share >= 0.5)
        if not inside.size:
            inside = np.flatnonzero(share > max(0.15, 0.7 * float(share.max(initial=0.0))))
        span = exposure.arc[inside]
        low, high = (float(span.min()), float(span.max())) if inside.size else (np.inf, -np.inf)
        near = (exposure.arc > low - SURROUND_MM) & (exposure.arc < high + SURROUND_MM)
        out.append(_Region(lesion=inside, around=np.flatnonzero(free & near), mixed=mixed))
    return out


def _measured(image: Floats, exposure: Exposure, region: _Region, added: Floats) -> float:
    """Signed contrast-to-noise of a lesion in an image; NaN where lesion or surroundings are not covered.

    Where the lesion fills no pure cord, its contrast is what it adds to its voxels (``added``, as they lie in
    ``Exposure.near``).
    """
    if region.lesion.size < 1 or region.around.size < 8:
        return float("nan")
    values = image.reshape(-1)[exposure.near]
    around = values[region.around]
    part = added if region.mixed else values - around.mean()
    return float(part[region.lesion].mean() / max(float(around.std()), 1e-6))


def _amplitude(
    base: Floats,
    field: Floats,
    exposure: Exposure,
    *,
    region: _Region,
    share: Floats,
    noise: float,
    wanted: float,
) -> float:
    """What to add where the lesion fills a voxel for the wanted contrast-to-noise (0 if not covered).

    The cord under a lesion need not have the mean of its surroundings (grey matter, receive field): the
    difference is made up for, as the definition of contrast-to-noise asks, but a lesion never turns against
    its sign. Fluid that shares the voxels of a thin lesion at the cord's edge is no contrast of the lesion.
    """
    if region.lesion.size < 1 or region.around.size < 8:
        return 0.0
    signal = (base * field).reshape(-1)[exposure.near]
    gain = field.reshape(-1)[exposure.near][region.lesion]
    around = signal[region.around]
    sd = float(np.hypot(around.std(), noise))
    present = 0.0 if region.mixed else float(signal[region.lesion].mean()) - float(around.mean())
    lacking = wanted * sd - present
    amplitude = lacking / max(float((gain * share[region.lesion]).mean()), 1e-6)
    cord = float(base.reshape(-1)[exposure.near][region.around].mean())
    limit = (0.0, MAX_BRIGHTER * cord) if wanted >= 0 else (-MAX_DARKER * cord, 0.0)
    return float(np.clip(amplitude, *limit))


def _lesion_maps(exposure: Exposure) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Lesion numbers (at least half filled) and the share of any lesion, on the image's lattice."""
    shape = exposure.cord.shape
    numbers, total = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for number, share in enumerate(exposure.lesions, start=1):
        numbers.reshape(-1)[exposure.near[share >= 0.5]] = number
        total.reshape(-1)[exposure.near] += share
    return numbers, np.minimum(total, 1)
