"""The toolbox: ``scseg demo``, ``scseg train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bids_scseg.cli import evaluate, experiment, implant, model, prepare, slurm, synth, train, verify
from bids_scseg.cli.app import guarded, prepare_process, stop_on_sigterm
from bids_scseg.cli.parser import Parser
from bids_scseg.errors import OutputError, UsageError
from bids_scseg.options import available_cpus


def build_tools_parser() -> Parser:
    """The parser of ``scseg``; each command carries the function that runs it."""
    parser = Parser(prog="scseg", description="Tools around the BIDS App bids_scseg.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="write a synthetic BIDS dataset of spinal cord MRI, with truth")
    demo.add_argument("output", type=Path, help="folder to write; must be empty or absent")
    demo.add_argument("--subjects", type=int, default=3, metavar="N", help="number of subjects (default 3)")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same bytes")
    demo.set_defaults(run=run_demo)
    train.add_parser(commands)
    model.add_parser(commands)
    synth.add_parser(commands)
    implant.add_parser(commands)
    prepare.add_parser(commands)
    experiment.add_parser(commands)
    evaluate.add_parser(commands)
    slurm.add_parser(commands)
    verify.add_parser(commands)
    return parser


def run_demo(arguments: argparse.Namespace) -> None:
    """Write the demo dataset."""
    from tqdm import tqdm

    from bids_scseg.synth.dataset import write_demo

    out: Path = arguments.output
    if arguments.subjects < 1:
        raise UsageError(f"{arguments.subjects} subjects", expected="at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("is there already and not an empty folder", file=out, remedy="name another folder")
    workers = min(available_cpus(), arguments.subjects)
    with tqdm(total=arguments.subjects, desc="subjects", disable=not sys.stderr.isatty()) as bar:
        write_demo(
            out, subjects=arguments.subjects, seed=arguments.seed, workers=workers, progress=bar.update
        )
    count = arguments.subjects
    sys.stderr.write(f"{count} synthetic {'subject' if count == 1 else 'subjects'} in {out}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one tool; the returned number is the exit code."""
    stop_on_sigterm()
    prepare_process()
    return guarded("scseg", lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    arguments = build_tools_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
