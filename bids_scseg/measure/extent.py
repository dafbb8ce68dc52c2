"""How much the images show along S-I beyond the ends of the cord masks: there nothing was segmented."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.instances import CORD_FROM, Labels, cord_ends
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import FloatArray

#: A sequence is told if the masks reach over less than this share of it, and more than this many mm of it lie
#: beyond (ours: about two vertebrae; a head above a cervical cord takes a third of a usual image).
MASKED_BELOW = 0.6
BEYOND_FROM_MM = 40.0
#: From the upper end of the cord to the vertex of a large head: so much above the masks may be head (ours).
HEAD_MM = 170.0
#: The conus tapers over some 30 mm. A mask whose last 10 mm have less than this share of its area further up
#: may end with the cord (ours); one that stops in its midst keeps its area to the end.
TAPERED_BELOW = 0.7
END_MM, UP_MM = 10.0, (30.0, 50.0)
#: Vertebral levels between which there can be cord.
FIRST_LEVEL, LAST_LEVEL = "C1", "L2"

Interval = tuple[float, float]  # low, high; mm along s


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What one sequence, or all of them together, show along S-I.

    Attributes
    ----------
    key
        Sequence; empty: all together.
    shown_mm
        S-I extent of the images; where levels are labelled, from C1 to L2 only.
    masked_mm
        Of that, between the ends of the session's cord masks.
    above_mm, below_mm
        Of that, above and below the masks.
    perhaps_no_cord
        Whether what lies beyond may well be head and what follows the conus, by its length and by the
        mask's lower end.
    """

    key: str
    shown_mm: float
    masked_mm: float
    above_mm: float
    below_mm: float
    perhaps_no_cord: bool

    @property
    def mm(self) -> float:
        """Length beyond the masks, mm."""
        return self.above_mm + self.below_mm

    @property
    def much(self) -> bool:
        """Whether so much is beyond the masks that a reader must know."""
        return self.mm > BEYOND_FROM_MM and self.masked_mm < MASKED_BELOW * self.shown_mm

    @property
    def sentence(self) -> str:
        """What is known, in words, without a full stop."""
        return (
            f"{self.key} shows {self.shown_mm:.0f} mm along S-I, the cord masks reach over "
            f"{self.masked_mm:.0f} mm of it; {self.above_mm:.0f} mm above and {self.below_mm:.0f} mm below "
            "were not segmented"
        )


def beyond_masks(
    geometry: Geometry, cord: npt.NDArray[np.generic], *, levels: Sequence[tuple[str, float, float]] = ()
) -> tuple[Beyond, ...]:
    """What the images show beyond the ends of the session's cord masks.

    Parameters
    ----------
    geometry
        The map; its slabs say what each image shows.
    cord : (i, j, k)
        Cord mask in prepared space, 0–1.
    levels
        (name, bottom, top) of vertebral levels, mm along s. Beyond C1 and L2 there is no cord.

    Returns
    -------
    All sequences together, then each of them in the geometry's order. Empty without any cord.
    """
    mask = np.asarray(cord) >= CORD_FROM
    ends = cord_ends(mask)
    if ends is None:
        return ()
    step = float(geometry.grid.spacing[2])
    low, high = geometry.s_mm[ends[0]] - step / 2, geometry.s_mm[ends[1]] + step / 2
    named = {name: (bottom, top) for name, bottom, top in levels}
    bottom = min(named[LAST_LEVEL][0], low) if LAST_LEVEL in named else -np.inf
    top = max(named[FIRST_LEVEL][1], high) if FIRST_LEVEL in named else np.inf
    tapers = tapers_off(mask, geometry)
    found = []
    for key in ("", *geometry.keys):
        slabs = geometry.slabs if key == "" else geometry.slabs_of(key)
        shown = [_within(_shown(geometry, slab), (bottom, top)) for slab in slabs]
        masked, above, below = (
            _length(_within(span, part) for span in shown)
            for part in ((low, high), (high, np.inf), (-np.inf, low))
        )
        doubtful = max(above - HEAD_MM, 0.0) + (0.0 if tapers else below)
        found.append(
            Beyond(
                key=key,
                shown_mm=masked + above + below,
                masked_mm=masked,
                above_mm=above,
                below_mm=below,
                perhaps_no_cord=doubtful <= BEYOND_FROM_MM,
            )
        )
    return tuple(found)


def most_beyond(found: Iterable[Beyond]) -> Beyond | None:
    """The sequence that shows most beyond the masks, if any shows so much that a reader must know."""
    much = [item for item in found if item.key and item.much]
    return max(much, key=lambda item: (not item.perhaps_no_cord, item.mm), default=None)


def tapers_off(mask: npt.NDArray[np.bool_], geometry: Geometry) -> bool:
    """Whether the mask's lower end is thin, as the conus is; one of less than 50 mm does not say.

    Parameters
    ----------
    mask : (i, j, k) bool
        Cord in prepared space.
    geometry
        The map.
    """
    area = mask.sum(axis=(0, 1))
    present = np.flatnonzero(area)
    up = (present - present[:1]) * float(geometry.grid.spacing[2])
    if up.max(initial=0.0) < UP_MM[1]:
        return False
    end, further = area[present[up < END_MM]], area[present[(up >= UP_MM[0]) & (up < UP_MM[1])]]
    return bool(further.size > 0 and np.median(end) < TAPERED_BELOW * np.median(further))


def cut_lesions(labels: Labels, cord: npt.NDArray[np.generic]) -> tuple[int, ...]:
    """Numbers of the lesions that reach the plane where the cord masks end and nothing beyond it.

    Parameters
    ----------
    labels : (i, j, k) int32
        Lesion numbers.
    cord : (i, j, k)
        Cord mask, 0–1.
    """
    ends = cord_ends(np.asarray(cord) >= CORD_FROM)
    if ends is None:
        return ()
    at = np.unique(labels[:, :, list(ends)])
    beyond = np.unique(np.concatenate([labels[:, :, : ends[0]], labels[:, :, ends[1] + 1 :]], axis=2))
    return tuple(int(number) for number in np.setdiff1d(at, beyond) if number > 0)


def _shown(geometry: Geometry, slab: Slab) -> Interval:
    """What an image shows along s at its middle, by its own axis closest to s."""
    # The corners of a turned image reach further, but no cord does.
    s_of = _s_of(geometry, slab)
    axis = int(np.argmax(np.abs(s_of[:3]) / slab.grid.spacing))
    middle = float(s_of[:3] @ ((np.asarray(slab.grid.shape) - 1) / 2) + s_of[3])
    half = slab.grid.shape[axis] * abs(float(s_of[axis])) / 2
    return middle - half, middle + half


def _s_of(geometry: Geometry, slab: Slab) -> FloatArray:
    """(4,) that takes a native index, with a 1 behind it, to s."""
    return np.asarray(geometry.grid.axes[:, 2] @ (np.linalg.inv(slab.xfm) @ slab.grid.affine)[:3])


def _within(span: Interval, limits: Interval) -> Interval:
    return max(span[0], limits[0]), min(span[1], limits[1])


def _length(spans: Iterable[Interval]) -> float:
    """Length of a union of intervals; those that end before they begin are empty."""
    total, reached = 0.0, -np.inf
    for low, high in sorted(spans):
        total += max(high - max(low, reached), 0.0)
        reached = max(reached, high) if high > low else reached
    return float(total)
