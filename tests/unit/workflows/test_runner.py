from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runner_jobs import play

from bids_scseg.errors import BusyError, OutputError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.job import SessionJob, failed, no_usable_image, run_job, session_lock
from bids_scseg.workflows.runner import run_sessions


def job(subject, folder="."):
    plan = Plan(
        subject=subject, session=None, dataset="d", recipe="r", sequences=(), missing=("T2Sag",), anchor=None,
        left_out=(("sub-1/anat/x_MTR.nii.gz", "an MT image"),),
    )  # fmt: skip
    options = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant")
    return SessionJob(
        plan=plan, options=options, socket="", model_path="", model_sha256="", cord_method="", cord_path="",
        cord_sha256="", threshold=0.5, device="cpu", started=str(folder),
    )  # fmt: skip


def run(subjects, folder=".", *, workers=2, stop=False):
    steps = []
    outcomes = list(
        run_sessions(
            [job(subject, folder) for subject in subjects],
            workers=workers,
            stop_on_first_crash=stop,
            progress=lambda label, step: steps.append((label, step)),
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
    assert "memory" in outcomes["sub-killed"].cause


def test_a_worker_killed_once_is_tried_again_alone(tmp_path):
    outcomes, _ = run(["once", "a"], tmp_path)
    assert all(outcome.ok for outcome in outcomes.values())
    assert len(outcomes) == 2


def test_failures_do_not_stop_others_unless_asked():
    outcomes, steps = run(["bad", "a", "b"], workers=1)
    assert len(outcomes) == 3
    assert ("sub-a", "begin") in steps
    assert list(run(["bad", "a", "b"], workers=1, stop=True)[0]) == ["sub-bad"]


def test_two_runs_cannot_hold_one_session(tmp_path):
    with session_lock(tmp_path, "sub-1"):
        with session_lock(tmp_path, "sub-2"):
            pass
        with pytest.raises(BusyError, match="another run"), session_lock(tmp_path, "sub-1"):
            pass
    with session_lock(tmp_path, "sub-1"):
        pass


def test_runs_of_two_outputs_do_not_share_a_sessions_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("bids_scseg.workflows.job._run_graph", lambda *_: ())
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
