"""Slabs of one sequence, chained to the uppermost one by header or by a registration that earns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import GeometryError
from bids_scseg.space.grid import FloatArray, Grid, frozen, transform_points
from bids_scseg.space.resample import sample_linear

BoolArray = npt.NDArray[np.bool_]
Image = npt.NDArray[np.generic]

MAX_SHIFT_MM = 8.0  # larger moves are failures, not patients (specification)
MAX_ROTATION_DEG = 5.0  # likewise (specification)
MIN_OVERLAP_MM = 15.0  # less overlap holds no vertebra with its discs, so nothing fixes S-I, ours
SIDE_MM = 45.0  # crop round the cord, in plane: keeps vertebral bodies and spinous processes, ours
ALONG_MM = 10.0  # crop beyond the overlap, along S-I: more than the largest accepted move, ours
NEAR_CORD_MM = 15.0  # cord and surroundings whose medians set the intensity scale, ours
MAX_SCALE = 5.0  # larger ratios of medians are not a gain setting, ours
MIN_POINTS = 200  # fewer samples say nothing about similarity or medians, ours
# Slabs that do not overlap have nothing in common but the cord, which looks alike over some centimetres.
FACING_MM = 30.0  # so much cord at the ends that face each other: longer than most lesions, ours
FACING_GAP_MM = 30.0  # ends further apart lie in another part of the coil's field, ours
FACING_VOXELS = 50  # of fewer the median is off by a fifth of the cord's spread or more, ours
SAMPLE_POINTS = 200_000  # samples are thinned to about this many
OVERLAP, CORD, UNMATCHED = "overlap", "cord", "unmatched"  # what gave the factor on intensities
FAILED = "the registration failed"  # so begins the reason of a slab whose registration came to nothing
MIN_GAIN = 1e-4  # similarity must rise by more than rounding
FAILURES = (RuntimeError, ValueError, GeometryError)  # of ANTs (two kinds), or of a crop without a voxel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlabFit:
    """How one slab was placed.

    Attributes
    ----------
    xfm : (4, 4) float64
        Reference world mm (that of the uppermost slab) to this slab's world mm.
    scale
        Factor on intensities.
    scale_by
        What gave it: ``overlap`` with the neighbour above, the ``cord`` at the ends that face each other, or
        ``unmatched`` where neither could and the neighbour's factor holds; empty if none was looked for.
    accepted
        True if a registration moved it; False where the header stands.
    reason
        Why, in words.
    similarity_before, similarity_after
        Pearson correlation with the neighbour above in the overlap; NaN where not measured.
    shift_mm, rotation_deg
        Move against the neighbour above that the registration found, at the middle of the overlap, else 0.
    overlap_mm
        Length of the overlap with the neighbour above.
    """

    xfm: FloatArray
    scale: float = 1.0
    scale_by: str = ""
    accepted: bool = False
    reason: str = ""
    similarity_before: float = float("nan")
    similarity_after: float = float("nan")
    shift_mm: float = 0.0
    rotation_deg: float = 0.0
    overlap_mm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "xfm", frozen(self.xfm))


def uppermost_first(grids: Sequence[Grid]) -> list[int]:
    """Positions of the grids, highest middle (world S) first; ties keep their order."""
    heights = [float(grid.corners()[:, 2].mean()) for grid in grids]
    return sorted(range(len(grids)), key=lambda n: (-round(heights[n], 3), n))


def canonical_view(image: Image, grid: Grid) -> tuple[Image, Grid]:
    """The same image with its axes in closest canonical order and direction (a view, nothing is copied)."""
    axes = grid.canonical_axes()
    view = np.transpose(np.asarray(image), [axis for axis, _ in axes])
    view = view[tuple(slice(None, None, sign) for _, sign in axes)]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([grid.affine[:3, axis] * sign for axis, sign in axes], axis=1)
    first = np.zeros(3)
    for axis, sign in axes:
        first[axis] = 0 if sign > 0 else grid.shape[axis] - 1
    affine[:3, 3] = grid.to_world(first)
    return view, Grid(shape=(view.shape[0], view.shape[1], view.shape[2]), affine=affine)


def chain_slabs(
    images: Sequence[Image],
    grids: Sequence[Grid],
    cords: Sequence[BoolArray | None],
    *,
    register: bool,
    seed: int = 0,
) -> list[SlabFit]:
    """Place the slabs of one sequence, each relative to its upper neighbour.

    Parameters
    ----------
    images
        Native volumes, in any order.
    grids
        Their lattices.
    cords
        Their cleaned cord masks, or None.
    register
        Whether lower slabs may be registered rigidly (sagittal sequences).
    seed
        Of the registration's random sampling.

    Returns
    -------
    list of SlabFit
        In the order given. The uppermost slab stays where it is.
    """
    order = uppermost_first(grids)
    # One storage order for all, so that sampling does not depend on how a file is stored.
    stored = [canonical_view(image, grid) for image, grid in zip(images, grids, strict=True)]
    masks = [
        None if cord is None else np.asarray(canonical_view(cord, grid)[0], bool)
        for cord, grid in zip(cords, grids, strict=True)
    ]
    fits: dict[int, SlabFit] = {order[0]: SlabFit(xfm=np.eye(4), reason="uppermost slab")}
    for upper, lower in pairwise(order):
        pair = _Pair(
            upper=stored[upper][0],
            lower=stored[lower][0],
            upper_grid=stored[upper][1],
            lower_grid=stored[lower][1],
            upper_cord=masks[upper],
            lower_cord=masks[lower],
            middle=_cord_points(cords, grids, upper, lower),
        )
        step = _place(pair, register=register, seed=seed)
        fits[lower] = _chained(fits[upper], step)
    return [fits[n] for n in range(len(grids))]


def _chained(above: SlabFit, step: SlabFit) -> SlabFit:
    return replace(step, xfm=step.xfm @ above.xfm, scale=step.scale * above.scale)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    """Two neighbouring slabs with their cords, if these are known.

    ``middle`` has (n, 3) world points along the cord (or along the middle, without masks).
    """

    upper: Image
    lower: Image
    upper_grid: Grid
    lower_grid: Grid
    upper_cord: BoolArray | None
    lower_cord: BoolArray | None
    middle: FloatArray


def _cord_points(
    cords: Sequence[BoolArray | None], grids: Sequence[Grid], upper: int, lower: int
) -> FloatArray:
    """World mm of cord voxels of both slabs; middle voxels of the upper one where there is no mask."""
    masks = [(n, cords[n]) for n in (upper, lower)]
    points = [grids[n].to_world(np.argwhere(mask)) for n, mask in masks if mask is not None]
    found = np.concatenate(points) if points else np.zeros((0, 3))
    if found.size:
        return found
    shape = np.asarray(grids[upper].shape)
    steps = np.linspace(0, 1, 50)[:, None]
    along = np.zeros(3)
    along[grids[upper].canonical_axes()[2][0]] = 1
    return grids[upper].to_world((shape - 1) * ((1 - along) * 0.5 + along * steps))


def overlap_range(upper: Grid, lower: Grid) -> tuple[float, float]:
    """(low, high) mm of world S that both fields of view span at their middle; low ≥ high if apart."""
    bottom, top = _middle_ends(upper)[0], _middle_ends(lower)[1]
    return bottom, top


def _middle_ends(grid: Grid) -> tuple[float, float]:
    """World S of the middles of the lower and upper face."""
    axis, sign = grid.canonical_axes()[2]
    middle = (np.asarray(grid.shape) - 1) / 2
    ends = []
    for index in (-0.5, grid.shape[axis] - 0.5):
        face = middle.copy()
        face[axis] = index
        ends.append(float(grid.to_world(face)[2]))
    return (ends[0], ends[1]) if sign > 0 else (ends[1], ends[0])


def _place(pair: _Pair, *, register: bool, seed: int) -> SlabFit:
    """Place the lower slab relative to the upper one; by its header where a registration fails."""
    low, high = overlap_range(pair.upper_grid, pair.lower_grid)
    overlap = max(high - low, 0.0)
    points, near = _overlap_points(pair, low, high)
    stay = np.eye(4)
    if not register or overlap < MIN_OVERLAP_MM or len(points) < MIN_POINTS:
        reason = "not registered by recipe" if not register else f"overlap of {overlap:.0f} mm is too short"
        scale, by = _scale(pair, points[near], stay)
        return SlabFit(xfm=stay, scale=scale, scale_by=by, reason=reason, overlap_mm=overlap)
    before = similarity(pair.upper, pair.upper_grid, pair.lower, pair.lower_grid, points=points, xfm=stay)
    try:
        xfm = _register(pair, low - ALONG_MM, high + ALONG_MM, seed=seed)
    except FAILURES as error:
        scale, by = _scale(pair, points[near], stay)
        return SlabFit(
            xfm=stay,
            scale=scale,
            scale_by=by,
            reason=f"{FAILED}: {_one_line(error)}",
            similarity_before=before,
            overlap_mm=overlap,
        )
    after = similarity(pair.upper, pair.upper_grid, pair.lower, pair.lower_grid, points=points, xfm=xfm)
    shift, rotation = rigid_size(xfm, at=points.mean(axis=0))
    problem = _problem(before, after, shift, rotation)
    chosen = stay if problem else xfm
    scale, by = _scale(pair, points[near], chosen)
    return SlabFit(
        xfm=chosen,
        scale=scale,
        scale_by=by,
        accepted=problem is None,
        reason=problem or "registered",
        similarity_before=before,
        similarity_after=after,
        shift_mm=shift,
        rotation_deg=rotation,
        overlap_mm=overlap,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _problem(before: float, after: float, shift: float, rotation: float) -> str | None:
    """Why a registration is refused; None if it is accepted."""
    if shift >= MAX_SHIFT_MM:
        return f"registration moved it by {shift:.1f} mm (limit {MAX_SHIFT_MM:.0f})"
    if rotation >= MAX_ROTATION_DEG:
        return f"registration turned it by {rotation:.1f} degrees (limit {MAX_ROTATION_DEG:.0f})"
    if not after > before + MIN_GAIN:
        return "registration did not raise the similarity in the overlap"
    return None


def rigid_size(xfm: FloatArray, *, at: FloatArray) -> tuple[float, float]:
    """Displacement in mm of a point (3,) and rotation angle in degrees of a rigid transform."""
    shift = float(np.linalg.norm(transform_points(xfm, at) - at))
    cosine = np.clip((np.trace(xfm[:3, :3]) - 1) / 2, -1, 1)
    return shift, float(np.degrees(np.arccos(cosine)))


def _overlap_points(pair: _Pair, low: float, high: float) -> tuple[FloatArray, BoolArray]:
    """World points of upper voxels in the overlap round the cord, and which of them are near the cord."""
    lower_end, upper_end = _crop_span(pair.upper_grid, pair.middle, low, high)
    if (upper_end <= lower_end).any():
        return np.zeros((0, 3)), np.zeros(0, bool)
    count = int(np.prod(upper_end - lower_end))
    step = max(round((count / SAMPLE_POINTS) ** (1 / 3)), 1)
    axes = [np.arange(a, b, step) for a, b in zip(lower_end, upper_end, strict=True)]
    ijk = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = pair.upper_grid.to_world(ijk)
    inside = (points[:, 2] > low) & (points[:, 2] < high)
    points = points[inside]
    middle = _middle_at(pair.middle, points[:, 2])
    return points, np.linalg.norm(points[:, :2] - middle, axis=1) <= NEAR_CORD_MM


def _middle_at(middle: FloatArray, heights: FloatArray) -> FloatArray:
    """(n, 2) mean R, A of the cord's points per mm of world S, interpolated."""
    tick = np.round(middle[:, 2]).astype(int)
    ticks, inverse, count = np.unique(tick, return_inverse=True, return_counts=True)
    means = [np.bincount(inverse, middle[:, axis]) / count for axis in (0, 1)]
    return np.stack([np.interp(heights, ticks, mean) for mean in means], axis=1)


def _crop_span(
    grid: Grid, middle: FloatArray, low: float, high: float
) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Half-open voxel range of the box round the cord between two heights, within the grid."""
    here = middle[(middle[:, 2] >= low) & (middle[:, 2] <= high)]
    centre = here if len(here) else middle
    box_low = np.array([*(centre[:, :2].min(axis=0) - SIDE_MM), low])
    box_high = np.array([*(centre[:, :2].max(axis=0) + SIDE_MM), high])
    choice = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(-1, 3)
    index = grid.to_index(np.where(choice, box_high, box_low))
    start = np.clip(np.floor(index.min(axis=0)).astype(int), 0, grid.shape)
    stop = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 0, grid.shape)
    return start, stop


def similarity(
    upper: Image, upper_grid: Grid, lower: Image, lower_grid: Grid, *, points: FloatArray, xfm: FloatArray
) -> float:
    """Pearson correlation of two slabs of one contrast at world points of the upper one.

    Parameters
    ----------
    upper, lower : (i, j, k)
        Native volumes.
    upper_grid, lower_grid
        Their lattices.
    points : (n, 3)
        Upper world mm.
    xfm : (4, 4)
        Upper world to lower world.

    Returns
    -------
    float
        NaN where fewer than 200 points fall into both, or one side is constant. Mutual information drives the
        registration, so this is an independent witness.
    """
    a, b = _paired(upper, upper_grid, lower, lower_grid, points=points, xfm=xfm)
    if a.size < MIN_POINTS or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _paired(
    upper: Image, upper_grid: Grid, lower: Image, lower_grid: Grid, *, points: FloatArray, xfm: FloatArray
) -> tuple[FloatArray, FloatArray]:
    first, second = upper_grid.to_index(points), lower_grid.to_index(transform_points(xfm, points))
    both = upper_grid.contains(first) & lower_grid.contains(second)
    values = sample_linear(upper, first[both]), sample_linear(lower, second[both])
    return values[0].astype(np.float64), values[1].astype(np.float64)


def _scale(pair: _Pair, points: FloatArray, xfm: FloatArray) -> tuple[float, str]:
    """Ratio of medians (upper / lower) near the cord in the overlap, else in the cords that face each other.

    Returns
    -------
    (factor, what gave it); 1 and ``unmatched`` where it cannot be told.
    """
    a, b = _paired(pair.upper, pair.upper_grid, pair.lower, pair.lower_grid, points=points, xfm=xfm)
    by = OVERLAP
    if a.size < MIN_POINTS:
        a, b = _facing_cords(pair)
        by = CORD
    if not a.size:
        return 1.0, UNMATCHED
    above, below = float(np.median(a)), float(np.median(b))
    if above <= 0 or below <= 0 or not 1 / MAX_SCALE <= above / below <= MAX_SCALE:
        return 1.0, UNMATCHED
    return above / below, by


def _facing_cords(pair: _Pair) -> tuple[FloatArray, FloatArray]:
    """Values of the upper slab's cord at its lower end and of the lower one's at its upper end.

    Of the cord's inside where both ends have enough of it, else of the whole cord. Both are empty if a slab
    has no mask, the ends are too far apart, or they hold too few voxels.
    """
    nothing = np.zeros(0), np.zeros(0)
    if pair.upper_cord is None or pair.lower_cord is None:
        return nothing
    bottom = _cord_ends(pair.upper_cord, pair.upper_grid)[0]
    top = _cord_ends(pair.lower_cord, pair.lower_grid)[1]
    if not bottom - top <= FACING_GAP_MM:
        return nothing
    for choose in (_inside, np.asarray):
        upper, lower = choose(pair.upper_cord), choose(pair.lower_cord)
        above = _values_between(pair.upper, pair.upper_grid, upper, -np.inf, bottom + FACING_MM)
        below = _values_between(pair.lower, pair.lower_grid, lower, top - FACING_MM, np.inf)
        if min(above.size, below.size) >= FACING_VOXELS:
            return above, below
    return nothing


def _cord_ends(cord: BoolArray, grid: Grid) -> tuple[float, float]:
    """(low, high) mm of world S of a mask in canonical view, voxels in full; (inf, -inf) for an empty one."""
    s = grid.to_world(np.argwhere(cord))[:, 2]
    half = abs(float(grid.affine[2, 2])) / 2
    return float(s.min(initial=np.inf)) - half, float(s.max(initial=-np.inf)) + half


def _inside(cord: BoolArray) -> BoolArray:
    """A cord without its outermost voxels in each axial plane, whose share of fluid differs between slabs."""
    from scipy.ndimage import binary_erosion, generate_binary_structure

    cross = generate_binary_structure(2, 1)[..., None]
    return np.asarray(binary_erosion(cord, structure=cross, border_value=1))


def _values_between(image: Image, grid: Grid, cord: BoolArray, low: float, high: float) -> FloatArray:
    """Values in the cord between two heights (world S, mm)."""
    ijk = np.argwhere(cord)
    s = grid.to_world(ijk)[:, 2]
    kept = ijk[(s >= low) & (s <= high)]
    return np.asarray(image[tuple(kept.T)], dtype=np.float64)


# -- ANTs ------------------------------------------------------------------------------------------

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world has x to the left and y to the back


def _register(pair: _Pair, low: float, high: float, *, seed: int) -> FloatArray:
    fixed = crop_near(pair.upper, pair.upper_grid, pair.middle, low, high)
    moving = crop_near(pair.lower, pair.lower_grid, pair.middle, low, high)
    return register_rigid(*fixed, *moving, seed=seed)


def crop_near(
    image: Image, grid: Grid, middle: FloatArray, low: float, high: float
) -> tuple[npt.NDArray[np.float32], Grid]:
    """An image round the cord, with vertebrae, between two heights.

    Parameters
    ----------
    image : (i, j, k)
        Volume; may be cut to nothing, which gives an empty array and an error of the grid.
    grid
        Its lattice.
    middle : (n, 3)
        World mm along the cord.
    low, high
        World S, mm.
    """
    start, stop = _crop_span(grid, middle, low, high)
    part = image[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(start)
    shape = (int(part.shape[0]), int(part.shape[1]), int(part.shape[2]))
    return np.ascontiguousarray(part, dtype=np.float32), Grid(shape=shape, affine=affine)


def register_rigid(
    fixed: npt.NDArray[np.float32],
    fixed_grid: Grid,
    moving: npt.NDArray[np.float32],
    moving_grid: Grid,
    *,
    seed: int = 0,
) -> FloatArray:
    """Rigid registration by ANTs (mutual information), starting from the headers, repeatable.

    Parameters
    ----------
    fixed, moving : (i, j, k) float32
        Volumes.
    fixed_grid, moving_grid
        Their lattices.
    seed
        Of the metric's sampling.

    Returns
    -------
    (4, 4) float64
        Fixed world RAS mm to moving world RAS mm.

    Raises
    ------
    RuntimeError, ValueError
        If ANTs fails: it has no solution to give then.
    """
    import tempfile

    import ants

    _fix_seed(seed)
    with tempfile.TemporaryDirectory(prefix="scseg-ants-") as folder:
        found = ants.registration(
            _to_ants(fixed, fixed_grid),
            _to_ants(moving, moving_grid),
            type_of_transform="Rigid",
            initial_transform="Identity",
            outprefix=f"{folder}/slab_",
            aff_metric="mattes",
        )
        transforms = [ants.read_transform(str(name)) for name in found["fwdtransforms"]]
    matrix = np.eye(4)
    for transform in transforms:
        matrix = matrix @ _affine_from_itk(transform.parameters, transform.fixed_parameters)
    return np.asarray(LPS_FROM_RAS @ matrix @ LPS_FROM_RAS)


def _fix_seed(seed: int) -> None:
    """Make ANTs repeat itself, without touching the global random states of this process."""
    import random

    import ants

    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - saved, not drawn from
    # random_seed= alone is ignored, and ANTs takes 0 for "seed from the clock".
    ants.config.set_ants_deterministic(True, abs(seed) + 1)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)


def _to_ants(data: npt.NDArray[np.float32], grid: Grid) -> object:
    import ants

    affine = LPS_FROM_RAS @ grid.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        data,
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )


def _affine_from_itk(parameters: npt.ArrayLike, fixed_parameters: npt.ArrayLike) -> FloatArray:
    """ITK's matrix, translation and centre of rotation as one (4, 4): y = A (x - c) + t + c."""
    values, centre = np.asarray(parameters, dtype=np.float64), np.asarray(fixed_parameters, dtype=np.float64)
    out = np.eye(4)
    out[:3, :3] = values[:9].reshape(3, 3)
    out[:3, 3] = values[9:] + centre[:3] - out[:3, :3] @ centre[:3]
    return out
