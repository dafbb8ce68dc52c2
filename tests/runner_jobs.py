"""Stand-ins for sessions, importable by worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from bids_scseg.workflows.job import SessionOutcome


def play(job, *, progress):
    """Behave as the session's label says."""
    subject = job.plan.subject
    progress("begin")
    if subject.startswith("killed"):
        time.sleep(0.3)  # a step that has just begun may not have been told yet
        os.kill(os.getpid(), signal.SIGKILL)
    if subject == "onceended":
        while not (Path(job.started) / "told").exists():
            time.sleep(0.05)
    if subject.startswith("once"):
        mark = Path(job.started) / subject
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if subject.startswith("hang"):
        time.sleep(600)
    if subject.startswith("slow"):
        time.sleep(0.5)
    if subject.startswith("tool"):
        # a program that a worker started goes on when the worker alone is killed
        program = subprocess.Popen(["sleep", "600"])
        (Path(job.started) / f"{subject}.pid").write_text(str(program.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if subject.startswith("full"):
        return SessionOutcome(label=job.plan.label, state="failed", ends_run=True)
    if subject.startswith("device"):
        return SessionOutcome(label=job.plan.label, state="done", device=f"{job.socket} {job.device}")
    state = "failed" if subject.startswith("bad") else "done"
    return SessionOutcome(label=job.plan.label, state=state)


def run_for_ever(folder):
    """A whole run whose sessions hang; each says where it is by a file."""
    from unit_jobs import job

    from bids_scseg.workflows.runner import run_sessions

    jobs = [job(subject, folder) for subject in ("waits1", "waits2")]
    list(
        run_sessions(jobs, workers=3, stop_on_first_crash=False, progress=lambda *_: None, run=wait_for_ever)
    )


def wait_for_ever(job, *, progress):
    """Start a program, tell both process numbers, and hang."""
    program = subprocess.Popen(["sleep", "600"])
    (Path(job.started) / f"{job.plan.subject}.pid").write_text(f"{os.getpid()} {program.pid}")
    time.sleep(600)
