"""Which sequence an image is, over the names and sidecars that real folders have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bids_builders import image, lattice

from bids_scseg.bids.match import (
    BY_EXTENT,
    dixon_kind,
    has_word,
    inversion_time,
    looks_like_axial_head,
    looks_like_head,
    match_image,
    split_words,
)
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.grid import Grid

RECIPE = load_recipe("cord-lesion")
PSIR_RECIPE = load_recipe("cord-lesion-psir")


def box(spacing, shape):
    """A lattice by voxel sizes and numbers along R, A and S."""
    return Grid(shape=shape, affine=np.diag([*spacing, 1.0]))


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
        ("T1w", "head", {"BodyPartExamined": "BRAIN"}, "by its body part (BRAIN)"),
        ("T2w", "axhead", {"BodyPartExamined": "HEAD"}, "by its body part (HEAD)"),
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


@pytest.mark.parametrize(
    ("suffix", "recipe", "remedy"),
    [
        ("STIR", RECIPE, "rename it to acq-STIR_T2w, select it by a filter file"),
        ("TIRM", RECIPE, "rename it to acq-TIRM_T2w,"),
        ("IRT2", RECIPE, "rename it to acq-STIR_T2w,"),
        ("MERGE", RECIPE, "rename it to T2starw,"),
        ("PSIR", PSIR_RECIPE, "rename it to acq-PSIR_T1w,"),
        ("T1w", RECIPE, "rename it, "),
        ("CISS", RECIPE, "rename it, "),
    ],
)
def test_a_name_that_is_not_bids_is_left_out_with_the_next_step(suffix, recipe, remedy):
    match = match_image(image(suffix, named=False), recipe)
    assert match.sequence is None
    assert match.reason.startswith(f"not a BIDS name for a raw image (suffix {suffix}); {remedy}")
    assert match.reason.endswith("or give --skip-bids-validation")


@pytest.mark.parametrize(
    ("suffix", "sidecar", "recipe", "expected"),
    [
        ("STIR", {}, RECIPE, "STIR"),
        ("TIRM", {}, RECIPE, "STIR"),
        ("IRT2", {}, RECIPE, "STIR"),
        ("IRT2", {"InversionTime": 2.0}, RECIPE, None),
        ("PSIR", {}, RECIPE, None),
        ("PSIR", {}, PSIR_RECIPE, "PSIR"),
        ("STIR", {}, PSIR_RECIPE, "STIR"),
        ("CISS", {}, RECIPE, None),
    ],
)
def test_a_suffix_counts_as_a_word(suffix, sidecar, recipe, expected):
    match = match_image(image(suffix, sidecar=sidecar), recipe)
    assert match.sequence == expected, match.reason
    assert match.warnings == ()


def test_usage_names_the_suffixes_that_are_not_bids():
    from bids_validator import BIDSValidator

    usage = (Path(__file__).parents[3] / "docs" / "usage.md").read_text()
    told = usage.partition("* **Suffixes that BIDS does not know**")[2].partition("\n* ")[0]
    for rule in (*RECIPE.sequences, *PSIR_RECIPE.sequences):
        for suffix in (*rule.suffixes, *(word.upper() for word in rule.keywords)):
            if not BIDSValidator().is_bids(f"/sub-01/anat/sub-01_{suffix}.nii.gz"):
                assert f"`{suffix}`" in told


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
        ("T2w", ((4.0, 0.8, 0.8), (18, 250, 250)), "T2Sag"),
        ("T1w", ((1.0, 1.0, 1.0), (192, 256, 320)), "T1Sag"),
        ("UNIT1", ((1.0, 1.0, 1.0), (176, 240, 256)), "MP2RAGE"),
    ],
)
@pytest.mark.parametrize("part", ["BRAIN", "HEAD"])
def test_the_body_part_is_a_doubt_where_the_field_is_long_and_sagittal(rest, grid, expected, part):
    match = match_image(image(rest, box(*grid), sidecar={"BodyPartExamined": part}), RECIPE)
    assert match.sequence == expected, match.reason
    assert f"its sidecar says body part {part}; make sure that it shows the cord" in match.warnings


def test_a_body_part_beside_a_word_for_the_spine_is_no_doubt():
    said = {"BodyPartExamined": "HEAD", "SeriesDescription": "t2 cervical cord"}
    assert sequence("T2w", "sag", said).warnings == ()


@pytest.mark.parametrize(
    ("rest", "spacing", "shape", "sidecar"),
    [
        ("T1w", (5.5, 0.9, 0.9), (25, 256, 256), {}),
        ("T2w", (5.5, 0.9, 0.9), (24, 256, 256), {"BodyPartExamined": "HEAD"}),
        ("T2w", (5.0, 0.9, 0.9), (22, 256, 256), {}),
        ("T1w", (0.9, 0.9, 0.9), (160, 256, 256), {}),
        ("T1w", (1.0, 1.0, 1.0), (144, 256, 256), {"BodyPartExamined": "BRAIN"}),
        ("T2starw", (0.9, 0.9, 5.0), (256, 256, 24), {"BodyPartExamined": "BRAIN"}),
        ("T2starw", (0.5, 0.5, 5.0), (448, 448, 15), {"BodyPartExamined": "BRAIN"}),
        ("T2w", (4.0, 0.8, 0.8), (18, 225, 225), {"BodyPartExamined": "BRAIN"}),  # 180 mm along the body
    ],
)
def test_heads_are_left_out_unless_a_word_says_spine(rest, spacing, shape, sidecar):
    match = match_image(image(rest, box(spacing, shape), sidecar=sidecar), RECIPE)
    assert match.sequence is None and match.reason.startswith("a brain scan by its ")
    assert match.reason.endswith("if it shows the cord, select it by a filter file")
    told = {**sidecar, "SeriesDescription": "c-spine"}
    again = match_image(image(rest, box(spacing, shape), sidecar=told), RECIPE)
    assert again.sequence and not again.head and again.warnings == ()


@pytest.mark.parametrize(
    ("rest", "spacing", "shape", "expected"),
    [
        ("T2w", (4.0, 0.9, 0.9), (24, 256, 256), "T2Sag"),  # 96 mm wide: the widest of stacks of the cord
        ("T2w", (0.8, 0.8, 0.8), (112, 320, 320), "T2Sag"),
        ("T2w", (0.8, 0.8, 0.8), (160, 352, 352), "T2Sag"),  # 282 mm along the body
        ("T1w", (1.0, 1.0, 1.0), (192, 260, 320), "T1Sag"),
        ("T2starw", (0.5, 0.5, 5.0), (448, 448, 15), "T2StarAx"),
        ("T2starw", (0.5, 0.5, 5.0), (400, 400, 25), "T2StarAx"),  # 200 mm, 125 mm high
        ("T2starw", (0.35, 0.35, 4.0), (400, 400, 30), "T2StarAx"),
    ],
)
def test_scans_of_the_cord_at_the_edge_of_those_of_heads_are_used(rest, spacing, shape, expected):
    match = match_image(image(rest, box(spacing, shape)), RECIPE)
    assert match.sequence == expected, match.reason


@pytest.mark.parametrize(
    ("rest", "spacing", "shape", "expected"),
    [
        ("T2w", (0.5, 0.5, 4.4), (448, 448, 36), "T2Ax"),
        ("T2starw", (0.9, 0.9, 5.0), (256, 256, 30), "T2StarAx"),
        ("T2w", (0.45, 0.45, 5.0), (400, 512, 26), "T2Ax"),  # a rectangular field
    ],
)
def test_an_axial_stack_with_the_extent_of_a_head_is_a_doubt(rest, spacing, shape, expected):
    match = match_image(image(rest, box(spacing, shape)), RECIPE)
    assert match.sequence == expected and match.head
    assert "extent of a head scan (" in match.warnings[0] and "make sure" in match.warnings[0]
    spine = match_image(image(rest, box(spacing, shape), sidecar={"BodyPartExamined": "CSPINE"}), RECIPE)
    assert spine.sequence == expected and not spine.head and spine.warnings == ()


def test_only_a_volume_of_T1_may_serve_where_nothing_else_does():
    volume = ((1.0, 1.0, 1.0), (192, 256, 256))
    match = match_image(image("T1w", box(*volume)), RECIPE)
    assert match.sequence is None and match.reason == BY_EXTENT and match.spare == "T1Sag"
    assert match_image(image("T2w", box(*volume)), RECIPE).spare is None
    assert match_image(image("T1w", box((5.5, 0.9, 0.9), (25, 256, 256))), RECIPE).spare is None
    for sidecar in ({"BodyPartExamined": "BRAIN"}, {"SeriesDescription": "mprage brain"}):
        assert match_image(image("T1w", box(*volume), sidecar=sidecar), RECIPE).spare is None


def test_a_head_sized_unit1_gives_way_unless_a_word_says_spine():
    assert sequence("UNIT1", "head").head
    assert not sequence("UNIT1", "head", {"BodyPartExamined": "CSPINE"}).head
    assert not sequence("UNIT1", "iso").head


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
    assert looks_like_head(lattice("head", slices=279)) and not looks_like_head(lattice("head", slices=280))
    assert not looks_like_head(lattice("head", slices=129))
    for width, wide in ((100, True), (99, False)):
        assert looks_like_head(box((1.0, 1.0, 1.0), (width, 200, 240))) is wide
    assert looks_like_axial_head(lattice("axhead")) and not looks_like_axial_head(lattice("ax"))
    assert not looks_like_axial_head(lattice("axhead", slices=17))  # 85 mm


@pytest.mark.parametrize(
    ("rest", "sidecar", "kind"),
    [
        ("T2w", {"ImageType": "DERIVED\\PRIMARY\\DIXON\\FAT"}, "fat"),
        ("T2w", {"ImageType": "DERIVED\\PRIMARY\\DIXON\\WATER"}, "water"),
        ("T2w", {"ImageType": "ORIGINAL\\PRIMARY\\M\\DIXON\\IN_PHASE"}, "in-phase"),
        ("T2w", {"ImageType": "ORIGINAL\\PRIMARY\\M\\DIXON\\OPP_PHASE"}, "opposed-phase"),
        ("T2w", {"ImageType": "DERIVED\\PRIMARY\\OP\\OP\\DERIVED"}, "opposed-phase"),
        ("T2w", {"ImageType": "DERIVED\\PRIMARY\\W\\W\\DERIVED"}, "water"),
        ("acq-sagdixonF_T2w", {}, "fat"),
        ("acq-sagdixonW_T2w", {}, "water"),
        ("acq-sagdixonIN_T2w", {}, "in-phase"),
        ("acq-sagdixonOPP_T2w", {}, "opposed-phase"),
        ("acq-dixonfat_T1w", {}, "fat"),
        ("T2w", {"SeriesDescription": "t2_tse_dixon_sag_F"}, "fat"),
        ("T2w", {"SeriesDescription": "T2w mDIXON out of phase"}, "opposed-phase"),
        ("acq-dixonW_T2w", {"SeriesDescription": "T2w_dixon_F"}, "water"),  # the name counts first
        ("acq-sagdixon_T2w", {}, None),
        ("T2w", {"SeriesDescription": "T2w_dixon_sag"}, None),
        ("T2w", {"SeriesDescription": "dixon W and F"}, None),
        ("T2w", {"SeriesDescription": "t2 dixon fat sat"}, None),
        ("T2w", {"SeriesDescription": "t2_fat_sat"}, None),
        ("acq-F_T2w", {}, None),
    ],
)
def test_images_of_dixon_scans(rest, sidecar, kind):
    found = image(rest, sidecar=sidecar)
    assert dixon_kind(found) == kind
    match = match_image(found, RECIPE)
    if kind in ("fat", "opposed-phase"):
        assert match.sequence is None and match.reason == f"the {kind} image of a Dixon scan"
    else:
        assert match.sequence in ("T2Sag", "T1Sag")
        water = ("is the water image of a Dixon scan: it counts as fat-suppressed",)
        assert match.warnings == (water if kind == "water" else ())
