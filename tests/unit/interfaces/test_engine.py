from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.interfaces.engine import lasting_name


def test_a_models_path_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting_name("run/bundle") == str(tmp_path / "run" / "bundle")
    assert lasting_name(str(tmp_path)) == str(tmp_path)
    assert lasting_name("cord-lesion") == "cord-lesion"
    assert lasting_name("sct:lesion_ms") == "sct:lesion_ms"
