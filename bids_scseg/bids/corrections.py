"""Cord and lesion masks that a reader has corrected: files with ``desc-manual``, looked for and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bids_scseg.bids.dataset import dataset_name
from bids_scseg.bids.masks import (
    DESCRIBING,
    Candidate,
    cord_candidates,
    entity_pairs,
    is_correction,
    named_images,
    named_suffix,
    same_lattice,
    session_files,
)
from bids_scseg.bids.names import KEPT, session_names, slab_names
from bids_scseg.bids.references import WHOLE_TOLERANCE, says_lesion
from bids_scseg.errors import DataError, GeometryError, ScsegError
from bids_scseg.recipe.study import ImageFile, Plan, Study
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_header, read_values
from bids_scseg.space.resample import index_chunks, sample_linear

CORD_FROM = 0.5  # of a cord mask brought onto another lattice
ONE_ONLY = "keep one of them under desc-manual and move the others away"

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CordCorrections:
    """Corrected cord masks of a session.

    Attributes
    ----------
    masks
        (relative path of the image, absolute path of the mask).
    notes
        What belongs to no image of the session.
    conflicts
        What must be decided by people, one sentence each.
    """

    masks: Pairs = ()
    notes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


def find_cord_corrections(study: Study, folders: Iterable[str | Path]) -> CordCorrections:
    """The corrected cord mask of each image.

    Names are those of :func:`.masks.find_cord_masks` with ``desc-manual``; where images have equal entities,
    ``desc-manual<suffix>``, the image's whole name, or the lattice tells which it is. A mask may lie on any
    lattice in its image's world.

    Parameters
    ----------
    study
        The session.
    folders
        The output folder and derivatives folders; a folder that is named twice counts once.
    """
    usable = [image for image in study.images if image.grid is not None]
    found: dict[str, list[str]] = {}
    notes, conflicts = [], []
    for candidate in _cord_files(study, folders):
        name, fits = Path(candidate.path).name, named_images(candidate, usable)
        if not fits:
            notes.append(f"corrected cord mask {name} is not used: it belongs to no image of this session")
            continue
        try:
            fits = _on_own_lattice(fits, read_header(candidate.path))
        except ScsegError as error:
            conflicts.append(f"the corrected cord mask cannot be used: {error}")
            continue
        if len(fits) > 1:
            names = ", ".join(image.name for image in fits)
            conflicts.append(
                f"the corrected cord mask {name} fits several images ({names}); say which by its suffix, as "
                f"in desc-manual{fits[0].suffix}"
            )
        else:
            found.setdefault(fits[0].relative, []).append(candidate.path)
    conflicts += [
        f"{len(paths)} corrected cord masks of one image ({', '.join(paths)}); {ONE_ONLY}"
        for paths in found.values()
        if len(paths) > 1
    ]
    masks = tuple((image, paths[0]) for image, paths in found.items())
    return CordCorrections(masks=masks, notes=tuple(notes), conflicts=tuple(conflicts))


def with_corrections(plan: Plan, study: Study, folders: Iterable[str | Path]) -> Plan:
    """A plan with the session's corrected lesion mask, where there is one.

    Parameters
    ----------
    plan
        Of the session.
    study
        The same session with all its images.
    folders
        The output folder first, then derivatives folders.

    Returns
    -------
    Plan
        As it was without a correction. Else with the mask, or with one for each of some slabs of a sequence,
        and a warning that says so; with a ``conflict`` where there are several masks otherwise.
    """
    if plan.anchor is None:
        return plan
    places = list(folders)
    files = list(_lesion_files(study, places))
    stray = _strays(study, places[:1])
    if not files:
        return replace(plan, warnings=(*plan.warnings, *stray))
    found = [(_drawn_on(plan, study, path), path) for path in files]
    names = ", ".join(path.name for path in files)
    if not _go_together(plan, [place for place, _ in found]):
        paths = ", ".join(str(path) for path in files)
        words = f"{len(found)} corrected lesion masks of one session ({paths}); {ONE_ONLY}"
        conflict = "; ".join(filter(None, [plan.conflict, words]))
        return replace(plan, conflict=conflict, warnings=(*plan.warnings, words, *stray))
    used = {file.relative for sequence in plan.sequences for file in sequence.files}
    notes = [f"lesions are those of the manual correction {names}, in the place of the model's"]
    notes += [
        f"{path.name} was drawn on {place.image.name}, which this run does not use; it is placed by its world"
        for place, path in found
        if place.image is not None and place.image.relative not in used
    ]
    pairs = tuple(
        (place.image.relative if place.image is not None and place.image.relative in used else "", str(path))
        for place, path in found
    )
    return replace(plan, corrections=pairs, warnings=(*plan.warnings, *notes, *stray))


def check_corrections(plan: Plan) -> None:
    """Refuse what a session cannot be worked on with, before anything is computed.

    Raises
    ------
    DataError
        If corrections are in conflict, or voxels of one are no labels.
    ImageError, MissingInputError
        If one cannot be read, or is not one 3-D volume.
    """
    if plan.conflict:
        raise DataError(plan.conflict, expected="one correction of each kind")
    for _, path in plan.corrections:
        read_drawn(path)
    for _, path in plan.cord_masks:
        if is_correction(Path(path).name):
            _read_cord(path)


def correction_links(plans: Iterable[Plan], folders: Mapping[str, Path]) -> dict[str, Path]:
    """Derivatives folders whose corrected masks are used, by their names in BIDS URIs.

    Parameters
    ----------
    plans
        Of all sessions.
    folders
        Derivatives folders by name.
    """
    used = [Path(path).resolve() for plan in plans for path in corrected_files(plan)]
    return {
        dataset_name(name): folder
        for name, folder in folders.items()
        if any(path.is_relative_to(folder.resolve()) for path in used)
    }


def corrected_files(plan: Plan) -> tuple[str, ...]:
    """Absolute paths of the corrected masks that a plan uses, lesions first."""
    cords = (path for _, path in plan.cord_masks if is_correction(Path(path).name))
    return (*(path for _, path in plan.corrections), *cords)


def read_drawn(path: str | Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """A corrected lesion mask: (i, j, k) int32 and its lattice. Any numeric type; all zero is a valid mask.

    Raises
    ------
    DataError
        If values are negative, not finite, or lie between whole numbers.
    ImageError, MissingInputError
        If the file cannot be read, or is not one 3-D volume.
    """
    data, grid = read_values(path)
    _check_finite(data, path)
    whole = np.rint(data)
    odd = np.abs(data - whole) > WHOLE_TOLERANCE
    if odd.any():
        raise DataError(
            f"{int(odd.sum())} voxels lie between whole numbers ({data[odd].flat[0]:g}, for example)",
            file=path,
            expected="0 without lesion, 1 or the lesion's number with",
            remedy="save it as a label image (no smoothing, no interpolation)",
        )
    if whole.max(initial=0) > np.iinfo(np.uint16).max:  # numbers beyond are no lesions
        whole = (whole > 0).astype(np.float32)
    return whole.astype(np.int32), grid


def read_cord(path: str | Path, grid: Grid) -> npt.NDArray[np.float32]:
    """A corrected cord mask on the lattice of its image, (i, j, k) float32 in 0-1.

    A mask on another lattice in the same world is brought there by linear interpolation, cut at one half.

    Raises
    ------
    DataError
        If values are negative or not finite.
    GeometryError
        If it has cord, and none of it in the image.
    ImageError, MissingInputError
        If the file cannot be read, or is not one 3-D volume.
    """
    data, own = _read_cord(path)
    if same_lattice(own, grid):
        return data
    out = np.zeros(grid.shape, np.float32)
    for start, ijk in index_chunks(grid.shape):
        values = sample_linear(data, own.to_index(grid.to_world(ijk)))
        out.reshape(-1)[start : start + len(ijk)] = values >= CORD_FROM
    if data.any() and not out.any():
        raise GeometryError(
            "nothing of this cord mask lies in its image",
            file=path,
            expected="a mask in the world of the image",
            remedy="edit the mask that this program wrote, and keep its header when you save it",
        )
    return out


def _read_cord(path: str | Path) -> tuple[npt.NDArray[np.float32], Grid]:
    data, grid = read_values(path)
    _check_finite(data, path)
    return np.clip(data, 0, 1), grid


def _check_finite(data: npt.NDArray[np.float32], path: str | Path) -> None:
    bad = ~np.isfinite(data) | (data < -WHOLE_TOLERANCE)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} voxels are below 0, NaN or infinite",
            file=path,
            expected="0 outside, positive whole numbers inside",
            remedy="save it as a label image again",
        )


def _cord_files(study: Study, folders: Iterable[str | Path]) -> Iterator[Candidate]:
    seen = set()
    for folder in folders:
        for candidate in cord_candidates(study, Path(folder)):
            path = Path(candidate.path)
            if is_correction(path.name) and path.resolve() not in seen:
                seen.add(path.resolve())
                yield candidate


def _on_own_lattice(images: Sequence[ImageFile], grid: Grid) -> list[ImageFile]:
    """Of images, those with a mask's lattice; all, where none has it."""
    same = [image for image in images if image.grid is not None and same_lattice(grid, image.grid)]
    return same or list(images)


def _lesion_files(study: Study, folders: Iterable[str | Path]) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        for path in session_files(study, Path(folder)):
            if is_correction(path.name) and says_lesion(study, path.name) and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _strays(study: Study, folders: Iterable[str | Path]) -> list[str]:
    """Files of the output folder that say manual, and neither lesion nor cord."""
    found = []
    for folder in map(Path, folders):
        cords = {item.path for item in cord_candidates(study, folder)}
        found += [
            f"{path.name} is not used: its name says neither label-lesion nor label-SC, or another space"
            for path in session_files(study, folder)
            if is_correction(path.name) and not says_lesion(study, path.name) and str(path) not in cords
        ]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What a lesion mask was drawn on: an image, joined slabs of which it is the uppermost, or neither."""

    image: ImageFile | None = None
    joined: bool = False


def _drawn_on(plan: Plan, study: Study, path: Path) -> _Place:
    """The image's whole name decides, then the names of this program's own outputs, then the lattice."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    owners = [image for image in study.images if stem.startswith(f"{image.stem}_")]
    if owners:
        return _Place(image=max(owners, key=lambda image: len(image.stem)))
    pairs = entity_pairs(path.name)
    head = frozenset(pair for pair in pairs if pair[0] not in DESCRIBING)
    fits = _named(plan, study, head, named_suffix(study.images, dict(pairs).get("desc", "")))
    try:
        grid = read_header(path)
    except ScsegError:
        return _Place(image=fits[0] if fits else None)  # told before the session starts
    same = [
        image
        for image in (fits or _anchor_first(plan, study))
        if image.grid is not None and same_lattice(grid, image.grid)
    ]
    if same:
        return _Place(image=same[0])
    joined = _joined(plan).get(head)
    return _Place(image=joined, joined=True) if joined else _Place(image=fits[0] if fits else None)


def _named(plan: Plan, study: Study, head: frozenset[tuple[str, str]], suffix: str | None) -> list[ImageFile]:
    """Images whose entities, or number among the slabs of a sequence, a name states; the anchor's first."""
    fits = [image for image in _anchor_first(plan, study) if _kept(image.entities) == head]
    for sequence in plan.sequences:
        for file, names in zip(sequence.files, slab_names(sequence.files), strict=False):
            if head == _head(names.mask) and file not in fits:
                fits.append(file)
    return [image for image in fits if image.suffix == suffix] or fits


def _joined(plan: Plan) -> dict[frozenset[tuple[str, str]], ImageFile]:
    """Entities of the joined results of sequences of several slabs, with the uppermost slab of each."""
    names = {
        item: session_names(item.files, subject=plan.subject, session=plan.session).result.mask
        for item in plan.sequences
        if len(item.files) > 1
    }
    ordered = sorted(names.items(), key=lambda pair: pair[0].name == plan.anchor)  # the anchor's counts
    return {_head(mask): item.files[0] for item, mask in ordered}


def _head(path: str) -> frozenset[tuple[str, str]]:
    return frozenset(pair for pair in entity_pairs(path.rsplit("/", 1)[-1]) if pair[0] not in DESCRIBING)


def _kept(entities: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset(pair for pair in entities if pair[0] in KEPT)


def _anchor_first(plan: Plan, study: Study) -> list[ImageFile]:
    used = [file for item in plan.sequences if item.name == plan.anchor for file in item.files]
    used += [file for item in plan.sequences if item.name != plan.anchor for file in item.files]
    return [*used, *(image for image in study.images if image not in used)]


def _go_together(plan: Plan, places: Sequence[_Place]) -> bool:
    """Whether masks are one, or of different slabs of one sequence."""
    if len(places) == 1:
        return True
    drawn = {place.image.relative for place in places if place.image is not None and not place.joined}
    if len(drawn) < len(places):
        return False
    return any(drawn <= {file.relative for file in sequence.files} for sequence in plan.sequences)
