"""Frozen descriptions of data sets: TOML files with known keys, each for one version of what draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.files import read_toml


def read_description(
    path: Path,
    *,
    kinds: Mapping[str, type],
    required: Sequence[str],
    out_of_range: Callable[[Mapping[str, Any]], list[str]],
) -> dict[str, Any]:
    """The keys of a description.

    Parameters
    ----------
    path
        TOML file.
    kinds
        Known keys and their types.
    required
        Keys that must be there.
    out_of_range
        Names the keys whose values are impossible; asked only where names and types are right.

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is not TOML, or has unknown, missing, mistyped or impossible keys.
    """
    if not path.is_file():
        raise MissingInputError("no such description", file=path, expected="a TOML file")
    data = read_toml(path)
    wrong = [key for key, value in data.items() if key not in kinds or type(value) is not kinds[key]]
    wrong += [key for key in required if key not in data]
    wrong = wrong or out_of_range(data)
    if wrong:
        known = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
        raise DataError(f"keys {wrong}", file=path, expected=known)
    return data


def check_version(path: Path, found: int, *, current: int, of: str) -> None:
    """Refuse a description that another version drew.

    Raises
    ------
    DataError
        If the versions differ.
    """
    if found != current:
        raise DataError(
            f"made for version {found} of the {of}",
            file=path,
            expected=f"version {current}, which this program has",
            remedy="install the release that it was made for: another draws other data",
        )
