"""Prepared cases on disk as a source of training examples: checks, selection of sequences, patches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.training.augment import augment
from bids_scseg.training.config import AugmentConfig, SamplingConfig
from bids_scseg.training.sample import IGNORE, Sample
from bids_scseg.training.summary import summarize

Rng = np.random.Generator
Places = tuple[npt.NDArray[np.int32], ...]

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
    """

    preparation: int | None = None
    cord_method: str | None = None


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
    """Folders below ``root`` that hold a prepared case, sorted (MissingInputError if there are none)."""
    folders = sorted(path.parent for path in root.rglob("case.json"))
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
    record = _record(folder)
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
        name=str(record["case"]) or folder.name,
        subject=str(record["subject"]) or folder.name,
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
        made=Made(preparation=record.get("preparation"), cord_method=record.get("cord_method")),
    )


def load_cases(root: Path, *, sequences: Sequence[str]) -> list[TrainingCase]:
    """All cases below a folder."""
    return [load_case(folder, sequences=sequences) for folder in find_cases(root)]


def kept_sequences(case: TrainingCase, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(S,) bool: the available sequences of a case that are among ``names`` (empty: all of them)."""
    wanted = np.array([not names or name in names for name in case.sequences], bool)
    return np.asarray(case.available & wanted, bool)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCases:
    """Patches along S-I from prepared cases.

    Attributes
    ----------
    cases
        Training cases; each has one of ``sampling.sequences`` at least.
    sampling, augmentation
        How patches are drawn and changed.
    seed
        Example ``n`` depends on ``(seed, n)`` only.
    places
        Voxels of each lesion by case and lesion, found when they are first needed.
    """

    cases: Sequence[TrainingCase]
    sampling: SamplingConfig
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    places: dict[int, Places] = field(default_factory=dict, repr=False)

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        number = int(rng.integers(len(self.cases)))
        case = self.cases[number]
        available = kept_sequences(case, self.sampling.sequences)
        if self.sampling.by_patch:
            # the place first: a sequence that is kept but does not reach it would teach nothing
            place = draw_place(rng, case, self.sampling, kept=available, places=self._places(number))
            here = available & reaching(case, place, self.sampling.patch_vox)
            kept = draw_sequences(rng, here if here.any() else available, self.sampling)
        else:
            kept = draw_sequences(rng, available, self.sampling)
            place = draw_place(rng, case, self.sampling, kept=kept, places=self._places(number))
        patch = augment(crop(case, place, self.sampling.patch_vox, kept=kept), rng, self.augmentation)
        return covered_only(patch) if self.sampling.by_patch else patch

    def _places(self, number: int) -> Places:
        if number not in self.places:
            self.places[number] = lesion_places(self.cases[number])
        return self.places[number]

    def summary(self) -> dict[str, object]:
        """What the source holds, as :func:`bids_scseg.training.summary.summarize` says it."""
        return summarize(self.cases)


def lesion_places(case: TrainingCase) -> Places:
    """Voxels (N, 3) of each lesion, lesions and voxels in ascending order."""
    label = np.asarray(case.label)
    return tuple(np.argwhere(label == lesion).astype(np.int32) for lesion in case.lesions)


def covered_only(sample: Sample) -> Sample:
    """The sample with sequences that cover none of its voxels counted as missing; one always stays."""
    here = sample.available & sample.coverage.any(axis=(1, 2, 3))
    return replace(sample, available=here) if here.any() else sample


def reaching(
    case: TrainingCase, place: tuple[int, int, int], patch: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """(S,) bool: sequences with data at the height of the place, within half a patch's length of it."""
    size = case.label.shape
    heights = slice(max(place[2] - patch[2] // 4, 0), place[2] + patch[2] // 4 + 1)
    column = (size[0] // 2, size[1] // 2, heights)
    return np.array(
        [bool(case.coverage[case.channel(n)][column].any()) for n in range(len(case.sequences))], bool
    )


def draw_sequences(
    rng: Rng, available: npt.NDArray[np.bool_], sampling: SamplingConfig
) -> npt.NDArray[np.bool_]:
    """(S,) bool: all available sequences or, by ``sequence_dropout``, a non-empty subset of them."""
    if rng.random() >= sampling.sequence_dropout:
        return available.copy()
    names = np.flatnonzero(available)
    # the number kept is uniform, so that single sequences are seen as often as full sets
    most = min(len(names), sampling.dropout_keeps or len(names))
    count = int(rng.integers(1, most + 1))
    kept = np.zeros(available.shape, bool)
    kept[rng.permutation(names)[:count]] = True
    return kept


def draw_place(
    rng: Rng,
    case: TrainingCase,
    sampling: SamplingConfig,
    *,
    kept: npt.NDArray[np.bool_],
    places: Places | None = None,
) -> tuple[int, int, int]:
    """Centre of a patch: on a lesion (each equally likely) or anywhere that a kept sequence covers.

    ``places`` saves searching the lesions' voxels anew (:func:`lesion_places`).
    """
    size = case.label.shape
    places = lesion_places(case) if places is None else places
    if rng.random() < sampling.foreground and places:
        voxels = places[int(rng.integers(len(places)))]
        i, j, k = (int(n) for n in voxels[rng.integers(len(voxels))])
        return i, j, k + int(rng.integers(-sampling.patch_vox[2] // 4, sampling.patch_vox[2] // 4 + 1))
    column = size[0] // 2, size[1] // 2
    middle = np.zeros(size[2], bool)
    for number in np.flatnonzero(kept):
        middle |= case.coverage[case.channel(int(number))][column]
    slices = np.flatnonzero(middle) if middle.any() else np.arange(size[2])
    return *column, int(slices[rng.integers(len(slices))])


def crop(
    case: TrainingCase,
    place: tuple[int, int, int],
    patch: tuple[int, int, int],
    *,
    kept: npt.NDArray[np.bool_],
) -> Sample:
    """The patch round a place, shifted to lie inside the case; what is smaller than a patch is padded.

    Voxels that no kept sequence covers, and lesions that none of them shows, do not count (255).
    """
    source, target = [], []
    for centre, want, have in zip(place, patch, case.label.shape, strict=True):
        first = int(np.clip(centre - want // 2, 0, max(have - want, 0)))
        length = min(want, have)
        before = (want - length) // 2
        source.append(slice(first, first + length))
        target.append(slice(before, before + length))
    inner, outer = tuple(source), tuple(target)
    channels = len(case.sequences)
    image, coverage = np.zeros((channels, *patch), np.float32), np.zeros((channels, *patch), bool)
    for channel in np.flatnonzero(kept):
        stored = case.channel(int(channel))
        image[(channel, *outer)] = case.image[stored][inner]
        coverage[(channel, *outer)] = case.coverage[stored][inner]
    instances = np.zeros(patch, np.uint8)
    instances[outer] = case.label[inner]
    label = _classes(case, instances, kept=kept)
    label[~coverage.any(axis=0)] = IGNORE
    return Sample(image=image, coverage=coverage, label=label, available=kept.copy())


def _classes(
    case: TrainingCase, instances: npt.NDArray[np.uint8], *, kept: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    table = np.ones(256, np.uint8)
    table[0], table[IGNORE] = 0, IGNORE
    names = {case.sequences[n] for n in np.flatnonzero(kept)}
    for lesion, where in case.visible.items():
        if 0 < lesion < IGNORE and not names & {*where, *case.faint.get(lesion, ())}:
            table[lesion] = IGNORE
    return np.asarray(table[instances])


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "case.json"
    if not path.is_file():
        raise MissingInputError("no prepared case", file=path, expected="a folder with case.json")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("case", "subject", "sequences", "available"):
            record[key]
    except (ValueError, KeyError) as error:
        raise DataError(f"malformed case.json ({error!r})", file=path, expected="a prepared case") from error
    return record


def _array(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.npy"
    if not path.is_file():
        remedy = "prepare the labels too" if name == "label" else "prepare the case again"
        raise MissingInputError(f"no {name}.npy", file=folder, expected=f"{name}.npy", remedy=remedy)
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


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
    data = json.loads(path.read_text(encoding="utf-8"))
    return {int(key): tuple(entry[degree]) for key, entry in data.items()}
