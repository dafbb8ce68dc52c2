from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import pytest
from labelled_sessions import move_to_store, write_session

from bids_scseg.cli.implant import implant_settings, make_room, mask_folders, read_settings
from bids_scseg.cli.tools import build_tools_parser, main
from bids_scseg.errors import DataError, MissingInputError, OutputError, UsageError
from bids_scseg.synth import IMPLANT_VERSION

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GOOD = f'implant = {IMPLANT_VERSION}\nseed = 3\ncopies = 2\nfree_share = 0.2\nmethod = "field"\n'


def parsed(*options: str) -> argparse.Namespace:
    return build_tools_parser().parse_args(["implant", "bids", "out", *options])


def test_options_come_before_the_description(tmp_path: Path) -> None:
    file = tmp_path / "few.toml"
    file.write_text(GOOD)
    settings = implant_settings(parsed("--config", str(file), "--copies", "5"))
    assert settings == {"seed": 3, "copies": 5, "free_share": 0.2, "method": "field"}


def test_a_seed_is_asked_for_and_copies_are_bounded() -> None:
    with pytest.raises(UsageError, match="no seed"):
        implant_settings(parsed())
    with pytest.raises(UsageError, match="100 copies"):
        implant_settings(parsed("--seed", "1", "--copies", "100"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("copies = 2", 'copies = "2"', "copies"),
        ('"field"', '"other"', "method"),
        ("0.2", "1.2", "free_share"),
        ("seed = 3\n", "", "seed"),
        (f"implant = {IMPLANT_VERSION}", "implant = 99", "version 99"),
        ("seed", "speed", "speed"),
        ("= 3", "= =", "not valid TOML"),
        ("seed = 3", "seed = -3", "seed"),
        ("copies = 2", "copies = 0", "copies"),
        ("copies = 2", "lesions = -1.0", "lesions"),
        ("copies = 2", "lesions = nan", "lesions"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_settings(file)


def test_impossible_keys_alone_are_named(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(GOOD.replace("seed = 3", "seed = -3") + "lesions = -1.0\n")
    with pytest.raises(DataError, match=r"keys \['lesions', 'seed'\]"):
        read_settings(file)


def test_the_frozen_test_set_is_the_frozen_test_set() -> None:
    """These values decide which lesions a model is judged by: other values are another file."""
    text = tomllib.loads((CONFIGS / "implant-test.toml").read_text(encoding="utf-8"))
    frozen = {
        "implant": 1,
        "seed": 918273,
        "copies": 3,
        "free_share": 0.125,
        "method": "field",
        "lesions": 1.6,
    }
    assert text == frozen | {"name": "implants for testing"}
    training = read_settings(CONFIGS / "implant-train.toml")
    assert (training["method"], training["seed"]) != (text["method"], text["seed"])


def test_folders_are_checked(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "derivatives" / "b").mkdir(parents=True)
    (raw / "derivatives" / "a").mkdir()
    assert [path.name for path in mask_folders([], raw)] == ["a", "b"]
    assert mask_folders([Path("derivatives/b")], raw) == (raw / "derivatives" / "b",)
    with pytest.raises(MissingInputError, match="no such folder"):
        mask_folders([tmp_path / "none"], raw)
    with pytest.raises(OutputError, match="within the source"):
        make_room(raw / "out", raw, overwrite=True)


def test_only_a_dataset_of_this_command_is_overwritten(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    make_room(out, raw, overwrite=False)
    out.mkdir()
    (out / "photos").mkdir()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an empty folder"):
            make_room(out, raw, overwrite=overwrite)
    (out / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "bids_scseg implant"}]}')
    with pytest.raises(OutputError, match="not an empty folder"):
        make_room(out, raw, overwrite=False)
    make_room(out, raw, overwrite=True)
    assert list(out.iterdir()) == []


def test_a_dataset_without_masks_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    (raw / "sub-01" / "anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    assert main(["implant", str(raw), str(tmp_path / "out"), "--seed", "1"]) == 66
    assert "cord masks" in capsys.readouterr().err


def test_links_out_of_the_dataset_are_followed_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_session(raw, "01", labelled=False)
    (raw / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    move_to_store(raw, tmp_path / "store", "sub-01/anat/*")
    words = ["implant", str(raw), str(out), "--seed", "1"]
    assert main(words) == 66
    assert "allow it with --follow-links" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--follow-links"]) == 0
    assert "2 images painted, 0 left out" in capsys.readouterr().err
