from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bids_scseg.cli.app import main
from bids_scseg.cli.parser import build_parser, parse
from bids_scseg.errors import UnknownLevelError, UsageError

BASE = ["in", "out", "participant"]


def test_prefixes_are_stripped_and_both_spellings_work():
    for flag in ("--participant-label", "--participant_label"):
        assert parse([*BASE, flag, "sub-01", "02"]).participants == ("01", "02")
    for flag in ("--session-label", "--session-id", "--session_label", "--session_id"):
        assert parse([*BASE, flag, "ses-a"]).sessions == ("a",)


def test_command_line_wins_over_config_file_and_config_fills_the_rest(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('threshold = 0.3\nnprocs = 5\nmodel = "mine"\n')
    options = parse([*BASE, "--config-file", str(config), "--nprocs", "2"])
    assert (options.nprocs, options.threshold, options.model) == (2, 0.3, "mine")


def test_memory_needs_a_unit():
    assert parse([*BASE, "--mem", "8000MB"]).mem_gb == pytest.approx(8)
    with pytest.raises(UsageError, match="unit"):
        parse([*BASE, "--mem", "8000"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "gpu"],
        ["--threshold", "2"],
        ["--min-volume", "-1"],
        ["--min-volume", "inf"],
        ["--participant-label", "../x"],
        ["--nprocs", "-1"],
        ["--nonsense"],
    ],
)
def test_wrong_values_are_usage_errors(arguments):
    with pytest.raises(UsageError):
        parse([*BASE, *arguments])


def test_unknown_level():
    with pytest.raises(UnknownLevelError):
        parse(["in", "out", "everything"])


def test_dash_means_no_raw_dataset():
    assert parse(["-", "out", "group"]).bids_dir is None


def test_an_earlier_geometry_is_found_from_everywhere():
    assert parse([*BASE, "--geometry", "earlier"]).geometry == Path("earlier").absolute()
    assert parse(BASE).geometry is None


def test_the_smallest_lesion_is_the_models_unless_given():
    assert parse(BASE).min_volume is None
    assert parse([*BASE, "--min-volume", "0"]).min_volume == 0
    assert parse([*BASE, "--min_volume", "7.5"]).min_volume == 7.5


def test_the_seed_threshold_is_the_models_unless_given():
    assert parse(BASE).seed_threshold is None
    assert parse([*BASE, "--seed-threshold", "0"]).seed_threshold == 0
    assert parse([*BASE, "--seed_threshold", "0.8"]).seed_threshold == 0.8
    with pytest.raises(UsageError, match="seed-threshold"):
        parse([*BASE, "--seed-threshold", "1"])


def test_derivatives_keep_names():
    options = parse([*BASE, "-d", "masks=/data/m", "/data/labels"])
    assert options.derivatives == (("masks", Path("/data/m")), ("labels", Path("/data/labels")))


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 64), (["a", "b", "c"], 17), ([*BASE, "--mem", "1"], 64)]
)
def test_exit_codes_and_one_line_messages(arguments, code, capsys):
    assert main(arguments) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_every_option_has_help_text():
    assert all(action.help for action in build_parser()._actions)


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = (
        "import sys; from bids_scseg.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'nipype', 'bids', 'numpy', 'pandas', 'monai', 'ants', 'nibabel'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "participant" in done.stdout
    assert time.monotonic() - start < 5  # a hang, not a benchmark
