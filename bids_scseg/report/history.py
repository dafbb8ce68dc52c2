"""A session among the others of its participant, on its own page: what the group level found last."""

from __future__ import annotations

import csv
from itertools import accumulate
from pathlib import Path

from bids_scseg.measure.longitudinal import FATES
from bids_scseg.report import tables
from bids_scseg.report.records import History, Line
from bids_scseg.report.tables import ABSENT, Cell, Header, Table

MISSING = "n/a"
COMPARED = ("compared", "totals only")  # states of pairs whose volumes were held against each other
#: Drawing of the volumes, in the template's units: left, right, top and bottom of its area.
AREA = (60.0, 560.0, 14.0, 120.0)
WIDTH, HEIGHT = 620.0, 160.0


def read_history(out: Path, label: str) -> History | None:
    """What the last run of the group level found over time for a session's participant.

    Parameters
    ----------
    out
        Output folder.
    label
        ``sub-X`` or ``sub-X_ses-Y``.

    Returns
    -------
    None where the group level has not compared this session with another one.
    """
    participant, _, session = label.partition("_")
    try:
        pairs = rows_of(participant, out / "group/session_changes.tsv")
        known = {row["session_id"]: row for row in rows_of(participant, out / "group/sessions.tsv")}
        lesions = [
            row
            for row in rows_of(participant, out / "group/lesion_changes.tsv")
            if session in (row["session_before"], row["session_after"])
        ]
        chain = [row["session_before"] for row in pairs[:1]] + [row["session_after"] for row in pairs]
    except (OSError, ValueError, KeyError, csv.Error):
        return None  # tables that were edited or are being written: the report does without
    if session not in chain:
        return None
    return History(
        label=label,
        sessions=tuple(
            (
                f"{participant}_{name}",
                _number(known.get(name, {}), "lesion_count"),
                _number(known.get(name, {}), "lesion_volume_mm3"),
            )
            for name in chain
        ),
        pairs=tuple(pairs),
        lesions=tuple(lesions),
    )


def rows_of(participant: str, path: Path) -> list[dict[str, str]]:
    """One participant's rows of a table of the group level.

    No other line is parsed: every session's report asks, and the tables grow with the cohort.

    Parameters
    ----------
    participant
        With prefix.
    path
        The table.

    Raises
    ------
    OSError, ValueError, KeyError, csv.Error
        If it cannot be read, or has no column ``participant_id``.
    """
    with path.open("rb") as handle:
        head = handle.readline()
        first = f"{participant}\t".encode()
        as_written = head.startswith(b"participant_id\t")  # people may have put another column first
        lines = [line for line in handle if not as_written or line.startswith(first)]
    text = (line.decode("utf-8") for line in (head, *lines))
    parsed = csv.DictReader(text, delimiter="\t", restval=MISSING)
    rows = [{str(key): str(value) for key, value in row.items()} for row in parsed]
    return [row for row in rows if row["participant_id"] == participant]


def history_facts(history: History | None, *, repeated: bool) -> dict[str, object]:
    """What the session page's template shows.

    Parameters
    ----------
    history
        See :func:`read_history`.
    repeated
        Whether the session has a label, so that there may be others.

    Returns
    -------
    ``history_words`` (empty: no section), ``history_pairs``, ``history_lesions`` and ``history_chart``, None
    where there is nothing to show.
    """
    empty: dict[str, object] = {
        "history_words": "", "history_pairs": None, "history_lesions": None, "history_chart": None,
    }  # fmt: skip
    if history is None:
        words = (
            "Whether lesions changed between the sessions of this participant is said by the group level, "
            "which has not compared this session yet; reports drawn again after it (--reports-only) show it "
            "here."
        )
        return {**empty, "history_words": words if repeated else ""}
    return {
        "history_words": _words(history),
        "history_pairs": _pairs(history),
        "history_lesions": _lesions(history) if history.lesions else None,
        "history_chart": _chart(history),
    }


def _words(history: History) -> str:
    """How many sessions were compared: those of refused pairs alone were not."""
    compared = [_text(pair, "state") in COMPARED for pair in history.pairs]
    count = sum(any(pair) for pair in zip([False, *compared], [*compared, False], strict=True))
    if not count:
        return (
            "As of the last run of the group level, no two sessions of this participant could be compared: "
            "the table says why."
        )
    most = len(history.sessions)
    sessions = f"{count} sessions" if count == most else f"{count} of {most} sessions"
    return (
        f"As of the last run of the group level, which compared {sessions} of this participant. A change is "
        "enlarged or shrunken only if it is beyond measurement noise."
    )


def _pairs(history: History) -> Table:
    words = ("From", "To", "Days", "Lesions", "Volume change, mm³", "95 % interval", "To know")
    rows = []
    for pair in history.pairs:
        ends = [_signed(pair, f"lesion_volume_change_ci_{end}_mm3") for end in ("low", "high")]
        note = [_text(pair, key) for key in ("reason", "sequences_differ")]
        rows.append(
            (
                Cell(text=_text(pair, "session_before")), Cell(text=_text(pair, "session_after")),
                Cell(text=tables.number(0)(_number(pair, "days"))), Cell(text=_fates(pair)),
                Cell(text=_signed(pair, "lesion_volume_change_mm3")),
                Cell(text=ABSENT if ABSENT in ends else " to ".join(ends)),
                Cell(text="; ".join(part for part in note if part)),
            )
        )  # fmt: skip
    numeric = {2, 4, 5}
    return Table(
        headers=tuple(Header(text=w, numeric=n in numeric) for n, w in enumerate(words)), rows=tuple(rows)
    )


def _fates(pair: Line) -> str:
    counts = [(fate, _number(pair, fate.replace(" ", "_"))) for fate in FATES]
    found = [f"{count:.0f} {fate}" for fate, count in counts if count]
    if _text(pair, "state") != "compared":
        return _text(pair, "state")
    return ", ".join(found) or "none"


def _lesions(history: History) -> Table:
    words = ("From", "To", "Fate", "Numbers", "Level", "Before, mm³", "After, mm³", "z")
    rows = [
        (
            Cell(text=_text(row, "session_before")), Cell(text=_text(row, "session_after")),
            Cell(text=_text(row, "fate")),
            Cell(text=f"{_text(row, 'lesions_before') or ABSENT} → {_text(row, 'lesions_after') or ABSENT}"),
            Cell(text=_text(row, "level") or ABSENT),
            Cell(text=tables.number(0)(_number(row, "volume_before_mm3"))),
            Cell(text=tables.number(0)(_number(row, "volume_after_mm3"))),
            Cell(text=tables.number(1, sign=True)(_number(row, "z"))),
        )
        for row in history.lesions
    ]  # fmt: skip
    return Table(headers=tuple(Header(text=w, numeric=n > 4) for n, w in enumerate(words)), rows=tuple(rows))


def _chart(history: History) -> dict[str, object] | None:
    """Lesion volume of each session in the template's units; None with fewer than two that are known.

    Lines join sessions that were compared with each other; others were measured otherwise.
    """
    refused = [_text(pair, "state") not in COMPARED for pair in history.pairs]
    stretches = accumulate(refused, initial=0)  # number of the stretch of comparable sessions of each
    known = [
        (stretch, label, count, volume)
        for stretch, (label, count, volume) in zip(stretches, history.sessions, strict=False)
        if volume is not None
    ]
    if len(known) < 2:
        return None
    left, right, top, bottom = AREA
    most = max(max(volume for *_, volume in known), 1e-6)
    marks = [
        {
            "x": round(left + (right - left) * n / (len(known) - 1), 1),
            "y": round(bottom - (bottom - top) * volume / most, 1),
            "text": label.partition("_")[2],
            "own": label == history.label,
            "alt": f"{label}: {tables.number(0)(volume)} mm³"
            + ("" if count is None else f" in {count:.0f} lesions"),
        }
        for n, (_, label, count, volume) in enumerate(known)
    ]
    lines: dict[int, list[str]] = {}
    for (stretch, *_), mark in zip(known, marks, strict=True):
        lines.setdefault(stretch, []).append(f"{mark['x']},{mark['y']}")
    return {
        "marks": marks, "width": WIDTH, "height": HEIGHT, "left": left, "right": right, "bottom": bottom,
        "top": top, "most": tables.number(0)(most),
        "lines": [" ".join(points) for points in lines.values() if len(points) > 1],
        "apart": len(lines) > 1,
        "alt": "Lesion volume by session: " + "; ".join(str(mark["alt"]) for mark in marks),
    }  # fmt: skip


def _text(row: Line, key: str) -> str:
    value = row.get(key, MISSING)
    return "" if value == MISSING else value


def _number(row: Line, key: str) -> float | None:
    try:
        return tables.as_number(float(row.get(key, MISSING)))
    except ValueError:
        return None


def _signed(row: Line, key: str) -> str:
    return tables.number(0, sign=True)(_number(row, key))
