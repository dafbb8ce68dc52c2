"""Sessions whose lesions come from SCT's network, played by a stand-in; no inference process is started."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from integration.checks import call, page_text, status, unfinished
from integration.cohorts import PHANTOM, STAR, TWO_SLABS, add_session, describe, image_path, save
from integration.conftest import sessions_here
from phantoms import lesion_labels

from bids_scseg.cli import participant

STAND_IN = """#!{python}
import os, shutil, sys
from pathlib import Path
task, flag, image, out, name, *more = sys.argv[1:]
if os.environ.get("STAND_IN") == "exit1" and task == "lesion_ms":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
stem = Path(image).name.removesuffix(".nii.gz")
if task == "spinalcord":
    found = next(Path({labels!r}).rglob(stem + "_label-SC_seg.nii.gz"))
elif task == "lesion_ms":
    found = Path({maps!r}) / (stem + ".nii.gz")
else:
    sys.exit(2)
shutil.copyfile(found, name)
with open({calls!r}, "a") as log:
    log.write(f"{{task}} {{stem}} {{' '.join(more)}}\\n")
"""
# One lesion of radius 4 mm (268 mm³) in both slabs and the axial scan, and one of 3.5 mm (180 mm³) in the
# upper slab alone (the axial scan ends at 30 mm).
LESIONS = ((0.0, 0.0, 0.0, 4.0), (0.0, 0.0, 38.0, 3.5))
SAG, AX = 0.9, 0.3  # what SCT says of each: 0.6 where both cover, 0.9 where the sagittal slabs do alone
LABEL = "sub-01_ses-1"
DSEG = "sub-01_ses-1_acq-sag_seg-lesions_dseg"


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    """One session of three images, with what SCT says of them beside it."""
    folder = tmp_path_factory.mktemp("sct")
    root = describe(folder / "bids")
    phantom = replace(PHANTOM, lesions=LESIONS)
    add_session(root, LABEL, [*TWO_SLABS, STAR], phantom=phantom)
    for scan in (*TWO_SLABS, STAR):
        found = (lesion_labels(phantom, scan.grid) > 0) * np.float32(AX if scan is STAR else SAG)
        stem = image_path(root, LABEL, scan.rest).name
        save(found.astype(np.float32), scan.grid, folder / "maps" / stem)
    return root


@pytest.fixture(scope="module")
def sct(bids):
    """Puts the stand-in on the PATH, and forbids an inference process."""
    folder = bids.parent / "sct"
    program = folder / "bin" / "sct_deepseg"
    program.parent.mkdir(parents=True)
    labels, maps, calls = bids / "derivatives" / "labels", bids.parent / "maps", bids.parent / "calls"
    program.write_text(
        STAND_IN.format(python=sys.executable, labels=str(labels), maps=str(maps), calls=str(calls))
    )
    program.chmod(0o755)
    (folder / "spinalcordtoolbox").mkdir()
    (folder / "spinalcordtoolbox" / "version.txt").write_text("7.3\n")
    network = folder / "data" / "deepseg_models" / "model_seg_ms_lesion"
    network.mkdir(parents=True)
    (network / "source.json").write_text('{"model_urls": ["https://example.org/model.zip"]}')

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an inference process was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(participant, "InferencePool", refuse)
        patch.setattr(participant, "run_sessions", sessions_here)
        yield folder


def segment(bids: Path, out: Path, *more: object):
    return call(bids, out, "participant", "--model", "sct:lesion_ms", *more)


@pytest.fixture(scope="module")
def done(sct, bids):
    """The session, segmented; not to be changed."""
    out = bids.parent / "out"
    result = segment(bids, out)
    assert result.code == 0, result.err
    return out


def sidecar(out: Path, ending: str) -> dict[str, object]:
    return json.loads((out / "sub-01" / "ses-1" / "anat" / f"sub-01_ses-1_{ending}.json").read_text())


def test_lesions_are_found_numbered_and_measured(done):
    table = done / "sub-01" / "ses-1" / "anat" / f"{DSEG}.tsv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    assert len(rows) == 2
    upper, lower = rows  # from the top
    assert float(upper["mean_probability"]) == pytest.approx(SAG, abs=0.12)  # alone there, edges blur
    assert float(lower["mean_probability"]) == pytest.approx((SAG + AX) / 2, abs=0.08)
    # Linear interpolation blurs the edges: of what peaks at 0.6 little more than the core exceeds 0.5.
    assert 120 < float(upper["volume_mm3"]) < 230
    assert 80 < float(lower["volume_mm3"]) < 200
    assert not unfinished(done)


def test_every_image_was_asked_once(done, bids):
    lines = sorted((bids.parent / "calls").read_text().splitlines())
    lesions = [line for line in lines if line.startswith("lesion_ms")]
    assert len(lesions) == 3
    assert all(line.endswith("-soft-ms-lesion") for line in lesions)


def test_sidecars_say_who_and_what(done):
    probseg = sidecar(done, "acq-sag_label-lesion_probseg")
    assert "No probability" in probseg["Description"]
    assert "softmax" in probseg["Description"]
    for ending in ("acq-sag_label-lesion_probseg", "acq-sag_label-lesion_mask", "acq-sag_seg-lesions_dseg"):
        own, toolbox = sidecar(done, ending)["GeneratedBy"]
        assert own["Name"] == "bids_scseg"
        assert "sct:lesion_ms" in own["Description"]
        assert toolbox["Name"] == "Spinal Cord Toolbox"
        assert toolbox["Version"] == "7.3"
        assert "lesion_ms" in toolbox["Description"]


def test_summary_logs_and_report_say_so(done):
    summary = sidecar(done, "summary")
    assert summary["model"] == "sct:lesion_ms"
    assert summary["engine"]["release"] == "7.3"
    assert set(summary["engine"]["outputs"].values()) == {"soft"}
    log = json.loads((done / "logs" / f"{LABEL}.json").read_text())
    assert log["run"]["model"] == "sct:lesion_ms"
    assert log["run"]["libraries"]["Spinal Cord Toolbox"] == "7.3"
    assert log["device"] == "Spinal Cord Toolbox, CPU"
    methods = (done / "logs" / "methods.md").read_text()
    page = page_text(done / f"{LABEL}.html")
    for text in (methods, page):
        assert "late fusion" in text
        assert "lesion_ms of the Spinal Cord Toolbox 7.3" in text
        assert "fused value of at least 0.5" in text
        assert "no probability" in text.lower()
        assert "convolutional network with one encoder" not in text
        assert "imputed" not in text
    assert "Lesions by Spinal Cord Toolbox (sct:lesion_ms)" in page


def test_a_new_threshold_or_smallest_lesion_asks_sct_nothing(done, bids, sct):
    before = (bids.parent / "calls").read_text()
    result = segment(bids, done, "--threshold", "0.7")  # the lesion of 0.6 goes
    assert result.code == 0, result.err
    assert (bids.parent / "calls").read_text() == before
    assert sidecar(done, "summary")["lesion_count"] == 1
    assert segment(bids, done, "--min-volume", "5000").code == 0
    assert sidecar(done, "summary")["lesion_count"] == 0
    assert segment(bids, done).code == 0
    assert (bids.parent / "calls").read_text() == before
    assert sidecar(done, "summary")["lesion_count"] == 2


def test_reports_are_drawn_again(done, bids, sct):
    page = done / f"{LABEL}.html"
    before = page_text(page)
    page.unlink()
    result = call(bids, done, "participant", "--model", "sct:lesion_ms", "--reports-only")
    assert result.code == 0, result.err
    assert page_text(page) == before


def test_another_release_of_sct_is_another_model(done, bids, sct):
    version = sct / "spinalcordtoolbox" / "version.txt"
    version.write_text("7.4\n")
    try:
        result = call(bids, done, "participant", "--model", "sct:lesion_ms", "--reports-only")
        assert result.code == 1
        assert "not of the model sct:lesion_ms" in result.err
    finally:
        version.write_text("7.3\n")


def test_dry_run(bids, sct, tmp_path):
    result = segment(bids, tmp_path / "out", "--dry-run")
    assert result.code == 0
    assert "each image is segmented by itself" in result.out
    assert not (tmp_path / "out").exists()


def test_a_failure_of_sct_is_the_sessions(bids, sct, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "exit1")
    out = tmp_path / "out"
    assert segment(bids, out).code == 1
    row = status(out)[LABEL]
    assert (row["state"], row["step"]) == ("failed", "sct_lesions_01")
    assert "exit code 1: RuntimeError: it broke" in row["cause"]
    assert "--model cord-lesion" in row["remedy"]
    assert row["file"].endswith(".nii.gz")
    assert not (out / "sub-01").exists()


def test_refusals_before_anything_is_written(bids, sct, tmp_path):
    out = tmp_path / "out"
    unknown = call(bids, out, "participant", "--model", "sct:lesions")
    assert unknown.code == 64
    assert "expected sct:lesion_ms" in unknown.err
    network = sct / "data" / "deepseg_models" / "model_seg_ms_lesion"
    network.rename(network.with_name("model_other"))
    try:
        absent = segment(bids, out)
    finally:
        network.with_name("model_other").rename(network)
    assert absent.code == 127
    assert "sct_deepseg lesion_ms -install" in absent.err
    assert not out.exists()


def test_without_sct(bids, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = segment(bids, tmp_path / "out", "--cord", "builtin")
    assert result.code == 127
    assert "Spinal Cord Toolbox 7.3" in result.err
    assert not (tmp_path / "out").exists()
