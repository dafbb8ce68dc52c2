"""One session in a worker process: lock, graph, outcome."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bids_scseg.errors import BusyError, CordNotFoundError, ImageError, MissingInputError, ScsegError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan

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
        The same of the built-in cord finder.
    threshold
        Lesion probability in force.
    device
        Where inference runs, in words.
    started
        Date and time of the run, for logs and reports.
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

    @property
    def ok(self) -> bool:
        """Whether the session has results."""
        return self.state == "done"

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "steps": [list(step) for step in self.steps], "warnings": list(self.warnings)}


def killed(job: SessionJob) -> SessionOutcome:
    """The outcome of a session whose worker died twice."""
    return SessionOutcome(
        label=job.plan.label,
        state="failed",
        step="worker process",
        cause="the worker was killed, most likely because memory ran out",
        remedy="free memory, lower --nprocs, or run on a larger machine; finished steps are kept",
        device=job.device,
    )


def failed(
    label: str, error: ScsegError, *, step: str, seconds: float = 0.0, device: str = ""
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
        peak_memory_gb=peak_memory_gb(),
        device=device,
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
    try:
        if job.plan.anchor is None:
            raise no_usable_image(job.plan)
        # Two locks: runs with different outputs may share a work directory.
        with session_lock(job.options.output_dir / "logs", label), session_lock(folder, label):
            warnings = _run_graph(job, folder, watch)
            if job.options.clean_workdir:
                shutil.rmtree(folder, ignore_errors=True)
    except ScsegError as error:
        return failed(label, error, step=watch.current, seconds=time.monotonic() - start, device=job.device)
    except Exception as error:  # noqa: BLE001 - the worker's last line: whatever it is, other sessions go on
        return _unexpected(job, error, watch, time.monotonic() - start)
    if job.options.clean_workdir:
        with suppress(OSError):  # other sessions may still need theirs
            job.options.work.rmdir()
    return SessionOutcome(
        label=label,
        state="done",
        seconds=round(time.monotonic() - start, 1),
        peak_memory_gb=peak_memory_gb(),
        device=job.device,
        warnings=warnings,
        steps=watch.steps(),
    )


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
    from bids_scseg.workflows.session import init_session_wf, read_warnings

    configure_nipype(folder, job.options)
    workflow = init_session_wf(job=job, base_dir=folder)
    try:
        workflow.run(plugin="Linear", plugin_args={"status_callback": watch})
    except Exception as error:
        cause = load_failure(watch.folder) if watch.folder else None
        raise cause or error from error
    return read_warnings(folder, job.plan)


def _unexpected(job: SessionJob, error: Exception, watch: StepWatch, seconds: float) -> SessionOutcome:
    words = str(error).strip().splitlines() or [type(error).__name__]
    disk_full = isinstance(error, OSError) and error.errno == 28
    return SessionOutcome(
        label=job.plan.label,
        state="failed",
        step=watch.current,
        cause="the disk is full" if disk_full else f"unexpected {type(error).__name__}: {words[-1]}",
        remedy="free space and run again; finished steps are kept"
        if disk_full
        else f"see the crash file in {job.options.work / job.plan.label}; please report it",
        seconds=round(seconds, 1),
        peak_memory_gb=peak_memory_gb(),
        device=job.device,
    )


class StepWatch:
    """Nipype's status callback: remembers the step, its folder, and how long each took."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.current, self.folder = "start", None
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._start = time.monotonic()

    current: str
    folder: Path | None

    def __call__(self, node: Any, status: str) -> None:
        """Take note of a node that starts or ends."""
        if status == "start":
            self.current, self.folder, self._start = node.name, Path(node.output_dir()), time.monotonic()
            self._progress(node.name)
        else:
            self._seconds[node.name] = round(time.monotonic() - self._start, 2)

    def steps(self) -> tuple[tuple[str, float], ...]:
        """(step, seconds) in the order of running."""
        return tuple(self._seconds.items())


@contextmanager
def session_lock(folder: Path, label: str) -> Iterator[None]:
    """Hold a session for this process; it is released when the process ends, however it ends.

    Raises
    ------
    BusyError
        If another run works on a session of that name in the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{label}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another run is working on {label}", file=folder, remedy="wait for it, then run again"
            ) from error
        yield


def configure_nipype(folder: Path, options: RunOptions) -> None:
    """Set Nipype up for one worker: content hashes, crash files and its log in the session's folder."""
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("NIPYPE_NO_ET", "1")
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


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, GB (0.1 GB steps)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1)
