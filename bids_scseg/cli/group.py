"""The group level on the command line."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from bids_scseg import __version__, files
from bids_scseg.bids.checksums import record_group
from bids_scseg.cli.checks import check_writable
from bids_scseg.errors import MissingInputError
from bids_scseg.options import RunOptions
from bids_scseg.workflows.group import write_group

LOCK = "logs/.group.lock"
LOCK_WAIT_S = 5.0  # in which what is left of a killed run ends and lets go, as between sessions
WRITTEN = ("", "group", "phenotype", "logs")


def run_group(options: RunOptions) -> int:
    """Run the group level; the exit code. The raw dataset is not needed.

    Raises
    ------
    MissingInputError
        If a folder is not there, or nothing was processed.
    OutputError
        If the output folder cannot be written.
    BusyError
        If another run of the group level works on it, and goes on doing so.
    """
    out = options.output_dir
    if not out.is_dir():
        raise MissingInputError(
            "no such folder", file=out, expected="the output folder of the participant level"
        )
    if options.bids_dir is not None and not options.bids_dir.is_dir():
        raise MissingInputError(
            "no such folder", file=options.bids_dir, expected="the raw dataset",
            remedy="put '-' in its place: the group level can do without, but knows no covariates then",
        )  # fmt: skip
    for name in WRITTEN:
        check_writable(out / name)
    facts = {"version": __version__, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if options.bids_dir is not None:
        facts["dataset"] = options.bids_dir.resolve().name
    what = "another run of the group level is working here"
    with files.lock(out / LOCK, wait_s=LOCK_WAIT_S, what=what):
        cohort = write_group(
            out,
            dataset=options.bids_dir,
            facts=facts,
            workers=options.workers,
            follow_links=options.follow_links,
        )
        record_group(out)
    done = int((cohort.sessions["state"] == "done").sum())
    sys.stderr.write(
        f"{done} sessions, {len(cohort.lesions)} lesions, {len(cohort.failed)} sessions without results; "
        f"see {out / 'group.html'}\n"
    )
    for flag in cohort.flags:
        sys.stderr.write(f"warning: {flag}\n")
    return 0
