from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_experiment import tiny_experiment, write_cases

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
    assert not found.other_people
    assert build_tools_parser().parse_args([*words, "--other-people"]).other_people


def test_sequences_that_go_are_told_at_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_experiment(tmp_path)
    data = write_cases(tmp_path / "data", 10)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--only", "frozen:0"]
    assert main(["experiment", str(tmp_path / "tiny.toml"), *words]) == 1  # the baseline is not trained
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\[availability\] of tiny takes sequences from training sessions; "
        r"left: T2Sag (\d) of \1, STIR \d of \1, T2StarAx \d of \d",
        said[0],
    )
    assert said[1].startswith("[1/1] frozen:0: ")
    whole = (tmp_path / "tiny.toml").read_text().replace("share = 0.5", "share = 1.0")
    (tmp_path / "tiny.toml").write_text(whole)
    words[3] = str(tmp_path / "other")
    main(["experiment", str(tmp_path / "tiny.toml"), *words])
    assert "availability" not in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["experiment", str(tmp_path / "no.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    assert code == 66
    assert "no.toml" in capsys.readouterr().err
