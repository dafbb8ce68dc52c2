"""Lesions that a reader has corrected on native voxels, in prepared space.

A lesion that the reader left exactly as it was shown keeps the shape that the model gave it, down to
fractions of native voxels; every other lesion is the reader's voxels, whole. So a mask that is saved as it
was changes nothing, and what was drawn has the volume that it has in the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.errors import GeometryError
from bids_scseg.measure.instances import KEEP_FROM, Connectivity, Labels, number_from_top, restore_labels
from bids_scseg.space.geometry import Geometry, Slab, seam_weight
from bids_scseg.space.resample import index_chunks

BoolArray = npt.NDArray[np.bool_]
Origin = Literal["model", "manual", "mixed"]

RING = np.ones((3, 3, 3), bool)  # a voxel with its 26 neighbours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A mask that a reader saved.

    Attributes
    ----------
    values : (i, j, k) int32
        0 without lesion. One positive value: a mask; several: numbered lesions.
    slab
        Its lattice, and the world that it lies in (:meth:`.Geometry.lattice_in_world`).
    """

    values: npt.NDArray[np.int32]
    slab: Slab


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrected:
    """Lesions after the correction.

    Attributes
    ----------
    labels : (i, j, k) int32
        Numbered from top to bottom, as :func:`.instances.label_lesions` does.
    kept
        Lesions of the model that the reader left as they were.
    beyond
        Lesions of the model that lie mostly beyond the masks' fields of view: they stand.
    redrawn
        Lesions made of the reader's voxels.
    outside_mm3
        Volume of such voxels outside the prepared window, which is lost.
    """

    labels: Labels
    kept: int
    beyond: int
    redrawn: int
    outside_mm3: float

    @property
    def origin(self) -> Origin:
        """``mixed`` where lesions of the model stand of which the reader's masks can say nothing."""
        return "mixed" if self.beyond else "manual"


def correct_lesions(
    model: Labels, drawn: Sequence[Drawn], geometry: Geometry, *, connectivity: Connectivity = 26
) -> Corrected:
    """Replace the model's decision by a reader's.

    Parameters
    ----------
    model : (i, j, k) int32
        The model's lesions in prepared space.
    drawn
        The reader's masks: one, or one for each of some slabs of one sequence. All zero: no lesion.
    geometry
        The session's.
    connectivity
        Neighbourhood of one lesion.

    Returns
    -------
    Corrected
        A lesion of the model is judged where the masks show it (:func:`.instances.restore_labels` onto their
        lattices). It is kept if all its voxels are still marked and nothing was added to them; of a numbered
        mask they must have one number, and no neighbour may bear it. Otherwise the reader's voxels stand for
        it: each prepared voxel takes the value of the native voxel that holds its centre, touching voxels of
        one value are one lesion, and a lesion too small to hold such a centre gets the voxels nearest to it.

    Raises
    ------
    GeometryError
        If a mask does not meet the prepared window, or nothing of what is drawn lies in it.
    """
    shown = [restore_labels(model, geometry, item.slab) for item in drawn]
    values = [np.unique(item.values[item.values > 0]) for item in drawn]
    numbered = np.unique(np.concatenate(values)).size > 1
    standing = {
        int(number): _stands(number, model, drawn, shown, geometry=geometry, numbered=numbered)
        for number in np.unique(model[model > 0])
    }
    kept = [number for number, verdict in standing.items() if verdict == "kept"]
    beyond = [number for number, verdict in standing.items() if verdict == "beyond"]
    open_ = [np.where(np.isin(on, kept), 0, item.values) for item, on in zip(drawn, shown, strict=True)]
    placed, outside = _place(open_, drawn, geometry)
    _check_inside(open_, placed, drawn, alone=not kept)
    pieces = np.asarray(cc3d.connected_components(placed, connectivity=connectivity), np.int32)
    stays = np.isin(model, [*kept, *beyond]) & (model > 0)
    pieces = np.where(stays, 0, pieces)
    labels = np.where(stays, model + int(pieces.max(initial=0)), pieces).astype(np.int32)
    return Corrected(
        labels=number_from_top(labels),
        kept=len(kept),
        beyond=len(beyond),
        redrawn=int(np.unique(pieces[pieces > 0]).size),
        outside_mm3=outside,
    )


def _stands(
    number: int,
    model: Labels,
    drawn: Sequence[Drawn],
    shown: Sequence[npt.NDArray[np.uint16]],
    *,
    geometry: Geometry,
    numbered: bool,
) -> Literal["kept", "beyond", "open"]:
    """Whether a lesion of the model stands as it is; ``open``: the reader's voxels say what it is."""
    verdicts = [
        _is_left(number, item.values, on, numbered=numbered)
        for item, on in zip(drawn, shown, strict=True)
        if (on == number).any()
    ]
    if verdicts:
        return "kept" if all(verdicts) else "open"
    return _unshown(np.argwhere(model == number), drawn, geometry)


def _is_left(
    number: int, values: npt.NDArray[np.int32], shown: npt.NDArray[np.uint16], *, numbered: bool
) -> bool:
    """Whether a lesion's voxels on one lattice are marked as they were shown, with nothing added."""
    box = ndimage.find_objects((shown == number).astype(np.int8))[0]
    wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    own, value, others = shown[wide] == number, values[wide], shown[wide]
    marked = value[own]
    if marked.min() <= 0 or (numbered and marked.min() != marked.max()):
        return False
    ring = ndimage.binary_dilation(own, structure=RING) & ~own
    added = value == marked[0] if numbered else (value > 0) & (others == 0)
    return not bool((added & ring).any())


def _unshown(
    voxels: npt.NDArray[np.intp], drawn: Sequence[Drawn], geometry: Geometry
) -> Literal["kept", "beyond", "open"]:
    """Verdict on a lesion without a voxel of its own in any mask: cut off, or hidden by others."""
    seen, marked = np.zeros(len(voxels), bool), np.zeros(len(voxels), bool)
    for item in drawn:
        found, inside = _nearest(item.values, item.slab, geometry, voxels.astype(np.float64))
        seen |= inside
        marked |= found > 0
    if seen.mean() < KEEP_FROM:
        return "beyond"
    return "kept" if marked.mean() >= KEEP_FROM else "open"


def _nearest(
    values: npt.NDArray[np.int32], slab: Slab, geometry: Geometry, ijk: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], BoolArray]:
    """Values of the native voxels that hold prepared voxels' centres (n, 3); and whether there are any."""
    index = slab.to_index(geometry.to_world(ijk, key=slab.key))
    inside = slab.grid.contains(index)
    found = np.zeros(len(ijk), np.int32)
    # half up: rounding to even would give every second voxel the centres on both of its borders
    nearest = np.clip(np.floor(index[inside] + 0.5).astype(np.intp), 0, np.asarray(values.shape) - 1)
    found[inside] = values[tuple(nearest.T)]
    return found, inside


def _place(
    parts: Sequence[npt.NDArray[np.int32]], drawn: Sequence[Drawn], geometry: Geometry
) -> tuple[Labels, float]:
    """Drawn values in prepared space, and the volume (mm³) of what does not fit in.

    As in the images, the slab that serves decides where it covers, else any that does.
    """
    out = np.zeros(geometry.grid.shape, np.int32)
    open_, outside, served = np.ones(out.shape, bool), 0.0, []
    for part, item in zip(parts, drawn, strict=True):
        values, covered, lost = _placed(part, item.slab, geometry)
        if not covered.any():
            raise GeometryError(
                "its field of view does not meet the cord's",
                file=item.slab.file,
                expected="a mask in the world of the session's images",
                remedy="edit the mask that this program wrote, and keep its header when you save it",
            )
        own = covered & (seam_weight(geometry.s_mm, item.slab.serves, 0.0) > 0)
        out[own] = values[own]
        open_ &= ~own
        outside += lost
        served.append((values, covered))
    for values, covered in served:
        rest = open_ & covered
        out[rest] = values[rest]
        open_ &= ~rest
    return out, outside


def _placed(
    part: npt.NDArray[np.int32], slab: Slab, geometry: Geometry
) -> tuple[npt.NDArray[np.int32], BoolArray, float]:
    """One mask in prepared space: values, where it speaks, and the volume (mm³) outside the window."""
    values, covered = np.zeros(geometry.grid.shape, np.int32), np.zeros(geometry.grid.shape, bool)
    for start, ijk in index_chunks(geometry.grid.shape):
        piece = slice(start, start + len(ijk))
        values.reshape(-1)[piece], covered.reshape(-1)[piece] = _nearest(part, slab, geometry, ijk)
    where = np.argwhere(part > 0)
    if not len(where):
        return values, covered, 0.0
    inside = _keep_specks(values, part, where, slab=slab, geometry=geometry)
    return values, covered, float((~inside).sum()) * slab.grid.voxel_volume


def _keep_specks(
    values: npt.NDArray[np.int32],
    part: npt.NDArray[np.int32],
    where: npt.NDArray[np.intp],
    *,
    slab: Slab,
    geometry: Geometry,
) -> BoolArray:
    """Mark the nearest voxels of drawn lesions that fell between prepared centres; which voxels fit (n,)."""
    index = geometry.to_prepared(slab.to_world(where), key=slab.key)
    inside = geometry.grid.contains(index)
    pieces = cc3d.connected_components(part.astype(np.uint32), connectivity=26)[tuple(where.T)]
    nearest = np.clip(np.rint(index).astype(np.intp), 0, np.asarray(values.shape) - 1)
    hit = values[tuple(nearest.T)] == part[tuple(where.T)]
    missed = inside & ~np.isin(pieces, np.unique(pieces[hit & inside]))
    values[tuple(nearest[missed].T)] = part[tuple(where[missed].T)]
    return inside


def _check_inside(
    parts: Sequence[npt.NDArray[np.int32]], placed: Labels, drawn: Sequence[Drawn], *, alone: bool
) -> None:
    """Refuse masks that are drawn beside the cord altogether: their header is another image's."""
    voxels = sum(int((part > 0).sum()) for part in parts)
    if voxels and alone and not placed.any():
        raise GeometryError(
            f"none of its {voxels} lesion voxels lies in the window round the cord",
            file=drawn[0].slab.file,
            expected="lesions of the cord, in the world of the session's images",
            remedy="edit the mask that this program wrote, and keep its header when you save it",
        )
