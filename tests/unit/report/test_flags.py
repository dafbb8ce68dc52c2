"""Warnings that follow from masks and coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

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


def test_serious_first():
    flags = [
        Flag(severity=severity, title=severity) for severity in ("note", "serious", "caution", "serious")
    ]
    assert [flag.severity for flag in by_severity(flags)] == ["serious", "serious", "caution", "note"]
