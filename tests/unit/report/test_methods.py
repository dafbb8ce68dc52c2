"""The methods text says what was done, and cites what it names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args, get_type_hints

from bids_scseg.recipe.model import Recipe, SequenceRule
from bids_scseg.report.methods import MethodsFacts, boilerplate, compose, recipe_facts
from bids_scseg.report.session import CONTRAST_UNITS

FACTS = MethodsFacts(
    version="0.1.0", sequences=(("T2Sag", "sagittal T2-weighted"),), anchor="T2Sag", model="m", threshold=0.4
)


def test_references_are_numbered_by_first_citation_and_all_cited():
    methods = compose(
        replace(FACTS, cord_sources={"T2Sag": ("sct",)}, versions={"nipype": "1", "torch": "2"})
    )
    cited = [int(number) for mark in re.findall(r"\[([\d, ]+)\]", methods.text) for number in mark.split(",")]
    firsts = list(dict.fromkeys(cited))
    assert firsts == list(range(1, len(methods.references) + 1))
    assert "@" not in methods.text and "http" not in boilerplate(FACTS)


def test_who_labelled_the_levels_is_told_and_the_model_cited():
    spine = compose(replace(FACTS, levels_from="Spinal Cord Toolbox 7.3 (sct_deepseg spine)"))
    assert "the spine model of the Spinal Cord Toolbox 7.3 (sct_deepseg spine) [" in spine.text
    assert any("TotalSpineSeg" in entry for entry in spine.references)
    own = compose(replace(FACTS, levels_from="labels of the derivatives discs"))
    assert "Vertebral levels follow labels of the derivatives discs." in own.text
    assert not any("TotalSpineSeg" in entry for entry in own.references)


def test_only_what_was_done_is_told():
    plain = compose(FACTS).text
    assert "nowhere reached" not in plain
    assert "nowhere reached" not in compose(replace(FACTS, seed_thresholds=(FACTS.threshold, 0.0))).text
    assert "slabs" not in plain and "imputed" not in plain and "ANTs" not in plain and "Toolbox" not in plain
    assert "0.4" in plain and "not validated on patients" in plain and "no anatomical origin" in plain
    full = compose(
        replace(
            FACTS,
            absent=("STIR", "T2Ax"),
            slabs=(("T2Sag", 2), ("STIR", 3)),
            registered=("T2Sag",),
            cord_sources={"T2Sag": ("sct",), "STIR": ("given mask m.nii.gz",)},
            impute="voxel",
            skips="mean",
            flips=True,
            min_volume_mm3=3.0,
            seed_thresholds=(0.83, 0.95),
            origin="C2-C3 disc",
            validated=True,
            model_sha256="0123456789abcdef",
        )
    ).text
    for words in (
        "Missing sequences (STIR and T2Ax) were imputed",
        "at each place",
        "T2Sag (2) and STIR (3)",
        "ANTs",
        "For STIR the alignment of the image headers stands",
        "Spinal Cord Toolbox",
        "by masks that were given (m.nii.gz) in STIR",
        "the parts that continue each other along the cord",
        "averaged over the available sequences",
        "mirroring",
        "under 3 mm³",
        "nowhere reached 0.83 (0.95 where one sequence alone sees) were dropped",
        "from the C2-C3 disc",
        "0123456789ab)",
    ):
        assert words in full, words
    assert "not validated" not in full


def test_what_the_cord_masks_remove_is_told():
    text = compose(FACTS).text
    assert "above or below the ends of the session's cord masks was removed" in text
    assert "components that touched no cord although their slices had some" in text
    assert "each took the voxels that it filled most, as many as make up its volume" in text
    assert "Probabilities were restored by averaging over each voxel's footprint" in text
    assert "from the top of the prepared cord" in text and "top of the field of view" not in text


def test_boilerplate_lists_its_references():
    text = boilerplate(FACTS)
    assert text.startswith("## Methods\n\n") and "## References\n\n1. " in text


def test_intensities_are_told_as_the_recipe_had_them():
    assert "zero mean and unit variance" in boilerplate(FACTS)
    text = boilerplate(replace(FACTS, normalize="cord", by_patch=True))
    assert "relative to the cord" in text and "clipped at ±6" in text and "unit variance" not in text
    assert "does not reach a patch counted as missing" in text
    rules = get_args(get_type_hints(Recipe)["normalize"])
    texts = [boilerplate(replace(FACTS, normalize=rule)) for rule in rules]
    assert len(set(texts)) == len(rules) and "divided by the cord's own level" in texts[-1]
    assert set(CONTRAST_UNITS) == set(rules)


RULE = SequenceRule(name="T2Sag", suffixes=("T2w",), planes=("sag",), register_slabs=True)
RECIPE = Recipe(
    name="r", version="1", frame="centerline", target="lesion", sequences=(RULE,), anchors=("T2Sag",)
)


def test_text_of_a_whole_run_names_no_session():
    text = boilerplate(recipe_facts(RECIPE, version="0.1.0", cord_source="builtin", model="m"))
    assert "Any subset is used of T2Sag" in text and "The session provided" not in text
    assert "Missing sequences were imputed" in text and "the anchor sequence" in text


def test_a_run_with_geometries_given_says_where_those_of_some_sessions_are_from() -> None:
    facts = recipe_facts(
        RECIPE, version="0.1.0", cord_source="builtin", model="m", given_geometry="earlier-run"
    )
    text = boilerplate(facts)
    assert "sessions that an earlier run had prepared" in text and "(earlier-run)" in text
    assert "registered" in text  # the others are fitted as ever


def test_the_toolboxs_network_is_told_instead_of_ours():
    meaning = "mean of what it says. No probability"
    facts = replace(
        FACTS, engine="sct:lesion_ms", engine_release="7.3", engine_meaning=meaning, absent=("STIR",)
    )
    text = compose(facts).text
    assert "network lesion_ms of the Spinal Cord Toolbox 7.3 (sct_deepseg) [" in text
    assert "late fusion" in text
    assert meaning in text
    assert "fused value of at least" in text
    assert "not validated on patients" in text
    for word in ("encoder", "imputed", "Skip connections", "probability of at least"):
        assert word not in text
    assert any(entry.startswith("De Leener") for entry in compose(facts).references)


def test_a_given_geometry_is_told():
    text = compose(replace(FACTS, given_geometry="sub-01_geometry.json, SHA-256 0123")).text
    assert "not fitted to these images again but taken from an earlier run (sub-01_geometry.json" in text
    assert "earlier run" not in compose(FACTS).text


def test_slabs_of_a_given_geometry_lie_neither_by_headers_nor_by_registration():
    facts = replace(
        FACTS, slabs=(("T2Sag", 2), ("STIR", 2)), registered=("STIR",), given_geometry="g.json, SHA-256 0123"
    )
    text = compose(facts).text
    assert "Overlapping slabs of T2Sag (2) and STIR (2) were combined" in text
    assert "registered rigidly" not in text and "headers" not in text and "ANTs" not in text
    fitted = compose(replace(facts, given_geometry="")).text
    assert "Lower slabs of STIR were registered" in fitted
    assert "For T2Sag the alignment of the image headers stands" in fitted


def test_every_kind_of_cord_mask_is_told():
    one = replace(FACTS, cord_sources={"T2Sag": ("given mask a.nii.gz", "builtin", "given mask b.nii.gz")})
    assert (
        "independently by masks that were given (a.nii.gz, b.nii.gz) and by the built-in, contrast-agnostic "
        "cord finder. Masks were reduced"
    ) in compose(one).text
    two = replace(FACTS, cord_sources={"T2Sag": ("given mask sub-sct019.nii.gz",), "STIR": ("sct",)})
    told = compose(two).text
    assert "by masks that were given (sub-sct019.nii.gz) in T2Sag, by the Spinal Cord Toolbox" in told
    without = compose(replace(two, cord_sources={"T2Sag": two.cord_sources["T2Sag"], "STIR": ()})).text
    assert "independently by masks that were given (sub-sct019.nii.gz). Masks" in without
    assert "Toolbox" not in without


def test_only_of_masks_that_a_program_found_something_is_cut_out():
    told = {
        source: compose(replace(FACTS, cord_sources={"T2Sag": ("given mask m.nii.gz", source)})).text
        for source in ("sct", "builtin", "given mask n.nii.gz")
    }
    assert "sections far too large for a cord were cut off" in told["sct"]
    assert "for a cord and what was taken for nerve roots below it were cut off" in told["builtin"]
    assert "cut off" not in told["given mask n.nii.gz"]


def test_a_readers_corrections_are_told():
    plain = compose(FACTS).text
    assert "corrected" not in plain
    lesions = compose(replace(FACTS, corrected="m.nii.gz", mask_origin="manual")).text
    assert "A reader then corrected this segmentation by hand (m.nii.gz)" in lesions
    assert "beyond the field of view" not in lesions
    mixed = compose(replace(FACTS, corrected="m.nii.gz", mask_origin="mixed")).text
    assert "beyond the field of view of that correction stand" in mixed
    cords = compose(
        replace(FACTS, cord_sources={"T2Sag": ("manual correction c.nii.gz",), "STIR": ("builtin",)})
    ).text
    assert "by masks that a reader corrected (c.nii.gz) in T2Sag" in cords
    assert "built-in, contrast-agnostic cord finder in STIR" in cords
