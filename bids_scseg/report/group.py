"""The page of a cohort, first version: numbers, sessions with their flags, distributions, failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_scseg.report import pages, tables
from bids_scseg.report.flags import by_severity
from bids_scseg.report.records import Flag, Row
from bids_scseg.report.session import Tile
from bids_scseg.report.tables import Cell, Field, Header, Table, as_number, missing

SESSION_FIELDS = (
    Field(key="lesion_count", text="Lesions", show=tables.number()),
    Field(key="lesion_volume_mm3", text="Volume, mm³", show=tables.number(0)),
    Field(key="lesion_load", text="Load, %", show=tables.number(2, factor=100),
          hint="Lesion volume / examined cord volume"),
    Field(key="examined_length_mm", text="Examined, mm", show=tables.number(0)),
    Field(key="not_examined_mm", text="Not examined, mm", show=tables.number(0)),
    Field(key="sequences", text="Sequences", show=lambda value: tables.text(value).replace("+", ", "),
    numeric=False),
    Field(key="model", text="Model", show=tables.kept, numeric=False),
)  # fmt: skip
COMPARED = (
    ("model", "models"),
    ("model_sha256", "weights"),
    ("threshold", "thresholds"),
    ("version", "software versions"),
)
HEAD = (("Dataset", "dataset"), ("Updated", "date"))
CONTENTS = (
    ("summary", "Summary"),
    ("warnings", "Warnings"),
    ("distributions", "Distributions"),
    ("sessions", "Sessions"),
    ("failed", "Without a result"),
)
BINS = 12
PLOT = (28.0, 304.0, 12.0, 120.0)  # left, right, top, bottom of the plotting area in the template's units


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a chart, in the template's units."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One label below a chart."""

    x: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A histogram ready for the template."""

    name: str
    alt: str
    caption: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    median_x: float
    most: int


def write_group_page(
    out_html: Path,
    *,
    sessions: object,
    lesions: object = (),
    failures: object = (),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the cohort's page.

    Parameters
    ----------
    out_html
        Page to write.
    sessions
        One row per processed session: mappings, or a pandas frame. Read are ``label`` (or
        ``participant_id`` and ``session_id``), ``report`` (path relative to the page), ``flags`` (separated
        by semicolons), and the names of the session table (``lesion_count``, ``lesion_volume_mm3``,
        ``lesion_load``, ``examined_length_mm``, ``not_examined_mm``, ``sequences``, ``model``,
        ``model_sha256``, ``threshold``, ``version``). No rows give a page that says so.
    lesions
        One row per lesion (``volume_mm3`` is read); may be empty.
    failures
        One row per session without a result: ``label``, ``state``, ``step``, ``cause``, ``remedy``,
        ``report``.
    facts
        Name to value: ``title`` and ``dataset`` head the page, ``version`` foots it, all are listed.

    Raises
    ------
    OutputError
        If the page cannot be written.
    """
    rows, failed, known = as_rows(sessions), as_rows(failures), dict(facts or {})
    charts = _charts(rows, as_rows(lesions))
    context = {
        "title": known.pop("title", "Cohort"),
        "head": [(name, known[key]) for name, key in HEAD if key in known],
        "tiles": _tiles(rows, failed),
        "summary": _summary(rows, failed),
        "flags": by_severity(_cohort_flags(rows)),
        "charts": charts,
        "sessions": _sessions(rows),
        "failures": _failures(failed),
        "facts": tables.pairs_table(known.items()),
        "version": known.get("version", ""),
        "contents": [{"id": name, "text": text, "sub": False} for name, text in CONTENTS],
    }
    pages.write_page(Path(out_html), pages.render_page("group.html", context))


def as_rows(table: object) -> list[Row]:
    """Rows of a pandas frame or of an iterable of mappings."""
    to_dict = getattr(table, "to_dict", None)
    found = to_dict("records") if callable(to_dict) else table
    if not isinstance(found, Iterable):
        raise TypeError(f"a table is a frame or an iterable of mappings, not {type(table).__name__}")
    return [row for row in found if isinstance(row, Mapping)]


def label_of(row: Row) -> str:
    """``label``, else ``participant_id`` and ``session_id``, of a row."""
    if not missing(row.get("label")):
        return str(row["label"])
    parts = [str(row[key]) for key in ("participant_id", "session_id") if not missing(row.get(key))]
    return "_".join(parts) or tables.ABSENT


def _numbers(rows: Sequence[Row], key: str) -> list[float]:
    values = (as_number(row.get(key)) for row in rows)
    return [value for value in values if value is not None]


def _tiles(rows: Sequence[Row], failed: Sequence[Row]) -> list[Tile]:
    counts, volumes = _numbers(rows, "lesion_count"), _numbers(rows, "lesion_volume_mm3")
    flagged = sum(not missing(row.get("flags")) and row.get("flags") != "" for row in rows)
    middle = tables.number(0)(float(np.median(volumes))) if volumes else tables.ABSENT
    return [
        Tile(name="sessions with a result", value=str(len(rows))),
        Tile(name="lesions", value=tables.number(0)(sum(counts)) if counts else tables.ABSENT),
        Tile(name="sessions without lesions", value=str(sum(count == 0 for count in counts))),
        Tile(name="median lesion volume per session", value=middle, unit="mm³" if volumes else ""),
        Tile(name="sessions with flags", value=str(flagged), tone="caution" if flagged else ""),
        Tile(name="sessions without a result", value=str(len(failed)), tone="serious" if failed else ""),
    ]


def _summary(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    if not rows:
        return "No session has a result yet."
    counts = _numbers(rows, "lesion_count")
    people = len({str(row.get("participant_id") or label_of(row).split("_")[0]) for row in rows})
    text = f"{_plural(len(rows), 'session')} of {_plural(people, 'participant')} were processed"
    if counts:
        free = _plural(sum(count == 0 for count in counts), "session")
        text += f"; the model marked {_plural(int(sum(counts)), 'lesion')}, and none in {free}"
    unknown = len(rows) - len(counts)
    text += "." + (f" In {_plural(unknown, 'session')} no cord was examined." if unknown else "")
    return text + (f" {_plural(len(failed), 'session')} ended without a result." if failed else "")


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _cohort_flags(rows: Sequence[Row]) -> list[Flag]:
    flags = []
    for key, name in COMPARED:
        values = sorted({_short(row[key]) for row in rows if not missing(row.get(key))})
        if len(values) > 1:
            flags.append(
                Flag(
                    severity="serious",
                    title=f"Sessions of different {name}",
                    text=f"{', '.join(values)}. Their numbers must not be pooled or compared.",
                    remedy="Process all sessions again with the same one.",
                )
            )
    return flags


def _short(value: object) -> str:
    """A value as text, long checksums cut."""
    words = str(value)
    return f"{words[:12]}…" if len(words) > 40 else words


def _sessions(rows: Sequence[Row]) -> Table:
    body = tables.rows_table(rows, SESSION_FIELDS, keep=("lesion_count", "lesion_volume_mm3", "lesion_load"))
    return Table(
        headers=(Header(text="Session"), *body.headers, Header(text="Flags")),
        rows=tuple((_link(row), *cells, _flag_cell(row)) for row, cells in zip(rows, body.rows, strict=True)),
        sortable=True,
    )


def _link(row: Row) -> Cell:
    address = "" if missing(row.get("report")) else str(row["report"])
    return Cell(text=label_of(row), href=address)


def _flag_cell(row: Row) -> Cell:
    words = "" if missing(row.get("flags")) else str(row["flags"])
    return Cell(text=words or "none", tone="caution" if words else "muted")


def _failures(rows: Sequence[Row]) -> Table:
    headers = ("Session", "State", "Step", "What happened", "What you can do")
    keys = ("state", "step", "cause", "remedy")
    return Table(
        headers=tuple(Header(text=word) for word in headers),
        rows=tuple((_link(row), *(Cell(text=tables.text(row.get(key))) for key in keys)) for row in rows),
        sortable=True,
    )


def _charts(rows: Sequence[Row], lesions: Sequence[Row]) -> list[Chart]:
    wanted = (
        ("Lesions per session", _numbers(rows, "lesion_count"), "sessions", True),
        ("Lesion volume per session, mm³", _numbers(rows, "lesion_volume_mm3"), "sessions", False),
        (
            "Lesion load, % of the examined cord",
            [v * 100 for v in _numbers(rows, "lesion_load")],
            "sessions",
            False,
        ),
        ("Volume of single lesions, mm³", _numbers(lesions, "volume_mm3"), "lesions", False),
    )
    return [
        histogram(values, name=name, unit=unit, whole=whole) for name, values, unit, whole in wanted if values
    ]


def histogram(values: Sequence[float], *, name: str, unit: str, whole: bool = False) -> Chart:
    """A histogram of at least one value; ``whole`` gives bins centred on whole numbers."""
    edges = _edges(values, whole=whole)
    counts, _ = np.histogram(values, bins=edges)
    left, right, top, bottom = PLOT
    scale = (right - left) / (edges[-1] - edges[0])
    most = int(counts.max())
    bars = tuple(
        Bar(
            x=round(left + (low - edges[0]) * scale + 0.75, 2),
            y=round(bottom - (bottom - top) * count / most, 2),
            width=round((high - low) * scale - 1.5, 2),
            height=round((bottom - top) * count / most, 2),
            text=f"{_range(low, high, whole=whole)}: {count} {unit}",
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    )
    middle = float(np.median(values))
    summary = f"{len(values)} {unit}, median {middle:.3g}, from {min(values):.3g} to {max(values):.3g}"
    return Chart(
        name=name,
        alt=f"Histogram of {name.lower()}: {summary}.",
        caption=f"{summary} (red line: median).",
        bars=bars,
        ticks=_ticks(edges, scale, whole=whole),
        median_x=round(left + (middle - edges[0]) * scale, 2),
        most=most,
    )


def _edges(values: Sequence[float], *, whole: bool) -> list[float]:
    if whole:
        width = max(1, -(-(int(max(values)) + 1) // (2 * BINS)))
        return [float(edge) - 0.5 for edge in range(0, int(max(values)) + 1 + width, width)]
    step = nice_step(max(max(values), 1e-6) / BINS)
    bins = int(max(values) / step) + 1
    return [float(edge) for edge in np.arange(bins + 1) * step]


def nice_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is not below ``least`` (which is positive)."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9)))


def _ticks(edges: Sequence[float], scale: float, *, whole: bool) -> tuple[Tick, ...]:
    middles = [low + 0.5 for low in edges[:-1]] if whole else list(edges)
    shown = middles[:: max(1, -(-len(middles) // 6))]
    return tuple(
        Tick(x=round(PLOT[0] + (value - edges[0]) * scale, 2), text=f"{value:.3g}") for value in shown
    )


def _range(low: float, high: float, *, whole: bool) -> str:
    if whole:
        first, last = int(low + 0.5), int(high - 0.5)
        return f"{first}" if last <= first else f"{first}–{last}"
    return f"{low:.3g}–{high:.3g}"
