"""Names of all outputs: pure functions from a source image or a session to paths below the output folder.

A mask's name loses its source's suffix (``T2w`` becomes ``mask``), so masks of a T2w and a T2*w image of one
session would bear one name. Here everything that lies on the lattice of one source image keeps all its
entities and says the suffix in ``desc-``: ``sub-01_acq-ax_label-SC_desc-T2starw_mask.nii.gz``. What belongs
to the session's result (on the anchor's lattice) has none: ``sub-01_acq-sag_label-lesion_mask.nii.gz``, and
one file for each slab with ``chunk-``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from bids_scseg.errors import OutputError
from bids_scseg.recipe.study import ImageFile

Entities = tuple[tuple[str, str], ...]
OutputSpaces = Literal["anchor", "all"]

# Order of BIDS entities (schema 1.2), as far as anatomical derivatives have them.
ORDER = (
    "sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk", "atlas", "seg",
    "res", "label", "desc",
)  # fmt: skip
# Entities of a source image that masks, segmentations and probability maps may keep.
KEPT = frozenset({"sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk"})
DIGEST_LENGTH = 6  # of what a name cannot keep; a collision needs 16 million images of one name
NIFTI = ".nii.gz"
CORD, LESION, LESIONS = "SC", "lesion", "lesions"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationNames:
    """Paths of one segmentation, relative to the output folder, with forward slashes.

    Attributes
    ----------
    probseg, mask, dseg
        Probability, thresholded mask and numbered instances (``.nii.gz``); their sidecars: :func:`sidecar`.
    """

    probseg: str
    mask: str
    dseg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNames:
    """Paths of the files that a session has once.

    Attributes
    ----------
    result
        Segmentation on the anchor's lattice (all slabs fused).
    table
        Lesion table (``_dseg.tsv``); its columns are described in the sidecar of ``dseg``.
    fused
        The anchor's image, slabs fused (``desc-preproc``).
    geometry, summary
        The fit, and the session's measures and quality, as JSON.
    report, figures
        HTML report at the root, and the prefix of the session's figures.
    log
        State of the session.
    """

    result: SegmentationNames
    table: str
    fused: str
    geometry: str
    summary: str
    report: str
    figures: str
    log: str


def session_label(subject: str, session: str | None) -> str:
    """``sub-X`` or ``sub-X_ses-Y``."""
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")


def session_names(anchor: Sequence[ImageFile], *, subject: str, session: str | None) -> SessionNames:
    """Names of the session's own files.

    Parameters
    ----------
    anchor
        The anchor's images, at least one.
    subject, session
        Labels without prefix.
    """
    label = session_label(subject, session)
    head = _common(anchor)
    folder = _folder(subject, session)
    result = _segmentation(folder, head, desc=None)
    return SessionNames(
        result=result,
        table=result.dseg.removesuffix(NIFTI) + ".tsv",
        fused=_path(folder, (*head, ("desc", "preproc")), anchor[0].suffix, NIFTI),
        geometry=f"{folder}/{label}_geometry.json",
        summary=f"{folder}/{label}_summary.json",
        report=f"{label}.html",
        figures=f"figures/{label}_",
        log=f"logs/{label}.json",
    )


def cord_mask_name(image: ImageFile) -> str:
    """Path of the cord mask on the lattice of a source image."""
    head, desc = _head(image)
    return _path(_image_folder(image), (*head, ("label", CORD), ("desc", desc)), "mask", NIFTI)


def slab_names(anchor: Sequence[ImageFile]) -> tuple[SegmentationNames, ...]:
    """Segmentations on the lattices of the anchor's slabs, in their order.

    Nothing for a single image: its lattice is that of the session's result. Slabs keep their own ``chunk-``
    where each of them has one; otherwise they are numbered from the uppermost, 1.
    """
    if len(anchor) < 2:
        return ()
    own = all(image.entity("chunk") is not None for image in anchor)
    found = []
    for number, image in enumerate(anchor, start=1):
        head, _ = _head(image)
        if not own:
            head = (*(pair for pair in head if pair[0] != "chunk"), ("chunk", str(number)))
        found.append(_segmentation(_image_folder(image), head, desc=None))
    fused = _segmentation(_image_folder(anchor[0]), _common(anchor), desc=None)
    if len({*found, fused}) <= len(
        found
    ):  # slabs that differ in what masks cannot keep, or in one entity more
        found = [image_names(image) for image in anchor]
    return tuple(found)


def image_names(image: ImageFile) -> SegmentationNames:
    """Segmentation on the lattice of any source image (``--output-spaces all``)."""
    head, desc = _head(image)
    return _segmentation(_image_folder(image), head, desc=desc)


def sidecar(path: str) -> str:
    """Path of the JSON file beside an image or a table."""
    for extension in (NIFTI, ".nii", ".tsv"):
        if path.endswith(extension):
            return path.removesuffix(extension) + ".json"
    return path + ".json"


def all_names(
    anchor: Sequence[ImageFile],
    others: Iterable[ImageFile],
    *,
    subject: str,
    session: str | None,
    output_spaces: OutputSpaces = "anchor",
) -> tuple[str, ...]:
    """Every path that a session writes (sidecars and figures apart).

    Raises
    ------
    OutputError
        If two of them were the same, which no set of readable names should bring about.
    """
    others = tuple(others)
    names = session_names(anchor, subject=subject, session=session)
    paths = [names.table, names.fused, names.geometry, names.summary, names.report, names.log]
    paths += [cord_mask_name(image) for image in (*anchor, *others)]
    segmentations = [names.result, *slab_names(anchor)]
    segmentations += [image_names(image) for image in others] if output_spaces == "all" else []
    paths += [getattr(item, field.name) for item in segmentations for field in fields(item)]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise OutputError(
            "two outputs would bear this name", file=twice[0], remedy="exclude one of their source images"
        )
    return tuple(paths)


def join(entities: Entities, suffix: str, extension: str) -> str:
    """File name with its entities in BIDS order."""
    ordered = sorted(entities, key=lambda pair: ORDER.index(pair[0]))
    return "_".join([*(f"{key}-{value}" for key, value in ordered), suffix]) + extension


def _path(folder: str, entities: Entities, suffix: str, extension: str) -> str:
    return f"{folder}/{join(entities, suffix, extension)}"


def _segmentation(folder: str, head: Entities, *, desc: str | None) -> SegmentationNames:
    tail: Entities = (("desc", desc),) if desc else ()
    return SegmentationNames(
        probseg=_path(folder, (*head, ("label", LESION), *tail), "probseg", NIFTI),
        mask=_path(folder, (*head, ("label", LESION), *tail), "mask", NIFTI),
        dseg=_path(folder, (*head, ("seg", LESIONS), *tail), "dseg", NIFTI),
    )


def _folder(subject: str, session: str | None) -> str:
    return "/".join([f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat"])


def _image_folder(image: ImageFile) -> str:
    return _folder(str(image.entity("sub")), image.entity("ses"))


def _head(image: ImageFile) -> tuple[Entities, str]:
    """Entities that outputs keep, and the ``desc-`` value that stands for the rest of the name."""
    kept = tuple(pair for pair in image.entities if pair[0] in KEPT)
    lost = [pair for pair in image.entities if pair[0] not in KEPT]
    suffix = "".join(letter for letter in image.suffix if letter.isalnum())
    if not lost:
        return kept, suffix
    return kept, suffix + hashlib.sha256(repr(lost).encode()).hexdigest()[:DIGEST_LENGTH]


def _common(anchor: Sequence[ImageFile]) -> Entities:
    """Entities on which all slabs agree; a single image keeps all of its own."""
    heads = [_head(image)[0] for image in anchor]
    return tuple(pair for pair in heads[0] if all(pair in head for head in heads[1:]))
