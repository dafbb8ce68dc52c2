"""What of a mask is cord: clean-up, doubts about found ones, partial volume, edges of the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.space.grid import FloatArray, Grid

BoolArray = npt.NDArray[np.bool_]

CLOSING_MM = 1.0  # radius of the in-plane closing (specification)
PART_GAP_MM = 20.0  # mask parts along the cord are joined across gaps up to here: one vertebra, ours
PART_DRIFT = 0.5  # lateral mm allowed per mm of such a gap: a course of 27 degrees, the cord's steepest, ours
PART_SLICES = 3.5  # gaps of two thick slices are joined as well, ours
LONG_GAP_MM = (
    60.0  # so far apart a large part still continues the cord: three vertebrae without contrast, ours
)
LONG_PART_MM3 = 500.0  # such a part: 8 mm of cord of 60 mm2; mouth and airway show smaller ones or lie aside
LONG_DRIFT = 0.2  # lateral mm per mm of what a gap is longer than 20 mm, ours
PART_TOUCH_MM = 3.0  # lateral distance at which parts side by side count as one: half a cord radius, ours
PART_MIN_MM3 = 40.0  # smaller parts are noise: less than one thin slice of cord (0.8 mm x 60 mm2), ours
PART_LIMIT = 50  # candidate parts looked at, largest first, ours
SECTION_MM2 = 150.0  # of a section no more counts when parts are weighed: the widest cord has 100 to 120 mm2

FOUND_MM3 = (
    200.0  # a found cord is larger, and longer than so many mm; false ones in images without cord were
)
FOUND_MM = 20.0  # 127 to 244 mm3 and 9 to 12 mm long. Half of a shorter field of view is enough, ours
FOUND_MM2 = 20.0  # in a thin image, this area in every section is enough instead, ours
SWOLLEN_MM2 = 180.0  # a found section above this, and twice the median of its cord, is none of cord, ours
FINE_MM = 2.0  # roots are looked for in sections no thicker: of sagittal slabs and volumes, ours
THIN_MM2 = 15.0  # a section thinner than this may be where cord ends and roots begin: the conus' tip, ours
THIN_OVER_MM = 4.0  # the area is smoothed over so much, a section more or less
SURE = 0.98  # the network is sure of a section in which a voxel reaches this: of cord in nearly all, ours
SURE_MM = 20.0  # so much is sure in cord, and seldom in roots, ours
SURE_OF_MM = 25.0  # of so much on end
BEFORE_MM = 50.0  # what is compared with: this much above the thin place
ROOTS_SHARE = 0.8  # roots have in the mean less than this share of the area above the thin place, ours


def clean_cord(mask: npt.NDArray[np.generic], grid: Grid, *, file: object = None) -> BoolArray:
    """Keep the one cord of a mask or probability map.

    Parameters
    ----------
    mask : (i, j, k)
        Mask, or probability in 0-1, on the native grid.
    grid
        Native lattice.
    file
        Named in the error.

    Returns
    -------
    (i, j, k) bool
        Parts (26 neighbours) that continue each other along S-I, the longest and fullest such chain, closed
        by 1 mm in the axial plane. Gaps are up to 20 mm or two slices long, 60 mm before parts of 500 mm³.

    Raises
    ------
    CordNotFoundError
        If no voxel reaches 0.5.
    GeometryError
        If mask and grid differ in shape.
    """
    if mask.shape != grid.shape:
        raise GeometryError(f"cord mask of shape {mask.shape}", file=file, expected=f"{grid.shape}")
    binary: BoolArray = np.asarray(mask.astype(np.float32, copy=False) > 0.5)
    if not binary.any():
        raise CordNotFoundError(
            "no spinal cord found in this image",
            file=file,
            expected="a cord mask with at least one voxel",
            remedy="check that the image shows the cord, or provide a mask in a derivatives folder",
        )
    box = _bounding_box(binary)
    out = np.zeros(grid.shape, bool)
    out[box] = _close_in_plane(_main_parts(binary[box], grid), grid)
    return out


def _bounding_box(binary: BoolArray) -> tuple[slice, slice, slice]:
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(binary.any(axis=others))
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    return spans[0], spans[1], spans[2]


def found_cord(mask: npt.NDArray[np.generic], grid: Grid, *, file: object = None) -> BoolArray:
    """:func:`clean_cord` of a mask that a program found, refused where it is no cord.

    Parameters
    ----------
    mask, grid, file
        As for :func:`clean_cord`.

    Returns
    -------
    (i, j, k) bool
        See :func:`credible_cord`.

    Raises
    ------
    CordNotFoundError
        As :func:`clean_cord` and :func:`credible_cord`.
    """
    return credible_cord(clean_cord(mask, grid, file=file), mask, grid, file=file)


def credible_cord(
    cord: BoolArray, mask: npt.NDArray[np.generic], grid: Grid, *, file: object = None
) -> BoolArray:
    """Of a cord that a program found what can be one.

    Parameters
    ----------
    cord : (i, j, k) bool
        Result of :func:`clean_cord`.
    mask : (i, j, k)
        What it was cleaned from; with probabilities, cord is told from roots and from chance by them.
    grid
        Native lattice.
    file
        Where it comes from, for the message.

    Returns
    -------
    (i, j, k) bool
        Without sections that are far too large for a cord (over 180 mm² and twice the others' median): the
        brainstem, or fluid. Without roots of the cauda equina, see :func:`roots_start`.

    Raises
    ------
    CordNotFoundError
        If nothing is left, or what is left is smaller than 200 mm³ or shorter than 20 mm (in a short field of
        view: than half of it): programs find so much in images that show no cord. Of probabilities, sections
        count of which the network is sure (`SURE`): of what it finds in noise it is of few.
    """
    cord = _without_swellings(_without_roots(cord, mask, grid), grid)
    along = grid.canonical_axes()[2][0]
    thickness = float(grid.spacing[along])
    field_mm = thickness * grid.shape[along]
    length = thickness * _sections_found(cord, mask, grid)
    volume = float(cord.sum()) * grid.voxel_volume
    if volume < min(FOUND_MM3, FOUND_MM2 * field_mm) or length < min(FOUND_MM, field_mm / 2) - 1e-6:
        raise CordNotFoundError(
            "no spinal cord found in this image (what looks most like it has "
            f"{volume:.0f} mm3 over {length:.0f} mm{' that are sure' if _has_fractions(mask) else ''})",
            file=file,
            expected=f"at least {FOUND_MM3:.0f} mm3 over {FOUND_MM:.0f} mm of cord",
            remedy="check that the image shows the cord, or provide a mask in a derivatives folder",
        )
    return cord


def _sections_found(cord: BoolArray, mask: npt.NDArray[np.generic], grid: Grid) -> int:
    """Sections of which a network is sure; without probabilities, sections between the mask's ends."""
    if _has_fractions(mask):
        return int((_surest(cord, mask, grid) >= SURE).sum())
    sections = np.flatnonzero(_section_areas(cord, grid))
    return int(sections[-1] - sections[0] + 1) if sections.size else 0


def _surest(cord: BoolArray, mask: npt.NDArray[np.generic], grid: Grid) -> npt.NDArray[np.floating]:
    """(n,) highest probability in each plane of the index axis closest to S-I; 0 where there is no cord."""
    along = grid.canonical_axes()[2][0]
    others = tuple(axis for axis in range(3) if axis != along)
    return np.asarray(np.where(cord, np.nan_to_num(mask), 0).max(axis=others), np.float32)


def cut_below(before: BoolArray, after: BoolArray, grid: Grid) -> float:
    """How much of a mask was taken away at its lower end, for whatever reason; gaps do not count.

    Parameters
    ----------
    before, after : (i, j, k) bool
        Masks that are not empty.
    grid
        Native lattice.

    Returns
    -------
    mm along S-I: what sections with mask below the end that is left have together.
    """
    along, sign = grid.canonical_axes()[2]
    had, has = (_section_areas(mask, grid)[:: int(sign)] > 0 for mask in (before, after))
    return float(had[: int(np.argmax(has))].sum() * grid.spacing[along])


def near(weights: npt.NDArray[np.float32], cord: BoolArray) -> npt.NDArray[np.float32]:
    """Probabilities in a cord and, as far as they are partial volume, one voxel round it.

    Parameters
    ----------
    weights : (i, j, k) float32
        Probabilities in 0-1 that the cord was cleaned from.
    cord : (i, j, k) bool
        Result of :func:`found_cord`.

    Returns
    -------
    (i, j, k) float32
        0 elsewhere. What exceeds 0.5 outside the cord was taken away as none, such as a swollen section at
        its end, and must not come back when the probabilities are cleaned again.
    """
    from scipy.ndimage import binary_dilation

    grown = binary_dilation(cord, structure=np.ones((3, 3, 3), bool))
    return np.asarray(np.where(cord | (grown & (weights <= 0.5)), weights, np.float32(0)))


def _without_swellings(cord: BoolArray, grid: Grid) -> BoolArray:
    along = grid.canonical_axes()[2][0]
    area = _section_areas(cord, grid)
    usual = float(np.median(area[area > 0]))
    return _without_sections(cord, area > max(SWOLLEN_MM2, 2 * usual), along)


def _without_sections(cord: BoolArray, unwanted: BoolArray, along: int) -> BoolArray:
    if not unwanted.any():
        return cord
    shape = [1, 1, 1]
    shape[along] = -1
    return np.asarray(cord & ~unwanted.reshape(shape))


def _without_roots(cord: BoolArray, mask: npt.NDArray[np.generic], grid: Grid) -> BoolArray:
    """Without roots below; a mask without probabilities, or in thick sections, stays as it is."""
    along, sign = grid.canonical_axes()[2]
    if grid.spacing[along] > FINE_MM + 1e-3 or not _has_fractions(mask):
        return cord
    from_above = slice(None, None, -sign)
    area = np.minimum(_section_areas(cord, grid), SECTION_MM2)[from_above]  # a brain on top weighs little
    surest = _surest(cord, mask, grid)[from_above]
    unwanted = np.arange(len(area)) >= roots_start(area, surest, float(grid.spacing[along]))
    return _without_sections(cord, unwanted[from_above], along)


def roots_start(area: FloatArray, surest: npt.NDArray[np.floating], thickness: float) -> int:
    """Where roots of the cauda equina begin that lead on from the cord's lower end.

    A network that is in doubt tells roots from cord that comes back after a hole in the mask better than
    their area does: roots gather to bundles as large as the conus, and healthy cord is half as large in
    the chest as in the neck.

    Parameters
    ----------
    area : (n,) float
        Area of each section in mm², from above; 0 where there is no mask.
    surest : (n,) float
        The highest probability in each section.
    thickness
        Distance of sections, mm.

    Returns
    -------
    int
        The first section of roots; ``n`` if there are none. It is thinner than `THIN_MM2`, and half of the
        mask's volume or more lies above it. Nowhere below it the network is sure over `SURE_MM` of
        `SURE_OF_MM` on end, and somewhere in the `BEFORE_MM` above it is. The sections of mask below have in
        the mean less than `ROOTS_SHARE` of the median area there. Below the neck that holds of cord, too:
        there certainty alone tells it from roots, and less than `SURE_MM` of cord are none.
    """
    from scipy.ndimage import uniform_filter1d

    present = np.flatnonzero(area > 0)
    if not present.size:
        return len(area)
    first, last = int(present[0]), int(present[-1])
    middle = int(np.searchsorted(np.cumsum(area), area.sum() / 2))
    # an odd number of sections: as many above as below
    smooth = uniform_filter1d(area, 1 + 2 * int(THIN_OVER_MM / 2 / thickness + 1e-6), mode="nearest")
    sure = (area > 0) & (surest >= SURE)
    for at in range(middle + 1, last + 1):
        if smooth[at] >= THIN_MM2:
            continue
        above, below = slice(max(first, at - round(BEFORE_MM / thickness)), at), slice(at, last + 1)
        if _sure_mm(sure[below], thickness) >= SURE_MM or _sure_mm(sure[above], thickness) < SURE_MM:
            continue
        rest, cord = area[below], area[above]
        if rest[rest > 0].mean() < ROOTS_SHARE * np.median(cord[cord > 0]):
            return at
    return len(area)


def _sure_mm(sure: BoolArray, thickness: float) -> float:
    """How much of the surest `SURE_OF_MM` on end is sure, mm."""
    known = np.concatenate([[0], np.cumsum(sure)])
    reach = min(round(SURE_OF_MM / thickness), len(sure))
    return float((known[reach:] - known[: len(known) - reach]).max() * thickness)


def _has_fractions(mask: npt.NDArray[np.generic]) -> bool:
    """Whether it is a map of probabilities rather than a mask."""
    if not np.issubdtype(mask.dtype, np.floating):
        return False
    values = np.asarray(mask, np.float32)
    return bool(((values > 0) & (values < 1)).any())


def _main_parts(binary: BoolArray, grid: Grid) -> BoolArray:
    """The parts that make up the cord: of all chains along S-I the one that weighs most."""
    from scipy.ndimage import find_objects, label

    labels, count = label(binary, structure=np.ones((3, 3, 3), bool))
    if count == 1:
        return binary
    sizes = np.bincount(labels.ravel())[1:]
    ranked = np.argsort(-sizes, kind="stable")[:PART_LIMIT]
    order = [int(n) for n in ranked if sizes[n] * grid.voxel_volume >= PART_MIN_MM3 or n == ranked[0]]
    boxes = find_objects(labels)
    points = {n: _part_points(labels, n, boxes[n], grid) for n in order}
    large = {n for n in order if sizes[n] * grid.voxel_volume >= LONG_PART_MM3}
    slice_mm = float(grid.spacing[grid.canonical_axes()[2][0]])
    chains, rest = [], order
    while rest:
        chains.append(_join_parts(rest, points, large=large, slice_mm=slice_mm))
        rest = [n for n in rest if n not in chains[-1]]
    masks = (np.isin(labels, [n + 1 for n in chain]) for chain in chains)
    return max(masks, key=lambda mask: _weight(mask, grid))


def _weight(mask: BoolArray, grid: Grid) -> float:
    """Volume in mm³ of which each axial section counts up to what a cord may have."""
    thickness = grid.spacing[grid.canonical_axes()[2][0]]
    return float(np.minimum(_section_areas(mask, grid), SECTION_MM2).sum() * thickness)


def _section_areas(mask: BoolArray, grid: Grid) -> FloatArray:
    """(n,) mm² in each plane of the index axis closest to S-I."""
    along = grid.canonical_axes()[2][0]
    others = tuple(axis for axis in range(3) if axis != along)
    return np.asarray(mask.sum(axis=others) * (grid.voxel_volume / grid.spacing[along]))


def _part_points(
    labels: npt.NDArray[np.int32], number: int, box: tuple[slice, ...], grid: Grid
) -> FloatArray:
    """World mm (up to the box's origin, which cancels) of a component's voxels."""
    ijk = np.argwhere(labels[box] == number + 1) + [span.start for span in box]
    return np.asarray(ijk @ grid.affine[:3, :3].T)


def _join_parts(
    order: list[int], points: dict[int, FloatArray], *, large: set[int], slice_mm: float
) -> list[int]:
    """The first part and all that continue it, one after the other."""
    from scipy.spatial import cKDTree

    kept, rest = [order[0]], list(order[1:])
    grown = [order[0]]
    while grown and rest:
        trees = [(cKDTree(points[n]), n in large) for n in grown]
        grown = [
            n
            for n in rest
            if any(
                _continues(points[n], tree, far=far and n in large, slice_mm=slice_mm) for tree, far in trees
            )
        ]
        kept += grown
        rest = [n for n in rest if n not in grown]
    return kept


def _continues(points: FloatArray, tree: object, *, far: bool, slice_mm: float) -> bool:
    """Whether a part lies close to a kept one, or in its continuation along S-I."""
    distance, nearest = tree.query(points)  # type: ignore[attr-defined]
    best = int(np.argmin(distance))
    step = points[best] - tree.data[nearest[best]]  # type: ignore[attr-defined]
    along, lateral = abs(step[2]), float(np.hypot(step[0], step[1]))
    short = max(PART_GAP_MM, PART_SLICES * slice_mm)
    drift = PART_DRIFT * min(along, short) + LONG_DRIFT * max(along - short, 0)
    return bool(along <= max(short, LONG_GAP_MM if far else 0) and lateral <= PART_TOUCH_MM + drift)


def _close_in_plane(binary: BoolArray, grid: Grid) -> BoolArray:
    from scipy.ndimage import binary_closing

    radius = np.floor(CLOSING_MM / grid.spacing + 1e-6).astype(int)
    radius[grid.canonical_axes()[2][0]] = 0
    if not radius.any():
        return binary
    steps = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in radius), indexing="ij"), axis=-1)
    ball = np.linalg.norm(steps * grid.spacing, axis=-1) <= CLOSING_MM + 1e-6
    padded = np.pad(binary, [(r, r) for r in radius])
    closed = binary_closing(padded, structure=ball)
    inner = tuple(slice(r, n - r) for r, n in zip(radius, padded.shape, strict=True))
    return np.asarray(closed[inner] | binary)


def touches_edge(mask: BoolArray, grid: Grid) -> float:
    """Share of the cord's slices in which it reaches the side of the field of view.

    Parameters
    ----------
    mask : (i, j, k) bool
        Cleaned cord.
    grid
        Native lattice.

    Returns
    -------
    float in 0-1; 0 for an empty mask. The cord leaves every image at the top or the bottom; those faces do
    not count.
    """
    touched, present = edge_slices(mask, grid)
    return touched / max(present, 1)


def edge_slices(mask: BoolArray, grid: Grid) -> tuple[int, int]:
    """Slices in which the cord reaches the side of the field of view, and all that have cord.

    Parameters
    ----------
    mask, grid
        As for :func:`touches_edge`.
    """
    along = grid.canonical_axes()[2][0]
    slices = np.moveaxis(mask, along, 0)
    present = slices.any(axis=(1, 2))
    sides = [slices[:, 0, :], slices[:, -1, :], slices[:, :, 0], slices[:, :, -1]]
    # A single slice has no sides along its own axis: both faces are the image itself.
    sides = [side for side, size in zip(sides, np.repeat(slices.shape[1:], 2), strict=True) if size > 1]
    touched = np.zeros(len(slices), bool)
    for side in sides:
        touched |= side.any(axis=1)
    return int(touched.sum()), int(present.sum())


def partial_weights(mask: npt.NDArray[np.generic], cord: BoolArray) -> npt.NDArray[np.float32] | None:
    """Partial-volume weights of a cleaned cord.

    Parameters
    ----------
    mask : (i, j, k)
        Mask or probability the cord was cleaned from.
    cord : (i, j, k) bool
        Result of :func:`clean_cord`.

    Returns
    -------
    (i, j, k) float32 in 0-1, or None for a mask without fractions
        Probabilities in the cord and one voxel round it, at least 0.5 inside.
    """
    from scipy.ndimage import binary_dilation

    if not np.issubdtype(mask.dtype, np.floating):
        return None
    box = tuple(slice(max(span.start - 1, 0), span.stop + 1) for span in _bounding_box(cord))
    values = np.clip(np.nan_to_num(mask[box].astype(np.float32)), 0, 1)
    if ((values == 0) | (values == 1)).all():
        return None
    inside = cord[box]
    rim = binary_dilation(inside, structure=np.ones((3, 3, 3), bool)) & ~inside
    weights = np.zeros(mask.shape, np.float32)
    weights[box] = np.where(inside, np.maximum(values, 0.5), np.where(rim, values, 0))
    return weights
