from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.training import journal
from bids_scseg.training.journal import Clock, append_row, trim_rows


def test_the_clock_tells_waiting_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.0, 14.0, 17.0, 20.0, 30.0, 31.0, 33.0])
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(now))
    clock = Clock()
    clock.start()  # 10: the first batch; how long it took to come counts nowhere
    clock.stop()  # 13: 3 s of work
    clock.start()  # 14: 1 s of waiting
    clock.stop()  # 17: 3 s of work
    assert clock.read() == (7.0, pytest.approx(1 / 7))
    clock.start()  # 20: 3 s of waiting
    clock.pause()  # 30: something else was done
    clock.start()  # 31: 1 s of waiting
    clock.stop()  # 33: 2 s of work
    assert clock.read() == (6.0, pytest.approx(4 / 6))
    assert clock.read() == (0.0, 0.0)


def test_rows_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for step in (1, 2, 3):
        append_row(log, {"iteration": step, "loss": 0.5})
    with log.open("a") as handle:
        handle.write("4,")
    trim_rows(log, 9)
    assert log.read_text().split() == ["iteration,loss", "1,0.5", "2,0.5", "3,0.5"]
    trim_rows(log, 2)
    append_row(log, {"iteration": 3, "loss": 0.4})
    assert log.read_text().split() == ["iteration,loss", "1,0.5", "2,0.5", "3,0.4"]
    trim_rows(log, 0)
    assert not log.exists()
    trim_rows(log, 0)  # nothing to do


def test_new_columns_are_added_to_an_older_log(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    append_row(log, {"iteration": 1, "loss": 0.5})
    append_row(log, {"iteration": 2, "waiting": 0.1, "loss": 0.4})
    assert log.read_text().split() == ["iteration,loss,waiting", "1,0.5,", "2,0.4,0.1"]
    # a row that lacks a later column is whole
    trim_rows(log, 1)
    assert log.read_text().split() == ["iteration,loss,waiting", "1,0.5,"]
