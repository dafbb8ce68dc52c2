"""Filter files: which files serve a sequence, by entities, where the rules choose otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bids_scseg import files
from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile

Filter = Mapping[str, tuple[str, ...] | None]
Filters = Mapping[str, Filter]

# Both the short names of file names and the long ones that pybids and other apps use.
ENTITY_NAMES = {
    "subject": "sub", "session": "ses", "task": "task", "acquisition": "acq", "ceagent": "ce",
    "reconstruction": "rec", "run": "run", "echo": "echo", "flip": "flip", "inversion": "inv",
    "mtransfer": "mt", "part": "part", "chunk": "chunk", "direction": "dir", "description": "desc",
    "suffix": "suffix",
}  # fmt: skip
SHORT_NAMES = frozenset(ENTITY_NAMES.values())
REMEDY = 'write it as {"T2Sag": {"acquisition": "sag", "run": ["1", "2"], "ceagent": null}}'


def read_filters(path: str | Path, recipe: Recipe) -> Filters:
    """Read a filter file.

    Parameters
    ----------
    path
        JSON file ``{sequence: {entity: value | [values] | null}}``. Entities by their short (``acq``) or
        long (``acquisition``) names, and ``suffix``; null: the entity must be absent.
    recipe
        Whose sequence names are allowed.

    Returns
    -------
    mapping
        Sequence name to entity (short name) to allowed values, None for "must be absent".

    Raises
    ------
    MissingInputError, DataError
        If the file is absent, is not JSON, or names an unknown sequence or entity.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingInputError("no such filter file", file=file)
    try:
        data = files.read_json(file)
    except DataError as error:
        raise DataError(error.found, file=file, expected="JSON", remedy=REMEDY) from error
    return parse_filters(data, recipe, file=file)


def parse_filters(data: object, recipe: Recipe, *, file: object = None) -> Filters:
    """Check and normalise the content of a filter file; see :func:`read_filters`."""
    if not isinstance(data, dict):
        raise DataError("not an object", file=file, expected="sequence names as keys", remedy=REMEDY)
    strangers = sorted(set(data) - set(recipe.sequence_names))
    if strangers:
        raise DataError(
            f"unknown sequence {strangers[0]!r:.60}",
            file=file,
            expected=f"one of {', '.join(recipe.sequence_names)}",
            remedy=REMEDY,
        )
    return {name: _parse_one(entry, f"sequence {name}", file) for name, entry in data.items()}


def selects(wanted: Filter, image: ImageFile) -> bool:
    """Whether a filter selects an image: every entity named has one of its values, or is absent where null.

    Indices compare as numbers (``run-01`` is run 1). An image without entities is never selected.
    """
    if not image.entities:
        return False
    for key, values in wanted.items():
        value = image.suffix if key == "suffix" else image.entity(key)
        if values is None and value is not None:
            return False
        if values is not None and (value is None or _plain(value) not in {_plain(item) for item in values}):
            return False
    return True


def _parse_one(entry: object, where: str, file: object) -> Filter:
    if not isinstance(entry, dict) or not entry:
        raise DataError(f"{where} has no entities", file=file, expected="an object", remedy=REMEDY)
    parsed: dict[str, tuple[str, ...] | None] = {}
    for key, value in entry.items():
        short = ENTITY_NAMES.get(key, key)
        if short not in SHORT_NAMES:
            raise DataError(
                f"{where} names the unknown entity {key!r:.60}",
                file=file,
                expected=f"one of {', '.join(ENTITY_NAMES)}",
                remedy=REMEDY,
            )
        if short in parsed:
            raise DataError(f"{where} names {short} twice", file=file, remedy=REMEDY)
        parsed[short] = _values(value, f"{where}, entity {key}", file)
    return parsed


def _values(value: object, where: str, file: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int) for item in items):
        raise DataError(
            f"{where} has the value {value!r:.60}",
            file=file,
            expected="text, a number, a list of such, or null",
        )
    return tuple(str(item) for item in items)


def _plain(value: str) -> str:
    return (value.lstrip("0") or "0") if value.isdecimal() else value
