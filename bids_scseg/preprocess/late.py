"""Late fusion: maps drawn on single images, averaged in prepared space where the images have data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.preprocess.prepare import NativeImage, matching
from bids_scseg.space.geometry import Geometry

Volume = npt.NDArray[np.float32]
Weights = npt.NDArray[np.bool_] | npt.NDArray[np.floating]


def fuse_maps(case: PreparedCase, maps: Mapping[str, Sequence[NativeImage]]) -> Volume:
    """Maps of all images of a session as one, by late fusion.

    Each sequence's maps (one per slab) go to prepared space by the map of its images: one linear
    interpolation, seams as the geometry has them. There every sequence weighs by its coverage.

    Parameters
    ----------
    case
        The prepared session, with its geometry; sequences that it counts as not available are left out.
    maps
        By sequence name: (map in 0-1, lattice, name of the image) of each image, in any order.

    Returns
    -------
    (i, j, k) float32
        Mean over the sequences that cover a voxel; 0 where none does.

    Raises
    ------
    GeometryError
        If the case has no geometry, or a slab of an available sequence has no map on its lattice.
    """
    geometry = case.geometry
    if geometry is None:
        raise GeometryError("the prepared case has no geometry", expected="one, to place the maps by")
    present = zip(case.sequences, case.available, case.coverage, strict=True)
    pairs = (
        (prepared_map(geometry, maps.get(key, ()), key=key), covered)
        for key, available, covered in present
        if available
    )
    return weighted_mean(pairs, shape=geometry.grid.shape)


def prepared_map(geometry: Geometry, maps: Sequence[NativeImage], *, key: str) -> Volume:
    """One sequence's maps on the prepared grid, (i, j, k) float32; 0 where no slab covers.

    The factors that make the intensities of slabs agree do not apply: values of a map are no intensities.

    Raises
    ------
    GeometryError
        If a slab has no map on its lattice.
    """
    order = matching(geometry, maps, key)
    alone = replace(geometry, slabs=tuple(replace(slab, scale=1.0) for slab in geometry.slabs_of(key)))
    volume, _ = alone.apply([np.asarray(maps[n][0], np.float32) for n in order], key=key)
    return volume


def weighted_mean(pairs: Iterable[tuple[Volume, Weights]], *, shape: tuple[int, int, int]) -> Volume:
    """Mean of volumes, each voxel over those that have a weight there.

    Parameters
    ----------
    pairs
        (values, weights of 0 or more) of equal shape, such as a sequence's map and its coverage.
    shape
        Of all of them.

    Returns
    -------
    (i, j, k) float32; 0 where no weight is, and everywhere without pairs.
    """
    total, weight = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    for values, share in pairs:
        total += np.where(share > 0, values, 0) * share  # what is not covered may hold anything
        weight += share
    return np.divide(total, weight, out=np.zeros(shape), where=weight > 0).astype(np.float32)
