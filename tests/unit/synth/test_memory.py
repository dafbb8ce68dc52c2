"""Sessions in memory: the same as the files, and fit for the preparation."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.preprocess.labels import labels_to_prepared
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.geometry import Slab
from bids_scseg.synth.dataset import write_training_set
from bids_scseg.synth.memory import SyntheticSession, draw_session

SEED, NUMBER, SEQUENCES = 2, 0, ("T2StarAx",)


@pytest.fixture(scope="module")
def session() -> SyntheticSession:
    return draw_session(SEED, NUMBER, sequences=SEQUENCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files")
    write_training_set(out, 1, seed=SEED, sequences=SEQUENCES)
    return out


def test_arrays_are_those_of_the_files(session: SyntheticSession, folder: Path) -> None:
    files = sorted((folder / "sub-0000" / "anat").glob("*.nii.gz"))
    slabs = session.images["T2StarAx"]
    assert [path.name for path in files] == [f"sub-0000_{name}.nii.gz" for *_, name in slabs]
    for path, (data, grid, _), cord in zip(files, slabs, session.cords["T2StarAx"], strict=True):
        stored = nib.load(path)
        np.testing.assert_array_equal(np.asanyarray(stored.dataobj), data)
        np.testing.assert_array_equal(stored.affine, grid.affine)
        name = path.name.replace("_T2starw.nii.gz", "_label-SC_mask.nii.gz")
        mask = nib.load(folder / "derivatives" / "labels" / "sub-0000" / "anat" / name)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj) > 0, cord)


def test_truth_is_that_of_the_files(session: SyntheticSession, folder: Path) -> None:
    (path,) = (folder / "derivatives" / "labels").rglob("*_desc-truth_dseg.nii.gz")
    stored = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), session.lesions)
    np.testing.assert_array_equal(stored.affine, session.lesions_grid.affine)
    with path.with_suffix("").with_suffix(".tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert rows
    for row in rows:
        shown = row["realised_T2StarAx"]
        assert session.visible[int(row["index"])] == (SEQUENCES if shown == "visible" else ())
        assert session.faint[int(row["index"])] == (SEQUENCES if shown == "faint" else ())


def test_the_preparation_takes_it(session: SyntheticSession) -> None:
    case, _ = prepare_session(session.images, session.cords, load_recipe("cord-lesion"), register=False)
    assert case.image.shape[1:] == case.geometry.grid.shape
    slab = Slab(key=case.geometry.anchor, index=0, file="truth", grid=session.lesions_grid)
    label = labels_to_prepared(case.geometry, session.lesions, slab)
    # straightening preserves volume: lesions that the window holds keep theirs
    for number in np.unique(label[label > 0]):
        prepared, native = int((label == number).sum()), int((session.lesions == number).sum())
        touches_end = (label == number)[:, :, [0, -1]].any()
        assert touches_end or prepared == pytest.approx(native, rel=0.1)
    assert label.any()
