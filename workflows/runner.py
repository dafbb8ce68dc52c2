"""Runs sessions: each in a worker process, with its own work directory, lock and log.

The session is the unit of work: nothing is shared between sessions but read-only inputs, so one that fails,
or whose worker is killed, takes no other with it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty
from typing import Any

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

    def open(self) -> ProcessPoolExecutor:
        # spawn, because a forked child of a process that has used threads can hang.
        if self.executor is None:
            self.executor = ProcessPoolExecutor(
                self.workers, mp_context=self.context, initializer=_connect, initargs=(self.events,)
            )
        return self.executor

    def renew(self) -> None:
        """Forget a broken pool, and its queue: a worker killed while writing leaves it locked for ever."""
        self.close()
        self.events = self.context.Queue()

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None


_events: Any = None


def _connect(events: Any) -> None:
    global _events  # a worker process has one queue, given to it at its start
    events.cancel_join_thread()  # progress that nobody reads must not keep a worker from ending
    _events = events


def _work(run: Run, job: SessionJob) -> SessionOutcome:
    return run(job, progress=lambda step: _events.put((job.plan.label, step)))


def run_sessions(
    jobs: Iterable[SessionJob],
    *,
    workers: int,
    stop_on_first_crash: bool,
    progress: Progress,
    run: Run = run_job,
) -> Iterator[SessionOutcome]:
    """Run sessions, several at once, and yield each outcome as it comes.

    A worker that is killed (out of memory, as a rule) breaks the whole pool: the sessions that were
    running are tried once more, each alone; a second death is that session's failure and nobody else's.

    Parameters
    ----------
    jobs
        The sessions.
    workers
        How many run at once.
    stop_on_first_crash
        Whether a failure keeps further sessions from starting; they are not yielded.
    progress
        Called with (session label, step) whenever a session enters a step.
    run
        What runs a session in a worker: an importable function.
    """
    context = multiprocessing.get_context("spawn")
    source, suspects = iter(jobs), []
    with _pool(workers, context) as pool:
        running: dict[Future[SessionOutcome], SessionJob] = {}
        stuck = _fill(running, source, pool, run)
        while running or stuck:
            done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            _drain(pool.events, progress)
            outcomes, broken = _collect(running, done)
            yield from outcomes
            if stop_on_first_crash and not all(outcome.ok for outcome in outcomes):
                source = iter(())
            if broken or stuck:
                suspects += [*broken, *stuck, *running.values()]
                running.clear()
                pool.renew()
            stuck = _fill(running, source, pool, run)
        _drain(pool.events, progress)
    for job in suspects:
        yield run_alone(job, context, progress, run=run)


def _fill(
    running: dict[Future[SessionOutcome], SessionJob], source: Iterator[SessionJob], pool: _Pool, run: Run
) -> list[SessionJob]:
    """Start sessions while there is room; one that a just broken pool did not take comes back."""
    while len(running) < pool.workers and (job := next(source, None)) is not None:
        try:
            running[pool.open().submit(_work, run, job)] = job
        except BrokenProcessPool:
            return [job]
    return []


def _collect(
    running: dict[Future[SessionOutcome], SessionJob], done: Iterable[Future[SessionOutcome]]
) -> tuple[list[SessionOutcome], list[SessionJob]]:
    outcomes, broken = [], []
    for future in done:
        job = running.pop(future)
        try:
            outcomes.append(future.result())
        except BrokenProcessPool:
            broken.append(job)
    return outcomes, broken


def run_alone(job: SessionJob, context: Any, progress: Progress, *, run: Run = run_job) -> SessionOutcome:
    """Run one session in a pool of its own; a killed worker becomes a failed outcome."""
    with _pool(1, context) as pool:
        try:
            return pool.open().submit(_work, run, job).result()
        except BrokenProcessPool:
            return killed(job)
        finally:
            _drain(pool.events, progress)


@contextmanager
def _pool(workers: int, context: Any) -> Iterator[_Pool]:
    pool = _Pool(workers=workers, events=context.Queue(), context=context)
    try:
        yield pool
    except BaseException:
        # An interrupted run must not wait for its sessions; what they finished is kept.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.close()


def _drain(events: Any, progress: Progress) -> None:
    while True:
        try:
            label, step = events.get_nowait()
        except Empty:
            return
        progress(label, step)
