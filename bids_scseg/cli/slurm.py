"""``scseg slurm``: a job array for a cluster, one task for each session."""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_scseg.cli.parser import _whole, add_run_options, options_of
from bids_scseg.errors import MissingInputError, MissingToolError, ScsegError, UsageError

if TYPE_CHECKING:
    from bids_scseg.options import RunOptions
    from bids_scseg.recipe.study import Plan
    from bids_scseg.workflows.cluster import Launcher

FOLDER = "logs/slurm"
TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::\d\d)?")
SUBMIT_SECONDS = 300  # ours: sbatch itself waits when a scheduler is busy
#: Options of this command; whatever else is given belongs to the run.
OWN = (
    "partition", "account", "time", "at_once", "sbatch", "image", "program", "bind", "setup", "unfinished",
    "group", "submit",
)  # fmt: skip
#: Those of them with which a task may find other programs than this machine does.
ELSEWHERE = frozenset({"image", "program", "setup"})


def add_parser(commands: Any) -> None:
    """Add the command to the toolbox."""
    parser = commands.add_parser(
        "slurm",
        help="write (and submit) a Slurm job array: one task for each session, then the group level",
        description="Write a Slurm job array under OUTPUT_DIR/logs/slurm, and submit it if asked to. Options "
        "of the participant level are taken too: --omp-nthreads are a task's CPUs, --mem its memory.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("bids_dir", help="folder of the raw BIDS dataset")
    parser.add_argument("output_dir", type=Path, help="folder for the derivatives; all nodes must see it")
    add_run_options(parser)
    parser.add_argument("--config-file", type=Path, metavar="TOML", help="options of the run from a file")
    group = parser.add_argument_group("cluster")
    group.add_argument("--submit", action="store_true", help="submit the jobs, not only write the scripts")
    group.add_argument(
        "--unfinished", action="store_true", help="only sessions that have no results in OUTPUT_DIR"
    )
    group.add_argument("--partition", metavar="NAME", help="where to run (default: the cluster's)")
    group.add_argument("--account", metavar="NAME", help="who pays")
    group.add_argument(
        "--time", type=_minutes, metavar="[D-]HH:MM", help="limit for one session (default: from the plan)"
    )
    group.add_argument("--at-once", type=_whole, metavar="N", help="tasks at the same time (default: any)")
    group.add_argument(
        "--sbatch", action="append", metavar="OPTION", help="another option of sbatch: --sbatch=--qos=long"
    )
    group.add_argument("--image", type=Path, metavar="SIF", help="Apptainer or Singularity image to run in")
    group.add_argument(
        "--bind",
        action="append",
        type=Path,
        metavar="PATH",
        help="with --image: a further path that it must see",
    )
    group.add_argument(
        "--program", metavar="COMMAND", help="how a task starts bids_scseg (default: this installation)"
    )
    group.add_argument(
        "--setup", action="append", metavar="LINE",
        help="shell line before it, such as --setup 'module load apptainer'",
    )  # fmt: skip
    group.add_argument("--no-group", dest="group", action="store_false", help="without the group level")
    parser.set_defaults(run=run_slurm)


def run_slurm(arguments: argparse.Namespace) -> None:
    """Write the scripts, and submit them if asked to."""
    from bids_scseg.bids.write import write_text
    from bids_scseg.workflows import cluster

    given = {key: value for key, value in vars(arguments).items() if key not in ("run", "command")}
    own = {key: given.pop(key) for key in OWN if key in given}
    options = options_of({**given, "level": "participant"})
    method = cord_method(options, elsewhere=not ELSEWHERE.isdisjoint(own))
    plans = plan_sessions(options, cord_method=method)
    if own.get("unfinished"):
        plans = _left(plans, options.output_dir)
    if not plans:
        sys.stderr.write("every session has results: nothing to submit\n")
        return
    needs = cluster.needs_of(plans, options, cord_method=method, minutes=own.get("time", 0))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    folder = options.output_dir / FOLDER / now
    files = cluster.scripts(
        plans,
        options,
        folder=folder,
        needs=needs,
        queue=cluster.Queue(
            partition=own.get("partition", ""),
            account=own.get("account", ""),
            at_once=own.get("at_once", 0),
            extra=tuple(own.get("sbatch", ())),
        ),
        launcher=_launcher(options, own),
        group=own.get("group", True),
    )
    files[cluster.CONFIG_FILE] = task_options(options, cpus=needs.cpus).to_toml()
    for name, text in files.items():
        write_text(options.output_dir, f"{FOLDER}/{now}/{name}", text)
    sys.stderr.write(
        f"{len(plans)} sessions, each {needs.cpus} CPUs, {needs.mem_gb} GB, {needs.minutes} minutes"
        f"{', 1 GPU' if needs.gpus else ''}; scripts in {folder}\n"
    )
    submit = folder / cluster.SUBMIT_FILE
    if own.get("submit"):
        sys.stdout.write(submit_jobs(submit))
    else:
        sys.stderr.write(f"to submit them: bash {shlex.quote(str(submit))}\n")


def plan_sessions(options: RunOptions, *, cord_method: str = "builtin") -> list[Plan]:
    """The plan of every session chosen, made by the participant level itself.

    Parameters
    ----------
    options
        The run.
    cord_method
        ``sct`` or ``builtin``.

    Raises
    ------
    UsageError
        If the raw dataset is not named, or cords or model by a name that nothing bears.
    ScsegError
        As the participant level does, before anything is written.
    """
    from bids_scseg.bids.filters import read_filters
    from bids_scseg.bids.plan import check_sequences
    from bids_scseg.bids.query import find_studies
    from bids_scseg.cli.participant import Models, check_cord, check_folders, session_plans
    from bids_scseg.interfaces.engine import load_engine

    if options.bids_dir is None:
        raise UsageError("the raw dataset is needed", remedy="name its folder instead of '-'")
    check_folders(options, options.bids_dir)
    check_cord(options.cord, dict(options.derivatives))
    # Not the participant level's way to them: what a task will find need not be installed here.
    models = Models(lesion=load_engine(options.model), cord=None, cord_method=cord_method)
    check_sequences(options.sequences, models.lesion.recipe)
    filters = read_filters(options.filter_file, models.lesion.recipe) if options.filter_file else None
    studies = find_studies(
        options.bids_dir,
        participants=options.participants,
        sessions=options.sessions,
        exclude=options.exclude,
        validate_names=not options.skip_bids_validation,
        follow_links=options.follow_links,
    )
    return list(session_plans(options, models, studies, filters=filters))


def cord_method(options: RunOptions, *, elsewhere: bool = False) -> str:
    """How tasks will find cords, as far as this machine can tell: ``sct`` or ``builtin``.

    Parameters
    ----------
    options
        The run.
    elsewhere
        Whether tasks may see programs that are not here: ``auto`` then counts with the toolbox's memory.
    """
    from bids_scseg.interfaces.sct import find_sct

    if options.cord == "auto":
        return "sct" if elsewhere or find_sct() else "builtin"
    return "sct" if options.cord == "sct" else "builtin"


def task_options(options: RunOptions, *, cpus: int) -> RunOptions:
    """The run of one task: one session, chosen on its command line, with the CPUs of the task."""
    from bids_scseg.interfaces.engine import lasting_name

    return replace(
        options,
        model=lasting_name(options.model),
        participants=(),
        sessions=(),
        exclude=(),
        nprocs=1,
        omp_nthreads=cpus,
        mem_gb=0.0,
    )


def submit_jobs(script: Path) -> str:
    """Submit what was written; what the script says.

    Raises
    ------
    MissingToolError
        If this machine has no sbatch.
    ScsegError
        If the scheduler refuses.
    """
    if shutil.which("sbatch") is None:
        raise MissingToolError(
            "sbatch is not on the PATH",
            expected="a machine from which jobs are submitted",
            remedy=f"run there: bash {script}",
        )
    done = subprocess.run(
        ["/bin/bash", str(script)], capture_output=True, text=True, timeout=SUBMIT_SECONDS, check=False
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise ScsegError(
            f"the scheduler refused: {words[-1] if words else 'no message'}",
            file=script,
            remedy="correct --partition, --account, --time or --sbatch, then submit again",
        )
    return done.stdout


def _left(plans: list[Plan], out: Path) -> list[Plan]:
    from bids_scseg.workflows.cluster import unfinished
    from bids_scseg.workflows.status import read_outcomes, write_status

    outcomes = read_outcomes(out)
    if outcomes:
        write_status(out)  # tasks that ended at the same moment may have left a row out
    states = {str(item["label"]): str(item.get("state")) for item in outcomes}
    left = unfinished(plans, states)
    sys.stderr.write(f"{len(plans) - len(left)} of {len(plans)} sessions have results\n")
    return left


def _launcher(options: RunOptions, own: dict[str, Any]) -> Launcher:
    from bids_scseg.interfaces.engine import lasting_name
    from bids_scseg.workflows.cluster import Launcher

    setup = tuple(own.get("setup", ()))
    image: Path | None = own.get("image")
    if image is None:
        program = shlex.split(own["program"]) if "program" in own else [sys.executable, "-m", "bids_scseg"]
        return Launcher(program=tuple(program), setup=setup)
    if not image.is_file():
        raise MissingInputError("no such image", file=image, remedy="build it (docs/containers.md)")
    named = [
        options.bids_dir,
        options.filter_file,
        options.geometry,
        *(folder for _, folder in options.derivatives),
    ]
    model = Path(lasting_name(options.model))
    named += [*([model] if model.is_absolute() else []), *(path.absolute() for path in own.get("bind", ()))]
    written = [options.output_dir, options.work_dir]
    return Launcher(
        image=image.absolute(),
        readable=tuple(dict.fromkeys(path for path in named if path is not None)),
        writable=tuple(path for path in written if path is not None),
        setup=setup,
    )


def _minutes(text: str) -> int:
    match = TIME.fullmatch(text)
    minutes = (int(match[1] or 0) * 24 + int(match[2])) * 60 + int(match[3]) if match else 0
    if not minutes:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 02:30 or 1-00:00")
    return minutes
