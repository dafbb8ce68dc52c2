"""Stand-ins for sessions, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bids_scseg.workflows.job import SessionOutcome


def play(job, *, progress):
    """Behave as the session's label says."""
    subject = job.plan.subject
    progress("begin")
    if subject.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if subject.startswith("once"):
        mark = Path(job.started) / subject
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if subject.startswith("hang"):
        time.sleep(600)
    if subject.startswith("slow"):
        time.sleep(0.5)
    state = "failed" if subject.startswith("bad") else "done"
    return SessionOutcome(label=job.plan.label, state=state)
