"""What a reader must know before trusting the numbers, found from what a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bids_scseg.measure.extent import Beyond
from bids_scseg.preprocess.cordmask import edge_slices
from bids_scseg.preprocess.prepare import CUT_SLICES_FROM, EXTRAPOLATED_FROM
from bids_scseg.report.methods import BY_HAND, GIVEN_MASK
from bids_scseg.report.records import Flag, NativeImage, Row, SequenceView, Severity
from bids_scseg.report.tables import as_number

LOW_COVERAGE_BELOW = 0.5  # of the cord found in the session (ours)
NOT_EXAMINED_FROM_MM = 5.0  # one thick slice (ours)
ROOTS_FROM_MM, MUCH_CUT_MM = 10.0, 40.0  # less is not told; from two vertebrae on a caution (ours)
SEVERITIES = ("serious", "caution", "note")


def derive_flags(
    views: Sequence[SequenceView], measures: Row, *, lesions: Sequence[Row] = (), beyond: Beyond | None = None
) -> tuple[Flag, ...]:
    """Flags that follow from masks, coverage, extrapolation and what is cut off, alone.

    Parameters
    ----------
    views
        The sequences used.
    measures
        Session measures; ``cord_length_mm`` and ``not_examined_mm`` are read where present.
    lesions
        Rows of the lesion table; ``at_mask_end`` is read where present.
    beyond
        The sequence that shows most beyond the ends of the cord masks; None where that is little.
    """
    found: list[Flag | None] = []
    for view in views:
        found += [_cut(view.name, image) for image in view.natives]
        found.append(_roots(view))
        found += [_extrapolated(view), _low_coverage(view, as_number(measures.get("cord_length_mm")))]
    found.append(_not_examined(as_number(measures.get("not_examined_mm"))))
    found.append(_beyond(beyond, given=any(_by_people(view.cord_source) for view in views)))
    found.append(_cut_lesions(lesions))
    return by_severity(flag for flag in found if flag is not None)


def by_severity(flags: Iterable[Flag]) -> tuple[Flag, ...]:
    """Serious ones first, else in the order given."""
    return tuple(sorted(flags, key=lambda flag: SEVERITIES.index(flag.severity)))


def _cut(name: str, native: NativeImage) -> Flag | None:
    """The mask touches the left, right, front or back face; at the ends the cord simply goes on."""
    if native.cord is None or not native.cord.any():
        return None
    slices, _ = edge_slices(native.cord, native.grid)
    if slices < CUT_SLICES_FROM:
        return None
    return Flag(
        severity="serious",
        title=f"Cord cut at the edge of the field of view ({name})",
        text=f"In {slices} slices of {native.file} the cord mask touches the side of the image: "
        "part of the cord may lie outside it, and lesions there are neither seen nor counted.",
        remedy="Look at the axial slices below.",
    )


def _roots(view: SequenceView) -> Flag | None:
    """What was cut off below, in one flag for all images of a sequence."""
    cut = [image for image in view.natives if image.cut_mm >= ROOTS_FROM_MM]
    if not cut:
        return None
    told = "; ".join(f"{image.cut_mm:.0f} mm in {image.file}" for image in cut)
    return Flag(
        severity="caution" if max(image.cut_mm for image in cut) >= MUCH_CUT_MM else "note",
        title=f"Lower end of the found cord cut off ({view.name})",
        text=f"Taken for no cord, and cut off below: {told}. After a thin place the network is in doubt "
        "there, as it is about roots of the cauda equina, or the mask is far too large for a cord.",
        remedy="If the images show cord there, correct the mask.",
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


def _by_people(source: str) -> bool:
    """Whether somebody gave or corrected a mask; sources of several are joined by semicolons."""
    return any(part.strip().startswith((GIVEN_MASK, BY_HAND)) for part in source.split(";"))


def _beyond(beyond: Beyond | None, *, given: bool) -> Flag | None:
    if beyond is None:
        return None
    severity: Severity = "note" if beyond.perhaps_no_cord else "serious" if given else "caution"
    return Flag(
        severity=severity,
        title=f"Beyond the cord masks nothing was segmented ({beyond.key})",
        text=f"{beyond.sentence}. Whether there is cord is not known; lesions there are neither seen nor "
        "counted, and cord length and load are those of the masks.",
        remedy="If there is cord, extend the masks; head and what follows the conus need none.",
    )


def _cut_lesions(lesions: Sequence[Row]) -> Flag | None:
    numbers = [str(row.get("index")) for row in lesions if row.get("at_mask_end") is True]
    if not numbers:
        return None
    one = len(numbers) == 1
    return Flag(
        severity="caution",
        title="Lesion cut at the end of the cord masks",
        text=f"Lesion{'' if one else 's'} {', '.join(numbers)} reach{'es' if one else ''} the plane where "
        f"the cord masks end, and {'is' if one else 'are'} cut there: what goes on beyond is not counted.",
        remedy="If the images show more cord, extend the masks.",
    )
