from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.training.files import digest, read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"one": 1, "path": tmp_path})
    assert read_json(file) == {"one": 1, "path": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [None, "", '{"one": 1', "[1]"])
def test_what_is_no_whole_object_is_nothing(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert read_json(file) == {}


def test_a_checksum_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
