"""Table schemas: fixed columns with type, unit and meaning; the source of the BIDS data dictionaries too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Value = str | float | int | bool | None
Dtype = Literal["Int64", "float64", "str", "boolean"]

#: BIDS names of the types; a column that BIDS itself defines, such as ``index``, counts as redefined without.
FORMATS: dict[Dtype, str] = {"Int64": "integer", "float64": "number", "str": "string", "boolean": "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name
        Column name as written in the TSV.
    dtype
        pandas type; integers and booleans are the nullable ones, so ``n/a`` is possible everywhere.
    units
        Unit in BIDS notation; empty for counts, names and ratios.
    description
        Definition of the number.
    """

    name: str
    dtype: Dtype
    description: str
    units: str = ""


def to_frame(rows: Iterable[Mapping[str, Value]], columns: Sequence[Column]) -> pd.DataFrame:
    """Rows to a frame with exactly these columns, in this order and of these types.

    Parameters
    ----------
    rows
        One mapping per row; absent keys and None become missing. No rows give an empty frame of the same
        types.
    columns
        The schema.

    Raises
    ------
    KeyError
        If a row has a key that is not in the schema.
    """
    rows = list(rows)
    unknown = sorted({key for row in rows for key in row} - {column.name for column in columns})
    if unknown:
        raise KeyError(f"columns outside the schema: {', '.join(unknown)}")
    return pd.DataFrame(
        {column.name: _series([row.get(column.name) for row in rows], column) for column in columns}
    )


def _series(values: Sequence[Value], column: Column) -> pd.Series:
    plain = [None if isinstance(value, float) and np.isnan(value) else value for value in values]
    if column.dtype == "float64":
        return pd.Series([np.nan if value is None else float(value) for value in plain], dtype="float64")
    if column.dtype == "str":
        return pd.Series([None if value is None else str(value) for value in plain], dtype="str")
    return pd.Series(plain, dtype=column.dtype)


def parse_frame(text: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Give the columns of a frame of strings (as read from a TSV, missing = NaN) their types.

    Columns outside the schema become numbers where all their values are numbers, else stay text.
    """
    known = {column.name: column for column in columns}
    parsed: dict[str, pd.Series] = {}
    for name in text.columns:
        values = [None if pd.isna(value) else str(value) for value in text[name]]
        parsed[str(name)] = _parse(values, known.get(str(name)))
    return pd.DataFrame(parsed)


def _parse(values: Sequence[str | None], column: Column | None) -> pd.Series:
    if column is None:
        text = pd.Series(list(values), dtype="str")
        numbers = pd.to_numeric(text, errors="coerce").astype("float64")
        return text if (numbers.isna() & text.notna()).any() else numbers
    if column.dtype == "str":
        return _series(values, column)
    if column.dtype == "boolean":
        return _series([None if v is None else v.lower() in ("true", "1") for v in values], column)
    if column.dtype == "Int64":
        return _series([None if v is None else round(float(v)) for v in values], column)
    return _series([None if v is None else float(v) for v in values], column)


def data_dictionary(columns: Sequence[Column]) -> dict[str, dict[str, str]]:
    """BIDS data dictionary of a table: column name to its description, format and units."""
    return {
        column.name: {"Description": column.description, "Format": FORMATS[column.dtype]}
        | ({"Units": column.units} if column.units else {})
        for column in columns
    }
