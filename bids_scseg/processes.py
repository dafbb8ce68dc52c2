"""Worker processes that never outlive their run, and take the programs that they started with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def end_with_parent() -> None:
    """Lead a process group of one's own, and end it when the parent process ends, however it ends.

    A worker waits for work on a pipe that it holds open itself, and would never notice that the run is gone.
    """
    with suppress(OSError):
        os.setpgrp()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def end_group(pid: int) -> None:
    """Kill a worker and the programs that it started; nothing if there are none left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class WorkerPool(ProcessPoolExecutor):
    """One that notices the death of every worker at once.

    CPython's executor (3.11) wakes its manager before it starts the worker that a submission asks for, so the
    manager waits on those before it: of the last one's death it would hear when another one ends.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the executor's."""
        before = len(self._processes or {})
        future = super().submit(fn, *args, **kwargs)
        wakeup = getattr(self, "_executor_manager_thread_wakeup", None)
        with self._shutdown_lock:  # a pool that is closing closes the pipe under it
            # once a worker: a pipe that nobody empties would block
            if wakeup is not None and len(self._processes or {}) > before:
                wakeup.wakeup()
        return future


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with the run, and at once where an error or an interruption leaves the block.

    They are started afresh: forking a process whose threads compute is unsafe.
    """
    context = multiprocessing.get_context("spawn")
    with WorkerPool(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            # the executor would wait until they have done what they are at
            for pid, process in list((pool._processes or {}).items()):
                end_group(pid)
                process.kill()  # one that leads no group yet
            raise


def _watch(parent: BaseProcess) -> None:
    connection.wait([parent.sentinel])
    if os.getpgrp() == os.getpid():
        end_group(os.getpid())
    os._exit(1)
