"""Names of outputs: valid BIDS order, and never two outputs under one name."""

from __future__ import annotations

import pytest
from bids_builders import image
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.bids.names import (
    ORDER,
    all_names,
    cord_mask_name,
    image_names,
    join,
    session_names,
    sidecar,
    slab_names,
)
from bids_scseg.bids.query import parse_name

VALUES = {
    "acq": ["sag", "ax"], "ce": ["gad"], "rec": ["norm"], "run": ["1", "2", "02"], "echo": ["1", "2"],
    "part": ["mag"], "chunk": ["1", "2", "3"], "inv": ["1", "2"], "mt": ["on"], "desc": ["a", "b"],
}  # fmt: skip


@st.composite
def images(draw):
    parts = [
        f"{key}-{draw(st.sampled_from(values))}"
        for key, values in VALUES.items()
        if draw(st.integers(0, 2)) == 0
    ]
    return image("_".join([*parts, draw(st.sampled_from(["T2w", "T1w", "T2starw", "UNIT1", "STIR"]))]))


@given(st.lists(images(), min_size=1, max_size=8, unique_by=lambda one: one.relative), st.integers(1, 4))
def test_no_two_outputs_of_a_session_share_a_name(files, slabs):
    anchor = [one for one in files if one.suffix == files[0].suffix][:slabs]
    others = [one for one in files if one not in anchor]
    paths = all_names(anchor, others, subject="01", session=None, output_spaces="all")
    assert len(set(paths)) == len(paths)
    sidecars = {sidecar(path) for path in paths if path.endswith(".nii.gz")}
    assert len(sidecars) == sum(path.endswith(".nii.gz") for path in paths)


@given(images())
def test_entities_stand_in_the_order_of_bids(one):
    for path in (cord_mask_name(one), image_names(one).probseg, image_names(one).dseg):
        folder, name = path.rsplit("/", 1)
        entities, _ = parse_name(name)
        keys = [key for key, _ in entities]
        assert folder == "sub-01/anat" and keys == sorted(keys, key=ORDER.index)


def test_names_worked_by_hand():
    anchor = [image("acq-sag_chunk-1_T2w", session="2"), image("acq-sag_chunk-2_T2w", session="2")]
    names = session_names(anchor, subject="01", session="2")
    base = "sub-01/ses-2/anat/sub-01_ses-2_"
    assert names.result.mask == base + "acq-sag_label-lesion_mask.nii.gz"
    assert names.result.dseg == base + "acq-sag_seg-lesions_dseg.nii.gz"
    assert names.table == base + "acq-sag_seg-lesions_dseg.tsv"
    assert names.fused == base + "acq-sag_desc-preproc_T2w.nii.gz"
    assert names.geometry == base + "geometry.json" and names.summary == base + "summary.json"
    assert names.report == "sub-01_ses-2.html" and names.log == "logs/sub-01_ses-2.json"
    assert [slab.probseg for slab in slab_names(anchor)] == [
        base + "acq-sag_chunk-1_label-lesion_probseg.nii.gz",
        base + "acq-sag_chunk-2_label-lesion_probseg.nii.gz",
    ]
    assert cord_mask_name(anchor[0]) == base + "acq-sag_chunk-1_label-SC_desc-T2w_mask.nii.gz"


def test_masks_of_two_suffixes_stay_apart():
    assert cord_mask_name(image("T2w")) != cord_mask_name(image("T2starw"))


def test_single_image_has_no_slab_outputs():
    assert slab_names([image("chunk-1_T2w")]) == ()


def test_slabs_without_chunk_are_numbered_from_the_uppermost():
    names = slab_names([image("acq-top_T2w"), image("acq-low_T2w")])
    assert [name.mask.rsplit("/", 1)[1] for name in names] == [
        "sub-01_acq-top_chunk-1_label-lesion_mask.nii.gz",
        "sub-01_acq-low_chunk-2_label-lesion_mask.nii.gz",
    ]


def test_slab_that_would_bear_the_name_of_the_result_does_not():
    anchor = [image("acq-a_chunk-1_T2w"), image("chunk-1_T2w")]
    result = session_names(anchor, subject="01", session=None).result
    assert result.mask not in {name.mask for name in slab_names(anchor)}


def test_what_a_mask_cannot_keep_goes_into_desc():
    first, second = cord_mask_name(image("inv-1_T1w")), cord_mask_name(image("inv-2_T1w"))
    assert first != second and "_desc-T1w" in first and "inv-" not in first


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b.nii.gz", "a/b.json"), ("a/b.tsv", "a/b.json"), ("a/b.nii", "a/b.json")]
)
def test_sidecar(path, expected):
    assert sidecar(path) == expected


@given(st.permutations([("sub", "1"), ("acq", "a"), ("chunk", "1"), ("label", "SC")]))
def test_join_does_not_depend_on_the_order_given(entities):
    assert join(tuple(entities), "mask", ".nii.gz") == "sub-1_acq-a_chunk-1_label-SC_mask.nii.gz"
