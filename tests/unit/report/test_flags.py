"""Warnings that follow from masks and coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_scseg.measure.extent import Beyond
from bids_scseg.preprocess import prepare
from bids_scseg.report.assemble import ALREADY_DERIVED
from bids_scseg.report.flags import by_severity, derive_flags
from bids_scseg.report.records import Flag


def quiet(make_report):
    view = make_report(sequences=1, slices=60, count=0).sequences[0]
    return replace(view, extrapolated_share=0.0, examined_mm=30.0)


def test_nothing_to_say(make_report):
    assert derive_flags((quiet(make_report),), {"cord_length_mm": 30.0, "not_examined_mm": 0.0}) == ()


def test_a_cord_that_leaves_the_image_sideways_is_serious(make_report):
    view = quiet(make_report)
    native = view.natives[0]
    cord = np.array(native.cord)
    cord[:, 30:40, 0] = True  # third storage axis runs along R: its first slice is a side face
    (flag,) = derive_flags((replace(view, natives=(replace(native, cord=cord),)),), {})
    assert flag.severity == "serious" and "10 slices" in flag.text and native.file in flag.text


def test_a_cord_that_runs_out_at_the_top_is_normal(make_report):
    view = quiet(make_report)
    assert view.natives[0].cord[:, -1].any()  # second storage axis runs along S
    assert derive_flags((view,), {}) == ()


def test_shares_and_lengths(make_report):
    view = replace(quiet(make_report), extrapolated_share=0.4, examined_mm=20.0)
    flags = derive_flags((view,), {"cord_length_mm": 100.0, "not_examined_mm": 12.0})
    assert [flag.title.split(" (")[0] for flag in flags] == [
        "Extrapolated centerline",
        "Cord not examined",
        "Low coverage",
    ]
    assert "40%" in flags[0].text and "12 mm" in flags[1].text and "20 mm of the 100 mm" in flags[2].text


@pytest.mark.parametrize("share", [0.14, 0.15, 0.3])
def test_fit_and_page_warn_of_extrapolation_from_the_same_share_on(make_report, share):
    fitted = prepare.SequenceReport(name="T2Sag", files=("a",), slabs=(), extrapolated_share=share)
    told = [line for line in prepare.report_sentences(fitted) if "borrowed" in line]
    assert len(told) == len(derive_flags((replace(quiet(make_report), extrapolated_share=share),), {}))
    assert bool(told) is (share >= 0.15)
    assert all(any(part in line for part in ALREADY_DERIVED) for line in told)  # not told twice


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fit_and_page_warn_of_cut_cords_from_the_same_number_of_slices_on(make_report, count):
    view = quiet(make_report)
    cord = np.array(view.natives[0].cord)
    cord[:, 30 : 30 + count, 0] = True
    native = replace(view.natives[0], cord=cord)
    cut, of = prepare.edge_slices(cord, native.grid)
    fitted = prepare.SequenceReport(
        name="T2Sag", files=("a",), slabs=(), edge_share=(cut / of,), edge_slices=(cut,)
    )
    told = [line for line in prepare.report_sentences(fitted) if "may be cut there" in line]
    assert cut == count
    assert len(told) == len(derive_flags((replace(view, natives=(native,)),), {})) == (count >= 2)
    assert all(any(part in line for part in ALREADY_DERIVED) for line in told)


def test_what_was_taken_for_roots_is_told_once_for_a_sequence(make_report):
    view = quiet(make_report)
    (native,) = view.natives
    cuts = [replace(native, file=f"slab{n}.nii.gz", cut_mm=mm) for n, mm in enumerate((9.9, 10.0, 61.4))]
    (flag,) = derive_flags((replace(view, natives=tuple(cuts)),), {})
    assert flag.severity == "caution" and "slab0" not in flag.text
    assert "10 mm in slab1.nii.gz; 61 mm in slab2.nii.gz" in flag.text
    assert derive_flags((replace(view, natives=tuple(cuts[:1])),), {}) == ()
    assert [flag.severity for flag in derive_flags((replace(view, natives=tuple(cuts[:2])),), {})] == ["note"]


def beyond(**more):
    facts = {"key": "T2Sag", "shown_mm": 240.0, "masked_mm": 37.0, "above_mm": 73.0, "below_mm": 130.0}
    return Beyond(**{**facts, "perhaps_no_cord": False, **more})


@pytest.mark.parametrize(
    ("source", "perhaps", "severity"),
    [
        ("given mask m.nii.gz", False, "serious"),
        ("built-in network; manual correction m.nii.gz", False, "serious"),
        ("built-in network", False, "caution"),
        ("given mask m.nii.gz", True, "note"),
    ],
)
def test_cord_masks_that_end_long_before_the_image_are_told(make_report, source, perhaps, severity):
    view = replace(quiet(make_report), cord_source=source)
    (flag,) = derive_flags((view,), {}, beyond=beyond(perhaps_no_cord=perhaps))
    assert flag.severity == severity
    assert "T2Sag shows 240 mm along S-I, the cord masks reach over 37 mm of it" in flag.text
    assert "73 mm above and 130 mm below were not segmented" in flag.text
    assert "extend the masks" in flag.remedy


def test_lesions_cut_at_the_end_of_the_masks_are_told(make_report):
    rows = [{"index": 1, "at_mask_end": True}, {"index": 2, "at_mask_end": False}, {"index": 3}]
    (flag,) = derive_flags((quiet(make_report),), {}, lesions=rows)
    assert flag.severity == "caution" and flag.text.startswith("Lesion 1 reaches the plane where")
    (flag,) = derive_flags((quiet(make_report),), {}, lesions=[rows[0], {"index": 3, "at_mask_end": True}])
    assert "Lesions 1, 3 reach the plane" in flag.text and "are cut there" in flag.text


def test_serious_first():
    flags = [
        Flag(severity=severity, title=severity) for severity in ("note", "serious", "caution", "serious")
    ]
    assert [flag.severity for flag in by_severity(flags)] == ["serious", "serious", "caution", "note"]
