"""Cord masks to centerlines: centre per slice, robust smoothing in mm, extension by consensus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import CordNotFoundError
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.grid import FloatArray, Grid, transform_points

BoolArray = npt.NDArray[np.bool_]

CORD_WIDTH_MM = 12.0  # widest adult cord, left to right (cervical enlargement, about 13 mm at most)
PARTIAL_AREA = 0.7  # an end slice with less of its neighbours' area is a partial section, ours
TILTED = (
    0.1  # tangent of the tilt (6 degrees) from which a straight cut leaves several partial sections, ours
)
TILTED_AREA = 0.9  # these must be nearly whole: a section that lacks 10 % is off by 0.4 mm
PARTIAL_REACH_MM = 10.0  # neighbours that define the area, ours

SMOOTH_MM = 4.0  # Gaussian scale of the local regression: below 0.1 mm bias at curvature radius 100 mm, ours
ROBUST_MM = 10.0  # scale of the first, robust fit: wider than any run of bad slices worth surviving, ours
OUTLIER_SCALES = 4.0  # rejected beyond so many robust standard deviations, ours
OUTLIER_MM = 2.0  # never rejected below this distance: half a thick sagittal slice is 1.7 mm, ours
MAD_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation of a normal distribution
L1_FLOOR_MM = 0.2  # residuals below this weigh alike in the robust fit, ours
L1_ROUNDS = 12
NODE_MM = 1.0  # distance of nodes (the contract: 1 mm or finer)
REACH_MM = 5.0  # a node this close to a good slice is measured, so gaps above 10 mm are not (specification)
RIDGE = 1e-4  # keeps the slope defined where the kernel holds a single slice


def measure_centers(
    mask: npt.NDArray[np.generic], grid: Grid, frame_axes: FloatArray, *, xfm: npt.ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Cord centre in every native plane that crosses it.

    The planes are those of the index axis closest to the frame's S-I axis, however the image was acquired.
    The centre of an oblique section of a tube lies on the tube's axis, so planes need not be perpendicular
    to the frame: each centre comes with its own position s, and nothing is binned.

    Parameters
    ----------
    mask : (i, j, k)
        Mask, or weights in 0-1 (partial volume), native grid.
    grid
        Native lattice.
    frame_axes : (3, 3) float64
        Columns are the reference grid's unit axes in reference world.
    xfm : (4, 4), optional
        Reference world mm to this image's world mm; identity if None.

    Returns
    -------
    s_mm : (n,) float64
        Increasing positions along the S-I axis, mm, grid frame.
    xy_mm : (n, 2) float64
        Centres, mm, grid frame.
    area_mm2 : (n,) float64
        Cord area in the plane perpendicular to the S-I axis, as for a cord along that axis (a cord that leans
        towards tilted planes looks larger); a weight, not a measurement.

    Empty arrays for an empty mask. Sections that are cut by the mask's ends are left out.
    """
    to_frame = frame_affine(grid, frame_axes, xfm=xfm)
    unit = to_frame[:3, :3] / grid.spacing
    axis = int(np.argmax(np.abs(unit[2])))
    weights = np.asarray(mask, dtype=np.float64) if mask.dtype != np.bool_ else mask
    total, index = _section_centers(weights, axis)
    q = transform_points(to_frame, index)
    # A tube along s crosses planes tilted by t at distances of spacing / cos t.
    area = total * grid.voxel_volume * abs(unit[2, axis]) / grid.spacing[axis]
    order = np.argsort(q[:, 2], kind="stable")
    s, xy, area = q[order, 2], q[order, :2], area[order]
    tilt = np.sqrt(max(1 - unit[2, axis] ** 2, 0.0)) / abs(unit[2, axis])
    share = PARTIAL_AREA if tilt < TILTED else TILTED_AREA
    keep = _whole_sections(s, area, reach_mm=CORD_WIDTH_MM * tilt + abs(to_frame[2, axis]), share=share)
    return s[keep], xy[keep], area[keep]


def frame_affine(grid: Grid, frame_axes: FloatArray, *, xfm: npt.ArrayLike | None = None) -> FloatArray:
    """(4, 4) float64: native voxel index to grid-frame mm, back through ``xfm`` (reference to slab world)."""
    rotation = np.eye(4)
    rotation[:3, :3] = frame_axes.T
    place = grid.affine if xfm is None else np.linalg.inv(np.asarray(xfm, dtype=np.float64)) @ grid.affine
    return np.asarray(rotation @ place)


def _section_centers(weights: npt.NDArray[np.generic], axis: int) -> tuple[FloatArray, FloatArray]:
    """Sum (n,) and centre (n, 3) in voxel indices of each plane that is not empty."""
    planes = np.moveaxis(weights, axis, 0)
    first, second = planes.sum(axis=2, dtype=np.float64), planes.sum(axis=1, dtype=np.float64)
    total = first.sum(axis=1)
    found = np.flatnonzero(total > 0)
    a = first[found] @ np.arange(first.shape[1]) / total[found]
    b = second[found] @ np.arange(second.shape[1]) / total[found]
    columns = np.insert(np.stack([a, b], axis=1), axis, found, axis=1)
    return total[found], columns


def _whole_sections(s: FloatArray, area: FloatArray, *, reach_mm: float, share: float) -> BoolArray:
    """Which sections are whole: at the ends, thin ones within reach of a tilted cut are dropped."""
    keep = np.ones(s.size, bool)
    if s.size < 4:
        return keep
    for order in (np.arange(s.size), np.arange(s.size)[::-1]):
        for position, n in enumerate(order[:-3]):
            inner = order[position + 1 :]
            near = inner[np.abs(s[inner] - s[n]) <= PARTIAL_REACH_MM]
            reference = float(np.median(area[near if near.size else inner[:1]]))
            if abs(s[n] - s[order[0]]) > reach_mm or area[n] >= share * reference:
                break
            keep[n] = False
    return keep


def fit_centerline(s_mm: FloatArray, xy_mm: FloatArray, *, area_mm2: FloatArray | None = None) -> Centerline:
    """Smooth line through cord centres, deaf to outlier slices.

    Parameters
    ----------
    s_mm : (n,) float64
        Positions along the S-I axis, mm; any order, repeats allowed (overlapping slabs).
    xy_mm : (n, 2) float64
        Centres, mm, grid frame.
    area_mm2 : (n,) float64, optional
        Cord areas; slices far below their neighbours count less.

    Returns
    -------
    Centerline
        Nodes every 1 mm or finer, reaching half a slice beyond the outer centres. Local linear regression
        with a Gaussian scale of 4 mm (or the slice distance, if larger); gaps are filled by monotone
        interpolation, and nodes more than 5 mm (or half a slice distance) from a good slice are not
        ``measured``. One slice gives one node.

    Raises
    ------
    CordNotFoundError
        Without any slice.
    """
    if s_mm.size == 0:
        raise CordNotFoundError("no slice shows the cord", expected="a cord mask with at least one voxel")
    order = np.argsort(s_mm, kind="stable")
    s, xy = s_mm[order], xy_mm[order]
    weights = _area_weights(area_mm2[order]) if area_mm2 is not None else np.ones(s.size)
    good = ~find_outliers(s, xy, weights=weights)
    s, xy, weights = s[good], xy[good], weights[good]
    spacing = _slice_distance(s)
    if s[-1] - s[0] < 1e-6:
        return Centerline(s_mm=s[:1], xy_mm=xy.mean(axis=0, keepdims=True), measured=np.ones(1, bool))
    half = min(spacing / 2, REACH_MM)
    low, high = s[0] - half, s[-1] + half
    nodes = np.linspace(low, high, int(np.ceil((high - low) / NODE_MM - 1e-9)) + 1)
    measured = _distance_to(nodes, s) <= max(REACH_MM, spacing / 2) + 1e-6
    centres = _local_line(nodes[measured], s, xy, weights=weights, scale_mm=max(SMOOTH_MM, spacing))
    return Centerline(s_mm=nodes, xy_mm=_fill(nodes, nodes[measured], centres), measured=measured)


def find_outliers(s_mm: FloatArray, xy_mm: FloatArray, *, weights: FloatArray | None = None) -> BoolArray:
    """(n,) bool: slices whose centre lies off the course of the others.

    The course is a local line in the least-absolute-deviations sense (10 mm scale); a slice is an outlier
    beyond 4 robust standard deviations and 2 mm. Fewer than four slices cannot vote, so none is an outlier.
    """
    if s_mm.size < 4:
        return np.zeros(s_mm.size, bool)
    prior = np.ones(s_mm.size) if weights is None else weights
    vote, scale_mm = prior, max(ROBUST_MM, 2 * _slice_distance(s_mm))
    kernel = _kernel(s_mm, s_mm, scale_mm=scale_mm)
    for _ in range(L1_ROUNDS):
        course = _solve_lines(kernel, s_mm, s_mm, xy_mm, weights=vote, scale_mm=scale_mm)
        residual = np.linalg.norm(xy_mm - course, axis=1)
        vote = prior / np.maximum(residual, L1_FLOOR_MM)
    sigma = MAD_TO_SIGMA * float(np.median(residual))
    return np.asarray(residual > max(OUTLIER_SCALES * sigma, OUTLIER_MM))


def _slice_distance(s: FloatArray) -> float:
    steps = np.diff(s)
    steps = steps[steps > 1e-3]
    return float(np.median(steps)) if steps.size else 0.0


def _area_weights(area: FloatArray) -> FloatArray:
    from scipy.ndimage import median_filter

    usual = np.maximum(median_filter(area, size=min(area.size, 9), mode="nearest"), 1e-6)
    return np.asarray(np.clip(area / usual, 0.05, 1.0))


def _distance_to(at: FloatArray, s: FloatArray) -> FloatArray:
    right = np.clip(np.searchsorted(s, at), 1, s.size - 1) if s.size > 1 else np.zeros(at.size, int)
    return np.asarray(np.minimum(np.abs(at - s[right]), np.abs(at - s[np.maximum(right - 1, 0)])))


def _kernel(at: FloatArray, s: FloatArray, *, scale_mm: float) -> FloatArray:
    return np.asarray(np.exp(-0.5 * ((s[None, :] - at[:, None]) / scale_mm) ** 2))


def _local_line(
    at: FloatArray, s: FloatArray, xy: FloatArray, *, weights: FloatArray, scale_mm: float
) -> FloatArray:
    """(m, 2): local linear regression of centres, evaluated at (m,) positions."""
    kernel = _kernel(at, s, scale_mm=scale_mm)
    return _solve_lines(kernel, at, s, xy, weights=weights, scale_mm=scale_mm)


def _solve_lines(
    kernel: FloatArray, at: FloatArray, s: FloatArray, xy: FloatArray, *, weights: FloatArray, scale_mm: float
) -> FloatArray:
    origin = s.mean()  # moments about the middle, or squares of world positions cost digits
    u, v = s - origin, (at - origin)[:, None]
    m0, m1, m2 = (kernel @ np.stack([weights, weights * u, weights * u**2], axis=1)).T[..., None]
    y0, y1 = kernel @ (weights[:, None] * xy), kernel @ ((weights * u)[:, None] * xy)
    first = m1 - v * m0
    second = m2 - 2 * v * m1 + v**2 * m0 + RIDGE * scale_mm**2 * m0
    return np.asarray((second * y0 - first * (y1 - v * y0)) / (m0 * second - first**2))


def _fill(at: FloatArray, s: FloatArray, xy: FloatArray) -> FloatArray:
    from scipy.interpolate import PchipInterpolator

    return xy if s.size == at.size else np.asarray(PchipInterpolator(s, xy)(at))


def extend_centerline(
    lines: Mapping[str, Centerline], *, anchor: str, s_range: tuple[float, float]
) -> dict[str, Centerline]:
    """Let every sequence follow the session's consensus where its own mask says nothing.

    Parameters
    ----------
    lines
        Fitted centerlines by sequence name.
    anchor
        Sequence whose course is believed first; the others follow in order.
    s_range
        (low, high) mm along s that the lines are to span.

    Returns
    -------
    dict
        The same lines, unchanged where measured. Elsewhere: consensus + own offset, the offset taken at the
        last measured node and interpolated inside gaps; constant where no sequence knows. ``measured``
        is False there.
    """
    order = [anchor, *(key for key in lines if key != anchor)]
    consensus = _consensus([lines[key] for key in order])
    return {key: _follow(line, consensus, s_range) for key, line in lines.items()}


def _consensus(lines: list[Centerline]) -> Centerline:
    s, xy = lines[0].s_mm[lines[0].measured], lines[0].xy_mm[lines[0].measured]
    for line in lines[1:]:
        other_s, other_xy = line.s_mm[line.measured], line.xy_mm[line.measured]
        known = _distance_to(other_s, s) <= NODE_MM / 2 + 1e-6
        current = Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))
        offset = _interpolate(other_s, other_s[known], current.at(other_s[known]) - other_xy[known])
        s = np.concatenate([s, other_s[~known]])
        order = np.argsort(s, kind="stable")
        s, xy = s[order], np.concatenate([xy, (other_xy + offset)[~known]])[order]
    return Centerline(s_mm=s, xy_mm=xy, measured=np.ones(s.size, bool))


def _interpolate(at: FloatArray, s: FloatArray, values: FloatArray) -> FloatArray:
    """(m, 2) linear between, constant beyond; zeros if nothing is known."""
    if s.size == 0:
        return np.zeros((at.size, 2))
    return np.stack([np.interp(at, s, values[:, axis]) for axis in (0, 1)], axis=1)


def _follow(line: Centerline, consensus: Centerline, s_range: tuple[float, float]) -> Centerline:
    below = np.arange(line.s_mm[0] - NODE_MM, s_range[0] - NODE_MM, -NODE_MM)[::-1]
    above = np.arange(line.s_mm[-1] + NODE_MM, s_range[1] + NODE_MM, NODE_MM)
    s = np.concatenate([below, line.s_mm, above])
    measured = np.concatenate([np.zeros(below.size, bool), line.measured, np.zeros(above.size, bool)])
    own_s, own_xy = line.s_mm[line.measured], line.xy_mm[line.measured]
    offset = _interpolate(s, own_s, own_xy - consensus.at(own_s))
    xy = consensus.at(s) + offset
    xy[measured] = own_xy
    return Centerline(s_mm=s, xy_mm=xy, measured=measured)
