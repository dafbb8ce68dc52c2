"""Plans: what serves what, over slabs, repeats, crops, echoes, filters and misplaced images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bids_builders import image, lattice, study, write_dataset, write_nifti
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.bids.choice import choose, repeats
from bids_scseg.bids.filters import parse_filters
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.errors import UsageError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.grid import Grid

RECIPE = load_recipe("cord-lesion")


def box(spacing, shape, *, low=0.0, tilt=0.0):
    """A lattice by voxel sizes and numbers along R, A and S, its lowest edge at `low`, turned by degrees."""
    cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag(spacing)
    affine[2, 3] = low + spacing[2] / 2
    return Grid(shape=shape, affine=affine)


CERVICAL = box((3.0, 0.8, 0.8), (15, 300, 300))  # 0-240 mm
HEAD_VOLUME = ((1.0, 1.0, 1.0), (192, 256, 256))


def names(plan):
    return {sequence.name: [file.name for file in sequence.files] for sequence in plan.sequences}


def plan_of(*images, **more):
    return make_plan(study(*images), RECIPE, **more)


def reasons(plan):
    return {relative.rsplit("/", 1)[-1]: reason for relative, reason in plan.left_out}


def test_a_full_session():
    plan = plan_of(
        image("acq-sag_T2w"),
        image("acq-stir_T2w"),
        image("T2starw", lattice("ax")),
        image("acq-ax_T2w", lattice("ax")),
        image("T1w"),
        image("UNIT1", lattice("iso")),
        image("acq-brain_T1w", lattice("head")),
    )
    assert plan.available == RECIPE.sequence_names and plan.missing == ()
    assert plan.anchor == "T2Sag" and plan.refusal is None
    assert list(reasons(plan)) == ["sub-01_acq-brain_T1w.nii.gz"]
    assert plan.warnings == ()
    assert plan.memory_gb > 0 and plan.seconds > 0


def test_anchor_follows_the_recipe():
    assert plan_of(image("T2starw", lattice("ax")), image("T1w")).anchor == "T1Sag"
    assert plan_of(image("T2starw", lattice("ax"))).anchor == "T2StarAx"


def test_nothing_usable_is_refused_with_the_reason():
    plan = plan_of(image("mt-on_MTR", lattice("ax")))
    assert plan.anchor is None and "no image of this session" in plan.refusal
    assert (plan.seconds, plan.memory_gb) == (0, 0)
    assert plan_of().anchor is None


def test_model_that_needs_an_anchor():
    plan = plan_of(image("T1w"), needs_anchor="T2Sag")
    assert (
        plan.anchor is None
        and plan.refusal == "this model needs T2Sag, which the session lacks (it has T1Sag)"
    )
    assert plan_of(image("T1w"), image("T2w"), needs_anchor="T1Sag").anchor == "T1Sag"


def test_sequences_option():
    plan = plan_of(image("T2w"), image("T1w"), sequences=["t1sag"])
    assert plan.available == ("T1Sag",) and reasons(plan)["sub-01_T2w.nii.gz"] == "T2Sag was not asked for"
    with pytest.raises(UsageError, match=r"unknown sequence 'T3'.*T2Sag, STIR"):
        plan_of(sequences=["T3"])


@pytest.mark.parametrize("entity", ["chunk", "acq", "run"])
def test_slabs_serve_uppermost_first(entity):
    values = ("a", "b", "c") if entity == "acq" else ("1", "2", "3")
    files = [
        image(f"{entity}-{value}_T2w", lattice("sag", low=low, slices=300))  # 240 mm each
        for value, low in zip(values, (-180.0, 0.0, 180.0), strict=True)
    ]
    plan = plan_of(*files)
    assert [file.entity(entity) for file in plan.sequences[0].files] == list(reversed(values))
    assert plan.left_out == ()


def test_slabs_of_one_scan_may_overlap_much_if_chunk_says_so():
    upper, lower = (image(f"chunk-{n}_T2w", lattice("sag", low=low)) for n, low in ((1, 60.0), (2, 0.0)))
    choice = choose([lower, upper])
    assert choice.files == (upper, lower)
    assert "overlap by more than 60%" in choice.warnings[0]


def test_of_repeated_runs_the_last_serves():
    plan = plan_of(*(image(f"run-{n}_T2w") for n in (1, 10, 9)))
    assert names(plan)["T2Sag"] == ["sub-01_run-10_T2w.nii.gz"]
    assert len(plan.left_out) == 2 and all("later run" in reason for _, reason in plan.left_out)
    assert len(plan.warnings) == 2 and "run-10_T2w.nii.gz is used and" in plan.warnings[0]


def test_a_run_rated_as_poor_yields_to_an_earlier_one():
    plan = plan_of(image("run-1_T2w"), image("run-2_T2w", quality=False))
    assert names(plan)["T2Sag"] == ["sub-01_run-1_T2w.nii.gz"]
    alone = plan_of(image("T2w", quality=False))
    assert alone.anchor == "T2Sag" and "poor quality" in alone.warnings[0]


def test_repeated_slab_replaces_its_own_slab_only():
    files = [
        image(f"run-{run}_chunk-{chunk}_T2w", lattice("sag", low=low))
        for run, chunk, low in ((1, 1, 200.0), (1, 2, 0.0), (2, 1, 200.0))
    ]
    assert [file.name for file in plan_of(*files).sequences[0].files] == [
        "sub-01_run-2_chunk-1_T2w.nii.gz",
        "sub-01_run-1_chunk-2_T2w.nii.gz",
    ]


def test_the_larger_extent_beats_a_crop_and_the_finer_voxels_a_coarse_scan():
    crop = image("acq-crop_T2w", lattice("iso", low=80.0, slices=60))
    full = image("acq-whole_T2w", lattice("iso"))
    choice = choose([crop, full])
    assert choice.files == (full,) and "covers more (250 mm against 60 mm)" in choice.left_out[0][1]
    thick = image("T2w", lattice("sag", slices=312))  # 250 mm, 1.92 mm³ against 1 mm³
    assert choose([thick, full]).files == (full,)


def test_a_run_with_a_cord_mask_beats_a_later_one_but_not_a_larger_extent():
    first, second = image("run-1_T2w"), image("run-2_T2w")
    assert choose([first, second], {first.relative}).files == (first,)
    crop = image("acq-crop_T2w", lattice("iso", low=80.0, slices=60))
    assert choose([crop, image("acq-whole_T2w", lattice("iso"))], {crop.relative}).files[0] is not crop


def test_extents_closer_than_ten_percent_are_the_same_wherever_they_lie():
    # 240.0 mm against 239.7 mm: the same protocol, tilted by 3 degrees.
    first = image("run-1_T2w", CERVICAL)
    second = image("run-2_T2w", box((3.0, 0.8, 0.8), (15, 300, 300), tilt=3.0))
    assert choose([first, second]).files == (second,)
    assert choose([first, second], {second.relative}).files == (second,)
    assert choose([first, second], {first.relative}).files == (first,)
    for millimetres in range(200, 300, 7):
        longer = image("run-1_T2w", box((3.0, 0.8, 1.0), (15, 300, millimetres)))
        near, far = (
            image("run-2_T2w", box((3.0, 0.8, 1.0 / ratio), (15, 300, millimetres))) for ratio in (1.09, 1.11)
        )
        assert choose([longer, near]).files == (near,)  # the later run
        assert choose([longer, far]).files == (longer,)


def test_voxels_closer_than_a_quarter_are_the_same_wherever_they_lie():
    for millimetres in np.geomspace(0.5, 2.0, 9):
        fine, near, coarse = (
            image(f"run-{run}_T2w", box((width, 0.8, 0.8), (15, 300, 300)))
            for run, width in ((1, millimetres), (2, 1.24 * millimetres), (3, 1.26 * millimetres))
        )
        assert choose([fine, near]).files == (near,)
        assert choose([fine, coarse]).files == (fine,)


def test_the_reason_is_what_put_an_image_out_of_the_choice():
    longest, masked, short = (
        image(f"acq-{name}_T2w", box((3.0, 0.8, 1.0), (15, 300, slices)))
        for name, slices in (("a", 300), ("b", 275), ("c", 252))
    )
    choice = choose([longest, masked, short], {masked.relative, short.relative})
    assert choice.files == (masked,)
    assert dict(choice.left_out) == {
        longest.relative: f"covers the same part as {masked.name}, which has a cord mask of yours",
        short.relative: f"covers the same part as {masked.name}, which covers more (275 mm against 252 mm)",
    }


def test_what_lies_elsewhere_along_the_body_decides_no_repeat():
    # The long thoracic slab must not make the masked cervical run "too short" against its own repeat.
    thoracic = image("acq-t_T2w", box((3.0, 0.8, 1.0), (15, 300, 280), low=-270.0))
    first = image("run-1_T2w", box((3.0, 0.8, 1.0), (15, 300, 260)))
    second = image("run-2_T2w", box((3.0, 0.8, 1.0), (15, 300, 245)))
    assert choose([thoracic, first, second], {second.relative}).files == (second, thoracic)


def test_a_head_is_no_slab_beside_a_cervical_image():
    head = image("acq-a_T2w", box((5.5, 0.9, 0.9), (24, 256, 256), low=150.0))
    plan = plan_of(head, image("acq-b_T2w", CERVICAL))
    assert names(plan)["T2Sag"] == ["sub-01_acq-b_T2w.nii.gz"]
    assert "a brain scan by its extent" in reasons(plan)["sub-01_acq-a_T2w.nii.gz"]


def test_an_axial_stack_like_a_head_serves_alone_only():
    head = image("acq-a_T2starw", box((0.9, 0.9, 5.0), (256, 256, 30), low=160.0))
    cord = image("acq-b_T2starw", box((0.5, 0.5, 4.0), (320, 320, 20), low=40.0))
    alone = plan_of(head)
    assert alone.anchor == "T2StarAx" and "extent of a head scan (230 x 230 x 150 mm)" in alone.warnings[0]
    plan = plan_of(head, cord, image("T2w", CERVICAL))
    assert names(plan)["T2StarAx"] == [cord.name]
    assert "other images of its sequence have not" in reasons(plan)[head.name]
    assert any(head.name in note and "is not used" in note for note in plan.warnings)
    lower = image("acq-c_T2starw", box((0.9, 0.9, 5.0), (256, 256, 30)))
    two = plan_of(head, lower)
    assert names(two)["T2StarAx"] == [head.name] and "as has sub-01_acq-a" in reasons(two)[lower.name]
    asked = plan_of(head, cord, filters=parse_filters({"T2StarAx": {"suffix": "T2starw"}}, RECIPE))
    assert names(asked)["T2StarAx"] == [head.name, cord.name]


def test_slabs_of_very_different_widths_are_not_joined():
    wide = image("acq-a_T2w", box((5.0, 0.9, 0.9), (19, 256, 256), low=160.0))  # 95 mm: a head by a hair
    cord = image("acq-b_T2w", CERVICAL)  # 45 mm
    choice = choose([wide, cord])
    assert choice.files == (cord,)
    assert dict(choice.left_out)[wide.relative].startswith(
        "it is 95 mm wide and sub-01_acq-b_T2w.nii.gz 45 mm"
    )
    assert any("acq-a" in note and "is not used" in note for note in choice.warnings)
    assert choose([wide, cord], {wide.relative}).files == (wide,)
    assert choose([wide, cord], asked=True).files == (wide, cord)
    near = image("acq-c_T2w", box((3.0, 0.8, 0.8), (24, 300, 300), low=-200.0))  # 72 mm: 1.6 of 45 mm
    assert choose([near, cord]).files == (cord, near)
    crop = image("acq-d_T2w", box((0.8, 0.8, 0.8), (30, 60, 60), low=250.0))  # 24 mm wide, 48 mm long
    assert choose([crop, cord]).files == (cord,)


def test_a_T1_volume_of_head_and_cord_serves_where_nothing_else_does():
    volume = image("T1w", box(*HEAD_VOLUME, low=120.0))
    plan = plan_of(volume, image("T2starw", box((0.5, 0.5, 4.0), (320, 320, 20), low=150.0)))
    assert names(plan)["T1Sag"] == [volume.name] and plan.left_out == ()
    assert plan.anchor == "T2StarAx"  # never the grid of a head while there is another
    assert plan.warnings == (
        f"{volume.name}: shows the head too; it serves because the session has no other T1Sag",
    )
    other = image("acq-sag_T1w", CERVICAL)
    beside = plan_of(volume, other)
    assert names(beside)["T1Sag"] == [other.name] and "by its extent" in reasons(beside)[volume.name]


def test_a_T1_volume_of_the_head_stays_out_of_sessions_that_show_no_cord():
    volume = image("T1w", box(*HEAD_VOLUME, low=120.0))
    assert plan_of(volume).anchor is None
    axial = image("T2w", box((0.5, 0.5, 4.4), (448, 448, 36), low=200.0))  # a head too
    assert "T1Sag" in plan_of(volume, axial).missing
    lumbar = image("T2w", box((3.0, 0.8, 0.8), (15, 300, 300), low=-110.0))  # shares 10 mm with it
    assert "T1Sag" in plan_of(volume, lumbar).missing
    assert "T1Sag" in plan_of(volume, image("T2w"), filters={"T1Sag": {"acq": ("x",)}}).missing
    assert plan_of(volume, image("T2w"), sequences=["T1Sag"]).anchor == "T1Sag"
    assert plan_of(volume, image("T2w"), needs_anchor="T1Sag").anchor == "T1Sag"


def test_of_a_dixon_scan_the_image_in_phase_serves_else_the_water():
    fat, phase, water = (image(f"acq-sagdixon{kind}_T2w", CERVICAL) for kind in ("F", "IN", "W"))
    plan = plan_of(fat, phase, water)
    assert names(plan)["T2Sag"] == [phase.name]
    assert reasons(plan)[fat.name] == "the fat image of a Dixon scan"
    assert "is no water image of a Dixon scan (fat-suppressed)" in reasons(plan)[water.name]
    without = plan_of(fat, water)
    assert names(without)["T2Sag"] == [water.name]
    assert without.warnings == (
        f"{water.name}: is the water image of a Dixon scan: it counts as fat-suppressed",
    )


def test_overlap_of_sixty_percent_of_the_shorter_decides():
    # Slices of 1 mm: 100 mm against 100 mm, moved by 41 mm (59 % shared) and by 40 mm (60 %).
    first = image("acq-a_T2w", lattice("iso", slices=100))
    assert not repeats(first, image("acq-b_T2w", lattice("iso", slices=100, low=41.0)))
    assert repeats(first, image("acq-b_T2w", lattice("iso", slices=100, low=40.0)))


@given(st.permutations(range(6)))
def test_choice_does_not_depend_on_the_order_of_files(order):
    files = [
        *(image(f"run-{n}_chunk-{m}_T2w", lattice("sag", low=m * -200.0)) for n in (1, 2) for m in (1, 2)),
        image("acq-iso_T2w", lattice("iso", low=-200.0, slices=400)),
        image("acq-crop_T2w", lattice("iso", low=0.0, slices=40)),
    ]
    reference = choose(files)
    again = choose([files[n] for n in order])
    assert again.files == reference.files
    assert sorted(again.left_out) == sorted(reference.left_out)
    assert len(again.files) + len(again.left_out) == len(files)


def test_gap_and_different_voxels_of_slabs_are_told():
    upper = image("acq-a_T2w", lattice("sag", low=300.0))
    lower = image("acq-b_T2w", lattice("iso", slices=250))
    text = " ".join(choose([upper, lower]).warnings)
    assert "do not overlap (50 mm between them)" in text and "different voxel sizes" in text


def test_echoes():
    echoes = [image(f"echo-{n}_MEGRE", lattice("ax")) for n in (1, 2, 3)]
    alone = plan_of(*echoes)
    assert names(alone)["T2StarAx"] == ["sub-01_echo-2_MEGRE.nii.gz"]
    assert "no combined image of 3 echoes" in alone.warnings[0]
    combined = plan_of(*echoes, image("T2starw", lattice("ax")))
    assert names(combined)["T2StarAx"] == ["sub-01_T2starw.nii.gz"]
    assert len(combined.left_out) == 3


def test_packed_and_plain_file_of_one_name():
    plan = plan_of(image("T2w", extension=".nii"), image("T2w"))
    assert names(plan)["T2Sag"] == ["sub-01_T2w.nii.gz"]
    assert reasons(plan) == {"sub-01_T2w.nii": "the same name as sub-01_T2w.nii.gz"}


def test_filter_overrules_matching_and_takes_names_that_are_not_bids():
    filters = parse_filters({"STIR": {"suffix": "STIR"}, "T1Sag": {"acq": "brain"}}, RECIPE)
    plan = plan_of(
        image("T2w"), image("STIR", named=False), image("acq-brain_T1w", lattice("iso")), image("T1w"),
        filters=filters,
    )  # fmt: skip
    assert names(plan) == {
        "T2Sag": ["sub-01_T2w.nii.gz"],
        "STIR": ["sub-01_STIR.nii.gz"],
        "T1Sag": ["sub-01_acq-brain_T1w.nii.gz"],
    }
    assert reasons(plan) == {"sub-01_T1w.nii.gz": "not selected by the filter for T1Sag"}


def test_a_stir_by_its_suffix_serves_where_names_are_not_validated(tmp_path):
    raw = write_dataset(tmp_path / "raw")
    write_nifti(raw / "sub-01/anat/sub-01_STIR.nii.gz", affine=np.diag([3.0, 1.0, 1.0, 1.0]))
    (plain,), (free,) = find_studies(raw), find_studies(raw, validate_names=False)
    refused = make_plan(plain, RECIPE)
    assert refused.anchor is None and "rename it to acq-STIR_T2w" in reasons(refused)["sub-01_STIR.nii.gz"]
    assert names(make_plan(free, RECIPE)) == {"STIR": ["sub-01_STIR.nii.gz"]}


def test_filter_never_takes_a_broken_image():
    broken = replace(image("T2w"), grid=None, problem="truncated")
    plan = plan_of(broken, image("T1w"), filters=parse_filters({"T2Sag": {"suffix": "T2w"}}, RECIPE))
    assert plan.anchor == "T1Sag" and reasons(plan) == {"sub-01_T2w.nii.gz": "truncated"}


def test_filter_that_selects_nothing_and_two_that_select_one():
    filters = parse_filters({"STIR": {"acq": "x"}, "T2Sag": {"acq": "y"}, "T2Ax": {"acq": "y"}}, RECIPE)
    plan = plan_of(image("acq-y_T2w"), filters=filters)
    assert plan.available == ("T2Sag",)
    assert "the filter for STIR selects no image" in plan.warnings
    assert any("selected for T2Sag and for T2Ax" in note for note in plan.warnings)


def test_field_of_view_beside_the_anchor_is_left_out_and_above_is_told():
    beside = image("T1w", lattice("sag", origin=(400.0, 0.0)))
    above = image("T2starw", lattice("ax", low=500.0))
    plan = plan_of(image("T2w"), beside, above)
    assert plan.available == ("T2Sag", "T2StarAx") and "T1Sag" in plan.missing
    assert "beside that of T2Sag" in reasons(plan)["sub-01_T1w.nii.gz"]
    assert any("above or below that of T2Sag" in note for note in plan.warnings)


def test_every_image_is_used_or_left_out_once_in_the_real_dataset(real_dev):
    for one in find_studies(real_dev):
        plan = make_plan(one, RECIPE, derivatives=[real_dev / "derivatives" / "labels"])
        used = [file.relative for sequence in plan.sequences for file in sequence.files]
        told = [relative for relative, _ in plan.left_out]
        assert sorted(used + told) == sorted(image.relative for image in one.images)
        assert (plan.anchor is None) == (one.subject == "sct019")  # axial T1w and MT only
        assert {relative for relative, _ in plan.cord_masks} <= set(used)


def test_real_sessions_with_decisions(real_dev):
    plans = {
        one.label: make_plan(one, RECIPE, derivatives=[real_dev / "derivatives" / "labels"])
        for one in find_studies(real_dev, participants=["errsm30", "unf01", "gm9418"])
    }
    assert names(plans["sub-errsm30"])["T2Sag"] == ["sub-errsm30_acq-sag_T2w.nii.gz"]
    assert plans["sub-unf01"].available == ("T2Sag", "T2StarAx", "T1Sag")
    assert len(plans["sub-unf01"].cord_masks) == 3
    assert names(plans["sub-gm9418"])["T2StarAx"] == ["sub-gm9418_run-1_T2starw.nii.gz"]  # it has a cord mask
