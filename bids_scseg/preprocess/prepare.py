"""One session, prepared: fit a geometry, apply it once. Pipeline and training walk the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import CordNotFoundError, DataError, GeometryError, MissingInputError
from bids_scseg.preprocess.align import clean_cord, frame_affine, partial_weights, touches_edge
from bids_scseg.preprocess.frames import (
    FRAMES,
    Estimates,
    SlabEstimate,
    covered_slices,
    sequence_centers,
)
from bids_scseg.preprocess.fuse import SlabFit, chain_slabs, uppermost_first
from bids_scseg.preprocess.normalize import is_constant, zscore
from bids_scseg.recipe.model import Recipe
from bids_scseg.space.geometry import Geometry, Slab, seam_weight
from bids_scseg.space.grid import FloatArray, Grid
from bids_scseg.space.resample import index_chunks, sample_linear

BoolArray: TypeAlias = npt.NDArray[np.bool_]
NativeImage: TypeAlias = tuple[npt.NDArray[np.generic], Grid, str]
NativeImages: TypeAlias = Mapping[str, Sequence[NativeImage]]
CordMasks: TypeAlias = Mapping[str, Sequence[npt.NDArray[np.generic] | None]]

LABEL_SHARE = 0.5  # a prepared voxel belongs to a label from this share on (specification)
MUCH_EXTRAPOLATED = 0.25  # share of a sequence's slices above which the report warns, ours
BAD_RESIDUAL_MM = 1.5  # median distance of slices from the centerline above which the report warns, ours
EDGE_SHARE = 0.05  # share of slices cut by the field of view's side above which the report warns, ours


# -- reports ---------------------------------------------------------------------------------------


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
    """

    name: str
    files: tuple[str, ...]
    slabs: tuple[SlabFit, ...]
    covered_mm: float = 0.0
    extrapolated_share: float = 0.0
    residual_mm: float = float("nan")
    edge_share: tuple[float, ...] = ()

    @property
    def touches_edge(self) -> bool:
        """Whether the cord is cut by the side of a field of view in more than 5 % of the slices."""
        return any(share > EDGE_SHARE for share in self.edge_share)


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


# -- the prepared case -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCase:
    """A session on the prepared grid, ready for a network.

    Attributes
    ----------
    image : (sequence, i, j, k) float32
        Channels in the recipe's order; z-scored over covered voxels, 0 elsewhere and in absent channels.
    coverage : (sequence, i, j, k) bool
        Where a channel has data.
    available
        Which channels have data at all.
    sequences
        Names of the channels.
    recipe
        Name of the recipe.
    case, subject, session
        Identity; may be empty.
    geometry
        The map back to native space; None for cases that never had one.
    cord : (i, j, k) float32 or None
        Share of each voxel in the cord, mean over the sequences that saw it there.
    """

    image: npt.NDArray[np.float32]
    coverage: BoolArray
    available: tuple[bool, ...]
    sequences: tuple[str, ...]
    recipe: str = ""
    case: str = ""
    subject: str = ""
    session: str | None = None
    geometry: Geometry | None = None
    cord: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.sequences)
        if self.image.ndim != 4 or self.image.shape != self.coverage.shape or len(self.image) != n:
            raise GeometryError(
                f"prepared image {self.image.shape} and coverage {self.coverage.shape}",
                expected=f"both ({n}, i, j, k)",
            )
        if len(self.available) != n:
            raise GeometryError(f"{len(self.available)} availability flags", expected=str(n))
        for array in (self.image, self.coverage, self.cord):
            if array is not None:
                array.flags.writeable = False

    def save(self, folder: Path, *, dtype: npt.DTypeLike = np.float32) -> None:
        """Write the case into a folder (created if absent): arrays as .npy, the rest as ``case.json``.

        ``dtype`` is that of the image on disk, float32 or float16 (half the size, for training).
        ``cord.npy`` is the mask (share of at least one half), ``cord_share.npy`` the shares in float16.
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "image.npy", self.image.astype(dtype), allow_pickle=False)
        np.save(folder / "coverage.npy", self.coverage, allow_pickle=False)
        if self.cord is not None:
            np.save(folder / "cord.npy", (self.cord >= LABEL_SHARE).astype(np.uint8), allow_pickle=False)
            np.save(folder / "cord_share.npy", self.cord.astype(np.float16), allow_pickle=False)
        record = {
            "case": self.case,
            "subject": self.subject,
            "session": self.session,
            "recipe": self.recipe,
            "sequences": list(self.sequences),
            "available": list(self.available),
            "geometry": None if self.geometry is None else self.geometry.to_json(),
        }
        (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PreparedCase:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MissingInputError
            If the folder has no case.
        DataError
            If ``case.json`` or an array is malformed.
        """
        record = _read_record(folder)
        try:
            arrays = {name: _read_array(folder, name) for name in ("image", "coverage")}
            share = _read_array(folder, "cord_share" if (folder / "cord_share.npy").exists() else "cord")
            if arrays["image"] is None or arrays["coverage"] is None:
                raise DataError("no image.npy or coverage.npy", file=folder, expected="a prepared case")
            return cls(
                image=arrays["image"].astype(np.float32),
                coverage=arrays["coverage"].astype(bool),
                available=tuple(bool(flag) for flag in record["available"]),
                sequences=tuple(record["sequences"]),
                recipe=record["recipe"],
                case=record["case"],
                subject=record["subject"],
                session=record["session"],
                geometry=None if record["geometry"] is None else Geometry.from_json(record["geometry"]),
                cord=None if share is None else share.astype(np.float32),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"malformed case ({error})", file=folder, expected="a prepared case") from error


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "case.json"
    if not path.is_file():
        raise MissingInputError("no prepared case", file=path, expected="a folder with case.json")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON ({error})", file=path, expected="a prepared case") from error
    return record


def _read_array(folder: Path, name: str) -> npt.NDArray[Any] | None:
    path = folder / f"{name}.npy"
    return np.asarray(np.load(path, allow_pickle=False)) if path.is_file() else None


# -- fit -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Native:
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
) -> tuple[dict[str, list[_Native]], list[tuple[str, str]], list[str]]:
    """Images with cleaned cords, uppermost first, in the recipe's order; what was dropped; warnings."""
    session: dict[str, list[_Native]] = {}
    dropped: list[tuple[str, str]] = []
    warnings: list[str] = []
    for key in [name for name in recipe.sequence_names if images.get(name)]:
        masks = cords.get(key) or [None] * len(images[key])
        if len(masks) != len(images[key]):
            raise GeometryError(f"{len(masks)} cord masks for {len(images[key])} images of {key}")
        order = uppermost_first([grid for _, grid, _ in images[key]])
        stack = [_clean_image(images[key][n], masks[n]) for n in order]
        blind = [native.file for native in stack if native.cord is None]
        if recipe.frame == "centerline" and len(blind) == len(stack):
            dropped.append((key, "no spinal cord found"))
            warnings.append(f"{key} is not used: no spinal cord was found in {', '.join(blind)}.")
            continue
        if recipe.frame == "centerline" and blind:
            files = ", ".join(blind)
            warnings.append(f"{key}: no spinal cord was found in {files}; it follows the other images.")
        session[key] = stack
    return session, dropped, warnings


def _clean_image(image: NativeImage, mask: npt.NDArray[np.generic] | None) -> _Native:
    data, grid, file = image
    if data.shape != grid.shape:
        raise GeometryError(f"image of shape {data.shape}", file=file, expected=f"{grid.shape}")
    try:
        cord = None if mask is None else clean_cord(mask, grid, file=file)
    except CordNotFoundError:
        cord = None
    weights = None if mask is None or cord is None else partial_weights(mask, cord)
    return _Native(data=finite(data), grid=grid, file=file, cord=cord, weights=weights)


def finite(data: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The same volume with NaN and infinite values replaced by 0."""
    if np.issubdtype(data.dtype, np.floating) and not np.isfinite(data).all():
        return np.asarray(np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0))
    return data


def _fit(
    session: Mapping[str, list[_Native]],
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
    reports = tuple(_report(key, session[key], placed[key], geometry, estimates) for key in session)
    sentences = [*warnings, *(line for report in reports for line in _sentences(report))]
    report = FitReport(anchor=anchor, sequences=reports, dropped=tuple(dropped), warnings=tuple(sentences))
    return geometry, report


def _chain(stack: list[_Native], register: bool, seed: int) -> list[SlabFit]:
    return chain_slabs(
        [native.data for native in stack],
        [native.grid for native in stack],
        [native.cord for native in stack],
        register=register,
        seed=seed,
    )


def _estimate(key: str, index: int, native: _Native, placed: SlabFit) -> SlabEstimate:
    slab = Slab(key=key, index=index, file=native.file, grid=native.grid, xfm=placed.xfm, scale=placed.scale)
    return SlabEstimate(slab=slab, cord=native.cord, weights=native.weights)


def _report(
    key: str, stack: list[_Native], placed: list[SlabFit], geometry: Geometry, estimates: Estimates
) -> SequenceReport:
    covered = np.any([covered_slices(geometry, slab) for slab in geometry.slabs_of(key)], axis=0)
    share, residual = 0.0, float("nan")
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
        edge_share=tuple(
            0.0 if native.cord is None else touches_edge(native.cord, native.grid) for native in stack
        ),
    )


def _sentences(report: SequenceReport) -> list[str]:
    out = []
    for file, slab in zip(report.files[1:], report.slabs[1:], strict=True):
        if not np.isnan(slab.similarity_before) and not slab.accepted:
            out.append(f"{report.name}: {file} stays where its header says; {slab.reason}.")
    if report.touches_edge:
        out.append(f"{report.name}: the cord reaches the side of the field of view and may be cut there.")
    if report.extrapolated_share > MUCH_EXTRAPOLATED:
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
        Cord masks (or probabilities) for ``cord``; None leaves it out.
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
    for channel, key in enumerate(recipe.sequence_names):
        if key in geometry.keys and images.get(key):
            data = [finite(images[key][n][0]) for n in matching(geometry, images[key], key)]
            volume, covered = apply_sequence(geometry, data, key=key, feather_mm=feather_mm)
            if not is_constant(volume, covered):
                image[channel], coverage[channel] = zscore(volume, covered), covered
    return PreparedCase(
        image=image,
        coverage=coverage,
        available=tuple(bool(channel.any()) for channel in coverage),
        sequences=recipe.sequence_names,
        recipe=recipe.name,
        geometry=geometry,
        cord=None if cords is None else prepared_cord(geometry, images, cords),
    )


def apply_sequence(
    geometry: Geometry,
    images: Sequence[npt.NDArray[np.generic]],
    *,
    key: str,
    feather_mm: float = 0.0,
    trim: tuple[int, int] = (0, 0),
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """As ``geometry.apply``, but each slab is only asked about slices that its field of view can reach.

    Parameters
    ----------
    geometry
        Of the session.
    images
        One volume per slab, uppermost first.
    key
        Sequence.
    feather_mm
        Width of the blend at seams.
    trim
        Voxels left out (0, not covered) at either side of the window, by axis.

    Returns
    -------
    volume (i, j, k) float32, coverage (i, j, k) bool
        The same values as ``geometry.apply``, up to rounding.
    """
    volume, coverage = np.zeros(geometry.grid.shape, np.float32), np.zeros(geometry.grid.shape, bool)
    slabs = geometry.slabs_of(key)
    reach = np.stack([reached_slices(geometry, slab) for slab in slabs])
    edges = np.flatnonzero((reach[:, 1:] != reach[:, :-1]).any(axis=0)) + 1
    inner = tuple(slice(t, n - t) for t, n in zip(trim, geometry.grid.shape[:2], strict=True))
    for start, stop in pairwise([0, *(int(edge) for edge in edges), geometry.grid.shape[2]]):
        chosen = [n for n in range(len(slabs)) if reach[n, start]]
        if chosen:
            part = _part(geometry, [slabs[n] for n in chosen], (start, stop), trim)
            found = part.apply([images[n] for n in chosen], key=key, feather_mm=feather_mm)
            volume[(*inner, slice(start, stop))], coverage[(*inner, slice(start, stop))] = found
    return volume, coverage


def reached_slices(geometry: Geometry, slab: Slab) -> BoolArray:
    """(k,) bool: slices whose window may meet the slab's field of view (never False where it does)."""
    ni, nj, nk = geometry.grid.shape
    corners = np.array([(i, j) for i in (0, ni - 1) for j in (0, nj - 1)], dtype=np.float64)
    ijk = np.empty((nk, 4, 3))
    ijk[..., :2], ijk[..., 2] = corners, np.arange(nk)[:, None]
    index = slab.to_index(geometry.to_world(ijk, key=slab.key))
    # A slice of the window is a flat parallelogram in the slab: its corners bound it.
    beyond = (index.max(axis=1) < -1) | (index.min(axis=1) > np.asarray(slab.grid.shape))
    return np.asarray(~beyond.any(axis=1))


def _part(geometry: Geometry, slabs: list[Slab], span: tuple[int, int], trim: tuple[int, int]) -> Geometry:
    """The geometry of some slices; trimmed alike on both sides, so that the cord stays in the middle."""
    shape = geometry.grid.shape
    affine = geometry.grid.affine.copy()
    affine[:3, 3] = geometry.grid.to_world([trim[0], trim[1], span[0]])
    size = (shape[0] - 2 * trim[0], shape[1] - 2 * trim[1], span[1] - span[0])
    return replace(geometry, grid=Grid(shape=size, affine=affine), slabs=tuple(slabs))


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
    chosen = {}
    for key in geometry.keys:
        masks = list(cords.get(key) or [])
        if any(mask is not None for mask in masks):
            chosen[key] = [masks[n] for n in matching(geometry, images[key], key)]
    trim = _empty_rim(geometry, chosen)
    for key, stack in chosen.items():
        volume, seen = _apply_masks(geometry, stack, key, trim)
        total += volume * seen
        count += seen
    return np.divide(total, count, out=total, where=count > 0) if count.any() else None


def _apply_masks(
    geometry: Geometry, masks: Sequence[npt.NDArray[np.generic] | None], key: str, trim: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """Mean of a sequence's masks on the prepared grid, and where it had a say."""
    kept = [(s, m) for s, m in zip(geometry.slabs_of(key), masks, strict=True) if m is not None]
    alone = replace(geometry, slabs=tuple(replace(slab, scale=1.0) for slab, _ in kept))
    data = [mask.astype(np.float32) for _, mask in kept]
    volume, covered = apply_sequence(alone, data, key=key, trim=trim)
    line = geometry.centerlines.get(key)
    if line is not None:
        covered = covered & line.is_measured(geometry.s_mm)
    return volume, covered


def _empty_rim(
    geometry: Geometry, masks: Mapping[str, Sequence[npt.NDArray[np.generic] | None]]
) -> tuple[int, int]:
    """Width in voxels of the window's rim, by axis, that no sequence's cord reaches on either side."""
    middle = (np.asarray(geometry.grid.shape[:2]) - 1) / 2
    reach = np.zeros(2)
    for key, stack in masks.items():
        for slab, mask in zip(geometry.slabs_of(key), stack, strict=True):
            if mask is not None and np.any(mask):
                index = geometry.to_prepared(slab.to_world(np.argwhere(mask)), key=key)[:, :2]
                reach = np.maximum(reach, np.abs(index - middle).max(axis=0) + _blur(geometry, slab))
    rim = np.clip(np.floor(middle - reach), 0, None).astype(int)
    return int(rim[0]), int(rim[1])


def _blur(geometry: Geometry, slab: Slab) -> FloatArray:
    """(2,) prepared voxels, by axis, that linear interpolation carries a mask beyond its voxel centres: one
    native voxel along every native axis, with the lean of the centerline where that voxel is tall.
    """
    native = np.abs(frame_affine(slab.grid, geometry.grid.axes, xfm=slab.xfm)[:3, :3]).sum(axis=1)
    line = geometry.centerlines.get(slab.key)
    lean = np.zeros(2)
    if line is not None and line.s_mm.size > 1:
        lean = np.abs(np.diff(line.xy_mm, axis=0) / np.diff(line.s_mm)[:, None]).max(axis=0)
    return np.asarray((native[:2] + lean * native[2]) / geometry.grid.spacing[:2] + 1)


def prepare_session(
    images: NativeImages,
    cords: CordMasks,
    recipe: Recipe,
    *,
    seed: int = 0,
    register: bool = True,
    feather_mm: float = 0.0,
) -> tuple[PreparedCase, FitReport]:
    """Fit and apply in one go: what pipeline and training both call.

    Parameters
    ----------
    images, cords, recipe, seed, register
        As for :func:`fit`.
    feather_mm
        As for :func:`apply`.

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
    sorted_images = {key: [(n.data, n.grid, n.file) for n in stack] for key, stack in session.items()}
    cleaned = {
        key: [n.weights if n.weights is not None else n.cord for n in stack] for key, stack in session.items()
    }
    case = apply(geometry, sorted_images, recipe, cords=cleaned, feather_mm=feather_mm)
    flags = zip(case.sequences, case.available, strict=True)
    blank = [name for name, there in flags if name in session and not there]
    lines = [f"{name} is not used: it is constant or does not cover the cord." for name in blank]
    return case, replace(report, warnings=(*report.warnings, *lines))


# -- labels ----------------------------------------------------------------------------------------


def labels_to_prepared(
    geometry: Geometry, label: npt.NDArray[np.generic], slab: Slab
) -> npt.NDArray[np.int32]:
    """Bring a native label map of one slab to prepared space.

    Parameters
    ----------
    geometry
        Of the session.
    label : (i, j, k) integers
        0 is background.
    slab
        One of the geometry's slabs.

    Returns
    -------
    (i, j, k) int32
        Where the labels' linearly interpolated shares reach one half together, the label with the largest
        share; else 0. (Nearest neighbours would leave the steps of thick slices.)
    """
    return _labels_of_slab(geometry, label, slab)[0]


def session_labels_to_prepared(
    geometry: Geometry, labels: Sequence[npt.NDArray[np.generic] | None], *, key: str
) -> npt.NDArray[np.int32]:
    """Fuse the native label maps of one sequence, seams as in its image.

    Parameters
    ----------
    geometry
        Of the session.
    labels
        One map per slab, uppermost first, numbered consistently; None where a slab has none.
    key
        Sequence.

    Returns
    -------
    (i, j, k) int32
        As :func:`labels_to_prepared`; the serving slab decides wherever it covers, else any slab that does.
    """
    out = np.zeros(geometry.grid.shape, np.int32)
    open_, served = np.ones(out.shape, bool), []
    for slab, label in zip(geometry.slabs_of(key), labels, strict=True):
        if label is not None:
            values, covered = _labels_of_slab(geometry, label, slab)
            own = covered & (seam_weight(geometry.s_mm, slab.serves, 0.0) > 0)
            out[own] = values[own]
            open_ &= ~own
            served.append((values, covered))
    for values, covered in served:
        rest = open_ & covered
        out[rest] = values[rest]
        open_ &= ~rest
    return out


def _labels_of_slab(
    geometry: Geometry, label: npt.NDArray[np.generic], slab: Slab
) -> tuple[npt.NDArray[np.int32], BoolArray]:
    """Prepared labels (i, j, k) and where the slab covers."""
    if label.shape != slab.grid.shape:
        raise GeometryError(f"label of shape {label.shape}", file=slab.file, expected=f"{slab.grid.shape}")
    integer = np.rint(np.asarray(label)).astype(np.int32)
    names = np.unique(integer[integer != 0])
    out, covered = np.zeros(geometry.grid.shape, np.int32), np.zeros(geometry.grid.shape, bool)
    for start, ijk in index_chunks(geometry.grid.shape):
        index = slab.to_index(geometry.to_world(ijk, key=slab.key))
        covered.reshape(-1)[start : start + len(ijk)] = slab.grid.contains(index)
        if names.size:
            out.reshape(-1)[start : start + len(ijk)] = _vote(integer, names, index)
    return out, covered


def _vote(
    integer: npt.NDArray[np.int32], names: npt.NDArray[np.int32], index: FloatArray
) -> npt.NDArray[np.int32]:
    """Label (n,) int32 with the largest share at (n, 3) native indices, 0 below one half in all."""
    where = np.argwhere(integer)
    near = ((index > where.min(axis=0) - 1) & (index < where.max(axis=0) + 1)).all(axis=1)
    out = np.zeros(len(index), np.int32)
    points = index[near]
    inside = sample_linear(integer != 0, points) >= LABEL_SHARE
    if inside.any():
        shares = np.stack([sample_linear(integer == name, points[inside]) for name in names])
        chosen = np.zeros(len(points), np.int32)
        chosen[inside] = names[np.argmax(shares, axis=0)]
        out[near] = chosen
    return out
