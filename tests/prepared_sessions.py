"""A small session of two sagittal slabs and an axial stack, for tests of the preparation."""

from __future__ import annotations

import phantoms

from bids_scseg.preprocess import prepare
from bids_scseg.space.grid import Grid

WINDOW = (24, 24)
RECIPE = phantoms.cord_recipe("Sag", "Ax", "Iso", window=WINDOW)
UPPER = phantoms.lattice(spacing=(3, 1, 1), size_mm=(42, 50, 50), center=(0, 0, 20), orientation="PSR")
LOWER = phantoms.lattice(spacing=(3, 1, 1), size_mm=(42, 50, 50), center=(0, 0, -20), orientation="PSR")
AXIAL = phantoms.lattice(
    spacing=(0.8, 0.8, 4), size_mm=(40, 40, 40), rotation_deg=(6, 0, 0), orientation="LAS"
)


def native(phantom: phantoms.Phantom, grid: Grid, name: str) -> prepare.NativeImage:
    return phantoms.rendered(phantom, grid), grid, name


def session(shift: tuple[float, float] = (0.0, 0.0)) -> tuple[dict[str, list], dict[str, list]]:
    still, moved = phantoms.Phantom(), phantoms.Phantom(shift=shift)
    images = {
        "Sag": [native(still, LOWER, "low"), native(still, UPPER, "up")],
        "Ax": [native(moved, AXIAL, "ax")],
    }
    cords = {
        "Sag": [phantoms.cord_mask(still, LOWER), phantoms.cord_mask(still, UPPER)],
        "Ax": [phantoms.cord_mask(moved, AXIAL)],
    }
    return images, cords
