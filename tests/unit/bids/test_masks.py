"""The user's masks belong to the image they were drawn on, or to none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bids_builders import write_dataset, write_nifti

from bids_scseg.bids.masks import find_cord_masks, find_labels, is_by_sct
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.recipe.load import load_recipe

SHIFTED = np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])


@pytest.fixture
def setting(tmp_path):
    """(study, folder): images on one lattice, and a function-like folder for masks."""

    def make(images, masks, *, affines=None):
        raw = write_dataset(tmp_path / "raw", *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in images))
        folder = tmp_path / "derivatives"
        for name in masks:
            write_nifti(folder / f"sub-01/anat/sub-01_{name}.nii.gz", affine=(affines or {}).get(name))
        masks_found, warnings = find_cord_masks(find_studies(raw)[0], [folder])
        short = {
            image.split("/sub-01_")[1].split(".")[0]: mask.split("/sub-01_")[1].split(".")[0]
            for image, mask in masks_found
        }
        return short, warnings

    return make


@pytest.mark.parametrize(
    "mask",
    [
        "T2w_label-SC_seg", "T2w_label-SC_mask", "T2w_seg-manual", "T2w_seg", "T2w_desc-manual_label-SC_mask",
        "label-SC_mask", "label-SC_seg", "label-SC_desc-T2w_mask", "desc-manual_label-SC_mask",
        "label-cord_dseg", "space-orig_label-SC_mask", "T2w_desc-final_seg", "T2w_label-spinalcord_seg",
        "T2w_seg-cord_seg", "T2w_cord_seg",
    ],
)  # fmt: skip
def test_names_of_cord_masks(setting, mask):
    assert setting(["T2w"], [mask]) == ({"T2w": mask}, ())


@pytest.mark.parametrize(
    "mask",
    [
        "T2w_label-GM_seg", "T2w_label-lesion_seg", "T2w_lesion-manual", "T2w_gmseg",
        "T2w_label-discs_dlabel", "desc-brain_mask", "T1w_label-SC_seg", "acq-ax_label-SC_mask",
        "space-MNI_label-SC_mask", "res-iso_label-SC_desc-truth_mask", "T2w", "label-SC_probseg",
        "T2w_gm_seg", "T2w_canal_seg", "T2w_lesion_seg", "T2w_lesion_seg-manual", "T2w_label-SC_gm_seg",
        "T2w_seg-gm_seg", "T2w_seg-lesion_seg", "T2w_desc-lesions_seg", "T2w_desc-GM_seg", "T2w_canal_mask",
    ],
)  # fmt: skip
def test_names_that_are_no_cord_mask_of_this_image(setting, mask):
    assert setting(["T2w"], [mask])[0] == {}


def test_suffix_in_the_name_decides_between_images_on_one_lattice(setting):
    found, warnings = setting(["T1w", "T2w"], ["T2w_label-SC_seg", "T1w_label-SC_seg"])
    assert found == {"T1w": "T1w_label-SC_seg", "T2w": "T2w_label-SC_seg"} and warnings == ()


def test_longer_image_name_wins(setting):
    found, _ = setting(["acq-sag_T2w", "acq-sag_run-1_T2w"], ["acq-sag_run-1_T2w_label-SC_seg"])
    assert found == {"acq-sag_run-1_T2w": "acq-sag_run-1_T2w_label-SC_seg"}


def test_mask_without_suffix_that_fits_two_images_is_not_used(setting):
    found, warnings = setting(["T1w", "T2w"], ["label-SC_mask"])
    assert found == {} and "fits several images" in warnings[0]


def test_desc_with_the_suffix_decides(setting):
    assert setting(["T1w", "T2w"], ["label-SC_desc-T1w_mask"])[0] == {"T1w": "label-SC_desc-T1w_mask"}


def test_lattice_decides_where_names_do_not(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T1w.nii.gz")
    write_nifti(raw / "sub-01/anat/sub-01_T2w.nii.gz", affine=SHIFTED)
    mask = write_nifti(tmp_path / "d/sub-01/anat/sub-01_label-SC_mask.nii.gz", affine=SHIFTED)
    found, _ = find_cord_masks(find_studies(raw)[0], [tmp_path / "d"])
    assert found == (("sub-01/anat/sub-01_T2w.nii.gz", str(mask)),)


def test_mask_on_another_lattice_is_not_used(setting):
    found, warnings = setting(["T2w"], ["T2w_label-SC_seg"], affines={"T2w_label-SC_seg": SHIFTED})
    assert found == {} and "lattice differs" in warnings[0]


def test_manual_mask_wins_over_an_automatic_one_in_an_earlier_folder(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T2w.nii.gz")
    write_nifti(tmp_path / "a/sub-01/anat/sub-01_T2w_label-SC_seg.nii.gz")
    manual = write_nifti(tmp_path / "b/sub-01/anat/sub-01_T2w_desc-manual_label-SC_seg.nii.gz")
    found, _ = find_cord_masks(find_studies(raw)[0], [tmp_path / "a", tmp_path / "b"])
    assert found[0][1] == str(manual)


def test_broken_mask_is_told(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T2w.nii.gz")
    mask = tmp_path / "d/sub-01/anat/sub-01_T2w_label-SC_seg.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"x")
    found, warnings = find_cord_masks(find_studies(raw)[0], [tmp_path / "d"])
    assert found == () and "cord mask not used" in warnings[0]


def test_labels_discs_first_and_the_anchors_before_others(tmp_path):
    raw = write_dataset(
        tmp_path / "raw", "sub-01/anat/sub-01_acq-sag_T2w.nii.gz", "sub-01/anat/sub-01_acq-a_T1w.nii.gz"
    )
    names = [
        "acq-a_seg-discs_dseg", "acq-sag_T2w_label-vertebrae_dlabel", "acq-sag_seg-discs_dseg",
        "acq-sag_T2w_labels-disc-manual", "acq-sag_T2w_label-SC_seg", "acq-sag_seg-lesions_dseg",
    ]  # fmt: skip
    for name in names:
        write_nifti(tmp_path / f"d/sub-01/anat/sub-01_{name}.nii.gz")
    study = find_studies(raw)[0]
    anchor = [image for image in study.images if image.suffix == "T2w"]
    found = [
        path.split("/sub-01_")[1].split(".")[0]
        for path in find_labels(study, [tmp_path / "d"], anchor=anchor)
    ]
    assert found == [names[3], names[2], names[0], names[1]] or found == [
        names[2],
        names[3],
        names[0],
        names[1],
    ]


def test_folder_without_the_subject(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_T2w.nii.gz")
    assert find_cord_masks(find_studies(raw)[0], [tmp_path / "nowhere"]) == ((), ())
    assert find_labels(find_studies(raw)[0], [tmp_path / "nowhere"]) == ()


def test_every_cord_mask_of_the_real_dataset_finds_its_image(real_dev):
    labels = real_dev / "derivatives" / "labels"
    masks = {mask for one in find_studies(real_dev) for _, mask in find_cord_masks(one, [labels])[0]}
    assert masks == {str(path) for path in labels.glob("sub-*/**/*label-SC_seg.nii.gz")}


# -- whose masks they are --------------------------------------------------------------------------


def made_by(*names):
    return json.dumps({"Name": "x", "GeneratedBy": [{"Name": name} for name in names]})


SCT = "spinalcordtoolbox: sct_deepseg spinalcord -i t2.nii.gz"  # as release 7 writes it beside a mask


@pytest.mark.parametrize(
    ("dataset", "sidecar", "by_sct"),
    [
        (None, None, False),
        (made_by("Spinal Cord Toolbox"), None, True),
        (made_by("sct_deepseg_sc"), None, True),
        (made_by("SCT"), None, True),
        (None, made_by(SCT), True),
        (made_by("sct_deepseg_sc", "Manual"), None, False),  # which of them is not said
        (made_by("sct_deepseg_sc", "Manual"), made_by("sct_deepseg_sc"), True),
        (made_by("sct_deepseg_sc"), made_by("sct_deepseg_sc", "Manual"), False),
        (made_by(SCT), made_by("ITK-SNAP"), False),
        (made_by("fsct", "sctools"), None, False),
        ("{", "[]", False),
        (json.dumps({"GeneratedBy": SCT}), json.dumps({"GeneratedBy": [SCT, 3]}), False),
    ],
)
def test_masks_of_the_toolbox_are_known_by_their_record(tmp_path, dataset, sidecar, by_sct):
    mask = tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T2w_label-SC_seg.nii.gz"
    mask.parent.mkdir(parents=True)
    for path, text in ((tmp_path / "dataset_description.json", dataset),
                       (mask.with_name("sub-01_ses-1_T2w_label-SC_seg.json"), sidecar)):  # fmt: skip
        if text is not None:
            path.write_text(text)
    assert is_by_sct(mask) == by_sct
    assert not is_by_sct(mask.with_name("sub-01_ses-1_T2w_label-SC_desc-manual_seg.nii.gz"))


def test_a_plan_says_which_masks_are_the_toolboxs(tmp_path):
    raw = write_dataset(tmp_path / "raw", "sub-01/anat/sub-01_acq-sag_T2w.nii.gz")
    for folder in ("sct", "drawn"):
        write_nifti(tmp_path / folder / "sub-01/anat/sub-01_acq-sag_T2w_label-SC_seg.nii.gz")
    (tmp_path / "sct" / "dataset_description.json").write_text(made_by("Spinal Cord Toolbox"))
    (study,), recipe = find_studies(raw), load_recipe("cord-lesion")
    filters = {"T2Sag": {"acquisition": ("sag",)}}
    of_sct = make_plan(study, recipe, filters=filters, derivatives=[tmp_path / "sct"])
    drawn = make_plan(study, recipe, filters=filters, derivatives=[tmp_path / "drawn", tmp_path / "sct"])
    assert of_sct.sct_masks == ("sub-01/anat/sub-01_acq-sag_T2w.nii.gz",)
    assert (len(drawn.cord_masks), drawn.sct_masks) == (1, ())
