"""Geometries that an earlier run wrote: which session has one, and whether it is that of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_scseg import files
from bids_scseg.bids.names import session_label
from bids_scseg.bids.plan import not_asked_for
from bids_scseg.errors import DataError, GeometryError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan
from bids_scseg.space.geometry import Geometry, Slab

REFUSED = "the geometry of the earlier run cannot be used: "
NO_PLACE = "has no place for it"
REMEDY = "fit it anew: leave --geometry out"
SPACING_MM = 1e-4  # of the grid, as it comes from JSON


def find_geometry(folder: str | Path, *, subject: str, session: str | None) -> Path | None:
    """The geometry of a session in a derivatives folder; None if there is none."""
    label = session_label(subject, session)
    parts = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat", f"{label}_geometry.json"]
    path = Path(folder).joinpath(*parts)
    return path if path.is_file() else None


def read_geometry(path: str | Path) -> Geometry:
    """Read a geometry.

    Raises
    ------
    DataError
        If the file is no geometry of this version.
    """
    try:
        data = files.read_json(Path(path))
    except DataError as error:
        raise DataError(error.found, file=path, expected=error.expected, remedy=REMEDY) from error
    if not isinstance(data, dict):
        raise DataError("is no geometry", file=path, remedy=REMEDY)
    try:
        return Geometry.from_json(data)
    except GeometryError as error:
        raise DataError(error.found, file=path, expected=error.expected, remedy=REMEDY) from error


def with_geometry(plan: Plan, folder: str | Path, recipe: Recipe, *, needs_anchor: str | None = None) -> Plan:
    """A plan that applies the session's geometry of an earlier run, where that has one.

    What the file records is compared: frame, voxel size and width of the grid with the recipe; file and
    lattice of every image with the session's. It holds nothing of the voxels' values.

    Parameters
    ----------
    plan
        Of a session.
    folder
        Derivatives of the earlier run.
    recipe
        What the model wants.
    needs_anchor
        Sequence without which the model cannot work; None: any will do.

    Returns
    -------
    Plan
        As it was, with a warning, if the session has no geometry there. Refused if the geometry is not that
        of the session's images. Else with the geometry's anchor and without images that it has no place for;
        sequences that were not asked for may be missing.
    """
    if plan.anchor is None:
        return plan
    path = find_geometry(folder, subject=plan.subject, session=plan.session)
    if path is None:
        note = f"there is no geometry of this session in {Path(folder).name}: it is fitted"
        return replace(plan, warnings=(*plan.warnings, note))
    try:
        geometry = read_geometry(path)
    except DataError as error:
        return _refused(plan, str(error))
    problem = _other_grid(geometry, recipe) or _other_images(geometry, plan)
    if problem is None and needs_anchor is not None and needs_anchor not in geometry.keys:
        problem = f"it has no place for {needs_anchor}, which this model needs"
    if problem is not None:
        return _refused(plan, f"{path.name}: {problem}")
    return _placed(plan, geometry, path, names=recipe.sequence_names)


def _refused(plan: Plan, problem: str) -> Plan:
    remedy = "" if REMEDY in problem.lower() else f"; {REMEDY}"
    return replace(plan, anchor=None, refusal=f"{REFUSED}{problem.rstrip('.')}{remedy}")


def _other_grid(geometry: Geometry, recipe: Recipe) -> str | None:
    """In what the prepared grid differs from the recipe's; None: in nothing."""
    if geometry.frame != recipe.frame:
        return f"its frame is {geometry.frame}, the recipe's is {recipe.frame}"
    spacing, window = geometry.grid.spacing, recipe.grid.window_vox
    if not np.allclose(spacing, recipe.grid.spacing_mm, atol=SPACING_MM):
        return f"its voxels are {spacing.max():g} mm wide, the recipe's {recipe.grid.spacing_mm:g} mm"
    if window is not None and geometry.grid.shape[:2] != tuple(window):
        return f"its window is {geometry.grid.shape[:2]}, the recipe's {tuple(window)}"
    return None


def _other_images(geometry: Geometry, plan: Plan) -> str | None:
    """Which image of the geometry is not the session's any more; None: all are."""
    excused = _not_asked(plan)
    if geometry.anchor in excused:
        return f"it stands on {geometry.anchor}, which was not asked for"
    files = {(s.name, file.relative): file for s in plan.sequences for file in s.files}
    for slab in geometry.slabs:
        if slab.key in excused:
            continue
        problem = _other_image(slab, files.get((slab.key, slab.file)))
        if problem is not None:
            return problem
    return None


def _not_asked(plan: Plan) -> frozenset[str]:
    """Sequences that the run leaves out on purpose: their places in a geometry may stay empty."""
    reasons = {reason for _, reason in plan.left_out}
    return frozenset(name for name in plan.missing if not_asked_for(name) in reasons)


def _other_image(slab: Slab, file: ImageFile | None) -> str | None:
    if file is None or file.grid is None:
        return f"it was fitted to {slab.file} as {slab.key}, which this run does not use as such"
    if file.grid != slab.grid:  # to rounding, as apply demands it
        return (
            f"{slab.file} had another lattice when it was fitted (then {slab.grid.shape}, now "
            f"{file.grid.shape}, or another affine)"
        )
    return None


def _placed(plan: Plan, geometry: Geometry, path: Path, *, names: Sequence[str]) -> Plan:
    """The plan with the images that the geometry has a place for."""
    known = {(slab.key, slab.file) for slab in geometry.slabs}
    kept, extra = [], []
    for sequence in plan.sequences:
        files = tuple(file for file in sequence.files if (sequence.name, file.relative) in known)
        extra += [file for file in sequence.files if file not in files]
        if files:
            kept.append(SequencePlan(name=sequence.name, files=files))
    present = {sequence.name for sequence in kept}
    gone = {file.relative for file in extra}
    note = f"the geometry is that of an earlier run ({path.name}); nothing was fitted"
    return replace(
        plan,
        sequences=tuple(kept),
        missing=tuple(name for name in names if name not in present),
        anchor=geometry.anchor,
        left_out=tuple(sorted([*plan.left_out, *((name, f"{path.name} {NO_PLACE}") for name in gone)])),
        warnings=(
            *plan.warnings,
            note,
            *(f"{file.name} is not used: {path.name} {NO_PLACE}" for file in extra),
        ),
        cord_masks=tuple(pair for pair in plan.cord_masks if pair[0] not in gone),
        geometry=str(path.absolute()),
    )
