"""Prepared cases on disk as a source of training examples: checks, splits by subject, patches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.training.augment import augment
from bids_scseg.training.config import AugmentConfig, SamplingConfig
from bids_scseg.training.sample import IGNORE, Sample

Rng = np.random.Generator

LESIONS_FILE = "lesions.json"  # beside label.npy: in which sequences each lesion is visible or faint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingCase:
    """One prepared case with its label; arrays are memory-mapped where they are read from disk.

    Attributes
    ----------
    name, subject
        Identity; splits go by subject.
    sequences
        Channel names.
    available : (S,) bool
        Channels with data.
    image : (S, i, j, k) float32 or float16
        Normalised; 0 where not covered.
    coverage : (S, i, j, k) bool
        Where channels have data.
    label : (i, j, k) uint8
        Lesion instances from 1; 0 background; 255 does not count.
    visible, faint : mapping of int to tuple of str
        Sequences in which each lesion is visible or faint, where that is known (synthetic cases). A lesion
        that no kept sequence shows at all does not count in training.
    folder
        Where it was read from; None for cases that live in memory.
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
    folder: Path | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker process as a path: memory-mapped arrays would be copied whole."""
        if self.folder is None:
            return _rebuild, tuple(getattr(self, item.name) for item in fields(self))
        return _reopen, (self.folder, self.sequences)

    @property
    def lesions(self) -> tuple[int, ...]:
        """Instance numbers in the label."""
        return tuple(int(n) for n in np.unique(self.label) if n not in (0, IGNORE))


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

    Raises
    ------
    MissingInputError
        If a file is missing.
    DataError
        If shapes, types or sequences do not match, or values are not finite where they should be.
    """
    record = _record(folder)
    image, coverage = _array(folder, "image"), _array(folder, "coverage")
    label = _array(folder, "label")
    if tuple(record["sequences"]) != tuple(sequences):
        raise DataError(
            f"sequences {record['sequences']}",
            file=folder / "case.json",
            expected=f"{list(sequences)}, as the recipe has them",
            remedy="prepare the cases again with this recipe",
        )
    _check_shapes(folder, image, coverage=coverage, label=label, channels=len(sequences))
    available = np.array(record["available"], bool)
    if not available.any():
        raise DataError("no sequence is available", file=folder / "case.json", expected="at least one")
    return TrainingCase(
        name=str(record["case"]) or folder.name,
        subject=str(record["subject"]) or folder.name,
        sequences=tuple(sequences),
        available=available,
        image=image,
        coverage=coverage,
        label=label,
        visible=_detectability(folder / LESIONS_FILE, "visible"),
        faint=_detectability(folder / LESIONS_FILE, "faint"),
        folder=folder,
    )


def load_cases(root: Path, *, sequences: Sequence[str]) -> list[TrainingCase]:
    """All cases below a folder."""
    return [load_case(folder, sequences=sequences) for folder in find_cases(root)]


def split_subjects(
    cases: Sequence[TrainingCase], fraction: float, *, seed: int, out: Path | None = None
) -> tuple[list[TrainingCase], list[TrainingCase]]:
    """Training and validation cases; no subject is in both.

    A subject's place depends on its label and the seed alone, so that cases which are added later never
    move a subject from one side to the other.

    Parameters
    ----------
    cases
        All cases.
    fraction
        Expected share of the subjects that is held out; at least one of two or more.
    seed
        Of the draw.
    out
        JSON file to write the split to.
    """
    rank = {case.subject: _lot(case.subject, seed) for case in cases}
    held = {subject for subject, lot in rank.items() if lot < fraction}
    if fraction > 0 and len(rank) > 1 and not held:
        held = {min(rank, key=lambda subject: rank[subject])}
    if len(rank) > 1 and held == set(rank):
        held.discard(max(rank, key=lambda subject: rank[subject]))
    training = [case for case in cases if case.subject not in held]
    validation = [case for case in cases if case.subject in held]
    if out is not None:
        split = {"training": sorted({c.subject for c in training}), "validation": sorted(held), "seed": seed}
        out.write_text(json.dumps(split, indent=2) + "\n", encoding="utf-8")
    return training, validation


def _lot(subject: str, seed: int) -> float:
    """A number in [0, 1) that depends on subject and seed alone."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCases:
    """Patches along S-I from prepared cases.

    Attributes
    ----------
    cases
        Training cases.
    sampling, augmentation
        How patches are drawn and changed.
    seed
        Example ``n`` depends on ``(seed, n)`` only.
    """

    cases: Sequence[TrainingCase]
    sampling: SamplingConfig
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        case = self.cases[int(rng.integers(len(self.cases)))]
        kept = draw_sequences(rng, case.available, self.sampling.sequence_dropout)
        place = draw_place(rng, case, self.sampling, kept=kept)
        return augment(crop(case, place, self.sampling.patch_vox, kept=kept), rng, self.augmentation)

    def summary(self) -> dict[str, object]:
        """What the source holds, for people to check before the first step."""
        return {
            "cases": len(self.cases),
            "subjects": len({case.subject for case in self.cases}),
            "without lesions": sum(not case.lesions for case in self.cases),
            "lesions": sum(len(case.lesions) for case in self.cases),
            "lesion voxels": int(
                sum(np.isin(case.label, (0, IGNORE), invert=True).sum() for case in self.cases)
            ),
            "lengths": sorted(case.label.shape[2] for case in self.cases),
            "available": {
                name: int(sum(case.available[n] for case in self.cases))
                for n, name in enumerate(self.cases[0].sequences if self.cases else ())
            },
        }


def draw_sequences(rng: Rng, available: npt.NDArray[np.bool_], dropout: float) -> npt.NDArray[np.bool_]:
    """(S,) bool: all available sequences or, with probability ``dropout``, a non-empty subset of them."""
    if rng.random() >= dropout:
        return available.copy()
    names = np.flatnonzero(available)
    # the number kept is uniform, so that single sequences are seen as often as full sets
    count = int(rng.integers(1, len(names) + 1))
    kept = np.zeros(available.shape, bool)
    kept[rng.permutation(names)[:count]] = True
    return kept


def draw_place(
    rng: Rng, case: TrainingCase, sampling: SamplingConfig, *, kept: npt.NDArray[np.bool_]
) -> tuple[int, int, int]:
    """Centre of a patch: on a lesion (each equally likely) or anywhere that a kept sequence covers."""
    size = case.label.shape
    if rng.random() < sampling.foreground and case.lesions:
        lesion = case.lesions[int(rng.integers(len(case.lesions)))]
        voxels = np.argwhere(case.label == lesion)
        i, j, k = (int(n) for n in voxels[rng.integers(len(voxels))])
        return i, j, k + int(rng.integers(-sampling.patch_vox[2] // 4, sampling.patch_vox[2] // 4 + 1))
    middle = case.coverage[kept, size[0] // 2, size[1] // 2].any(axis=0)
    slices = np.flatnonzero(middle) if middle.any() else np.arange(size[2])
    return size[0] // 2, size[1] // 2, int(slices[rng.integers(len(slices))])


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
        image[(channel, *outer)] = case.image[(channel, *inner)]
        coverage[(channel, *outer)] = case.coverage[(channel, *inner)]
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
