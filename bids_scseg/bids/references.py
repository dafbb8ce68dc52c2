"""Lesion references: the masks and instance maps that people drew, in derivatives folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bids_scseg import files
from bids_scseg.bids.dataset import is_own_dataset
from bids_scseg.bids.masks import (
    DESCRIBING,
    MANUAL_WORDS,
    entity_pairs,
    is_correction,
    same_lattice,
    session_files,
)
from bids_scseg.bids.names import sidecar
from bids_scseg.bids.write import APP_NAME
from bids_scseg.errors import DataError, GeometryError, MissingInputError
from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_header

LESION_WORD = "lesion"
SUFFIXES = frozenset({"mask", "seg", "dseg", "manual"})
WHOLE_DESC = "truth"  # of maps of a whole session, as the synthetic datasets name them
NAMES_SHOWN = 6
WHOLE_TOLERANCE = 1e-3  # distance from a whole number that scaling in a header can leave (ours)
SOFT_FROM = 0.5  # share of lesion from which a voxel of a soft mask is one
SOFT_UP_TO = 1.5  # largest value of a soft mask; interpolation overshoots 1 (ours)
#: In a map of numbers, neighbours inside lesions mostly bear the same number; where fewer than this share do,
#: its values are intensities (ours).
SAME_NUMBER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionMap:
    """One file in which lesions are drawn.

    Attributes
    ----------
    path
        Absolute.
    image
        The image on whose lattice it is drawn; None for a map of the whole session in the anchor's world.
    grid
        Its own lattice.
    whole
        Whether its name says that it is a map of the whole session: ``res-`` or ``desc-truth`` and no entity
        of an image. A map that fits no image and is not named so may still lie on a fused lattice, which is
        known after the fit only.
    world
        Of a map that a reader corrected (``desc-manual``) on another lattice than its image's: the image in
        whose world it lies.
    group
        Maps of one image (or, without an image, of one name apart from what describes the map) share it.
    """

    path: str
    image: ImageFile | None
    grid: Grid
    whole: bool = False
    world: ImageFile | None = None
    group: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return Path(self.path).name

    @property
    def anywhere(self) -> bool:
        """Whether it may lie on any lattice: what a reader corrected is placed by its world."""
        return is_correction(self.name)

    @property
    def table(self) -> Path:
        """Where a table of its lesions would be."""
        return Path(self.path).with_name(self.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")


def find_lesion_maps(
    study: Study, roots: Iterable[str | Path], *, desc: str | None = None
) -> tuple[tuple[LesionMap, ...], tuple[str, ...]]:
    """The lesion references of a session.

    A name says lesion by ``label-lesion``, ``seg-lesions`` or ``desc-lesion…`` with the suffix ``mask``,
    ``seg`` or ``dseg``, or by a last part such as ``lesion``, ``lesion-manual`` or ``lesionseg``; ``desc-X``
    with ``dseg`` says so too where `desc` is X. A name that keeps an image's name belongs to that image.
    Otherwise entities must agree, then the lattice. Of several maps of one image, those of the earlier folder
    come first, then manual ones, then instance maps (``dseg``). A map of the whole session
    (``res-…``/``desc-truth`` without entities of an image) stands alone. What this program found is never a
    reference: of its output folders, and of files whose sidecar names it, those with ``desc-manual`` alone
    count.

    Parameters
    ----------
    study
        The session.
    roots
        Derivatives folders, the most trusted first.
    desc
        Only maps with this ``desc-`` value (one rater, one version).

    Returns
    -------
    maps
        One for each annotated image, or one for the session.
    notes
        What was found and is not used.

    Raises
    ------
    MissingInputError
        If the session has no lesion map at all (a lesion-free session has an empty one).
    GeometryError
        If a map's lattice is not that of the image that its name keeps.
    DataError
        If two maps of one image are equally good.
    ImageError
        If a map's header cannot be used.
    """
    roots = tuple(roots)
    ranked: list[tuple[int, Path]] = []
    spurned: list[str] = []
    own: list[str] = []
    for rank, root in enumerate(roots):
        ours = is_own_dataset(root)
        for path in session_files(study, Path(root)):
            verdict = says_lesion(study, path.name, desc=desc)
            if verdict and not is_correction(path.name) and (ours or _is_ours(path)):
                own.append(path.name)
            elif verdict:
                ranked.append((rank, path))
            elif LESION_WORD in path.name.lower() and not ours:
                spurned.append(path.name)
    if not ranked:
        raise _only_own(study, own) if own else _no_map(study, spurned, desc=desc, roots=roots)
    found = [(rank, _place(study, path)) for rank, path in ranked]
    whole = [(rank, item) for rank, item in found if item.whole]
    notes = [f"{name} is no lesion map by its name" for name in spurned]
    notes += [f"{name} is a result of this program, and no reference" for name in own]
    if whole:
        chosen = [_best(whole)]
    else:
        groups = dict.fromkeys(item.group for _, item in found)
        chosen = [_best([(rank, item) for rank, item in found if item.group == group]) for group in groups]
    unused = [item.name for _, item in found if item not in chosen]
    if unused:
        notes.append(f"{' and '.join(i.name for i in chosen)} came before {', '.join(unused)}")
    return tuple(chosen), tuple(notes)


def _is_ours(path: Path) -> bool:
    """Whether a file's sidecar says that this program made it."""
    try:
        made = files.read_json(path.with_name(sidecar(path.name)))
        return APP_NAME in [entry["Name"] for entry in made["GeneratedBy"]]  # type: ignore[index]
    except (DataError, TypeError, KeyError):
        return False


def says_lesion(study: Study, name: str, *, desc: str | None = None) -> bool:
    """Whether a file's name says lesion map (of that ``desc-`` value, where one is asked for)."""
    parts = _tail(study, name)
    values = dict(entity_pairs("_".join(parts)))
    if desc is not None and values.get("desc") != desc:
        return False
    last = parts[-1].lower()
    if "prob" in last or values.get("space", "orig") != "orig":
        return False
    named = any(LESION_WORD in values.get(key, "").lower() for key in ("label", "seg", "desc", "labels"))
    spoken = any(part.lower().startswith(LESION_WORD) for part in parts)
    if named or spoken:
        return last in SUFFIXES or last.startswith(LESION_WORD)
    asked = desc is not None or values.get("desc") == WHOLE_DESC
    return asked and last == "dseg" and not {"label", "seg"} & set(values)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _owner(study: Study, name: str) -> ImageFile | None:
    """The image whose whole name the file keeps."""
    fits = [image for image in study.images if _stem(name).startswith(f"{image.stem}_")]
    return max(fits, key=lambda image: len(image.stem), default=None)


def _tail(study: Study, name: str) -> list[str]:
    """Parts of a name after that of its image (all parts, where it keeps none)."""
    owner = _owner(study, name)
    return (_stem(name) if owner is None else _stem(name).removeprefix(f"{owner.stem}_")).split("_")


def _place(study: Study, path: Path) -> LesionMap:
    """Which image a map belongs to."""
    grid = read_header(path)
    owner = _owner(study, path.name)
    if owner is not None and is_correction(path.name) and not _has_lattice(grid, [owner]):
        return LesionMap(path=str(path), image=None, grid=grid, world=owner, group=owner.relative)
    if owner is not None:
        if owner.grid is None or not _drawn_in(grid, owner.grid):
            raise lattice_error(path, grid, [owner])
        return LesionMap(path=str(path), image=owner, grid=grid, group=owner.relative)
    pairs = entity_pairs(path.name)
    values = dict(pairs)
    head = tuple(pair for pair in pairs if pair[0] not in DESCRIBING)
    if {key for key, _ in head} <= {"sub", "ses"} and ("res" in values or values.get("desc") == WHOLE_DESC):
        return LesionMap(path=str(path), image=None, grid=grid, whole=True, group="whole")
    usable = [image for image in study.images if image.grid is not None]
    same = [image for image in usable if image.grid is not None and same_lattice(grid, image.grid)]
    named = [image for image in usable if image.entities == head]
    fits = [image for image in named if image in same] or ([] if named else same)
    fits = [image for image in fits if image.suffix == values.get("desc")] or fits
    if len(fits) > 1:
        raise DataError(
            f"fits several images ({', '.join(image.name for image in fits)})",
            file=path,
            expected="a name that keeps the image's own",
            remedy=f"rename it to {fits[0].stem}_label-lesion_seg.nii.gz, if that is its image",
        )
    image = fits[0] if fits else None
    if image is None and named and is_correction(path.name):
        return LesionMap(path=str(path), image=None, grid=grid, world=named[0], group=named[0].relative)
    group = image.relative if image else "_".join("-".join(pair) for pair in head)
    return LesionMap(path=str(path), image=image, grid=grid, group=group)


def _has_lattice(grid: Grid, images: Sequence[ImageFile]) -> bool:
    return any(image.grid is not None and same_lattice(grid, image.grid) for image in images)


def _drawn_in(grid: Grid, image: Grid) -> bool:
    """Whether a map that bears an image's name has its voxels: the same shape, nowhere a voxel apart.

    Tools round headers, and name and shape agree; what was drawn voxel by voxel is taken voxel by voxel.
    """
    if grid.shape != image.shape:
        return False
    apart = float(np.linalg.norm(grid.corners() - image.corners(), axis=1).max())
    return same_lattice(grid, image) or apart < float(image.spacing.min())


def _best(candidates: Sequence[tuple[int, LesionMap]]) -> LesionMap:
    """The first choice among maps of one image."""

    def preference(item: tuple[int, LesionMap]) -> tuple[int, bool, bool]:
        rank, found = item
        manual = any(word in found.name.lower() for word in MANUAL_WORDS)
        return rank, not manual, not _stem(found.name).endswith("_dseg")

    order = sorted(candidates, key=preference)
    ties = [found for rank, found in order if preference((rank, found)) == preference(order[0])]
    if len(ties) > 1:
        raise DataError(
            f"{len(ties)} lesion maps of one image ({', '.join(item.name for item in ties[:NAMES_SHOWN])})",
            file=Path(ties[0].path).parent,
            expected="one",
            remedy="choose with --lesion-desc, or move the others away",
        )
    return order[0][1]


def _no_map(
    study: Study, spurned: Sequence[str], *, desc: str | None, roots: Sequence[str | Path]
) -> MissingInputError:
    elsewhere = [path for root in roots for path in _astray(study, Path(root))]
    if elsewhere and not spurned:
        places = "/".join([f"sub-{study.subject}", *([f"ses-{study.session}"] * bool(study.session)), "anat"])
        return MissingInputError(
            f"{study.label} has lesion maps in other places alone ({', '.join(elsewhere[:NAMES_SHOWN])})",
            expected=f"names that begin with {study.label}_ in {places} of the labels folder",
            remedy="move and rename them so",
        )
    near = f" (by their names these are none: {', '.join(spurned[:NAMES_SHOWN])})" if spurned else ""
    wanted = (
        f"*_desc-{desc}_…" if desc else "*_label-lesion_mask.nii.gz, *_dseg.nii.gz or *_lesion-manual.nii.gz"
    )
    return MissingInputError(
        f"{study.label} has no lesion map{near}",
        expected=f"{wanted} in the labels folder",
        remedy="draw one; of a session without lesions, an empty one",
    )


def _astray(study: Study, root: Path) -> list[str]:
    """Files of a labels folder that may be a session's lesion maps, in other places or under other names."""
    used = {path.name for path in session_files(study, root)}
    own = re.compile(rf"{re.escape(study.label)}[_.]")
    session = re.compile(
        rf"ses-{re.escape(study.session)}(?![A-Za-z0-9])" if study.session else "^(?!.*ses-)"
    )
    beside = [path for path in root.glob("*") if own.match(path.name)]
    below = (root / f"sub-{study.subject}").rglob("*")
    inside = [path for path in below if session.search(path.relative_to(root).as_posix())]
    return sorted(
        path.relative_to(root).as_posix()
        for path in (*beside, *inside)
        if LESION_WORD in path.name.lower()
        and path.name.endswith((".nii", ".nii.gz"))
        and path.name not in used
    )


def strange_labels(studies: Iterable[Study], roots: Iterable[str | Path]) -> tuple[str, ...]:
    """What is in labels folders and belongs to no session, one sentence each.

    Parameters
    ----------
    studies
        All sessions of the dataset.
    roots
        Labels folders.

    Returns
    -------
    Subjects with files that are not in the dataset, and those whose files say another session.
    """
    sessions: dict[str, set[str]] = {}
    for study in studies:
        sessions.setdefault(f"sub-{study.subject}", set()).add(
            f"ses-{study.session}" if study.session else ""
        )
    found: dict[str, str] = {}
    for folder in (path for root in roots for path in sorted(Path(root).glob("sub-*")) if path.is_dir()):
        known = sessions.get(folder.name)
        own = {path.name for path in folder.glob("ses-*")} or {""}
        for name in sorted(own if known is None else own - known):
            label = f"{folder.name}_{name}".removesuffix("_")
            found[label] = f"labels of {label} are not used: the dataset has no such session"
    return tuple(found.values())


def _only_own(study: Study, own: Sequence[str]) -> MissingInputError:
    return MissingInputError(
        f"{study.label} has lesion maps of this program alone, which are no labels "
        f"({', '.join(own[:NAMES_SHOWN])})",
        expected="masks that somebody drew or corrected",
        remedy="review one, and save it under the same name with desc-manual",
    )


def lesion_numbers(data: npt.NDArray[np.float32], *, file: str | Path) -> npt.NDArray[np.int32]:
    """What the values of a lesion map mean, whoever wrote it.

    Parameters
    ----------
    data : (i, j, k) float32
        Finite, none below 0. Whole numbers, to rounding: lesions. Others: shares of lesion, cut at one half.
    file
        For messages.

    Returns
    -------
    (i, j, k) int32, 0 background; a soft mask gives 0 and 1.

    Raises
    ------
    DataError
        If values are neither numbers of lesions nor shares: a mask of 0 and 255 that was smoothed or
        interpolated, for example.
    """
    whole = np.rint(data)
    if np.abs(data - whole).max(initial=0) > WHOLE_TOLERANCE:
        if data.max() >= SOFT_UP_TO:
            raise _no_numbers(f"values between whole numbers, up to {data.max():g}", file)
        return np.asarray(data >= SOFT_FROM, np.int32)
    if _is_grey(whole):
        values = np.unique(whole[whole > 0]).size
        raise _no_numbers(f"{values} values that differ from voxel to voxel, up to {whole.max():g}", file)
    return np.asarray(whole, np.int32)


def _no_numbers(found: str, file: str | Path) -> DataError:
    return DataError(
        found,
        file=file,
        expected="one value for lesion, a number for each lesion, or shares of lesion from 0 to 1",
        remedy="resample the drawn mask with nearest neighbours, or divide by the value that means lesion",
    )


def _is_grey(whole: npt.NDArray[np.float32]) -> bool:
    """Whether whole values are shades, not numbers of lesions."""
    marked = whole > 0
    if np.unique(whole[marked]).size < 3:  # a mask, or two kinds of lesion
        return False
    pairs = same = 0
    for axis in range(whole.ndim):
        one, two = np.moveaxis(whole, axis, 0)[:-1], np.moveaxis(whole, axis, 0)[1:]
        both = (one > 0) & (two > 0)
        pairs += int(both.sum())
        same += int((both & (one == two)).sum())
    return same < SAME_NUMBER * pairs


def lattice_error(path: str | Path, grid: Grid, images: Sequence[ImageFile]) -> GeometryError:
    """The error of a map that lies on no image's lattice, with what differs."""
    nearest = next((image for image in images if image.grid is not None), None)
    if nearest is None or nearest.grid is None:
        return GeometryError("belongs to an image that cannot be read", file=path, remedy="mend the image")
    sizes = " x ".join(f"{size:.2g}" for size in nearest.grid.spacing)
    found = f"lesion map of {_shape(grid)} voxels of {' x '.join(f'{s:.2g}' for s in grid.spacing)} mm"
    remedy = "resample it to the image with nearest neighbours"
    if grid.shape == nearest.grid.shape:
        apart = float(np.linalg.norm(grid.corners() - nearest.grid.corners(), axis=1).max())
        found += f" that lies up to {apart:.1f} mm elsewhere"
        remedy = (
            "if it was drawn on this image, its header was lost on the way: copy the image's affine into it"
        )
    return GeometryError(
        found,
        file=path,
        expected=f"the lattice of {nearest.name}: {_shape(nearest.grid)} voxels of {sizes} mm",
        remedy=remedy,
    )


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))
