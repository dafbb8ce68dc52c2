"""How well a lesion's volume is known, and whether two volumes differ by more than that.

A lesion's boundary is placed with an error; the volume between the true and the placed boundary is the
surface times that error. Errors are the same for large and small lesions, in mm, so in percent small lesions
are known far worse: a bare percentage calls every small lesion changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.space.grid import FloatArray

Verdict = Literal["stable", "enlarged", "shrunken"]

#: Standard deviation of where a scan puts the boundary of a lesion, as one displacement of the whole surface.
#: Ours, rounded up from a measurement: see docs/longitudinal.md.
BOUNDARY_SD_MM = 0.2
#: A change is beyond noise from this many standard deviations (two-sided 5 %, for each lesion by itself).
BEYOND_NOISE_FROM = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of volume and how well it is known.

    Attributes
    ----------
    mm3
        Later minus earlier volume.
    sd_mm3
        Its standard deviation by measurement noise.
    """

    mm3: float
    sd_mm3: float

    @property
    def z(self) -> float:
        """The change in standard deviations; 0 where both are 0."""
        return self.mm3 / self.sd_mm3 if self.sd_mm3 > 0 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the change's 95 % interval, mm³."""
        half = BEYOND_NOISE_FROM * self.sd_mm3
        return self.mm3 - half, self.mm3 + half

    @property
    def beyond_noise(self) -> bool:
        """Whether noise alone seldom makes such a change."""
        return abs(self.z) >= BEYOND_NOISE_FROM

    @property
    def verdict(self) -> Verdict:
        """In words."""
        if not self.beyond_noise:
            return "stable"
        return "enlarged" if self.mm3 > 0 else "shrunken"


def spheroid_surface(volume_mm3: npt.ArrayLike, length_mm: npt.ArrayLike) -> FloatArray:
    """Surface of the spheroid that has a lesion's volume and, along the cord, its length.

    Parameters
    ----------
    volume_mm3, length_mm : (...)
        Volume and extent along the cord. Where the length is not known (NaN or not positive), a sphere.

    Returns
    -------
    (...) float64, mm². 0 for a volume of 0.
    """
    volume, length = np.broadcast_arrays(
        np.asarray(volume_mm3, dtype=np.float64), np.asarray(length_mm, dtype=np.float64)
    )
    ball = np.cbrt(3 * volume / (4 * np.pi))
    along = np.where(np.nan_to_num(length) > 0, length / 2, ball)
    across = np.sqrt(np.divide(3 * volume, 4 * np.pi * along, out=np.zeros(volume.shape), where=along > 0))
    longest = np.maximum(np.maximum(along, across), 1e-12)
    ratio = np.clip(np.minimum(along, across) / longest, 0, 1)
    bend = np.sqrt(1 - ratio**2)
    # Close to a sphere both formulas are 0 / 0; their common limit is 1.
    safe = np.clip(bend, 1e-4, 1 - 1e-12)
    cigar = along / np.maximum(across, 1e-12) * np.arcsin(safe) / safe
    lens = ratio**2 * np.arctanh(safe) / safe
    side = np.where(bend < 1e-4, 1.0, np.where(along > across, cigar, lens))
    return np.asarray(np.where(volume > 0, 2 * np.pi * across**2 * (1 + side), 0.0))


def volume_sd(volume_mm3: npt.ArrayLike, length_mm: npt.ArrayLike) -> FloatArray:
    """(...) mm³: standard deviation of measured volumes: surface times :data:`BOUNDARY_SD_MM`."""
    return np.asarray(BOUNDARY_SD_MM * spheroid_surface(volume_mm3, length_mm))


def volume_change(before: Iterable[tuple[float, float]], after: Iterable[tuple[float, float]]) -> Change:
    """Change of the summed volume of some lesions.

    Parameters
    ----------
    before, after
        Volume in mm³ and length in mm of each lesion, in the earlier and in the later session.

    Returns
    -------
    Change. Within a session the boundary's error is taken to be the same for all lesions (contrast and slice
    position are), so their standard deviations add up; the two sessions' errors are independent.
    """
    sums = []
    for lesions in (before, after):
        known = np.array(list(lesions), dtype=np.float64).reshape(-1, 2)
        sums.append((float(known[:, 0].sum()), float(volume_sd(known[:, 0], known[:, 1]).sum())))
    (first, first_sd), (last, last_sd) = sums
    return Change(mm3=last - first, sd_mm3=float(np.hypot(first_sd, last_sd)))
