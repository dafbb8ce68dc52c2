from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(40):
            write_json(tmp_path / "a.json", {"content": [number] * 200})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(read_json(tmp_path / "a.json")["content"])) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
