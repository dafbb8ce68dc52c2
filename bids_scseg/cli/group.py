"""The group level on the command line."""

from __future__ import annotations

import sys

from bids_scseg import __version__
from bids_scseg.errors import MissingInputError
from bids_scseg.options import RunOptions
from bids_scseg.workflows.group import write_group


def run_group(options: RunOptions) -> int:
    """Run the group level; the exit code. The raw dataset is not needed."""
    out = options.output_dir
    if not out.is_dir():
        raise MissingInputError(
            "no such folder", file=out, expected="the output folder of the participant level"
        )
    facts = {"version": __version__}
    if options.bids_dir is not None:
        facts["dataset"] = options.bids_dir.resolve().name
    cohort = write_group(out, facts=facts)
    done = int((cohort.sessions["state"] == "done").sum())
    sys.stderr.write(
        f"{done} sessions, {len(cohort.lesions)} lesions, {len(cohort.failed)} sessions without results; "
        f"see {out / 'group.html'}\n"
    )
    for flag in cohort.flags:
        sys.stderr.write(f"warning: {flag}\n")
    return 0
