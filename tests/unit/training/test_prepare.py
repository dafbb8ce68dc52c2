from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import prepared_sessions
import pytest
from labelled_sessions import PHANTOM, recipe, write_dataset

from bids_scseg.bids.query import find_studies
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.space.grid import Grid
from bids_scseg.training import prepare, session
from bids_scseg.training.cases import load_case, rules_of
from bids_scseg.training.prepare import PreparedRow, prepare_sessions
from bids_scseg.training.session import Preparation


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("bids"))


def setting(dataset: Path, out: Path, **changes) -> Preparation:
    return Preparation(
        out=out, labels=(dataset / "derivatives/labels",), recipe=recipe(), register=False, **changes
    )


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "prepared.tsv").open(newline="") as handle:
        return {row["session"]: row for row in csv.DictReader(handle, delimiter="\t")}


def test_good_sessions_become_cases_and_bad_ones_rows(dataset: Path, tmp_path: Path) -> None:
    seen: list[PreparedRow] = []
    studies = find_studies(dataset)
    rows = prepare_sessions(studies, setting(dataset, tmp_path), progress=seen.append)
    assert seen == rows
    assert [row.state for row in rows] == ["done", "done", "refused", "failed"]
    found = table(tmp_path)
    assert found["sub-01"]["lesions"] == "2"
    assert float(found["sub-01"]["volume_mm3"]) == pytest.approx(2 * 268, rel=0.2)
    assert found["sub-01"]["sequences"] == "Sag+Ax"
    assert found["sub-02"]["lesions"] == "0"
    assert "lie in no annotated image" in found["sub-01"]["warnings"]
    assert found["sub-01"]["warnings"] == "; ".join(rows[0].warnings)
    assert "no lesion map" in found["sub-03"]["cause"]
    assert "lattice" in found["sub-04"]["cause"]
    assert found["sub-04"]["remedy"]
    assert found["sub-04"]["lesions"] == "n/a"
    case = load_case(tmp_path / "sub-01", sequences=("Sag", "Ax"))
    assert case.lesions == (1, 2)
    assert case.available.all()
    record = json.loads((tmp_path / "sub-01" / "case.json").read_text())
    assert record["preparation"] == PREPARATION_VERSION
    assert record["cord_method"] == "masks"
    assert record["rules"] == rules_of(recipe())
    assert record["lesion_maps"] == ["sub-01_acq-sag_T2w_lesion-manual.nii.gz"]
    # the lesions were drawn on bright ones: the label lies where the prepared image is bright
    sag = case.image[0].astype(float)
    cord = np.load(tmp_path / "sub-01" / "cord.npy") > 0
    inside = (case.label > 0) & (case.label < 255) & cord
    assert sag[inside].mean() > sag[cord & (case.label == 0)].mean() + 0.3


def test_finished_cases_are_kept_until_something_changes(dataset: Path, tmp_path: Path) -> None:
    studies = find_studies(dataset, participants=("01",))
    first = setting(dataset, tmp_path)
    assert [row.state for row in prepare_sessions(studies, first)] == ["done"]
    (row,) = prepare_sessions(studies, first)
    assert (row.state, row.lesions) == ("kept", 2)
    (row,) = prepare_sessions(studies, replace(first, jitter_mm=0.3))
    assert row.state == "done"
    record = json.loads((tmp_path / "sub-01" / "case.json").read_text())
    assert record["cord_method"] == "jittered-masks"
    # rows of other sessions stay, and a case that can no longer be made goes
    prepare_sessions(find_studies(dataset, participants=("02",)), first)
    assert set(table(tmp_path)) == {"sub-01", "sub-02"}
    (row,) = prepare_sessions(studies, replace(first, desc="other"))
    assert row.state == "refused"
    assert not (tmp_path / "sub-01").exists()


def test_a_kill_leaves_no_half_case(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = find_studies(dataset, participants=("01",))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "publish_case", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_sessions(studies, setting(dataset, tmp_path))
    assert not (tmp_path / "sub-01").exists()
    assert [row.state for row in prepare_sessions(studies, setting(dataset, tmp_path))] == ["done"]
    assert not list(tmp_path.glob(".*"))


def test_an_unexpected_error_is_a_row_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(session, "prepare_session", broken)
    (row,) = prepare_sessions(find_studies(dataset, participants=("01",)), setting(dataset, tmp_path))
    assert row.state == "failed"
    assert "ZeroDivisionError: by chance" in row.cause


def test_without_masks_and_finder_no_cord_is_found(dataset: Path, tmp_path: Path) -> None:
    without = setting(dataset, tmp_path, use_masks=False)
    (row,) = prepare_sessions(find_studies(dataset, participants=("01",)), without)
    assert row.state == "refused"
    assert "no sequence of this session can serve as anchor" in row.cause


def test_the_finder_serves_where_masks_do_not(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_grid = {grid: phantoms.cord_mask(PHANTOM, grid).astype(np.float32)
               for grid in (prepared_sessions.UPPER, prepared_sessions.AXIAL)}  # fmt: skip

    def find(data: np.ndarray, grid: Grid) -> np.ndarray:
        return next(mask for known, mask in by_grid.items() if known.shape == grid.shape)

    monkeypatch.setattr(prepare, "load_finder", lambda bundle, threads: find)
    alone = setting(dataset, tmp_path, use_masks=False, finder="cord-finder")
    (row,) = prepare_sessions(find_studies(dataset, participants=("01",)), alone)
    assert (row.state, row.lesions) == ("done", 2)
    record = json.loads((tmp_path / "sub-01" / "case.json").read_text())
    assert record["cord_method"] == "cord-finder"
    assert set(record["cords"].values()) == {"cord-finder"}


@pytest.mark.slow  # starting processes afresh takes seconds each
def test_two_processes_give_what_one_gives(dataset: Path, tmp_path: Path) -> None:
    studies = find_studies(dataset, participants=("01", "02", "03"))
    prepare_sessions(studies, setting(dataset, tmp_path / "one", jitter_mm=0.4))
    rows = prepare_sessions(studies, setting(dataset, tmp_path / "two", jitter_mm=0.4), workers=2)
    assert sorted(row.state for row in rows) == ["done", "done", "refused"]
    for name in ("image.npy", "label.npy"):
        one, two = ((tmp_path / run / "sub-01" / name).read_bytes() for run in ("one", "two"))
        assert one == two


def test_the_table_is_written_now_and_then_and_at_the_end(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    original = prepare.write_table

    def counted(out: Path, rows: list[PreparedRow]) -> Path:
        writes.append(len(rows))
        return original(out, rows)

    def stopped(row: PreparedRow) -> None:
        if row.session == "sub-30":
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_table", counted)
    monkeypatch.setattr(prepare, "prepare_one", lambda study, _: PreparedRow(session=study, state="refused"))
    names = [f"sub-{number:02d}" for number in range(50)]
    with pytest.raises(KeyboardInterrupt):
        prepare_sessions(names, setting(dataset, tmp_path), progress=stopped)  # type: ignore[arg-type]
    assert writes == [1, 31]
    assert sorted(table(tmp_path)) == names[:31]
    prepare_sessions(names[31:], setting(dataset, tmp_path))  # type: ignore[arg-type]
    assert writes[2:] == [1, 19]
    assert sorted(table(tmp_path)) == names
