"""Two sessions of one person, brought together rigidly in native world by image, vertebrae included.

The anchors' images are registered in both directions and the two results averaged, so neither session is the
reference; how far the two differ tells how well the registration is determined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bids_scseg.preprocess.fuse import (
    MIN_GAIN,
    SIDE_MM,
    crop_near,
    register_rigid,
    rigid_size,
    similarity,
)
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import FloatArray, Grid, frozen, transform_points

#: Raise it when the same images give another transform: cached ones are then computed again.
REALIGN_VERSION = "2"
# Limits; all ours.
MIN_OVERLAP_MM = 30.0  # of cord in both images: two vertebrae, so that S-I is not settled by one disc
MAX_SHIFT_MM = 15.0  # from the start, at the middle of the cord: the step between starts is 8 mm
MAX_ROTATION_DEG = 15.0  # likewise: how otherwise a head is laid down
MAX_INVERSE_MM = 1.0  # between the two directions, on average along the cord: a third of a sagittal slice
MAX_APART_MM = 3.0  # between the two centerlines, median: half the width of a cord is 5 to 6 mm
MIN_SIMILARITY = 0.5  # correlation of the intensities round the cord; 0.87 and more seen where it was right
MAX_OFF_LEVEL_MM = 8.0  # between the levels' place and the images' along the cord: half a cervical vertebra
COARSE_MM = 2.0  # voxels that are registered: within 0.4 mm of 1 mm's result, a sixth of its time
# The search for a start.
STARTS_MM = np.arange(-64.0, 65.0, 8.0)  # along the cord: half a vertebra apart, or a start finds none
NODE_MM = 4.0  # between points along the cord
MESH_MM = 5.0  # between points at which images are compared


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timepoint:
    """A session to be brought together with another.

    Attributes
    ----------
    image : (i, j, k)
        The anchor, slabs fused, in the reference world.
    grid
        Its lattice.
    geometry
        The session's.
    origin_mm
        World position (3,) on the centerline of a place of the anatomy that both sessions know; None where
        that is not known.
    """

    image: npt.NDArray[np.float32]
    grid: Grid
    geometry: Geometry
    origin_mm: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Realignment:
    """How two sessions lie to each other.

    Attributes
    ----------
    xfm : (4, 4) float64
        Reference world mm of the first session to that of the second.
    accepted
        Whether places may be compared by it.
    registered
        False where the start stands: the registration found nothing better.
    reason
        Why, in words.
    similarity_before, similarity_after
        Correlation of the intensities round the cord at the start, and by ``xfm``; NaN where not measured.
    inverse_mm
        Mean distance along the cord between the results of the two directions; NaN without registration.
    apart_mm
        Median distance of the first centerline, moved, from the second.
    overlap_mm
        Length of cord in both images.
    shift_mm, rotation_deg
        Size of ``xfm`` at the middle of the cord.
    """

    xfm: FloatArray = field(default_factory=lambda: np.eye(4))
    accepted: bool = False
    registered: bool = False
    reason: str = ""
    similarity_before: float = float("nan")
    similarity_after: float = float("nan")
    inverse_mm: float = float("nan")
    apart_mm: float = float("nan")
    overlap_mm: float = 0.0
    shift_mm: float = 0.0
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "xfm", frozen(self.xfm))


def cord_line(geometry: Geometry) -> FloatArray:
    """(n, 3) reference world mm along the anchor's centerline, from the lower to the upper measured end."""
    line = geometry.centerlines.get(geometry.anchor)
    if line is None or not line.measured.any():
        return np.zeros((0, 3))
    seen = line.s_mm[line.measured]
    s = np.arange(seen[0], seen[-1] + 1e-6, NODE_MM)
    return np.asarray(np.column_stack([line.at(s), s]) @ geometry.grid.axes.T)


def realign(first: Timepoint, second: Timepoint, *, seed: int = 0) -> Realignment:
    """Register two sessions rigidly, and accept the result or refuse it.

    Starts are the headers and the two centerlines laid upon each other, in steps along the cord, and so that
    a place of the anatomy agrees that both sessions know. The start at which the images round the cord are
    most alike is registered in both directions (ANTs, mutual information, ±45 mm round the cord).

    Parameters
    ----------
    first, second
        The sessions; their anchors are of the same sequence.
    seed
        Of the registration's sampling.

    Returns
    -------
    Realignment
        Exchanging the sessions inverts ``xfm`` up to the choice of the start and what sampling does to the
        similarities.
    """
    lines = cord_line(first.geometry), cord_line(second.geometry)
    if min(len(line) for line in lines) < 2:
        return Realignment(reason="a session has no centerline")
    mesh = _mesh(first.grid, lines[0])
    start, before = _best_start(first, second, lines, mesh)
    overlap = _overlap(second.grid, lines[0], start)
    if overlap < MIN_OVERLAP_MM:
        return Realignment(
            xfm=start, overlap_mm=overlap, similarity_before=before,
            reason=f"only {overlap:.0f} mm of cord lie in both images",
        )  # fmt: skip
    found, inverse = _both_ways(first, second, lines[0], start, seed=seed)
    after = _similarity(first, second, mesh, found)
    middle = lines[0].mean(axis=0)
    trouble = _too_far(start, found, middle, inverse) or (
        None if after > before + MIN_GAIN else "the registration found nothing better than its start"
    )
    chosen, alike = (start, before) if trouble else (found, after)
    apart = _apart(transform_points(chosen, lines[0]), lines[1])
    refusal = _refusal(alike, apart, first, second, chosen)
    shift, rotation = rigid_size(chosen, at=middle)
    return Realignment(
        xfm=chosen,
        accepted=refusal is None,
        registered=trouble is None,
        reason="; ".join(words for words in (refusal, trouble) if words) or "registered",
        similarity_before=before,
        similarity_after=alike,
        inverse_mm=inverse,
        apart_mm=apart,
        overlap_mm=overlap,
        shift_mm=shift,
        rotation_deg=rotation,
    )


def _too_far(start: FloatArray, found: FloatArray, middle: FloatArray, inverse: float) -> str | None:
    """Why a registration is not taken; None if it may be."""
    shift, rotation = rigid_size(np.linalg.inv(start) @ found, at=middle)
    if inverse > MAX_INVERSE_MM:
        return f"the two directions of the registration differ by {inverse:.1f} mm"
    if shift >= MAX_SHIFT_MM or rotation >= MAX_ROTATION_DEG:
        return f"the registration moved by {shift:.0f} mm and {rotation:.0f} degrees from its start"
    return None


def _refusal(alike: float, apart: float, first: Timepoint, second: Timepoint, xfm: FloatArray) -> str | None:
    """Why places must not be compared by a transform; None if they may be."""
    if not alike >= MIN_SIMILARITY:
        return f"the images are not alike (correlation {alike:.2f}, from {MIN_SIMILARITY:g})"
    if apart > MAX_APART_MM:
        return f"the centerlines lie {apart:.1f} mm apart"
    if first.origin_mm is not None and second.origin_mm is not None:
        off = transform_points(xfm, first.origin_mm) - second.origin_mm
        along = abs(float(off[2]))
        if along > MAX_OFF_LEVEL_MM:
            return f"images and vertebral levels disagree by {along:.0f} mm along the cord"
    return None


# -- start -----------------------------------------------------------------------------------------


def _best_start(
    first: Timepoint, second: Timepoint, lines: tuple[FloatArray, FloatArray], mesh: FloatArray
) -> tuple[FloatArray, float]:
    """The start at which the images are most alike, and how alike they are there (NaN: nowhere)."""
    starts = list(_starts(first, second, lines))
    lengths = [_overlap(second.grid, lines[0], start) for start in starts]
    best, most = starts[int(np.argmax(lengths))], float("nan")
    for start, length in zip(starts, lengths, strict=True):
        if length < MIN_OVERLAP_MM:
            continue
        alike = _similarity(first, second, mesh, start)
        if np.isfinite(alike) and not alike <= most:
            best, most = start, alike
    return best, most


def _starts(
    first: Timepoint, second: Timepoint, lines: tuple[FloatArray, FloatArray]
) -> Iterable[FloatArray]:
    yield np.eye(4)
    if first.origin_mm is not None and second.origin_mm is not None:
        yield laid_upon(*lines, along_mm=float(second.origin_mm[2] - first.origin_mm[2]))
    for along in STARTS_MM.tolist():
        yield laid_upon(*lines, along_mm=along)


def laid_upon(line: FloatArray, other: FloatArray, *, along_mm: float) -> FloatArray:
    """Rigid transform that lays one centerline upon another, moved along the cord by so much.

    Parameters
    ----------
    line, other : (n, 3), (m, 3)
        World mm along the cords, ascending.
    along_mm
        How much higher (world S) a place of ``line`` lies in the world of ``other``.

    Returns
    -------
    (4, 4) float64. It tilts as little as it must and does not turn about the cord, of which a nearly straight
    line says nothing.
    """
    from scipy.spatial.transform import Rotation

    heights = line[:, 2] + along_mm
    inside = (heights >= other[0, 2]) & (heights <= other[-1, 2])
    own = line[inside] if inside.sum() >= 2 else line
    partner = np.column_stack([np.interp(own[:, 2] + along_mm, other[:, 2], other[:, n]) for n in range(3)])
    one, two = own[-1] - own[0], partner[-1] - partner[0]
    one, two = one / max(float(np.linalg.norm(one)), 1e-9), two / max(float(np.linalg.norm(two)), 1e-9)
    axis = np.cross(one, two)
    size = float(np.linalg.norm(axis))
    angle = float(np.arctan2(size, one @ two))
    turn = Rotation.from_rotvec(axis / size * angle if size > 1e-9 else np.zeros(3)).as_matrix()
    out = np.eye(4)
    out[:3, :3] = turn
    target = partner.mean(axis=0)
    target[2] = own[:, 2].mean() + along_mm
    out[:3, 3] = target - turn @ own.mean(axis=0)
    return out


def _mesh(grid: Grid, line: FloatArray) -> FloatArray:
    """(n, 3) world mm within an image, on a mesh of ±45 mm round the cord."""
    side = np.arange(-SIDE_MM, SIDE_MM + 1, MESH_MM)
    right, front = np.meshgrid(side, side, indexing="ij")
    offset = np.stack([right.ravel(), front.ravel(), np.zeros(right.size)], axis=1)
    points = (line[:, None, :] + offset).reshape(-1, 3)
    return np.asarray(points[grid.contains(grid.to_index(points))])


def _overlap(grid: Grid, line: FloatArray, xfm: FloatArray) -> float:
    """Length of a centerline that lies in another session's image, mm."""
    inside = grid.contains(grid.to_index(transform_points(xfm, line)))
    return float(inside.sum()) * NODE_MM


def _similarity(first: Timepoint, second: Timepoint, mesh: FloatArray, xfm: FloatArray) -> float:
    return similarity(first.image, first.grid, second.image, second.grid, points=mesh, xfm=xfm)


def _apart(line: FloatArray, other: FloatArray) -> float:
    """Median distance of points from a line, where their heights are within its ends."""
    inside = (line[:, 2] >= other[0, 2]) & (line[:, 2] <= other[-1, 2])
    if not inside.any():
        return float("inf")
    own = line[inside]
    partner = np.column_stack([np.interp(own[:, 2], other[:, 2], other[:, n]) for n in (0, 1)])
    return float(np.median(np.linalg.norm(own[:, :2] - partner, axis=1)))


# -- registration ----------------------------------------------------------------------------------


def _both_ways(
    first: Timepoint, second: Timepoint, line: FloatArray, start: FloatArray, *, seed: int
) -> tuple[FloatArray, float]:
    """Mean of both directions' transforms, first world to second world, and how far they differ, mm."""
    brought = Grid(shape=second.grid.shape, affine=np.linalg.inv(start) @ second.grid.affine)
    here = line[brought.contains(brought.to_index(line))]
    ends = float(here[:, 2].min()), float(here[:, 2].max())
    one = coarser(*crop_near(first.image, first.grid, here, *ends))
    two = coarser(*crop_near(second.image, brought, here, *ends))
    there = register_rigid(*one, *two, seed=seed)
    back = np.asarray(np.linalg.inv(register_rigid(*two, *one, seed=seed)), dtype=np.float64)
    apart = np.linalg.norm(transform_points(there, here) - transform_points(back, here), axis=1)
    middle = np.asarray(here.mean(axis=0), dtype=np.float64)
    return np.asarray(start @ mean_rigid(there, back, at=middle)), float(apart.mean())


def coarser(image: npt.NDArray[np.float32], grid: Grid) -> tuple[npt.NDArray[np.float32], Grid]:
    """Means over blocks of voxels, about 2 mm wide; the rest at the far sides is cut off."""
    block = np.minimum(np.maximum(np.round(COARSE_MM / grid.spacing).astype(int), 1), grid.shape)
    shape = np.asarray(grid.shape) // block
    cut = image[tuple(slice(0, int(n)) for n in shape * block)]
    parts = cut.reshape([int(n) for pair in zip(shape, block, strict=True) for n in pair])
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * block
    affine[:3, 3] = grid.to_world((block - 1) / 2)
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    return np.ascontiguousarray(parts.mean(axis=(1, 3, 5)), dtype=np.float32), Grid(shape=size, affine=affine)


def mean_rigid(one: FloatArray, other: FloatArray, *, at: FloatArray) -> FloatArray:
    """Mean of two rigid transforms (4, 4): of their rotations, and of where they take a point (3,)."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix([one[:3, :3], other[:3, :3]]).mean().as_matrix()
    out = np.eye(4)
    out[:3, :3] = turn
    out[:3, 3] = (transform_points(one, at) + transform_points(other, at)) / 2 - turn @ at
    return out
