"""Drawn lesions in prepared space: placed by the case's own geometry, joined, numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from bids_scseg.bids.masks import same_lattice
from bids_scseg.bids.references import SOFT_FROM, LesionMap, lattice_error, lesion_numbers
from bids_scseg.errors import DataError, ImageError
from bids_scseg.measure.instances import label_lesions
from bids_scseg.preprocess.align import extend_centerline, fit_centerline, measure_centers
from bids_scseg.preprocess.labels import labels_to_prepared, session_labels_to_prepared
from bids_scseg.recipe.model import Recipe
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.nifti import READ_ERRORS
from bids_scseg.training.sample import IGNORE

BoolArray = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]

MUCH_UNKNOWN = 0.05  # share of covered voxels that no annotated image shows, from which on a note tells, ours
OWN_CORD = "_res-iso_label-SC_desc-truth_mask.nii.gz"  # beside the lesions of a synthetic session


def place_maps(
    maps: Sequence[LesionMap], geometry: Geometry, *, covered: BoolArray, recipe: Recipe
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Bring a session's lesion maps to prepared space and number the lesions.

    A voxel is lesion where any annotated sequence says so (half of it, by linear interpolation), background
    where at least one annotated image shows it and none says lesion, and does not count (255) where
    sequences have data that nobody annotated. Numbers of a single map that has several, or is a synthetic
    truth, are kept; maps of the slabs of one sequence keep touching lesions of different numbers apart; all
    else is numbered by connected components (the recipe's connectivity).

    Parameters
    ----------
    maps
        Of this session.
    geometry
        The case's.
    covered : (i, j, k) bool
        Where any sequence has data.
    recipe
        Gives the connectivity.

    Returns
    -------
    label : (i, j, k) uint8
        0 background, lesions from 1, 255 unknown. All 0 (and 255) for empty maps: a lesion-free case.
    notes
        What people should know, one sentence each.

    Raises
    ------
    DataError
        If no map is drawn on an image that is used, values are negative, or lesions are more than 254.
    GeometryError
        If a map lies on the lattice of no image.
    """
    placed, notes = _place_all(maps, geometry)
    if not placed:
        raise DataError(
            f"lesions are drawn on {', '.join(_drawn_on(maps))} only, which this session does not use",
            file=maps[0].path,
            expected=f"a map of one of {', '.join(slab.file for slab in geometry.slabs)}",
            remedy="let --bids-filter-file choose the annotated image",
        )
    label = _numbered(
        [values for values, _ in placed],
        single=len(maps) == 1,
        instances=_is_synthetic_truth(maps[0]),
        geometry=geometry,
        recipe=recipe,
    )
    _check_count(label, maps[0])
    shown = np.any([seen for _, seen in placed], axis=0)
    unknown = covered & ~shown
    share = float(unknown.sum() / max(int(covered.sum()), 1))
    if share > MUCH_UNKNOWN:
        notes.append(
            f"{100 * share:.0f} % of the covered voxels lie in no annotated image; they do not count"
        )
    return np.where(unknown & (label == 0), IGNORE, label).astype(np.uint8), tuple(notes)


def _check_count(label: npt.NDArray[np.integer[Any]], found: LesionMap) -> None:
    if label.max(initial=0) >= IGNORE:
        raise DataError(
            f"{int(label.max())} lesions", file=found.path, expected=f"fewer than {IGNORE}",
            remedy="check that the map is one of lesions",
        )  # fmt: skip


def _drawn_on(maps: Sequence[LesionMap]) -> list[str]:
    return [found.image.name if found.image else found.name for found in maps]


def _place_all(
    maps: Sequence[LesionMap], geometry: Geometry
) -> tuple[list[tuple[Labels, BoolArray]], list[str]]:
    """Labels and where they speak, for each sequence or whole map that is annotated; notes."""
    placed = [_place_whole(found, geometry) for found in maps if found.image is None]
    drawn = {found.image.relative: found for found in maps if found.image is not None}
    for key in geometry.keys:
        slabs = geometry.slabs_of(key)
        own = [drawn.pop(slab.file, None) for slab in slabs]
        if any(own):
            values = [None if found is None else read_lesions(Path(found.path)) for found in own]
            label = session_labels_to_prepared(geometry, values, key=key)
            annotated = tuple(slab for slab, found in zip(slabs, own, strict=True) if found is not None)
            placed.append((label, _seen(geometry, annotated)))
    notes = [f"{found.name} is not used: its image is not" for found in drawn.values()]
    return placed, notes


def _place_whole(found: LesionMap, geometry: Geometry) -> tuple[Labels, BoolArray]:
    """A map that is on no single image: of the whole session, or on the fused lattice of a sequence."""
    key = geometry.anchor
    if found.world is not None:
        slab = geometry.lattice_in_world(found.grid, file=found.world.relative)
        return labels_to_prepared(geometry, read_lesions(Path(found.path)), slab), _seen(geometry, (slab,))
    if not found.whole:
        order = (geometry.anchor, *(name for name in geometry.keys if name != geometry.anchor))
        fits = [name for name in order if same_lattice(found.grid, geometry.fused_grid(name))]
        if not fits and not found.anywhere:
            raise lattice_error(found.path, found.grid, _stand_ins(geometry))
        key = fits[0] if fits else geometry.anchor
    # the map lies in the reference world: that sequence's centerline straightens it
    slab = Slab(key=key, index=0, file=found.path, grid=found.grid)
    straight = _along_own_cord(geometry, found, key=key)
    return labels_to_prepared(straight, read_lesions(Path(found.path)), slab), _seen(straight, (slab,))


def _along_own_cord(geometry: Geometry, found: LesionMap, *, key: str) -> Geometry:
    """The geometry with the line of the cord that a map was made with in the place of a sequence's.

    The scans of a session show the cord displaced, each slab by its own amount; what was drawn where nothing
    is displaced has its own centre at each height. Without a cord beside the map the geometry as it is.
    """
    file = Path(found.path).with_name(found.name.split("_seg-")[0] + OWN_CORD)
    if not (found.whole and geometry.frame == "centerline" and file.is_file()):
        return geometry
    cord = read_lesions(file) > 0
    if cord.shape != found.grid.shape or not cord.any():
        return geometry
    centers, xy, area = measure_centers(cord, found.grid, geometry.grid.axes)
    own = fit_centerline(centers, xy, area_mm2=area)
    span = (float(geometry.s_mm[0]), float(geometry.s_mm[-1]))
    lines = {**geometry.centerlines, **extend_centerline({key: own}, anchor=key, s_range=span)}
    return replace(geometry, centerlines=lines)


def _stand_ins(geometry: Geometry) -> list[Any]:
    """The anchor's images as far as an error message needs them."""
    from bids_scseg.recipe.study import ImageFile

    return [
        ImageFile(path=slab.file, relative=slab.file, entities=(), suffix="", grid=slab.grid)
        for slab in geometry.slabs_of(geometry.anchor)
    ]


def _seen(geometry: Geometry, slabs: Sequence[Slab]) -> BoolArray:
    """Where some slabs of one sequence have data, in prepared space."""
    alone = replace(geometry, slabs=tuple(slabs))
    ones = [np.broadcast_to(np.float32(1), slab.grid.shape) for slab in alone.slabs_of(slabs[0].key)]
    return alone.apply(ones, key=slabs[0].key)[1]


def _is_synthetic_truth(found: LesionMap) -> bool:
    """Whether a table beside a map says how well each numbered lesion is seen: then numbers are lesions.

    Without it a map of one value may be a mask of many lesions, whatever its name.
    """
    if not found.table.is_file():
        return False
    with found.table.open(encoding="utf-8") as handle:
        return "realised_" in handle.readline()


def _numbered(
    parts: Sequence[Labels], *, single: bool, instances: bool, geometry: Geometry, recipe: Recipe
) -> npt.NDArray[np.integer[Any]]:
    mask = np.any([part > 0 for part in parts], axis=0)
    several = len(np.unique(parts[0][parts[0] > 0])) > 1
    if len(parts) == 1 and (several or instances) and single:
        return parts[0]
    if len(parts) == 1 and several:
        pieces = cc3d.connected_components(
            parts[0].astype(np.uint32), connectivity=recipe.inference.connectivity
        )
        return np.asarray(pieces, np.int32)
    return label_lesions(
        mask.astype(np.float32),
        threshold=SOFT_FROM,
        connectivity=recipe.inference.connectivity,
        voxel_volume=geometry.grid.voxel_volume,
    )


def read_lesions(path: Path) -> Labels:
    """A lesion map's numbers (i, j, k) int32; a soft mask (values between whole numbers) is cut at one half.

    Raises
    ------
    ImageError
        If it cannot be read or is not three-dimensional.
    DataError
        If values are negative, not finite, or neither numbers of lesions nor shares of lesion; or if a soft
        mask nowhere reaches one half, which would make a lesion-free case of a session with lesions.
    """
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    except READ_ERRORS as error:
        raise ImageError(
            f"lesion map cannot be read ({error})", file=path, expected="one 3-D NIfTI volume",
            remedy="copy or export it again",
        )  from error  # fmt: skip
    if not np.isfinite(data).all() or data.min(initial=0) < 0:
        raise DataError(
            "values below 0 or not finite", file=path, expected="0 for background, lesions above",
            remedy="export the map again",
        )  # fmt: skip
    numbers = lesion_numbers(data, file=path)
    if data.any() and not numbers.any():
        raise DataError(
            f"a soft mask whose largest value is {data.max():.2g}: nothing of it would be lesion",
            file=path,
            expected=f"{SOFT_FROM} or more where lesion is",
            remedy="cut it where lesions begin and save it as 0 and 1; without lesions, as 0 alone",
        )
    return numbers
