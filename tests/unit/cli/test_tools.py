from __future__ import annotations

import pytest

from bids_scseg.cli import tools
from bids_scseg.cli.tools import main
from bids_scseg.training.config import load_config


def test_a_demo_is_never_written_over_something(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    assert main(["demo", str(tmp_path)]) == 73
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "x", "--subjects", "0"], ["nonsense"], []])
def test_wrong_usage_is_code_64(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 64
    assert capsys.readouterr().err.startswith("scseg: ")


def test_an_absent_training_configuration_is_named(tmp_path, capsys):
    code = main(["train", str(tmp_path / "no.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert code in (65, 66)
    assert "no.toml" in capsys.readouterr().err


def test_a_packaged_configuration_is_shown_to_be_copied(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--show", "own-finetune"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    (tmp_path / "ours.toml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "ours.toml") == load_config("own-finetune")
    assert main(["train", "--show", "own-fintune"]) == 66
    assert "Did you mean 'own-finetune'?" in capsys.readouterr().err


def test_help_names_the_packaged_configurations(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "own or own-finetune" in " ".join(capsys.readouterr().out.split())


LONG = "x" * 300  # no file can bear such a name


@pytest.mark.parametrize(
    "arguments", [["verify", LONG], ["demo", LONG], ["slurm", LONG, "out"], ["slurm", ".", LONG]]
)
def test_a_path_that_the_system_refuses_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (16, 66, 73)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scseg: ")


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RecursionError(), 65), (MemoryError(), 1)]
)
def test_an_interruption_or_hostile_input_is_one_line(error, code, tmp_path, monkeypatch, capsys):
    def fail(_arguments):
        raise error

    monkeypatch.setattr(tools, "run_demo", fail)
    assert main(["demo", str(tmp_path)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scseg: ")
