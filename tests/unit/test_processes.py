from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from bids_scseg.processes import worker_pool

PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from bids_scseg.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_idle_worker_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait(timeout=20)
    until = time.monotonic() + 20
    while time.monotonic() < until and alive(worker):
        time.sleep(0.1)
    assert not alive(worker)


def test_a_pool_that_is_left_by_an_error_waits_for_nobody() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError), worker_pool(1) as pool:
        worker = pool.submit(os.getpid).result()
        pool.submit(time.sleep, 600)
        raise RuntimeError
    assert time.monotonic() - start < 300
    assert not alive(worker)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_a_worker_that_is_killed_is_noticed_while_the_others_work() -> None:
    """Also the one that was started last, whom the executor's manager does not know when it goes to sleep."""
    with worker_pool(2) as pool, pytest.raises(BrokenProcessPool):
        working = [pool.submit(time.sleep, 600) for _ in range(2)]
        while len(pool._processes or {}) < 2:
            time.sleep(0.01)
        os.kill(list(pool._processes)[-1], signal.SIGKILL)
        done, _ = wait(working, timeout=30, return_when=FIRST_COMPLETED)
        assert done, "nobody noticed"
        done.pop().result()
