"""One session, prepared: fit a geometry, apply it once. Pipeline and training walk the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import CordNotFoundError, GeometryError
from bids_scseg.preprocess.align import measure_centers
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.preprocess.cordmask import clean_cord, edge_slices, partial_weights
from bids_scseg.preprocess.frames import (
    FRAMES,
    Estimates,
    SlabEstimate,
    covered_slices,
    reference_axes,
    sequence_centers,
)
from bids_scseg.preprocess.fuse import FAILED, UNMATCHED, SlabFit, chain_slabs, uppermost_first
from bids_scseg.preprocess.normalize import cord_ratio, cord_score, is_constant, zscore
from bids_scseg.recipe.model import Recipe
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import FloatArray, Grid

BoolArray: TypeAlias = npt.NDArray[np.bool_]
NativeImage: TypeAlias = tuple[npt.NDArray[np.generic], Grid, str]
NativeImages: TypeAlias = Mapping[str, Sequence[NativeImage]]
CordMasks: TypeAlias = Mapping[str, Sequence[npt.NDArray[np.generic] | None]]

EXTRAPOLATED_FROM = 0.15  # share of a sequence's slices from which fit and report warn, ours
BAD_RESIDUAL_MM = 1.5  # median distance of slices from the centerline above which the report warns, ours
SEAM_MISMATCH_MM = 1.5  # distance of the cord centres of two slabs above which the report warns, ours
#: Sequences that put the cord so far from where the others do (median over common heights) are not used:
#: patients move by a few mm, a false cord in mouth or airway lies 30 mm away, ours.
APART_MM = 15.0
COMMON_MM = 10.0  # common height from which two sequences can be compared, ours
#: Slices of an image cut by its side from which fit and report warn, ours: one may be a stray voxel.
CUT_SLICES_FROM = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceReport:
    """How one sequence was fitted.

    Attributes
    ----------
    name
        Sequence.
    files
        Its images, uppermost first.
    slabs
        How each was placed.
    covered_mm
        Length of the prepared grid along S-I that the sequence covers at the cord.
    extrapolated_share
        Share of those slices where the centerline was not measured in this sequence.
    residual_mm
        Median distance of the slices' cord centres from the centerline; NaN without a centerline.
    edge_share
        For each image, share of its cord slices that reach the side of the field of view.
    edge_slices
        For each image, their number.
    seam_mm
        For each image but the first, how far it and the one above put the cord apart, mm
        (:func:`seam_mismatch`).
    """

    name: str
    files: tuple[str, ...]
    slabs: tuple[SlabFit, ...]
    covered_mm: float = 0.0
    extrapolated_share: float = 0.0
    residual_mm: float = float("nan")
    edge_share: tuple[float, ...] = ()
    edge_slices: tuple[int, ...] = ()
    seam_mm: tuple[float, ...] = ()

    @property
    def touches_edge(self) -> bool:
        """Whether the cord is cut by the side of a field of view in two slices of an image or more."""
        return any(count >= CUT_SLICES_FROM for count in self.edge_slices)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitReport:
    """How a session was fitted.

    Attributes
    ----------
    anchor
        Sequence that gave the grid.
    sequences
        One report per fitted sequence.
    dropped
        (sequence, reason) of sequences that could not be used.
    warnings
        One sentence each, for people.
    """

    anchor: str
    sequences: tuple[SequenceReport, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON; numbers that are not known become null."""
        out: dict[str, object] = _plain(asdict(self))
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


# -- fit -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NativeSlab:
    """One image with its cleaned cord."""

    data: npt.NDArray[np.generic]
    grid: Grid
    file: str
    cord: BoolArray | None
    weights: npt.NDArray[np.float32] | None


def fit(
    images: NativeImages, cords: CordMasks, recipe: Recipe, *, seed: int = 0, register: bool = True
) -> tuple[Geometry, FitReport]:
    """Fit the geometry of one session.

    Parameters
    ----------
    images
        By sequence name: (native volume, lattice, file) of each slab, in any order.
    cords
        By sequence name: cord mask or probability on each slab's lattice, or None; missing names count as
        None. Frames other than ``centerline`` need none.
    recipe
        Says frame, grid, anchors, and which sequences' slabs are registered.
    seed
        Of the registration.
    register
        False keeps every slab where its header says.

    Returns
    -------
    Geometry, FitReport

    Raises
    ------
    CordNotFoundError
        If the frame needs cords and no sequence has one.
    """
    session, dropped, warnings = _clean_session(images, cords, recipe)
    return _fit(session, recipe, dropped=dropped, warnings=warnings, seed=seed, register=register)


def _clean_session(
    images: NativeImages, cords: CordMasks, recipe: Recipe
) -> tuple[dict[str, list[NativeSlab]], list[tuple[str, str]], list[str]]:
    """Images with cleaned cords, uppermost first, in the recipe's order; what was dropped; warnings."""
    session: dict[str, list[NativeSlab]] = {}
    dropped: list[tuple[str, str]] = []
    warnings: list[str] = []
    for key in [name for name in recipe.sequence_names if images.get(name)]:
        masks = cords.get(key) or [None] * len(images[key])
        if len(masks) != len(images[key]):
            raise GeometryError(f"{len(masks)} cord masks for {len(images[key])} images of {key}")
        order = uppermost_first([grid for _, grid, _ in images[key]])
        stack = [clean_image(images[key][n], masks[n]) for n in order]
        blind = [native.file for native in stack if native.cord is None]
        if recipe.frame == "centerline" and len(blind) == len(stack):
            dropped.append((key, "no spinal cord found"))
            warnings.append(f"{key} is not used: no spinal cord was found in {', '.join(blind)}.")
            continue
        if recipe.frame == "centerline" and blind:
            files = ", ".join(blind)
            warnings.append(f"{key}: no spinal cord was found in {files}; it follows the other images.")
        session[key] = stack
    if recipe.frame == "centerline":
        for key, sentence in strays(session, recipe):
            del session[key]
            dropped.append((key, "its cord lies elsewhere than in the other sequences"))
            warnings.append(sentence)
    return session, dropped, warnings


def strays(session: Mapping[str, Sequence[NativeSlab]], recipe: Recipe) -> list[tuple[str, str]]:
    """Sequences whose cord lies elsewhere than in the others: what was found there is something else.

    Parameters
    ----------
    session
        Images with cleaned cords, by sequence.
    recipe
        Its order of anchors decides which of two is believed if nothing else does.

    Returns
    -------
    (sequence, sentence) of each that must not be used. As long as two sequences put the cord more than 15 mm
    apart at common heights, the one goes that disagrees with most others; of those the one with the shortest
    cord.
    """
    anchor = recipe.best_anchor(tuple(session))
    if anchor is None or len(session) < 2:
        return []
    axes = reference_axes(session[anchor][0].grid)
    lines = {key: _centers(stack, axes) for key, stack in session.items()}
    order = [anchor, *(key for key in lines if key != anchor)]
    out: list[tuple[str, str]] = []
    while True:
        left = [key for key in order if key in lines]
        apart = {pair: _apart_mm(*(lines[key] for key in pair)) for pair in combinations(left, 2)}
        apart = {pair: distance for pair, distance in apart.items() if distance > APART_MM}
        if not apart:
            return out
        against = Counter(key for pair in apart for key in pair)
        worst = max(reversed(left), key=lambda key: (against[key], -float(np.ptp(lines[key][0]))))
        other, distance = max(_others(apart, worst), key=lambda item: item[1])
        sentence = (
            f"{worst} is not used: what looks like the cord there lies {distance:.0f} mm beside that of "
            f"{other}; check the cord masks, or provide one."
        )
        out.append((worst, sentence))
        del lines[worst]


def _others(apart: Mapping[tuple[str, str], float], key: str) -> list[tuple[str, float]]:
    """The partners of a sequence in pairs, and how far they are."""
    return [(pair[0] if pair[1] == key else pair[1], mm) for pair, mm in apart.items() if key in pair]


def _centers(stack: Sequence[NativeSlab], axes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Heights (n,) and centres (n, 2) of the cord in all images of a sequence, by height."""
    parts = [measure_centers(native.cord, native.grid, axes) for native in stack if native.cord is not None]
    s, xy = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    order = np.argsort(s, kind="stable")
    return s[order], xy[order]


def _apart_mm(one: tuple[FloatArray, FloatArray], two: tuple[FloatArray, FloatArray]) -> float:
    """Median distance of two courses over their common heights; NaN where these are too few."""
    low, high = max(one[0].min(), two[0].min()), min(one[0].max(), two[0].max())
    if not high - low >= COMMON_MM:
        return float("nan")
    at = np.arange(low, high, 1.0)
    there = [np.stack([np.interp(at, s, xy[:, n]) for n in (0, 1)], axis=1) for s, xy in (one, two)]
    return float(np.median(np.linalg.norm(there[0] - there[1], axis=1)))


def clean_image(image: NativeImage, mask: npt.NDArray[np.generic] | None) -> NativeSlab:
    """An image with finite voxels and its cleaned cord; a mask without a cord counts as none.

    Raises
    ------
    GeometryError
        If the volume does not have its lattice's shape.
    """
    data, grid, file = image
    if data.shape != grid.shape:
        raise GeometryError(f"image of shape {data.shape}", file=file, expected=f"{grid.shape}")
    try:
        cord = None if mask is None else clean_cord(mask, grid, file=file)
    except CordNotFoundError:
        cord = None
    weights = None if mask is None or cord is None else partial_weights(mask, cord)
    return NativeSlab(data=finite(data), grid=grid, file=file, cord=cord, weights=weights)


def finite(data: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The same volume with NaN and infinite values replaced by 0."""
    if np.issubdtype(data.dtype, np.floating) and not np.isfinite(data).all():
        return np.asarray(np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0))
    return data


def _fit(
    session: Mapping[str, list[NativeSlab]],
    recipe: Recipe,
    *,
    dropped: list[tuple[str, str]],
    warnings: list[str],
    seed: int,
    register: bool,
) -> tuple[Geometry, FitReport]:
    wanted = recipe.anchors[0] if recipe.anchors else None
    anchor = recipe.best_anchor(tuple(session))
    if anchor is None:
        raise CordNotFoundError(
            "no sequence of this session can serve as anchor",
            expected=f"an image of {', '.join(recipe.anchors)} in which the cord is found",
            remedy="check the cord masks, or provide them in a derivatives folder",
        )
    if wanted in dict(dropped):
        warnings = [*warnings, f"{anchor} is the anchor instead of {wanted}."]
    placed = {
        key: _chain(stack, recipe.rule(key).register_slabs and register, seed)
        for key, stack in session.items()
    }
    estimates = Estimates(
        anchor=anchor,
        slabs=tuple(
            _estimate(key, index, native, placed[key][index])
            for key, stack in session.items()
            for index, native in enumerate(stack)
        ),
    )
    geometry = FRAMES[recipe.frame](estimates, recipe.grid)
    reports = tuple(sequence_report(key, session[key], placed[key], geometry, estimates) for key in session)
    sentences = [*warnings, *(line for report in reports for line in report_sentences(report))]
    report = FitReport(anchor=anchor, sequences=reports, dropped=tuple(dropped), warnings=tuple(sentences))
    return geometry, report


def _chain(stack: list[NativeSlab], register: bool, seed: int) -> list[SlabFit]:
    return chain_slabs(
        [native.data for native in stack],
        [native.grid for native in stack],
        [native.cord for native in stack],
        register=register,
        seed=seed,
    )


def _estimate(key: str, index: int, native: NativeSlab, placed: SlabFit) -> SlabEstimate:
    slab = Slab(key=key, index=index, file=native.file, grid=native.grid, xfm=placed.xfm, scale=placed.scale)
    return SlabEstimate(slab=slab, cord=native.cord, weights=native.weights)


def sequence_report(
    key: str, stack: list[NativeSlab], placed: list[SlabFit], geometry: Geometry, estimates: Estimates
) -> SequenceReport:
    """How one sequence lies in a geometry, by its cleaned cords."""
    covered = np.any([covered_slices(geometry, slab) for slab in geometry.slabs_of(key)], axis=0)
    share, residual = 0.0, float("nan")
    cut = [(0, 0) if native.cord is None else edge_slices(native.cord, native.grid) for native in stack]
    line = geometry.centerlines.get(key)
    if line is not None:
        borrowed = covered & ~line.is_measured(geometry.s_mm)
        share = float(borrowed.sum() / max(covered.sum(), 1))
        s, xy, _ = sequence_centers(estimates.of(key), geometry.grid.axes)
        residual = float(np.median(np.linalg.norm(xy - line.at(s), axis=1)))
    return SequenceReport(
        name=key,
        files=tuple(native.file for native in stack),
        slabs=tuple(placed),
        covered_mm=float(covered.sum() * geometry.grid.spacing[2]),
        extrapolated_share=share,
        residual_mm=residual,
        edge_share=tuple(count / max(of, 1) for count, of in cut),
        edge_slices=tuple(count for count, _ in cut),
        seam_mm=seam_mismatch(estimates.of(key), geometry.grid.axes),
    )


def seam_mismatch(estimates: Sequence[SlabEstimate], axes: FloatArray) -> tuple[float, ...]:
    """How far apart neighbouring slabs put the cord where both show it.

    Parameters
    ----------
    estimates
        Slabs of one sequence, uppermost first.
    axes : (3, 3)
        Of the reference grid.

    Returns
    -------
    For each slab but the first, the median distance in mm of its cord centres from those of the slab above,
    over their common heights; NaN where they have none.
    """
    found = []
    for upper, lower in pairwise(estimates):
        (s, xy, _), (other_s, other_xy, _) = (sequence_centers([one], axes) for one in (upper, lower))
        common = (s >= other_s.min(initial=np.inf)) & (s <= other_s.max(initial=-np.inf))
        if not common.any():
            found.append(float("nan"))
            continue
        order = np.argsort(other_s)
        there = [np.interp(s[common], other_s[order], other_xy[order, axis]) for axis in (0, 1)]
        apart = np.linalg.norm(xy[common] - np.stack(there, axis=-1), axis=1)
        found.append(float(np.median(apart)))
    return tuple(found)


def report_sentences(report: SequenceReport) -> list[str]:
    """What a reader should know about the fit of a sequence."""
    out = []
    for file, slab in zip(report.files[1:], report.slabs[1:], strict=True):
        tried = not np.isnan(slab.similarity_before) or slab.reason.startswith(FAILED)
        if tried and not slab.accepted:
            out.append(f"{report.name}: {file} stays where its header says; {slab.reason}.")
        if slab.scale_by == UNMATCHED:
            out.append(
                f"{report.name}: the intensities of {file} could not be matched to those of the image above "
                "it; a step in brightness between the two may look like a lesion."
            )
    for file, apart in zip(report.files[1:], report.seam_mm, strict=True):
        if apart > SEAM_MISMATCH_MM:
            out.append(
                f"{report.name}: at the seam above {file} the two slabs put the cord {apart:.1f} mm apart; "
                "a lesion there may be cut or doubled."
            )
    if report.touches_edge:
        out.append(f"{report.name}: the cord reaches the side of the field of view and may be cut there.")
    if report.extrapolated_share >= EXTRAPOLATED_FROM:
        out.append(
            f"{report.name}: in {100 * report.extrapolated_share:.0f} % of its slices the cord's position is "
            "borrowed from other sequences or held constant."
        )
    if report.residual_mm > BAD_RESIDUAL_MM:
        out.append(f"{report.name}: cord centres scatter {report.residual_mm:.1f} mm round the centerline.")
    return out


# -- apply -----------------------------------------------------------------------------------------


def apply(
    geometry: Geometry,
    images: NativeImages,
    recipe: Recipe,
    *,
    cords: CordMasks | None = None,
    feather_mm: float = 0.0,
) -> PreparedCase:
    """Bring a session's images through a fitted geometry.

    Parameters
    ----------
    geometry
        Of this session; may come from a JSON file.
    images
        As for :func:`fit`; sequences without a place in the geometry are left out.
    recipe
        Gives the channels.
    cords
        Cord masks (or probabilities) for ``cord`` and for intensities against the cord; None: without.
    feather_mm
        Width of the blend at slab seams.

    Returns
    -------
    PreparedCase
        Absent channels are zero and not available; constant images likewise.

    Raises
    ------
    GeometryError
        If an image of the geometry is not among the images.
    """
    shape = (len(recipe.sequence_names), *geometry.grid.shape)
    image, coverage = np.zeros(shape, np.float32), np.zeros(shape, bool)
    cord = None if cords is None else prepared_cord(geometry, images, cords)
    for channel, key in enumerate(recipe.sequence_names):
        if key in geometry.keys and images.get(key):
            data = [finite(images[key][n][0]) for n in matching(geometry, images[key], key)]
            volume, covered = geometry.apply(data, key=key, feather_mm=feather_mm)
            if not is_constant(volume, covered):
                image[channel], coverage[channel] = _normalized(volume, covered, cord, recipe), covered
    return PreparedCase(
        image=image,
        coverage=coverage,
        available=tuple(bool(channel.any()) for channel in coverage),
        sequences=recipe.sequence_names,
        recipe=recipe.name,
        geometry=geometry,
        cord=cord,
    )


def _normalized(
    volume: npt.NDArray[np.float32],
    covered: BoolArray,
    cord: npt.NDArray[np.float32] | None,
    recipe: Recipe,
) -> npt.NDArray[np.float32]:
    if recipe.normalize == "cord" and cord is not None:
        return cord_score(volume, covered, cord, spacing_mm=recipe.grid.spacing_mm)
    if recipe.normalize == "cord-ratio" and cord is not None:
        return cord_ratio(volume, covered, cord, spacing_mm=recipe.grid.spacing_mm)
    return zscore(volume, covered)


def matching(geometry: Geometry, images: Sequence[NativeImage], key: str) -> list[int]:
    """Position of each slab's image among the images of its sequence, uppermost first.

    Raises
    ------
    GeometryError
        If a slab has no image of the same file and lattice.
    """
    found = []
    for slab in geometry.slabs_of(key):
        same_grid = [n for n, (_, grid, _) in enumerate(images) if grid == slab.grid and n not in found]
        same_file = [n for n in same_grid if images[n][2] == slab.file]
        choice = same_file or (same_grid if len(same_grid) == 1 else [])
        if not choice:
            raise GeometryError(
                f"no image for slab {slab.index} of {key}",
                file=slab.file,
                expected="the image that the geometry was fitted to",
                remedy="fit the geometry again if the image has changed",
            )
        found.append(choice[0])
    return found


def prepared_cord(
    geometry: Geometry, images: NativeImages, cords: CordMasks
) -> npt.NDArray[np.float32] | None:
    """Cord share of each prepared voxel, mean over the sequences that measured the cord at that height.

    Parameters
    ----------
    geometry
        Of this session.
    images
        As for :func:`apply` (their lattices are used).
    cords
        Cleaned masks or probabilities by sequence.

    Returns
    -------
    (i, j, k) float32 in 0-1, or None if no sequence has a mask; 0 where none measured.
    """
    total, count = (np.zeros(geometry.grid.shape, np.float32) for _ in range(2))
    for key in geometry.keys:
        masks = list(cords.get(key) or [])
        if any(mask is not None for mask in masks):
            stack = [masks[n] for n in matching(geometry, images[key], key)]
            volume, seen = _apply_masks(geometry, stack, key)
            total += volume * seen
            count += seen
    return np.divide(total, count, out=total, where=count > 0) if count.any() else None


def _apply_masks(
    geometry: Geometry, masks: Sequence[npt.NDArray[np.generic] | None], key: str
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """Mean of a sequence's masks on the prepared grid, and where it had a say."""
    kept = [(s, m) for s, m in zip(geometry.slabs_of(key), masks, strict=True) if m is not None]
    alone = replace(geometry, slabs=tuple(replace(slab, scale=1.0) for slab, _ in kept))
    data = [mask.astype(np.float32) for _, mask in kept]
    volume, covered = alone.apply(data, key=key)
    line = geometry.centerlines.get(key)
    if line is not None:
        covered = covered & line.is_measured(geometry.s_mm)
    return volume, covered


def prepare_session(
    images: NativeImages,
    cords: CordMasks,
    recipe: Recipe,
    *,
    seed: int = 0,
    register: bool = True,
    feather_mm: float = 0.0,
    adjust: Callable[[Geometry], Geometry] | None = None,
) -> tuple[PreparedCase, FitReport]:
    """Fit and apply in one go: what pipeline and training both call.

    Parameters
    ----------
    images, cords, recipe, seed, register
        As for :func:`fit`.
    feather_mm
        As for :func:`apply`.
    adjust
        Changes the fitted geometry before it is applied, as training does to imitate a fit's errors.

    Returns
    -------
    PreparedCase, FitReport

    Raises
    ------
    CordNotFoundError
        If the frame needs cords and no sequence has one.
    """
    session, dropped, warnings = _clean_session(images, cords, recipe)
    geometry, report = _fit(session, recipe, dropped=dropped, warnings=warnings, seed=seed, register=register)
    if adjust is not None:
        geometry = adjust(geometry)
    sorted_images = {key: [(n.data, n.grid, n.file) for n in stack] for key, stack in session.items()}
    cleaned = {
        key: [n.weights if n.weights is not None else n.cord for n in stack] for key, stack in session.items()
    }
    case = apply(geometry, sorted_images, recipe, cords=cleaned, feather_mm=feather_mm)
    return case, replace(report, warnings=(*report.warnings, *blank_sentences(case, tuple(session))))


def blank_sentences(case: PreparedCase, keys: Sequence[str]) -> list[str]:
    """A sentence for each of some sequences that the case does not use although it has a place."""
    flags = zip(case.sequences, case.available, strict=True)
    blank = [name for name, there in flags if name in keys and not there]
    return [f"{name} is not used: it is constant or does not cover the cord." for name in blank]
