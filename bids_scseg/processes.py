"""Worker processes that never outlive their run, and take the programs that they started with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess


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


def _watch(parent: BaseProcess) -> None:
    connection.wait([parent.sentinel])
    if os.getpgrp() == os.getpid():
        end_group(os.getpid())
    os._exit(1)
