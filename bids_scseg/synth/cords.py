"""Real cords in cord coordinates: what the masks of one session say about the course and size of its cord.

A real cord becomes an `Anatomy` whose tables hold its own centerline and half axes, so that lesions are drawn
and evaluated by the same functions as in computed subjects. Each image has its own centerline (the subject
moves between sequences); arc length and half axes are the session's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bids_scseg.errors import CordNotFoundError
from bids_scseg.preprocess.align import extend_centerline, fit_centerline, measure_centers
from bids_scseg.preprocess.cordmask import clean_cord
from bids_scseg.preprocess.frames import reference_axes
from bids_scseg.space.centerline import Centerline
from bids_scseg.space.grid import Grid, transform_points
from bids_scseg.space.resample import footprint_offsets, sample_linear
from bids_scseg.synth.subject import STEP_MM, Anatomy, Doubles, Floats, Profiles, project, z_axis

#: Scale along the cord over which half axes are averaged: below a vertebra, above a slice.
SMOOTH_MM = 5.0
#: Half axes of adult cords lie within these, mm: a conus and a cervical enlargement with a margin.
HALF_AXES_MM = (1.5, 9.0)
#: Size of the grey matter relative to the cervical cord's, where lesions of the white matter are cut: small,
#: because nobody knows here where it lies exactly, and a cut in the wrong place leaves islands.
GREY_SIZE = 0.5
#: Points within a voxel lie at most this far apart where a mask is resampled, mm.
FOOTPRINT_MM = 0.5
#: A mask of another image serves where it covers at least this much of the cord in view, mm.
LEAST_BORROWED_MM = 10.0
#: Smaller shares of a resampled mask are traces of the interpolation.
LEAST_SHARE = 0.05
#: An image that lends its mask to another of its sequence must look like it in the cord and around it
#: (rescans have 0.85 to 0.98), in at least so many voxels.
LEAST_CORRELATION, LEAST_SHARED = 0.6, 50
#: In an image of another sequence, edges along a borrowed mask's surface are stronger than so far aside, mm;
#: edges are taken at this scale, mm.
ASIDE_MM, EDGE_MM = 3.0, 0.8
#: Surroundings of the cord reach this far from it, mm: the fluid.
RING_MM = 2.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CordImage:
    """One image of a session, with its cord.

    Attributes
    ----------
    name
        Path relative to the dataset.
    sequence
        Name of the sequence that it is.
    data
        Intensities ``(i, j, k)`` float32.
    grid
        Its lattice.
    cord
        Share of cord in each voxel ``(i, j, k)`` float32, 0 to 1 (0 or 1 for a mask without fractions).
    thickness_mm
        Extent of a voxel's content along each index axis ``(3,)``: the spacing, or less across slices with
        gaps.
    """

    name: str
    sequence: str
    data: Floats
    grid: Grid
    cord: Floats
    thickness_mm: Doubles


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionCord:
    """The cord of a session.

    Attributes
    ----------
    anatomies
        By image: its cord in tables (`subject.Profiles`); z = 0 is the top of the cord that any mask covers.
    anchor
        The image whose world is the session's.
    covered
        Whether some image's mask covers the height, ``(n,)`` bool over `subject.z_axis`.
    """

    anatomies: Mapping[str, Anatomy]
    anchor: str
    covered: npt.NDArray[np.bool_]

    @property
    def anatomy(self) -> Anatomy:
        """The cord where the anchor shows it."""
        return self.anatomies[self.anchor]

    @property
    def covered_mm(self) -> float:
        """Length of the covered cord, mm of arc length."""
        steps = np.gradient(self.anatomy.profiles.arc.astype(float))
        return float(steps[self.covered].sum())


def measure_cord(images: Sequence[CordImage], anchor: str) -> SessionCord:
    """Course and half axes of a session's cord.

    Parameters
    ----------
    images
        Those with a cord.
    anchor
        Name of the image whose world is the session's.

    Raises
    ------
    CordNotFoundError
        If a mask is empty, or there is no image.
    """
    if not images:
        raise CordNotFoundError("no image of this session has a cord mask", expected="one at least")
    axes = reference_axes(next(image.grid for image in images if image.name == anchor))
    lines: dict[str, Centerline] = {}
    sections: list[tuple[Doubles, Doubles]] = []
    for image in images:
        mask = clean_cord(image.cord, image.grid, file=image.name)
        centers = measure_centers(mask, image.grid, axes)
        lines[image.name] = fit_centerline(centers[0], centers[1], area_mm2=centers[2])
        sections.append(_half_axes(mask, image.grid, axes))
    low = min(float(line.s_mm[0]) for line in lines.values())
    top = max(float(line.s_mm[-1]) for line in lines.values())
    covered = _covered(tuple(lines.values()), top)
    lines = extend_centerline(lines, anchor=anchor, s_range=(low, top))
    size = _smoothed_axes(sections, top, covered)
    arc = _arc(lines[anchor], top)
    anatomies = {
        name: _anatomy(line, size, arc=arc, axes=axes, top=top, low=low) for name, line in lines.items()
    }
    return SessionCord(anatomies=anatomies, anchor=anchor, covered=covered)


def _covered(lines: tuple[Centerline, ...], top: float) -> npt.NDArray[np.bool_]:
    s = z_axis() + top
    return np.asarray(np.any([line.is_measured(s) for line in lines], axis=0), bool)


def _half_axes(mask: npt.NDArray[np.bool_], grid: Grid, axes: Doubles) -> tuple[Doubles, Doubles]:
    """Heights ``(n,)`` and half axes ``(n, 2)`` (right, anterior) of the sections of a mask, mm.

    Of an ellipse, half an axis is twice the standard deviation along it. Sections are those of the index axis
    along the cord; a section's obliqueness is taken out where tables are made.
    """
    along = grid.canonical_axes()[2][0]
    ijk = np.argwhere(mask)
    q = transform_points(grid.affine, ijk) @ axes
    number = ijk[:, along] - ijk[:, along].min()
    count = np.bincount(number)
    means = np.stack([np.bincount(number, q[:, a]) for a in range(3)], axis=1) / np.maximum(count, 1)[:, None]
    squares = np.stack([np.bincount(number, (q[:, a] - means[number, a]) ** 2) for a in (0, 1)], axis=1)
    some = count > 3
    half = 2 * np.sqrt(squares[some] / count[some, None])
    return means[some, 2], half


def _smoothed_axes(
    sections: Sequence[tuple[Doubles, Doubles]], top: float, covered: npt.NDArray[np.bool_]
) -> Doubles:
    """Half axes ``(n, 2)`` over `z_axis`: local means of all images, the nearest ones' elsewhere."""
    s = np.concatenate([heights for heights, _ in sections]) - top
    half = np.concatenate([values for _, values in sections])
    if not s.size:
        raise CordNotFoundError("no section of the cord is large enough", expected="more than three voxels")
    z = z_axis()
    near = np.abs(z[:, None] - s[None, :]).argmin(axis=1)
    kernel = np.exp(-0.5 * ((z[:, None] - s[None, :]) / SMOOTH_MM) ** 2)
    total = kernel.sum(axis=1, keepdims=True)
    smooth = np.where(total > 1e-3, (kernel @ half) / np.maximum(total, 1e-3), half[near])
    inside = np.flatnonzero(covered)
    nearest = inside[np.abs(z[:, None] - z[None, inside]).argmin(axis=1)]
    return np.asarray(np.clip(smooth[nearest], *HALF_AXES_MM))


def _arc(line: Centerline, top: float) -> Doubles:
    """Arc length over `z_axis`, mm, 0 at the top of the covered cord and positive upwards."""
    arc = line.arc_length(z_axis() + top)
    return np.asarray(arc - float(line.arc_length(top)[0]))


def _anatomy(
    line: Centerline, size: Doubles, *, arc: Doubles, axes: Doubles, top: float, low: float
) -> Anatomy:
    """Tables of one image's cord. Of the fields that describe other tissues, all are 0."""
    z = z_axis()
    xy = line.at(z + top)
    slope = ndimage.gaussian_filter1d(np.gradient(xy, STEP_MM, axis=0), SMOOTH_MM / STEP_MM / 2, axis=0)
    none = np.zeros(z.size, np.float32)
    tables = dict.fromkeys(Profiles.__slots__, none)
    lean = 1 / np.sqrt(1 + slope**2)
    tables |= {
        "x": xy[:, 0].astype(np.float32),
        "y": xy[:, 1].astype(np.float32),
        "slope_x": slope[:, 0].astype(np.float32),
        "slope_y": slope[:, 1].astype(np.float32),
        "arc": arc.astype(np.float32),
        "cord_rl": (size[:, 0] * lean[:, 0]).astype(np.float32),
        "cord_ap": (size[:, 1] * lean[:, 1]).astype(np.float32),
        "grey": np.full(z.size, GREY_SIZE, np.float32),
    }
    return Anatomy(
        profiles=Profiles(**tables),
        disc_z={},
        level_z={"T1": (-np.inf, -np.inf)},  # levels are not known: no lesion counts as thoracic
        rotation=axes,
        offset=axes @ np.array([0.0, 0.0, top]),
        conus_z=low - top,
        muscle=np.zeros(0, np.float32),
        wobble=np.zeros(0),
        shape=np.zeros(0),
    )


def cord_points(anatomy: Anatomy, points: Doubles) -> tuple[Floats, Floats, Floats]:
    """Foot point's height, mm to the right and mm anterior of world points ``(n, 3)``: ``(n,)`` each."""
    turned = (points - anatomy.offset) @ anatomy.rotation
    return project(anatomy.profiles, turned.T.astype(np.float32))


# ------------------------------------------------------------------------------------------ masks of others


def borrow_mask(lender: CordImage, target: CordImage) -> Floats | None:
    """The cord mask of another image of the session on the lattice of one that has none.

    Parameters
    ----------
    lender
        Image with a mask.
    target
        The image without one; what its ``cord`` says is ignored.

    Returns
    -------
    (i, j, k) float32 or None
        Mean of the mask over each voxel's footprint; None where it covers less than 10 mm of cord in view, or
        where what lies under it does not look like the cord (the subject has moved, or the worlds differ):
        in an image of the same sequence, the two look different there; in another, edges along its surface
        are no stronger than a little aside.
    """
    offsets = footprint_offsets(target.grid.spacing, FOOTPRINT_MM)
    box = _reached(lender.cord, lender.grid, target.grid)
    if box is None:
        return None
    size = tuple(span.stop - span.start for span in box)
    ijk = np.argwhere(np.ones(size, bool)) + [span.start for span in box]
    mean = np.zeros(len(ijk), np.float32)
    for offset in offsets:
        at = lender.grid.to_index(target.grid.to_world(ijk + offset))
        mean += sample_linear(lender.cord, at) / np.float32(len(offsets))
    out = np.zeros(target.grid.shape, np.float32)
    out[box] = mean.reshape(size)
    out[out < LEAST_SHARE] = 0
    along = target.grid.canonical_axes()[2][0]
    others = tuple(axis for axis in range(3) if axis != along)
    length = float((out >= 0.5).any(axis=others).sum() * target.grid.spacing[along])
    if length < LEAST_BORROWED_MM or not _looks_right(lender, replace(target, cord=out)):
        return None
    return out


def _looks_right(lender: CordImage, target: CordImage) -> bool:
    """Whether a borrowed mask lies on the cord of the image that borrows it."""
    if lender.sequence == target.sequence:
        return _alike(lender, target) >= LEAST_CORRELATION
    along = target.grid.canonical_axes()[2][0]
    edges = _edges(target, along)
    found, beside = _edge(edges, target.cord), 0.0
    for axis in (axis for axis in range(3) if axis != along):
        step = max(1, round(ASIDE_MM / float(target.grid.spacing[axis])))
        for way in (step, -step):
            beside = max(beside, _edge(edges, np.roll(target.cord, way, axis)))
    return found > beside


def _alike(lender: CordImage, target: CordImage) -> float:
    """Correlation of two images in the cord and its surroundings; 0 where they share next to nothing."""
    ijk = np.concatenate([np.argwhere(target.cord >= 0.5), ring_voxels(target)])
    at = lender.grid.to_index(target.grid.to_world(ijk))
    shared = lender.grid.contains(at)
    if shared.sum() < LEAST_SHARED:
        return 0.0
    own = target.data[tuple(ijk[shared].T)]
    other = sample_linear(lender.data, at[shared])
    return float(np.corrcoef(own, other)[0, 1]) if own.std() > 0 < other.std() else 0.0


def _edges(image: CordImage, along: int) -> Floats:
    """Magnitude of the intensity's gradient across the cord ``(i, j, k)``."""
    sigma = np.where(np.arange(3) == along, 0.0, EDGE_MM / image.grid.spacing)
    out: Floats = ndimage.gaussian_gradient_magnitude(image.data, np.maximum(sigma, 1e-3))
    return out


def _edge(edges: Floats, cord: Floats) -> float:
    """Mean of the edges along the surface of a mask."""
    inside = cord >= 0.5
    surface = inside & ~ndimage.binary_erosion(inside)
    return float(edges[surface].mean()) if surface.any() else 0.0


def _reached(cord: Floats, source: Grid, target: Grid) -> tuple[slice, slice, slice] | None:
    """Box of the target's voxels that the mask may reach."""
    ijk = target.to_index(source.to_world(np.argwhere(cord > 0)))
    margin = 1 + source.spacing.max() / target.spacing
    low = np.maximum(np.floor(ijk.min(axis=0) - margin), 0).astype(int) if ijk.size else np.zeros(3, int)
    high = np.minimum(np.ceil(ijk.max(axis=0) + margin) + 1, target.shape) if ijk.size else np.zeros(3)
    if np.any(high <= low):
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def ring_voxels(image: CordImage) -> npt.NDArray[np.intp]:
    """Indices ``(n, 3)`` of the voxels round the cord mask, within `RING_MM` and the finest spacing."""
    inside = image.cord >= 0.5
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return np.zeros((0, 3), np.intp)
    reach = RING_MM + float(image.grid.spacing.min())
    margin = np.ceil(reach / image.grid.spacing).astype(int) + 1
    box = tuple(
        slice(max(span.start - int(m), 0), span.stop + int(m))
        for span, m in zip(found[0], margin, strict=True)
    )
    away = ndimage.distance_transform_edt(~inside[box], sampling=image.grid.spacing)
    corner = np.array([span.start for span in box])
    return np.asarray(np.argwhere((away > 0) & (away <= reach)) + corner)
