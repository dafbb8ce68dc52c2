"""The one map between prepared space and every native image, and its inverse.

prepared (i, j, k) → offset from the cord's centerline at that height → world → slab's rigid → native voxel.

The centerline shift is a shear, so volumes are preserved and the map is invertible to rounding.
Images are sampled once, linearly (cubic rings across 3–5 mm slices); maps go back as means over native
voxels' footprints (centre sampling alone loses thin lesions in thick slices).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.grid import FloatArray, Grid, frozen, transform_points
from bids_scseg.space.resample import broadcast_affine, footprint_offsets, sample_linear

JSON_VERSION = 1
RIGID_TOLERANCE = 1e-3  # of a slab transform that went through files (ours)
MIN_FEATHER_MM = 1e-3  # narrower blends are hard seams (ours; far below any voxel)
BLOCK_SLICES = 64  # slices mapped at once; bounds memory to some 10 MB for windows
BLOCK_VOXELS = 500_000  # and voxels, of slices as large as those of whole images: about 60 MB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slab:
    """One native image of a sequence, placed in the reference world.

    Attributes
    ----------
    key
        Sequence name.
    index
        Number within the sequence, 0 = uppermost.
    file
        Where it comes from (path relative to the dataset, or any identifier).
    grid
        Native lattice.
    xfm : (4, 4) float64
        Reference world mm → this slab's world mm (rigid; identity unless registered).
    scale
        Factor on the intensities that makes neighbouring slabs agree.
    serves
        (low, high) mm along s for which this slab is preferred, half open; infinite at the outer ends.
    """

    key: str
    index: int
    file: str
    grid: Grid
    xfm: FloatArray = field(default_factory=lambda: np.eye(4))
    scale: float = 1.0
    serves: tuple[float, float] = (-np.inf, np.inf)

    def __post_init__(self) -> None:
        object.__setattr__(self, "xfm", frozen(self.xfm))
        if not _is_rigid(self.xfm):
            raise GeometryError("slab transform is not rigid", file=self.file, expected="a 4x4 rigid matrix")

    def to_index(self, ras: npt.ArrayLike) -> FloatArray:
        """(..., 3) reference world mm to native voxel indices."""
        return self.grid.to_index(transform_points(self.xfm, ras))

    def to_world(self, ijk: npt.ArrayLike) -> FloatArray:
        """(..., 3) native voxel indices to reference world mm."""
        return transform_points(np.linalg.inv(self.xfm), self.grid.to_world(ijk))

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON; infinite ends become null."""
        ends = [float(end) if np.isfinite(end) else None for end in self.serves]
        return {
            "key": self.key,
            "index": self.index,
            "file": self.file,
            "grid": self.grid.to_json(),
            "xfm": self.xfm.tolist(),
            "scale": self.scale,
            "serves": ends,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Slab:
        """Inverse of :meth:`to_json`."""
        low, high = data["serves"]
        return cls(
            key=data["key"],
            index=int(data["index"]),
            file=data["file"],
            grid=Grid.from_json(data["grid"]),
            xfm=np.array(data["xfm"], dtype=float),
            scale=float(data["scale"]),
            serves=(-np.inf if low is None else float(low), np.inf if high is None else float(high)),
        )


def _is_rigid(xfm: FloatArray) -> bool:
    """Whether a matrix turns and moves, and does nothing else."""
    if xfm.shape != (4, 4) or not np.isfinite(xfm).all():
        return False
    turn = xfm[:3, :3]
    off = max(np.abs(turn.T @ turn - np.eye(3)).max(), np.abs(xfm[3] - (0, 0, 0, 1)).max())
    return bool(off <= RIGID_TOLERANCE and np.linalg.det(turn) > 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Part of a lattice; within a slice the map to a slab is affine: indices come by broadcasting.

    ``affine`` (4, 4) maps indices of the lattice to the world, ``corner`` (4, 4) those within the block, of
    shape ``size``, to the lattice's; ``shift`` (k, 3) moves its slices, mm; ``up`` (3,) points along S-I.
    """

    affine: FloatArray
    corner: FloatArray
    size: tuple[int, int, int]
    shift: FloatArray
    up: FloatArray

    def height(self) -> FloatArray:
        """(i, j, k) position along the S-I axis, mm."""
        rows = np.zeros((4, 4))
        rows[2] = self.up @ self.affine[:3] @ self.corner
        return broadcast_affine(rows, self.size, np.zeros(3))[2] + self.shift @ self.up

    def index(self, slab: Slab) -> FloatArray:
        """(i, j, k, 3) native voxel indices of a slab."""
        to_native = np.linalg.inv(slab.grid.affine) @ slab.xfm
        moved = self.shift @ to_native[:3, :3].T
        axes = broadcast_affine(to_native @ self.affine @ self.corner, self.size, np.zeros(3))
        return np.stack([axes[axis] + moved[:, axis] for axis in range(3)], axis=-1)


def _blocks(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    """Ranges of the first and third index that make up a lattice, each of a bounded number of voxels.

    Whole slices where they are small; a sagittal image may have few but large ones.
    """
    rows = min(max(BLOCK_VOXELS // shape[1], 1), shape[0])
    slices = min(max(BLOCK_VOXELS // (rows * shape[1]), 1), BLOCK_SLICES)
    for k in range(0, shape[2], slices):
        for i in range(0, shape[0], rows):
            yield slice(i, min(i + rows, shape[0])), slice(k, min(k + slices, shape[2]))


def _fuse(
    block: _Block, slabs: tuple[Slab, ...], images: Sequence[npt.NDArray[np.generic]], feather_mm: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Values and coverage of a block: by the seams' weights, and where no preferred slab covers, by any."""
    s = block.height()
    preferred, fallback = np.zeros((2, 2, *block.size))
    for slab, image in zip(slabs, images, strict=True):
        index = block.index(slab)
        inside = slab.grid.contains(index)
        if not inside.any():
            continue
        found = sample_linear(image, index[inside]) * slab.scale
        weight = seam_weight(s[inside], slab.serves, feather_mm)
        for total, share in ((preferred, weight), (fallback, np.ones_like(weight))):
            total[0][inside] += share * found
            total[1][inside] += share
    total = np.where(preferred[1] > 0, preferred, fallback)
    covered = total[1] > 0
    values = np.divide(total[0], total[1], out=np.zeros(block.size), where=covered)
    return values.astype(np.float32), covered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Geometry:
    """Everything that places the images of one session: small, and written as JSON.

    Attributes
    ----------
    frame
        Name of the frame that was fitted (``centerline``, ``rigid``, ``box``).
    anchor
        Sequence whose world is the reference world.
    grid
        Reference grid with orthogonal axes.
    slabs
        All native images.
    centerlines
        By sequence name; a sequence without one is not shifted (frames other than ``centerline``).
    """

    frame: str
    anchor: str
    grid: Grid
    slabs: tuple[Slab, ...]
    centerlines: Mapping[str, Centerline] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slabs", tuple(self.slabs))
        object.__setattr__(self, "centerlines", MappingProxyType(dict(self.centerlines)))
        axes = self.grid.axes
        if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
            raise GeometryError("reference grid is sheared", expected="orthogonal axes")

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Geometry) else NotImplemented

    # -- structure ---------------------------------------------------------------------------------

    @property
    def keys(self) -> tuple[str, ...]:
        """Sequence names present, in the order of the slabs."""
        return tuple(dict.fromkeys(slab.key for slab in self.slabs))

    def slabs_of(self, key: str) -> tuple[Slab, ...]:
        """The slabs of a sequence, uppermost first."""
        return tuple(sorted((s for s in self.slabs if s.key == key), key=lambda s: s.index))

    def lattice_in_world(self, grid: Grid, *, file: str = "") -> Slab:
        """Any lattice as a slab: in the world of the image `file`, else in the reference world.

        Parameters
        ----------
        grid
            The lattice.
        file
            As in :attr:`Slab.file`; empty or unknown: the reference world, along the anchor's centerline.
        """
        for slab in self.slabs:
            if file and slab.file == file:
                return replace(slab, grid=grid)
        return Slab(key=self.anchor, index=0, file=file, grid=grid)

    @property
    def axis_mm(self) -> FloatArray:
        """(2,) float64: in-plane middle of the grid, mm, grid frame; the cord's centre lands there."""
        shape = np.asarray(self.grid.shape)
        middle = np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2, 0.0])
        return np.asarray((self.grid.axes.T @ self.grid.to_world(middle))[:2])

    @property
    def s_mm(self) -> FloatArray:
        """(k,) float64: position of each prepared slice along the S-I axis, mm, grid frame."""
        start = float((self.grid.axes.T @ self.grid.affine[:3, 3])[2])
        return np.asarray(start + np.arange(self.grid.shape[2]) * self.grid.spacing[2])

    # -- points ------------------------------------------------------------------------------------

    def height(self, ras: npt.ArrayLike) -> FloatArray:
        """(..., 3) reference world mm to (...) position s along the grid's S-I axis, mm."""
        return np.asarray(np.asarray(ras, dtype=np.float64) @ self.grid.axes[:, 2])

    def _shift(self, key: str, s_mm: FloatArray) -> FloatArray:
        line = self.centerlines.get(key)
        if line is None:
            return np.zeros((*np.shape(s_mm), 3))
        offset = line.at(s_mm) - self.axis_mm
        return np.asarray(offset @ self.grid.axes[:, :2].T)

    def to_world(self, ijk: npt.ArrayLike, *, key: str) -> FloatArray:
        """(..., 3) prepared indices of a sequence to reference world mm."""
        straight = self.grid.to_world(ijk)
        return straight + self._shift(key, self.height(straight))

    def to_prepared(self, ras: npt.ArrayLike, *, key: str) -> FloatArray:
        """(..., 3) reference world mm to prepared indices; the inverse of :meth:`to_world`."""
        world = np.asarray(ras, dtype=np.float64)
        return self.grid.to_index(world - self._shift(key, self.height(world)))

    # -- images ------------------------------------------------------------------------------------

    def apply(
        self, images: Sequence[npt.NDArray[np.generic]], *, key: str, feather_mm: float = 0.0
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Bring the slabs of one sequence to the prepared grid, by one linear interpolation.

        Parameters
        ----------
        images
            One array per slab of that sequence, uppermost first, in native shape.
        key
            Sequence name.
        feather_mm
            Width of the blend at a seam; 0 switches from one slab to the other.

        Returns
        -------
        volume : (i, j, k) float32
            Values; 0 where no slab covers.
        coverage : (i, j, k) bool
            Where a slab has data. Zero padding is not data.
        """
        return self.sample(images, key=key, grid=None, feather_mm=feather_mm)

    def sample(
        self,
        images: Sequence[npt.NDArray[np.generic]],
        *,
        key: str,
        grid: Grid | None,
        feather_mm: float = 0.0,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Fuse the slabs of one sequence on a lattice of the reference world (None: prepared space)."""
        slabs = self.slabs_of(key)
        if len(slabs) != len(images):
            raise GeometryError(
                f"{len(images)} images for {len(slabs)} slabs of {key}", expected="one per slab"
            )
        lattice = self.grid if grid is None else grid
        volume, coverage = np.zeros(lattice.shape, np.float32), np.zeros(lattice.shape, bool)
        for rows, part in _blocks(lattice.shape):
            block = self._block(lattice, rows, part, key=key if grid is None else None)
            volume[rows, :, part], coverage[rows, :, part] = _fuse(block, slabs, images, feather_mm)
        return volume, coverage

    def _block(self, lattice: Grid, rows: slice, part: slice, *, key: str | None) -> _Block:
        """Rows and slices of a lattice; with a key, moved along that sequence's centerline."""
        k = np.arange(part.start, part.stop)
        index = np.stack([np.zeros_like(k), np.zeros_like(k), k], axis=1)
        shift = (
            np.zeros((k.size, 3)) if key is None else self._shift(key, self.height(lattice.to_world(index)))
        )
        corner = np.eye(4)
        corner[:3, 3] = rows.start, 0, part.start
        return _Block(
            affine=lattice.affine,
            corner=corner,
            size=(rows.stop - rows.start, lattice.shape[1], k.size),
            shift=shift,
            up=self.grid.axes[:, 2],
        )

    def restore(self, volume: npt.NDArray[np.generic], slab: Slab) -> npt.NDArray[np.float32]:
        """Bring a prepared map to a slab's native grid, as the mean over each voxel's footprint.

        Parameters
        ----------
        volume : (i, j, k)
            Map in prepared space.
        slab
            One of this geometry's slabs.

        Returns
        -------
        float32 array of the slab's shape; 0 outside the prepared window.
        """
        return self._restore(volume, slab.grid, key=slab.key, xfm=slab.xfm)

    def restore_onto(
        self, volume: npt.NDArray[np.generic], *, key: str, grid: Grid
    ) -> npt.NDArray[np.float32]:
        """Like :meth:`restore`, onto any lattice in the reference world, along a sequence's centerline."""
        return self._restore(volume, grid, key=key, xfm=np.eye(4))

    def _restore(
        self, volume: npt.NDArray[np.generic], grid: Grid, *, key: str, xfm: FloatArray
    ) -> npt.NDArray[np.float32]:
        if volume.shape != self.grid.shape:
            raise GeometryError(f"map of shape {volume.shape}", expected=f"{self.grid.shape}")
        step = float(self.grid.spacing.min())
        offsets = footprint_offsets(grid.spacing, step)
        to_native = np.linalg.inv(grid.affine) @ xfm
        out = np.zeros(grid.shape, np.float32)
        for start in range(0, self.grid.shape[2], BLOCK_SLICES):
            box = self._native_box(to_native, grid, slice(start, start + BLOCK_SLICES), key=key)
            if box is not None:
                # Neighbouring blocks meet in the same native voxels; each adds its own slices' share.
                out[box] += self._footprint_mean(
                    volume, box, offsets, start=start, key=key, to_native=to_native
                )
        return out

    def _native_box(
        self, to_native: FloatArray, grid: Grid, part: slice, *, key: str
    ) -> tuple[slice, slice, slice] | None:
        """Piece of a native lattice that some prepared slices can reach; None if they miss it."""
        ni, nj, nk = self.grid.shape
        ends = [(-1.0, float(ni)), (-1.0, float(nj)), range(part.start - 1, min(part.stop, nk) + 1)]
        index = np.stack(np.meshgrid(*(np.array(list(end), float) for end in ends), indexing="ij"), axis=-1)
        native = transform_points(to_native, self.to_world(index.reshape(-1, 3), key=key))
        low = np.maximum(np.floor(native.min(axis=0) + 0.5).astype(int), 0)
        high = np.minimum(np.ceil(native.max(axis=0) - 0.5).astype(int) + 1, grid.shape)
        if (high <= low).any():
            return None
        return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))

    def _footprint_mean(
        self,
        volume: npt.NDArray[np.generic],
        box: tuple[slice, slice, slice],
        offsets: FloatArray,
        *,
        start: int,
        key: str,
        to_native: FloatArray,
    ) -> npt.NDArray[np.float32]:
        """Contribution of prepared slices from ``start`` on to the means over the voxels of a box."""
        to_straight = np.linalg.inv(self.grid.affine) @ np.linalg.inv(to_native)
        corner = np.array([side.start for side in box], dtype=np.float64)
        size = tuple(side.stop - side.start for side in box)
        low, high = (-0.5 if start == 0 else start - 0.5), start + BLOCK_SLICES - 0.5
        total = np.zeros(size, np.float64)
        for offset in offsets:
            straight = broadcast_affine(to_straight, size, corner + offset)
            own = (straight[2] >= low) & (straight[2] < high)
            index = np.stack([axis[own] for axis in straight], axis=-1)
            total[own] += sample_linear(volume, self._unbend(index, key))
        return (total / len(offsets)).astype(np.float32)

    def _unbend(self, index: FloatArray, key: str) -> FloatArray:
        """(n, 3) indices of the straight lattice to prepared indices: the centerline's shift taken off."""
        line = self.centerlines.get(key)
        if line is not None:
            s = self.s_mm[0] + index[:, 2] * self.grid.spacing[2]
            index[:, :2] -= (line.at(s) - self.axis_mm) / self.grid.spacing[:2]
        return index

    def fused_grid(self, key: str) -> Grid:
        """Lattice of a sequence's uppermost slab, extended to enclose all its slabs."""
        slabs = self.slabs_of(key)
        if len(slabs) == 1:
            return slabs[0].grid
        first = slabs[0].grid
        corners = np.concatenate(
            [transform_points(np.linalg.inv(slab.xfm), slab.grid.corners()) for slab in slabs]
        )
        index = first.to_index(corners)
        low = np.minimum(np.floor(index.min(axis=0) + 0.5 + 1e-3), 0).astype(int)
        high = np.maximum(np.ceil(index.max(axis=0) - 0.5 - 1e-3), np.asarray(first.shape) - 1).astype(int)
        affine = first.affine.copy()
        affine[:3, 3] = first.to_world(low)
        shape = high - low + 1
        return Grid(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=affine)

    # -- JSON --------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "version": JSON_VERSION,
            "frame": self.frame,
            "anchor": self.anchor,
            "grid": self.grid.to_json(),
            "slabs": [slab.to_json() for slab in self.slabs],
            "centerlines": {key: line.to_json() for key, line in self.centerlines.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Geometry:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        GeometryError
            If the data is not a geometry of this version.
        """
        try:
            if data["version"] != JSON_VERSION:
                raise GeometryError(f"geometry version {data['version']}", expected=str(JSON_VERSION))
            return cls(
                frame=data["frame"],
                anchor=data["anchor"],
                grid=Grid.from_json(data["grid"]),
                slabs=tuple(Slab.from_json(slab) for slab in data["slabs"]),
                centerlines={k: Centerline.from_json(v) for k, v in data["centerlines"].items()},
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise GeometryError(f"not a geometry ({type(error).__name__}: {error})") from error


def seam_weight(s_mm: FloatArray, serves: tuple[float, float], feather_mm: float) -> FloatArray:
    """Share of a slab at each position.

    Parameters
    ----------
    s_mm : (n,)
        Positions along the S-I axis.
    serves
        Half-open range of the slab.
    feather_mm
        Width over which neighbouring slabs blend; 0 for a hard seam.

    Returns
    -------
    (n,) float64 in 0–1; two abutting ranges sum to 1 at every position.
    """
    low, high = serves
    if feather_mm < MIN_FEATHER_MM:
        return ((s_mm >= low) & (s_mm < high)).astype(np.float64)
    up = np.clip((s_mm - low) / feather_mm + 0.5, 0, 1) if np.isfinite(low) else np.ones_like(s_mm)
    down = np.clip((high - s_mm) / feather_mm + 0.5, 0, 1) if np.isfinite(high) else np.ones_like(s_mm)
    return np.asarray(np.minimum(up, down))
