"""A dataset of real scans with implanted lesions: what is written, from what, and that it comes again."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.match import match_image
from bids_scseg.bids.query import find_studies
from bids_scseg.bids.references import find_lesion_maps
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.grid import Grid
from bids_scseg.synth.implant_files import Job, write_implanted
from bids_scseg.synth.implanted import (
    ImplantSettings,
    copy_rng,
    draw_implants,
    implant_session,
    read_real_session,
)

RECIPE = load_recipe("cord-lesion")


def affine_of(spacing, shape, bottom):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-shape[0] * spacing[0] / 2, -shape[1] * spacing[1] / 2, bottom]
    return affine


def scan(path, *, spacing, shape, bottom=-60.0, mask=None, slope=None, seed=0, cord_at=0.0):
    """An elliptic cord in fluid, int16, written with a header that a rewriting would change."""
    affine = affine_of(spacing, shape, bottom)
    grid = Grid(shape=shape, affine=affine)
    x, y, _ = np.moveaxis(grid.to_world(np.stack(np.indices(shape), axis=-1)), -1, 0)
    cord = ((x - cord_at) / 6.0) ** 2 + (y / 4.0) ** 2 <= 1
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    data = np.where(cord, 400.0, np.where(np.hypot(x - cord_at, y) < 10, 900.0, 150.0)) + noise
    image = nib.Nifti1Image(data.astype(np.int16), affine)
    image.header["descrip"] = b"left as it is"
    image.header.set_slope_inter(slope or 1.0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(cord.astype(np.uint8), affine), mask)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two subjects: a sagittal and an axial scan and one that is no sequence; and a scan without a mask."""
    root = tmp_path_factory.mktemp("real")
    description = {"Name": "healthy", "BIDSVersion": "1.9.0", "License": "CC0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-02\t40\nsub-01\t30\n")
    anat, labels = root / "sub-01" / "anat", root / "derivatives" / "labels" / "sub-01" / "anat"
    scan(
        anat / "sub-01_acq-sag_T2w.nii.gz", spacing=(1, 1, 1), shape=(30, 32, 120), slope=0.5,
        mask=labels / "sub-01_acq-sag_T2w_label-SC_seg.nii.gz", seed=1,
    )  # fmt: skip
    scan(
        anat / "sub-01_T2starw.nii.gz", spacing=(0.6, 0.6, 4), shape=(50, 50, 24), seed=2, bottom=-40.0,
        mask=labels / "sub-01_T2starw_label-SC_seg.nii.gz",
    )  # fmt: skip
    scan(anat / "sub-01_flip-1_mt-on_MTS.nii.gz", spacing=(1, 1, 4), shape=(30, 30, 10), seed=3)
    (anat / "sub-01_acq-sag_T2w.json").write_text('{"EchoTime": 0.1}')
    other = root / "sub-02" / "ses-a" / "anat"
    scan(other / "sub-02_ses-a_T2starw.nii.gz", spacing=(0.6, 0.6, 4), shape=(50, 50, 10), seed=4)
    return root


@pytest.fixture(scope="module")
def masks(dataset):
    return (dataset / "derivatives" / "labels",)


@pytest.fixture(scope="module")
def session(dataset, masks):
    return read_real_session(find_studies(dataset)[0], RECIPE, masks=masks)


@pytest.fixture(scope="module")
def written(dataset, masks, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "implants"
    settings = ImplantSettings(seed=7, copies=2, free_share=0.0)
    records = write_implanted(
        find_studies(dataset), Job(out=out, recipe=RECIPE, masks=masks, settings=settings)
    )
    return out, records


def rows_of(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_which_images_serve_is_said(written):
    out, _ = written
    images = {row["image"]: row for row in rows_of(out / "derivatives" / "labels" / "images.tsv")}
    sag = images["sub-01/anat/sub-01_acq-sag_T2w.nii.gz"]
    assert (sag["state"], sag["sequence"]) == ("painted", "T2Sag")
    assert images["sub-01/anat/sub-01_T2starw.nii.gz"]["sequence"] == "T2StarAx"
    assert "magnetisation transfer" in images["sub-01/anat/sub-01_flip-1_mt-on_MTS.nii.gz"]["reason"]
    assert "no cord mask" in images["sub-02/ses-a/anat/sub-02_ses-a_T2starw.nii.gz"]["reason"]
    assert not (out / "sub-02").exists()


def test_copies_are_sessions_of_the_same_subject_and_differ(written):
    out, _ = written
    first, second = (
        np.asarray(nib.load(out / f"sub-01/ses-{s}/anat/sub-01_ses-{s}_acq-sag_T2w.nii.gz").dataobj)
        for s in ("i01", "i02")
    )
    assert not np.array_equal(first, second)
    sessions = rows_of(out / "sub-01" / "sub-01_sessions.tsv")
    assert [row["session_id"] for row in sessions] == ["ses-i01", "ses-i02"]
    assert (out / "participants.tsv").read_text() == "participant_id\tage\nsub-01\t30\n"


@pytest.mark.parametrize("follow", [False, True])
def test_files_beside_the_images_are_links_out_of_the_dataset_only_where_that_is_asked_for(
    dataset, tmp_path, follow
):
    root, out, store = tmp_path / "bids", tmp_path / "out", tmp_path / "store"
    shutil.copytree(dataset, root)
    (root / "T2w.json").write_text('{"Shared": 1}')
    store.mkdir()
    for name in ("participants.tsv", "T2w.json", "sub-01/anat/sub-01_acq-sag_T2w.json"):
        (root / name).symlink_to((root / name).rename(store / Path(name).name))
    job = Job(
        out=out, recipe=RECIPE, masks=(root / "derivatives/labels",), settings=ImplantSettings(seed=7),
        follow_links=follow,
    )  # fmt: skip
    write_implanted(find_studies(root, participants=("01",), follow_links=follow), job)
    own = json.loads((out / "sub-01/anat/sub-01_acq-sag_T2w.json").read_text())
    assert ("EchoTime" in own) == follow
    assert own["SourceImage"] == "sub-01/anat/sub-01_acq-sag_T2w.nii.gz"
    assert (out / "T2w.json").exists() == follow
    assert ("age" in (out / "participants.tsv").read_text()) == follow


def test_a_copy_bears_all_that_the_sidecars_of_its_source_say(dataset, tmp_path):
    root, out = tmp_path / "bids", tmp_path / "out"
    shutil.copytree(dataset, root)
    sidecars = {
        "T2w.json": {"EchoTime": 1.0, "ImageType": ["ORIGINAL", "PRIMARY"], "Level": "dataset"},
        "acq-ax_T2w.json": {"InversionTime": 9.0},
        "T1w.json": {"Level": "another suffix"},
        "sub-01/sub-01_acq-sag_T2w.json": {"InversionTime": 0.2, "Level": "subject", "Coil": {"Ch": [1, 2]}},
        "sub-01/sub-01_T2w.json": {"Level": "subject, of fewer entities", "SliceThickness": 1.0},
        "sub-02/sub-02_T2w.json": {"Level": "another subject"},
        "sub-01/sub-01_T2starw.json": ["no object"],
    }  # own: {"EchoTime": 0.1}
    for name, content in sidecars.items():
        (root / name).write_text(json.dumps(content))
    (root / "sub-01/anat/T2starw.json").write_text("{broken")
    job = Job(
        out=out, recipe=RECIPE, masks=(root / "derivatives/labels",),
        settings=ImplantSettings(seed=7, copies=2),
    )  # fmt: skip
    studies = find_studies(root, participants=("01",))
    write_implanted(studies, job)
    source = next(image for image in studies[0].images if image.entity("acq") == "sag")
    assert match_image(source, RECIPE).sequence == "STIR"  # by the subject's sidecar alone
    for study in find_studies(out):
        copy = next(image for image in study.images if image.entity("acq") == "sag")
        assert match_image(copy, RECIPE).sequence == "STIR"
        own = json.loads(Path(copy.path.replace(".nii.gz", ".json")).read_text())
        assert {key: own[key] for key in own if key not in ("SourceImage", "ImplantedLesions")} == {
            "EchoTime": 0.1, "ImageType": ["ORIGINAL", "PRIMARY"], "InversionTime": 0.2,
            "Level": "subject", "Coil": {"Ch": [1, 2]}, "SliceThickness": 1.0,
        }  # fmt: skip


def test_header_and_voxels_outside_the_cord_keep_their_bytes(written, dataset):
    out, _ = written
    source = gzip.decompress((dataset / "sub-01/anat/sub-01_acq-sag_T2w.nii.gz").read_bytes())
    target = gzip.decompress((out / "sub-01/ses-i01/anat/sub-01_ses-i01_acq-sag_T2w.nii.gz").read_bytes())
    assert target[:352] == source[:352]
    cord = np.asarray(
        nib.load(dataset / "derivatives/labels/sub-01/anat/sub-01_acq-sag_T2w_label-SC_seg.nii.gz").dataobj
    )
    before, after = (
        np.frombuffer(content[352:], "<i2").reshape(cord.shape, order="F") for content in (source, target)
    )
    changed = before != after
    assert changed.any()
    assert not changed[cord == 0].any()


def test_lesions_are_where_the_labels_say(written, dataset):
    out, _ = written
    before = nib.load(dataset / "sub-01/anat/sub-01_T2starw.nii.gz").get_fdata()
    after = nib.load(out / "sub-01/ses-i01/anat/sub-01_ses-i01_T2starw.nii.gz").get_fdata()
    base = out / "derivatives/labels/sub-01/ses-i01/anat/sub-01_ses-i01"
    number = np.asarray(nib.load(f"{base}_seg-lesions_desc-T2starw_dseg.nii.gz").dataobj)
    mask = np.asarray(nib.load(f"{base}_label-lesion_desc-T2starw_mask.nii.gz").dataobj)
    assert np.array_equal(mask > 0, number > 0)
    rows = [
        row for row in rows_of(out / "derivatives/labels/lesions.tsv")
        if row["session_id"] == "ses-i01" and row["sequence"] == "T2StarAx" and row["cnr"] != "n/a"
    ]  # fmt: skip
    assert rows
    for row in rows:
        inside = number == int(row["index"])
        assert int(row["voxels"]) == inside.sum()
        if float(row["amplitude"]) > 0.1:
            assert (after - before)[inside].mean() > 0


def test_truth_of_the_session_agrees_with_that_of_its_images(written):
    out, _ = written
    base = out / "derivatives/labels/sub-01/ses-i02/anat/sub-01_ses-i02"
    truth = nib.load(f"{base}_seg-lesions_res-iso_desc-truth_dseg.nii.gz")
    whole = np.asarray(truth.dataobj)
    own = nib.load(f"{base}_acq-sag_seg-lesions_desc-T2w_dseg.nii.gz")
    number = np.asarray(own.dataobj)
    table = rows_of(Path(f"{base}_seg-lesions_res-iso_desc-truth_dseg.tsv"))
    assert {int(row["index"]) for row in table} == set(np.unique(whole)) - {0}
    for row in table:
        n = int(row["index"])
        assert (whole == n).sum() * 0.125 == pytest.approx(float(row["volume_mm3"]), rel=0.25)
        centre = truth.affine @ [*np.argwhere(whole == n).mean(axis=0), 1]
        native = own.affine @ [*np.argwhere(number == n).mean(axis=0), 1]
        assert np.abs(centre - native).max() < 1.0
        assert row["realised_T2Sag"] in ("visible", "faint", "invisible")


def test_the_program_finds_images_cords_and_lesions(written):
    out, _ = written
    labels = out / "derivatives" / "labels"
    study = find_studies(out)[0]
    maps, _ = find_lesion_maps(study, (labels,))
    assert maps[0].whole
    found = read_real_session(study, RECIPE, masks=(labels,))
    assert [source.lender for source in found.sources] == ["", ""]
    assert all(source.mask for source in found.sources)


def test_same_seed_same_bytes_however_many_workers(written, dataset, masks, tmp_path):
    out, _ = written
    again = tmp_path / "again"
    settings = ImplantSettings(seed=7, copies=2, free_share=0.0)
    write_implanted(
        find_studies(dataset), Job(out=again, recipe=RECIPE, masks=masks, settings=settings), workers=2
    )
    assert tree(again) == tree(out)


def test_a_session_with_an_empty_mask_costs_no_other(dataset, tmp_path):
    root = tmp_path / "two"
    shutil.copytree(dataset, root)
    mask = root / "derivatives/labels/sub-02/ses-a/anat/sub-02_ses-a_T2starw_label-SC_seg.nii.gz"
    image = nib.load(root / "sub-02/ses-a/anat/sub-02_ses-a_T2starw.nii.gz")
    mask.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
    job = Job(
        out=tmp_path / "out", recipe=RECIPE, masks=(root / "derivatives/labels",),
        settings=ImplantSettings(seed=1),
    )  # fmt: skip
    first, second = write_implanted(find_studies(root), job)
    assert len(first.sessions) == 1
    assert second.sessions == ()
    assert "no spinal cord" in second.sources[0].reason
    # one copy keeps the labels of the source
    assert (tmp_path / "out/sub-01/anat/sub-01_acq-sag_T2w.nii.gz").is_file()


def test_a_free_copy_is_the_source_with_empty_truth(session):
    done = implant_session(session, ImplantSettings(seed=1, free_share=1.0), 1)
    assert done.implants == ()
    assert not done.truth.any()
    for image in session.images:
        assert np.array_equal(done.painted[image.name].data, image.data)


def test_share_of_free_copies_and_number_of_lesions(session):
    settings = ImplantSettings(seed=3, free_share=0.25, lesions=1.6)
    counts = np.array(
        [len(draw_implants(copy_rng(settings, "sub-01", n), session.cord, settings)) for n in range(24)]
    )
    # 24 copies: 6 free, standard deviation 2.1
    assert 1 <= (counts == 0).sum() <= 12
    # 120 mm of cord: 1 + 1.6 * 120 / 160 = 2.2, less where there is no room
    assert counts[counts > 0].mean() == pytest.approx(2.1, abs=0.7)


def test_lesions_lie_apart_and_in_the_covered_cord(session):
    settings = ImplantSettings(seed=3, free_share=0.0, lesions=6.0, method="field")
    implants = draw_implants(copy_rng(settings, "sub-01", 1), session.cord, settings)
    arcs = [implant.lesion.arc_mm for implant in implants]
    assert arcs == sorted(arcs, reverse=True)
    assert min(arcs) > -session.cord.covered_mm - 1
    assert max(arcs) <= 1
    for one, other in pairwise(implants):
        assert one.lesion.arc_mm - other.lesion.arc_mm > (one.lesion.length_mm + other.lesion.length_mm) / 2


def rescan(tmp_path, dataset, *, cord_at):
    """The dataset's first subject alone, with a second axial scan that has no mask."""
    root = tmp_path / "rescan"
    shutil.copytree(dataset, root, ignore=shutil.ignore_patterns("sub-02"))
    anat, labels = root / "sub-01" / "anat", root / "derivatives/labels/sub-01/anat"
    (anat / "sub-01_T2starw.nii.gz").rename(anat / "sub-01_run-1_T2starw.nii.gz")
    (labels / "sub-01_T2starw_label-SC_seg.nii.gz").rename(
        labels / "sub-01_run-1_T2starw_label-SC_seg.nii.gz"
    )
    scan(
        anat / "sub-01_run-2_T2starw.nii.gz", spacing=(0.7, 0.7, 3), shape=(60, 60, 30), seed=9, bottom=-38.0,
        cord_at=cord_at,
    )  # fmt: skip
    found = read_real_session(find_studies(root)[0], RECIPE, masks=(root / "derivatives/labels",))
    return {source.image.name: source for source in found.sources}["sub-01_run-2_T2starw.nii.gz"], found


def test_a_rescan_borrows_the_mask_of_its_sequence(tmp_path, dataset):
    source, found = rescan(tmp_path, dataset, cord_at=0.0)
    assert source.lender == "sub-01_run-1_T2starw.nii.gz"
    cord = next(image for image in found.images if image.name.endswith("run-2_T2starw.nii.gz"))
    # a cross-section of pi * 6 * 4 = 75.4 mm2 over the 92 mm that both cover, of 3 mm slices
    assert cord.cord.sum() * cord.grid.voxel_volume == pytest.approx(75.4 * 88, rel=0.06)


def test_a_scan_of_another_place_borrows_nothing(tmp_path, dataset):
    source, _ = rescan(tmp_path, dataset, cord_at=16.0)
    assert "none of this session that fits" in source.reason
