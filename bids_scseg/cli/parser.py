"""The argument parser of the BIDS App. Imports nothing heavy: ``--help`` must answer at once."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

from bids_scseg.errors import UnknownLevelError, UsageError
from bids_scseg.options import DEFAULT_MODEL, PLUGINS, Levels, RunOptions, read_config
from bids_scseg.workflows.plugin_args import plugin_words

LEVELS = ("participant", "group")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
UNITS_GB = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}

EPILOG = """\
exit codes: 0 done; 1 some sessions failed, the rest done; 16 invalid dataset; 17 unknown level;
18 the filters match nothing; 64 usage; 65 bad data; 66 no input; 73 cannot write; 75 try again;
127 missing tool. Research use only: the default model was never validated on patients."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours, with exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting with argparse's code 2."""
        if "{participant,group}" in message and "invalid choice" in message:
            raise UnknownLevelError(message, remedy="levels are: participant, group")
        raise UsageError(message, remedy=f"see {self.prog} --help")


def _label(prefix: str) -> Any:
    def strip(text: str) -> str:
        label = text.removeprefix(prefix)
        if not re.fullmatch(r"[A-Za-z0-9+]+", label):
            raise argparse.ArgumentTypeError(f"{text!r} is not a BIDS label (letters and digits)")
        return label

    return strip


def _memory(text: str) -> float:
    match = MEMORY.fullmatch(text.strip())
    if match is None or not match[2]:
        raise argparse.ArgumentTypeError(f"{text!r} needs a unit, such as 8GB or 8000MB")
    return float(match[1]) * UNITS_GB[match[2].upper()]


def _device(text: str) -> str:
    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N")
    return text


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _seed(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or between 0 and 1")
    return value


def _volume(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a volume in mm³")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value


def _derivative(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    return (name, Path(folder)) if separator else (Path(text).name, Path(text))


def build_parser() -> Parser:
    """The parser of ``bids_scseg``; options not given are absent, so a config file can fill them."""
    parser = Parser(
        prog="bids_scseg",
        description="Spinal cord MS lesion segmentation from every MR sequence that a session has.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "bids_dir", help="folder of the raw BIDS dataset ('-' at the group level: not needed)"
    )
    parser.add_argument("output_dir", type=Path, help="folder for the derivatives")
    parser.add_argument("analysis_level", choices=LEVELS, metavar="{participant,group}", help="what to run")
    add_run_options(parser)
    _add_modes(parser)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to process, how, and with which resources."""
    _add_selection(parser)
    _add_method(parser)
    _add_resources(parser)


def _both(name: str) -> tuple[str, ...]:
    hyphen, underscore = f"--{name}", f"--{name.replace('-', '_')}"
    return (hyphen,) if hyphen == underscore else (hyphen, underscore)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to process")
    subject, session = _label("sub-"), _label("ses-")
    group.add_argument(
        *_both("participant-label"), dest="participants", nargs="+", type=subject, metavar="LABEL",
        help="only these participants, with or without sub-",
    )  # fmt: skip
    group.add_argument(
        *_both("session-label"), *_both("session-id"), dest="sessions", nargs="+", type=session,
        metavar="LABEL",        help="only these sessions, with or without ses-",
    )  # fmt: skip
    group.add_argument(
        *_both("exclude-participant-label"), dest="exclude", nargs="+", type=subject, metavar="LABEL",
        help="all but these participants",
    )  # fmt: skip
    group.add_argument(
        *_both("bids-filter-file"), dest="filter_file", type=Path, metavar="FILE",
        help="JSON: for a sequence, the entities that its files must have",
    )  # fmt: skip
    group.add_argument(
        "--sequences", nargs="+", metavar="NAME", help="use only these sequences of the recipe"
    )
    group.add_argument(
        "-d", "--derivatives", nargs="+", action="extend", type=_derivative, metavar="NAME=PATH",
        help="folders with your own cord masks and disc or vertebra labels",
    )  # fmt: skip
    group.add_argument(
        *_both("skip-bids-validation"), dest="skip_bids_validation", action="store_true",
        help="go on although dataset_description.json is missing or broken",
    )  # fmt: skip
    group.add_argument(
        *_both("follow-links"), dest="follow_links", action="store_true",
        help="use images that are links to places outside of the dataset",
    )  # fmt: skip


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--model", metavar="NAME|PATH|sct:lesion_ms",
        help=f"model bundle, or the Spinal Cord Toolbox's lesion network (default {DEFAULT_MODEL})",
    )  # fmt: skip
    group.add_argument(
        "--cord", metavar="auto|sct|builtin|NAME",
        help="cord masks: Spinal Cord Toolbox, built-in network, or a derivatives folder (default auto: "
        "your masks where given, else SCT where installed, else built-in)",
    )  # fmt: skip
    group.add_argument(
        "--levels", choices=get_args(Levels), metavar="auto|labels|sct|none",
        help="vertebral levels: your disc or vertebra labels, Spinal Cord Toolbox, or none (default auto: "
        "your labels where given, else SCT where installed)",
    )  # fmt: skip
    group.add_argument(
        "--threshold", type=_probability, metavar="P", help="lesion probability (default: the model's)"
    )
    group.add_argument(
        *_both("seed-threshold"), dest="seed_threshold", type=_seed, metavar="P",
        help="drop lesions whose probability nowhere reaches this; 0: none (default: the model's)",
    )  # fmt: skip
    group.add_argument(
        *_both("min-volume"), dest="min_volume", type=_volume, metavar="MM3",
        help="drop lesions smaller than this, in mm³ (default: the model's)",
    )  # fmt: skip
    group.add_argument(
        "--geometry", type=Path, metavar="DERIVATIVES",
        help="results of an earlier run of this program, whose geometry is applied instead of fitting it",
    )  # fmt: skip
    group.add_argument(
        *_both("output-spaces"), dest="output_spaces", choices=("anchor", "all"),
        help="results on the anchor's grid, or on every sequence's too (default anchor)",
    )  # fmt: skip
    group.add_argument(*_both("random-seed"), dest="random_seed", type=_whole, metavar="N", help="default 0")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits whatever the number of cores; slower network",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument("-w", *_both("work-dir"), dest="work_dir", type=Path, metavar="DIR",
                       help="intermediate files (default OUTPUT_DIR/work)")  # fmt: skip
    group.add_argument(*_both("clean-workdir"), dest="clean_workdir", action="store_true",
                       help="remove a session's intermediate files once it is done")  # fmt: skip
    group.add_argument("--nprocs", type=_whole, metavar="N", help="sessions at once (default: CPUs)")
    group.add_argument(*_both("omp-nthreads"), dest="omp_nthreads", type=_whole, metavar="N",
                       help="threads of the network (default: CPUs)")  # fmt: skip
    group.add_argument("--mem", dest="mem_gb", type=_memory, metavar="SIZE",
                       help="memory limit with unit, such as 16GB (default: what is free)")  # fmt: skip
    group.add_argument("--device", type=_device, metavar="auto|cpu|cuda[:N]", help="default auto")


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument(*_both("dry-run"), dest="dry_run", action="store_true",
                       help="print which file serves which sequence, and stop")  # fmt: skip
    group.add_argument(*_both("json-plan"), dest="json_plan", type=Path, metavar="FILE",
                       help="with --dry-run: the plan as JSON ('-': on standard output)")  # fmt: skip
    group.add_argument(*_both("reports-only"), dest="reports_only", action="store_true",
                       help="redo the reports from existing results")  # fmt: skip
    group.add_argument(*_both("boilerplate-only"), dest="boilerplate_only", action="store_true",
                       help="print the methods text and stop")  # fmt: skip
    group.add_argument(*_both("stop-on-first-crash"), dest="stop_on_first_crash", action="store_true",
                       help="start no further session after a failure")  # fmt: skip
    group.add_argument("--plugin", choices=PLUGINS, metavar="NAME",
                       help=f"run a session's graph by a plugin of Nipype: {', '.join(PLUGINS)}")  # fmt: skip
    group.add_argument(*_both("plugin-args"), dest="plugin_args", nargs="+", metavar="KEY=VALUE|FILE",
                       help="its arguments: key=value, or a JSON file")  # fmt: skip
    group.add_argument(*_both("config-file"), dest="config_file", type=Path, metavar="TOML",
                       help="options from a file; the command line wins")  # fmt: skip
    group.add_argument("-v", "--verbose", action="count", help="more to read (-vv: debug)")
    group.add_argument("--version", action="store_true", help="versions and checksums of the weights")


def parse(argv: list[str]) -> RunOptions:
    """Command line to options; a config file fills what the command line leaves open.

    Raises
    ------
    UsageError, UnknownLevelError, DataError, MissingInputError
    """
    given = vars(build_parser().parse_args(argv))
    given.pop("version", None)
    given["level"] = given.pop("analysis_level")
    return options_of(given)


def options_of(given: dict[str, Any]) -> RunOptions:
    """Options from what a command line gave; a config file among it fills what it left open.

    Raises
    ------
    DataError, MissingInputError
        If the config file is malformed or absent.
    """
    raw = given.pop("bids_dir")
    given["bids_dir"] = None if raw == "-" else Path(raw)
    config = given.pop("config_file", None)
    for name in ("participants", "sessions", "exclude", "sequences", "derivatives"):
        if name in given:
            given[name] = tuple(given[name])
    filled = {**(read_config(config) if config else {}), **given}
    if filled.get("plugin_args"):
        filled["plugin_args"] = plugin_words(filled["plugin_args"])
        if not filled.get("plugin"):
            raise UsageError("--plugin-args without a plugin", remedy="name it by --plugin")
    return RunOptions(**filled)
