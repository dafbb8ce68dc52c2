"""Stand-ins for runs of an experiment, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time

from bids_scseg.training.experiment import Run
from bids_scseg.training.folder import Place
from bids_scseg.training.runs import Ending


def play(place: Place, run: Run) -> Ending:
    """Kill the process in runs of ``extra``; finish others, a baseline only when tried once more."""
    if run.arm == "extra":
        while not (place.out / "begun").exists():  # never before the other run is open
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    if run.arm == "baseline" and not (place.out / "begun").exists():
        (place.out / "begun").touch()
        time.sleep(600)
    return Ending(run=run, words=f"{run.label}: done")
