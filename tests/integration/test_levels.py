"""Vertebral levels from a stand-in of the Spinal Cord Toolbox, through a whole session."""

from __future__ import annotations

import csv
import json
import os
import sys

import pytest
from integration.checks import page_text, status
from integration.cohorts import ONE_SLAB, add_session, describe

#: Plays ``sct_deepseg spine``: discs C2-C3, C3-C4, C4-C5 at +35, +18 and 0 mm, on the grid of the image.
STAND_IN = """#!{python}
import os, sys
import nibabel as nib, numpy as np
if os.environ.get("STAND_IN") == "fails":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
assert sys.argv[1:3] == ["spine", "-i"] and sys.argv[4] == "-o", sys.argv
image = nib.load(sys.argv[3])
discs = np.zeros(image.shape, np.uint8)
for value, height in ((3, 35.0), (4, 18.0), (5, 0.0)):
    index = np.linalg.inv(image.affine) @ [0, 0, height, 1]
    discs[tuple(np.clip(np.round(index[:3]).astype(int), 0, np.array(image.shape) - 1))] = value
nib.save(nib.Nifti1Image(discs, image.affine), sys.argv[5].replace(".nii.gz", "_totalspineseg_discs.nii.gz"))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = describe(tmp_path_factory.mktemp("levels") / "bids")
    add_session(root, "sub-01", [ONE_SLAB])
    return root


@pytest.fixture
def toolbox(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sct_deepseg").write_text(STAND_IN.format(python=sys.executable))
    (tools / "sct_deepseg").chmod(0o755)
    (tmp_path / "version.txt").write_text("7.3\n")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")


def summary(out):
    return json.loads((out / "sub-01" / "anat" / "sub-01_summary.json").read_text())


def lesions(out):
    (table,) = (out / "sub-01" / "anat").glob("sub-01_*seg-lesions_dseg.tsv")
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_levels_reach_tables_and_report(run, dataset, toolbox, tmp_path):
    out = tmp_path / "out"
    masks = f"labels={dataset / 'derivatives' / 'labels'}"
    assert run(dataset, out, "-d", masks).code == 0
    rows = lesions(out)
    assert rows
    assert {row["arc_origin"] for row in rows} == {"C2-C3 disc"}
    assert {row["arc_origin_anatomical"].lower() for row in rows} == {"true"}
    for row in rows:  # arc length counts downwards from C2-C3; C3 is 17 mm high
        if 1 < float(row["arc_length_mm"]) < 16:
            assert row["level"] == "C3"
        elif 18 < float(row["arc_length_mm"]) < 34:
            assert row["level"] == "C4"
    assert any(row["level"] in ("C3", "C4") for row in rows)
    toolbox = "Spinal Cord Toolbox 7.3 (sct_deepseg spine)"
    assert {row["levels_from"] for row in rows} == {summary(out)["levels_from"]} == {toolbox}
    assert f"Vertebral levels: {toolbox}." in page_text(out / "sub-01.html")
    assert "TotalSpineSeg" in page_text(out / "sub-01.html")
    assert "C2" in page_text(out / "sub-01.html")

    # Without them everything works by distance; only measuring and what follows runs again.
    assert run(dataset, out, "-d", masks, "--levels", "none").code == 0
    assert {row["level"] for row in lesions(out)} == {"n/a"}
    assert {row["levels_from"] for row in lesions(out)} == {"n/a"}
    assert "TotalSpineSeg" not in page_text(out / "sub-01.html")
    assert {row["arc_origin_anatomical"].lower() for row in lesions(out)} == {"false"}


def test_a_toolbox_that_fails_costs_the_levels_and_not_the_session(
    run, dataset, toolbox, tmp_path, monkeypatch
):
    monkeypatch.setenv("STAND_IN", "fails")
    out = tmp_path / "out"
    assert run(dataset, out, "-d", f"labels={dataset / 'derivatives' / 'labels'}").code == 0
    row = status(out)["sub-01"]
    assert row["state"] == "done"
    assert "no vertebral levels from SCT" in row["warnings"]
    assert "exit code 1: RuntimeError: it broke" in row["warnings"]
    assert "no vertebral levels from SCT" in summary(out)["flags"]

    # The warning goes with its cause.
    assert (
        run(dataset, out, "-d", f"labels={dataset / 'derivatives' / 'labels'}", "--levels", "none").code == 0
    )
    assert "no vertebral levels" not in status(out)["sub-01"]["warnings"]
