"""The cord's centerline: where its centre is at each height of the reference grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.space.grid import FloatArray, frozen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centerline:
    """Cord centre as a function of the position along the grid's S-I axis.

    Between nodes it is linear, beyond the ends constant; nodes are dense (1 mm or finer), so the
    shear that it defines stays exactly invertible.

    Attributes
    ----------
    s_mm : (n,) float64
        Strictly increasing positions along the grid's S-I axis, mm, grid frame.
    xy_mm : (n, 2) float64
        Cord centre along grid axes 0 and 1, mm, grid frame.
    measured : (n,) bool
        True where the cord was seen in this image; False where the position is extrapolated or borrowed.
    """

    s_mm: FloatArray
    xy_mm: FloatArray
    measured: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "s_mm", frozen(self.s_mm))
        object.__setattr__(self, "xy_mm", frozen(self.xy_mm))
        object.__setattr__(self, "measured", frozen(self.measured, bool))
        n = self.s_mm.size
        if n < 1 or self.xy_mm.shape != (n, 2) or self.measured.shape != (n,):
            raise GeometryError("centerline arrays do not match", expected="n positions and n centres, n ≥ 1")
        finite = np.isfinite(self.s_mm).all() and np.isfinite(self.xy_mm).all()
        if not finite or (np.diff(self.s_mm) <= 0).any():
            raise GeometryError("centerline nodes are not finite and increasing", expected="increasing mm")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Centerline):
            return NotImplemented
        return (
            self.s_mm.shape == other.s_mm.shape
            and np.allclose(self.s_mm, other.s_mm, atol=1e-6)
            and np.allclose(self.xy_mm, other.xy_mm, atol=1e-6)
            and bool((self.measured == other.measured).all())
        )

    def at(self, s_mm: npt.ArrayLike) -> FloatArray:
        """(...) positions in mm to (..., 2) centres in grid-frame mm."""
        s = np.asarray(s_mm, dtype=np.float64)
        x = np.interp(s, self.s_mm, self.xy_mm[:, 0])
        y = np.interp(s, self.s_mm, self.xy_mm[:, 1])
        return np.stack([x, y], axis=-1)

    def is_measured(self, s_mm: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(...) bool: whether the nearest node was measured; False beyond the ends."""
        s = np.asarray(s_mm, dtype=np.float64)
        if self.s_mm.size == 1:
            return np.asarray((np.abs(s - self.s_mm[0]) <= 0.5) & self.measured[0])
        middle = (self.s_mm[1:] + self.s_mm[:-1]) / 2
        nearest = np.searchsorted(middle, s)
        inside = (s >= self.s_mm[0] - 0.5) & (s <= self.s_mm[-1] + 0.5)
        return np.asarray(self.measured[nearest] & inside)

    def tangent(self, s_mm: npt.ArrayLike) -> FloatArray:
        """(m,) positions to (m, 3) unit tangents in the grid frame, pointing up (increasing s).

        Slopes are those of the nodes' central differences, interpolated.
        """
        s = np.atleast_1d(np.asarray(s_mm, dtype=np.float64))
        if self.s_mm.size == 1:
            slope = np.zeros((s.size, 2))
        else:
            node = np.gradient(self.xy_mm, self.s_mm, axis=0)
            slope = np.stack([np.interp(s, self.s_mm, node[:, axis]) for axis in (0, 1)], axis=-1)
        tangent = np.concatenate([slope, np.ones((s.size, 1))], axis=1)
        return np.asarray(tangent / np.linalg.norm(tangent, axis=1, keepdims=True))

    def arc_length(self, s_mm: npt.ArrayLike) -> FloatArray:
        """(m,) positions to (m,) mm along the curve, measured from the first node (negative below it)."""
        s = np.atleast_1d(np.asarray(s_mm, dtype=np.float64))
        steps = np.hypot(np.linalg.norm(np.diff(self.xy_mm, axis=0), axis=1), np.diff(self.s_mm))
        along = np.concatenate([[0.0], np.cumsum(steps)])
        below = np.minimum(s - self.s_mm[0], 0)
        above = np.maximum(s - self.s_mm[-1], 0)
        return np.asarray(np.interp(s, self.s_mm, along) + below + above)

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "s_mm": self.s_mm.tolist(),
            "xy_mm": self.xy_mm.tolist(),
            "measured": self.measured.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Centerline:
        """Inverse of :meth:`to_json`."""
        return cls(
            s_mm=np.array(data["s_mm"], dtype=float),
            xy_mm=np.array(data["xy_mm"], dtype=float).reshape(-1, 2),
            measured=np.array(data["measured"], dtype=bool),
        )
