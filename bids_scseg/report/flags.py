"""What a reader must know before trusting the numbers, found from what a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bids_scseg.report.display import canonical
from bids_scseg.report.records import Flag, NativeImage, Row, SequenceView
from bids_scseg.report.tables import as_number

EXTRAPOLATED_FROM = 0.15  # share of windows (ours)
LOW_COVERAGE_BELOW = 0.5  # of the cord found in the session (ours)
NOT_EXAMINED_FROM_MM = 5.0  # one thick slice (ours)
CUT_SLICES_FROM = 2  # slices whose mask touches the side of the image (ours: one may be a stray voxel)
SEVERITIES = ("serious", "caution", "note")


def derive_flags(views: Sequence[SequenceView], measures: Row) -> tuple[Flag, ...]:
    """Flags that follow from masks, coverage and extrapolation alone.

    Parameters
    ----------
    views
        The sequences used.
    measures
        Session measures; ``cord_length_mm`` and ``not_examined_mm`` are read where present.
    """
    found: list[Flag | None] = []
    for view in views:
        found += [_cut(view.name, image) for image in view.natives]
        found += [_extrapolated(view), _low_coverage(view, as_number(measures.get("cord_length_mm")))]
    found.append(_not_examined(as_number(measures.get("not_examined_mm"))))
    return by_severity(flag for flag in found if flag is not None)


def by_severity(flags: Iterable[Flag]) -> tuple[Flag, ...]:
    """Serious ones first, else in the order given."""
    return tuple(sorted(flags, key=lambda flag: SEVERITIES.index(flag.severity)))


def _cut(name: str, native: NativeImage) -> Flag | None:
    """The mask touches the left, right, front or back face; at the ends the cord simply goes on."""
    if native.cord is None or not native.cord.any():
        return None
    cord = canonical(native).cord
    if cord is None:
        return None
    faces = (cord[0], cord[-1], cord[:, 0], cord[:, -1])
    slices = int(np.any([face.any(axis=0) for face in faces], axis=0).sum())
    if slices < CUT_SLICES_FROM:
        return None
    return Flag(
        severity="serious",
        title=f"Cord cut at the edge of the field of view ({name})",
        text=f"In {slices} slices of {native.file} the cord mask touches the side of the image: "
        "part of the cord may lie outside it, and lesions there are neither seen nor counted.",
        remedy="Look at the axial slices below.",
    )


def _extrapolated(view: SequenceView) -> Flag | None:
    if view.extrapolated_share < EXTRAPOLATED_FROM:
        return None
    return Flag(
        severity="caution",
        title=f"Extrapolated centerline ({view.name})",
        text=f"In {view.extrapolated_share:.0%} of its slices the cord was not found in {view.name} itself; "
        "there its "
        "position follows the other sequences, or stays constant.",
        remedy="Check the dotted parts of its centerline.",
    )


def _low_coverage(view: SequenceView, cord_mm: float | None) -> Flag | None:
    examined = as_number(view.examined_mm)
    if cord_mm is None or examined is None or examined >= LOW_COVERAGE_BELOW * cord_mm:
        return None
    return Flag(
        severity="note",
        title=f"Low coverage ({view.name})",
        text=f"{view.name} covers {examined:.0f} mm of the {cord_mm:.0f} mm of cord; "
        "elsewhere lesions rest on the other sequences.",
    )


def _not_examined(length_mm: float | None) -> Flag | None:
    if length_mm is None or length_mm < NOT_EXAMINED_FROM_MM:
        return None
    return Flag(
        severity="caution",
        title="Cord not examined",
        text=(
            f"{length_mm:.0f} mm of the cord are covered by no sequence. Nothing is known about lesions "
            "there."
        ),
    )
