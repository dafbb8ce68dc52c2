"""The run's log files and its exit code."""

from __future__ import annotations

import csv
import threading

import pytest

from bids_scseg.cli.participant import exit_code
from bids_scseg.errors import BusyError, CordNotFoundError, GeometryError, ImageError
from bids_scseg.workflows import status
from bids_scseg.workflows.job import SessionOutcome, failed
from bids_scseg.workflows.status import STATUS_COLUMNS, Derived, write_outcome, write_status


def rows_of(out):
    with (out / "logs" / "status.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_status_has_a_row_for_each_session_and_one_line_for_each_text(tmp_path):
    bad = ImageError("voxels\ncannot be\tread", file="/raw/a.nii.gz", expected="an image", remedy="fetch it")
    write_outcome(tmp_path, failed("sub-02", bad, step="prepare", seconds=1.26), run={})
    done = SessionOutcome(label="sub-01", state="done", seconds=3.0, warnings=("first", "second"))
    write_outcome(tmp_path, done, run={})
    write_status(tmp_path)
    one, two = rows_of(tmp_path)
    assert tuple(one) == STATUS_COLUMNS
    assert (one["session"], one["cause"], one["warnings"]) == ("sub-01", "n/a", "first; second")
    assert (two["state"], two["step"], two["seconds"]) == ("refused", "prepare", "1.3")
    assert two["cause"] == "voxels cannot be read; expected an image"
    assert (two["file"], two["remedy"], two["warnings"]) == ("/raw/a.nii.gz", "fetch it", "n/a")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (CordNotFoundError("no cord"), "refused"),
        (ImageError("constant"), "refused"),
        (GeometryError("does not fit"), "failed"),
        (BusyError("another run"), "busy"),
    ],
)
def test_the_state_says_whose_fault_it_is(error, state):
    assert failed("sub-01", error, step="x").state == state


@pytest.mark.parametrize(
    ("states", "total", "code"),
    [
        (["done", "done"], 2, 0),
        (["done", "refused"], 2, 1),
        (["done"], 2, 1),  # stopped at the first crash
        (["done", "busy"], 2, 75),
        (["busy", "failed"], 2, 1),
    ],
)
def test_exit_codes(states, total, code):
    outcomes = [SessionOutcome(label=f"sub-{n}", state=state) for n, state in enumerate(states)]
    assert exit_code(outcomes, total=total) == code


def test_runs_side_by_side_leave_a_status_with_everybody(tmp_path):
    """Each writes its session's log, then the table of all; the last table must know every log."""

    def finish(number):
        write_outcome(tmp_path, SessionOutcome(label=f"sub-{number:02d}", state="done"), run={})
        write_status(tmp_path)

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(tmp_path)) == 12
    assert sorted(path.name for path in (tmp_path / "logs").glob(".*")) == [".status.lock"]


def test_what_is_made_of_all_sessions_is_made_now_and_then(tmp_path, monkeypatch):
    """And it takes a small share of the time, however many sessions there are."""
    clock, made = [100.0], []
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])

    def slow(_):
        made.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr(status, "write_status", slow)
    monkeypatch.setattr(status.checksums, "merge", lambda _: None)
    derived = Derived(tmp_path)
    for _ in range(50):
        derived.renew()
        clock[0] += 1.0
    assert made == [100.0, 142.0]  # 2 s are a twentieth of 40 s
    derived.renew(now=True)
    assert len(made) == 3
