"""The output dataset as a whole: description, links, and no validator error for any name we write."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bids_builders import image, lattice, write_dataset

from bids_scseg.bids.dataset import (
    check_output_folder,
    dataset_name,
    image_metadata,
    is_own_dataset,
    mask_metadata,
    own_uri,
    raw_uri,
    write_dataset_files,
)
from bids_scseg.bids.names import cord_mask_name, image_names, session_names, slab_names
from bids_scseg.bids.write import write_image, write_json, write_text, write_tsv
from bids_scseg.errors import OutputError
from bids_scseg.recipe.load import load_recipe

RECIPE = load_recipe("cord-lesion")
GRID = lattice("ax", slices=5)


def small(grid=GRID):
    from bids_scseg.space.grid import Grid

    return Grid(shape=(4, 4, 5), affine=grid.affine)


@pytest.fixture
def raw(tmp_path):
    return write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T2w.nii.gz")


def snapshot(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_doing_it_twice_changes_nothing(raw):
    out = raw / "derivatives" / "bids_scseg"
    write_dataset_files(out, raw, recipe=RECIPE, version="1.2")
    first = snapshot(out)
    write_dataset_files(out, raw, recipe=RECIPE, version="1.2")
    assert snapshot(out) == first
    description = json.loads(first["dataset_description.json"])
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert description["GeneratedBy"] == [{"Name": "bids_scseg", "Version": "1.2"}]
    assert first[".bidsignore"].splitlines()[1] == b"figures"


def test_links_to_folders_of_corrections_stay_while_they_lead_somewhere(raw, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()

    def links(**more: Path) -> set[str]:
        write_dataset_files(out, raw, recipe=RECIPE, version="1.2", links=more)
        found = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
        assert found["raw"] == raw.as_uri()
        return set(found)

    assert links(mine=mine) == {"raw", "mine"}
    assert links() == {"raw", "mine"}  # sessions of the earlier run name it
    mine.rmdir()
    assert links() == {"raw"}


def test_names_for_uris():
    assert dataset_name("my masks/2") == "mymasks2"
    assert dataset_name("raw") == "derivatives-raw"  # the input's
    assert dataset_name("§") == "derivatives"


def test_whose_folder_it_is(raw, tmp_path):
    write_dataset_files(tmp_path / "out", raw, recipe=RECIPE, version="1.2")
    assert is_own_dataset(tmp_path / "out")
    assert not is_own_dataset(raw)
    assert not is_own_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["README.md", ".bidsignore", "descriptions.tsv"])
def test_other_peoples_files_are_not_overwritten(raw, tmp_path, name):
    out = tmp_path / "project"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        write_dataset_files(out, raw, recipe=RECIPE, version="1.2")
    assert snapshot(out) == {name: b"mine"}


def test_link_to_a_dataset_elsewhere_is_a_uri_and_its_doi_is_kept(raw, tmp_path):
    content = {"Name": "x", "BIDSVersion": "1.9.0", "DatasetDOI": "doi:10.1/x"}
    (raw / "dataset_description.json").write_text(json.dumps(content))
    write_dataset_files(tmp_path / "out", raw, recipe=RECIPE, version="1")
    description = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert description["DatasetLinks"]["raw"] == raw.resolve().as_uri()
    assert description["SourceDatasets"][0]["DOI"] == "doi:10.1/x"


def test_folders_of_others_are_refused(raw, tmp_path):
    with pytest.raises(OutputError, match="is the input dataset"):
        check_output_folder(raw, raw)
    with pytest.raises(OutputError, match="among the input's images"):
        check_output_folder(raw / "sub-01" / "x", raw)
    other = write_dataset(tmp_path / "other")
    with pytest.raises(OutputError, match="holds another dataset"):
        check_output_folder(other, raw)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_output_folder(tmp_path / "file", raw)
    check_output_folder(tmp_path / "new", raw)


def write_session(out, anchor, others, *, subject, session):
    """All files of one session, with tiny images."""
    grid = small()
    data = np.zeros(grid.shape)
    data[1:3, 1:3, 2] = 1
    names = session_names(anchor, subject=subject, session=session)
    sources = [raw_uri(one.relative) for one in anchor]
    for item in [names.result, *slab_names(anchor), *map(image_names, others)]:
        write_image(out, item.probseg, data, grid=grid, metadata=image_metadata(sources, description="p"))
        mask = mask_metadata([own_uri(item.probseg)], kind="Lesion", description="m")
        write_image(out, item.mask, data > 0, grid=grid, metadata=mask)
        write_image(out, item.dseg, data > 0, grid=grid, metadata=image_metadata(sources, description="i"))
    write_tsv(out, names.table, [{"index": 1, "name": "lesion 1"}], columns=("index", "name"))
    fused = image_metadata(sources, description="f", more={"SkullStripped": False})
    write_image(out, names.fused, data, grid=grid, metadata=fused)
    for one in (*anchor, *others):
        cord = mask_metadata([raw_uri(one.relative)], kind="ROI", description="cord")
        write_image(out, cord_mask_name(one), data > 0, grid=grid, metadata=cord)
    for path in (names.geometry, names.summary, names.log):
        write_json(out, path, {"x": 1})
    write_text(out, names.report, "<html></html>")
    write_text(out, names.figures + "mosaic.svg", "<svg/>")


def test_every_name_passes_the_validator(tmp_path, raw):
    validator = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    out = tmp_path / "out"
    write_dataset_files(out, raw, recipe=RECIPE, version="1")
    cases = [
        (
            None,
            ["acq-sag_chunk-1_T2w", "acq-sag_chunk-2_T2w"],
            ["acq-stir_T2w", "T2starw", "run-2_T2w", "UNIT1"],
        ),
        ("1", ["acq-a_T2w", "acq-b_T2w"], ["acq-x_rec-norm_echo-1_part-mag_chunk-1_MEGRE", "inv-1_T1w"]),
        (None, ["UNIT1"], ["T2w"]),
        ("2", ["run-1_T2starw", "run-2_T2starw"], []),
        (None, ["echo-2_MEGRE"], []),
    ]
    for number, (session, anchor, others) in enumerate(cases):
        subject = f"{number:02d}"
        files = [
            [image(one, GRID, subject=subject, session=session) for one in group]
            for group in (anchor, others)
        ]
        write_session(out, *files, subject=subject, session=session)
    done = subprocess.run(
        [validator, str(out), "--format", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [(issue["code"], issue.get("location")) for issue in issues if issue.get("severity") == "error"]
    assert errors == []
    assert done.returncode == 0
