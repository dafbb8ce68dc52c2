"""Which sessions a dataset has and which images each of them holds."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bids_scseg import files
from bids_scseg.errors import (
    DataError,
    ImageError,
    InvalidDatasetError,
    MissingInputError,
    NoMatchError,
    UsageError,
)
from bids_scseg.recipe.study import ImageFile, Study
from bids_scseg.space.nifti import inspect_header

LOG = logging.getLogger(__name__)

SidecarValue = str | float | bool

LABEL = re.compile(r"[A-Za-z0-9]+")
ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
SUFFIX = re.compile(r"[A-Za-z0-9]+")
EXTENSIONS = (".nii.gz", ".nii")
# Everything but the folders of the sessions asked for, their anatomical images and what stands loose in them.
SKIPPED = (
    r"\.(json|tsv|bval|bvec|txt|html)$|/\."
    r"|/(func|dwi|fmap|perf|eeg|ieeg|meg|pet|micr|nirs|beh|motion|mrs)(/|$)"
)
# Columns of scans.tsv or sidecar keys in which quality is written, and the words that mean "do not use".
QUALITY_KEYS = ("quality", "qc", "rating", "usable", "exclude", "artefact", "artifact", "quality_control")
BAD_WORDS = frozenset(
    {"bad", "poor", "fail", "failed", "reject", "rejected", "exclude", "excluded", "unusable"}
)
LEADS_OUT = "a link that leads out of the dataset; copy the file into it, or allow it with --follow-links"
# What is lost with a sidecar, in its warning.
UNKNOWN = "inversion recovery, contrast agent or rating that only it states are unknown"
NAMES_SHOWN = 12  # of what exists, in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """One folder of a subject or session, before its images are read."""

    subject: str
    session: str | None
    folder: Path
    images: list[str] = field(default_factory=list)  # relative to the dataset, forward slashes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What is accepted of a dataset: names that are not BIDS, links that lead out."""

    root: Path
    sidecars: _SidecarReader
    names: bool
    links: bool


def find_studies(
    dataset: str | Path,
    *,
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
    exclude: Iterable[str] = (),
    validate_names: bool = True,
    follow_links: bool = False,
) -> tuple[Study, ...]:
    """Sessions of a BIDS dataset with all their anatomical images.

    Only the sessions asked for are indexed. Images whose name does not follow BIDS, or which cannot be read,
    are part of the study with the reason.

    Parameters
    ----------
    dataset
        Root of a raw BIDS dataset.
    participants, sessions
        Labels wanted, with or without ``sub-`` and ``ses-``; empty: all.
    exclude
        Labels of participants that are not wanted.
    validate_names
        Whether dataset and names are checked against BIDS; without it, ``dataset_description.json`` may be
        absent and every name that can be taken apart is accepted.
    follow_links
        Whether images and sidecars may be links to places outside of the dataset.

    Returns
    -------
    tuple of Study
        Ordered by subject and session. A session without images is part of it.

    Raises
    ------
    MissingInputError
        If the folder does not exist or holds no participant.
    InvalidDatasetError
        If it is not a BIDS dataset.
    NoMatchError
        If nothing matches the filters; the message names what exists.
    UsageError
        If a label holds anything but letters and digits.
    """
    root = check_dataset(dataset) if validate_names else _folder(dataset)
    wanted = _labels(participants, "sub-")
    wanted_sessions = _labels(sessions, "ses-")
    unwanted = _labels(exclude, "sub-")
    found = list(_session_folders(root, wanted, wanted_sessions, unwanted))
    if not found:
        raise _no_match(root, wanted, wanted_sessions, unwanted)
    _report_absent(wanted - {item.subject for item in found})
    _index(root, found)
    rules = _Rules(
        root=root, sidecars=_SidecarReader(root, follow_links), names=validate_names, links=follow_links
    )
    studies = tuple(_study(item, rules) for item in found)
    _report_outside(root, [image for study in studies for image in study.images])
    return studies


def check_dataset(dataset: str | Path) -> Path:
    """Absolute, link-free root of a BIDS dataset.

    Raises
    ------
    MissingInputError, InvalidDatasetError
        If there is no such folder, or it has no readable ``dataset_description.json``.
    """
    root = _folder(dataset)
    file = root / "dataset_description.json"
    remedy = "give the root folder of the dataset; a minimal file holds Name and BIDSVersion"
    if not file.is_file():
        raise InvalidDatasetError(
            "not a BIDS dataset: no dataset_description.json", file=root, expected="one", remedy=remedy
        )
    try:
        description = files.read_json(file)
    except DataError as error:
        raise InvalidDatasetError(error.found, file=file, expected="JSON", remedy=remedy) from error
    if not isinstance(description, dict) or not description.get("BIDSVersion"):
        raise InvalidDatasetError("no BIDSVersion", file=file, expected="an object with it", remedy=remedy)
    return root


def _folder(dataset: str | Path) -> Path:
    root = Path(dataset)
    if not root.is_dir():
        raise MissingInputError("no such folder", file=root, remedy="check the path of the dataset")
    return root.resolve()


def parse_name(name: str) -> tuple[tuple[tuple[str, str], ...], str] | None:
    """Entities (in the name's order) and suffix of a NIfTI file name; None if it is built otherwise."""
    extension = next((end for end in EXTENSIONS if name.endswith(end)), None)
    if extension is None:
        return None
    *parts, suffix = name.removesuffix(extension).split("_")
    pairs = [ENTITY.fullmatch(part) for part in parts]
    if not pairs or not SUFFIX.fullmatch(suffix) or any(pair is None for pair in pairs):
        return None
    entities = tuple((pair[1], pair[2]) for pair in pairs if pair)
    if entities[0][0] != "sub" or len(dict(entities)) < len(entities):
        return None
    return entities, suffix


def _labels(values: Iterable[str], prefix: str) -> frozenset[str]:
    labels = frozenset(value.strip().removeprefix(prefix) for value in values)
    for label in labels:
        if not LABEL.fullmatch(label):
            raise UsageError(
                f"label {label!r}", expected="letters and digits", remedy=f"write it as in {prefix}*"
            )
    return labels


def _children(folder: Path, prefix: str) -> list[tuple[str, Path]]:
    """(label, folder) of the subfolders of that prefix, sorted; labels that are not BIDS are logged."""
    found = []
    for entry in sorted(_entries(folder), key=lambda item: item.name):
        if not entry.name.startswith(prefix) or not entry.is_dir():
            continue
        label = entry.name.removeprefix(prefix)
        if LABEL.fullmatch(label):
            found.append((label, Path(entry.path)))
        else:
            LOG.warning(
                "%s: not a BIDS label; expected letters and digits. The folder is left out", entry.path
            )
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing, and a warning, if it cannot be read: the others go on."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        LOG.warning("%s: cannot be read (%s); it is left out", folder, error.strerror)
        return []


def _session_folders(
    root: Path, wanted: frozenset[str], sessions: frozenset[str], unwanted: frozenset[str]
) -> Iterator[_Session]:
    for subject, folder in _children(root, "sub-"):
        if subject in unwanted or (wanted and subject not in wanted):
            continue
        inner = _children(folder, "ses-")
        for session, inner_folder in inner:
            if not sessions or session in sessions:
                yield _Session(subject=subject, session=session, folder=inner_folder)
        if not sessions and ((folder / "anat").is_dir() or not inner):
            yield _Session(subject=subject, session=None, folder=folder)


def _no_match(
    root: Path, wanted: frozenset[str], sessions: frozenset[str], unwanted: frozenset[str]
) -> NoMatchError | MissingInputError:
    subjects = _children(root, "sub-")
    if not subjects:
        return MissingInputError(
            "no sub-* folder",
            file=root,
            expected="at least one participant",
            remedy="give the root folder of a dataset with images",
        )
    asked = [f"participants {_some(wanted)}"] if wanted else []
    asked += [f"sessions {_some(sessions)}"] if sessions else []
    asked += [f"without {_some(unwanted)}"] if unwanted else []
    exist = f"participants {_some(label for label, _ in subjects)}"
    present = {label for _, folder in subjects for label, _ in _children(folder, "ses-")}
    if sessions:
        exist += f" and sessions {_some(present)}" if present else " and no sessions"
    return NoMatchError(
        f"nothing matches {', '.join(asked)}",
        file=root,
        expected=f"some of {exist}",
        remedy="check the labels",
    )


def _some(names: Iterable[str]) -> str:
    """The first names of a possibly long list."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMES_SHOWN} more" if len(ordered) > NAMES_SHOWN else ""
    return ", ".join(ordered[:NAMES_SHOWN]) + more


def _report_absent(absent: frozenset[str] | set[str]) -> None:
    if absent:
        LOG.warning("no such participant: %s", _some(absent))


def _report_outside(root: Path, images: Sequence[ImageFile]) -> None:
    """Say once what to do about images that are links to places outside of the dataset."""
    outside = [image.relative for image in images if image.problem == LEADS_OUT]
    if outside:
        LOG.warning(
            "%s: %d of %d images not used, as links that lead out of the dataset (first: %s); run again with "
            "--follow-links to use them", root, len(outside), len(images), outside[0],
        )  # fmt: skip


def _index(root: Path, found: list[_Session]) -> None:
    """Fill in the images of every session.

    pybids indexes the folders asked for, without metadata; what it passes over (links whose target is
    absent) is added from the folders themselves, so that no file is lost in silence.
    """
    by_folder = {item.folder.relative_to(root).as_posix(): item for item in found}
    listed = _pybids_files(root, found)
    for item in found:
        for place in (item.folder / "anat", item.folder):
            if place.is_dir():
                listed.update(
                    Path(entry.path).relative_to(root).as_posix()
                    for entry in _entries(place)
                    if entry.name.endswith(EXTENSIONS) and not entry.name.startswith(".")
                )
    for relative in sorted(listed):
        folder = relative.rsplit("/", 1)[0].removesuffix("/anat")
        if folder in by_folder:
            by_folder[folder].images.append(relative)


def _pybids_files(root: Path, found: list[_Session]) -> set[str]:
    """Relative paths of the anatomical NIfTI files that pybids finds in these folders.

    It gives up over a single odd name; then the folders alone tell, so that no session is lost.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer

    subjects: dict[str, set[str]] = {}
    for item in found:
        subjects.setdefault(item.subject, set()).add(item.session or "")
    keep = "|".join(
        f"sub-{subject}(/|$)(?!ses-(?!({'|'.join(sorted(labels - {''})) or '-'})(/|$)))"
        for subject, labels in sorted(subjects.items())
    )
    only = re.compile(rf"^/(?!{keep}|dataset_description\.json$)|{SKIPPED}")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[only])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = BIDSLayout(root, validate=False, indexer=indexer)
            found_files = layout.get(datatype="anat", extension=list(EXTENSIONS))
    except Exception as error:  # noqa: BLE001 - pybids raises plain ValueError, TypeError and its own
        LOG.warning("%s: pybids cannot index it (%s)", root, error)
        return set()
    return {Path(file.path).relative_to(root).as_posix() for file in found_files}


def _study(item: _Session, rules: _Rules) -> Study:
    ratings = _ratings(item)
    images = tuple(_image(item, relative, rules, ratings) for relative in item.images)
    return Study(subject=item.subject, session=item.session, dataset=str(rules.root), images=images)


def _image(item: _Session, relative: str, rules: _Rules, ratings: Mapping[str, bool]) -> ImageFile:
    """One image with its facts; whatever is wrong goes into its `problem`."""
    path = rules.root / relative
    name = path.name
    parsed = parse_name(name)
    entities, suffix = parsed or ((), "")
    problem = _misplaced(path, item, entities, rules)
    if parsed is None:
        problem = problem or "not a BIDS name; expected sub-<label>[_<entity>-<value>...]_<suffix>.nii.gz"
    sidecar: tuple[tuple[str, SidecarValue], ...] = ()
    grid = None
    notes: tuple[str, ...] = ()
    if problem is None:
        try:
            header = inspect_header(path)
            grid = header.grid
            sidecar, faults = rules.sidecars.read(path, entities, suffix)
            notes = (*header.warnings, *faults)
        except (ImageError, MissingInputError) as error:
            problem = str(error).removeprefix(f"{path}: ")
    rated = ratings.get(relative.split("/", 2 if item.session else 1)[-1], True)
    return ImageFile(
        path=str(path),
        relative=relative,
        entities=entities,
        suffix=suffix,
        grid=grid,
        sidecar=sidecar,
        problem=problem,
        named=not rules.names or (parsed is not None and _is_bids(name, item) and path.parent.name == "anat"),
        warnings=notes,
        quality=rated and not _is_bad(dict(sidecar)),
    )


def _misplaced(
    path: Path, item: _Session, entities: tuple[tuple[str, str], ...], rules: _Rules
) -> str | None:
    """Why a file must not be read: it lies outside the dataset, or is named after somebody else."""
    if not rules.links and files.leads_out(path, rules.root):
        return LEADS_OUT
    labels = dict(entities)
    if entities and (labels.get("sub") != item.subject or labels.get("ses") != item.session):
        own = f"sub-{item.subject}" + (f"_ses-{item.session}" if item.session else "")
        return f"the name belongs to another subject or session than its folder ({own})"
    return None


def _is_bids(name: str, item: _Session) -> bool:
    prefix = f"sub-{item.subject}_" + (f"ses-{item.session}_" if item.session else "")
    return name.startswith(prefix) and _valid_rest(name.removeprefix(prefix))


@cache
def _valid_rest(rest: str) -> bool:
    """Whether a raw anatomical name is BIDS, by what follows subject and session (cached: it is slow)."""
    from bids_validator import BIDSValidator  # type: ignore[import-untyped]

    return bool(BIDSValidator().is_bids(f"/sub-01/anat/sub-01_{rest}"))


def _is_bad(record: Mapping[str, SidecarValue]) -> bool:
    """Whether a row of scans.tsv or a sidecar says that the image should not be used."""
    for key, value in record.items():
        lowered = key.lower()
        if lowered not in QUALITY_KEYS:
            continue
        text = str(value).strip().lower()
        if text in BAD_WORDS:
            return True
        if lowered == "exclude" and text in {"1", "1.0", "true", "yes"}:
            return True
        if lowered == "usable" and text in {"0", "0.0", "false", "no"}:
            return True
    return False


def _ratings(item: _Session) -> dict[str, bool]:
    """File name relative to the session's folder -> whether its rating in scans.tsv allows its use."""
    label = f"sub-{item.subject}" + (f"_ses-{item.session}" if item.session else "")
    file = item.folder / f"{label}_scans.tsv"
    if not file.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_text(file), newline=""), delimiter="\t"))
    except (DataError, csv.Error) as error:
        found = error.found if isinstance(error, DataError) else error
        LOG.warning("%s: %s; ratings of its images are unknown", file, found)
        return {}
    return {
        str(row["filename"]): not _is_bad(
            {k: v for k, v in row.items() if isinstance(k, str) and v is not None}
        )
        for row in rows
        if row.get("filename")
    }


class _SidecarReader:
    """Metadata by BIDS inheritance: files nearer to the image override those above.

    A sidecar that cannot be used says nothing and is named in a warning: the image itself may be sound.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self._root = root
        self._follow_links = follow_links
        self._folders: dict[Path, list[tuple[Path, dict[str, str], str]]] = {}
        self._contents: dict[Path, tuple[dict[str, SidecarValue], str]] = {}

    def read(
        self, image: Path, entities: tuple[tuple[str, str], ...], suffix: str
    ) -> tuple[tuple[tuple[str, SidecarValue], ...], tuple[str, ...]]:
        """Metadata of an image.

        Returns
        -------
        values
            Sorted (key, value) pairs that apply to it; lists are joined, objects left out.
        faults
            A sentence for each sidecar that should apply and cannot be used.
        """
        merged: dict[str, SidecarValue] = {}
        faults: list[str] = []
        own = dict(entities)
        folders = [image.parent]
        while folders[-1] != self._root:
            folders.append(folders[-1].parent)
        for folder in reversed(folders):
            fitting = [
                (len(needs), file)
                for file, needs, kind in self._listing(folder)
                if kind == suffix and needs.items() <= own.items()
            ]
            for _, file in sorted(fitting):
                values, fault = self._content(file)
                merged |= values
                faults += [fault] if fault else []
        return tuple(sorted(merged.items())), tuple(faults)

    def _listing(self, folder: Path) -> list[tuple[Path, dict[str, str], str]]:
        """Sidecars of a folder: (file, entities, suffix). Cached above the image's own folder only."""
        if folder in self._folders:
            return self._folders[folder]
        found = []
        for entry in _entries(folder):
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            *parts, suffix = entry.name.removesuffix(".json").split("_")
            pairs = [ENTITY.fullmatch(part) for part in parts]
            if all(pairs):
                found.append((Path(entry.path), {pair[1]: pair[2] for pair in pairs if pair}, suffix))
        self._folders[folder] = found
        return found

    def _content(self, file: Path) -> tuple[dict[str, SidecarValue], str]:
        """What a sidecar says; nothing, and why, if it cannot be used. Read once, sound or not."""
        if file not in self._contents:
            try:
                self._contents[file] = self._read(file), ""
            except DataError as error:
                place = file.relative_to(self._root).as_posix()
                LOG.warning("%s: this sidecar is not used: it %s; %s", file, error.found, UNKNOWN)
                self._contents[file] = {}, f"its sidecar {place} is not used: it {error.found}; {UNKNOWN}"
        return self._contents[file]

    def _read(self, file: Path) -> dict[str, SidecarValue]:
        if not self._follow_links and files.leads_out(file, self._root):
            raise DataError("is a link that leads out of the dataset (allow it with --follow-links)")
        data = files.read_json(file)
        if not isinstance(data, dict):
            raise DataError("is not a JSON object")
        return {str(key): value for key, raw in data.items() if (value := _plain(raw)) is not None}


def _plain(value: object) -> SidecarValue | None:
    """A sidecar value as text, number or truth; lists of such joined by a backslash as in DICOM.

    Numbers beyond what a float holds say nothing, like objects.
    """
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None
    if isinstance(value, list) and value and all(isinstance(part, str | int | float) for part in value):
        return "\\".join(str(part) for part in value)
    return None
