from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runner_jobs import play
from unit_jobs import job

from bids_scseg.errors import BusyError, DiskFullError, OutputError
from bids_scseg.workflows import job as job_module
from bids_scseg.workflows.budget import Budget, Device
from bids_scseg.workflows.job import failed, no_usable_image, run_job, session_lock, temporary_files
from bids_scseg.workflows.runner import run_sessions


def run(subjects, folder=".", *, workers=2, stop=False, budget=None):
    steps = []
    outcomes = list(
        run_sessions(
            [job(subject, folder) for subject in subjects],
            workers=workers,
            stop_on_first_crash=stop,
            progress=lambda label, step: steps.append((label, step)),
            budget=budget,
            run=play,
        )
    )
    return {outcome.label: outcome for outcome in outcomes}, steps


def test_a_killed_worker_is_that_sessions_failure_and_nobody_elses():
    outcomes, _ = run(["a", "killed", "slowb", "c", "d"])
    assert {label for label, outcome in outcomes.items() if outcome.ok} == {
        "sub-a",
        "sub-slowb",
        "sub-c",
        "sub-d",
    }
    killed = outcomes["sub-killed"]
    assert "memory" in killed.cause
    assert (killed.state, killed.step) == ("failed", "begin")
    assert "run on a larger machine" in killed.remedy


def test_a_worker_killed_once_is_tried_again_alone(tmp_path):
    outcomes, _ = run(["once", "a"], tmp_path)
    assert all(outcome.ok for outcome in outcomes.values())
    assert len(outcomes) == 2


def test_failures_do_not_stop_others_unless_asked():
    outcomes, steps = run(["bad", "a", "b"], workers=1)
    assert len(outcomes) == 3
    assert ("sub-a", "begin") in steps
    assert list(run(["bad", "a", "b"], workers=1, stop=True)[0]) == ["sub-bad"]


def ended(pid, seconds=20):
    """Whether a process is gone, or soon is; a zombie is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_programs_of_a_killed_worker_end_with_it(tmp_path):
    outcomes, _ = run(["tool"], tmp_path)
    assert outcomes["sub-tool"].state == "failed"
    assert ended(int((tmp_path / "tool.pid").read_text()))


def test_when_the_whole_run_is_killed_nothing_of_it_goes_on(tmp_path):
    """Workers, one of them idle, and the programs that they started."""
    script = (
        f"import runner_jobs\nif __name__ == '__main__':\n    runner_jobs.run_for_ever({str(tmp_path)!r})\n"
    )
    (tmp_path / "main.py").write_text(script)
    tests = str(Path(__file__).parents[2])
    run_ = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        env={**os.environ, "PYTHONPATH": tests},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(found := [path.read_text().split() for path in tmp_path.glob("*.pid")]) < 2 or not all(found):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(run_.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    run_.send_signal(signal.SIGKILL)
    run_.wait()
    assert len(children) >= 2
    for pid in {*children, *(number for pids in found for number in pids)}:
        assert ended(int(pid))


def test_a_full_disk_ends_the_run():
    outcomes, _ = run(["full", "a", "b", "c"], workers=1)
    assert list(outcomes) == ["sub-full"]
    assert failed("sub-1", DiskFullError("x"), step="write").ends_run
    assert not failed("sub-1", OutputError("x"), step="write").ends_run


def test_after_the_end_of_a_run_no_session_is_tried_once_more(tmp_path):
    """Its worker is killed after another session has told of the full disk."""
    jobs = [job(subject, tmp_path) for subject in ("full", "onceended", "a")]
    outcomes = {}
    for outcome in run_sessions(
        jobs, workers=2, stop_on_first_crash=False, progress=lambda *_: None, run=play
    ):
        outcomes[outcome.label] = outcome
        (tmp_path / "told").touch()
    assert list(outcomes) == ["sub-full", "sub-onceended"]
    assert "the worker was killed" in outcomes["sub-onceended"].cause


def test_sessions_get_devices_and_wait_for_memory():
    devices = tuple(Device(address=f"/s{n}", description=f"cuda:{n}") for n in range(2))
    outcomes, _ = run(["device1", "device2", "device3"], budget=Budget(devices=devices))
    assert {outcome.device for outcome in outcomes.values()} == {"/s0 cuda:0", "/s1 cuda:1"}
    jobs = [job(f"slow{n}", memory_gb=3.0) for n in range(3)]
    start, running = time.monotonic(), []
    for _ in run_sessions(
        jobs, workers=3, stop_on_first_crash=False, progress=lambda *_: None, budget=Budget(memory_gb=5.0),
        run=play,
    ):  # fmt: skip
        running.append(time.monotonic() - start)
    assert running[2] - running[0] > 0.9  # half a second each, one after another


@pytest.mark.parametrize(
    ("error", "words", "ends_run"),
    [
        (OSError(28, "No space left on device"), "the disk is full", True),
        (
            RuntimeError("node failed:\nOSError: [Errno 28] No space left on device: 'x'"),
            "disk is full",
            True,
        ),
        (MemoryError(), "memory ran out", False),
        (
            RuntimeError("...\nnumpy._core._exceptions._ArrayMemoryError: MemoryError"),
            "memory ran out",
            False,
        ),
        (ValueError(), "unexpected ValueError", False),
        (KeyError("x"), "unexpected KeyError: 'x'", False),
    ],
)
def test_errors_that_are_not_ours_become_words(error, words, ends_run, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(job_module, "_run_graph", fail)
    given = job("1")
    options = replace(given.options, output_dir=tmp_path / "out")
    given = replace(given, plan=replace(given.plan, anchor="T2Sag"), options=options)
    outcome = run_job(given, progress=lambda _: None)
    assert (outcome.state, outcome.ends_run) == ("failed", ends_run)
    assert words in outcome.cause
    assert outcome.remedy


def test_temporary_files_lie_in_the_sessions_folder_and_go(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "of a killed run").touch()
    before = tempfile.gettempdir()
    with temporary_files(tmp_path / "tmp"), tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).parent == tmp_path / "tmp"
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert tempfile.gettempdir() == before
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_hold_one_session(tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "LOCK_WAIT_S", 0.0)
    with session_lock(tmp_path, "sub-1"):
        with session_lock(tmp_path, "sub-2"):
            pass
        with pytest.raises(BusyError, match="another run"), session_lock(tmp_path, "sub-1"):
            pass
    with session_lock(tmp_path, "sub-1"):
        pass


def test_runs_of_two_outputs_do_not_share_a_sessions_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "_run_graph", lambda *_: ())
    monkeypatch.setattr(job_module, "LOCK_WAIT_S", 0.0)
    work = tmp_path / "work"
    given = job("1")
    options = replace(given.options, output_dir=tmp_path / "out", work_dir=work, clean_workdir=True)
    given = replace(given, plan=replace(given.plan, anchor="T2Sag"), options=options)
    with session_lock(work / "sub-1", "sub-1"):
        assert run_job(given, progress=lambda _: None).state == "busy"
    assert run_job(given, progress=lambda _: None).state == "done"
    assert not work.exists()


def test_a_session_without_a_usable_image_is_refused_with_the_reasons():
    error = no_usable_image(job("1").plan)
    assert "an MT image" in str(error)
    assert failed("sub-1", error, step="start").state == "refused"
    assert failed("sub-1", OutputError("disk full", file="f"), step="x").state == "failed"


def test_an_interrupted_run_does_not_wait_for_its_sessions():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for _ in run_sessions(
            [job("hang1"), job("hang2"), job("a")],
            workers=3,
            stop_on_first_crash=False,
            progress=lambda *_: None,
            run=play,
        ):
            raise KeyboardInterrupt
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()
