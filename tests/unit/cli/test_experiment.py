from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bids_scseg.cli.experiment import STOPPED, _stoppable
from bids_scseg.cli.tools import build_tools_parser, main


def test_the_command_line_is_read() -> None:
    words = [
        "experiment",
        "e.toml",
        "--data",
        "D",
        "--out",
        "O",
        "--only",
        "mean:0",
        "frozen:1",
        "--jobs",
        "2",
    ]
    found = build_tools_parser().parse_args(words)
    assert (found.only, found.jobs, found.test) == (["mean:0", "frozen:1"], 2, None)


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["experiment", str(tmp_path / "no.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    assert code == 66
    assert "no.toml" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_one_line(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Somewhere:
        out = tmp_path

    before = signal.getsignal(signal.SIGTERM)
    # a shell starts what runs in its background with this signal ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit) as stopped, _stoppable(Somewhere()):  # type: ignore[arg-type]
        os.kill(os.getpid(), number)
    assert stopped.value.code == STOPPED
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) is before
