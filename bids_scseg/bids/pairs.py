"""Pairs of a reference mask and a prediction in two folders, of this program or of any other.

Partners are found by the same path below both folders, else by the BIDS entities of the image that a mask was
made for, else by session where that leaves one choice. Whatever finds no partner, or several, is listed.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd

from bids_scseg.errors import DataError, MissingInputError

Entities = frozenset[tuple[str, str]]
Key = TypeVar("Key", bound=Hashable)
#: Of a mask: entities, suffix, space, description.
Identity = tuple[Entities, str, str, str]
Places = dict[int, tuple[str | None, str | None]]

NATIVE = "native"
EXTENSIONS = (".nii.gz", ".nii")
#: Entities that describe the mask and not the image it was made for.
DESCRIBING = frozenset({"label", "desc", "space", "seg", "res", "den", "atlas", "lesion", "labels"})
#: Suffixes of images, which names of other programs keep, and this program's in ``desc-`` (there followed by
#: six characters of a checksum where the name cannot keep all entities).
IMAGE_SUFFIX = re.compile(
    r"(T1w|T2w|T2starw|PDw|PDT2|FLAIR|UNIT1|MP2RAGE|PSIR|STIR|T1rho|T2star|inplaneT[12]|T1map|T2map|MTR)"
    r"([0-9a-f]{6})?"
)
#: Of several files of one mask, the one whose suffix comes first is used.
KINDS = ("mask", "seg", "dseg")
PROBABILITY_WORDS = ("probseg", "_prob", "softseg")
#: Folders of a dataset that hold no results.
SKIPPED = frozenset({"work", "sourcedata", "figures", "logs", "group", "code"})
PLACE_COLUMNS = ("level", "column")
#: What tables write where a value is missing; BIDS has n/a alone, other programs the rest.
MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN", "None", "null")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """A mask (or probability map) and what its name says.

    Attributes
    ----------
    path
        Absolute.
    relative
        Path below its folder, forward slashes.
    subject, session
        Labels with prefix, of the name or else of the folders; session empty where there is none. A file
        without ``sub-`` is its own subject, by its path.
    entities
        Of the image that it was made for.
    suffix
        Suffix of that image where the name tells; empty where not.
    space
        ``native``, or the ``space-`` and ``res-`` of the name.
    desc
        Value of ``desc-`` where it is no suffix; empty for none.
    kind
        Suffix of the file itself.
    twins
        Other files of the same mask, such as its numbered instances.
    """

    path: Path
    relative: str
    subject: str
    session: str
    entities: Entities
    suffix: str
    space: str
    desc: str
    kind: str
    twins: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """Relative path without extension."""
        return _stem(self.relative)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A reference mask with its prediction, and how they were found (``name``, ``entities``, ``session``)."""

    truth: MaskFile
    prediction: MaskFile
    how: Literal["name", "entities", "session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """A file that takes no part, with the reason.

    Attributes
    ----------
    side
        ``truth`` or ``prediction``.
    file
        Relative path.
    state
        ``missing`` (no partner), ``ambiguous`` (several), ``refused`` (the pair cannot be compared), or
        ``elsewhere`` (a reference mask in another space than the evaluation's).
    reason
        In words.
    """

    side: Literal["truth", "prediction"]
    file: str
    state: Literal["missing", "ambiguous", "refused", "elsewhere"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """All files of two folders: in a pair or listed."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[Unpaired, ...]


def find_masks(folder: str | Path, *, pattern: str | None = None) -> tuple[MaskFile, ...]:
    """Lesion masks of a folder and its subfolders, sorted by path.

    Where names say ``lesion``, only those files count; else all NIfTI files that are no images or probability
    maps by their name. Where there are ``sub-`` folders, only they are searched.

    Parameters
    ----------
    folder
        Any folder.
    pattern
        Shell pattern that the relative path or the file name must match; then no other rule applies.

    Raises
    ------
    MissingInputError
        If there is no such folder or nothing in it counts.
    """
    root = _existing(folder)
    found = [_describe(root, path) for path in _nifti_files(root)]
    if pattern is not None:
        kept = [item for item in found if _matches(item, pattern)]
    else:
        plain = [item for item in found if not _is_probability(item) and _is_mask_name(item)]
        kept = [item for item in plain if _names_lesion(item)] or plain
    if not kept:
        raise MissingInputError(
            f"no lesion masks among {len(found)} NIfTI files",
            file=root,
            expected=f"files matching {pattern!r}" if pattern else "names with label-lesion, or masks alone",
            remedy="name another folder, or select files with --truth-files or --pred-files",
        )
    return _merge_twins(kept)


class ProbabilityMaps(tuple[MaskFile, ...]):
    """Maps of a folder; one is found without going through all of them (a mask of many asks for its own)."""

    @cached_property
    def by_stem(self) -> Mapping[str, Sequence[MaskFile]]:
        """Maps by relative path without extension."""
        return _grouped(self, lambda item: item.stem)

    @cached_property
    def by_identity(self) -> Mapping[Identity, Sequence[MaskFile]]:
        """Maps by image, description and space."""
        return _grouped(self, _identity)


def find_probabilities(folder: str | Path, *, only_named: bool = True) -> ProbabilityMaps:
    """Probability maps of a folder: files named so; where there are none, all unless ``only_named``."""
    root = _existing(folder)
    found = [_describe(root, path) for path in _nifti_files(root)]
    named = [item for item in found if _is_probability(item)]
    return ProbabilityMaps(named or ([] if only_named else found))


def probability_of(mask: MaskFile, maps: Sequence[MaskFile]) -> MaskFile | None:
    """The map of a predicted mask: of the same image, description and space; None without or with several."""
    known = maps if isinstance(maps, ProbabilityMaps) else ProbabilityMaps(maps)
    same = known.by_stem.get(mask.stem) or known.by_identity.get(_identity(mask), ())
    return same[0] if len(same) == 1 else None


def choose_space(masks: Iterable[MaskFile], wanted: str | None = None) -> str:
    """The space in which to evaluate: the one wanted, else native, else the only one there is.

    Raises
    ------
    DataError
        If no reference mask lies in the space wanted, or there are several and none is native.
    """
    spaces = sorted({mask.space for mask in masks})
    if wanted is not None and wanted not in spaces:
        raise DataError(f"no reference mask in space {wanted!r}", expected=f"one of {', '.join(spaces)}")
    if wanted is None and NATIVE not in spaces and len(spaces) > 1:
        raise DataError(f"reference masks in {len(spaces)} spaces", remedy=f"--space {' or '.join(spaces)}")
    return wanted or (NATIVE if NATIVE in spaces else spaces[0])


def find_pairs(truths: Sequence[MaskFile], predictions: Sequence[MaskFile]) -> Pairing:
    """Pair reference masks with predictions.

    Parameters
    ----------
    truths, predictions
        Masks of two folders; the truths are of one space.

    Returns
    -------
    Pairing; every file is in one pair or listed.
    """
    pairs: list[Pair] = []
    ambiguous: dict[tuple[str, str], str] = {}
    left = list(truths), list(predictions)
    for how, candidates in (("name", _by_name), ("entities", _by_image), ("session", _by_session)):
        pairs += _pair_up(left, how, candidates, ambiguous)  # type: ignore[arg-type]
        left = _left(left, pairs)
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.truth.relative)),
        unpaired=(
            *(_unpaired("truth", item, ambiguous) for item in left[0]),
            *(_unpaired("prediction", item, ambiguous) for item in left[1]),
        ),
    )


#: Takes the predictions once, so that they are not gone through again for each reference mask.
Candidates = Callable[[Sequence[MaskFile]], Callable[[MaskFile], Sequence[MaskFile]]]


def _pair_up(
    left: tuple[list[MaskFile], list[MaskFile]],
    how: Literal["name", "entities", "session"],
    candidates: Candidates,
    ambiguous: dict[tuple[str, str], str],
) -> Iterable[Pair]:
    """Pairs that are the only choice on both sides; other choices are noted."""
    truths, predictions = left
    fitting = candidates(predictions)
    choice = {truth: fitting(truth) for truth in truths}
    wooers: dict[MaskFile, list[MaskFile]] = {}
    for truth, found in choice.items():
        for prediction in found:
            wooers.setdefault(prediction, []).append(truth)
    for truth, found in choice.items():
        if len(found) == 1 and len(wooers[found[0]]) == 1:
            yield Pair(truth=truth, prediction=found[0], how=how)
        elif found:
            rivals = wooers[found[0]] if len(found) == 1 else found
            names = ", ".join(item.relative for item in rivals)
            ambiguous["truth", truth.relative] = f"several files fit: {names}"
            for prediction in found:
                reason = f"several files fit: {', '.join(item.relative for item in wooers[prediction])}"
                ambiguous["prediction", prediction.relative] = reason


def _left(
    left: tuple[list[MaskFile], list[MaskFile]], pairs: Sequence[Pair]
) -> tuple[list[MaskFile], list[MaskFile]]:
    truths, predictions = {pair.truth for pair in pairs}, {pair.prediction for pair in pairs}
    return (
        [item for item in left[0] if item not in truths],
        [item for item in left[1] if item not in predictions],
    )


def _unpaired(
    side: Literal["truth", "prediction"], item: MaskFile, ambiguous: dict[tuple[str, str], str]
) -> Unpaired:
    reason = ambiguous.get((side, item.relative))
    if reason is not None:
        return Unpaired(side=side, file=item.relative, state="ambiguous", reason=reason)
    words = "no prediction for this reference mask" if side == "truth" else "no reference mask for it"
    return Unpaired(side=side, file=item.relative, state="missing", reason=words)


def _by_name(predictions: Sequence[MaskFile]) -> Callable[[MaskFile], Sequence[MaskFile]]:
    known = _grouped(predictions, lambda item: item.stem)
    return lambda truth: known.get(truth.stem, ())


def _by_image(predictions: Sequence[MaskFile]) -> Callable[[MaskFile], Sequence[MaskFile]]:
    known = _grouped(predictions, lambda item: item.entities)

    def fitting(truth: MaskFile) -> Sequence[MaskFile]:
        found = [item for item in known.get(truth.entities, ()) if _suffixes_fit(truth, item)]
        return [item for item in found if item.suffix == truth.suffix] or found

    return fitting


def _by_session(predictions: Sequence[MaskFile]) -> Callable[[MaskFile], Sequence[MaskFile]]:
    """The session's prediction: the one whose entities all the others of the session share."""
    known = _grouped(predictions, lambda item: (item.subject, item.session))

    def fitting(truth: MaskFile) -> Sequence[MaskFile]:
        found = [
            item
            for item in known.get((truth.subject, truth.session), ())
            if item.entities >= truth.entities and _suffixes_fit(truth, item)
        ]
        found = [item for item in found if not item.suffix] or found  # the session's result names no suffix
        return [
            item for item in found if all(item.entities < other.entities for other in found if other != item)
        ] or found

    return fitting


def _grouped(items: Iterable[MaskFile], key: Callable[[MaskFile], Key]) -> dict[Key, list[MaskFile]]:
    """Files by a key, each list in the order given."""
    out: dict[Key, list[MaskFile]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def _suffixes_fit(one: MaskFile, two: MaskFile) -> bool:
    return not one.suffix or not two.suffix or one.suffix == two.suffix


def _existing(folder: str | Path) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise MissingInputError("no such folder", file=root, remedy="check the path")
    return root


def _nifti_files(root: Path) -> list[Path]:
    """NIfTI files below a folder; only those of its ``sub-`` folders where there are any."""
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    found: list[Path] = []
    for place in subjects or [root]:
        for folder, folders, files in os.walk(place):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
            found += [Path(folder) / name for name in files if name.lower().endswith(EXTENSIONS)]
    return sorted(path for path in found if not path.name.startswith("."))


def _stem(name: str) -> str:
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def _describe(root: Path, path: Path) -> MaskFile:
    """Take a name apart."""
    relative = path.relative_to(root).as_posix()
    parts = _stem(path.name).split("_")
    pairs = {key: value for part in parts if "-" in part for key, value in [part.split("-", 1)]}
    subject = pairs.get("sub")
    above = dict(part.split("-", 1) for part in relative.split("/")[:-1] if part.startswith(("sub-", "ses-")))
    names = pairs if subject else above
    words = [match.group(1) for part in parts[:-1] if (match := IMAGE_SUFFIX.fullmatch(part))]
    stated = IMAGE_SUFFIX.fullmatch(pairs.get("desc", ""))
    own = frozenset(pair for pair in pairs.items() if pair[0] not in DESCRIBING)
    space = "_".join(f"{key}-{pairs[key]}" for key in ("space", "res") if pairs.get(key, "orig") != "orig")
    return MaskFile(
        path=path,
        relative=relative,
        subject=f"sub-{names['sub']}" if "sub" in names else _stem(relative),
        session=f"ses-{names['ses']}" if {"sub", "ses"} <= names.keys() else "",
        entities=own if subject else frozenset({("file", _stem(path.name))}),
        suffix=words[-1] if words else (stated.group(1) if stated else ""),
        space=space or NATIVE,
        desc="" if stated else pairs.get("desc", ""),
        kind=parts[-1],
    )


def _matches(item: MaskFile, pattern: str) -> bool:
    return fnmatch.fnmatch(item.relative, pattern) or fnmatch.fnmatch(item.path.name, pattern)


def _is_probability(item: MaskFile) -> bool:
    return any(word in item.path.name.lower() for word in PROBABILITY_WORDS)


def _is_mask_name(item: MaskFile) -> bool:
    return IMAGE_SUFFIX.fullmatch(item.kind) is None and item.kind not in ("bold", "dwi")


def _names_lesion(item: MaskFile) -> bool:
    return "lesion" in re.sub(r"^sub-[^_]*", "", _stem(item.path.name).lower())


def _identity(item: MaskFile) -> Identity:
    """What the files of one mask have in common."""
    return item.entities, item.suffix, item.space, item.desc


def _merge_twins(masks: Sequence[MaskFile]) -> tuple[MaskFile, ...]:
    """One entry per mask: a mask and its numbered instances are the same thing twice."""
    groups: dict[tuple[object, ...], list[MaskFile]] = {}
    for mask in masks:
        folder = mask.path.parent
        by_kind = _identity(mask) if mask.kind in KINDS else (mask.relative,)
        groups.setdefault((folder, *by_kind), []).append(mask)
    return tuple(item for group in groups.values() for item in _first_kind(group))


def _first_kind(group: Sequence[MaskFile]) -> list[MaskFile]:
    kinds = [mask.kind for mask in group]
    if len(group) == 1 or len(set(kinds)) < len(kinds):
        return list(group)  # two of one kind differ in something else, and are no twins
    first = min(group, key=lambda mask: KINDS.index(mask.kind))
    return [replace(first, twins=tuple(mask.path for mask in group if mask is not first))]


def lesion_places(mask: MaskFile) -> tuple[Path, Places] | None:
    """Numbered lesions of a mask, and where each lies, as far as tables beside it tell.

    The numbers are those of the mask's own ``_dseg`` file. The table is the one of that name; if it has no
    level or column, the only other ``_dseg.tsv`` of the session that has.

    Parameters
    ----------
    mask
        A mask of :func:`find_masks`.

    Returns
    -------
    (label image, number → (level, column)), or None where no table tells.
    """
    numbered = [path for path in (*mask.twins, mask.path) if _stem(path.name).endswith("_dseg")]
    if not numbered:
        return None
    own = numbered[0].with_name(_stem(numbered[0].name) + ".tsv")
    places = _read_places(own)
    if places is None:
        tables = [_read_places(path) for path in _session_tables(mask) if path != own]
        known = [table for table in tables if table is not None]
        places = known[0] if len(known) == 1 else None
    return None if places is None else (numbered[0], places)


def _session_tables(mask: MaskFile) -> list[Path]:
    head = "_".join(part for part in (mask.subject.rsplit("/", 1)[-1], mask.session) if part)
    return sorted(
        path
        for path in mask.path.parent.glob("*_dseg.tsv")
        if path.name.startswith(f"{head}_") and "lesion" in path.name
    )


def _read_places(path: Path) -> Places | None:
    """Number → (level, column) of a table; None if it is absent, unreadable or has neither column."""
    try:
        table = pd.read_csv(path, sep="\t", dtype="str", keep_default_na=False, na_values=["n/a", ""])
        if "index" not in table.columns or not set(PLACE_COLUMNS) & set(table.columns):
            return None
        rows = table.reindex(columns=["index", *PLACE_COLUMNS]).astype(object)
        return {
            int(index): (_text(level), _text(column))
            for index, level, column in rows.itertuples(index=False, name=None)
        }
    except (OSError, ValueError):
        return None


def _text(value: object) -> str | None:
    return None if pd.isna(value) else str(value).strip()  # type: ignore[call-overload]


def read_participants(path: str | Path, columns: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """Values of cohort columns.

    Returns
    -------
    Column → participant (with ``sub-``) → value, None where missing.

    Raises
    ------
    MissingInputError, DataError
        If there is no such file, it is no table, a column is not in it, or it says two things of somebody.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingInputError("no such file", file=file, remedy="name the table with --participants")
    try:
        table = pd.read_csv(
            file, sep="\t", dtype="str", keep_default_na=False, na_values=MISSING, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", file=file, expected="a TSV table") from error
    absent = [name for name in ("participant_id", *columns) if name not in table.columns]
    if absent:
        raise DataError(
            f"no column {absent[0]!r}", file=file, expected=f"one of {', '.join(map(str, table.columns))}"
        )
    return {column: dict(_values(table, column, file)) for column in columns}


def _values(table: pd.DataFrame, column: str, file: Path) -> Iterable[tuple[str, str | None]]:
    """Participant and value; rows of one participant (as of several sessions) must agree."""
    known: dict[str, str | None] = {}
    for label, cell in zip(table["participant_id"], table[column].astype(object), strict=True):
        name, value = f"sub-{str(label).strip().removeprefix('sub-')}", _text(cell)
        if known.setdefault(name, value) != value:
            raise DataError(
                f"{name} has {column} {known[name] or 'n/a'} and {value or 'n/a'}",
                file=file,
                expected="one value for each participant",
                remedy="name a table with one row for each with --participants",
            )
    return known.items()
