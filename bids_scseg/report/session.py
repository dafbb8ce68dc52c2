"""The page of one session: what was used, what was found, and how far to trust it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from bids_scseg.report import display, encode, figures, pages, strips, tables
from bids_scseg.report.flags import by_severity
from bids_scseg.report.history import history_facts
from bids_scseg.report.quality import outlier_sentence, quality_sentence, quality_table
from bids_scseg.report.records import (
    AbsentSequence,
    BoolArray,
    Flag,
    NativeImage,
    Row,
    SequenceView,
    SessionReport,
)
from bids_scseg.report.thumbnail import thumbnail
from bids_scseg.report.viewer import library, viewer_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AbsentSequence",
    "Flag",
    "NativeImage",
    "SequenceView",
    "SessionReport",
    "write_failure_report",
    "write_session_report",
]

MOST_CLOSEUPS = 40  # the largest lesions; the table has all of them
DISPLAY = (
    "Radiological display: in axial slices the patient's right (R) is on the viewer's left and anterior "
    "(A) on top; in sagittal slices anterior is on the left and superior (S) on top."
)
ALONG = (
    "The cord is straightened and lies from left (superior, S) to right (inferior, I), anterior (A) on "
    "top; the dashed line is the middle of the window. Hatched: the sequence has no data there. "
    "Brightness is evened out along the cord, for display only."
)
#: Unit of prepared images, and so of contrasts, by the recipe's normalisation.
CONTRAST_UNITS = {
    "coverage": "in standard deviations of the prepared image",
    "cord": "in units of the cord's spread",
    "cord-ratio": "relative to the cord's level, in units of the cord's spread",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A figure that is to be drawn: its section, words, and the function that draws it."""

    section: str
    key: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure as the page shows it."""

    section: str
    key: str
    title: str
    caption: str
    alt: str
    uri: str
    href: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the banner."""

    name: str
    value: str
    unit: str = ""
    tone: str = ""


def write_session_report(report: SessionReport, out_html: Path, *, figures_dir: Path) -> None:
    """Write the page of a session and its figures.

    Parameters
    ----------
    report
        Facts and arrays.
    out_html
        Page to write; it holds all its images.
    figures_dir
        Folder for the same figures as PNG files, named ``<label>_desc-<what>_figure.png``; those of an
        earlier
        run of this session are replaced.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    small = thumbnail(report)
    if small is not None:
        pages.write_bytes(Path(figures_dir) / thumbnail_name(report.label), small)
    shown = _draw_all(_drafts(report), report.label, out_html=Path(out_html), figures_dir=Path(figures_dir))
    pages.write_page(Path(out_html), _page(report, shown))


def _page(report: SessionReport, shown: Sequence[Shown]) -> str:
    """The page; where there are volumes to show, with the viewer's library packed in it."""
    facts = _facts(report, shown)
    volumes = viewer_data(report)
    if volumes is None:
        return pages.render_page("session.html", {**facts, "viewer": False})
    source, packed = library()
    return pages.render_page(
        "session.html",
        {**facts, "viewer": True},
        styles=[pages.asset("viewer.css")],
        scripts=[pages.asset("viewer.js")],
        trusted=[source],
        data={"volumes": volumes, "viewer-library": packed},
    )


def write_failure_report(
    label: str,
    out_html: Path,
    *,
    cause: str,
    remedy: str = "",
    facts: Mapping[str, str] | None = None,
    dataset: str = "",
    date: str = "",
) -> None:
    """Write the short page of a session that could not be processed.

    Parameters
    ----------
    label
        ``sub-X[_ses-Y]``.
    out_html
        Page to write.
    cause, remedy
        What happened and what the user can do, in sentences.
    facts
        What was found and planned, name to value.
    dataset, date
        For the head of the page.
    """
    context = {
        "label": label,
        "cause": cause,
        "remedy": remedy,
        "facts": tables.pairs_table((facts or {}).items()),
        "dataset": dataset,
        "date": date,
        "version": "",
        "contents": [{"id": "summary", "text": "Summary", "sub": False}]
        + ([{"id": "plan", "text": "What was found", "sub": False}] if facts else []),
    }
    pages.write_page(Path(out_html), pages.render_page("failure.html", context))


# ---------------------------------------------------------------- figures


def _drafts(report: SessionReport) -> list[Draft]:
    if not report.sequences:
        return []
    return [
        *_lesion_drafts(report),
        *_closeup_drafts(report),
        *_native_drafts(report.sequences),
        *_alignment_drafts(report),
    ]


def _lesion_drafts(report: SessionReport) -> Iterable[Draft]:
    views, spacing, levels = report.sequences, report.spacing_mm, report.levels
    found = display.extents(report.labels)
    columns = {int(n): str(row.get("column")) for row in report.lesions if (n := _index(row)) is not None}
    slices = views[0].prepared.shape[2]
    names = ", ".join(view.name for view in views)
    count = _lesion_words(len(found))
    yield Draft(
        section="lesions", key="along", title="Where along the cord.",
        caption="Boxes are lesions by the column that holds their centre, over their extent along the "
        "cord; left and "
        "right are the patient's. Grey bars: what each sequence examined. Superior is on the left.",
        alt=f"Map of {count} along the cord by column, with the parts that {names} examined.",
        draw=lambda: figures.along_cord(
            found, columns, views, slices=slices, spacing_mm=spacing, levels=levels
        ),
    )  # fmt: skip
    yield Draft(
        section="lesions", key="overview", title="Lesions over each sequence.",
        caption="Mid-sagittal strips (mean over 2 mm) with the outlines of whole lesions projected from "
        "the side, so "
        f"a lateral lesion can lie beside what the strip shows. {ALONG}",
        alt=f"Straightened cord in {names}, with the outlines of {count}.",
        draw=lambda: strips.overview(views, report.labels, spacing_mm=spacing, levels=levels),
    )  # fmt: skip
    if report.probability is not None:
        probability, examined = report.probability, _examined_by_any(report)
        yield Draft(
            section="lesions", key="probability", title="Lesion probability.",
            caption="Maximum along each line of sight, dark blue 0 to yellow 1, with the outlines of lesions "
            f"({_what_outlines_are(report)}). Seen from the front the patient's right (R) is on "
            f"top. {ALONG}",
            alt=(
                "Lesion probability along the straightened cord, from the side and from the front, with "
                f"{count}."
            ),
            draw=lambda: strips.probability(
                probability, report.labels, examined, spacing_mm=spacing, levels=levels
            ),
        )  # fmt: skip


def _what_outlines_are(report: SessionReport) -> str:
    if report.correction:
        return "as a reader corrected them"
    seeded = f", where it reaches {report.seeded} somewhere" if report.seeded else ""
    return f"probability from {report.threshold:g}{seeded}"


def _examined_by_any(report: SessionReport) -> BoolArray:
    examined = [display.examined_slices(view.coverage, report.spacing_mm) for view in report.sequences]
    return np.asarray(np.any(examined, axis=0))


def _closeup_drafts(report: SessionReport) -> Iterable[Draft]:
    if report.labels is None:
        return
    labels = report.labels
    views = tuple(_with_contrasts(view, report.lesions) for view in report.sequences)
    rows = {index: row for row in report.lesions if (index := _index(row)) is not None}
    for extent in _largest(display.extents(labels)):
        yield Draft(
            section="closeups", key=f"lesion{extent.number:02d}", title=f"Lesion {extent.number}.",
            caption=_lesion_caption(rows.get(extent.number, {})),
            alt=f"Lesion {extent.number}: axial and sagittal slices through its centre in "
            + ", ".join(view.name for view in views) + ".",
            draw=_closeup(extent, views, report=report),
        )  # fmt: skip


def _closeup(
    extent: display.Extent, views: Sequence[SequenceView], *, report: SessionReport
) -> Callable[[], Figure | None]:
    def draw() -> Figure | None:
        if report.labels is None:
            return None
        return figures.lesion_panel(
            extent, views, report.labels, spacing_mm=report.spacing_mm, cord=report.cord
        )

    return draw


def _with_contrasts(view: SequenceView, rows: Sequence[Row]) -> SequenceView:
    """Take contrasts from the lesion table where the view has none of its own."""
    if view.contrasts:
        return view
    from dataclasses import replace

    found = {_index(row): tables.as_number(row.get(f"{view.name}_contrast")) for row in rows}
    return replace(
        view, contrasts={n: value for n, value in found.items() if n is not None and value is not None}
    )


def _largest(extents: Sequence[display.Extent]) -> list[display.Extent]:
    kept = sorted(extents, key=lambda extent: -extent.voxels)[:MOST_CLOSEUPS]
    return sorted(kept, key=lambda extent: extent.number)


def _native_drafts(views: Sequence[SequenceView]) -> Iterable[Draft]:
    for view in views:
        for number, native in enumerate(view.natives, start=1):
            slab = f", slab {number} of {len(view.natives)}" if len(view.natives) > 1 else ""
            outlined = "with cord outline" if native.cord is not None else "without a cord mask"
            yield Draft(
                section="native", key=f"native{view.name}{number}", title=f"{view.name}{slab}.",
                caption=native.file,
                alt=f"{view.name}{slab}: sagittal and axial slices as acquired, {outlined} and centerline.",
                draw=_native(native),
            )  # fmt: skip


def _native(native: NativeImage) -> Callable[[], Figure | None]:
    return lambda: figures.native_mosaic(native)


def _alignment_drafts(report: SessionReport) -> Iterable[Draft]:
    views, spacing, levels = report.sequences, report.spacing_mm, report.levels
    if len(views) < 2:
        return
    if any(view.unaligned is not None for view in views):
        yield Draft(
            section="alignment", key="alignment", title="Before and after alignment.",
            caption="Mid-sagittal strips of all sequences. Before: each sampled round the centerline of "
            f"{report.anchor or 'the anchor'}; after: each round its own. After alignment the cord should "
            "lie on the "
            f"dashed line in every strip. {ALONG}",
            alt="Mid-sagittal strips of " + ", ".join(v.name for v in views) + " before and after alignment.",
            draw=lambda: strips.alignment(views, spacing_mm=spacing, levels=levels),
        )  # fmt: skip
    yield Draft(
        section="alignment", key="offsets", title="Distance from the anchor's centerline.",
        caption=f"Own centerline minus that of {report.anchor or 'the anchor'}, towards the "
        "patient's right (R) and towards anterior (A). Solid: seen in the sequence itself; dotted: "
        "extrapolated or borrowed. Superior is on "
        "the left.",
        alt="Distance between each sequence's centerline and the anchor's along the cord.",
        draw=lambda: figures.offsets(views, anchor=report.anchor, spacing_mm=spacing, levels=levels),
    )  # fmt: skip


def _draw_all(drafts: Sequence[Draft], label: str, *, out_html: Path, figures_dir: Path) -> list[Shown]:
    """Draw, write the PNG files, and encode for the page; figures of an earlier run are removed."""
    drawn: list[tuple[Draft, Path, encode.Pixels]] = []
    for draft in drafts:
        figure = draft.draw()
        if figure is None:
            continue
        path = figures_dir / f"{safe(label)}_desc-{safe(draft.key, alphanumeric=True)}_figure.png"
        pixels = encode.render(figure)
        pages.write_bytes(path, encode.png(pixels))
        drawn.append((draft, path, pixels))
    _remove_others(figures_dir, label, keep={path for _, path, _ in drawn})
    images = encode.webp_within([pixels for _, _, pixels in drawn])
    return [
        _shown(draft, path, pixels, data=data, folder=out_html.parent)
        for (draft, path, pixels), data in zip(drawn, images, strict=True)
    ]


def _shown(draft: Draft, path: Path, pixels: encode.Pixels, *, data: bytes, folder: Path) -> Shown:
    href = quote(Path(os.path.relpath(path, folder)).as_posix())
    return Shown(
        section=draft.section, key=safe(draft.key, alphanumeric=True), title=draft.title,
        caption=draft.caption,
        alt=draft.alt, uri=encode.data_uri(data), href=href,
        width=round(pixels.shape[1] * 100 / encode.DPI), height=round(pixels.shape[0] * 100 / encode.DPI),
    )  # fmt: skip


def thumbnail_name(label: str) -> str:
    """File name of a session's thumbnail in the folder of figures."""
    return f"{safe(label)}_desc-thumbnail_figure.webp"


def _remove_others(folder: Path, label: str, *, keep: set[Path]) -> None:
    for path in folder.glob(f"{safe(label)}_desc-*_figure.png"):
        if path not in keep:
            path.unlink(missing_ok=True)


def safe(word: str, *, alphanumeric: bool = False) -> str:
    """A word fit for file names: letters and digits, and hyphen and underscore unless ``alphanumeric``."""
    return re.sub(r"[^A-Za-z0-9]" if alphanumeric else r"[^A-Za-z0-9_-]", "", word) or "x"


# ---------------------------------------------------------------- words and tables


def _facts(report: SessionReport, shown: Sequence[Shown]) -> dict[str, object]:
    by_section = {name: [s for s in shown if s.section == name] for name in
                  ("lesions", "closeups", "native", "alignment")}  # fmt: skip
    flags = by_severity(report.flags)
    return {
        "report": report,
        "tiles": _tiles(report),
        "summary": summary_sentence(report),
        "flags": flags,
        "lesion_table": tables.rows_table(report.lesions, tables.LESION_FIELDS),
        "no_lesions": _no_lesions(report),
        "origin": _origin(report.origin) + _levels_words(report.measures),
        "lesion_figures": by_section["lesions"],
        "closeups": by_section["closeups"],
        "closeup_note": _closeup_note(report),
        "contrasts": tables.contrast_table(report.lesions, [view.name for view in report.sequences]),
        "contrast_unit": CONTRAST_UNITS[report.normalize],
        "measures": tables.measures_table(report.measures),
        "levels_table": tables.levels_table(report.measures),
        "sequences_sentence": _sequences_sentence(report),
        **_quality(report),
        **history_facts(report.history, repeated=_repeated(report)),
        "sequence_rows": [*map(_used_row, report.sequences), *map(_absent_row, report.absent)],
        "native_figures": by_section["native"],
        "native_note": f"{DISPLAY} Each axial slice has its own grey window. Numbers beside the first "
        "sagittal slice say where the axial slices lie; mm count from the top of the image. Voxels are "
        "interpolated for display only.",
        "alignment_figures": by_section["alignment"],
        "paragraphs": paragraphs(report.methods),
        "links": [(text, pages.relative(href)) for text, href in report.links],
        "provenance": _provenance(report),
        "version": report.versions.get("bids_scseg", ""),
        "contents": _contents(by_section, repeated=_repeated(report)),
    }


def _quality(report: SessionReport) -> dict[str, object]:
    names = [view.name for view in report.sequences]
    table = quality_table(report.measures, names)
    return {
        "quality": table,
        "quality_sentence": quality_sentence(report.measures, names) if table else "",
        "outlier_sentence": outlier_sentence(report.outliers),
    }


def _repeated(report: SessionReport) -> bool:
    """Whether the participant may have other sessions."""
    return "_ses-" in report.label


def _contents(by_section: Mapping[str, Sequence[Shown]], *, repeated: bool) -> list[dict[str, object]]:
    entries = [
        ("summary", "Summary", False, True),
        ("warnings", "Warnings", False, True),
        ("lesions", "Lesions", False, True),
        ("viewer", "Look around", True, True),
        ("closeups", "Close up", True, bool(by_section["closeups"])),
        ("history", "Changes over time", False, repeated),
        ("sequences", "Sequences", False, True),
        ("quality", "Quality", True, True),
        ("native", "Images as acquired", False, bool(by_section["native"])),
        ("alignment", "Alignment", False, bool(by_section["alignment"])),
        ("methods", "Methods", False, True),
        ("provenance", "Files and provenance", False, True),
    ]
    return [{"id": name, "text": text, "sub": sub} for name, text, sub, there in entries if there]


def _tiles(report: SessionReport) -> list[Tile]:
    measures = report.measures
    count = _count(report)
    load = tables.as_number(measures.get("lesion_load"))
    return [
        Tile(name="lesion" if count == 1 else "lesions", value=tables.ABSENT if count is None else
        str(count)),
        _tile("total lesion volume", measures.get("lesion_volume_mm3"), unit="mm³"),
        Tile(name="of the examined cord", value=tables.ABSENT if load is None else f"{load * 100:.2f}",
             unit="" if load is None else "%"),
        _tile("cord examined", measures.get("examined_length_mm"), unit="mm"),
        Tile(name="sequences used", value=str(len(report.sequences)),
             unit=f"of {len(report.sequences) + len(report.absent)}"),
        Tile(name="warning" if len(report.flags) == 1 else "warnings", value=str(len(report.flags)),
             tone=_worst(report.flags)),
    ]  # fmt: skip


def _tile(name: str, value: object, *, unit: str) -> Tile:
    shown = tables.number(0)(value)
    return Tile(name=name, value=shown, unit="" if shown == tables.ABSENT else unit)


def _worst(flags: Sequence[Flag]) -> str:
    severities = {flag.severity for flag in flags}
    return next((tone for tone in ("serious", "caution") if tone in severities), "")


def _count(report: SessionReport) -> int | None:
    """Number of lesions; None where no cord was examined."""
    if "lesion_count" in report.measures:
        stated = tables.as_number(report.measures["lesion_count"])
        return None if stated is None else int(stated)
    return len(report.lesions)


def _lesion_words(count: int) -> str:
    return {0: "no lesions", 1: "one lesion"}.get(count, f"{count} lesions")


def summary_sentence(report: SessionReport) -> str:
    """What was found, in plain words; zero, unknown and unexamined cord are three different things."""
    measures = report.measures
    count = _count(report)
    used = _listed([view.name for view in report.sequences]) or "no sequence"
    examined = tables.as_number(measures.get("examined_length_mm"))
    where = f" in the {examined:,.0f} mm of cord examined" if examined else ""
    if count is None:
        return "No cord could be examined in this session, so nothing can be said about lesions."
    who = "The model, corrected by a reader," if report.correction else "The model"
    volume, load = (tables.as_number(measures.get(key)) for key in ("lesion_volume_mm3", "lesion_load"))
    if count == 0:
        parts = [f"{who} marked no lesion{where}, using {used}."]
    else:
        size = f" with a total volume of {volume:,.0f} mm³" if volume is not None else ""
        share = f" ({load * 100:.2f} % of the examined cord)" if load is not None else ""
        marked = "one lesion" if count == 1 else f"{count} lesions"
        parts = [f"{who} marked {marked}{size}{share}{where}, using {used}."]
    if report.correction:
        parts.append(report.correction)
    missing = tables.as_number(measures.get("not_examined_mm"))
    if missing and missing >= 1:
        parts.append(f"Nothing is known about a further {missing:,.0f} mm of cord, which no sequence covers.")
    if _much_beyond(report):
        parts.append("The images go on far beyond the cord masks; nothing was segmented there.")
    serious = sum(flag.severity == "serious" for flag in report.flags)
    if serious:
        parts.append(
            f"Read the {'serious warning' if serious == 1 else f'{serious} serious warnings'} first."
        )
    return " ".join(parts)


def _much_beyond(report: SessionReport) -> bool:
    """Whether images show much beyond the cord masks that need not be head or what follows the conus."""
    return report.beyond is not None and not report.beyond.perhaps_no_cord


def _no_lesions(report: SessionReport) -> str:
    if _count(report) is None:
        return "No cord was examined: there is no result, which is not the same as no lesion."
    if _much_beyond(report):
        return (
            "No lesion was marked between the ends of the cord masks. Beyond them the images go on, and "
            "nothing was segmented: whether there are lesions is unknown."
        )
    return (
        "No lesion was marked. Parts of the cord that no sequence covers were not examined, and count as "
        "unknown."
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}" if words else ""


def _origin(origin: str) -> str:
    if origin:
        return f"Positions count along the centerline, downwards from the {origin}."
    return (
        "Positions count along the centerline, downwards from the top of the prepared cord (uppermost cord "
        "mask and margin): this is no anatomical origin, so they must not be compared between subjects or "
        "sessions."
    )


def _levels_words(measures: Row) -> str:
    """Who labelled the levels; nothing without levels."""
    source = measures.get("levels_from")
    return "" if tables.missing(source) or not source else f" Vertebral levels: {source}."


def _lesion_caption(row: Row) -> str:
    parts = [
        *(tables.text(row.get(key)) for key in ("level", "column")),
        tables.number(0, unit="mm³")(row.get("volume_mm3")),
        tables.number(1, unit="mm long")(row.get("length_mm")),
        "mean probability " + tables.number(2)(row.get("mean_probability")),
    ]
    return " · ".join(part for part in parts if tables.ABSENT not in part)


def _closeup_note(report: SessionReport) -> str:
    note = (
        f"{DISPLAY} Slices through the lesion's centre, 24 mm wide, in prepared space; dashed outlines are "
        "other lesions. Contrast: mean signal of the lesion minus that of the cord round it, "
        f"{CONTRAST_UNITS[report.normalize]}."
    )
    hidden = len(display.lesion_numbers(report.labels)) - MOST_CLOSEUPS
    return note + (
        f" The {MOST_CLOSEUPS} largest lesions are shown; {hidden} more are in the table."
        if hidden > 0
        else ""
    )


def _sequences_sentence(report: SessionReport) -> str:
    used, absent = ([item.name for item in items] for items in (report.sequences, report.absent))
    first = f"Used: {_listed(used)}." if used else "No sequence could be used."
    anchor = f" {report.anchor} gave the grid and the outputs' space." if report.anchor else ""
    return (
        first
        + anchor
        + (f" Not available: {_listed(absent)}." if absent else " All sequences of the recipe are there.")
    )


def _used_row(view: SequenceView) -> dict[str, object]:
    grids = [native.grid for native in view.natives]
    share = view.extrapolated_share
    notes = [f"cord: {view.cord_source}"] if view.cord_source else []
    return {
        "name": view.name,
        "description": view.description,
        "state": "used",
        "tone": "",
        "files": [native.file for native in view.natives],
        "voxels": list(dict.fromkeys((PLANES[grid.plane()], _voxel(grid.spacing)) for grid in grids)),
        "examined": tables.number(0, unit="mm")(view.examined_mm),
        "extrapolated": f"{share * 100:.0f} % extrapolated" if share else "",
        "notes": _sentences([*notes, *view.notes]),
    }


PLANES = {"sag": "sagittal", "ax": "axial", "cor": "coronal", "iso": "isotropic"}


def _voxel(spacing: Iterable[float]) -> str:
    return " × ".join(f"{round(float(size), 2):g}" for size in sorted(spacing)) + " mm"


def _absent_row(absent: AbsentSequence) -> dict[str, object]:
    return {
        "name": absent.name,
        "description": absent.description,
        "state": "imputed" if absent.handling else "missing",
        "tone": "absent",
        "files": [],
        "notes": _sentences([absent.reason, absent.handling]),
    }


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(f"{part[:1].upper()}{part[1:].rstrip('.')}." for part in parts if part)


def paragraphs(methods: str) -> list[str]:
    """Paragraphs of a methods text without its headings and reference list (both are the page's own)."""
    body = re.split(r"^#+ *References\b.*$", methods, maxsplit=1, flags=re.MULTILINE)[0]
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", body))
    return [part for part in parts if part and not part.startswith("#")]


def _provenance(report: SessionReport) -> list[tuple[str, tables.Table]]:
    run = {
        "Model": report.model,
        "Threshold": f"{report.threshold:g}",
        "Device": report.device,
        **report.settings,
    }
    seconds = {name: f"{value:.1f} s" for name, value in report.seconds.items()}
    if len(seconds) > 1:
        seconds["total"] = f"{sum(report.seconds.values()):.1f} s"
    groups: list[tuple[str, Mapping[str, str]]] = [
        ("Run", run), ("Time", seconds), ("Versions", report.versions), ("Checksums", report.checksums),
        ("Seeds", report.seeds),
    ]  # fmt: skip
    return [
        (title, tables.pairs_table((str(key), str(value)) for key, value in data.items() if str(value)))
        for title, data in groups
        if data
    ]


def _index(row: Row) -> int | None:
    value = tables.as_number(row.get("index"))
    return None if value is None else int(value)
