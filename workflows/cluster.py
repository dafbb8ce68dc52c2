"""Job arrays for Slurm: one task for each session, then the group level. Text from facts; nothing runs."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_scseg.errors import UsageError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.resources import worker_gb

CPUS = 4  # of a task, ours: more brings the network little on one session
LEAST_GB = 4  # of a task, ours: twice what was seen on the demo
LEAST_MINUTES, STEP_MINUTES = 30, 10  # of a task, ours; schedulers like round numbers
SLOWNESS = 4.0  # ours: estimates are for two quiet cores, a shared disk and a busy node are slower
GROUP_GB, GROUP_MINUTES = 4, 30  # of the group level, ours: it reads tables
PAIR_SECONDS, PAIR_GB = 5.0, 1  # of a pair of sessions that it aligns, ours: images of two sessions are read
PAIRS_PER_CPU = 10  # ours: for fewer, another process does not earn its start
MAX_ARRAY = 1000  # tasks of one array; Slurm's default MaxArraySize is 1001, the largest index one less
NO_SESSION = "n/a"
SESSIONS_FILE, CONFIG_FILE = "sessions.tsv", "run.toml"
ARRAY_FILE, GROUP_FILE, SUBMIT_FILE = "array.sh", "group.sh", "submit.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one task asks the scheduler for."""

    cpus: int
    mem_gb: int
    minutes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Where jobs go: what a cluster wants to know beyond needs.

    Attributes
    ----------
    partition, account
        Empty: the cluster's default.
    at_once
        Tasks of the array that may run at the same time; 0: as many as there is room for.
    extra
        Further options of sbatch, such as ``--qos=long``.
    """

    partition: str = ""
    account: str = ""
    at_once: int = 0
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """How a task starts the program.

    Attributes
    ----------
    program
        Words of the command, for a plain environment.
    image
        Apptainer or Singularity image, instead of `program`.
    readable, writable
        Folders and files that the image must see, at the same paths.
    setup
        Shell lines before it, such as ``module load apptainer``.
    """

    program: tuple[str, ...] = ()
    image: Path | None = None
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    setup: tuple[str, ...] = ()


def needs_of(
    plans: Sequence[Plan], options: RunOptions, *, cord_method: str = "builtin", minutes: int = 0
) -> Needs:
    """Needs of one task: enough for the most demanding session, since tasks of an array are alike.

    Parameters
    ----------
    plans
        The sessions, with their estimates of memory and time.
    options
        ``omp_nthreads`` (CPUs), ``mem_gb`` and ``device`` overrule the estimates.
    cord_method
        ``sct`` or ``builtin``: the toolbox's memory counts, as it does for the participant level.
    minutes
        Time limit; 0: four times the longest estimate, in steps of ten minutes, and half an hour at least.
    """
    each = (plan.inference_gb + worker_gb(plan, cord_method=cord_method) for plan in plans)
    memory = options.mem_gb or max([LEAST_GB, *each])
    longest = max((plan.seconds for plan in plans), default=0.0) * SLOWNESS / 60
    return Needs(
        cpus=options.omp_nthreads or CPUS,
        mem_gb=math.ceil(memory),
        minutes=minutes or max(LEAST_MINUTES, math.ceil(longest / STEP_MINUTES) * STEP_MINUTES),
        gpus=1 if options.device.startswith("cuda") else 0,
    )


def group_needs(plans: Sequence[Plan], task: Needs) -> Needs:
    """Needs of the group level: it aligns each session of a participant with the next one.

    Parameters
    ----------
    plans
        The sessions.
    task
        Needs of one session: no more CPUs than that has, since a node with so many is there.
    """
    pairs = sum(count - 1 for count in Counter(plan.subject for plan in plans).values())
    cpus = max(1, min(task.cpus, pairs // PAIRS_PER_CPU))
    aligning = pairs * PAIR_SECONDS * SLOWNESS / cpus / 60
    return Needs(
        cpus=cpus,
        mem_gb=min(GROUP_GB, task.mem_gb) + (cpus - 1) * PAIR_GB,
        minutes=GROUP_MINUTES + math.ceil(aligning / STEP_MINUTES) * STEP_MINUTES,
    )


def scripts(
    plans: Sequence[Plan],
    options: RunOptions,
    *,
    folder: Path,
    needs: Needs,
    queue: Queue,
    launcher: Launcher,
    group: bool = True,
) -> dict[str, str]:
    """All files of a job array, by name.

    Parameters
    ----------
    plans
        The sessions; at least one.
    options
        The run; its selection of sessions is replaced by the task's own, and a task runs one session.
    folder
        Absolute folder of the scripts, seen by all nodes.
    needs, queue, launcher
        Resources, destination, and how the program starts.
    group
        Whether the group level follows when all tasks have ended, however they ended.
    """
    words = [str(options.bids_dir), str(options.output_dir), "participant"]
    task = [*words, "--config-file", str(folder / CONFIG_FILE)]
    files = {
        SESSIONS_FILE: "".join(f"{plan.subject}\t{plan.session or NO_SESSION}\n" for plan in plans),
        ARRAY_FILE: _array_script(folder, needs, queue, launch(launcher, task, gpu=needs.gpus > 0), launcher),
        SUBMIT_FILE: _submit_script(len(plans), at_once=queue.at_once, group=group),
    }
    if group:
        own = group_needs(plans, needs)
        level = [str(options.bids_dir), str(options.output_dir), "group", "--nprocs", str(own.cpus)]
        start = launch(launcher, level)
        head = _head("bids_scseg_group", own, queue, log=folder / "group-%j.log")
        files[GROUP_FILE] = "\n".join([*head, *launcher.setup, "set -euo pipefail", *start]) + "\n"
    return files


def unfinished(plans: Sequence[Plan], states: Mapping[str, str]) -> list[Plan]:
    """Sessions that have no results yet: failed, refused, or never ended.

    Parameters
    ----------
    plans
        All sessions.
    states
        Session label → state in the logs of earlier runs.
    """
    return [plan for plan in plans if states.get(plan.label) != "done"]


def launch(launcher: Launcher, words: Sequence[str], *, gpu: bool = False) -> list[str]:
    """Shell lines that start the program in place of the shell; ``chosen`` may hold more words.

    Raises
    ------
    UsageError
        If a path cannot be bound into an image.
    """
    line = f'{shlex.join(words)} ${{chosen[@]+"${{chosen[@]}}"}}'
    if launcher.image is None:
        return [f"exec {shlex.join(launcher.program)} {line}"]
    binds = [_bind(path, "ro") for path in launcher.readable]
    binds += [_bind(path, "rw") for path in launcher.writable]
    flags = ["--cleanenv", "--containall", *(["--nv"] if gpu else []), *binds]
    made = [f"mkdir -p -- {shlex.join(map(str, launcher.writable))}"] if launcher.writable else []
    return [
        *made,  # what is bound must be there
        "engine=$(command -v apptainer || command -v singularity) || {",
        '    echo "bids_scseg: neither apptainer nor singularity is on the PATH of $(hostname)" >&2',
        "    exit 127",
        "}",
        f'exec "$engine" run {shlex.join(flags)} --bind "${{TMPDIR:-/tmp}}:/tmp:rw" '
        f"{shlex.quote(str(launcher.image))} {line}",
    ]


def _bind(path: Path, mode: str) -> str:
    if set(str(path)) & {":", ","}:
        raise UsageError(
            "this path cannot be bound into an image", file=path, expected="a path without ':' and ','"
        )
    return f"--bind={path}:{path}:{mode}"


def _head(name: str, needs: Needs, queue: Queue, *, log: Path) -> list[str]:
    hours, minutes = divmod(needs.minutes, 60)
    options = [
        f"--job-name={name}",
        f"--cpus-per-task={needs.cpus}",
        f"--mem={needs.mem_gb}G",
        f"--time={hours:02d}:{minutes:02d}:00",
        f"--output={log}",
        *([f"--partition={queue.partition}"] if queue.partition else []),
        *([f"--account={queue.account}"] if queue.account else []),
        *([f"--gres=gpu:{needs.gpus}"] if needs.gpus else []),
        *queue.extra,
    ]
    return ["#!/bin/bash", *(f"#SBATCH {shlex.quote(option)}" for option in options)]


def _array_script(folder: Path, needs: Needs, queue: Queue, start: Sequence[str], launcher: Launcher) -> str:
    # What the site adds comes before `set -u`: module files and activation scripts do not survive it.
    lines = [
        *_head("bids_scseg", needs, queue, log=folder / "%A_%a.log"),
        *launcher.setup,
        "set -euo pipefail",
        "line=$((SLURM_ARRAY_TASK_ID + ${SCSEG_OFFSET:-0}))",
        "IFS=$'\\t' read -r participant session < "
        f'<(sed -n "${{line}}p" {shlex.quote(str(folder / SESSIONS_FILE))})',
        'chosen=(--participant-label "$participant")',
        f'if [ "$session" != {NO_SESSION} ]; then chosen+=(--session-label "$session"); fi',
        *start,
    ]
    return "\n".join(lines) + "\n"


def _submit_script(tasks: int, *, at_once: int, group: bool) -> str:
    limit = f"%{at_once}" if at_once else ""
    lines = [
        "#!/bin/bash",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        "ids=()",
        "# All jobs or none: what was submitted before a refusal is taken back.",
        'undo() { if [ "${#ids[@]}" -gt 0 ]; then scancel "${ids[@]}"; fi; exit 1; }',
    ]
    for offset in range(0, tasks, MAX_ARRAY):
        last = min(MAX_ARRAY, tasks - offset)
        options = f"--parsable --array=1-{last}{limit} --export=ALL,SCSEG_OFFSET={offset}"
        lines += [f"id=$(sbatch {options} {ARRAY_FILE}) || undo", 'ids+=("${id%%;*}")']
    lines.append('echo "sessions: job ${ids[*]}"')
    if group:
        lines += [
            'after=$(IFS=:; echo "${ids[*]}")',
            f'id=$(sbatch --parsable --dependency="afterany:$after" {GROUP_FILE}) || undo',
            'echo "group level: job ${id%%;*}, when they have ended"',
        ]
    return "\n".join(lines) + "\n"
