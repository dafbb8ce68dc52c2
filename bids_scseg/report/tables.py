"""Tables for pages: rows of plain values to cells with text, sort key and alignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from bids_scseg.report.records import Row

ABSENT = "–"  # en dash: shown where there is no value


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: what is shown, by what it sorts, and where it leads (relative; empty for nowhere)."""

    text: str
    sort: str = ""
    href: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One column heading with its explanation."""

    text: str
    hint: str = ""
    numeric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table ready for the template."""

    headers: tuple[Header, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    sortable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column of a table of values: its key, heading and format."""

    key: str
    text: str
    show: Callable[[object], str]
    hint: str = ""
    numeric: bool = True


def missing(value: object) -> bool:
    """True for None, NaN and pandas' NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, SupportsFloat) and not isinstance(value, int) and math.isnan(value)


def number(
    digits: int = 0, *, unit: str = "", factor: float = 1.0, sign: bool = False
) -> Callable[[object], str]:
    """A formatter of numbers, with thin grouping and a true minus sign; other values are shown as text."""

    def show(value: object) -> str:
        plain = as_number(value)
        if plain is None:
            return ABSENT if missing(value) else str(value)
        shown = f"{plain * factor:{'+' if sign else ''},.{digits}f}".replace(",", "\u202f").replace("-", "−")
        return f"{shown}\u00a0{unit}" if unit else shown

    return show


def as_number(value: object) -> float | None:
    """The value as a finite float; None if it is none."""
    if missing(value) or isinstance(value, str | bool):
        return None
    try:
        plain = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return plain if math.isfinite(plain) else None


def text(value: object) -> str:
    """Any value as text; a dash for a missing one."""
    return ABSENT if missing(value) or value == "" else str(value)


def kept(value: object) -> str:
    """Text that does not break over lines."""
    return text(value).replace(" ", "\u00a0")


percent = number(1, unit="%", factor=100)

LESION_FIELDS = (
    Field(key="index", text="No.", show=number(),
          hint="Number of the lesion in the label images and "
          "figures"),
    Field(key="level", text="Level", show=text, hint="Vertebral level of the centre", numeric=False),
    Field(key="column", text="Column", show=kept, hint="Column of the cord that holds the centre",
          numeric=False),
    Field(key="arc_length_mm", text="Position, mm", show=number(1),
          hint="Along the centerline, below the "
          "origin"),
    Field(key="volume_mm3", text="Volume, mm³", show=number(0), hint="In prepared space"),
    Field(key="length_mm", text="Length, mm", show=number(1), hint="Arc length along the cord"),
    Field(key="max_equivalent_diameter_mm", text="Diameter, mm", show=number(1),
          hint="Of the circle with the area of the largest cross-section"),
    Field(key="max_axial_damage_ratio", text="Axial damage", show=percent,
          hint="Largest share of the cord's cross-section that is lesion"),
    Field(key="dorsal_bridge_mm", text="Dorsal bridge, mm", show=number(1),
          hint="Spared tissue behind the lesion in the midsagittal plane"),
    Field(key="ventral_bridge_mm", text="Ventral bridge, mm", show=number(1),
          hint="Spared tissue in front of the lesion in the midsagittal plane"),
    Field(key="mean_probability", text="Mean probability", show=number(2), hint="Mean lesion probability"),
    Field(key="max_probability", text="Max. probability", show=number(2), hint="Largest lesion probability"),
)  # fmt: skip

MEASURE_FIELDS = (
    Field(key="lesion_count", text="Lesions", show=number()),
    Field(key="lesion_volume_mm3", text="Total lesion volume", show=number(0, unit="mm³")),
    Field(key="lesion_load", text="Lesion load", show=number(2, unit="%", factor=100),
          hint="lesion volume / examined cord volume"),
    Field(key="cord_volume_mm3", text="Examined cord volume", show=number(0, unit="mm³")),
    Field(key="cord_length_mm", text="Cord length found", show=number(0, unit="mm")),
    Field(key="examined_length_mm", text="Examined cord length", show=number(0, unit="mm"),
          hint="where at least one sequence covers the cord"),
    Field(key="not_examined_mm", text="Cord not examined", show=number(0, unit="mm"),
          hint="no sequence covers it: nothing is known there"),
    Field(key="beyond_masks_mm", text="Shown beyond the cord masks", show=number(0, unit="mm"),
          hint="along S-I, not segmented: head, what follows the conus, or cord without a mask"),
    Field(key="cord_area_mm2", text="Cord area", show=number(0, unit="mm²"), hint="in axial slices, median"),
    Field(key="cord_area_odd_mm", text="Cord with an odd area", show=number(0, unit="mm"),
          hint="30 % more or less than within 20 mm"),
    Field(key="near_threshold_volume_mm3", text="Volume near the threshold", show=number(0, unit="mm³"),
          hint="probability within 0.1 of the threshold"),
    Field(key="near_threshold_mass", text="Share of probability near the threshold", show=percent),
)  # fmt: skip

LEVEL_FIELDS = (
    Field(key="lesion_count", text="Lesions", show=number()),
    Field(key="lesion_volume_mm3", text="Lesion volume, mm³", show=number(0)),
    Field(key="cord_volume_mm3", text="Cord volume, mm³", show=number(0)),
    Field(key="lesion_load", text="Load", show=number(2, unit="%", factor=100)),
)


def rows_table(
    rows: Sequence[Row], fields: Iterable[Field], *, caption: str = "", keep: Sequence[str] = ()
) -> Table:
    """A sortable table of rows; fields that no row has are dropped, except those in ``keep``."""
    kept = [
        field for field in fields if field.key in keep or any(not missing(row.get(field.key)) for row in rows)
    ]
    return Table(
        headers=tuple(Header(text=field.text, hint=field.hint, numeric=field.numeric) for field in kept),
        rows=tuple(tuple(cell(row.get(field.key), field) for field in kept) for row in rows),
        caption=caption,
        sortable=True,
    )


def cell(value: object, field: Field) -> Cell:
    """One value, formatted, with a key that sorts numbers as numbers."""
    plain = as_number(value)
    return Cell(text=field.show(value), sort=repr(plain) if plain is not None else "")


def pairs_table(pairs: Iterable[tuple[str, str]], *, headers: tuple[str, str] = ("", "")) -> Table:
    """Two columns of text."""
    return Table(
        headers=tuple(Header(text=word) for word in headers),
        rows=tuple((Cell(text=left), Cell(text=right)) for left, right in pairs),
    )


def measures_table(measures: Row) -> Table:
    """The session's measures in words; unknown keys are left to the files."""
    shown = [
        (f"{field.text} ({field.hint})" if field.hint else field.text, field.show(measures[field.key]))
        for field in MEASURE_FIELDS
        if not missing(measures.get(field.key))
    ]
    return pairs_table(shown, headers=("Measure", "Value"))


def levels_table(measures: Row) -> Table | None:
    """Totals per vertebral level, from keys such as ``C3_lesion_count``; None without levels."""
    ending = "_cord_volume_mm3"
    names = [
        key.removesuffix(ending)
        for key, value in measures.items()
        if key.endswith(ending) and not missing(value)
    ]
    if not names:
        return None
    rows = [{field.key: measures.get(f"{name}_{field.key}") for field in LEVEL_FIELDS} for name in names]
    body = rows_table(rows, LEVEL_FIELDS, keep=[field.key for field in LEVEL_FIELDS])
    return Table(
        headers=(Header(text="Level"), *body.headers),
        rows=tuple((Cell(text=name), *cells) for name, cells in zip(names, body.rows, strict=True)),
    )


def contrast_table(rows: Sequence[Row], names: Sequence[str]) -> Table | None:
    """Contrast of every lesion in every sequence, from keys such as ``T2Sag_contrast``; None without any."""
    keys = [name for name in names if any(f"{name}_contrast" in row for row in rows)]
    if not keys:
        return None
    headers = (Header(text="No.", numeric=True), *(Header(text=name, numeric=True) for name in keys))
    body = tuple(
        (cell(row.get("index"), LESION_FIELDS[0]), *(_contrast(row, n) for n in keys)) for row in rows
    )
    return Table(headers=headers, rows=body, sortable=True)


def _contrast(row: Row, name: str) -> Cell:
    covered = as_number(row.get(f"{name}_covered_fraction"))
    if covered == 0:
        return Cell(text="not examined", tone="muted")
    contrast, cnr = as_number(row.get(f"{name}_contrast")), as_number(row.get(f"{name}_cnr"))
    if contrast is None:
        return Cell(text=ABSENT)
    ratio = "" if cnr is None else f" (CNR {number(1)(cnr)})"
    return Cell(text=number(2, sign=True)(contrast) + ratio, sort=repr(contrast))
