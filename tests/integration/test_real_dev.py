"""The program as it ships on real spinal cord scans: results, or an honest refusal, for every session."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import pytest
from integration.checks import foreign_addresses, page_text, status, unfinished, validator_issues

from bids_scseg.inference.bundle import packaged_models

pytestmark = pytest.mark.slow

SECONDS = 90.0  # of wall time per session after the first, on two free CPU cores
MEMORY_GB = 4.0


@pytest.fixture(scope="module")
def finished(real_dev, tmp_path_factory):
    if not {"cord-lesion", "cord-finder"} <= set(packaged_models()):
        pytest.skip("the packaged models are not here")
    out = tmp_path_factory.mktemp("real") / "out"
    command = [sys.executable, "-m", "bids_scseg", str(real_dev), str(out), "participant"]
    command += ["--cord", "builtin", "--clean-workdir", "--nprocs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return out, done


def test_every_session_ends_with_results_or_a_refusal(finished, real_dev):
    out, done = finished
    rows = status(out)
    subjects = {path.name for path in real_dev.glob("sub-*")}
    assert {label.split("_")[0] for label in rows} == subjects, done.stderr
    for label, row in rows.items():
        assert row["state"] in ("done", "refused"), f"{label}: {row}"
        page = out / f"{label}.html"
        assert foreign_addresses(page) == []
        folder = out.joinpath(*label.split("_"), "anat")
        if row["state"] == "refused":
            assert row["cause"] in page_text(page)
            assert row["remedy"] != "n/a"
            assert not folder.exists()
            continue
        masks = list(folder.glob(f"{label}_*label-lesion_mask.nii.gz"))
        assert masks
        assert all(nib.load(mask).ndim == 3 for mask in masks)
        assert list(folder.glob(f"{label}_*label-SC_*_mask.nii.gz"))
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if all(row["state"] == "done" for row in rows.values()) else 1)
    assert unfinished(out) == []


def test_magnetisation_transfer_is_refused_by_name(finished):
    out, _ = finished
    told = [row for row in status(out).values() if row["state"] == "refused"]
    for row in told:
        if "MTR" in row["cause"] or "MTS" in row["cause"]:
            assert "magnetisation transfer" in row["cause"] or "no sequence of this recipe" in row["cause"]


def test_outputs_are_valid_bids(finished):
    out, _ = finished
    assert [issue for issue in validator_issues(out) if issue.get("severity") == "error"] == []


def test_time_and_memory(finished):
    """Holds on an otherwise idle machine only, so it warns by failing where `make test-slow` is run."""
    out, _ = finished
    done = [row for row in status(out).values() if row["state"] == "done"]
    assert sorted(float(row["seconds"]) for row in done)[-2] <= SECONDS
    assert all(float(row["peak_memory_gb"]) <= MEMORY_GB for row in done)
