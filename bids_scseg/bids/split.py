"""Who is on which side of a training, as its ``split.json`` says; and which subjects are evaluated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from bids_scseg import files
from bids_scseg.errors import DataError, MissingInputError, UsageError

#: Of a split: for weights, for thresholds and looks, for nothing. No subject is on two of them.
SIDES = ("training", "validation", "test")
#: Sides of subjects that were not trained on, the better one for an evaluation first.
HELD_OUT = ("test", "validation")
SPLIT_FILE = "split.json"
#: In a bundle's folder (``inference.bundle``, which is no room below this one; a test compares).
MODEL_FILE = "model.json"

Sides = Mapping[str, Collection[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which subjects are evaluated, and by whose word.

    Attributes
    ----------
    subjects
        Labels without prefix; None: all there are.
    side, split, sides
        Side of a training's split, its file, and all that it says; empty and None without a split.
    named
        Whether the subjects were named one by one.
    """

    subjects: frozenset[str] | None = None
    side: str = ""
    split: Path | None = None
    sides: Sides = field(default_factory=lambda: MappingProxyType({}), hash=False)
    named: bool = False

    def holds(self, subject: str) -> bool:
        """Whether a subject, with prefix or without, is evaluated."""
        return self.subjects is None or label_of(subject) in self.subjects


def label_of(subject: str) -> str:
    """Label without prefix; of a file without ``sub-``, which is its own subject, the name alone."""
    return subject.rsplit("/", 1)[-1].removeprefix("sub-")


def select(
    subjects: Collection[str] = (), split: str | Path | None = None, side: str | None = None
) -> Selection:
    """The subjects that are named, or those of one side of a split, or those named among the latter.

    Parameters
    ----------
    subjects
        Labels, with prefix or without; empty: all.
    split
        ``split.json`` of a training, or a folder with one.
    side
        One of :data:`SIDES`; None: test, or validation where nobody is on the test side.

    Raises
    ------
    UsageError
        If a side is named without a split, or a subject that is not on the side.
    MissingInputError, DataError
        If there is no split, it is malformed, or nobody is on its side.
    """
    named = frozenset(name.removeprefix("sub-") for name in subjects)
    if split is None:
        if side is not None:
            raise UsageError(f"--side {side} without a split", remedy="name the training's with --split")
        return Selection(subjects=named or None, named=bool(named))
    file = find_split(split)
    sides = read_split(file)
    chosen = _side(sides, side, file=file)
    strangers = sorted(named - sides[chosen])
    if strangers:
        raise UsageError(
            f"{', '.join(f'sub-{name}' for name in strangers)}: not on the {chosen} side",
            file=file,
            expected="subjects of that side",
            remedy="leave out --split to evaluate others",
        )
    members = named or frozenset(sides[chosen])
    return Selection(subjects=members, side=chosen, split=file, sides=sides, named=bool(named))


def _side(sides: Mapping[str, set[str]], side: str | None, *, file: Path) -> str:
    for name in HELD_OUT if side is None else (side,):
        if sides.get(name):
            return name
    raise DataError(
        f"nobody is on the {side or ' or '.join(HELD_OUT)} side of this split",
        file=file,
        expected=f"one of {', '.join(name for name in SIDES if sides.get(name))}",
        remedy="name another side with --side, or subjects with --participant-label",
    )


def find_split(path: str | Path) -> Path:
    """The file of a split: itself, or that of a training's folder, or of the folder that a bundle lies in.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    place = Path(path)
    places = [place / SPLIT_FILE] if place.is_dir() else [place]
    if (place / MODEL_FILE).is_file():
        places.append(place.absolute().parent / SPLIT_FILE)
    for file in places:
        if file.is_file():
            return file
    raise MissingInputError(
        "no such split", file=place, expected="a JSON file, as split.json of a run, or a folder with one"
    )


def read_split(file: Path) -> dict[str, set[str]]:
    """Sides of a split, each with its subjects' labels without prefix.

    Parameters
    ----------
    file
        JSON with the list ``validation`` and, perhaps, ``training`` and ``test``.

    Returns
    -------
    Side → labels; sides of which the file says nothing are absent.

    Raises
    ------
    DataError
        If it is malformed, or a subject is on two sides.
    """
    data = files.read_json(file)
    lists = {side: data[side] for side in SIDES if side in data} if isinstance(data, dict) else {}
    if "validation" not in lists or not all(isinstance(names, list) for names in lists.values()):
        raise DataError(
            "malformed split (lists are missing)",
            file=file,
            expected='{"validation": ["01", …], "test": […]}',
        )
    sides = {side: {str(name).removeprefix("sub-") for name in names} for side, names in lists.items()}
    for one, two in combinations(sides.values(), 2):
        if one & two:
            raise DataError(f"subjects {sorted(one & two)} are on two sides", file=file, expected="one each")
    return sides
