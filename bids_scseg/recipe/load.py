"""Recipes from and to JSON, strictly: what is not understood is refused with its place and a remedy."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from bids_scseg.errors import DataError, MissingInputError, suggestion
from bids_scseg.files import read_text
from bids_scseg.recipe.check import check_network, check_recipe
from bids_scseg.recipe.model import NetworkSpec, Recipe

T = TypeVar("T")

_DATA = files("bids_scseg.recipe") / "data"
_REMEDY = "correct the recipe; docs and the packaged recipes show the fields"
MAX_NUMBER = 1e9  # of any number in a recipe: sizes, millimetres, versions (ours)
MAX_FILE_BYTES = 4_000_000  # of a recipe: the packaged ones have 5 kB (ours)
_SCALARS = (str, bool, int, float)


def packaged_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with this package, sorted."""
    names = (entry.name for entry in _DATA.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def load_recipe(name_or_path: str | Path, *, where: object = None) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    name_or_path
        Name of a packaged recipe such as ``cord-lesion``, or path of a JSON file.
    where
        What names it, for the message if there is none of that name.

    Raises
    ------
    MissingInputError
        If it is a path and there is no such file.
    DataError
        If it is an unknown name, no JSON, has unknown or missing keys, values of the wrong type, or parts
        that contradict each other.
    """
    text = str(name_or_path)
    if text in packaged_recipes():
        return recipe_from_json(parse_json((_DATA / f"{text}.json").read_text("utf-8")), file=text)
    path = Path(name_or_path)
    if path.is_file():
        return recipe_from_json(parse_json(_read(path), file=path), file=path)
    if isinstance(name_or_path, Path) or path.suffix == ".json" or len(path.parts) > 1:
        raise MissingInputError("no such recipe file", file=path, remedy="check the path")
    raise DataError(
        f"there is no recipe {text!r}",
        file=where,
        expected=f"one of {list(packaged_recipes())} or the path of a JSON file",
        remedy=suggestion(text, packaged_recipes()) or "choose one of these names",
    )


def recipe_from_json(data: object, *, file: object = None) -> Recipe:
    """Build a recipe from parsed JSON and check that it is consistent.

    Parameters
    ----------
    data
        What ``json.load`` gave.
    file
        Where it comes from, for messages.

    Raises
    ------
    DataError
        As :func:`load_recipe`.
    """
    recipe = _record(Recipe, data, _Place(file=file, path="recipe"))
    check_recipe(recipe, file=file)
    return recipe


def recipe_to_json(recipe: Recipe) -> dict[str, object]:
    """All of a recipe as plain data for JSON; inverse of :func:`recipe_from_json`."""
    plain = _plain_record(recipe)
    inference = plain["inference"]
    if isinstance(inference, dict):
        for name in ("seed_threshold", "seed_threshold_alone"):
            if not inference[name]:
                del inference[name]  # so that checksums are those from before there was one
    return plain


def network_from_json(data: object, *, file: object = None) -> NetworkSpec:
    """Build a network specification from parsed JSON and check it.

    Raises
    ------
    DataError
        As :func:`load_recipe`.
    """
    spec = _record(NetworkSpec, data, _Place(file=file, path="network"))
    check_network(spec, file=file)
    return spec


def network_to_json(spec: NetworkSpec) -> dict[str, object]:
    """A network specification as plain data for JSON; inverse of :func:`network_from_json`."""
    return _plain_record(spec)


def parse_json(text: str, *, file: object = None) -> object:
    """Parse JSON, refusing repeated keys and numbers that are not finite.

    Raises
    ------
    DataError
        With line and column, or the key.
    """

    def refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise DataError(f"key {repeated[0]!r} appears twice", file=file, remedy="keep one of them")
        return dict(pairs)

    def refuse_constant(name: str) -> object:
        raise DataError(f"the number {name}", file=file, expected="finite numbers", remedy="correct the file")

    try:
        parsed: object = json.loads(text, object_pairs_hook=refuse_repeats, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise DataError(
            f"not JSON: {str(error) or 'nested too deeply'}", file=file, remedy="correct the file"
        ) from error
    return parsed


def _read(path: Path) -> str:
    return read_text(path, max_bytes=MAX_FILE_BYTES)


def _plain_record(record: Recipe | NetworkSpec) -> dict[str, object]:
    return {key: _plain(value) for key, value in dataclasses.asdict(record).items()}


def _plain(value: object) -> object:
    """Tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a document a value stands."""

    file: object
    path: str

    def at(self, step: str | int) -> _Place:
        """The place of an entry."""
        return _Place(self.file, f"{self.path}[{step}]" if isinstance(step, int) else f"{self.path}.{step}")

    def refuse(self, value: object, expected: str) -> DataError:
        """The error that a value of the wrong type deserves."""
        try:
            shown = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            shown = "a value that cannot be shown"
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return DataError(f"{self.path} is {shown}", file=self.file, expected=expected, remedy=_REMEDY)


def _hints(cls: type[Any]) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _record(cls: type[T], data: object, place: _Place) -> T:
    """Build a dataclass from an object whose keys are its fields."""
    if not isinstance(data, dict):
        raise place.refuse(data, "an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise DataError(
            f"unknown key {unknown[0]!r} in {place.path}",
            file=place.file,
            expected=f"keys among {sorted(fields)}",
            remedy=_REMEDY,
        )
    required = [name for name, field in fields.items() if _is_required(field)]
    missing = [name for name in required if name not in data]
    if missing:
        raise DataError(
            f"{place.path} lacks {missing}", file=place.file, expected="these keys", remedy=_REMEDY
        )
    return cls(**{key: _value(_hints(cls)[key], item, place.at(key)) for key, item in data.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: object, place: _Place) -> object:
    """Check a value against a type hint and convert lists to tuples."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _choice(typing.get_args(hint), value, place)
    if origin is tuple:
        return _tuple(typing.get_args(hint), value, place)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return None if value is None else _value(inner[0], value, place)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast("type[object]", hint), value, place)
    return _scalar(hint, value, place)


def _choice(choices: tuple[object, ...], value: object, place: _Place) -> object:
    # True == 1 in Python: types must agree as well
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise place.refuse(value, f"one of {list(choices)}")
    return value


def _tuple(arguments: tuple[Any, ...], value: object, place: _Place) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise place.refuse(value, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise place.refuse(value, f"a list of {len(arguments)} entries")
    return tuple(
        _value(hint, item, place.at(i)) for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _scalar(hint: Any, value: object, place: _Place) -> object:
    if hint not in _SCALARS:
        raise TypeError(f"no rule for values of type {hint}")
    if hint is float and type(value) is int and abs(value) < MAX_NUMBER:
        return float(value)
    if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
        raise place.refuse(value, f"a number below {MAX_NUMBER:g}")
    if type(value) is not hint:
        names = {str: "a text", bool: "true or false", int: "an integer", float: "a number"}
        raise place.refuse(value, names[hint])
    return value
