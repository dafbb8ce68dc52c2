"""What the wheel holds, and that it works where the repository is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_graphs_recipes_models_and_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "bids_scseg/workflows/session.py",
        "bids_scseg/recipe/data/cord-lesion.json",
        "bids_scseg/training/data/own.toml",
        "bids_scseg/models/cord-lesion/weights.safetensors",
        "bids_scseg/models/cord-finder/card.md",
        "bids_scseg/report/templates/session.html",
        "bids_scseg/report/assets/viewer.js",
        "bids_scseg/report/assets/group/core.js",
    ):
        assert wanted in names
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"bids_scseg"}  # no global package "workflows" or "tests"


@pytest.mark.slow
def test_the_installed_wheel_runs_without_the_repository(wheel, tmp_path):
    """Unpacked beside nothing else; the libraries come from this environment."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import bids_scseg.workflows.session, bids_scseg\n"
        "from bids_scseg.inference.bundle import packaged_models\n"
        "print(bids_scseg.__file__, sorted(packaged_models()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site), "NO_ET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "cord-lesion" in done.stdout


def test_the_graphs_cannot_be_imported_under_another_name():
    done = subprocess.run(
        [sys.executable, "-c", "import workflows"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "import bids_scseg.workflows" in done.stderr
