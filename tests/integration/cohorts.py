"""Tiny datasets and models with which the whole program runs in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from phantoms import Phantom, cord_mask, lattice, rendered

from bids_scseg.space.grid import Grid

# Two sagittal slabs that share 20 mm, and axial slices across their seam.
UPPER = lattice(spacing=(2.5, 1.0, 1.0), size_mm=(40, 56, 55), center=(0, 0, 17.5), orientation="PSR")
LOWER = lattice(spacing=(2.5, 1.0, 1.0), size_mm=(40, 56, 55), center=(0, 0, -17.5), orientation="PSR")
AXIAL = lattice(spacing=(1.0, 1.0, 5.0), size_mm=(48, 48, 60), center=(0, 0, 0), orientation="LPS")
PHANTOM = Phantom(sway_mm=2.0, wavelength_mm=90.0, lean=0.05)
TINY_THRESHOLD = 0.8  # about the 97th percentile of what random weights say
SHIFT_MM = 1.5  # between the slabs: the patient moved and the header did not


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One image of a session: the rest of its name, its lattice, and where the patient was."""

    rest: str
    grid: Grid
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def moved(self) -> npt.NDArray[np.float64]:
        move = np.eye(4)
        move[:3, 3] = self.shift
        return move


TWO_SLABS = (
    Scan(rest="acq-sag_chunk-1_T2w", grid=UPPER),
    Scan(rest="acq-sag_chunk-2_T2w", grid=LOWER, shift=(0.0, SHIFT_MM, 0.0)),
)
STAR = Scan(rest="acq-ax_T2starw", grid=AXIAL)
ONE_SLAB = Scan(rest="acq-sag_T2w", grid=UPPER)


def save(data: npt.NDArray[np.generic], grid: Grid, path: Path) -> Path:
    """Write a NIfTI file with sform and qform."""
    image = nib.Nifti1Image(data, grid.affine)
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def describe(root: Path, **more: object) -> Path:
    """A folder with a dataset description."""
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"Name": "phantoms", "BIDSVersion": "1.10.0", **more})
    (root / "dataset_description.json").write_text(text)
    (root / "README").write_text("Phantoms of the spinal cord, for tests.\n" * 3)
    return root


def image_path(root: Path, label: str, rest: str) -> Path:
    """Path of a session's image; `label` is ``sub-X`` or ``sub-X_ses-Y``."""
    return root.joinpath(*label.split("_"), "anat", f"{label}_{rest}.nii.gz")


def mask_path(root: Path, label: str, rest: str) -> Path:
    """Path of its cord mask in a derivatives folder."""
    return image_path(root / "derivatives" / "labels", label, f"{rest}_label-SC_seg")


def add_session(root: Path, label: str, scans: Sequence[Scan], *, phantom: Phantom = PHANTOM) -> None:
    """Write a session's images, and the cord mask of each into ``derivatives/labels``."""
    for scan in scans:
        data = rendered(phantom, scan.grid, moved=scan.moved)
        save(data.astype(np.int16), scan.grid, image_path(root, label, scan.rest))
        mask = cord_mask(phantom, scan.grid, moved=scan.moved)
        save(mask.astype(np.uint8), scan.grid, mask_path(root, label, scan.rest))


def rewrite(path: Path, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.generic]]) -> None:
    """Change the voxels of an image."""
    image = nib.load(path)
    save(change(image.get_fdata(dtype=np.float32)), Grid(shape=image.shape, affine=image.affine), path)


def tiny_model(folder: Path) -> Path:
    """A lesion model with random weights; at its threshold it finds a few blobs in the phantoms."""
    import torch

    from bids_scseg.inference.bundle import save_bundle
    from bids_scseg.network.build import build_network
    from bids_scseg.recipe.load import load_recipe

    recipe = load_recipe("cord-lesion")
    spec = replace(recipe.network, channels=(4, 4, 8), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    torch.manual_seed(3)
    network = build_network(spec)
    recipe = replace(
        recipe,
        network=spec,
        inference=replace(recipe.inference, patch_vox=(48, 48, 64), overlap=0.25, min_volume_mm3=20.0),
    )
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    save_bundle(
        folder, weights, recipe=recipe, threshold=TINY_THRESHOLD, provenance={"data": "none"}, card="# Random"
    )
    return folder


def tiny_finder(folder: Path, *, bias: float) -> Path:
    """A cord finder with random weights; a strongly negative `bias` finds nothing, a positive one all."""
    import torch

    from bids_scseg.inference.bundle import save_bundle
    from bids_scseg.network.build import build_network
    from bids_scseg.recipe.load import load_recipe

    recipe = load_recipe("cord-finder")
    spec = replace(recipe.network, channels=(4, 4, 4), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    recipe = replace(recipe, network=spec, inference=replace(recipe.inference, patch_vox=(48, 64, 64)))
    torch.manual_seed(0)
    weights = {name: value.detach().numpy() for name, value in build_network(spec).state_dict().items()}
    for name in [name for name, value in weights.items() if name.endswith("bias") and value.shape == (2,)]:
        weights[name] = weights[name] + np.array([0.0, bias], np.float32)
    save_bundle(folder, weights, recipe=recipe, threshold=0.5, provenance={"data": "none"}, card="# Random")
    return folder
