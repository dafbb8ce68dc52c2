"""Which sequence an image is, over the names and sidecars that real folders have."""

from __future__ import annotations

import numpy as np
import pytest
from bids_builders import image, lattice

from bids_scseg.bids.match import has_word, inversion_time, looks_like_head, match_image, split_words
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.grid import Grid

RECIPE = load_recipe("cord-lesion")


def sequence(rest, kind="sag", sidecar=None, **more):
    return match_image(image(rest, lattice(kind), sidecar=sidecar, **more), RECIPE)


@pytest.mark.parametrize(
    ("rest", "kind", "sidecar", "expected"),
    [
        ("T2w", "sag", {}, "T2Sag"),
        ("acq-sag_T2w", "iso", {}, "T2Sag"),
        ("T2w", "iso", {}, "T2Sag"),
        ("T2w", "ax", {}, "T2Ax"),
        ("acq-ax_T2w", "iso", {}, "T2Ax"),
        ("T2w", "iso", {"SeriesDescription": "t2_tse_tra_p2"}, "T2Ax"),
        ("acq-stir_T2w", "sag", {}, "STIR"),
        ("acq-sagstir_T2w", "sag", {}, "STIR"),
        ("acq-sagSTIR_T1w", "sag", {}, "STIR"),
        ("T2w", "sag", {"InversionTime": 0.22}, "STIR"),
        ("T2w", "sag", {"InversionTime": 220.0}, "STIR"),
        ("T2w", "sag", {"SeriesDescription": "Sag TIRM c-spine"}, "STIR"),
        ("T2w", "sag", {"ScanningSequence": "SE\\IR"}, "STIR"),
        ("T1w", "sag", {}, "T1Sag"),
        ("T1w", "iso", {"InversionTime": 0.9, "ScanningSequence": "GR_IR"}, "T1Sag"),
        ("T2starw", "ax", {}, "T2StarAx"),
        ("T2starw", "iso", {}, "T2StarAx"),
        ("MEGRE", "ax", {}, "T2StarAx"),
        ("UNIT1", "iso", {}, "MP2RAGE"),
        ("UNIT1", "iso", {"ImageType": "DERIVED\\PRIMARY\\P\\UNI"}, "MP2RAGE"),
        ("T2w", "sag", {"ImageType": "DERIVED\\PRIMARY\\M\\COMPOSED"}, "T2Sag"),
        ("part-mag_T2w", "sag", {}, "T2Sag"),
        ("T2w", "sag", {"ContrastBolusAgent": "Gadovist"}, "T2Sag"),
        ("T1w", "sag", {"ContrastBolusAgent": "none"}, "T1Sag"),
        ("T1w", "sag", {"BodyPartExamined": "HEADNECK"}, "T1Sag"),
        ("T1w", "head", {"SeriesDescription": "t1 cervical cord"}, "T1Sag"),
    ],
)
def test_sequence(rest, kind, sidecar, expected):
    match = sequence(rest, kind, sidecar)
    assert match.sequence == expected, match.reason


@pytest.mark.parametrize(
    ("rest", "kind", "sidecar", "words"),
    [
        ("ce-gad_T1w", "sag", {}, "post-contrast"),
        ("ce-gad_T2w", "sag", {}, "post-contrast"),
        ("T1w", "sag", {"ContrastBolusAgent": "Gadovist"}, "post-contrast"),
        ("T1w", "sag", {"ContrastBolusIngredient": "GADOLINIUM"}, "post-contrast"),
        ("part-phase_T2starw", "ax", {}, "not a magnitude"),
        ("part-real_T2w", "sag", {}, "not a magnitude"),
        ("T2starw", "ax", {"ImageType": "ORIGINAL\\PRIMARY\\P\\ND"}, "not a magnitude"),
        ("mt-on_MTR", "ax", {}, "magnetisation transfer"),
        ("flip-1_mt-off_MTS", "ax", {}, "magnetisation transfer"),
        ("T2starw", "ax", {"MTState": True}, "magnetisation transfer"),
        ("inv-1_MP2RAGE", "iso", {}, "inversion"),
        ("T1map", "iso", {}, "quantitative map"),
        ("FLAIR", "head", {}, "FLAIR"),
        ("acq-brain_T1w", "iso", {}, "brain scan"),
        ("T1w", "head", {"BodyPartExamined": "BRAIN"}, "body part BRAIN, and the extent of a head"),
        ("T2w", "axhead", {"BodyPartExamined": "HEAD"}, "body part HEAD, and the extent of a head"),
        ("T1w", "iso", {"SeriesDescription": "mprage_head"}, "brain scan"),
        ("T1w", "head", {}, "by its extent"),
        ("T2w", "head", {}, "by its extent"),
        ("acq-localizer_T2w", "sag", {}, "localizer"),
        ("T2w", "sag", {"ImageType": "DERIVED\\SECONDARY\\MPR"}, "computed"),
        ("T1w", "ax", {}, "axial slices, expected sagittal or isotropic"),
        ("T2w", "cor", {}, "coronal slices"),
        ("T2starw", "sag", {}, "sagittal slices, expected axial or isotropic"),
        ("acq-psir_T1w", "sag", {}, "psir"),
        ("T2w", "sag", {"InversionTime": 2.2}, "inversion recovery with 2.2 s"),
        ("PDw", "sag", {}, "suffix PDw, no sequence"),
    ],
)
def test_left_out_with_the_reason(rest, kind, sidecar, words):
    match = sequence(rest, kind, sidecar)
    assert match.sequence is None
    assert words in match.reason


def test_name_that_is_not_bids_is_left_out():
    match = sequence("STIR", named=False)
    assert match.sequence is None and "rename it or use a filter file" in match.reason


def test_left_out_for_want_of_a_mark_names_the_sidecar_that_could_have_had_it():
    fault = "its sidecar T2w.json is not used: it cannot be read"
    assert fault in sequence("T2w", "cor", warnings=(fault,)).reason


def thin_coronal(slice_mm=1.2, slices=60, rest="T2w"):
    spacing, shape = (0.8, slice_mm, 0.8), (80, slices, 320)
    return image(rest, Grid(shape=shape, affine=np.diag([*spacing, 1.0])))


@pytest.mark.parametrize(
    ("slice_mm", "rest", "expected"),
    [
        (1.2, "T2w", "T2Sag"),
        (1.28, "T1w", "T1Sag"),
        (1.2, "acq-ax_T2w", "T2Ax"),  # as for isotropic voxels, the stated plane counts
        (1.2, "acq-cor_T2w", None),
        (1.3, "T2w", None),
        (1.2, "UNIT1", "MP2RAGE"),
    ],
)
def test_coronal_volumes_with_thin_slices_count_as_isotropic(slice_mm, rest, expected):
    match = match_image(thin_coronal(slice_mm, rest=rest), RECIPE)
    assert match.sequence == expected, match.reason
    assert match.warnings == ()


def test_a_head_in_thin_coronal_slices_is_one_by_its_extent():
    grid = Grid(shape=(240, 160, 240), affine=np.diag([0.9, 1.2, 0.9, 1.0]))
    assert "by its extent" in match_image(image("T1w", grid), RECIPE).reason


def test_a_rule_for_coronal_slices_takes_thin_ones():
    from dataclasses import replace

    rules = tuple(replace(rule, planes=("cor",)) for rule in RECIPE.sequences)
    assert match_image(thin_coronal(), replace(RECIPE, sequences=rules)).sequence == "T2Sag"


def test_header_overrules_the_name_with_a_warning():
    match = sequence("acq-ax_T2w", "sag")
    assert match.sequence == "T2Sag"
    assert match.warnings == ("named axial, but its slices are sagittal; the header counts",)


def test_agent_on_a_T2w_and_head_sized_unit1_are_doubts():
    assert "after a contrast agent" in sequence("T2w", sidecar={"ContrastBolusAgent": "Dotarem"}).warnings[0]
    assert "extent of a head scan" in sequence("UNIT1", "head").warnings[0]


@pytest.mark.parametrize(
    ("rest", "grid", "expected"),
    [
        ("T2w", ((0.8, 0.8, 0.8), (64, 320, 320)), "T2Sag"),
        ("T2starw", ((0.5, 0.5, 5.0), (448, 448, 15)), "T2StarAx"),
        ("T1w", ((1.0, 1.0, 1.0), (192, 256, 320)), "T1Sag"),
        ("UNIT1", ((1.0, 1.0, 1.0), (176, 240, 256)), "MP2RAGE"),
    ],
)
@pytest.mark.parametrize("part", ["BRAIN", "HEAD"])
def test_the_body_part_alone_is_a_doubt(rest, grid, expected, part):
    spacing, shape = grid
    found = Grid(shape=shape, affine=np.diag([*spacing, 1.0]))
    match = match_image(image(rest, found, sidecar={"BodyPartExamined": part}), RECIPE)
    assert match.sequence == expected, match.reason
    assert f"its sidecar says body part {part}; make sure that it shows the cord" in match.warnings


def test_a_body_part_beside_a_word_for_the_spine_is_no_doubt():
    said = {"BodyPartExamined": "HEAD", "SeriesDescription": "t2 cervical cord"}
    assert sequence("T2w", "sag", said).warnings == ()


def test_an_axial_head_that_nothing_calls_a_head_is_axial():
    assert sequence("T2w", "axhead").sequence == "T2Ax"


def test_brain_recipes_take_brains():
    from dataclasses import replace

    recipe = replace(RECIPE, frame="rigid")
    assert match_image(image("acq-brain_T1w", lattice("head")), recipe).sequence == "T1Sag"
    match = match_image(image("T1w", lattice("head"), sidecar={"BodyPartExamined": "BRAIN"}), recipe)
    assert match.sequence == "T1Sag" and match.warnings == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axT2w", ["ax", "t2", "w"]), ("t2_tse_sag", ["t2", "tse", "sag"]), ("SagT2", ["sag", "t2"]),
        ("STIR", ["stir"]), ("", []),
    ],
)  # fmt: skip
def test_split_words(text, words):
    assert split_words(text) == words


def test_short_words_must_stand_alone():
    assert has_word(image("acq-axT2w_T2w"), "ax")
    assert not has_word(image("acq-maxres_T2w"), "ax")
    assert has_word(image("acq-sagstir_T2w"), "stir")


def test_inversion_time_in_seconds_or_milliseconds():
    assert inversion_time(image("T2w", sidecar={"InversionTime": 160})) == pytest.approx(0.16)
    assert inversion_time(image("T2w", sidecar={"InversionTime": 0.16})) == pytest.approx(0.16)
    assert inversion_time(image("T2w", sidecar={"InversionTime": 0})) is None
    assert inversion_time(image("T2w", sidecar={"InversionTime": "long"})) is None


def test_extent_of_heads():
    assert looks_like_head(lattice("head"))
    assert not looks_like_head(lattice("iso"))
    assert not looks_like_head(lattice("ax"))
    assert not looks_like_head(lattice("head", slices=320))  # head and neck
