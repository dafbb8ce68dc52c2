"""How far the images of a session can be trusted, in plain words: a table of its sequences."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_scseg.report.flags import LOW_COVERAGE_BELOW
from bids_scseg.report.history import rows_of
from bids_scseg.report.records import Row
from bids_scseg.report.tables import Cell, Header, Table, as_number, missing, number, percent, text

MARK = "\u00a0*"  # beside a value that is worth a look


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A quality metric that repeats per sequence.

    Attributes
    ----------
    ending
        Its column without the sequence's name.
    words, meaning
        What it is called, and what it says.
    show
        Its format.
    below, above
        From where on it is worth a look; None: never.
    """

    ending: str
    words: str
    meaning: str
    show: Callable[[object], str]
    below: float | None = None
    above: float | None = None

    def odd(self, value: object) -> bool:
        """Whether a value is worth a look."""
        plain = as_number(value)
        low = plain is not None and self.below is not None and plain < self.below
        return low or (plain is not None and self.above is not None and plain > self.above)


#: Where nothing else is said the limits are ours: they ask for a look, they exclude nothing.
QUALITIES = (
    Quality(ending="cord_cnr", words="Contrast-to-noise of the cord",
            meaning="contrast of cord and surroundings by noise; low: the cord is hard to see",
            show=number(1), below=1.0),
    Quality(ending="cord_contrast", words="Contrast of the cord",
            meaning="signal of the cord minus that round it, in units of the prepared image",
            show=number(2, sign=True)),
    Quality(ending="cord_noise", words="Noise in the cord",
            meaning="what varies from voxel to voxel in the lesion-free cord, same units", show=number(2)),
    Quality(ending="coverage", words="Coverage", meaning="share of the cord found that the sequence covers",
            show=percent, below=LOW_COVERAGE_BELOW),
    Quality(ending="centerline_residual_mm", words="Distance from the centerline",
            meaning="between the cord's centre in the slices and the fitted line, median",
            show=number(2, unit="mm"), above=1.0),
    Quality(ending="extrapolated_mm", words="Extrapolated",
            meaning="length over which the cord was not seen in the sequence itself",
            show=number(0, unit="mm"), above=20.0),
    Quality(ending="seam_mismatch_mm", words="Seam mismatch",
            meaning="how far apart neighbouring slabs put the cord, worst seam",
            show=number(1, unit="mm"), above=1.5),  # from there on the fit warns
    Quality(ending="edge_share", words="Cut at the side",
            meaning="share of slices whose cord reaches the side of the image", show=percent, above=0.02),
    Quality(ending="voxel_mm", words="Voxel, mm", meaning="as acquired", show=text),
)  # fmt: skip


def quality_table(measures: Row, sequences: Sequence[str]) -> Table | None:
    """Quality of each sequence; values that are worth a look carry a mark.

    Parameters
    ----------
    measures
        The session's measures with the columns of :mod:`bids_scseg.measure.quality`.
    sequences
        Sequences that were used.

    Returns
    -------
    A row per metric, a column per sequence; metrics that no sequence has are dropped. None without any.
    """
    rows = [
        (
            Cell(text=f"{quality.words} ({quality.meaning})"),
            *(_cell(measures, name, quality) for name in sequences),
        )
        for quality in QUALITIES
        if any(not missing(measures.get(f"{name}_{quality.ending}")) for name in sequences)
    ]
    if not rows:
        return None
    headers = (Header(text="Measure"), *(Header(text=name, numeric=True) for name in sequences))
    return Table(headers=headers, rows=tuple(rows))


def _cell(measures: Row, name: str, quality: Quality) -> Cell:
    value = measures.get(f"{name}_{quality.ending}")
    odd = quality.odd(value)
    return Cell(text=quality.show(value) + (MARK if odd else ""), tone="caution" if odd else "")


def quality_sentence(measures: Row, sequences: Sequence[str]) -> str:
    """Which values are worth a look, in a sentence."""
    odd = [
        f"{name}: {quality.words[0].lower()}{quality.words[1:]} {quality.show(value)}"
        for name in sequences
        for quality in QUALITIES
        if quality.odd(value := measures.get(f"{name}_{quality.ending}"))
    ]
    if not odd:
        return "No value is beyond the marks from which one should look. That is no proof of quality."
    return f"Worth a look (* in the table): {'; '.join(odd)}. Nothing is excluded for that."


def read_outliers(out: Path, label: str) -> tuple[str, ...] | None:
    """What the last run of the group level said of a session (``group/sessions.tsv``).

    Parameters
    ----------
    out
        Output folder.
    label
        ``sub-X`` or ``sub-X_ses-Y``.

    Returns
    -------
    What stands out; empty if nothing does; None where no such table has the session's result.
    """
    try:
        for row in rows_of(label.partition("_")[0], out / "group" / "sessions.tsv"):
            parts = (row["participant_id"], row.get("session_id"))
            if "_".join(part for part in parts if part and part != "n/a") == label:
                said = row.get("outliers") or "n/a"
                judged = row.get("state") == "done" and row.get("stratum") not in (None, "n/a")
                return None if not judged else () if said == "n/a" else tuple(said.split("; "))
    except (OSError, ValueError, KeyError, csv.Error):
        return None  # a table that was edited or is being written: the report does without
    return None


def outlier_sentence(outliers: Sequence[str] | None) -> str:
    """What the group level said of the session.

    Parameters
    ----------
    outliers
        What stood out; empty if nothing did; None where the group level has not judged the session.
    """
    if outliers is None:
        return (
            "Whether the session stands out among the others is said by the group level, which has not "
            "judged it yet; reports drawn again after it (--reports-only) repeat its words here."
        )
    if not outliers:
        return "In the last run of the group level the session did not stand out among those measured alike."
    said = "; ".join(outliers)
    return f"In the last run of the group level the session stood out among those measured alike: {said}."
