"""``scseg prepare``: a group's own labelled data to prepared training cases."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_scseg.cli.parser import _both, _derivative, _label, _whole
from bids_scseg.errors import MissingInputError, OutputError, SessionError
from bids_scseg.options import CORD_METHODS, available_cpus

if TYPE_CHECKING:
    from bids_scseg.training.prepare import PreparedRow
    from bids_scseg.training.session import CordTool, Preparation

DEFAULT_RECIPE = "cord-lesion"
ALONE = ("sct", "builtin")  # values of --cord by which masks do not count


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "prepare", help="turn your labelled BIDS data into training cases, as the app would prepare them"
    )
    parser.add_argument("bids_dir", type=Path, help="root of the raw BIDS dataset")
    parser.add_argument("prepared", type=Path, help="folder for the cases; finished ones are kept")
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="DIR",
        help="derivatives folders with lesion masks or instance maps (from BIDS_DIR, or from here)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, metavar="NAME|FILE", help=f"default {DEFAULT_RECIPE}"
    )
    _add_selection(parser)
    parser.add_argument(
        "-d", "--derivatives", nargs="+", action="extend", type=_derivative, default=[], metavar="NAME=PATH",
        help="folders with cord masks",
    )  # fmt: skip
    parser.add_argument(
        "--cord", default="auto", metavar="auto|sct|builtin|NAME",
        help="cord masks: those in the labels and derivatives folders, else SCT if it is installed, else the "
        "built-in network (auto); SCT alone (sct); the network alone (builtin); those of one derivatives "
        "folder, else the network (NAME)",
    )  # fmt: skip
    parser.add_argument(
        *_both("lesion-desc"),
        dest="lesion_desc",
        metavar="X",
        help="only lesion maps with desc-X in their name",
    )
    parser.add_argument(
        "--jitter", type=_millimetres, default=0.0, metavar="MM",
        help="displace centerlines smoothly by this standard deviation, as a finder's errors do (default 0)",
    )  # fmt: skip
    parser.add_argument(
        *_both("no-registration"), dest="register", action="store_false",
        help="keep slabs where their headers say (the app registers them)",
    )  # fmt: skip
    parser.add_argument(*_both("random-seed"), dest="seed", type=_whole, default=0, metavar="N")
    parser.add_argument("--nprocs", type=_whole, default=1, metavar="N", help="sessions at once (default 1)")
    parser.set_defaults(run=run_prepare)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    for name, prefix in (("participant-label", "sub-"), ("session-label", "ses-"),
                         ("exclude-participant-label", "sub-")):  # fmt: skip
        parser.add_argument(
            *_both(name), dest=name.replace("-", "_"), nargs="+", type=_label(prefix), default=[],
            metavar="LABEL",
        )  # fmt: skip
    parser.add_argument(
        *_both("bids-filter-file"), dest="filter_file", type=Path, metavar="FILE",
        help="JSON: for a sequence, the entities that its files must have",
    )  # fmt: skip
    parser.add_argument(
        *_both("skip-bids-validation"), dest="skip_bids_validation", action="store_true",
        help="go on although dataset_description.json is missing or broken",
    )  # fmt: skip
    parser.add_argument(
        *_both("follow-links"), dest="follow_links", action="store_true",
        help="use images that are links to places outside of the dataset",
    )  # fmt: skip


def _millimetres(text: str) -> float:
    value = float(text)
    if not 0 <= value < 5:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 5 mm")
    return value


def run_prepare(arguments: argparse.Namespace) -> None:
    """Prepare all sessions asked for.

    Raises
    ------
    MissingInputError
        If no session has a lesion map; nothing is written then.
    SessionError
        At the end, if some sessions have no case (exit code 1); the others are done.
    """
    from bids_scseg.bids.query import find_studies
    from bids_scseg.bids.references import strange_labels
    from bids_scseg.training.prepare import TABLE, check_labels, prepare_sessions

    setting = preparation(arguments)
    studies = find_studies(
        arguments.bids_dir,
        participants=arguments.participant_label,
        sessions=arguments.session_label,
        exclude=arguments.exclude_participant_label,
        validate_names=not arguments.skip_bids_validation,
        follow_links=arguments.follow_links,
    )
    some = arguments.participant_label or arguments.session_label or arguments.exclude_participant_label
    strangers = () if some else strange_labels(studies, setting.labels)
    check_labels(studies, setting, strangers=strangers)
    with _Bar(len(studies)) as bar:
        rows = prepare_sessions(studies, setting, workers=max(1, arguments.nprocs), progress=bar.end)
    states = Counter(row.state for row in rows)
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lesions = sum(row.lesions for row in rows)
    sys.stderr.write(f"{len(rows)} sessions: {words}; {lesions} lesions; table in {setting.out / TABLE}\n")
    for text in strangers:
        sys.stderr.write(f"{text}\n")
    left = [row for row in rows if not row.ok]
    if left:
        earlier = sum(row.earlier for row in left)
        raise SessionError(
            f"{len(left)} of {len(rows)} sessions have no case"
            + f" of this run ({earlier} of them an earlier one, which was kept)" * bool(earlier),
            file=setting.out / TABLE,
            remedy="see there why and what to do; run the same command again for these sessions alone",
        )


def preparation(arguments: argparse.Namespace) -> Preparation:
    """What the command line asks for."""
    from bids_scseg.bids.filters import read_filters
    from bids_scseg.cli.participant import CORD_FINDER, check_cord
    from bids_scseg.inference.bundle import load_bundle
    from bids_scseg.interfaces.sct import cord_source
    from bids_scseg.recipe.load import load_recipe
    from bids_scseg.training.session import Preparation

    recipe = load_recipe(arguments.recipe)
    folders = dict(arguments.derivatives)
    for folder in folders.values():
        _check_folder(folder, "--derivatives")
    check_cord(arguments.cord, folders)
    method = cord_source(arguments.cord) if recipe.frame == "centerline" else ""
    named = None if arguments.cord in CORD_METHODS else folders[arguments.cord]
    threads = max(1, available_cpus() // max(1, arguments.nprocs))
    _check_output(arguments.prepared, arguments.bids_dir)
    return Preparation(
        out=arguments.prepared,
        labels=tuple(_labels(path, arguments.bids_dir) for path in arguments.labels),
        recipe=recipe,
        derivatives=tuple(folders.values()) if named is None else (named,),
        masks_of_labels=named is None,
        filters=read_filters(arguments.filter_file, recipe) if arguments.filter_file else None,
        finder=str(load_bundle(CORD_FINDER).path) if method == "builtin" else "",
        tool=_toolbox(threads) if method == "sct" else None,
        use_masks=arguments.cord not in ALONE,
        desc=None if arguments.lesion_desc is None else arguments.lesion_desc.removeprefix("desc-"),
        jitter_mm=arguments.jitter,
        register=arguments.register,
        seed=arguments.seed,
        threads=threads,
    )


def _toolbox(threads: int) -> CordTool:
    """The Spinal Cord Toolbox, called as the participant level calls it."""
    from bids_scseg.interfaces.sct import CORD_TASK, sct_sha256, segment_cord
    from bids_scseg.training.session import CordTool

    segment = partial(segment_cord, threads=threads)
    return CordTool(origin="sct", sha256=sct_sha256(CORD_TASK), segment=segment)


def _labels(path: Path, dataset: Path) -> Path:
    """A labels folder: as named or, as in ``derivatives/labels``, within the dataset."""
    inside = dataset / path
    return _check_folder(path if path.is_dir() or not inside.is_dir() else inside, "--labels")


def _check_folder(path: Path, option: str) -> Path:
    if not path.is_dir():
        raise MissingInputError(
            "no such folder",
            file=path,
            expected="a derivatives folder with sub-*",
            remedy=f"correct {option}",
        )
    return path


def _check_output(out: Path, dataset: Path) -> None:
    if out.resolve() == dataset.resolve() or (out / "dataset_description.json").is_file():
        raise OutputError("is a BIDS dataset", file=out, remedy="name another folder for the cases")


class _Bar:
    """Progress: a line for each session as it ends and, on a terminal, a bar."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc="sessions", disable=not self._terminal, dynamic_ncols=True)
        self._total, self._ended = total, 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def end(self, row: PreparedRow) -> None:
        """A session ended."""
        self._ended += 1
        line = f"[{self._ended}/{self._total}] {describe(row)}"
        if self._terminal:
            self._bar.write(line, file=sys.stderr)
            self._bar.update(1)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def describe(row: PreparedRow) -> str:
    """One line about how a session ended."""
    if row.ok:
        count = f"{row.lesions} lesion{'s' * (row.lesions != 1)}, {row.volume_mm3:g} mm³"
        many = len(row.warnings)
        told = f", {many} warning{'s' * (many != 1)}" if many else ""
        return f"{row.session}: {row.state}, {row.sequences.replace('+', ' ')}, {count}{told}"
    words = f"{row.session}: {row.state}: {row.cause}" + (f"; what to do: {row.remedy}" if row.remedy else "")
    return " ".join(words.split())
