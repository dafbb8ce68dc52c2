"""Lattices: an array's shape with the affine that places it in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError

FloatArray = npt.NDArray[np.float64]

AFFINE_TOLERANCE = 1e-6  # mm; two grids closer than this everywhere are the same grid


def frozen(array: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Return a read-only copy of an array."""
    copy = np.array(array, dtype=dtype)
    copy.flags.writeable = False
    return copy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """A lattice of voxels in the world.

    Attributes
    ----------
    shape : tuple of 3 ints
        Number of voxels along each index axis.
    affine : (4, 4) float64
        Voxel index (centres at integers) to world RAS+ mm.

    Raises
    ------
    GeometryError
        If the affine is not finite or not invertible, or a shape entry is below 1.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", frozen(self.affine))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"grid shape {self.shape}", expected="three positive sizes")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise GeometryError("grid affine is not a finite 4x4 matrix", expected="a finite 4x4 matrix")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise GeometryError("grid affine is singular", expected="an invertible affine")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=AFFINE_TOLERANCE)

    def __hash__(self) -> int:
        return hash(self.shape)

    @property
    def spacing(self) -> FloatArray:
        """(3,) float64: distance in mm between voxel centres along each index axis."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def axes(self) -> FloatArray:
        """(3, 3) float64: columns are unit vectors of the index axes in the world."""
        return np.asarray(self.affine[:3, :3] / self.spacing)

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_world(self, ijk: npt.ArrayLike) -> FloatArray:
        """(..., 3) voxel indices to world RAS mm."""
        return transform_points(self.affine, ijk)

    def to_index(self, ras: npt.ArrayLike) -> FloatArray:
        """(..., 3) world RAS mm to voxel indices."""
        return transform_points(np.linalg.inv(self.affine), ras)

    def corners(self) -> FloatArray:
        """(8, 3) world RAS mm of the outer corners of the corner voxels."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        ijk = np.array([(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]])
        return self.to_world(ijk)

    def contains(self, ijk: npt.ArrayLike, *, tolerance: float = 0.5) -> npt.NDArray[np.bool_]:
        """(...) bool: whether indices lie within the voxels, half a voxel beyond the outer centres."""
        index = np.asarray(ijk)
        upper = np.asarray(self.shape) - 1 + tolerance
        return np.asarray(((index >= -tolerance) & (index <= upper)).all(axis=-1))

    def canonical_axes(self) -> tuple[tuple[int, int], ...]:
        """Which index axis runs along R, A and S, and its sign.

        Returns
        -------
        tuple of three (axis, sign)
            For world axes R, A, S in this order: the index axis closest to it and +1 or -1.
        """
        import nibabel as nib

        ornt = nib.orientations.io_orientation(self.affine)  # type: ignore[no-untyped-call]
        order = np.argsort(ornt[:, 0])
        return tuple((int(axis), int(ornt[axis, 1])) for axis in order)

    def plane(self) -> str:
        """Acquisition plane from the header: ``sag``, ``ax``, ``cor`` or ``iso``.

        The slice axis is the coarsest one, if clearly coarser than the others
        (by 1.3, ours: 0.8 x 0.8 x 0.9 mm volumes are 3-D acquisitions, 0.9 x 0.9 x 2 mm are not).
        """
        spacing = self.spacing
        axis = int(np.argmax(spacing))
        others = np.delete(spacing, axis)
        if spacing[axis] < 1.3 * others.max():
            return "iso"
        world = next(index for index, (along, _) in enumerate(self.canonical_axes()) if along == axis)
        return ("sag", "cor", "ax")[world]

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Grid:
        """Inverse of :meth:`to_json`."""
        shape: Sequence[int] = data["shape"]
        return cls(shape=(shape[0], shape[1], shape[2]), affine=np.array(data["affine"], dtype=float))


def transform_points(affine: npt.ArrayLike, points: npt.ArrayLike) -> FloatArray:
    """Apply a 4x4 affine to (..., 3) points."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
