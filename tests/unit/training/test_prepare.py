from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import prepared_sessions
import pytest
from labelled_sessions import PHANTOM, recipe, save, write_dataset, write_session

from bids_scseg.bids.query import find_studies
from bids_scseg.errors import MissingInputError
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.space.grid import Grid
from bids_scseg.training import prepare, session
from bids_scseg.training.cases import load_case, rules_of
from bids_scseg.training.prepare import PreparedRow, check_labels, prepare_sessions
from bids_scseg.training.session import CordTool, Preparation


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
    # rows of other sessions stay, and a case that is not to be had as it is asked for now goes
    prepare_sessions(find_studies(dataset, participants=("02",)), first)
    assert set(table(tmp_path)) == {"sub-01", "sub-02"}
    (row,) = prepare_sessions(studies, replace(first, use_masks=False))
    assert (row.state, row.earlier) == ("refused", False)
    assert "earlier case removed" in table(tmp_path)["sub-01"]["cause"]
    assert not (tmp_path / "sub-01").exists()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_kept(row: PreparedRow, out: Path, before: dict[str, bytes]) -> None:
    """That a failure left the case of sub-01 alone, and that its row says so."""
    assert (row.session, row.state, row.earlier, row.ok) == ("sub-01", "failed", True, False)
    assert row.cause.endswith("; earlier case kept")
    assert "remove sub-01" in row.remedy
    assert content(out / "sub-01") == before
    assert table(out)["sub-01"]["state"] == "failed"
    assert "earlier case kept" in table(out)["sub-01"]["cause"]


def test_labels_of_another_place_cost_no_case(dataset: Path, tmp_path: Path) -> None:
    """A folder that exists and has the maps of others alone."""
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(dataset / "derivatives/labels/sub-02", other / "sub-02")
    studies = find_studies(dataset, participants=("01", "02"))
    first = setting(dataset, out)
    prepare_sessions(studies, first)
    before = content(out / "sub-01")
    row, _ = prepare_sessions(studies, replace(first, labels=(other,)))
    check_kept(row, out, before)
    assert "sub-01 has no lesion map" in row.cause
    assert [one.state for one in prepare_sessions(studies[:1], first)] == ["kept"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_failures_that_are_not_a_cases_leave_it(
    dataset: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = find_studies(dataset, participants=("01",))
    prepare_sessions(studies, setting(dataset, tmp_path))
    before = content(tmp_path / "sub-01")

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "make_plan", broken)
    (row,) = prepare_sessions(studies, setting(dataset, tmp_path))
    check_kept(row, tmp_path, before)
    assert type(error).__name__ in row.cause


def test_images_that_are_gone_for_a_while_cost_no_case(tmp_path: Path) -> None:
    """A disk that goes away under a run: nobody has changed the images."""
    write_session(tmp_path / "bids", "01")
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    studies, first = find_studies(tmp_path / "bids"), setting(tmp_path / "bids", tmp_path / "out")
    prepare_sessions(studies, first)
    before = content(tmp_path / "out" / "sub-01")
    (tmp_path / "bids" / "sub-01").rename(tmp_path / "away")
    (row,) = prepare_sessions(studies, first)
    check_kept(row, tmp_path / "out", before)
    assert "FileNotFoundError" in row.cause


def test_a_labels_folder_without_any_map_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    wrong = replace(setting(dataset, tmp_path / "out"), labels=(tmp_path,))
    with pytest.raises(MissingInputError) as caught:
        check_labels(find_studies(dataset), wrong, strangers=["labels of sub-77 are not used"])
    text = str(caught.value)
    for words in (str(tmp_path), "no session has a lesion map here (4 looked at", "labels of sub-77",
                  "*_label-lesion_mask.nii.gz", "Correct --labels"):  # fmt: skip
        assert words in text
    check_labels(find_studies(dataset), setting(dataset, tmp_path / "out"))
    # a map that cannot be used is one, and its row says what is wrong with it
    check_labels(find_studies(dataset, participants=("04",)), setting(dataset, tmp_path / "out"))
    with pytest.raises(MissingInputError, match="orrect --labels or --lesion-desc"):
        check_labels(find_studies(dataset), setting(dataset, tmp_path / "out", desc="other"))


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


def axial_found(data: np.ndarray, grid: Grid) -> np.ndarray:
    """A finder that knows the axial scan's cord."""
    return phantoms.cord_mask(PHANTOM, grid).astype(np.float32)


@pytest.mark.parametrize(
    ("names", "jitter_mm", "finder", "recorded"),
    [
        ((), 0.0, "cord-finder", "cord-finder+masks"),
        ((), 0.3, "cord-finder", "cord-finder+jittered-masks"),
        (("spinalcordtoolbox: sct_deepseg spinalcord",), 0.0, "cord-finder", "cord-finder+sct"),
        (("spinalcordtoolbox: sct_deepseg spinalcord",), 0.3, "", "sct"),
        (("sct_deepseg_sc", "Manual"), 0.0, "", "masks"),
    ],
)
def test_all_origins_of_a_sessions_cords_are_recorded(
    tmp_path: Path,
    names: tuple[str, ...],
    jitter_mm: float,
    finder: str,
    recorded: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sagittal scan has a mask, made by who is named; the axial one has none."""
    root = tmp_path / "bids"
    write_session(root, "01")
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    labels = root / "derivatives" / "labels"
    (labels / "sub-01/anat/sub-01_acq-ax_label-SC_mask.nii.gz").unlink()
    described = {"Name": "l", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": name} for name in names]}
    (labels / "dataset_description.json").write_text(json.dumps(described))
    monkeypatch.setattr(prepare, "load_finder", lambda bundle, threads: axial_found)
    prepare_sessions(find_studies(root), setting(root, tmp_path / "out", jitter_mm=jitter_mm, finder=finder))
    record = json.loads((tmp_path / "out" / "sub-01" / "case.json").read_text())
    assert record["cord_method"] == recorded


def test_a_case_is_made_anew_when_its_masks_are_said_to_be_scts(tmp_path: Path) -> None:
    root, out = tmp_path / "bids", tmp_path / "out"
    write_session(root, "01")
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.9.0"}')
    prepare_sessions(find_studies(root), setting(root, out))
    description = root / "derivatives" / "labels" / "dataset_description.json"
    description.write_text('{"GeneratedBy": [{"Name": "Spinal Cord Toolbox"}]}')
    assert [row.state for row in prepare_sessions(find_studies(root), setting(root, out))] == ["done"]
    assert json.loads((out / "sub-01" / "case.json").read_text())["cord_method"] == "sct"


def test_another_programs_cords_are_held_against_what_a_cord_can_be(dataset: Path, tmp_path: Path) -> None:
    """Of the axial scan it finds too little to be a cord, as the app sees it: the scan is left out."""

    def segment(image: Path, folder: Path) -> Path:
        small = "acq-ax" in image.name
        grid = prepared_sessions.AXIAL if small else prepared_sessions.UPPER
        mask = phantoms.cord_mask(PHANTOM, grid).astype(np.uint8)
        mask[:, :, 1 if small else mask.shape[2] :] = 0
        return save(folder / "cord.nii.gz", mask, grid)

    tool = CordTool(origin="sct", sha256="1", segment=segment)
    studies = find_studies(dataset, participants=("01",))
    alone = setting(dataset, tmp_path, use_masks=False, tool=tool)
    (row,) = prepare_sessions(studies, alone)
    assert (row.state, row.sequences) == ("done", "Sag")
    record = json.loads((tmp_path / "sub-01" / "case.json").read_text())
    assert record["cord_method"] == "sct"
    assert [one.state for one in prepare_sessions(studies, alone)] == ["kept"]
    other = replace(alone, tool=replace(tool, sha256="2"))  # another release of it
    assert [one.state for one in prepare_sessions(studies, other)] == ["done"]


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
