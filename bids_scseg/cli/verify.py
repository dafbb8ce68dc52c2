"""``scseg verify``: is an output folder still what the run wrote?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bids_scseg.errors import DataError

SHOWN = 50  # problems; a folder that was moved may have thousands


def add_parser(commands: Any) -> None:
    """Add the command to those of ``scseg``."""
    parser = commands.add_parser(
        "verify", help="check an output folder: checksums, sources, lattices, BIDS validator"
    )
    parser.add_argument("output_dir", type=Path, help="output folder of the participant level")
    parser.add_argument(
        "--raw", type=Path, metavar="DIR", help="where the raw dataset is now, if it was moved"
    )
    parser.add_argument("--no-validator", action="store_true", help="leave the BIDS validator out")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=run_verify)


def run_verify(arguments: argparse.Namespace) -> None:
    """Verify an output folder; nothing is written to it.

    Raises
    ------
    DataError
        If anything is wrong (exit code 65).
    MissingInputError
        If it is no output folder.
    """
    from bids_scseg.bids.verify import RERUN
    from bids_scseg.workflows.verification import verify_output

    verdict = verify_output(
        arguments.output_dir.absolute(), raw=arguments.raw, validator=not arguments.no_validator
    )
    if arguments.json:
        sys.stdout.write(json.dumps(verdict.to_json(), indent=2) + "\n")
    else:
        lines = [f"wrong: {problem}" for problem in verdict.problems[:SHOWN]]
        sys.stdout.write("\n".join([*lines, str(verdict)]) + "\n")
    if not verdict.passed:
        raise DataError(
            f"{len(verdict.problems)} things are wrong",
            file=arguments.output_dir,
            expected="the files that the run wrote",
            remedy=RERUN,
        )
