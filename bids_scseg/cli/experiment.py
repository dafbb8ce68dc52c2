"""``scseg experiment``: train and compare arms, and report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_scseg.cli.app import stoppable
from bids_scseg.cli.parser import _whole
from bids_scseg.errors import SessionError
from bids_scseg.options import available_cpus

if TYPE_CHECKING:
    from bids_scseg.training.experiment import Run
    from bids_scseg.training.folder import Place
    from bids_scseg.training.runs import Ending


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "experiment",
        help="train several arms from several seeds, judge them alike, and report",
        description="The same command goes on after an interruption; finished runs are kept.",
    )
    parser.add_argument("config", type=Path, help="experiment (TOML)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared cases to train on")
    parser.add_argument(
        "--test", type=Path, metavar="DIR",
        help="prepared cases to test on (default: a share of the subjects of --data, kept out of training)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument(
        "--arms", nargs="+", default=[], metavar="ARM", help="these arms (default: all that are not optional)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="ARM:SEED",
        help="these runs alone, as for the tasks of a cluster",
    )
    parser.add_argument(
        "--other-people",
        "--other_people",
        action="store_true",
        help="the subjects of --test are other people than those of --data, even where labels are alike",
    )
    parser.add_argument("--jobs", type=_whole, default=1, metavar="N", help="runs at once (default 1)")
    parser.add_argument(
        "--report-only",
        "--report_only",
        action="store_true",
        help="write tables and report of what is finished",
    )
    parser.set_defaults(run=run_experiment)


def run_experiment(arguments: argparse.Namespace) -> None:
    """Do the runs asked for, then write tables and report of all that are finished.

    Raises
    ------
    SessionError
        At the end, if runs failed (exit code 1); the others are done.
    """
    from bids_scseg.training.experiment import load_experiment, plan_runs
    from bids_scseg.training.findings import write_findings
    from bids_scseg.training.folder import Place, open_experiment
    from bids_scseg.training.runs import run_all

    config = load_experiment(arguments.config)
    jobs = max(1, arguments.jobs)
    place = Place(
        config=config,
        data=arguments.data,
        test=arguments.test,
        out=arguments.out,
        threads=max(1, available_cpus() // jobs) if jobs > 1 else 0,
        other_people=arguments.other_people,
    )
    runs = plan_runs(config, arms=arguments.arms, only=arguments.only)
    endings: list[Ending] = []
    going_on = f"stopped; the same command goes on from the last checkpoint in {place.out}"
    with stoppable(lambda: going_on):
        if arguments.report_only:
            open_experiment(place)
        else:
            endings = run_all(
                place, runs, jobs=jobs, progress=_Lines(len(runs)).end, begun=lambda: _tell_sequences(place)
            )
        summaries = write_findings(place, wanted=_wanted(place, runs, arguments))
    for item in summaries:
        f1, dice = (item.metrics.get(name) for name in ("f1", "dice"))
        shown = [f"{word} {found.mean:.3f}" for word, found in (("F1", f1), ("Dice", dice)) if found]
        sys.stderr.write(f"given {item.setting}: {item.arm}: {', '.join(shown) or 'undefined'}\n")
    sys.stderr.write(f"report: {place.out / 'report.html'}\n")
    failed = [ending for ending in endings if ending.error is not None]
    if failed:
        raise SessionError(
            f"{len(failed)} of {len(endings)} runs failed ({', '.join(e.run.label for e in failed)})",
            file=place.out,
            remedy="see the lines above; the same command tries them again",
        )


def _tell_sequences(place: Place) -> None:
    """Say which sequences the configuration takes from training sessions; nothing where it takes none."""
    from bids_scseg.training.findings import left_words
    from bids_scseg.training.folder import sequences_left

    words = left_words(sequences_left(place))
    if words:
        sys.stderr.write(
            f"[availability] of {place.config.name} takes sequences from training sessions; left: {words}\n"
        )


def _wanted(place: Place, runs: tuple[Run, ...], arguments: argparse.Namespace) -> tuple[Run, ...]:
    """Runs of which the report says that they are missing: with --only, all of the experiment's."""
    from bids_scseg.training.experiment import plan_runs

    return plan_runs(place.config, arms=arguments.arms) if arguments.only else runs


class _Lines:
    """One line for each run as it ends."""

    def __init__(self, total: int) -> None:
        self._total, self._ended = total, 0

    def end(self, ending: Ending) -> None:
        """A run ended."""
        self._ended += 1
        sys.stderr.write(f"[{self._ended}/{self._total}] {' '.join(ending.words.split())}\n")
        sys.stderr.flush()
