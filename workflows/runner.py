"""Runs sessions: each in a worker process, with its own work directory, lock and log.

The session is the unit of work: nothing is shared between sessions but read-only inputs, so one that fails,
or whose worker is killed, takes no other with it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import Empty
from typing import Any

from bids_scseg.processes import WorkerPool, end_group, end_with_parent
from bids_scseg.workflows.budget import Budget
from bids_scseg.workflows.job import SessionJob, SessionOutcome, killed, run_job

Progress = Callable[[str, str], None]
Run = Callable[..., SessionOutcome]
POLL_S = 0.2


@dataclass(slots=True)
class _Pool:
    """A pool that can be replaced when a worker dies."""

    workers: int
    events: Any
    context: Any
    executor: ProcessPoolExecutor | None = None
    pids: set[int] = field(default_factory=set)

    def submit(self, run: Run, job: SessionJob) -> Future[SessionOutcome]:
        # spawn, because a forked child of a process that has used threads can hang.
        if self.executor is None:
            self.executor = WorkerPool(
                self.workers, mp_context=self.context, initializer=_connect, initargs=(self.events,)
            )
        future = self.executor.submit(_work, run, job)
        self.pids |= {child.pid for child in multiprocessing.active_children() if child.pid}
        return future

    def renew(self) -> None:
        """Forget a broken pool, and its queue: a worker killed while writing leaves it locked for ever."""
        self.close()
        self.events = self.context.Queue()

    def kill(self) -> None:
        """End all workers and what they started, now."""
        for child in multiprocessing.active_children():
            child.kill()
        for pid in self.pids:
            end_group(pid)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None
        for pid in self.pids:
            end_group(pid)  # programs whose worker was killed would go on writing
        self.pids.clear()


_events: Any = None


def _connect(events: Any) -> None:
    global _events  # a worker process has one queue, given to it at its start
    events.cancel_join_thread()  # progress that nobody reads must not keep a worker from ending
    _events = events
    end_with_parent()


def _work(run: Run, job: SessionJob) -> SessionOutcome:
    return run(job, progress=lambda step: _events.put((job.plan.label, step)))


def run_sessions(
    jobs: Iterable[SessionJob],
    *,
    workers: int,
    stop_on_first_crash: bool,
    progress: Progress,
    budget: Budget | None = None,
    run: Run = run_job,
) -> Generator[SessionOutcome, None, None]:
    """Run sessions, several at once, and yield each outcome as it comes.

    A worker that is killed (out of memory, as a rule) breaks the whole pool: the sessions that were
    running are tried once more, each alone; a second death is that session's failure and nobody else's.
    When the disk is full no further session starts, nor is one tried once more.

    Parameters
    ----------
    jobs
        The sessions.
    workers
        How many run at once, at most.
    stop_on_first_crash
        Whether a failure keeps further sessions from starting; they are not yielded.
    progress
        Called with (session label, step) whenever a session enters a step.
    budget
        Memory that the sessions may need together, and devices; without one there is no limit.
    run
        What runs a session in a worker: an importable function.
    """
    context = multiprocessing.get_context("spawn")
    source = _Source(iter(jobs), budget or Budget())
    watch = _Watch(progress)
    suspects: list[SessionJob] = []
    with _pool(workers, context) as pool:
        running: dict[Future[SessionOutcome], SessionJob] = {}
        stuck = _fill(running, source, pool, run)
        while running or stuck:
            done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            watch.drain(pool.events)
            outcomes, broken = _collect(running, done, source.budget)
            yield from outcomes
            source.end_after(outcomes, stop_on_first_crash=stop_on_first_crash)
            if broken or stuck:
                suspects += [*broken, *stuck, *running.values()]
                running.clear()
                source.budget.clear()
                pool.renew()
            stuck = _fill(running, source, pool, run)
        watch.drain(pool.events)
    for job in suspects:
        if source.ended:
            yield killed(job, step=watch.steps.get(job.plan.label, ""))
            continue
        outcome = run_alone(job, context, watch, run=run)
        yield outcome
        source.end_after([outcome], stop_on_first_crash=stop_on_first_crash)


class _Source:
    """Sessions that are still to start, as memory and devices allow."""

    def __init__(self, jobs: Iterator[SessionJob], budget: Budget) -> None:
        self.budget = budget
        self.ended = False  # nothing more may start, whatever waits
        self._jobs = jobs
        self._next: SessionJob | None = None

    def take(self) -> SessionJob | None:
        """The next session, with its device; None if there is none, or no room for it yet."""
        self._next = self._next or next(self._jobs, None)
        if self._next is None or not self.budget.fits(self._next.memory_gb):
            return None
        job, self._next = self._next, None
        device = self.budget.take(job.plan.label, job.memory_gb)
        if device is None:
            return job
        return replace(job, socket=device.address, device=device.description)

    def end_after(self, outcomes: Iterable[SessionOutcome], *, stop_on_first_crash: bool) -> None:
        """Start nothing more after a full disk, or after a failure if asked."""
        if any(outcome.ends_run or (stop_on_first_crash and not outcome.ok) for outcome in outcomes):
            self._jobs, self._next, self.ended = iter(()), None, True


class _Watch:
    """Passes progress on, and remembers the last step of each session."""

    def __init__(self, progress: Progress) -> None:
        self.steps: dict[str, str] = {}
        self.progress = progress

    def drain(self, events: Any) -> None:
        while True:
            try:
                label, step = events.get_nowait()
            except Empty:
                return
            self.steps[label] = step
            self.progress(label, step)


def _fill(
    running: dict[Future[SessionOutcome], SessionJob], source: _Source, pool: _Pool, run: Run
) -> list[SessionJob]:
    """Start sessions while there is room; one that a just broken pool did not take comes back."""
    while len(running) < pool.workers and (job := source.take()) is not None:
        try:
            running[pool.submit(run, job)] = job
        except BrokenProcessPool:
            return [job]
    return []


def _collect(
    running: dict[Future[SessionOutcome], SessionJob], done: Iterable[Future[SessionOutcome]], budget: Budget
) -> tuple[list[SessionOutcome], list[SessionJob]]:
    outcomes, broken = [], []
    for future in done:
        job = running.pop(future)
        budget.give(job.plan.label)
        try:
            outcomes.append(future.result())
        except BrokenProcessPool:
            broken.append(job)
    return outcomes, broken


def run_alone(job: SessionJob, context: Any, watch: _Watch, *, run: Run = run_job) -> SessionOutcome:
    """Run one session in a pool of its own; a killed worker becomes a failed outcome."""
    with _pool(1, context) as pool:
        try:
            outcome = pool.submit(run, job).result()
        except BrokenProcessPool:
            watch.drain(pool.events)
            return killed(job, step=watch.steps.get(job.plan.label, ""))
        watch.drain(pool.events)
        return outcome


@contextmanager
def _pool(workers: int, context: Any) -> Iterator[_Pool]:
    pool = _Pool(workers=workers, events=context.Queue(), context=context)
    try:
        yield pool
    except BaseException:
        pool.kill()  # an interrupted run must not wait for its sessions; what they finished is kept
        raise
    finally:
        pool.close()
