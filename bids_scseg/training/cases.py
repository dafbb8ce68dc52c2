"""Prepared cases: the record of one, and how it is read from disk and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.sample import IGNORE

LESIONS_FILE = "lesions.json"  # beside label.npy: in which sequences each lesion is visible or faint


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a case was prepared, as its record states it; None: it does not.

    Attributes
    ----------
    preparation
        Version of the preparation.
    cord_method
        Where the cord masks came from.
    rules
        What :func:`rules_of` says of the recipe that it was prepared for.
    """

    preparation: int | None = None
    cord_method: str | None = None
    rules: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingCase:
    """One prepared case with its label; arrays are memory-mapped where they are read from disk.

    Attributes
    ----------
    name, subject, session
        Identity; splits go by subject.
    sequences
        Channel names, in the order of the network.
    available : (S,) bool
        Channels with data.
    image : (F, i, j, k) float32 or float16
        Normalised; 0 where not covered. All channels of the file: :meth:`channel` finds the right one.
    coverage : (F, i, j, k) bool
        Where they have data.
    label : (i, j, k) uint8
        Lesion instances from 1; 0 background; 255 does not count.
    visible, faint : mapping of int to tuple of str
        Sequences in which each lesion is visible or faint, where that is known (synthetic cases). A lesion
        that no kept sequence shows at all does not count in training.
    channels
        Where each of ``sequences`` stands in ``image``; empty: in the same order.
    folder
        Where it was read from; None for cases that live in memory.
    made
        How it was prepared.
    cord : (i, j, k) float16 or None
        Share of cord in each voxel, where it was kept.
    spacings : mapping of str to (float, float, float)
        Size of a native voxel along (R, A, S) by sequence, mm, where it is known.
    """

    name: str
    subject: str
    sequences: tuple[str, ...]
    available: npt.NDArray[np.bool_]
    image: npt.NDArray[Any]
    coverage: npt.NDArray[np.bool_]
    label: npt.NDArray[np.uint8]
    visible: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    faint: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    session: str = ""
    channels: tuple[int, ...] = ()
    folder: Path | None = None
    made: Made = field(default_factory=Made)
    cord: npt.NDArray[Any] | None = None
    spacings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker process as a path: memory-mapped arrays would be copied whole."""
        if self.folder is None:
            return _rebuild, tuple(getattr(self, item.name) for item in fields(self))
        return _reopen, (self.folder, self.sequences)

    @property
    def lesions(self) -> tuple[int, ...]:
        """Instance numbers in the label."""
        return tuple(int(n) for n in np.flatnonzero(self.lesion_voxels))

    @property
    def lesion_voxels(self) -> npt.NDArray[np.int64]:
        """(255,) voxels of each instance by its number; 0 for numbers that no lesion has."""
        counts = np.bincount(self.label.ravel(), minlength=256)[:IGNORE]
        counts[0] = 0
        return counts

    def channel(self, number: int) -> int:
        """Channel of ``image`` and ``coverage`` that holds sequence ``number``."""
        return self.channels[number] if self.channels else number

    def covered(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(i, j, k) where any of the sequences ``kept`` has data."""
        covered = np.zeros(self.label.shape, bool)
        for number in np.flatnonzero(kept):
            covered |= self.coverage[self.channel(int(number))]
        return covered


def _rebuild(*values: Any) -> TrainingCase:
    names = (item.name for item in fields(TrainingCase))
    return TrainingCase(**dict(zip(names, values, strict=True)))


def _reopen(folder: Path, sequences: tuple[str, ...]) -> TrainingCase:
    return load_case(folder, sequences=sequences)


def find_cases(root: Path) -> list[Path]:
    """Folders below ``root`` that hold a prepared case, sorted (MissingInputError if there are none).

    Hidden ones are drafts of a preparation.
    """
    found = [path.parent for path in root.rglob("case.json")]
    folders = sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not folders:
        raise MissingInputError("no prepared cases", file=root, expected="folders with case.json")
    return folders


def load_case(folder: Path, *, sequences: Sequence[str]) -> TrainingCase:
    """Open one prepared case and check that image, coverage and label belong together.

    Parameters
    ----------
    folder
        With the case's files.
    sequences
        Names of the wanted sequences, in the order of the network: all of the case's or some. None of them
        need be available.

    Raises
    ------
    MissingInputError
        If a file is missing.
    DataError
        If shapes or types do not match, or the case was prepared without one of the sequences.
    """
    record = read_record(folder)
    image, coverage = _array(folder, "image"), _array(folder, "coverage")
    label = _array(folder, "label")
    names = tuple(record["sequences"])
    strangers = [name for name in sequences if name not in names]
    if strangers:
        raise DataError(
            f"sequences {list(names)}",
            file=folder / "case.json",
            expected=f"{list(sequences)}, as the network has them",
            remedy="prepare the cases again with this recipe",
        )
    _check_shapes(folder, image, coverage=coverage, label=label, channels=len(names))
    present = np.array(record["available"], bool)
    if present.shape != (len(names),) or not present.any():
        raise DataError("no sequence is available", file=folder / "case.json", expected="at least one")
    channels = tuple(names.index(name) for name in sequences)
    return TrainingCase(
        name=_named(record["case"], folder),
        subject=_named(record["subject"], folder),
        session=str(record.get("session") or ""),
        sequences=tuple(sequences),
        available=present[list(channels)],
        image=image,
        coverage=coverage,
        label=label,
        visible=_detectability(folder / LESIONS_FILE, "visible"),
        faint=_detectability(folder / LESIONS_FILE, "faint"),
        channels=channels,
        folder=folder,
        made=Made(**{key: record.get(key) for key in ("preparation", "cord_method", "rules")}),
        cord=_cord(folder, label),
        spacings=_spacings(record, folder / "case.json"),
    )


def load_cases(root: Path, *, sequences: Sequence[str]) -> list[TrainingCase]:
    """All cases below a folder."""
    return [load_case(folder, sequences=sequences) for folder in find_cases(root)]


def rules_of(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the numbers of a prepared case, as plain data."""
    return {
        "frame": recipe.frame,
        "normalize": recipe.normalize,
        "spacing_mm": recipe.grid.spacing_mm,
        "window_vox": list(recipe.grid.window_vox or ()),
    }


def check_rules(cases: Iterable[TrainingCase], recipe: Recipe) -> None:
    """Refuse cases that were prepared otherwise than the app prepares for a model of this recipe (DataError).

    Cases whose record does not say how they were prepared are let pass.
    """
    wanted = rules_of(recipe)
    for case in cases:
        for key, value in (case.made.rules or {}).items():
            if key in wanted and wanted[key] != value:
                raise DataError(
                    f"{case.name} was prepared with {key} {value!r}",
                    file=case.folder,
                    expected=f"{wanted[key]!r}, as in recipe {recipe.name}",
                    remedy="prepare the cases again with this recipe, or train with theirs",
                )


def kept_sequences(case: TrainingCase, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(S,) bool: the available sequences of a case that are among ``names`` (empty: all of them)."""
    wanted = np.array([not names or name in names for name in case.sequences], bool)
    return np.asarray(case.available & wanted, bool)


def _named(value: object, folder: Path) -> str:
    return folder.name if value in (None, "") else str(value)


def read_record(folder: Path) -> dict[str, Any]:
    """``case.json`` of a prepared case (MissingInputError without one, DataError if it is malformed)."""
    path = folder / "case.json"
    if not path.is_file():
        raise MissingInputError("no prepared case", file=path, expected="a folder with case.json")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("case", "subject", "sequences", "available"):
            record[key]
        for key, kind in (("sequences", str), ("available", int)):
            if not isinstance(record[key], list) or not all(isinstance(one, kind) for one in record[key]):
                raise ValueError(f"{key} {record[key]!r}")
        if not isinstance(record.get("rules") or {}, dict):
            raise ValueError(f"rules {record['rules']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"malformed case.json ({error!r})", file=path, expected="a prepared case") from error
    return record


def _array(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.npy"
    if not path.is_file():
        remedy = "prepare the labels too" if name == "label" else "prepare the case again"
        raise MissingInputError(f"no {name}.npy", file=folder, expected=f"{name}.npy", remedy=remedy)
    return _opened(path)


def _opened(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"not readable ({error})", file=path, expected="a whole array", remedy="prepare the case again"
        ) from error
    return array


def _cord(folder: Path, label: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    path = folder / "cord_share.npy"
    if not path.is_file():
        return None
    cord = _opened(path)
    if cord.shape != label.shape:
        raise DataError(f"cord of shape {cord.shape}", file=path, expected=f"{label.shape}, as the label has")
    return cord


def _spacings(record: Mapping[str, Any], file: Path) -> dict[str, tuple[float, float, float]]:
    """Native voxel sizes along the prepared axes, by sequence: those of its first slab."""
    out: dict[str, tuple[float, float, float]] = {}
    try:
        for slab in (record.get("geometry") or {}).get("slabs", ()):
            matrix = np.abs(np.array(slab["grid"]["affine"], float)[:3, :3])
            lengths = np.linalg.norm(matrix, axis=0)
            # of the native axis nearest to each world axis
            sizes = lengths[(matrix / lengths).argmax(axis=1)]
            out.setdefault(str(slab["key"]), (float(sizes[0]), float(sizes[1]), float(sizes[2])))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"malformed geometry ({error!r})", file=file, expected="slabs with key and grid",
            remedy="prepare the case again",
        ) from error  # fmt: skip
    return out


def _check_shapes(
    folder: Path,
    image: npt.NDArray[Any],
    *,
    coverage: npt.NDArray[Any],
    label: npt.NDArray[Any],
    channels: int,
) -> None:
    if image.ndim != 4 or image.shape[0] != channels:
        raise DataError(
            f"image of shape {image.shape}", file=folder / "image.npy", expected=f"({channels}, i, j, k)"
        )
    if coverage.shape != image.shape or coverage.dtype != np.bool_:
        raise DataError(
            f"coverage of shape {coverage.shape}, {coverage.dtype}",
            file=folder / "coverage.npy",
            expected=f"bool of shape {image.shape}",
        )
    if label.shape != image.shape[1:] or label.dtype != np.uint8:
        raise DataError(
            f"label of shape {label.shape}, {label.dtype}",
            file=folder / "label.npy",
            expected=f"uint8 of shape {image.shape[1:]}, as the image has",
            remedy="bring the label to prepared space with the case's own geometry",
        )


def _detectability(path: Path, degree: str) -> dict[int, tuple[str, ...]]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {int(key): tuple(entry[degree]) for key, entry in data.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"malformed ({error!r})", file=path,
            expected='{"1": {"visible": […], "faint": […]}, …}', remedy="prepare the case again",
        ) from error  # fmt: skip
    return found
