from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bids_builders as build
import numpy as np
import pytest

from bids_scseg.bids.references import find_lesion_maps, says_lesion, strange_labels
from bids_scseg.errors import DataError, GeometryError, MissingInputError
from bids_scseg.space.grid import Grid

SHAPE = (6, 8, 10)
AFFINE = np.diag([3.0, 1.0, 1.0, 1.0])
SAG = build.image("acq-sag_T2w", Grid(shape=SHAPE, affine=AFFINE))
AX = build.image("acq-ax_T2w", Grid(shape=(8, 8, 5), affine=np.diag([1.0, 1.0, 4.0, 1.0])))
STUDY = build.study(SAG, AX)


def draw(root: Path, rest: str, *, shape=SHAPE, affine=AFFINE) -> Path:
    return build.write_nifti(root / f"sub-01/anat/sub-01_{rest}.nii.gz", shape, affine=affine)


def names(root: Path, **options) -> list[str]:
    return [found.name for found in find_lesion_maps(STUDY, (root,), **options)[0]]


@pytest.mark.parametrize(
    "rest",
    [
        "acq-sag_label-lesion_mask",
        "acq-sag_T2w_label-lesion_seg",
        "acq-sag_T2w_lesion-manual",
        "acq-sag_T2w_lesionseg",
        "acq-sag_T2w_lesion_seg",
        "acq-sag_T2w_desc-synthetic_label-lesion_seg",
        "acq-sag_seg-lesions_dseg",
        "acq-sag_desc-lesions_dseg",
        "acq-sag_label-MSlesion_desc-rater1_dseg",
    ],
)
def test_usual_names_are_lesion_maps_of_their_image(tmp_path: Path, rest: str) -> None:
    draw(tmp_path, rest)
    (found,), notes = find_lesion_maps(STUDY, (tmp_path,))
    assert found.image == SAG
    assert notes == ()


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_acq-sag_label-SC_mask.nii.gz",
        "sub-01_acq-sag_label-lesion_probseg.nii.gz",
        "sub-01_space-MNI_label-lesion_mask.nii.gz",
        "sub-01_acq-sag_T2w_seg-manual.nii.gz",
        "sub-01_acq-sag_T2w_label-GM_seg.nii.gz",
        "sub-01_seg-discs_dseg.nii.gz",
        "sub-01_acq-sag_desc-rater1_dseg.nii.gz",
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert not says_lesion(STUDY, name)


def test_a_desc_that_is_asked_for_says_lesion_and_chooses_a_rater(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_desc-rater1_dseg")
    draw(tmp_path, "acq-sag_label-lesion_desc-rater2_mask")
    assert names(tmp_path, desc="rater1") == ["sub-01_acq-sag_desc-rater1_dseg.nii.gz"]
    assert names(tmp_path, desc="rater2") == ["sub-01_acq-sag_label-lesion_desc-rater2_mask.nii.gz"]
    with pytest.raises(MissingInputError, match="desc-rater3"):
        names(tmp_path, desc="rater3")


@pytest.mark.parametrize(
    "place",
    [
        "sub-01_acq-sag_T2w_lesion.nii.gz",
        "sub-01/anat/lesion.nii.gz",
        "sub-01/lesions/sub-01_acq-sag_T2w_lesion.nii",
    ],
)
def test_maps_in_other_places_are_named(tmp_path: Path, place: str) -> None:
    for path in (place, place.replace("sub-01", "sub-011"), "sub-01/ses-2/anat/sub-01_ses-2_T2w_lesion.nii"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.raises(MissingInputError, match=r"sub-01_ in sub-01/anat") as error:
        names(tmp_path)
    assert f"in other places alone ({place})" in str(error.value)


def test_labels_without_a_session_of_the_dataset_are_told(tmp_path: Path) -> None:
    for place in ("sub-01/anat", "sub-02/ses-1/anat", "sub-02/ses-2/anat", "sub-03/anat"):
        (tmp_path / place).mkdir(parents=True)
    studies = [STUDY, replace(STUDY, subject="02", session="1")]
    told = strange_labels(studies, (tmp_path,))
    assert [text.split(" are")[0] for text in told] == ["labels of sub-02_ses-2", "labels of sub-03"]


def test_two_raters_are_an_ambiguity_and_not_a_guess(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_label-lesion_desc-rater1_mask")
    draw(tmp_path, "acq-sag_label-lesion_desc-rater2_mask")
    with pytest.raises(DataError, match=r"2 lesion maps of one image.*--lesion-desc"):
        names(tmp_path)


def test_manual_maps_and_then_instances_come_first(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_label-lesion_mask")
    draw(tmp_path, "acq-sag_seg-lesions_dseg")
    assert names(tmp_path) == ["sub-01_acq-sag_seg-lesions_dseg.nii.gz"]
    draw(tmp_path, "acq-sag_T2w_lesion-manual")
    assert names(tmp_path) == ["sub-01_acq-sag_T2w_lesion-manual.nii.gz"]
    _, notes = find_lesion_maps(STUDY, (tmp_path,))
    assert "dseg" in notes[0]


def test_the_earlier_folder_wins(tmp_path: Path) -> None:
    draw(tmp_path / "a", "acq-sag_label-lesion_mask")
    draw(tmp_path / "b", "acq-sag_T2w_lesion-manual")
    (found,), _ = find_lesion_maps(STUDY, (tmp_path / "a", tmp_path / "b"))
    assert Path(found.path).is_relative_to(tmp_path / "a")


def test_every_annotated_image_gives_one_map(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_label-lesion_mask")
    draw(tmp_path, "acq-ax_label-lesion_mask", shape=AX.grid.shape, affine=AX.grid.affine)
    maps, _ = find_lesion_maps(STUDY, (tmp_path,))
    assert [found.image for found in maps] == [AX, SAG]


def test_a_map_without_the_images_entities_is_known_by_its_lattice(tmp_path: Path) -> None:
    draw(tmp_path, "label-lesion_mask", shape=AX.grid.shape, affine=AX.grid.affine)
    (found,), _ = find_lesion_maps(STUDY, (tmp_path,))
    assert found.image == AX


def test_a_map_of_the_whole_session_stands_alone(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_label-lesion_mask")
    draw(tmp_path, "seg-lesions_res-iso_desc-truth_dseg", shape=(20, 20, 20), affine=np.eye(4))
    (found,), _ = find_lesion_maps(STUDY, (tmp_path,))
    assert found.whole
    assert found.image is None


def test_another_lattice_than_the_images_says_what_differs(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_T2w_lesion-manual", shape=(6, 8, 11))
    with pytest.raises(
        GeometryError, match=r"6 x 8 x 11 .*expected the lattice of .*6 x 8 x 10 .*[Rr]esample"
    ):
        names(tmp_path)
    moved = AFFINE.copy()
    moved[2, 3] = 25.0
    draw(tmp_path, "acq-sag_T2w_lesion-manual", affine=moved)
    with pytest.raises(GeometryError, match=r"25\.0 mm elsewhere.*copy the image's affine"):
        names(tmp_path)


def test_a_rounded_header_is_forgiven_where_the_name_says_whose_it_is(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] = 0.9  # voxels are 1 mm at the least
    draw(tmp_path, "acq-sag_T2w_lesion-manual", affine=moved)
    assert find_lesion_maps(STUDY, (tmp_path,))[0][0].image == SAG


def test_a_session_without_a_map_says_what_would_be_one(tmp_path: Path) -> None:
    draw(tmp_path, "acq-sag_label-lesion_probseg")
    with pytest.raises(MissingInputError, match=r"sub-01 has no lesion map.*probseg.*an empty one"):
        names(tmp_path)


# -- results of this program -----------------------------------------------------------------------


def described(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"Name": "x", "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": name}]})
    (root / "dataset_description.json").write_text(text)
    return root


def test_what_this_program_found_is_no_reference_and_its_correction_is(tmp_path: Path) -> None:
    out = described(tmp_path / "out", "bids_scseg")
    draw(out, "acq-sag_label-lesion_mask")
    draw(out, "acq-sag_seg-lesions_dseg")
    with pytest.raises(MissingInputError, match=r"of this program alone.*label-lesion_mask.*desc-manual"):
        names(out)
    draw(out, "acq-sag_label-lesion_desc-manual_mask")
    assert names(out) == ["sub-01_acq-sag_label-lesion_desc-manual_mask.nii.gz"]
    _, notes = find_lesion_maps(STUDY, (out,))
    assert {note.split(".")[0] for note in notes if "no reference" in note} == {
        "sub-01_acq-sag_label-lesion_mask",
        "sub-01_acq-sag_seg-lesions_dseg",
    }


def test_neither_is_a_copy_of_it_with_its_sidecar(tmp_path: Path) -> None:
    copy = draw(tmp_path, "acq-sag_label-lesion_mask")
    sidecar = copy.with_name("sub-01_acq-sag_label-lesion_mask.json")
    sidecar.write_text(json.dumps({"GeneratedBy": [{"Name": "bids_scseg", "Version": "1"}]}))
    with pytest.raises(MissingInputError, match="of this program alone"):
        names(tmp_path)
    sidecar.write_text(json.dumps({"GeneratedBy": [{"Name": "Manual"}]}))
    assert len(names(tmp_path)) == 1


def test_synthetic_truth_is_a_reference(tmp_path: Path) -> None:
    labels = described(tmp_path, "bids_scseg synthetic spinal cord generator")
    draw(labels, "acq-sag_label-lesion_mask")
    assert len(names(labels)) == 1


def test_a_correction_may_lie_on_any_grid_of_its_images_world(tmp_path: Path) -> None:
    odd = {"shape": (12, 9, 9), "affine": np.diag([1.5, 1.0, 1.0, 1.0])}
    for rest in ("acq-sag_label-lesion_desc-manual_mask", "acq-sag_T2w_label-lesion_desc-manual_seg"):
        path = draw(tmp_path / rest, rest, **odd)
        (found,), _ = find_lesion_maps(STUDY, (tmp_path / rest,))
        assert (found.path, found.image, found.world, found.anywhere) == (str(path), None, SAG, True)
    draw(tmp_path / "own", "acq-sag_label-lesion_desc-manual_mask")
    (found,), _ = find_lesion_maps(STUDY, (tmp_path / "own",))
    assert (found.image, found.world) == (SAG, None)
