"""One session in a worker process: lock, graph, outcome."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bids_scseg import files
from bids_scseg.bids.corrections import check_corrections
from bids_scseg.errors import (
    BusyError,
    CordNotFoundError,
    DiskFullError,
    ImageError,
    MissingInputError,
    ScsegError,
    SessionError,
)
from bids_scseg.inference.server import peak_memory_gb
from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan

LOCK_WAIT_S = 5.0  # in which what is left of a killed run ends and lets go of its sessions (measured: 0.1 s)
MEMORY_REMEDY = "free memory, lower --nprocs, or run on a larger machine; finished steps are kept"
DISK_REMEDY = "free space and run the same command again; finished steps are kept"

State = Literal["done", "failed", "refused", "busy"]  # busy: another run is working on it

NIPYPE_EXECUTION = {
    "use_relative_paths": "true",  # a moved work directory stays usable
    "hash_method": "content",  # a touched input re-runs nothing
    "crashfile_format": "txt",
    "stop_on_first_crash": "true",
    "check_version": "false",
    "poll_sleep_duration": "0.1",
    "remove_unnecessary_outputs": "false",
    "create_report": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionJob:
    """What a worker needs to know; plain data, so it travels between processes.

    Attributes
    ----------
    plan, options
        The session and the run.
    socket
        Address of the inference process; empty if the session needs none.
    model_path, model_sha256
        Lesion model bundle, and the checksum of all that decides its network's output.
    cord_method
        ``sct`` or ``builtin``, for images without a mask of the user's.
    cord_path, cord_sha256
        The same of what finds cords: the built-in finder, or SCT (a checksum alone, of release and network).
    threshold, seed_threshold, seed_threshold_alone, min_volume_mm3
        Lesion probability in force, the one that a lesion must reach somewhere (0: none), the same where one
        sequence alone sees (0: as elsewhere), and the smallest lesion that counts.
    device
        Where inference runs, in words.
    started
        Date and time of the run, for logs and reports.
    memory_gb
        What the session's worker will need at most, by its images; for scheduling.
    disk_gb
        What the session will write to the work and output folders together, by estimate.
    versions
        (name, version) of this program and the libraries behind the numbers.
    """

    plan: Plan
    options: RunOptions
    socket: str
    model_path: str
    model_sha256: str
    cord_method: str
    cord_path: str
    cord_sha256: str
    threshold: float
    device: str
    started: str
    memory_gb: float = 0.0
    disk_gb: float = 0.0
    seed_threshold: float = 0.0
    seed_threshold_alone: float = 0.0
    min_volume_mm3: float = 0.0
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOutcome:
    """How a session ended; written as ``logs/<label>.json``."""

    label: str
    state: State
    step: str = ""
    cause: str = ""
    file: str = ""
    remedy: str = ""
    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    device: str = ""
    warnings: tuple[str, ...] = ()
    steps: tuple[tuple[str, float], ...] = ()
    memory: tuple[tuple[str, float], ...] = ()  # largest resident memory in each step, GB
    ends_run: bool = False  # the disk is full: every other session would fail as well

    @property
    def ok(self) -> bool:
        """Whether the session has results."""
        return self.state == "done"

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        lists = {key: [list(item) for item in getattr(self, key)] for key in ("steps", "memory")}
        return {**asdict(self), **lists, "warnings": list(self.warnings)}


def killed(job: SessionJob, *, step: str = "") -> SessionOutcome:
    """The outcome of a session whose worker died twice, the second time in a step."""
    return SessionOutcome(
        label=job.plan.label,
        state="failed",
        step=step or "worker process",
        cause="the worker was killed, most likely because memory ran out",
        remedy=MEMORY_REMEDY,
        device=job.device,
    )


def failed(
    label: str,
    error: ScsegError,
    *,
    step: str,
    seconds: float = 0.0,
    device: str = "",
    memory: tuple[tuple[str, float], ...] = (),
) -> SessionOutcome:
    """The outcome that an error of ours makes; without a usable image or cord a session is refused."""
    refused = isinstance(error, CordNotFoundError | ImageError | MissingInputError)
    state: State = "refused" if refused else "failed"
    return SessionOutcome(
        label=label,
        state="busy" if isinstance(error, BusyError) else state,
        step=step,
        cause=error.found + (f"; expected {error.expected}" if error.expected else ""),
        file=error.file or "",
        remedy=error.remedy or "",
        seconds=round(seconds, 1),
        peak_memory_gb=_largest(memory),
        device=device,
        memory=memory,
        ends_run=isinstance(error, DiskFullError),
    )


def run_job(job: SessionJob, *, progress: Callable[[str], None]) -> SessionOutcome:
    """Run one session's graph; never raises for errors of the session.

    Parameters
    ----------
    job
        The session.
    progress
        Called with the name of each step as it starts.
    """
    start = time.monotonic()
    label, folder = job.plan.label, job.options.work / job.plan.label
    watch = StepWatch(progress)
    reset_peak_memory()
    try:
        if job.plan.anchor is None:
            raise no_usable_image(job.plan)
        check_corrections(job.plan)
        check_size(job)
        # Two locks: runs with different outputs may share a work directory.
        with session_lock(job.options.output_dir / "logs", label), session_lock(folder, label):
            clear_remains(job)
            with temporary_files(folder / "tmp"):
                warnings = _run_graph(job, folder, watch)
            record_outputs(job.options.output_dir, job.plan)
            if job.options.clean_workdir:
                remove_folder(folder)
    except Exception as error:  # noqa: BLE001 - the worker's last line: whatever it is, other sessions go on
        known = error if isinstance(error, ScsegError) else _known(error, job)
        if isinstance(known, DiskFullError):
            known = _with_room(known, job)
            if watch.broken and watch.folder is not None:  # half a result: of no use, in the way of the logs
                shutil.rmtree(watch.folder, ignore_errors=True)
        seconds, memory = time.monotonic() - start, watch.memory()
        return failed(label, known, step=watch.current, seconds=seconds, device=job.device, memory=memory)
    if job.options.clean_workdir:
        with suppress(OSError):  # other sessions may still need theirs
            job.options.work.rmdir()
    return SessionOutcome(
        label=label,
        state="done",
        seconds=round(time.monotonic() - start, 1),
        peak_memory_gb=_largest(watch.memory()),
        device=job.device,
        warnings=warnings,
        steps=watch.steps(),
        memory=watch.memory(),
    )


def check_size(job: SessionJob) -> None:
    """Refuse a session that this machine can never hold, before its images are read.

    Raises
    ------
    ImageError
        If its images need more memory than there is, other programs and swap space included.
    """
    from bids_scseg.workflows.resources import all_memory_gb

    there = all_memory_gb()
    if job.memory_gb > there:
        raise ImageError(
            f"its images need about {job.memory_gb:.1f} GB of memory, this machine has {there:.1f} GB",
            file=job.plan.dataset,
            expected="images that fit into memory",
            remedy="crop them, or run on a larger machine",
        )


def clear_remains(job: SessionJob) -> None:
    """Remove the half-written and half-removed files that a killed run left of a session."""
    folder = job.options.output_dir / f"sub-{job.plan.subject}"
    if job.plan.session:
        folder /= f"ses-{job.plan.session}"
    for place in (folder, folder / "anat"):
        files.sweep(place)
    shutil.rmtree(_gone(job.options.work / job.plan.label), ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that whoever is killed meanwhile leaves it whole, or out of everybody's sight."""
    with suppress(OSError):
        shutil.rmtree(_gone(folder), ignore_errors=True)
        folder.rename(_gone(folder))
    shutil.rmtree(_gone(folder), ignore_errors=True)


def _gone(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.gone")


def record_outputs(out: Path, plan: Plan, *, drawn_again: bool = False) -> None:
    """Write the checksums of a session's files, or of its page and figures alone if they were drawn again."""
    from bids_scseg.bids.checksums import has_list, record, session_files
    from bids_scseg.bids.derivatives import written_outputs

    if not drawn_again:
        record(out, plan.label, session_files(out, plan.label, written_outputs(out, plan)))
    elif has_list(out, plan.label):
        record(out, plan.label, session_files(out, plan.label, ()), add=True)


@contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Keep temporary files of libraries in a folder that goes with the session, even after a kill."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def no_usable_image(plan: Plan) -> ScsegError:
    """The error of a session in which no image serves any sequence of the recipe."""
    left_out = {path.rsplit("/", 1)[-1]: reason for path, reason in plan.left_out}
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it has no images"
    single = plan.left_out[0][0] if len(left_out) == 1 else None
    return MissingInputError(
        f"{plan.refusal or 'no image can be used'} ({reasons})",
        file="/".join(filter(None, [plan.dataset, single])),
        expected=None if plan.available else "at least one image of " + ", ".join(plan.missing),
        remedy="correct or replace the file, or name files with --bids-filter-file if one of them is such a "
        "sequence",
    )


def _run_graph(job: SessionJob, folder: Path, watch: StepWatch) -> tuple[str, ...]:
    from bids_scseg.interfaces.base import load_failure
    from bids_scseg.workflows.plugins import run_workflow
    from bids_scseg.workflows.session import init_session_wf, read_warnings

    configure_nipype(folder, job.options)
    workflow = init_session_wf(job=job, base_dir=folder)
    try:
        run_workflow(workflow, job.options, watch=watch)
        if watch.broken:  # some plugins go on without what failed, and say nothing
            raise RuntimeError(f"the step {watch.current} failed")
    except Exception as error:
        cause = load_failure(watch.folder) if watch.folder else None
        raise cause or error from error
    return read_warnings(folder, job.plan)


def _known(error: Exception, job: SessionJob) -> ScsegError:
    """An error that is none of ours, in words; Nipype passes a node's error on as text only."""
    text = str(error).strip()
    work = job.options.work / job.plan.label
    if files.is_full(error) or files.tells_of_full_disk(text):
        return DiskFullError("the disk is full", file=work, remedy=DISK_REMEDY)
    if isinstance(error, MemoryError) or "MemoryError" in text:
        return SessionError("memory ran out", remedy=MEMORY_REMEDY)
    last = text.splitlines()[-1] if text else ""
    return SessionError(
        f"unexpected {type(error).__name__}: {last}" if last else f"unexpected {type(error).__name__}",
        remedy=f"see the crash file in {work}; please report it",
    )


def _with_room(error: DiskFullError, job: SessionJob) -> DiskFullError:
    """The same error with the room that there is and that the session needs."""
    places = [place for place in (job.options.output_dir, job.options.work) if place.exists()]
    free = min((shutil.disk_usage(place).free for place in places), default=0)
    return DiskFullError(
        f"{error.found}; {free / 1e6:.1f} MB are free",
        file=error.file,
        expected=f"about {job.disk_gb * 1e3:.0f} MB for a session like this",
        remedy=error.remedy or DISK_REMEDY,
    )


class StepWatch:
    """Nipype's status callback: remembers the step, its folder, how long each took, and how much memory."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.current, self.folder = "start", None
        self._progress = progress
        self._starts: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, float] = {}
        self.broken = False

    current: str
    folder: Path | None

    def __call__(self, node: Any, status: str) -> None:
        """Take note of a node that starts or ends."""
        self._note_memory()
        reset_peak_memory()
        if status in ("start", "exception") and not self.broken:
            self.current, self.folder = node.name, Path(node.output_dir())
        self.broken = self.broken or status == "exception"  # with a plugin others go on beside it
        if status == "start":
            self._starts[node.name] = time.monotonic()
            self._progress(node.name)
        else:
            begun = self._starts.get(node.name, time.monotonic())
            self._seconds[node.name] = round(time.monotonic() - begun, 2)

    def steps(self) -> tuple[tuple[str, float], ...]:
        """(step, seconds) in the order of running."""
        return tuple(self._seconds.items())

    def memory(self) -> tuple[tuple[str, float], ...]:
        """(step, largest resident memory in GB) in the order of running, what comes before the first too."""
        self._note_memory()
        return tuple(self._memory.items())

    def _note_memory(self) -> None:
        self._memory[self.current] = max(self._memory.get(self.current, 0.0), _peak_gb())


@contextmanager
def session_lock(folder: Path, label: str) -> Iterator[None]:
    """Hold a session for this process; it is released when the process ends, however it ends.

    Raises
    ------
    BusyError
        If another run works on a session of that name in the same folder, and goes on doing so.
    """
    what = f"another run is working on {label}"
    with files.lock(folder / f".{label}.lock", wait_s=LOCK_WAIT_S, what=what):
        yield


def configure_nipype(folder: Path, options: RunOptions) -> None:
    """Set Nipype up for one worker: content hashes, crash files and its log in the session's folder."""
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    if not options.clean_workdir and not os.access(home, os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(options.work / ".matplotlib"))  # its list of fonts
    import nipype

    folder.mkdir(parents=True, exist_ok=True)
    level = ("WARNING", "INFO", "DEBUG")[min(options.verbose, 2)]
    nipype.config.update_config(
        {
            "execution": {**NIPYPE_EXECUTION, "crashdump_dir": str(folder)},
            "logging": {
                "log_to_file": "false",
                "workflow_level": level,
                "interface_level": level,
                "utils_level": level,
            },
        }
    )
    nipype.logging.update_logging(nipype.config)
    if not options.verbose:
        # The run shows its own lines; a failed node's traceback stays in its crash file.
        logging.getLogger("nipype.workflow").setLevel(logging.CRITICAL)


def reset_peak_memory() -> None:
    """Let :func:`.server.peak_memory_gb` count from now on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _largest(memory: Iterable[tuple[str, float]]) -> float:
    return max([_peak_gb(), *(gb for _, gb in memory)])


def _peak_gb() -> float:
    """Largest resident memory since the last reset, in steps that a log needs."""
    return round(peak_memory_gb(), 2)
