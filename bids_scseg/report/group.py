"""The page of a cohort: which sessions can be trusted, and what the cohort looks like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_scseg.measure.changes import CohortChanges
from bids_scseg.measure.cohort import CohortTables
from bids_scseg.measure.comparisons import METRICS
from bids_scseg.measure.session import MODEL_ORIGIN
from bids_scseg.report import pages, tables, trajectories
from bids_scseg.report.flags import by_severity
from bids_scseg.report.group_data import page_data
from bids_scseg.report.records import NOTHING, Flag, Row
from bids_scseg.report.tables import Cell, Header, Table, as_number, missing

SCRIPTS = ("core.js", "plots.js", "maps.js", "statistics.js", "trajectories.js", "review.js")
HEAD = (("Dataset", "dataset"), ("Updated", "date"))
CONTENTS = (
    ("summary", "Summary"),
    ("warnings", "Warnings"),
    ("explore", "Explore"),
    ("maps", "Where lesions lie"),
    ("trajectories", "Changes over time"),
    ("review", "Review"),
    ("sessions", "Sessions"),
    ("statistics", "Statistics"),
    ("failed", "Without a result"),
    ("about", "About this page"),
)
NAMES = {key: (text, factor, unit) for key, text, factor, unit in METRICS}
#: Area of the whisker plot in the template's units: left, right, top and height of a row.
WHISKERS = (70.0, 620.0, 8.0, 17.0)
WHISKER_NAMES = ("left", "right", "top", "step")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupPage:
    """What the page is made of.

    Attributes
    ----------
    cohort
        Tables and maps.
    reports
        Session label → address of its report, relative to the page.
    thumbnails
        Session label → WebP image.
    failures
        One row per session without a result: ``label``, ``state``, ``step``, ``cause``, ``remedy``.
    facts
        Name to value: ``title`` and ``dataset`` head the page, ``version`` foots it, all are listed.
    identity
        Tells this cohort from others; the browser keeps ratings under a checksum of it.
    changes
        Changes between sessions; None if they were not looked for.
    """

    cohort: CohortTables
    reports: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    thumbnails: Mapping[str, bytes] = field(default_factory=lambda: NOTHING)
    failures: Sequence[Row] = ()
    facts: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    identity: str = ""
    changes: CohortChanges | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A mean with its interval, in the template's units."""

    text: str
    alt: str
    y: float
    x: float
    low: float
    high: float


def write_group_page(out_html: Path, page: GroupPage) -> None:
    """Write the cohort's page: one file that needs no network.

    Raises
    ------
    OutputError
        If the page cannot be written.
    """
    cohort, known = page.cohort, dict(page.facts)
    done = [row for row in cohort.sessions.to_dict("records") if row["state"] == "done"]
    rows: list[Row] = [{str(key): value for key, value in row.items()} for row in done]
    context = {
        "title": known.pop("title", "Cohort"),
        "head": [(name, known[key]) for name, key in HEAD if key in known],
        "summary": summary_sentence(rows, page.failures),
        "flags": by_severity((*_flags(cohort), *_change_flags(page.changes))),
        "trajectories": trajectories.summary(page.changes),
        "strata": _strata(cohort),
        "done": len(rows),
        "plots": range(5),
        "summary_table": _summary_table(cohort),
        "whiskers": _whiskers(cohort),
        "comparisons": _comparisons(cohort),
        "left_out": _left_out(cohort),
        "stratum": cohort.strata[0].name if cohort.strata else "",
        "failures": _failures(page),
        "facts": tables.pairs_table(known.items()),
        "version": known.get("version", ""),
        "contents": [{"id": name, "text": text, "sub": False} for name, text in CONTENTS],
    }
    data = page_data(
        cohort,
        reports={label: pages.relative(address) for label, address in page.reports.items()},
        thumbnails=page.thumbnails,
        identity=page.identity,
    )
    labels = [trajectories.label_of(row) for row in rows]
    text = pages.render_page(
        "group.html",
        context,
        styles=[pages.asset("group/group.css") + pages.asset("group/trajectories.css")],
        scripts=[_script()] if rows else [],
        data={
            "cohort": {
                **data,
                "whiskers": dict(zip(WHISKER_NAMES, WHISKERS, strict=True)),
                "trajectories": trajectories.trajectory_data(page.changes, labels),
            }
        },
    )
    pages.write_page(Path(out_html), text)


def _script() -> str:
    """The page's modules in one scope of their own."""
    body = "".join(pages.asset(f"group/{name}") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}}})();\n'


def summary_sentence(rows: Sequence[Row], failed: Sequence[Row]) -> str:
    """What was done and found, in plain words."""
    if not rows:
        return "No session has a result yet."
    counts = [count for row in rows if (count := as_number(row.get("lesion_count"))) is not None]
    people = len({str(row["participant_id"]) for row in rows})
    text = f"{_plural(len(rows), 'session')} of {_plural(people, 'participant')} were processed"
    if counts:
        free = _plural(sum(count == 0 for count in counts), "session")
        by_hand = sum(row.get("mask_origin") not in (None, "", MODEL_ORIGIN) for row in rows)
        marked = f"{_plural(int(sum(counts)), 'lesion')}, and none in {free}"
        text += f"; the model{' and its readers' if by_hand else ''} marked {marked}"
        text += f" (readers corrected {_plural(by_hand, 'session')})" if by_hand else ""
    unknown = len(rows) - len(counts)
    text += "." + (f" In {_plural(unknown, 'session')} no cord was examined." if unknown else "")
    return text + (f" {_plural(len(failed), 'session')} ended without a result." if failed else "")


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _flags(cohort: CohortTables) -> Iterable[Flag]:
    if len(cohort.strata) > 1:
        yield Flag(
            severity="serious",
            title="Sessions were not all measured alike",
            text=f"There are {len(cohort.strata)} strata, which differ in model, thresholds, cord finder or "
            "numerical version. Their numbers must not be pooled: every view shows one stratum at a time, "
            f"and the statistics are those of stratum {cohort.strata[0].name}.",
            remedy="Process all sessions again with the same settings.",
        )
    for text in cohort.flags:
        if not text.startswith("Sessions differ in") or len(cohort.strata) < 2:
            yield Flag(severity="caution", title=text)
        else:
            yield Flag(severity="note", title=_short(text))


def _change_flags(changes: CohortChanges | None) -> Iterable[Flag]:
    for text in () if changes is None else changes.flags:
        yield Flag(severity="caution", title=text)


def _short(text: str) -> str:
    """Long checksums cut."""
    return " ".join(word if len(word) < 40 else f"{word[:12]}…" for word in text.split())


def _strata(cohort: CohortTables) -> Table | None:
    if len(cohort.strata) < 2:
        return None
    names = [name for name, _ in cohort.strata[0].facts]
    return Table(
        headers=(
            Header(text="Stratum"), Header(text="Sessions", numeric=True),
            *(Header(text=name) for name in names),
        ),
        rows=tuple(
            (
                Cell(text=stratum.name), Cell(text=str(stratum.sessions)),
                *(Cell(text=_short(value)) for _, value in stratum.facts),
            )
            for stratum in cohort.strata
        ),
    )  # fmt: skip


def _left_out(cohort: CohortTables) -> str:
    if not cohort.left_out:
        return "No session is left out."
    parts = ", ".join(f"{item.sessions} {item.reason}" for item in cohort.left_out)
    return f"Left out: {parts}."


def _interval(row: Row, low: str, high: str, factor: float) -> str:
    ends = [as_number(row.get(name)) for name in (low, high)]
    if ends[0] is None or ends[1] is None:
        return tables.ABSENT
    return f"{_text(ends[0] * factor)} to {_text(ends[1] * factor)}"


def _text(value: object) -> str:
    """A number with three significant digits."""
    plain = as_number(value)
    if plain is None:
        return tables.ABSENT
    digits = 0 if plain == 0 else max(2 - math.floor(math.log10(abs(plain))), 0)
    return tables.number(min(digits, 4))(plain)


def _summary_table(cohort: CohortTables) -> Table:
    words = ("Measure", "Level", "Sessions", "Participants", "Mean", "95 % interval", "Median", "Quartiles",
             "Sessions with lesions", "95 % interval")  # fmt: skip
    rows, whole = [], tables.number(0)
    for row in cohort.summary.to_dict("records"):
        name, factor, unit = NAMES[str(row["metric"])]
        known: Row = {str(key): value for key, value in row.items()}
        rows.append(
            (
                Cell(text=f"{name}, {unit}".rstrip(", ")),
                Cell(text="all" if missing(row["level"]) else str(row["level"])),
                Cell(text=whole(row["sessions"])), Cell(text=whole(row["participants"])),
                Cell(text=_scaled(row["mean"], factor)),
                Cell(text=_interval(known, "ci_low", "ci_high", factor)),
                Cell(text=_scaled(row["median"], factor)), Cell(text=_interval(known, "q1", "q3", factor)),
                Cell(text=tables.percent(row["with_lesion"])),
                Cell(text=_interval(known, "with_lesion_ci_low", "with_lesion_ci_high", 100)),
            )
        )  # fmt: skip
    return Table(headers=tuple(Header(text=w, numeric=n > 1) for n, w in enumerate(words)), rows=tuple(rows))


def _scaled(value: object, factor: float) -> str:
    plain = as_number(value)
    return tables.ABSENT if plain is None else _text(plain * factor)


def _whiskers(cohort: CohortTables) -> dict[str, object] | None:
    """Mean load per level with its interval, from top to bottom; None without levels."""
    rows = [row for row in cohort.summary.to_dict("records") if not missing(row["level"])]
    if not rows:
        return None
    left, right, top, step = WHISKERS
    ends = [as_number(row[key]) or 0.0 for row in rows for key in ("mean", "ci_high")]
    most = max(max(ends), 1e-6)

    def at(value: object) -> float:
        return round(left + (as_number(value) or 0.0) / most * (right - left), 1)

    marks = [
        Whisker(
            text=str(row["level"]), y=round(top + (n + 0.5) * step, 1), x=at(row["mean"]),
            low=at(row["mean"] if missing(row["ci_low"]) else row["ci_low"]),
            high=at(row["mean"] if missing(row["ci_high"]) else row["ci_high"]),
            alt=f"{row['level']}: {_scaled(row['mean'], 100)} %, n = {row['sessions']}",
        )
        for n, row in enumerate(rows)
    ]  # fmt: skip
    bottom = top + len(rows) * step
    return {
        "marks": marks, "left": left, "right": right, "bottom": bottom, "height": bottom + 34,
        "ticks": [(round(left + s * (right - left), 1), _text(s * most * 100)) for s in (0, 0.5, 1)],
        "alt": "Mean lesion load per vertebral level: " + "; ".join(mark.alt for mark in marks),
    }  # fmt: skip


def _comparisons(cohort: CohortTables) -> Table | None:
    if not len(cohort.comparisons):
        return None
    words = ("Covariate", "Measure", "Participants", "Groups", "Test", "Effect", "95 % interval", "p",
             "p, Holm", "Left out")  # fmt: skip
    numeric = {2, 5, 6, 7, 8}
    rows, whole = [], tables.number(0)
    for row in cohort.comparisons.to_dict("records"):
        known: Row = {str(key): value for key, value in row.items()}
        strong = (as_number(row["p_holm"]) or 1.0) < 0.05
        rows.append(
            (
                Cell(text=str(row["covariate"])), Cell(text=NAMES[str(row["metric"])][0]),
                Cell(text=whole(row["participants"])), Cell(text=tables.text(row["groups"])),
                Cell(text=str(row["test"])), Cell(text=f"{_effect(row['effect_size'])} ({row['effect']})"),
                Cell(text=_interval(known, "ci_low", "ci_high", 1)), Cell(text=_p(row["p"])),
                Cell(text=_p(row["p_holm"]), tone="serious" if strong else ""),
                Cell(text=tables.text(row["left_out_why"])),
            )
        )  # fmt: skip
    return Table(
        headers=tuple(Header(text=w, numeric=n in numeric) for n, w in enumerate(words)), rows=tuple(rows),
        sortable=True,
    )  # fmt: skip


def _effect(value: object) -> str:
    return tables.number(2)(as_number(value))


def _p(value: object) -> str:
    plain = as_number(value)
    if plain is None:
        return tables.ABSENT
    return "< 0.001" if plain < 0.001 else f"{plain:.3f}"


def _failures(page: GroupPage) -> Table:
    headers = ("Session", "State", "Step", "What happened", "What you can do")
    keys = ("state", "step", "cause", "remedy")
    return Table(
        headers=tuple(Header(text=word) for word in headers),
        rows=tuple(
            (
                Cell(text=str(row.get("label")), href=page.reports.get(str(row.get("label")), "")),
                *(Cell(text=tables.text(row.get(key))) for key in keys),
            )
            for row in page.failures
        ),
        sortable=True,
    )
