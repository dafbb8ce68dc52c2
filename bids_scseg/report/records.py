"""What a report is made of: plain arrays and strings, so that this room stands on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg.measure.extent import Beyond
from bids_scseg.space.grid import FloatArray, Grid

BoolArray = npt.NDArray[np.bool_]
Volume = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]
Severity = Literal["serious", "caution", "note"]
Row = Mapping[str, object]
Line = Mapping[str, str]  # of a table read from a file

NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NativeImage:
    """One image as it was acquired: a whole sequence or one of its slabs.

    Attributes
    ----------
    file
        Path as it is to be shown, relative to the dataset.
    image : (i, j, k) float
        Intensities on ``grid``.
    grid
        Lattice of the image.
    cord : (i, j, k) bool or None
        Cord mask on ``grid``; None where there is none.
    centerline_ras : (n, 3) float64
        Cord centre in this image's own world mm (after its slab's rigid); may be empty.
    measured : (n,) bool
        Whether each centerline point was seen in this image, rather than extrapolated or borrowed.
    cut_mm
        How much of what a program found was cut off at the lower end as no cord, mm along S-I.
    """

    file: str
    image: npt.NDArray[Any]
    grid: Grid
    cord: BoolArray | None = None
    centerline_ras: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))
    measured: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    cut_mm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceView:
    """One sequence of the session that was used.

    Attributes
    ----------
    name, description
        Key in the recipe, and one line for people.
    natives
        Its images, uppermost slab first.
    prepared : (ni, nj, K) float32
        The sequence on the reference grid, round its own centerline.
    coverage : (ni, nj, K) bool
        Where the sequence has data on the reference grid.
    unaligned : (ni, nj, K) float32 or None
        The same, sampled round the anchor's centerline ("before").
    offset_mm : (K, 2) float64 or None
        Own centerline minus the anchor's, towards R and A, for each prepared slice; NaN where unknown.
    measured : (K,) bool or None
        Prepared slices at which this sequence's own centerline was seen.
    contrasts
        Lesion number to contrast against the surrounding cord in this sequence (any unit; shown as is).
    examined_mm
        Length of cord that the sequence examines, mm.
    extrapolated_share
        Fraction of its windows that extrapolation served (0 to 1).
    cord_source
        Where its cord mask came from, in words.
    notes
        Remarks for the table of sequences.
    """

    name: str
    prepared: Volume
    coverage: BoolArray
    description: str = ""
    natives: tuple[NativeImage, ...] = ()
    unaligned: Volume | None = None
    offset_mm: FloatArray | None = None
    measured: BoolArray | None = None
    contrasts: Mapping[int, float] = field(default_factory=lambda: NOTHING)
    examined_mm: float = float("nan")
    extrapolated_share: float = 0.0
    cord_source: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentSequence:
    """A sequence of the recipe that the session lacks.

    Attributes
    ----------
    name, description
        Key in the recipe, and one line for people.
    reason
        Why it is absent, such as ``no file matches``.
    handling
        What was done about it, such as ``imputed: mean of the features of T2Sag and STIR``.
    """

    name: str
    description: str = ""
    reason: str = "no file of the session matches"
    handling: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Something a reader must know before trusting the numbers.

    Attributes
    ----------
    severity
        ``serious`` (do not use without a look), ``caution`` or ``note``.
    title
        A few words, such as ``Cord cut at the edge of the field of view``.
    text
        What was found, where, and what it means, in sentences.
    remedy
        What can be done about it; may be empty.
    """

    severity: Severity
    title: str
    text: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the group level says of a participant with several sessions.

    Attributes
    ----------
    label
        The session of the page.
    sessions
        Label, number of lesions and their volume in mm³ of each session that counts, in time; None where
        not known.
    pairs
        Rows of ``group/session_changes.tsv``.
    lesions
        Rows of ``group/lesion_changes.tsv`` that concern the session of the page.
    """

    label: str
    sessions: tuple[tuple[str, float | None, float | None], ...]
    pairs: tuple[Line, ...]
    lesions: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionReport:
    """Everything that the page of one session shows.

    Attributes
    ----------
    label, dataset, date
        ``sub-X[_ses-Y]``, name of the dataset, and the date of processing as a string.
    sequences
        Those used, in the recipe's order; the anchor among them.
    absent
        Those of the recipe that the session lacks.
    left_out
        (file, reason) of images that were found and not used.
    anchor
        Name of the sequence that gave the grid; empty if there is none.
    spacing_mm
        Voxel size of the reference grid, mm.
    labels : (ni, nj, K) integer or None
        Lesion instances (1, 2, …; 0 is background) on the reference grid.
    probability : (ni, nj, K) float32 or None
        Lesion probability on the reference grid.
    cord : (ni, nj, K) bool or None
        Cord on the reference grid.
    levels
        (name, bottom, top) of vertebral levels in slice indices of the reference grid, [bottom, top); a
        border may lie between slices, or beyond the grid.
    origin
        From where lengths along the cord are counted, in words; empty if that is no anatomical place.
    lesions
        One mapping per lesion: the rows of the lesion table.
    measures
        Measures of the session; see ``report.tables`` for the names that are understood.
    outliers
        What the last run of the group level said stands out; None where it has not judged the session.
    history
        What it found over time; None where it has not compared the session with another one.
    flags
        Warnings; the page sorts them by severity.
    beyond
        The sequence that shows most beyond the ends of the cord masks; None where that is little.
    model, card
        Name of the model and the first line of its card.
    threshold
        Probability from which a voxel counts as lesion.
    seeded
        Which probability a lesion reaches somewhere, in words; empty without such a rule.
    correction
        That a reader corrected the lesions, in a sentence; empty where nobody did.
    normalize
        How the prepared images were normalised, as in :class:`~bids_scseg.recipe.model.Recipe`: the unit of
        contrasts.
    device, versions, checksums, seeds, settings, seconds
        Provenance; ``seconds`` per step.
    methods, references
        Methods text (paragraphs separated by blank lines) and its citations.
    links
        (text, path relative to the page) of output files.
    """

    label: str
    sequences: tuple[SequenceView, ...]
    dataset: str = ""
    date: str = ""
    absent: tuple[AbsentSequence, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    anchor: str = ""
    spacing_mm: float = 0.5
    labels: Labels | None = None
    probability: Volume | None = None
    cord: BoolArray | None = None
    levels: tuple[tuple[str, float, float], ...] = ()
    origin: str = ""
    lesions: tuple[Row, ...] = ()
    measures: Row = field(default_factory=lambda: NOTHING)
    outliers: tuple[str, ...] | None = None
    history: History | None = None
    flags: tuple[Flag, ...] = ()
    beyond: Beyond | None = None
    model: str = ""
    card: str = ""
    threshold: float = float("nan")
    seeded: str = ""
    correction: str = ""
    normalize: Literal["coverage", "cord", "cord-ratio"] = "coverage"
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    checksums: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    seeds: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    settings: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    seconds: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    methods: str = ""
    references: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
