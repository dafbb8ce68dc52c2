"""Plain data from TOML files to frozen records, parsed strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bids_scseg.errors import DataError, MissingInputError, suggestion
from bids_scseg.files import read_toml

EXTENDS = "extends"  # key of a file that this one changes

Tables = Mapping[str, type[Any]]
NOWHERE: Tables = {}


def packaged_configs() -> dict[str, Path]:
    """Files of the training configurations that come with this package, by name."""
    root = Path(str(resources.files("bids_scseg.training"))) / "data"
    return {file.stem: file for file in sorted(root.glob("*.toml"), key=lambda file: file.stem)}


def find_config(name_or_path: str | Path, *, folder: Path | None = None) -> Path:
    """File of a packaged configuration or of a path.

    Parameters
    ----------
    name_or_path
        Name of a packaged configuration such as ``own`` (a text), or a path.
    folder
        Where a relative path begins. Default: the current folder.

    Raises
    ------
    MissingInputError
        If there is none; the message lists the names, the nearest apart.
    """
    packaged = packaged_configs()
    if isinstance(name_or_path, str) and name_or_path in packaged:
        return packaged[name_or_path]
    file = (folder or Path()) / name_or_path
    if not file.is_file():
        raise MissingInputError(
            "no such training configuration",
            file=file,
            expected=f"a TOML file, or one of {list(packaged)}",
            remedy=suggestion(file.stem, packaged),
        )
    return file


def read_mapping(name_or_path: str | Path, *, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration's tables, laid over those of the one that it extends; errors as :func:`load_config`."""
    file = find_config(name_or_path)
    if file.resolve() in seen:
        raise DataError("extends itself", file=file, expected="a file that is not yet part of the chain")
    data = read_toml(file)
    base = data.pop(EXTENDS, None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise DataError(f"value {base!r}", file=f"{file}: {EXTENDS}", expected="str")
    return merge(read_mapping(find_config(base, folder=file.parent), seen=(*seen, file.resolve())), data)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the overrides laid over it, table by table; neither argument is changed.

    Values that are not tables on both sides are replaced whole, lists too.
    """
    merged = dict(base)
    for key, value in overrides.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(under, value)
        else:
            merged[key] = value
    return merged


def parse_record(kind: type[Any], data: Mapping[str, Any], *, where: str, tables: Tables = NOWHERE) -> Any:
    """Build a dataclass from plain data.

    Parameters
    ----------
    kind
        The dataclass.
    data
        Every key must be a field and every value of its type; lists become tuples, tables records.
    where
        Where the data come from, for messages.
    tables
        Names of tables and what is in them: a misplaced key is told where it belongs.

    Raises
    ------
    DataError
        If a key is unknown (the message names the nearest valid one) or missing, or a value is none that its
        field can have.
    """
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    check_known(data, known, where=where, tables=tables)
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(data))
    if missing:
        raise DataError(f"keys {missing} are missing", file=where, expected="all required keys")
    return kind(
        **{
            key: _value(hints[key], value, where=f"{where}: {key}", tables=tables)
            for key, value in data.items()
        }
    )


def check_known(
    data: Mapping[str, Any], names: Iterable[str], *, where: str, tables: Tables = NOWHERE
) -> None:
    """Refuse a key that is none of the names, and say which of them is nearest."""
    valid = sorted(names)
    for key in sorted(set(data) - set(valid)):
        homes = [home for home, kind in tables.items() if key in {item.name for item in fields(kind)}]
        remedy = suggestion(key, valid, cutoff=0.8 if homes else 0.5)
        if homes and not remedy:
            remedy = f"it belongs to [{homes[0]}]"
        raise DataError(f"unknown key {key!r}", file=where, expected=f"keys among {valid}", remedy=remedy)


def _value(kind: Any, value: Any, *, where: str, tables: Tables) -> Any:
    """Check one value against its type, turning lists into tuples and tables into records."""
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        _expect(isinstance(value, Mapping), value, kind=kind, where=where)
        return parse_record(kind, value, where=where, tables=tables)
    if origin is Literal:
        check_choice(value, get_args(kind), where=where)
        return value
    if origin is tuple:
        return _items(kind, value, where=where, tables=tables)
    if origin is Mapping:
        _expect(isinstance(value, Mapping), value, kind=kind, where=where)
        return value
    if origin in (Union, UnionType) or kind is Any or origin is not None:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        value,
        kind=kind,
        where=where,
    )
    return value


def _items(kind: Any, value: Any, *, where: str, tables: Tables) -> tuple[Any, ...]:
    _expect(isinstance(value, list | tuple), value, kind=kind, where=where)
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    _expect(len(kinds) == len(value), value, kind=kind, where=where)
    return tuple(
        _value(one, item, where=where, tables=tables) for one, item in zip(kinds, value, strict=True)
    )


def check_choice(value: Any, choices: tuple[Any, ...], *, where: str) -> None:
    """Refuse a value that is none of the choices, and say which of them is nearest."""
    if value in choices:
        return
    raise DataError(
        f"value {value!r}",
        file=where,
        expected=f"one of {list(choices)}",
        remedy=suggestion(value, choices),
    )


def within(file: object, key: str) -> str:
    """The place of a key, for messages: behind its file where that is known."""
    return f"{file}: {key}" if file else key


def _expect(right: bool, value: Any, *, kind: Any, where: str) -> None:
    if not right:
        name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise DataError(f"value {value!r}", file=where, expected=name)
