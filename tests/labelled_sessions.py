"""A tiny dataset of sagittal and axial scans with cord masks and drawn lesions, good and bad."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import phantoms
import prepared_sessions

from bids_scseg.recipe.model import Recipe
from bids_scseg.space.grid import Grid

PHANTOM = phantoms.Phantom(lesions=((0, 0, 30, 4), (0, 0, 8, 4)))


def recipe() -> Recipe:
    base = phantoms.cord_recipe("Sag", "Ax", window=(24, 24))
    sag, ax = base.sequences
    return replace(
        base,
        sequences=(replace(sag, planes=("sag",)), replace(ax, planes=("ax",))),
        network=replace(base.network, sequences=("Sag", "Ax")),
    )


def save(path: Path, data: np.ndarray, grid: Grid) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    nib.save(image, path)
    return path


def write_session(root: Path, subject: str, *, lesions: bool = True, labelled: bool = True) -> None:
    """A sagittal and an axial scan, cord masks of both, lesions drawn on the sagittal one."""
    labels = root / "derivatives" / "labels" / f"sub-{subject}" / "anat"
    for acq, grid in (("sag", prepared_sessions.UPPER), ("ax", prepared_sessions.AXIAL)):
        stem = f"sub-{subject}_acq-{acq}"
        save(root / f"sub-{subject}/anat/{stem}_T2w.nii.gz", phantoms.rendered(PHANTOM, grid), grid)
        save(
            labels / f"{stem}_label-SC_mask.nii.gz", phantoms.cord_mask(PHANTOM, grid).astype(np.uint8), grid
        )
    if labelled:
        values = phantoms.lesion_labels(PHANTOM, prepared_sessions.UPPER) * lesions
        save(
            labels / f"sub-{subject}_acq-sag_T2w_lesion-manual.nii.gz",
            (values > 0).astype(np.uint8),
            prepared_sessions.UPPER,
        )


def move_to_store(dataset: Path, store: Path, pattern: str) -> None:
    """Leave links in place of files, as datasets have that keep theirs in a central store."""
    store.mkdir()
    for path in sorted(dataset.glob(pattern)):
        path.symlink_to(path.rename(store / path.name))


def write_dataset(root: Path) -> Path:
    """Four sessions: two lesions; lesion-free; no lesion map; a map on a lattice of its own."""
    (root / "dataset_description.json").write_text(json.dumps({"Name": "t", "BIDSVersion": "1.9.0"}))
    write_session(root, "01")
    write_session(root, "02", lesions=False)
    write_session(root, "03", labelled=False)
    write_session(root, "04")
    wrong = root / "derivatives/labels/sub-04/anat/sub-04_acq-sag_T2w_lesion-manual.nii.gz"
    save(wrong, np.zeros((4, 4, 4), np.uint8), Grid(shape=(4, 4, 4), affine=np.eye(4)))
    return root
