"""Sessions without content, for tests of the scheduler."""

from __future__ import annotations

from pathlib import Path

from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.job import SessionJob


def job(subject: str, folder: object = ".", *, memory_gb: float = 0.0) -> SessionJob:
    """A session that has no usable image; `folder` travels as the date of the run."""
    plan = Plan(
        subject=subject, session=None, dataset="d", recipe="r", sequences=(), missing=("T2Sag",), anchor=None,
        left_out=(("sub-1/anat/x_MTR.nii.gz", "an MT image"),),
    )  # fmt: skip
    options = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant")
    return SessionJob(
        plan=plan, options=options, socket="", model_path="", model_sha256="", cord_method="", cord_path="",
        cord_sha256="", threshold=0.5, device="cpu", started=str(folder), memory_gb=memory_gb,
    )  # fmt: skip
