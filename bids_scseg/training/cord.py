"""Training examples for the cord finder: synthetic ones from tissue maps, and real images with cord masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.synth.randomize import random_contrast
from bids_scseg.synth.tissues import CORD_TISSUES, Tissue
from bids_scseg.training.sample import IGNORE, Sample
from bids_scseg.training.volume import (
    Acquisition,
    Floats,
    Rng,
    Shape,
    WarpConfig,
    acquire,
    draw_acquisition,
    draw_view,
    draw_warp,
    normalise,
    perturb,
    take_labels,
    take_values,
    warp_coordinates,
)

LEAST_VIEW: Shape = (30, 36, 12)  # mm; the smallest real fields of view are 42 x 76 and 16 mm along the cord
CORD_CENTRED = 0.85  # share of patches that hold cord; the rest teaches what is not cord


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueMaps:
    """Synthetic examples: a crop of a tissue map, warped, given a random contrast and a random acquisition.

    Attributes
    ----------
    files
        ``tissue_*.npy`` maps, 1 mm, axes towards R, A, S.
    patch_vox
        Size of an example.
    seed
        Example ``n`` depends on ``(seed, n)`` only.
    """

    files: tuple[Path, ...]
    patch_vox: Shape
    seed: int = 0
    warp: WarpConfig = field(default_factory=WarpConfig)

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        tissue = np.load(self.files[int(rng.integers(len(self.files)))], mmap_mode="r", allow_pickle=False)
        warp = draw_warp(rng, self.warp, centre=_draw_centre(rng, np.isin(tissue[::2, ::2, ::2], CORD_TISSUES), self.patch_vox, step=2))
        patch = take_labels(tissue, warp_coordinates(warp, self.patch_vox))
        cord, unsure = np.isin(patch, CORD_TISSUES), patch == Tissue.BRAINSTEM
        return _finish(rng, random_contrast(patch, rng), cord=cord.astype(np.float32), unsure=unsure)

    def summary(self) -> dict[str, object]:
        """What this source holds, for the log."""
        return {"source": "tissue maps", "maps": len(self.files), "patch": list(self.patch_vox)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealCord:
    """A real image and its cord mask on the 1 mm box, axes towards R, A, S.

    Attributes
    ----------
    name, subject
        File name and subject label.
    image : (i, j, k) float32
        Intensities, 0 outside coverage.
    cord : (i, j, k) float32
        Share of each voxel that is cord.
    """

    name: str
    subject: str
    image: Floats
    cord: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealCords:
    """Examples from real images, heavily augmented."""

    cases: Sequence[RealCord]
    patch_vox: Shape
    seed: int = 0
    warp: WarpConfig = field(default_factory=WarpConfig)

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        # subjects are drawn first: several images of one subject do not weigh more than one
        subjects = sorted({case.subject for case in self.cases})
        subject = subjects[int(rng.integers(len(subjects)))]
        own = [case for case in self.cases if case.subject == subject]
        case = own[int(rng.integers(len(own)))]
        warp = draw_warp(rng, self.warp, centre=_draw_centre(rng, case.cord > 0.5, self.patch_vox))
        coordinates = warp_coordinates(warp, self.patch_vox)
        cord = take_values(case.cord, coordinates)
        image = perturb(take_values(case.image, coordinates), rng)
        covered = _inside(coordinates, case.image.shape)
        return _finish(rng, image, cord=cord, unsure=np.zeros(cord.shape, bool), covered=covered)

    def summary(self) -> dict[str, object]:
        """What this source holds, for the log."""
        return {"source": "real cords", "images": [case.name for case in self.cases]}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Examples of two sources; ``share`` of them from the first."""

    first: RealCords
    second: TissueMaps
    share: float = 0.6
    seed: int = 0

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        chosen = np.random.default_rng([self.seed, index, 1]).random() < self.share
        return self.first.sample(index) if chosen else self.second.sample(index)

    def summary(self) -> dict[str, object]:
        """What both sources hold."""
        return {"share": self.share, "first": self.first.summary(), "second": self.second.summary()}


def find_maps(folder: Path) -> tuple[Path, ...]:
    """The tissue maps of a folder (MissingInputError if there are none)."""
    files = tuple(sorted(folder.glob("tissue_*.npy")))
    if not files:
        raise MissingInputError("no tissue maps", file=folder, expected="tissue_000.npy …")
    return files


def load_real_cords(dataset: Path) -> list[RealCord]:
    """Every image of a dataset that has a ``label-SC_seg`` mask under ``derivatives/labels``.

    Raises
    ------
    MissingInputError
        If there is none.
    DataError
        If image and mask have different lattices.
    """
    labels = dataset / "derivatives" / "labels"
    masks = sorted(labels.rglob("*_label-SC_seg.nii.gz"))
    if not masks:
        raise MissingInputError("no cord masks", file=labels, expected="files named *_label-SC_seg.nii.gz")
    return [_load_pair(_image_of(mask, labels=labels, dataset=dataset), mask) for mask in masks]


def _image_of(mask: Path, *, labels: Path, dataset: Path) -> Path:
    return dataset / mask.relative_to(labels).with_name(mask.name.replace("_label-SC_seg", ""))


def _load_pair(image: Path, mask: Path) -> RealCord:
    import nibabel as nib

    if not image.is_file():
        raise MissingInputError("a mask without its image", file=mask, expected=str(image))
    scan, label = nib.load(image), nib.load(mask)
    if scan.shape != label.shape or not np.allclose(scan.affine, label.affine, atol=1e-3):
        raise DataError("the mask lies on another lattice than its image", file=mask, expected=str(scan.shape))
    values = np.nan_to_num(np.asarray(scan.dataobj, np.float32))
    name = image.name.removesuffix(".nii.gz")
    cord = (np.asarray(label.dataobj) > 0.5).astype(np.float32)
    return RealCord(
        name=name,
        subject=name.split("_")[0],
        image=to_box(values, scan.affine),
        cord=to_box(cord, scan.affine),
    )


def to_box(volume: Floats, affine: npt.ArrayLike, *, spacing_mm: float = 1.0) -> Floats:
    """Resample linearly to an isotropic lattice along the image's own axes, in canonical order (R, A, S).

    The box spans the image from edge to edge; its voxel (0, 0, 0) starts at the image's corner. Beyond the
    outer voxel centres the outer value continues.
    """
    canonical, spacing = canonical_order(volume, affine)
    shape = box_shape(_shape3(canonical), spacing, spacing_mm=spacing_mm)
    at = [box_index(n, step, native, spacing_mm=spacing_mm) for n, step, native in zip(shape, spacing, canonical.shape, strict=True)]
    return _separable(canonical, at)


def canonical_order(volume: Floats, affine: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.float64]]:
    """The array with its axes flipped and permuted towards R, A, S, and its spacing in mm in that order."""
    import nibabel as nib

    matrix = np.asarray(affine, float)
    turned = nib.orientations.apply_orientation(volume, nib.orientations.io_orientation(matrix))
    order = np.argsort(nib.orientations.io_orientation(matrix)[:, 0])
    return np.ascontiguousarray(turned), np.linalg.norm(matrix[:3, :3], axis=0)[order]


def box_shape(shape: Shape, spacing: npt.ArrayLike, *, spacing_mm: float) -> Shape:
    """Size of the isotropic lattice that spans an image of ``shape``."""
    sizes = [max(1, round(n * float(step) / spacing_mm)) for n, step in zip(shape, np.asarray(spacing), strict=True)]
    return (sizes[0], sizes[1], sizes[2])


def box_index(n: int, step: float, native: int, *, spacing_mm: float) -> npt.NDArray[np.float64]:
    """Native index of each of ``n`` box voxels along one axis, kept within the outer voxel centres."""
    return np.clip(((np.arange(n) + 0.5) * spacing_mm) / float(step) - 0.5, 0, native - 1)


def _separable(volume: Floats, at: Sequence[npt.NDArray[np.float64]]) -> Floats:
    out = volume
    for axis, where in enumerate(at):
        low = np.minimum(where.astype(int), max(out.shape[axis] - 2, 0))
        weight = (where - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, out.shape[axis] - 1)
        out = out.take(low, axis) * (1 - weight) + out.take(high, axis) * weight
    return np.asarray(out, np.float32)


def _shape3(volume: npt.NDArray[np.generic]) -> Shape:
    return (volume.shape[0], volume.shape[1], volume.shape[2])


def _draw_centre(rng: Rng, cord: npt.NDArray[np.bool_], patch: Shape, *, step: int = 1) -> npt.NDArray[np.float64]:
    """Source index of a patch centre: near a random piece of cord, or anywhere."""
    places = np.flatnonzero(cord)
    if not places.size or rng.random() >= CORD_CENTRED:
        return rng.uniform(0, np.array(cord.shape) * step)
    place = np.array(np.unravel_index(int(places[rng.integers(places.size)]), cord.shape)) * step
    # so far off centre that the cord still lies inside
    reach = np.maximum(np.array(patch) / 2 - 12, 0)
    return np.asarray(place + rng.uniform(-1, 1, 3) * reach)


def _inside(coordinates: Floats, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    inside = np.ones(coordinates.shape[1:], bool)
    for axis, n in enumerate(shape):
        inside &= (coordinates[axis] > -0.5) & (coordinates[axis] < n - 0.5)
    return inside


def _finish(
    rng: Rng,
    image: Floats,
    *,
    cord: Floats,
    unsure: npt.NDArray[np.bool_],
    covered: npt.NDArray[np.bool_] | None = None,
) -> Sample:
    """Acquire, cut the field of view, normalise."""
    acquisition = draw_acquisition(rng) if covered is None else draw_acquisition(rng, axial=0.2, sagittal=0.1)
    image = _acquired(image, acquisition, rng)
    label = (acquire(cord, acquisition) >= 0.5).astype(np.uint8)
    label[unsure & (label == 0)] = IGNORE
    coverage = np.zeros(image.shape, bool)
    coverage[draw_view(rng, _shape3(image), least=LEAST_VIEW, focus=_focus(label))] = True
    if covered is not None:
        coverage &= covered
    label[~coverage] = 0
    image = normalise(image, coverage) * np.float32(np.exp(rng.uniform(-0.2, 0.2)))
    return Sample(image=image[None], coverage=coverage[None], label=label, available=np.array([True]))


def _acquired(image: Floats, acquisition: Acquisition, rng: Rng) -> Floats:
    sliced = acquire(image, acquisition)
    if acquisition.axis < 0 or rng.random() < 0.5:
        return sliced
    # scanner noise that slices share with their interpolated neighbours
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.06) * float(sliced.std() + 1e-6))
    return np.asarray(sliced + acquire(noise, acquisition), np.float32)


def _focus(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    cord = np.argwhere(label == 1)
    return np.asarray(cord.mean(0) if len(cord) else np.array(label.shape) / 2)
