"""Images and tiny datasets for tests of the BIDS room."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.space.grid import Grid

# Spacing along R, A, S of each kind of acquisition, and its number of voxels.
LATTICES = {
    "sag": ((3.0, 0.8, 0.8), (14, 250, 300)),
    "ax": ((0.5, 0.5, 4.0), (300, 300, 30)),
    "cor": ((0.8, 3.0, 0.8), (250, 20, 300)),
    "iso": ((1.0, 1.0, 1.0), (52, 200, 250)),
    "head": ((1.0, 1.0, 1.0), (176, 240, 240)),
    "axhead": ((0.5, 0.5, 5.0), (440, 440, 30)),
}


def lattice(kind: str = "sag", *, low: float = 0.0, slices: int | None = None, origin=(0.0, 0.0)) -> Grid:
    """A lattice whose lowest voxel edge along S is at `low` mm; `slices` replaces the number along S."""
    spacing, shape = LATTICES[kind]
    if slices is not None:
        shape = (shape[0], shape[1], slices)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [*origin, low + spacing[2] / 2]
    return Grid(shape=shape, affine=affine)


def image(
    rest: str, grid: Grid | None = None, *, sidecar=None, subject="01", session=None, **more
) -> ImageFile:
    """An image by the part of its name after subject and session, such as ``acq-sag_T2w``."""
    *parts, suffix = rest.split("_")
    entities = [("sub", subject)] + ([("ses", session)] if session else [])
    entities += [tuple(part.split("-", 1)) for part in parts]
    name = "_".join([*(f"{key}-{value}" for key, value in entities), suffix]) + more.pop(
        "extension", ".nii.gz"
    )
    folder = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "anat"
    return ImageFile(
        path=f"/data/{folder}/{name}",
        relative=f"{folder}/{name}",
        entities=tuple(entities),
        suffix=suffix,
        grid=lattice() if grid is None else grid,
        sidecar=tuple(sorted((sidecar or {}).items())),
        **more,
    )


def study(*images: ImageFile) -> Study:
    """A session with these images."""
    return Study(subject="01", session=None, dataset="/data", images=images)


def write_nifti(path: Path, shape=(4, 5, 6), *, affine=None, data=None, qform=True) -> Path:
    """A small NIfTI file with increasing intensities."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) if data is None else data
    img = nib.Nifti1Image(data, affine)
    if qform:
        img.set_qform(affine, code=1)
        img.set_sform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(img, path)
    return path


def write_dataset(root: Path, *names: str, sidecars=None) -> Path:
    """A dataset with tiny images by relative path, and JSON files by relative path."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.9.0"}))
    for name in names:
        write_nifti(root / name)
    for name, content in (sidecars or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root
