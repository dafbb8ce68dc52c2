"""Synthetic sessions in memory: images, cords and truth as the preparation takes them, without files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bids_scseg.space.grid import Grid
from bids_scseg.synth.anatomy import draw_anatomy
from bids_scseg.synth.dataset import numbered_scenario, session_lesions
from bids_scseg.synth.protocol import Scan
from bids_scseg.synth.scanner import Image
from bids_scseg.synth.scenario import SIX
from bids_scseg.synth.session import TRUTH_RANGE_MM, Realised, scan_session, truth_lattice, truth_maps

#: One slab: stored values ``(i, j, k)``, their lattice, and a name.
Slab = tuple[npt.NDArray[np.int16], Grid, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyntheticSession:
    """One scanned subject.

    Attributes
    ----------
    label
        Subject label.
    images
        By sequence: its slabs, uppermost first.
    cords
        By sequence: cord mask ``(i, j, k)`` bool of each slab.
    lesions, lesions_grid
        Lesion numbers from 1 ``(i, j, k)`` uint8, 0.5 mm, in the world of the anchor's first slab, and their
        lattice.
    visible, faint
        By lesion number: the sequences in which the image shows it so.
    """

    label: str
    images: dict[str, list[Slab]]
    cords: dict[str, list[npt.NDArray[np.bool_]]]
    lesions: npt.NDArray[np.uint8]
    lesions_grid: Grid
    visible: dict[int, tuple[str, ...]]
    faint: dict[int, tuple[str, ...]]


def draw_session(seed: int, number: int, *, sequences: tuple[str, ...] = SIX) -> SyntheticSession:
    """The session of subject ``number`` of a training set, in memory.

    Parameters
    ----------
    seed, number
        As in `dataset.write_training_set`; arrays and lattices are those of its files.
    sequences
        Sequences scanned.

    Returns
    -------
    SyntheticSession
        ``preprocess.prepare.prepare_session(session.images, session.cords, recipe, register=False)`` prepares
        it. Without lesions, ``lesions`` is all 0, and ``visible`` and ``faint`` are empty.
    """
    rng = np.random.default_rng((seed, number))
    anatomy = draw_anatomy(rng)
    scenario = numbered_scenario(seed, number, sequences)
    lesions = session_lesions(rng, anatomy, scenario)
    images: dict[str, list[Slab]] = {}
    cords: dict[str, list[npt.NDArray[np.bool_]]] = {}
    realised = Realised()
    for scan, image in scan_session(rng, anatomy=anatomy, lesions=lesions, scenario=scenario):
        images.setdefault(scan.sequence, []).append(_slab(scan, image))
        cords.setdefault(scan.sequence, []).append(image.cord)
        realised.add(scan, image)
    low, high = TRUTH_RANGE_MM
    shape, affine = truth_lattice(anatomy, low=low, high=high)
    return SyntheticSession(
        label=f"{number:04d}",
        images=images,
        cords=cords,
        lesions=truth_maps(anatomy, lesions, shape=shape, affine=affine)[1],
        lesions_grid=Grid(shape=shape, affine=affine),
        visible={n: realised.showing(n, "visible") for n in range(1, len(lesions) + 1)},
        faint={n: realised.showing(n, "faint") for n in range(1, len(lesions) + 1)},
    )


def _slab(scan: Scan, image: Image) -> Slab:
    acquisition = scan.acquisition
    name = "_".join([*(f"{key}-{value}" for key, value in scan.entities.items()), scan.suffix])
    return image.data, Grid(shape=acquisition.shape, affine=acquisition.affine), name
