"""Frames: how a session's images are placed on one reference grid. The one seam for other anatomies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess.align import extend_centerline, fit_centerline, frame_affine, measure_centers
from bids_scseg.recipe.model import GridSpec
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import FloatArray, Grid, transform_points

TICK_MM = 1e-6  # positions are rounded to this before they decide on a voxel more or less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlabEstimate:
    """What is known of one native image before the reference grid exists.

    Attributes
    ----------
    slab
        The image placed in the reference world; its ``serves`` is still open.
    cord
        (i, j, k) bool cleaned cord on the native grid; None where none was found or none is needed.
    weights
        (i, j, k) float32 partial-volume weights of the cord, or None to use ``cord``.
    """

    slab: Slab
    cord: npt.NDArray[np.bool_] | None = None
    weights: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """All that a frame is fitted to: placed slabs and the anchor's name."""

    anchor: str
    slabs: tuple[SlabEstimate, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Sequence names in order."""
        return tuple(dict.fromkeys(estimate.slab.key for estimate in self.slabs))

    def of(self, key: str) -> tuple[SlabEstimate, ...]:
        """The slabs of a sequence, uppermost first."""
        found = (estimate for estimate in self.slabs if estimate.slab.key == key)
        return tuple(sorted(found, key=lambda estimate: estimate.slab.index))

    @property
    def reference(self) -> Slab:
        """The anchor's uppermost slab, whose axes the grid takes."""
        slabs = self.of(self.anchor)
        if not slabs:
            raise GeometryError(f"no image of the anchor {self.anchor}", expected="at least one")
        return slabs[0].slab


def reference_axes(grid: Grid) -> FloatArray:
    """Orthonormal axes of a lattice in closest canonical order and direction.

    Parameters
    ----------
    grid
        Native lattice, stored in any orientation.

    Returns
    -------
    (3, 3) float64
        Columns point towards right, anterior, superior, as closely as the lattice's own axes do. A sheared
        lattice gives the nearest rotation.
    """
    columns = [grid.axes[:, axis] * sign for axis, sign in grid.canonical_axes()]
    left, _, right = np.linalg.svd(np.stack(columns, axis=1))
    return np.asarray(left @ right)


# -- centerline ------------------------------------------------------------------------------------


def sequence_centers(estimates: Sequence[SlabEstimate], axes: FloatArray) -> tuple[FloatArray, ...]:
    """Cord centres of all slabs of one sequence: s (n,), xy (n, 2), area (n,), as :func:`measure_centers`."""
    parts = []
    for estimate in estimates:
        cord = estimate.weights if estimate.weights is not None else estimate.cord
        if cord is not None:
            parts.append(measure_centers(cord, estimate.slab.grid, axes, xfm=estimate.slab.xfm))
    if not parts:
        return np.zeros(0), np.zeros((0, 2)), np.zeros(0)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def cord_extent(estimates: Sequence[SlabEstimate], axes: FloatArray) -> tuple[float, float]:
    """(low, high) mm along s that the cord masks occupy, voxels in full.

    Raises
    ------
    CordNotFoundError
        If there is no mask at all.
    """
    ends: list[float] = []
    for estimate in estimates:
        if estimate.cord is None or not estimate.cord.any():
            continue
        row = frame_affine(estimate.slab.grid, axes, xfm=estimate.slab.xfm)[2]
        s = np.argwhere(estimate.cord) @ row[:3] + row[3]
        half = float(np.abs(row[:3]).sum()) / 2
        ends += [float(s.min()) - half, float(s.max()) + half]
    if not ends:
        raise CordNotFoundError("no cord mask in any sequence", expected="at least one")
    return min(ends), max(ends)


def fit_centerline_frame(estimates: Estimates, spec: GridSpec) -> Geometry:
    """The cord's frame: every sequence's centerline runs through the middle of the window.

    Parameters
    ----------
    estimates
        Placed slabs with cleaned cords; sequences without any cord are not allowed here.
    spec
        Grid of the recipe.

    Returns
    -------
    Geometry
        Grid along the anchor's axes; S-I extent = union of the cord masks + margin at each end, starting on
        a multiple of the spacing; in the middle of the window the mean of the anchor's centerline.

    Raises
    ------
    CordNotFoundError
        If a sequence has no cord in any of its slabs.
    """
    axes = reference_axes(estimates.reference.grid)
    fitted: dict[str, Centerline] = {}
    for key in estimates.keys:
        s, xy, area = sequence_centers(estimates.of(key), axes)
        if s.size == 0:
            raise CordNotFoundError(f"no cord in any image of {key}", expected="a cord mask")
        fitted[key] = fit_centerline(s, xy, area_mm2=area)
    low, high = cord_extent(estimates.slabs, axes)
    extent = (low - spec.margin_mm, high + spec.margin_mm)
    line = fitted[estimates.anchor]
    grid = _place_grid(axes, spec, middle=line.xy_mm.mean(axis=0), extent=extent, inside=estimates.reference)
    lines = extend_centerline(fitted, anchor=estimates.anchor, s_range=extent)
    bare = Geometry(
        frame="centerline",
        anchor=estimates.anchor,
        grid=grid,
        slabs=tuple(estimate.slab for estimate in estimates.slabs),
        centerlines=lines,
    )
    return _share_seams(bare)


def _place_grid(
    axes: FloatArray, spec: GridSpec, *, middle: FloatArray, extent: tuple[float, float], inside: Slab
) -> Grid:
    """Grid with its in-plane middle at ``middle`` and slices on multiples of the spacing."""
    step = spec.spacing_mm
    first = int(np.floor(round(extent[0] / step / TICK_MM) * TICK_MM))
    last = int(np.ceil(round(extent[1] / step / TICK_MM) * TICK_MM))
    window = spec.window_vox or _whole_window(axes, step, inside)
    corner = np.array([*(middle - (np.asarray(window) - 1) / 2 * step), first * step])
    affine = np.eye(4)
    affine[:3, :3] = axes * step
    affine[:3, 3] = axes @ corner
    return Grid(shape=(window[0], window[1], last - first + 1), affine=affine)


def _frame_corners(axes: FloatArray, slab: Slab) -> FloatArray:
    """(8, 3) outer corners of a slab, grid-frame mm."""
    return np.asarray(transform_points(np.linalg.inv(slab.xfm), slab.grid.corners()) @ axes)


def _whole_window(axes: FloatArray, step: float, slab: Slab) -> tuple[int, int]:
    corners = _frame_corners(axes, slab)
    size = np.ceil((np.ptp(corners, axis=0)) / step - TICK_MM).astype(int)
    return int(size[0]), int(size[1])


def slab_range(geometry: Geometry, slab: Slab) -> tuple[float, float] | None:
    """(low, high) mm along s where the centerline lies in the slab's field of view; None if nowhere."""
    covered = geometry.s_mm[covered_slices(geometry, slab)]
    return (float(covered[0]), float(covered[-1])) if covered.size else None


def covered_slices(geometry: Geometry, slab: Slab) -> npt.NDArray[np.bool_]:
    """(k,) bool: prepared slices whose middle lies in the slab's field of view."""
    shape = geometry.grid.shape
    middle = np.tile([(shape[0] - 1) / 2, (shape[1] - 1) / 2, 0.0], (shape[2], 1))
    middle[:, 2] = np.arange(shape[2])
    return slab.grid.contains(slab.to_index(geometry.to_world(middle, key=slab.key)))


def _share_seams(geometry: Geometry) -> Geometry:
    """Neighbouring slabs share their overlap (or the gap between them) half and half."""
    slabs: list[Slab] = []
    for key in geometry.keys:
        stack = geometry.slabs_of(key)
        seams = [_seam(geometry, upper, lower) for upper, lower in pairwise(stack)]
        seams = list(np.minimum.accumulate(seams)) if seams else []
        tops, bottoms = [np.inf, *seams], [*seams, -np.inf]
        for slab, low, high in zip(stack, bottoms, tops, strict=True):
            slabs.append(replace(slab, serves=(float(low), float(high))))
    return replace(geometry, slabs=tuple(slabs))


def _seam(geometry: Geometry, upper: Slab, lower: Slab) -> float:
    above, below = slab_range(geometry, upper), slab_range(geometry, lower)
    heights = [_frame_corners(geometry.grid.axes, slab)[:, 2] for slab in (upper, lower)]
    bottom = above[0] if above else float(heights[0].min())
    top = below[1] if below else float(heights[1].max())
    return (bottom + top) / 2


# -- box and rigid ---------------------------------------------------------------------------------


def fit_box(estimates: Estimates, spec: GridSpec) -> Geometry:
    """A plain box along the anchor's axes, without any shift.

    Parameters
    ----------
    estimates
        Placed slabs; cords are not needed.
    spec
        Grid of the recipe; without a window the anchor's whole field of view.

    Returns
    -------
    Geometry
        In-plane middle at the middle of the anchor's uppermost slab; S-I extent of all its slabs plus margin.
    """
    return _fit_straight(estimates, spec, frame="box")


def fit_rigid(estimates: Estimates, spec: GridSpec) -> Geometry:
    """Like :func:`fit_box` for sequences whose slabs carry rigid transforms to the anchor (brain)."""
    return _fit_straight(estimates, spec, frame="rigid")


def _fit_straight(estimates: Estimates, spec: GridSpec, *, frame: str) -> Geometry:
    axes = reference_axes(estimates.reference.grid)
    anchor = estimates.of(estimates.anchor)
    corners = np.concatenate([_frame_corners(axes, estimate.slab) for estimate in anchor])
    middle = _frame_corners(axes, estimates.reference)[:, :2].mean(axis=0)
    half = spec.spacing_mm / 2  # voxel centres start half a voxel inside the outer face
    extent = (corners[:, 2].min() + half - spec.margin_mm, corners[:, 2].max() - half + spec.margin_mm)
    grid = _place_grid(axes, spec, middle=middle, extent=extent, inside=estimates.reference)
    slabs = tuple(estimate.slab for estimate in estimates.slabs)
    return _share_seams(Geometry(frame=frame, anchor=estimates.anchor, grid=grid, slabs=slabs))


FRAMES: dict[str, Callable[[Estimates, GridSpec], Geometry]] = {
    "centerline": fit_centerline_frame,
    "box": fit_box,
    "rigid": fit_rigid,
}
