"""Masks and labels that the user already has, in derivatives folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_scseg import files
from bids_scseg.bids.names import sidecar
from bids_scseg.errors import DataError, ScsegError
from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_header

MASK_SUFFIXES = frozenset({"mask", "seg", "dseg"})
CORD_LABELS = frozenset({"sc", "cord", "spinalcord"})
POINT_LABELS = frozenset({"discs", "disc", "vertebrae", "vertebra"})
LABEL_SUFFIXES = frozenset({"dlabel", "dseg", "labels", "label"})
DESCRIBING = frozenset({"label", "desc", "space", "seg", "res", "atlas", "labels"})  # not the image's own
MANUAL = "manual"  # value of desc- of what a person corrected
MANUAL_WORDS = (MANUAL, "corrected", "fixed", "truth", "edited")
# What a mask without label- shows instead of the cord, by its desc-.
NOT_CORD = re.compile(r"lesion|canal|csf|gr[ae]y|white|^[gw]m|disc|vertebra|root|brain", re.IGNORECASE)
# As the toolbox names itself in GeneratedBy (spinalcordtoolbox: sct_deepseg …), and as people do.
SCT_NAME = re.compile(r"spinal[ _-]?cord[ _-]?toolbox|\bsct(_\w+)?\b", re.IGNORECASE)
SAME_GRID_MM = 0.5  # corners of mask and image lie closer than this: the same lattice up to rounding (ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file of a derivatives folder whose name says cord mask.

    Attributes
    ----------
    path
        Absolute.
    head
        Entities of the source image.
    source_suffix
        Stem of the source image where the name keeps it, else the suffix that ``desc-`` names, else None.
    manual
        Whether the name says that a person made or changed it.
    """

    path: str
    head: tuple[tuple[str, str], ...]
    source_suffix: str | None
    manual: bool


def find_cord_masks(
    study: Study, derivatives: Iterable[str | Path], *, corrections: bool = True
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The user's cord mask of each image.

    Recognised names: ``<image>_label-SC_seg``, ``<image>_label-SC_mask``, ``<image>_seg-manual``,
    ``<image>_seg`` and, without the image's suffix, ``<entities>_label-SC[_desc-...]_mask`` (also ``seg``,
    ``dseg``). A name that keeps the image's suffix belongs to that image. Otherwise entities must agree, then
    the suffix in ``desc-`` (as this program writes), then the lattice; a mask that still fits two images is
    not used. A mask on another lattice than its image is not used either. Of several, manual ones come first,
    then the earlier folder, then the first name.

    Parameters
    ----------
    study
        The session.
    derivatives
        Roots of derivatives datasets, the most trusted first.
    corrections
        Whether ``desc-manual`` masks count here; :mod:`.corrections` has its own rules for them.

    Returns
    -------
    masks
        (relative path of the image, absolute path of the mask), in the study's order.
    warnings
        What was not used and why.
    """
    usable = [image for image in study.images if image.grid is not None]
    best: dict[str, Candidate] = {}
    warnings: list[str] = []
    for folder in derivatives:
        for candidate in cord_candidates(study, Path(folder)):
            if not corrections and is_correction(Path(candidate.path).name):
                continue
            image, note = _owner(candidate, usable)
            if note:
                warnings.append(note)
            if image is None:
                continue
            known = best.get(image.relative)
            if known is None or (candidate.manual and not known.manual):
                best[image.relative] = candidate
    masks = tuple((image.relative, best[image.relative].path) for image in usable if image.relative in best)
    return masks, tuple(warnings)


def find_labels(
    study: Study, derivatives: Iterable[str | Path], *, anchor: Iterable[ImageFile] = ()
) -> tuple[str, ...]:
    """Absolute paths of disc and vertebra label images of a session.

    Discs come first, and among them those drawn on the images of `anchor` (the subject may have moved between
    sequences). Any lattice will do: points are used by their world coordinates. Recognised are ``label-`` or
    ``seg-`` with ``discs`` or ``vertebrae`` and the suffixes ``dlabel`` or ``dseg``, and the older ending
    ``_labels-disc-manual``.
    """
    heads = [set(image.entities) for image in anchor]
    found = []
    for folder in derivatives:
        for path in session_files(study, Path(folder)):
            kind = point_kind(path.name)
            if kind is not None:
                head = {pair for pair in entity_pairs(path.name) if pair[0] not in DESCRIBING}
                found.append((kind != "discs", head not in heads, str(path)))
    return tuple(path for *_, path in sorted(found, key=lambda item: item[:2]))


def same_lattice(mask: Grid, image: Grid) -> bool:
    """Whether two lattices agree in shape and, to half a millimetre, in place."""
    if mask.shape != image.shape:
        return False
    return bool(np.linalg.norm(mask.corners() - image.corners(), axis=1).max() < SAME_GRID_MM)


def point_kind(name: str) -> str | None:
    """``discs`` or ``vertebrae`` if a file's name says so."""
    lowered = name.lower()
    if re.search(r"_labels?-discs?(-manual)?[_.]", lowered):
        return "discs"
    stated = {value for key, value in entity_pairs(lowered) if key in ("label", "seg")} & POINT_LABELS
    if not stated or lowered.split(".")[0].rsplit("_", 1)[-1] not in LABEL_SUFFIXES:
        return None
    return "discs" if stated & {"discs", "disc"} else "vertebrae"


def is_correction(name: str) -> bool:
    """Whether a file's name says that a person corrected it: ``desc-manual``, whatever follows that word."""
    return dict(entity_pairs(name)).get("desc", "").lower().startswith(MANUAL)


def is_by_sct(mask: str | Path) -> bool:
    """Whether the Spinal Cord Toolbox made a mask, by ``GeneratedBy`` in its sidecar, else of its dataset.

    What a person drew or corrected is no program's: names that say so, and records that list ``Manual``.
    """
    path = Path(mask)
    if any(word in path.name.lower() for word in MANUAL_WORDS):
        return False
    root = next((folder.parent for folder in path.parents if folder.name.startswith("sub-")), path.parent)
    makers = _makers(path.with_name(sidecar(path.name))) or _makers(root / "dataset_description.json")
    by_hand = any(name.lower() == MANUAL for name in makers)
    return not by_hand and any(SCT_NAME.search(name) for name in makers)


def _makers(record: Path) -> list[str]:
    """Names in a record's ``GeneratedBy``; none where there is nothing of the kind."""
    try:
        listed = files.read_json(record)["GeneratedBy"]  # type: ignore[index]
        return [str(entry["Name"]) for entry in listed]
    except (DataError, TypeError, KeyError):
        return []


def entity_pairs(name: str) -> list[tuple[str, str]]:
    """Entities of a name of any kind; parts that are none (a kept suffix) are passed over."""
    parts = name.split(".")[0].split("_")
    return [(key, value) for part in parts if "-" in part for key, value in [part.split("-", 1)]]


def session_files(study: Study, derivatives: Path) -> list[Path]:
    """NIfTI files of the session in a derivatives folder, sorted by name."""
    folder = derivatives / f"sub-{study.subject}"
    if study.session:
        folder = folder / f"ses-{study.session}"
    found = []
    for place in (folder / "anat", folder):
        if place.is_dir():
            found += [
                Path(entry.path).absolute()
                for entry in sorted(os.scandir(place), key=lambda item: item.name)
                if entry.name.endswith((".nii.gz", ".nii")) and entry.name.startswith(f"{study.label}_")
            ]
    return found


def cord_candidates(study: Study, derivatives: Path) -> list[Candidate]:
    """Files of the session in a derivatives folder whose names say cord mask, sorted by name."""
    found = [_cord_candidate(study, path) for path in session_files(study, derivatives)]
    return [candidate for candidate in found if candidate is not None]


def _cord_candidate(study: Study, path: Path) -> Candidate | None:
    """Take a name apart; None if it does not say cord mask."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    owner = max(
        (image.stem for image in study.images if stem.startswith(f"{image.stem}_")), key=len, default=None
    )
    parts = (stem if owner is None else stem.removeprefix(f"{owner}_")).split("_")
    words = {part.lower() for part in parts[:-1] if "-" not in part}
    if words - (frozenset() if owner is None else CORD_LABELS):
        return None  # the suffix of an image that is not here, or what else the mask shows (T2w_gm_seg)
    pairs = [(key, value) for part in parts if "-" in part for key, value in [part.split("-", 1)]]
    values = dict(pairs)
    suffix = parts[-1]
    label = values.get("label", "").lower()
    manual_tail = owner is not None and suffix == "seg-manual"
    if not manual_tail and suffix not in MASK_SUFFIXES:
        return None
    if not (label in CORD_LABELS or (owner is not None and not label and _bare(values, suffix))):
        return None
    if values.get("space", "orig") != "orig" or "res" in values:  # not on the image's own lattice
        return None
    return Candidate(
        path=str(path),
        head=tuple(pair for pair in pairs if pair[0] not in DESCRIBING),
        source_suffix=_source_suffix(study, owner, values),
        manual=manual_tail or any(word in path.name.lower() for word in MANUAL_WORDS),
    )


def _bare(values: dict[str, str], suffix: str) -> bool:
    """Whether a name after the image's own says nothing but ``seg`` (a cord by an old convention)."""
    if suffix not in {"seg", "seg-manual"} or set(values) - {"seg", "desc"}:
        return False
    shown = values.get("seg", MANUAL).lower()
    return shown in {MANUAL, *CORD_LABELS} and not NOT_CORD.search(values.get("desc", ""))


def _source_suffix(study: Study, owner: str | None, values: dict[str, str]) -> str | None:
    """Stem of the image where the name keeps it, else the suffix that ``desc-`` names."""
    return owner if owner is not None else named_suffix(study.images, values.get("desc", ""))


def named_suffix(images: Iterable[ImageFile], desc: str) -> str | None:
    """The suffix of one of the images that a ``desc-`` value names, alone or after ``manual``."""
    word = desc[len(MANUAL) :] if desc.lower().startswith(MANUAL) else desc
    return word if word in {image.suffix for image in images} else None


def named_images(candidate: Candidate, images: Iterable[ImageFile]) -> list[ImageFile]:
    """The images that a mask can belong to by its name."""
    known = list(images)
    fits = [image for image in known if image.stem == candidate.source_suffix]
    if fits:
        return fits
    fits = [image for image in known if image.entities == candidate.head]
    return [image for image in fits if image.suffix == candidate.source_suffix] or fits


def _owner(candidate: Candidate, images: list[ImageFile]) -> tuple[ImageFile | None, str]:
    """The image that a mask belongs to, or None with what to tell."""
    name = Path(candidate.path).name
    fits = named_images(candidate, images)
    if not fits:
        return None, ""
    try:
        grid = read_header(candidate.path)
    except ScsegError as error:
        return None, f"cord mask not used: {error}"
    same = [image for image in fits if image.grid is not None and same_lattice(grid, image.grid)]
    if not same:
        return None, f"cord mask {name} is not used: its lattice differs from that of {fits[0].name}"
    if len(same) > 1:
        names = ", ".join(image.name for image in same)
        return None, f"cord mask {name} is not used: it fits several images ({names})"
    return same[0], ""
