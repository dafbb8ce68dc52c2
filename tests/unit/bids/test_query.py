"""Sessions and images of a dataset: nothing wanted is missed, nothing is lost in silence."""

from __future__ import annotations

import json

import pytest
from bids_builders import write_dataset, write_nifti

from bids_scseg.bids.query import find_studies, parse_name
from bids_scseg.errors import InvalidDatasetError, MissingInputError, NoMatchError, UsageError

A, B = "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz", "sub-02/anat/sub-02_acq-sag_T2w.nii.gz"
C = "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz"


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "raw", A, B, C)


def labels(studies):
    return [study.label for study in studies]


def only(studies):
    assert len(studies) == 1
    return {image.name: image for image in studies[0].images}


def test_all_sessions_in_order(dataset):
    studies = find_studies(dataset)
    assert labels(studies) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    image = studies[2].images[0]
    assert (image.relative, image.suffix, image.entity("acq")) == (B, "T2w", "sag")
    assert image.problem is None and image.named and image.grid.shape == (4, 5, 6)
    assert image.path == str(dataset / B)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"participants": ["sub-02"]}, ["sub-02"]),
        ({"participants": ["01"]}, ["sub-01_ses-1", "sub-01_ses-2"]),
        ({"sessions": ["ses-2"]}, ["sub-01_ses-2"]),
        ({"participants": ["01", "02"], "sessions": ["1"]}, ["sub-01_ses-1"]),
        ({"exclude": ["sub-01"]}, ["sub-02"]),
    ],
)
def test_filters(dataset, filters, expected):
    studies = find_studies(dataset, **filters)
    assert labels(studies) == expected
    assert all(len(study.images) == 1 for study in studies)


def test_one_label_does_not_select_another_that_begins_with_it(tmp_path):
    raw = write_dataset(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-10/anat/sub-10_T2w.nii.gz")
    assert labels(find_studies(raw, participants=["1"])) == ["sub-1"]


def test_no_match_names_what_exists(dataset):
    with pytest.raises(NoMatchError, match=r"participants 07.*participants 01, 02"):
        find_studies(dataset, participants=["07"])
    with pytest.raises(NoMatchError, match=r"sessions 9.*sessions 1, 2"):
        find_studies(dataset, sessions=["9"])
    with pytest.raises(MissingInputError, match=r"no sub-\* folder"):
        find_studies(write_dataset(dataset.parent / "empty"))


def test_absent_participant_beside_a_present_one_is_logged(dataset, caplog):
    assert labels(find_studies(dataset, participants=["02", "77"])) == ["sub-02"]
    assert "no such participant: 77" in caplog.text


@pytest.mark.parametrize("label", ["../etc", "a/b", "", "sub-*"])
def test_labels_that_are_no_labels_are_refused(dataset, label):
    with pytest.raises(UsageError, match="letters and digits"):
        find_studies(dataset, participants=[label])


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(MissingInputError):
        find_studies(tmp_path / "nowhere")
    with pytest.raises(InvalidDatasetError, match=r"no dataset_description\.json") as caught:
        find_studies(tmp_path)
    assert caught.value.exit_code == 16
    for content in ("{", "[]", '{"Name": "x"}'):
        (tmp_path / "dataset_description.json").write_text(content)
        with pytest.raises(InvalidDatasetError):
            find_studies(tmp_path)


def test_names_that_are_not_bids_are_found_and_marked(tmp_path):
    raw = write_dataset(
        tmp_path,
        "sub-01/anat/sub-01_STIR.nii.gz",
        "sub-01/anat/sub-01_T2w_corrected.nii.gz",
        "sub-01/anat/scan3.nii.gz",
        "sub-01/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii",
    )
    images = only(find_studies(raw))
    assert not images["sub-01_STIR.nii.gz"].named and images["sub-01_STIR.nii.gz"].problem is None
    assert "not a BIDS name" in images["scan3.nii.gz"].problem
    assert "not a BIDS name" in images["sub-01_T2w_corrected.nii.gz"].problem
    assert not images["sub-01_T2w.nii.gz"].named  # beside the anat folder
    assert images["sub-01_T1w.nii"].named
    assert only(find_studies(raw, validate_names=False))["sub-01_STIR.nii.gz"].named


def test_other_datatypes_and_derivatives_are_no_candidates(tmp_path):
    raw = write_dataset(
        tmp_path,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "derivatives/labels/sub-01/anat/sub-01_T2w_label-SC_seg.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T2w.nii.gz",
    )
    assert list(only(find_studies(raw))) == ["sub-01_T2w.nii.gz"]


def test_an_image_of_somebody_else_is_refused(tmp_path):
    raw = write_dataset(tmp_path, "sub-01/anat/sub-02_T2w.nii.gz", "sub-01/anat/sub-01_ses-1_T2w.nii.gz")
    images = only(find_studies(raw))
    assert all("another subject or session" in image.problem for image in images.values())


def test_broken_image_keeps_its_place_with_the_reason(tmp_path):
    raw = write_dataset(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz")
    (raw / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"x")
    images = only(find_studies(raw))
    assert images["sub-01_T1w.nii.gz"].grid is None
    assert images["sub-01_T1w.nii.gz"].problem.startswith("the content is not gzip-compressed")


def test_links(tmp_path):
    raw = write_dataset(tmp_path / "raw")
    anat = raw / "sub-01" / "anat"
    write_nifti(raw / ".git" / "annex" / "object.nii.gz")
    write_nifti(tmp_path / "secret.nii.gz")
    anat.mkdir(parents=True)
    (anat / "sub-01_T2w.nii.gz").symlink_to("../../.git/annex/object.nii.gz")
    (anat / "sub-01_T1w.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (anat / "sub-01_T2starw.nii.gz").symlink_to("../../.git/annex/absent.nii.gz")
    images = only(find_studies(raw))
    assert images["sub-01_T2w.nii.gz"].problem is None
    assert "leads out of the dataset" in images["sub-01_T1w.nii.gz"].problem
    assert "target is absent" in images["sub-01_T2starw.nii.gz"].problem


def test_links_that_lead_out_are_told_once_with_what_to_do(tmp_path, caplog):
    raw = write_dataset(tmp_path / "raw", A)
    for name in (B, C):
        stored = write_nifti(tmp_path / "store" / name)
        (raw / name).parent.mkdir(parents=True)
        (raw / name).symlink_to(stored)
    find_studies(raw)
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == (
        f"{raw}: 2 of 3 images not used, as links that lead out of the dataset (first: {C}); "
        "run again with --follow-links to use them"
    )
    caplog.clear()
    find_studies(raw, follow_links=True)
    assert caplog.messages == []


def test_dataset_behind_a_link_is_fine(dataset):
    link = dataset.parent / "link"
    link.symlink_to(dataset)
    assert all(image.problem is None for study in find_studies(link) for image in study.images)


def test_sidecars_are_inherited_from_above_and_overridden_below(tmp_path):
    raw = write_dataset(
        tmp_path,
        "sub-01/anat/sub-01_acq-sag_T2w.nii.gz",
        "sub-01/anat/sub-01_acq-ax_T2w.nii.gz",
        sidecars={
            "T2w.json": {"EchoTime": 0.1, "Manufacturer": "A", "ImageType": ["ORIGINAL", "M"]},
            "acq-sag_T2w.json": {"EchoTime": 0.2},
            "sub-01/sub-01_T2w.json": {"Manufacturer": "B", "Nested": {"x": 1}},
            "sub-01/anat/sub-01_acq-sag_T2w.json": {"EchoTime": 0.3},
            "T1w.json": {"EchoTime": 9},
        },
    )
    images = only(find_studies(raw))
    sagittal = dict(images["sub-01_acq-sag_T2w.nii.gz"].sidecar)
    assert sagittal == {"EchoTime": 0.3, "Manufacturer": "B", "ImageType": "ORIGINAL\\M"}
    assert dict(images["sub-01_acq-ax_T2w.nii.gz"].sidecar)["EchoTime"] == 0.1


@pytest.mark.parametrize(
    "content", [b"{,", b'{"EchoTime": 0.1,}', b'{"InstitutionName": "M\xfcnchen"}', b"[]"]
)
def test_a_broken_sidecar_is_named_and_costs_no_image(tmp_path, caplog, content):
    raw = write_dataset(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-ax_T2w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        sidecars={"sub-01/anat/sub-01_acq-ax_T2w.json": {"EchoTime": 0.2}},
    )
    (raw / "T2w.json").write_bytes(content)
    first, second = find_studies(raw)
    images = {image.name: image for image in (*first.images, *second.images)}
    assert all(image.problem is None and image.grid is not None for image in images.values())
    for name in ("sub-01_acq-ax_T2w.nii.gz", "sub-02_T2w.nii.gz"):
        (note,) = images[name].warnings
        assert note.startswith("its sidecar T2w.json is not used: it ")
    assert images["sub-01_T1w.nii.gz"].warnings == ()
    assert dict(images["sub-01_acq-ax_T2w.nii.gz"].sidecar) == {"EchoTime": 0.2}  # the sound one still counts
    assert caplog.text.count(str(raw / "T2w.json")) == 1


def test_a_sidecar_that_leads_out_of_the_dataset_is_not_read(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T2w.nii.gz")
    (tmp_path / "secret.json").write_text('{"EchoTime": 0.1}')
    (raw / "sub-01/anat/sub-01_T2w.json").symlink_to(tmp_path / "secret.json")
    image = only(find_studies(raw))["sub-01_T2w.nii.gz"]
    assert image.problem is None and image.sidecar == ()
    assert "a link that leads out of the dataset (allow it with --follow-links)" in image.warnings[0]
    allowed = only(find_studies(raw, follow_links=True))["sub-01_T2w.nii.gz"]
    assert dict(allowed.sidecar) == {"EchoTime": 0.1} and allowed.warnings == ()


def test_ratings_in_scans_table_and_sidecar(tmp_path):
    raw = write_dataset(
        tmp_path,
        *(f"sub-01/ses-1/anat/sub-01_ses-1_run-{run}_T2w.nii.gz" for run in (1, 2, 3)),
        sidecars={"sub-01/ses-1/anat/sub-01_ses-1_run-3_T2w.json": {"QC": "fail"}},
    )
    (raw / "sub-01/ses-1/sub-01_ses-1_scans.tsv").write_text(
        "filename\tquality\nanat/sub-01_ses-1_run-1_T2w.nii.gz\tgood\nanat/sub-01_ses-1_run-2_T2w.nii.gz\tBad\n"
    )
    images = only(find_studies(raw))
    assert [image.quality for image in images.values()] == [True, False, False]


def test_session_without_images_is_kept(tmp_path):
    raw = write_dataset(tmp_path)
    (raw / "sub-01" / "dwi").mkdir(parents=True)
    studies = find_studies(raw)
    assert labels(studies) == ["sub-01"] and studies[0].images == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_acq-sag_run-01_T2w.nii.gz", ((("sub", "01"), ("acq", "sag"), ("run", "01")), "T2w")),
        ("sub-01_T2w.nii", ((("sub", "01"),), "T2w")),
        ("T2w.nii.gz", None),
        ("acq-x_T2w.nii.gz", None),
        ("sub-01_run-1_run-2_T2w.nii.gz", None),
        ("sub-01_T2w_seg-manual.nii.gz", None),
        ("sub-01_.nii.gz", None),
        ("sub-01_T2w.mgz", None),
    ],
)
def test_parse_name(name, expected):
    assert parse_name(name) == expected


def test_every_image_of_the_real_dataset_is_found(real_dev):
    found = {image.relative for study in find_studies(real_dev) for image in study.images}
    assert found == {path.relative_to(real_dev).as_posix() for path in real_dev.glob("sub-*/**/*.nii.gz")}


def test_description_with_byte_order_mark(dataset):
    text = json.dumps({"Name": "x", "BIDSVersion": "1.8.0"})
    (dataset / "dataset_description.json").write_text(text, encoding="utf-8-sig")
    assert len(find_studies(dataset)) == 3
