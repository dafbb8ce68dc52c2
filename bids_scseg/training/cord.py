"""Training examples for the cord finder: synthetic ones from tissue maps, and real images with cord masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.preprocess.frames import Estimates, SlabEstimate, fit_box
from bids_scseg.recipe.model import GridSpec
from bids_scseg.space.geometry import Slab
from bids_scseg.space.grid import Grid
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
    draw_blobs,
    draw_view,
    draw_warp,
    normalise,
    perturb,
    take_labels,
    take_values,
    warp_coordinates,
)

LEAST_VIEW: Shape = (20, 30, 12)  # mm; the smallest real fields of view are 23 x 79 and 16 mm along the cord
# tissues whose intensity a lesion-like blob may take in a synthetic image
BLOB_TISSUES = (Tissue.CSF, Tissue.FAT, Tissue.MUSCLE, Tissue.SOFT, Tissue.GLAND, Tissue.CORD_GREY)
BLOB_FACTOR = (0.4, 4.0)  # and by what it may multiply the intensity of a real one
CORD_CENTRED = 0.85  # share of synthetic patches that hold cord; the rest teaches what is not cord
END_MM = 8  # how much of the cord counts as its end
REAL_CENTRED = 0.5  # the same for real images, whose surroundings no synthesis shows


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
    ends
        Of the examples that hold cord, share round its lower end, where a map shows it.
    """

    files: tuple[Path, ...]
    patch_vox: Shape
    seed: int = 0
    ends: float = 0.25
    warp: WarpConfig = field(default_factory=WarpConfig)

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        tissue = np.load(self.files[int(rng.integers(len(self.files)))], mmap_mode="r", allow_pickle=False)
        coarse = np.isin(tissue[::2, ::2, ::2], CORD_TISSUES)
        if rng.random() < self.ends:
            coarse = _lower_end(coarse, round(END_MM / 2))
        warp = draw_warp(
            rng, self.warp, centre=_draw_centre(rng, coarse, self.patch_vox, step=2, share=CORD_CENTRED)
        )
        patch = take_labels(tissue, warp_coordinates(warp, self.patch_vox))
        cord, unsure = np.isin(patch, CORD_TISSUES), patch == Tissue.BRAINSTEM
        patch[draw_blobs(rng, cord)] = BLOB_TISSUES[int(rng.integers(len(BLOB_TISSUES)))]
        return _finish(rng, random_contrast(patch, rng), cord=cord.astype(np.float32), unsure=unsure)

    def summary(self) -> dict[str, object]:
        """What this source holds, for the log."""
        return {
            "source": "tissue maps",
            "maps": len(self.files),
            "patch": list(self.patch_vox),
            "ends": self.ends,
        }


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
        warp = draw_warp(
            rng, self.warp, centre=_draw_centre(rng, case.cord > 0.5, self.patch_vox, share=REAL_CENTRED)
        )
        coordinates = warp_coordinates(warp, self.patch_vox)
        cord = take_values(case.cord, coordinates)
        values = take_values(case.image, coordinates)
        values[draw_blobs(rng, cord > 0.5)] *= np.float32(np.exp(rng.uniform(*np.log(BLOB_FACTOR))))
        image = perturb(values, rng)
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
    return [_load_pair(match_image(mask, dataset=dataset), mask) for mask in masks]


def match_image(mask: Path, *, dataset: Path) -> Path:
    """The image to which a mask in ``derivatives/labels`` belongs by its name."""
    place = mask.relative_to(dataset / "derivatives" / "labels")
    return dataset / place.with_name(mask.name.replace("_label-SC_seg", ""))


def _load_pair(image: Path, mask: Path) -> RealCord:
    import nibabel as nib

    if not image.is_file():
        raise MissingInputError("a mask without its image", file=mask, expected=str(image))
    scan: Any = nib.load(image)
    label: Any = nib.load(mask)
    if scan.shape != label.shape or not np.allclose(scan.affine, label.affine, atol=1e-3):
        raise DataError(
            "the mask lies on another lattice than its image", file=mask, expected=str(scan.shape)
        )
    name = image.name.removesuffix(".nii.gz")
    grid = Grid(shape=scan.shape, affine=np.asarray(scan.affine, np.float64))
    cord = (np.asarray(label.dataobj) > 0.5).astype(np.float32)
    return RealCord(
        name=name,
        subject=name.split("_")[0],
        image=to_box(np.nan_to_num(np.asarray(scan.dataobj, np.float32)), grid),
        cord=to_box(cord, grid),
    )


def to_box(volume: Floats, grid: Grid) -> Floats:
    """The volume on the 1 mm box that the finder works on: its own axes in canonical order (R, A, S)."""
    slab = Slab(key="image", index=0, file="", grid=grid)
    spec = GridSpec(spacing_mm=1.0, window_vox=None, margin_mm=0.0)
    geometry = fit_box(Estimates(anchor="image", slabs=(SlabEstimate(slab=slab),)), spec)
    return np.asarray(geometry.apply([volume], key="image")[0], np.float32)


def _shape3(volume: npt.NDArray[np.generic]) -> Shape:
    return (volume.shape[0], volume.shape[1], volume.shape[2])


def _draw_centre(
    rng: Rng, cord: npt.NDArray[np.bool_], patch: Shape, *, share: float, step: int = 1
) -> npt.NDArray[np.float64]:
    """Source index of a patch centre: near a random piece of cord, or anywhere."""
    places = np.flatnonzero(cord)
    if not places.size or rng.random() >= share:
        return rng.uniform(0, np.array(cord.shape) * step)
    place = np.array(np.unravel_index(int(places[rng.integers(places.size)]), cord.shape)) * step
    # so far off centre that the cord still lies inside
    reach = np.maximum(np.array(patch) / 2 - 12, 0)
    return np.asarray(place + rng.uniform(-1, 1, 3) * reach)


def _lower_end(cord: npt.NDArray[np.bool_], slices: int) -> npt.NDArray[np.bool_]:
    """The lowest slices of the cord; all of it where it leaves the map at the bottom.

    Where it leaves the map sideways (3 of the 73 maps of the packaged finder that have no cord in the lowest
    slice), its lowest slices there count as its end.
    """
    places = np.flatnonzero(cord.any((0, 1)))
    if not places.size or places[0] == 0:
        return cord
    end = cord.copy()
    end[:, :, places[0] + slices :] = False
    return end


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
    # real images have thick slices of their own
    axial, sagittal = (0.35, 0.3) if covered is None else (0.2, 0.1)
    acquisition = draw_acquisition(rng, axial=axial, sagittal=sagittal)
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
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(
        rng.uniform(0, 0.06) * float(sliced.std() + 1e-6)
    )
    return np.asarray(sliced + acquire(noise, acquisition), np.float32)


def _focus(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    cord = np.argwhere(label == 1)
    return np.asarray(cord.mean(0) if len(cord) else np.array(label.shape) / 2)
