"""The pipeline bundle for Nipoppy: its files agree with each other and with the command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bids_scseg import __version__
from bids_scseg.cli.parser import parse

BUNDLE = Path(__file__).resolve().parents[2] / "nipoppy"
VALUES = {
    "NIPOPPY_DPATH_BIDS": "/study/bids",
    "NIPOPPY_DPATH_PIPELINE_OUTPUT": "/study/derivatives/bids_scseg/output",
    "NIPOPPY_DPATH_PIPELINE_WORK": "/study/scratch/work",
    "NIPOPPY_PARTICIPANT_ID": "01",
    "NIPOPPY_SESSION_ID": "M00",
    "NIPOPPY_BIDS_PARTICIPANT_ID": "sub-01",
    "NIPOPPY_BIDS_SESSION_ID": "ses-M00",
}


def filled(name: str) -> str:
    """A file with Nipoppy's placeholders filled; an unknown one is an error."""
    text = (BUNDLE / name).read_text(encoding="utf-8")
    return re.sub(r"\[\[(\w+)\]\]", lambda match: VALUES[match[1]], text)


def test_every_file_that_is_named_is_there() -> None:
    config = json.loads((BUNDLE / "config.json").read_text())
    assert config["VERSION"] == __version__
    (step,) = config["STEPS"]
    files = {value for key, value in step.items() if key.endswith("_FILE")}
    assert files == {path.name for path in BUNDLE.iterdir()} - {"config.json"}
    assert (BUNDLE / "descriptor.json").resolve().name == "boutiques.json"


def test_the_invocation_is_one_that_boutiques_and_the_program_read(tmp_path: Path) -> None:
    program = shutil.which("bosh", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("bosh is not installed (pip install boutiques)")
    (tmp_path / "invocation.json").write_text(filled("invocation.json"))
    command = [
        program,
        "exec",
        "simulate",
        str(BUNDLE / "descriptor.json"),
        "-i",
        str(tmp_path / "invocation.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"; bids_scseg (.*)", done.stdout)
    assert match is not None, done.stdout
    options = parse(shlex.split(match[1]))
    assert (options.participants, options.sessions, options.nprocs) == (("01",), ("M00",), 1)
    assert options.output_dir == Path("/study/derivatives/bids_scseg/output")
    assert options.work == Path("/study/scratch/work")


def test_tracked_paths_are_of_one_session() -> None:
    tracker = json.loads(filled("tracker.json"))
    assert tracker["PARTICIPANT_SESSION_DIR"] == "sub-01/ses-M00"
    assert all("sub-01_ses-M00" in path for path in tracker["PATHS"])
