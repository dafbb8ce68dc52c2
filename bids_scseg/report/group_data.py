"""What the cohort's page holds for its scripts: every number once, nothing but plain data."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bids_scseg.measure.cohort import CohortTables
from bids_scseg.measure.cordmap import BIN_MM, RING_EDGES, SECTORS
from bids_scseg.measure.session import CORD_LEVELS
from bids_scseg.report import encode
from bids_scseg.report.records import BoolArray
from bids_scseg.report.tables import as_number, missing
from bids_scseg.space.grid import FloatArray

#: Significant digits of embedded numbers: finer than a screen shows.
DIGITS = 5
#: A bin, or a cell of the cross-section, counts as examined from this share of it.
EXAMINED_FROM = 0.5
#: Least volume of examined cord for a cell of the cross-section to say something, mm³ (ours).
LEAST_CELL_MM3 = 2.0
#: What is not examined, in lists of shares.
UNKNOWN = -1
#: Groups by covariate have at most so many values; beyond that a text is an identifier.
MOST_VALUES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of the session table that the page can draw: column, words, unit, factor and group."""

    key: str
    text: str
    unit: str = ""
    factor: float = 1.0
    group: str = "Lesions"


METRICS = (
    Metric(key="lesion_count", text="Lesions"),
    Metric(key="lesion_volume_mm3", text="Lesion volume", unit="mm³"),
    Metric(key="lesion_load", text="Lesion load", unit="%", factor=100),
    Metric(key="cord_volume_mm3", text="Examined cord volume", unit="mm³", group="Cord"),
    Metric(key="cord_length_mm", text="Cord found", unit="mm", group="Cord"),
    Metric(key="examined_length_mm", text="Examined", unit="mm", group="Cord"),
    Metric(key="not_examined_mm", text="Not examined", unit="mm", group="Cord"),
    Metric(key="cord_area_mm2", text="Cord area", unit="mm²", group="Cord"),
    Metric(key="cord_area_odd_mm", text="Odd cord area", unit="mm", group="Quality"),
    Metric(
        key="near_threshold_mass", text="Probability near threshold", unit="%", factor=100, group="Quality"
    ),
)
PER_SEQUENCE = (
    Metric(key="cord_cnr", text="cord contrast-to-noise"),
    Metric(key="cord_noise", text="noise in the cord"),
    Metric(key="coverage", text="coverage", unit="%", factor=100),
    Metric(key="centerline_residual_mm", text="centerline residual", unit="mm"),
    Metric(key="extrapolated_mm", text="extrapolated", unit="mm"),
    Metric(key="seam_mismatch_mm", text="seam mismatch", unit="mm"),
    Metric(key="edge_share", text="slices cut at the side", unit="%", factor=100),
    Metric(key="voxel_mm3", text="voxel volume", unit="mm³"),
)
CATEGORIES = (
    ("manufacturer", "Manufacturer"),
    ("scanner_model", "Scanner"),
    ("field_strength_t", "Field strength, T"),
    ("anchor_voxel", "Voxel size of the anchor"),
    ("cord_source", "Cords from"),
    ("sequences", "Sequences"),
    ("anchor", "Anchor"),
    ("arc_origin", "Origin of arc length"),
    ("levels_from", "Levels from"),
    ("mask_origin", "Lesions decided by"),
)


def page_data(
    cohort: CohortTables,
    *,
    reports: Mapping[str, str],
    thumbnails: Mapping[str, bytes],
    identity: str = "",
) -> dict[str, object]:
    """Everything that the page's scripts need.

    Parameters
    ----------
    cohort
        Tables and maps of the cohort; only sessions with a result are taken.
    reports
        Session label → address of its report, relative to the page.
    thumbnails
        Session label → WebP image; sessions without one are shown as a blank.
    identity
        Tells this cohort from others: ratings are kept in the browser under a checksum of it.
    """
    done = cohort.sessions[cohort.sessions["state"] == "done"]
    metrics, categories = _metrics(cohort, done), _categories(cohort, done)
    records = [{str(key): value for key, value in row.items()} for row in done.to_dict("records")]
    labels = [_label(row) for row in records]
    span = _span([cohort.maps[label] for label in labels if label in cohort.maps])
    levels = [name for name in CORD_LEVELS if done[f"{name}_cord_volume_mm3"].notna().any()]
    rows = [
        {
            "i": number,
            "label": label,
            "report": reports.get(label, ""),
            "thumb": _size(thumbnails.get(label)),
            **_about(row),
            "m": [_number(row[metric.key], metric.factor) for metric in metrics],
            "c": [_category(row[key]) for key, _ in categories],
            "along": _along(cohort.maps.get(label), span),
            "across": _across(cohort.maps.get(label)),
            "levels": _levels(row, levels),
        }
        for number, (label, row) in enumerate(zip(labels, records, strict=True))
    ]
    return {
        "key": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "sessions": rows,
        "metrics": [{"key": m.key, "text": m.text, "unit": m.unit, "group": m.group} for m in metrics],
        "categories": [{"key": key, "text": text} for key, text in categories],
        "unfinished": int(len(cohort.sessions) - len(done)),
        "strata": [{"name": stratum.name, "sessions": stratum.sessions} for stratum in cohort.strata],
        "along": {"bin": BIN_MM, "first": span[0], "count": span[1]},
        "across": {"rings": list(RING_EDGES), "sectors": SECTORS},
        "levels": _places(cohort, labels, levels),
        "plots": _plots(metrics),
        "scatter": ["examined_length_mm", "lesion_volume_mm3"],
        "thumbs": [encode.data_uri(thumbnails[label]) if label in thumbnails else "" for label in labels],
    }


def _about(row: Mapping[str, object]) -> dict[str, str]:
    """The texts of a session."""
    names = {
        "participant": "participant_id", "session": "session_id", "stratum": "stratum", "flags": "flags",
        "outliers": "outliers", "rating": "rating", "note": "rating_note", "rated": "rated",
    }  # fmt: skip
    return {key: _words(row[column]) for key, column in names.items()}


def _metrics(cohort: CohortTables, done: pd.DataFrame) -> list[Metric]:
    sequences = [name.removesuffix("_cord_cnr") for name in done.columns if name.endswith("_cord_cnr")]
    repeated = [
        Metric(key=f"{name}_{m.key}", text=f"{name} {m.text}", unit=m.unit, factor=m.factor, group=name)
        for name in sequences
        for m in PER_SEQUENCE
    ]
    numbers = [
        Metric(key=column.name, text=column.name, unit=column.units, group="Covariates")
        for column in cohort.covariates
        if column.dtype == "float64" and column.name not in dict(CATEGORIES)
    ]
    always = {"lesion_count", "lesion_volume_mm3", "lesion_load", "examined_length_mm", "not_examined_mm"}
    return [
        metric
        for metric in (*METRICS, *repeated, *numbers)
        if metric.key in always or done[metric.key].notna().any()
    ]


def _categories(cohort: CohortTables, done: pd.DataFrame) -> list[tuple[str, str]]:
    own = [(column.name, column.name) for column in cohort.covariates if column.name not in dict(CATEGORIES)]
    found = []
    for key, text in (*own, *CATEGORIES):
        values = done[key].dropna()
        few = values.nunique() <= (MOST_VALUES if values.dtype.kind not in "if" else 6)
        if len(values) and few:
            found.append((key, text))
    return found


def _plots(metrics: Sequence[Metric]) -> list[str]:
    """What the distributions show at first."""
    keys = [metric.key for metric in metrics]
    wanted = ["lesion_load", "lesion_count", *(key for key in keys if key.endswith("_cord_cnr"))]
    wanted += ["examined_length_mm", "lesion_volume_mm3", "not_examined_mm"]
    return [key for key in wanted if key in keys][:5]


def _places(cohort: CohortTables, labels: Sequence[str], levels: Sequence[str]) -> list[list[object]]:
    """Levels that some session shows, with their mean place in mm below the origin where it is known."""
    placed: dict[str, list[tuple[float, float]]] = {name: [] for name in levels}
    for label in labels:
        for item in _items(cohort.maps.get(label, {}).get("levels")):
            if isinstance(item, list | tuple) and len(item) == 3 and item[0] in placed:
                placed[str(item[0])].append((float(item[1]), float(item[2])))
    return [
        [name, *(round(float(value), 1) for value in np.mean(found, axis=0))] if found else [name, None, None]
        for name, found in placed.items()
    ]


def _span(maps: Sequence[Mapping[str, object]]) -> tuple[int, int]:
    """First bin and number of bins that hold all maps with an anatomical origin."""
    ends = [
        (first, first + len(_items(found["cord_mm"])))
        for found in maps
        if found.get("anatomical")
        and isinstance(first := found.get("first"), int)
        and _items(found["cord_mm"])
    ]
    if not ends:
        return 0, 0
    low = min(first for first, _ in ends)
    return low, max(last for _, last in ends) - low


def _along(found: Mapping[str, object] | None, span: tuple[int, int]) -> list[int] | None:
    """Share of lesion per bin, per mille; -1 where less than half of a bin was examined."""
    if not found or not found.get("anatomical") or not span[1]:
        return None
    examined, cord, lesion = (
        np.array(_items(found.get(name)), dtype=float) for name in ("examined_mm", "cord_mm3", "lesion_mm3")
    )
    shares = _shares(lesion, cord, examined >= EXAMINED_FROM * BIN_MM)
    out = [UNKNOWN] * span[1]
    start = int(str(found["first"])) - span[0]
    out[start : start + len(shares)] = shares
    return out


def _across(found: Mapping[str, object] | None) -> list[int] | None:
    """Share of lesion per cell of the cross-section, per mille; -1 where no cord was examined."""
    if not found or not _items(found.get("across_cord_mm3")):
        return None
    cord, lesion = (
        np.array(_items(found.get(f"across_{name}_mm3")), dtype=float) for name in ("cord", "lesion")
    )
    return _shares(lesion, cord, cord >= LEAST_CELL_MM3)


def _shares(lesion: FloatArray, cord: FloatArray, known: BoolArray) -> list[int]:
    """Per mille, at most 1000; any lesion counts as 1 at least, so that it is not rounded away."""
    share = np.divide(lesion, cord, out=np.zeros_like(lesion), where=cord > 0)
    whole = np.where(lesion > 0, np.clip(np.rint(share * 1000), 1, 1000), 0).astype(int)
    return [int(value) for value in np.where(known & (cord > 0), whole, UNKNOWN)]


def _levels(row: Mapping[str, object], levels: Sequence[str]) -> list[float | int] | None:
    """Lesion load per level, percent; -1 where not examined; None without levels."""
    loads = [_number(row.get(f"{name}_lesion_load"), 100) for name in levels]
    if all(load is None for load in loads):
        return None
    return [UNKNOWN if load is None else load for load in loads]


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _size(image: bytes | None) -> list[int] | None:
    """Width and height of a thumbnail in pixels; None without a readable one."""
    if image is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image)) as opened:
            return [opened.width, opened.height]
    except (UnidentifiedImageError, OSError):
        return None


def _label(row: Mapping[str, object]) -> str:
    return "_".join(str(row[key]) for key in ("participant_id", "session_id") if not missing(row[key]))


def _words(value: object) -> str:
    return "" if missing(value) else str(value)


def _number(value: object, factor: float) -> float | int | None:
    plain = as_number(value)
    if plain is None:
        return None
    short = float(f"{plain * factor:.{DIGITS}g}")
    return int(short) if short.is_integer() and math.fabs(short) < 1e9 else short


def _category(value: object) -> str | None:
    if missing(value):
        return None
    plain = as_number(value)
    return str(value) if plain is None else f"{plain:g}"
