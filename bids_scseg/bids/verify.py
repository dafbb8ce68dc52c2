"""Whether an output folder is what was written: checksums, sources, lattices.

Nothing is believed that the folder says of itself: paths must stay inside it, files are read within bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bids_scseg import files
from bids_scseg.bids import checksums
from bids_scseg.bids.dataset import RAW, linked_folder
from bids_scseg.bids.names import sidecar
from bids_scseg.errors import DataError, MissingInputError, ScsegError
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_header

URI = re.compile(r"bids:([A-Za-z0-9._-]*):(.+)", re.DOTALL)
SAME_LATTICE_MM = 0.01  # corners; what float32 affines lose is a hundredth of it (ours)
ON_REFERENCE = ("_mask.nii.gz", "_probseg.nii.gz", "_dseg.nii.gz")  # lie on the lattice of their reference
RERUN = (
    "run the participant level again, or the group level for its files: it writes what is missing or damaged"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one file (path relative to the output folder)."""

    file: str
    found: str
    expected: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.found}" + (f"; expected {self.expected}" if self.expected else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at and what is wrong with it.

    Attributes
    ----------
    owner
        Label of a session; ``dataset``: the files at the root; ``group``: those of the group level.
    files, sources, lattices
        How many checksums, BIDS URIs and lattices were compared.
    problems
        Empty: all is well.
    """

    owner: str
    files: int = 0
    sources: int = 0
    lattices: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "verdict": "passed" if self.passed else "failed"}


def verify_owner(out: Path, owner: str, links: Mapping[str, Path]) -> Verification:
    """Verify the files of a session, of the root, or of the group level.

    Parameters
    ----------
    out
        The output folder.
    owner
        See :class:`Verification`.
    links
        Datasets that URIs name, see :func:`dataset_links`.
    """
    try:
        listed = checksums.read_list(out, owner)
    except ScsegError as error:
        return Verification(owner=owner, problems=(_of(error, checksums.FOLDER),))
    if not listed:
        unlisted = Problem(file=owner, found="has no checksums: it is unfinished", expected=RERUN)
        return Verification(owner=owner, problems=(unlisted,))
    wrong = list(_checksums(out, listed))
    sound = sorted(set(listed) - {problem.file for problem in wrong})
    sources, lattices, more = _look(out, [] if owner == checksums.DATASET else sound, links)
    wrong += more
    return Verification(
        owner=owner, files=len(listed), sources=sources, lattices=lattices, problems=tuple(wrong)
    )


def verify_written(out: Path, paths: Iterable[str]) -> str:
    """Sources and lattices of files that were just written, in words for the session's page.

    Parameters
    ----------
    out
        The output folder.
    paths
        Derivatives of a session, relative to it.
    """
    try:
        links, _ = dataset_links(out)
    except ScsegError as error:
        return f"not verified: {error.found}"
    sources, lattices, wrong = _look(out, sorted(paths), links)
    if wrong:
        return "WRONG: " + "; ".join(str(problem) for problem in wrong[:3])
    return f"{sources} sources are there, {lattices} lattices are those of their sources"


def _look(out: Path, paths: Iterable[str], links: Mapping[str, Path]) -> tuple[int, int, list[Problem]]:
    """Sources and lattices of files: how many of each, and what is wrong."""
    sources, lattices, wrong = 0, 0, []
    for path in paths:
        if path.endswith(".json"):
            count, problems = _sources(out, path, links)
            sources += count
            wrong += problems
        elif path.endswith(ON_REFERENCE):
            count, problems = _lattice(out, path, links)
            lattices += count
            wrong += problems
    return sources, lattices, wrong


def dataset_links(out: Path, *, raw: Path | None = None) -> tuple[dict[str, Path], tuple[Problem, ...]]:
    """Folders of the datasets that BIDS URIs name, by name; and the links that lead nowhere.

    Parameters
    ----------
    out
        The output folder.
    raw
        Where the raw dataset is now, if it was moved.

    Raises
    ------
    MissingInputError
        If the folder has no dataset description.
    DataError
        If that cannot be read.
    """
    file = out / "dataset_description.json"
    if not file.is_file():
        raise MissingInputError(
            "no dataset_description.json", file=out, expected="an output folder of the participant level"
        )
    data = files.read_json(file)
    stated = data.get("DatasetLinks") if isinstance(data, dict) else None
    if not isinstance(stated, dict):
        raise DataError("has no DatasetLinks", file=file, expected="those of this program", remedy=RERUN)
    links, problems = {"": out}, []
    for name, address in stated.items():
        folder = raw if raw is not None and name == RAW else linked_folder(out, address)
        if folder is None or not folder.is_dir():
            found = f"the dataset {name!r} is not at {address!r}"
            problems.append(Problem(file=file.name, found=found, expected="a folder (moved? see --raw)"))
        else:
            links[str(name)] = folder.resolve()
    return links, tuple(problems)


def file_uri(path: str | Path, links: Mapping[str, Path]) -> str | None:
    """BIDS URI of a file in one of the datasets of :func:`dataset_links`; None if it lies in none of them."""
    file = Path(path).resolve()
    inside = [
        (name, file.relative_to(root.resolve()).as_posix())
        for name, root in links.items()
        if file.is_relative_to(root.resolve())
    ]
    name, relative = min(inside, key=lambda item: len(item[1]), default=(None, ""))
    return None if name is None else f"bids:{name}:{relative}"


def resolve(uri: object, links: Mapping[str, Path]) -> Path:
    """The file that a BIDS URI names.

    Raises
    ------
    DataError
        If it is no BIDS URI, names an unknown dataset, or leads out of it.
    MissingInputError
        If there is no such file.
    """
    match = URI.fullmatch(uri) if isinstance(uri, str) else None
    if match is None:
        raise DataError(f"{uri!r:.120} is no BIDS URI", expected="bids:<dataset>:<path>")
    name, relative = match[1], PurePosixPath(match[2])
    if name not in links:
        raise DataError(f"{uri} names a dataset that is not there", expected=f"one of {sorted(links)}")
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{uri} leads out of its dataset", expected="a path inside it")
    path = links[name].joinpath(relative)
    if not path.is_file():
        raise MissingInputError(f"{uri} is not there", expected=str(path))
    return path


def _checksums(out: Path, listed: Mapping[str, str]) -> Iterator[Problem]:
    for path, expected in listed.items():
        target = out.joinpath(*PurePosixPath(path).parts)
        try:
            if not target.resolve().is_relative_to(out.resolve()):
                yield Problem(file=path, found="lies outside the output folder")
                continue
            found = files.sha256(target)
        except (OSError, RuntimeError) as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            yield Problem(file=path, found=why, expected="the file that was written")
            continue
        if found != expected:
            yield Problem(file=path, found=f"SHA-256 is {found}", expected=expected)


def _sources(out: Path, path: str, links: Mapping[str, Path]) -> tuple[int, list[Problem]]:
    """URIs of a sidecar's ``Sources`` and ``SpatialReference``: how many, and which lead nowhere."""
    try:
        data = files.read_json(out / path)
    except ScsegError as error:
        return 0, [_of(error, path)]
    if not isinstance(data, dict):
        return 0, []
    stated = data.get("Sources", [])
    uris = list(stated) if isinstance(stated, list) else [stated]
    reference = data.get("SpatialReference", "orig")
    uris += [reference] if isinstance(reference, str) and reference.startswith("bids:") else []
    problems = []
    for uri in uris:
        try:
            resolve(uri, links)
        except ScsegError as error:
            problems.append(_of(error, path))
    return len(uris), problems


def _lattice(out: Path, path: str, links: Mapping[str, Path]) -> tuple[int, list[Problem]]:
    """Compare the lattice of a mask, map or labels with that of the image named in its sidecar."""
    try:
        data = files.read_json(out / sidecar(path))
        reference = data.get("SpatialReference") if isinstance(data, dict) else None
        source = resolve(reference, links)
        own, other = read_header(out / path), read_header(source)
    except ScsegError as error:
        return 0, [_of(error, path)]
    if own.shape != other.shape:
        return 1, [
            Problem(file=path, found=f"shape {own.shape}", expected=f"{other.shape}, as {source.name}")
        ]
    distance = _distance(own, other)
    if distance > SAME_LATTICE_MM:
        found = f"lies {distance:.2f} mm from {source.name}"
        return 1, [Problem(file=path, found=found, expected="the same lattice")]
    return 1, []


def _distance(own: Grid, other: Grid) -> float:
    """Largest distance of corresponding corners, mm."""
    return float(np.linalg.norm(own.corners() - other.corners(), axis=1).max())


def _of(error: ScsegError, path: str) -> Problem:
    return Problem(file=path, found=error.found, expected=error.expected or "")


def total(parts: Iterable[Verification]) -> Verification:
    """Everything that was looked at, together."""
    found = list(parts)
    return Verification(
        owner="all",
        files=sum(part.files for part in found),
        sources=sum(part.sources for part in found),
        lattices=sum(part.lattices for part in found),
        problems=tuple(problem for part in found for problem in part.problems),
    )
