"""``scseg evaluate``: predicted masks against reference masks, of this program or of any other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bids_scseg.bids.split import SIDES
from bids_scseg.cli.parser import _both, _label, _whole
from bids_scseg.errors import UsageError

#: Names of the profiles, as in ``measure.profiles`` (a test compares), which would load numpy here.
PROFILE_NAMES = ("walsh2024", "anima", "neuropoly", "msms", "panoptica")
DEFAULT_NAME = "prediction"


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "evaluate",
        help="compare predicted lesion masks with reference masks: scores, intervals, tests, report",
    )
    parser.add_argument(
        "--pred", action="append", required=True, metavar="[NAME=]DIR",
        help="folder of predicted masks; several, each with a name, are compared",
    )  # fmt: skip
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="folder of reference masks")
    parser.add_argument(
        "--profile", choices=PROFILE_NAMES, default="walsh2024", help="rules of the lesion-wise numbers"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for tables, JSON and the report"
    )
    parser.add_argument(
        "--prob", action="append", default=[], metavar="[NAME=]DIR",
        help="folder of probability maps, where they are not beside the masks",
    )  # fmt: skip
    parser.add_argument("--baseline", metavar="NAME", help="prediction that the others are tested against")
    parser.add_argument(
        "--participants", type=Path, metavar="TSV", help="table of cohort columns (default: the dataset's)"
    )
    parser.add_argument(
        "--by", nargs="+", action="extend", default=[], metavar="COLUMN", help="cohort columns to split by"
    )
    parser.add_argument(
        "--space", metavar="SPACE",
        help="space of the reference masks: native, or space- and res- of their names (default: native)",
    )  # fmt: skip
    parser.add_argument(
        *_both("participant-label"), dest="participant_label", nargs="+", type=_label("sub-"), default=[],
        metavar="LABEL", help="only these participants, with or without sub-",
    )  # fmt: skip
    parser.add_argument(
        "--split", type=Path, metavar="FILE",
        help="only one side of a training: its split.json, or the folder that scseg train wrote",
    )  # fmt: skip
    parser.add_argument(
        "--side", choices=SIDES, help="of the split (default: test, or validation where there is no test)"
    )
    parser.add_argument("--truth-files", metavar="GLOB", help="use only these reference masks")
    parser.add_argument("--pred-files", metavar="GLOB", help="use only these predicted masks")
    parser.add_argument("--random-seed", type=_whole, default=0, metavar="N", help="of the bootstrap")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate and write the report."""
    from tqdm import tqdm

    from bids_scseg.bids.evaluate import Request, evaluate_folders
    from bids_scseg.report.evaluation import write_evaluation

    predictions = _named(arguments.pred, "--pred")
    request = Request(
        predictions=predictions,
        truth=arguments.truth,
        profile=arguments.profile,
        probabilities=_probabilities(arguments.prob, tuple(predictions)),
        participants=arguments.participants,
        by=tuple(dict.fromkeys(arguments.by)),
        baseline=arguments.baseline,
        space=arguments.space,
        truth_files=arguments.truth_files,
        pred_files=arguments.pred_files,
        subjects=tuple(arguments.participant_label),
        split=arguments.split,
        side=arguments.side,
        seed=arguments.random_seed,
    )
    with tqdm(desc="pairs", disable=not sys.stderr.isatty()) as bar:
        found = evaluate_folders(request, progress=bar.update)
    page = write_evaluation(found, arguments.out)
    for line in summary_lines(found):
        sys.stderr.write(f"{line}\n")
    sys.stderr.write(f"report: {page}\n")


def _named(texts: list[str], option: str) -> dict[str, Path]:
    """Names and folders; a single folder needs no name."""
    found: dict[str, Path] = {}
    for text in texts:
        name, mark, folder = text.partition("=")
        if not mark and len(texts) > 1:
            raise UsageError(f"{option} {text}", expected="NAME=DIR where there are several")
        if mark and not (name and folder):
            raise UsageError(f"{option} {text}", expected="NAME=DIR")
        key = name if mark else DEFAULT_NAME
        if key in found:
            raise UsageError(f"{option} names {key!r} twice", expected="one folder for each name")
        found[key] = Path(folder if mark else text)
    return found


def _probabilities(texts: list[str], predictions: tuple[str, ...]) -> dict[str, Path]:
    """A single folder without a name belongs to the only prediction."""
    found = _named(texts, "--prob")
    if tuple(found) == (DEFAULT_NAME,) and len(predictions) == 1:
        return {predictions[0]: found[DEFAULT_NAME]}
    return found


def summary_lines(found: Any) -> list[str]:
    """What to say at the end: whose masks these are; per prediction, scores and what was left out."""
    from bids_scseg.report.evaluation_subjects import lines as subject_lines
    from bids_scseg.report.evaluation_tables import pair_counts

    evaluation = found.evaluation
    lines = [f"profile {evaluation.profile}, {evaluation.space} space"]
    for method in evaluation.methods:
        rows = {
            row.metric: row.interval.mean
            for row in evaluation.summary
            if row.column == "all" and row.prediction == method.prediction
        }
        scores = ", ".join(f"{name} {rows[name]:.3f}" for name in ("f1", "dice", "sensitivity", "precision"))
        counts = {key: value for key, value in pair_counts(found, method.prediction).items() if value}
        words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counts.items())
        lines.append(f"{method.prediction}: {scores} ({words})")
    return [*lines, *subject_lines(found)]
