"""Which subjects train and which are held out; never by image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bids_scseg.bids.split import find_split, read_split
from bids_scseg.errors import DataError, suggestion
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.files import write_json

LEAST_WITH_TEST = 3  # subjects: one for each side


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
    named = {name.removeprefix("sub-") for name in config.subjects}
    _check_known(named, names, where="validation.subjects")
    test = _test_share(names - named, config.test, seed=seed)
    rest = names - test
    if named:
        held = named
    elif config.folds:
        held = _fold(rest, config.folds, fold=config.fold, seed=seed)
    else:
        held = _share(rest, config.fraction, seed=seed)
    return _split(rest - held, held, test)


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


def _test_share(names: set[str], share: float, *, seed: int) -> set[str]:
    """About that share, at least one, and at most what leaves two others; none where none is asked for.

    These have the highest lots, and held-out ones the lowest: who is held out does not depend on this share,
    and, as there, cases that are added later move nobody.
    """
    if not share:
        return set()
    if len(names) < LEAST_WITH_TEST:
        raise DataError(
            f"{len(names)} subjects to choose from, with validation.test {share:g}",
            expected=f"at least {LEAST_WITH_TEST}: to train on, to hold out and for the test",
            remedy="prepare more subjects, or set validation.test to 0",
        )
    order = sorted(names, key=lambda name: (-_lot(name, seed), name))
    count = sum(_lot(name, seed) >= 1 - share for name in names)
    return set(order[: min(max(count, 1), len(names) - 2)])


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
    sides = read_split(find_split(file))
    held, test = sides["validation"], sides.get("test", set())
    training = sides.get("training", names - held - test)
    _check_known(training | held | test, names, where=str(file))
    left = sorted(names - training - held - test)
    if left:
        raise DataError(
            f"subjects {left} are on no side",
            file=file,
            expected="every subject of the data under training, validation or test",
        )
    return _split(training, held, test)


def _check_known(wanted: set[str], names: set[str], *, where: str) -> None:
    for name in sorted(wanted - names):
        raise DataError(
            f"subject {name!r} is not in the data",
            file=where,
            expected=f"subjects among {sorted(names)[:10]}{' …' if len(names) > 10 else ''}",
            remedy=suggestion(name, sorted(names), cutoff=0.6),
        )
