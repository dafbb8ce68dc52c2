"""Which subjects train and which are held out; never by image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.files import write_json
from bids_scseg.training.parse import suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Subjects on each side, sorted.

    Attributes
    ----------
    training, validation
        For weights, and for thresholds and looks.
    test
        Taken part in by nothing here.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


def write_split(file: Path, split: Split, *, seed: int) -> None:
    """Write who is on which side, in the form in which ``validation.split`` takes it."""
    sides = {"training": split.training, "validation": split.validation, "test": split.test}
    write_json(file, {**{key: list(names) for key, names in sides.items()}, "seed": seed})


def split_subjects(subjects: Iterable[str], config: ValidationConfig, *, seed: int) -> Split:
    """Share out subjects as a configuration says; no subject is on two sides.

    Parameters
    ----------
    subjects
        Labels.
    config
        How subjects are held out.
    seed
        Of draws.

    Raises
    ------
    MissingInputError
        If a split file is named and absent.
    DataError
        If a split names subjects that are not there, leaves one out, or puts one on two sides.
    """
    names = set(subjects)
    if config.split:
        return _from_file(names, Path(config.split))
    if config.subjects:
        held = {name.removeprefix("sub-") for name in config.subjects}
        _check_known(held, names, where="validation.subjects")
        return _split(names - held, held)
    if config.folds:
        held = _fold(names, config.folds, fold=config.fold, seed=seed)
        return _split(names - held, held)
    held = _share(names, config.fraction, seed=seed)
    return _split(names - held, held)


def _split(training: set[str], held: set[str], test: Iterable[str] = ()) -> Split:
    return Split(training=tuple(sorted(training)), validation=tuple(sorted(held)), test=tuple(sorted(test)))


def _share(names: set[str], fraction: float, *, seed: int) -> set[str]:
    """About that share, at least one of two or more.

    A subject's place depends on its label and the seed alone, so that cases which are added later never
    move a subject from one side to the other.
    """
    rank = {name: _lot(name, seed) for name in names}
    held = {name for name, lot in rank.items() if lot < fraction}
    if fraction > 0 and len(rank) > 1 and not held:
        held = {min(rank, key=lambda name: rank[name])}
    if len(rank) > 1 and held == names:
        held.discard(max(rank, key=lambda name: rank[name]))
    return held


def _fold(names: set[str], folds: int, *, fold: int, seed: int) -> set[str]:
    """One of several parts whose sizes differ by one at most; every subject is in exactly one of them."""
    if folds > len(names):
        raise DataError(f"{folds} folds of {len(names)} subjects", expected="a subject for each fold")
    order = sorted(names, key=lambda name: (_lot(name, seed), name))
    return set(order[fold::folds])


def _lot(subject: str, seed: int) -> float:
    """A number in [0, 1) that depends on subject and seed alone."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _from_file(names: set[str], file: Path) -> Split:
    sides = _read(file)
    held, test = sides.get("validation", set()), sides.get("test", set())
    training = sides.get("training", names - held - test)
    for one, two in ((training, held), (training, test), (held, test)):
        if one & two:
            raise DataError(f"subjects {sorted(one & two)} are on two sides", file=file, expected="one each")
    _check_known(training | held | test, names, where=str(file))
    left = sorted(names - training - held - test)
    if left:
        raise DataError(
            f"subjects {left} are on no side",
            file=file,
            expected="every subject of the data under training, validation or test",
        )
    return _split(training, held, test)


def _read(file: Path) -> dict[str, set[str]]:
    if not file.is_file():
        raise MissingInputError("no such split", file=file, expected="a JSON file, as split.json of a run")
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        sides = {key: data[key] for key in ("training", "validation", "test") if key in data}
        if "validation" not in sides or not all(isinstance(names, list) for names in sides.values()):
            raise TypeError("lists are missing")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"malformed split ({error})", file=file, expected='{"validation": ["01", …], "test": […]}'
        ) from error
    return {key: {str(name).removeprefix("sub-") for name in names} for key, names in sides.items()}


def _check_known(wanted: set[str], names: set[str], *, where: str) -> None:
    for name in sorted(wanted - names):
        raise DataError(
            f"subject {name!r} is not in the data",
            file=where,
            expected=f"subjects among {sorted(names)[:10]}{' …' if len(names) > 10 else ''}",
            remedy=suggestion(name, sorted(names), cutoff=0.6),
        )
