from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.cli.synth import read_set
from bids_scseg.cli.tools import main
from bids_scseg.errors import DataError
from bids_scseg.synth import GENERATOR_VERSION

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GOOD = f"""name = "few"
generator = {GENERATOR_VERSION}
seed = 3
subjects = 2
sequences = ["T2Sag"]
"""


def test_a_set_is_drawn_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {}

    def draw(out: Path, subjects: int, **options) -> None:
        seen.update(options, out=out, subjects=subjects)

    monkeypatch.setattr("bids_scseg.synth.dataset.write_training_set", draw)
    (tmp_path / "few.toml").write_text(GOOD)
    assert main(["synth", str(tmp_path / "few.toml"), str(tmp_path / "out"), "--nprocs", "1"]) == 0
    assert (seen["subjects"], seen["seed"], seen["first"], seen["sequences"]) == (2, 3, 0, ("T2Sag",))
    assert "few: 2 synthetic subjects" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    assert main(["synth", str(tmp_path / "few.toml"), str(tmp_path / "out")]) == 73


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            f"generator = {GENERATOR_VERSION}",
            f"generator = {GENERATOR_VERSION + 1}",
            "made for version 3",
        ),
        ("seed = 3", "", "seed"),
        ("seed = 3", "seed = 3.5", "seed"),
        ("subjects = 2", "subjects = 0", "subjects"),
        ("subjects = 2", "subject = 2", "subject"),
        ('"T2Sag"', '"T9"', "T9"),
        ("[", "]", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_set(path)


def test_the_test_set_shares_no_draw_with_the_training_set() -> None:
    test, data = (read_set(CONFIGS / f"walsh2024-{name}.toml") for name in ("test", "data"))
    assert test.subjects >= 100
    assert test.seed != data.seed
