"""Writing: whole or not at all, repeatable to the byte, never outside, safe when two write at once."""

from __future__ import annotations

import json
import os
import threading

import nibabel as nib
import numpy as np
import pytest
from bids_builders import lattice
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.bids.write import (
    rebuild,
    safe_join,
    write_bytes,
    write_image,
    write_json,
    write_text,
    write_tsv,
)
from bids_scseg.errors import OutputError
from bids_scseg.space.grid import Grid

GRID = Grid(shape=(3, 4, 5), affine=lattice("ax").affine)


@pytest.mark.parametrize("relative", ["/etc/x", "../x", "a/../../x", "", "a/../b"])
def test_paths_that_lead_out_are_refused(tmp_path, relative):
    with pytest.raises(OutputError, match="outside"):
        safe_join(tmp_path, relative)


def test_link_that_leads_out_is_refused(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "sub-01").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="outside"):
        write_text(out, "sub-01/a.txt", "x")
    assert list(elsewhere.iterdir()) == []


@given(st.text(max_size=12))
def test_any_path_stays_inside_or_is_refused(tmp_path_factory, relative):
    root = tmp_path_factory.getbasetemp() / "inside"
    try:
        path = safe_join(root, relative)
    except (OutputError, ValueError):  # ValueError: a null byte
        return
    assert path.resolve().is_relative_to(root.resolve())


def test_failed_write_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    write_text(tmp_path, "a.txt", "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_text(tmp_path, "a.txt", "new")
    assert caught.value.exit_code == 73
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_file_where_a_folder_is_needed(tmp_path):
    write_text(tmp_path, "a", "x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path, "a/b", "x")


def test_outputs_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_text(tmp_path, "a.txt", "x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_writers_at_once_leave_one_whole_file(tmp_path):
    contents = [bytes([n]) * 200_000 for n in range(8)]
    threads = [
        threading.Thread(target=write_bytes, args=(tmp_path, "d/a.bin", content)) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "d/a.bin").read_bytes() in contents
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.bin"]


def test_table(tmp_path):
    rows = [
        {"index": 1, "name": "a\tb\nc", "volume": 12.3456789, "anatomical": True},
        {"index": np.int64(2), "name": "", "volume": float("nan"), "anatomical": None},
        {"index": 3, "name": "x", "volume": np.float32(0.5)},
    ]
    path = write_tsv(tmp_path, "t.tsv", rows, columns=("index", "name", "volume", "anatomical"))
    assert path.read_bytes().decode() == (
        "index\tname\tvolume\tanatomical\n1\ta b c\t12.3457\ttrue\n2\tn/a\tn/a\tn/a\n3\tx\t0.5\tn/a\n"
    )
    assert write_tsv(tmp_path, "e.tsv", [], columns=("index", "name")).read_text() == "index\tname\n"
    with pytest.raises(OutputError, match="'other' is not declared"):
        write_tsv(tmp_path, "t.tsv", [{"other": 1}], columns=("index",))


def test_json_is_plain_and_keeps_geometry(tmp_path):
    data = {"b": np.array([0.1, np.nan]), "a": (1, 2), "s": {2, 1}, "f": 1 / 3, "u": "é", "n": np.int32(4)}
    path = write_json(tmp_path, "a.json", data)
    assert path.read_text().endswith("}\n") and "é" in path.read_text()
    loaded = json.loads(path.read_text())
    assert list(loaded) == ["b", "a", "s", "f", "u", "n"]
    assert loaded["b"] == [0.1, None] and loaded["s"] == [1, 2]
    assert abs(loaded["f"] - 1 / 3) < 1e-11


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (np.ones(GRID.shape, bool), np.uint8),
        (np.full(GRID.shape, 200, np.int64), np.uint8),
        (np.full(GRID.shape, 300, np.int64), np.uint16),
        (np.full(GRID.shape, 70000, np.int64), np.int32),
        (np.full(GRID.shape, -1, np.int64), np.int32),
        (np.full(GRID.shape, 0.25), np.float32),
    ],
)
def test_image_keeps_values_lattice_and_has_its_sidecar(tmp_path, data, dtype):
    path = write_image(tmp_path, "sub-01/anat/a.nii.gz", data, grid=GRID, metadata={"Type": "Lesion"})
    img = nib.load(path)
    assert img.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(img.dataobj), data)
    np.testing.assert_allclose(img.affine, GRID.affine)
    assert (int(img.header["sform_code"]), int(img.header["qform_code"])) == (1, 1)
    assert json.loads((tmp_path / "sub-01/anat/a.json").read_text()) == {"Type": "Lesion"}


def test_image_has_the_same_bytes_each_time_and_no_time_or_name(tmp_path):
    data = np.random.default_rng(0).random(GRID.shape)
    paths = [write_image(tmp_path, f"{n}.nii.gz", data, grid=GRID, metadata={}) for n in "ab"]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4)  # gzip flags (no name) and time stamp


def test_sidecar_comes_first(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "bids_scseg.bids.write.write_bytes", lambda _root, relative, _content: seen.append(relative)
    )
    write_image(tmp_path, "a.nii.gz", np.zeros(GRID.shape), grid=GRID, metadata={})
    assert seen == ["a.json", "a.nii.gz"]


def test_data_of_another_shape_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"data of shape \(2, 2, 2\)"):
        write_image(tmp_path, "a.nii.gz", np.zeros((2, 2, 2)), grid=GRID, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_who_finds_another_at_a_rebuild_leaves_it_to_that_one(tmp_path):
    """Nobody waits, and what came while the other was reading is in the file all the same."""
    made, known = [], ["first"]

    def make():
        made.append(list(known))
        if len(made) == 1:  # another run ends while this one writes
            known.append("second")
            rebuild(tmp_path, "logs/.all.lock", lambda: pytest.fail("two at once"))

    rebuild(tmp_path, "logs/.all.lock", make)
    assert made == [["first"], ["first", "second"]]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [".all.lock"]
