"""From a BIDS dataset with labels to prepared training cases, by the fit and apply of the pipeline."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.header import read_image
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.preprocess.labels import labels_to_prepared
from bids_scseg.preprocess.prepare import CordMasks, NativeImages, apply, fit
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import Plan
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid
from bids_scseg.training.dataset import LESIONS_FILE
from bids_scseg.training.sample import IGNORE

Rng = np.random.Generator
CordFinder = Callable[[npt.NDArray[np.generic], Grid], npt.NDArray[np.generic]]

JITTER_MM = 0.4  # standard deviation of a finder's centerline errors that training imitates, ours
JITTER_PERIOD_MM = 30.0  # along the cord, over which they vary, ours


def prepare_dataset(
    dataset: Path,
    labels: Path,
    *,
    recipe: Recipe,
    out: Path,
    participants: Iterable[str] = (),
    jitter_mm: float = JITTER_MM,
    register: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Prepare every session of a dataset that has a lesion map.

    Parameters
    ----------
    dataset
        Root of a raw BIDS dataset.
    labels
        Root of its derivatives with cord masks (``*_label-SC_mask``) and, per session, one lesion map in the
        anchor's world (``*_desc-truth_dseg`` with its table where lesions' visibility is known).
    recipe
        What is trained.
    out
        Folder for the cases, one folder each.
    participants
        Labels wanted; empty: all.
    jitter_mm
        Smooth random displacement of each sequence's centerline, so that training sees a finder's errors.
    register
        Whether slabs are registered (training sets are generated as after a registration).
    seed
        Of the jitter, together with the case's name.

    Returns
    -------
    list of pathlib.Path
        Folders of the cases written; sessions without a usable image are left out.
    """
    written = []
    for study in find_studies(dataset, participants=tuple(participants)):
        plan = make_plan(study, recipe, derivatives=(labels,))
        if plan.anchor is None:
            continue
        rng = np.random.default_rng([seed, *plan.label.encode()])
        written.append(
            prepare_case(
                plan,
                recipe,
                labels=labels,
                out=out / plan.label,
                rng=rng,
                jitter_mm=jitter_mm,
                register=register,
            )
        )
    return written


def prepare_case(
    plan: Plan,
    recipe: Recipe,
    *,
    labels: Path,
    out: Path,
    rng: Rng,
    jitter_mm: float = JITTER_MM,
    register: bool = False,
    cord: CordFinder | None = None,
) -> Path:
    """Prepare one session and its lesion map; see :func:`prepare_dataset`.

    ``cord`` replaces the plan's cord masks: native image (i, j, k) and its grid to cord probability.
    """
    images, cords = _read(plan)
    if cord is not None:
        cords = {key: [cord(data, grid) for data, grid, _ in stack] for key, stack in images.items()}
    geometry, _ = fit(images, cords, recipe, register=register)
    geometry = jitter_centerlines(geometry, rng, sd_mm=jitter_mm)
    truth = _truth_file(plan, labels)
    label = _prepared_label(geometry, truth)
    case = apply(geometry, images, recipe, cords=cords)
    case = replace(case, case=plan.label, subject=plan.subject, session=plan.session)
    case.save(out, dtype=np.float16)
    np.save(out / "label.npy", label, allow_pickle=False)
    table = truth.with_name(truth.name.replace(".nii.gz", ".tsv"))
    if table.is_file():
        lesions = read_detectability(table, recipe.sequence_names)
        (out / LESIONS_FILE).write_text(json.dumps(lesions, indent=1) + "\n", encoding="utf-8")
    return out


def jitter_centerlines(geometry: Geometry, rng: Rng, *, sd_mm: float) -> Geometry:
    """Displace each sequence's centerline by a smooth random curve of standard deviation ``sd_mm``."""
    if sd_mm <= 0:
        return geometry
    moved = {key: _jittered(line, rng, sd_mm=sd_mm) for key, line in geometry.centerlines.items()}
    return replace(geometry, centerlines=moved)


def _jittered(line: Centerline, rng: Rng, *, sd_mm: float) -> Centerline:
    nodes = np.arange(line.s_mm[0] - JITTER_PERIOD_MM, line.s_mm[-1] + JITTER_PERIOD_MM, JITTER_PERIOD_MM / 2)
    offsets = rng.normal(0, sd_mm, (2, nodes.size))
    shift = np.stack([np.interp(line.s_mm, nodes, offset) for offset in offsets], axis=1)
    return replace(line, xy_mm=line.xy_mm + shift)


def read_detectability(table: Path, sequences: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Which sequences show each lesion, from the columns ``realised_<sequence>`` of a truth table.

    Returns
    -------
    dict
        Lesion number to ``{"visible": [...], "faint": [...]}``; lesions without such columns are left out.
    """
    out: dict[str, dict[str, list[str]]] = {}
    with table.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            known = {name: row[f"realised_{name}"] for name in sequences if f"realised_{name}" in row}
            if known:
                out[row["index"]] = {
                    degree: [name for name, value in known.items() if value == degree]
                    for degree in ("visible", "faint")
                }
    return out


def _read(plan: Plan) -> tuple[NativeImages, CordMasks]:
    masks = dict(plan.cord_masks)
    images, cords = {}, {}
    for sequence in plan.sequences:
        images[sequence.name] = [(*read_image(file.path), file.relative) for file in sequence.files]
        found = [masks.get(file.relative) for file in sequence.files]
        cords[sequence.name] = [None if path is None else _read_label(Path(path))[0] > 0 for path in found]
    return images, cords


def _truth_file(plan: Plan, labels: Path) -> Path:
    folder = labels / f"sub-{plan.subject}" / (f"ses-{plan.session}" if plan.session else "") / "anat"
    found = sorted(folder.glob("*_desc-truth_dseg.nii.gz"))
    if len(found) != 1:
        raise MissingInputError(
            f"{len(found)} lesion maps", file=folder, expected="one *_desc-truth_dseg.nii.gz"
        )
    return found[0]


def _read_label(path: Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """A label map; unlike an image it may be empty."""
    import nibabel as nib

    image: Any = nib.load(path)
    if len(image.shape) != 3:
        raise DataError(f"label of shape {image.shape}", file=path, expected="three dimensions")
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    return np.rint(np.asarray(image.dataobj)).astype(np.int32), Grid(
        shape=shape, affine=np.asarray(image.affine)
    )


def _prepared_label(geometry: Geometry, truth: Path) -> npt.NDArray[np.uint8]:
    values, grid = _read_label(truth)
    if values.max(initial=0) >= IGNORE:
        raise DataError(f"{int(values.max())} lesions", file=truth, expected=f"fewer than {IGNORE}")
    # the map lies in the reference world: the anchor's centerline straightens it as it does the anchor
    slab = Slab(key=geometry.anchor, index=0, file=str(truth), grid=grid)
    return labels_to_prepared(geometry, values, slab).astype(np.uint8)
