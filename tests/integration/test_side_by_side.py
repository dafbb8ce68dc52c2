"""Whole runs at one time in one output folder, as job arrays and impatient people start them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from integration.checks import status, unfinished
from integration.cohorts import STAR, add_session, describe

pytestmark = pytest.mark.slow

PATIENCE_S = 900.0  # a busy machine is slow
SHARED = ("dataset_description.json", "descriptions.tsv", "README.md", ".bidsignore", "CITATION.md")


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    """Two subjects of one image each."""
    root = describe(tmp_path_factory.mktemp("two") / "bids")
    for label in ("sub-01", "sub-02"):
        add_session(root, label, [STAR])
    return root


def start(bids: Path, out: Path, model: Path, label: str) -> subprocess.Popen[str]:
    """The program, on one subject, in a process group of its own."""
    command = [sys.executable, "-m", "bids_scseg", str(bids), str(out), "participant", "--model", str(model)]
    command += ["-d", f"labels={bids / 'derivatives' / 'labels'}", "--cord", "builtin", "--device", "cpu"]
    command += ["--nprocs", "1", "--omp-nthreads", "1", "--participant-label", label]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def family(leader: int) -> list[int]:
    """All processes of a run: they share its session, whatever groups they lead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            if int(path.read_text().rsplit(")", 1)[1].split()[3]) == leader:
                found.append(int(path.parent.name))
    return found


def tell(run: subprocess.Popen[str], what: signal.Signals) -> None:
    """Send a signal to all processes of a run."""
    for pid in family(run.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def is_held(lock: Path) -> bool:
    """Whether somebody holds a lock file."""
    with suppress(FileNotFoundError), lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def checksums(out: Path) -> set[str]:
    """Paths in the list of all checksums."""
    lines = (out / "logs" / "sha256sums.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("  ", 1)[1] for line in lines}


def passes(out: Path) -> bool:
    """Whether everything in the folder is what was written."""
    command = [sys.executable, "-m", "bids_scseg.cli.tools", "verify", str(out), "--no-validator"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_two_runs_for_different_sessions_both_succeed(bids, model, tmp_path):
    """Started in one moment, in a folder that neither has seen; what they share holds both."""
    out = tmp_path / "out"
    runs = [start(bids, out, model, label) for label in ("01", "02")]
    errors = [run.communicate(timeout=PATIENCE_S)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert {label: row["state"] for label, row in status(out).items()} == {"sub-01": "done", "sub-02": "done"}
    json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    listed = checksums(out)
    assert {f"{label}/anat/{label}_summary.json" for label in ("sub-01", "sub-02")} <= listed
    assert {*SHARED, "sub-01.html", "sub-02.html"} <= listed
    verdict = json.loads((out / "logs" / "verification.json").read_text(encoding="utf-8"))
    assert (verdict["verdict"], verdict["sessions"]) == ("passed", 2)
    assert unfinished(out) == []
    assert passes(out)


def test_a_second_run_for_the_same_session_leaves_it_alone(bids, model, tmp_path):
    """The first is stopped in the middle, holding the session, so that the second surely meets it."""
    out = tmp_path / "out"
    first = start(bids, out, model, "02")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not is_held(out / "logs" / ".sub-02.lock"):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        tell(first, signal.SIGSTOP)
        second = start(bids, out, model, "02")
        error = second.communicate(timeout=PATIENCE_S)[1]
        assert second.returncode == 75, error
        assert "another run is working on sub-02" in error
        assert "Traceback" not in error
        assert not (out / "logs" / "sub-02.json").exists()  # the log of that session is the first run's
    finally:
        tell(first, signal.SIGCONT)
    error = first.communicate(timeout=PATIENCE_S)[1]
    assert first.returncode == 0, error
    assert status(out)["sub-02"]["state"] == "done"
    assert passes(out)
