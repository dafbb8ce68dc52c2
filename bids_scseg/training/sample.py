"""What a training source hands to the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

IGNORE = 255  # label value of voxels that do not count (docs/architecture.md)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One training example.

    Attributes
    ----------
    image : (S, i, j, k) float32
        Normalised intensities, 0 outside coverage.
    coverage : (S, i, j, k) bool
        Where each sequence has data.
    label : (i, j, k) uint8
        Class of each voxel; 255 does not count.
    available : (S,) bool
        Which sequences are present.
    """

    image: npt.NDArray[np.float32]
    coverage: npt.NDArray[np.bool_]
    label: npt.NDArray[np.uint8]
    available: npt.NDArray[np.bool_]


class Source(Protocol):
    """Where examples come from: example ``index`` is the same in every run."""

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        ...

    def summary(self) -> dict[str, object]:
        """What the source holds, as plain data."""
        ...
