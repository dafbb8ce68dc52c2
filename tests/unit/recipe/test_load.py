from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.load import (
    load_recipe,
    network_from_json,
    network_to_json,
    packaged_recipes,
    parse_json,
    recipe_from_json,
    recipe_to_json,
)

PAPER = ("T2Sag", "STIR", "T2StarAx", "T2Ax", "T1Sag", "MP2RAGE")


def data() -> dict[str, Any]:
    """A recipe as plain data, to be spoiled."""
    return copy.deepcopy(recipe_to_json(load_recipe("cord-lesion")))


def test_packaged_recipes_load_and_are_named_after_their_files() -> None:
    assert packaged_recipes() == ("cord-finder", "cord-lesion", "cord-lesion-psir")
    for name in packaged_recipes():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("rule", ["cord", "cord-ratio", "coverage"])
def test_every_rule_of_normalisation_can_be_asked_for(tmp_path: Path, rule: str) -> None:
    data = recipe_to_json(load_recipe("cord-lesion"))
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({**data, "normalize": rule}), encoding="utf-8")
    assert load_recipe(path).normalize == rule
    path.write_text(json.dumps({**data, "normalize": "cord-ration"}), encoding="utf-8")
    with pytest.raises(DataError, match="cord-ratio"):
        load_recipe(path)


def test_the_packaged_recipes_keep_the_rule_of_the_packaged_weights() -> None:
    assert {load_recipe(name).normalize for name in ("cord-lesion", "cord-lesion-psir")} == {"cord"}


def test_the_default_recipe_is_the_papers_network() -> None:
    recipe = load_recipe("cord-lesion")
    assert recipe.sequence_names == recipe.network.sequences == PAPER
    assert recipe.network.channels == (32, 64, 128, 256, 320)
    assert recipe.inference.patch_vox == (48, 48, 320)
    assert recipe.grid.window_vox == (48, 48)


def test_the_second_recipe_adds_psir_after_the_papers_six() -> None:
    recipe = load_recipe("cord-lesion-psir")
    assert recipe.sequence_names == (*PAPER, "PSIR")
    assert recipe.rule("PSIR").polarity == "hypo"


@pytest.mark.parametrize("name", ["cord-finder", "cord-lesion", "cord-lesion-psir"])
def test_json_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    again = json.loads(json.dumps(recipe_to_json(recipe)))
    assert recipe_from_json(again) == recipe
    assert network_from_json(json.loads(json.dumps(network_to_json(recipe.network)))) == recipe.network


def test_a_recipe_without_seed_threshold_is_written_as_before_there_was_one() -> None:
    """Prepared cases, work folders and bundles are known by checksums of this."""
    recipe = load_recipe("cord-lesion")
    inference = recipe_to_json(recipe)["inference"]
    assert isinstance(inference, dict) and not any("seed" in name for name in inference)
    seeded = replace(
        recipe, inference=replace(recipe.inference, seed_threshold=0.8, seed_threshold_alone=0.9)
    )
    written = json.loads(json.dumps(recipe_to_json(seeded)))
    assert written["inference"]["seed_threshold"] == 0.8
    assert recipe_from_json(written) == seeded


def test_networks_written_before_a_field_existed_load_with_its_default() -> None:
    written = network_to_json(load_recipe("cord-lesion").network)
    del written["fusion"]
    assert network_from_json(written) == load_recipe("cord-lesion").network
    assert network_from_json(written).fusion == "linear"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**data(), "name": "mine"}))
    assert load_recipe(path).name == load_recipe(str(path)).name == "mine"


def spoil(*keys: str | int, value: object) -> dict[str, Any]:
    spoiled = data()
    place: Any = spoiled
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return spoiled


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (spoil("colour", value=1), "unknown key 'colour' in recipe"),
        (spoil("network", "width", value=1), r"unknown key 'width' in recipe\.network"),
        (spoil("version", value=1), r"recipe\.version is 1; expected a text"),
        (spoil("network", "classes", value=2.0), r"recipe\.network\.classes is 2\.0; expected an integer"),
        (spoil("network", "classes", value=True), r"classes is true; expected an integer"),
        (
            spoil("network", "impute", value="zero"),
            r"impute is \"zero\"; expected one of \['mean', 'voxel'\]",
        ),
        (spoil("network", "family", value="unet"), r"network\.family is \"unet\"; expected one of \['plain'"),
        (spoil("network", "fusion", value="mean"), r"expected one of \['linear', 'attention'\]"),
        (
            spoil("network", "strides", 1, value=[2, 2]),
            r"strides\[1\] is \[2, 2\]; expected a list of 3 entries",
        ),
        (spoil("inference", "flips", value=1), r"flips is 1; expected true or false"),
        (spoil("inference", "connectivity", value=8), r"connectivity is 8; expected one of \[6, 18, 26\]"),
        (spoil("sequences", 2, "planes", value="ax"), r"sequences\[2\]\.planes is \"ax\"; expected a list"),
        (spoil("grid", value=None), r"recipe\.grid is null; expected an object"),
        (spoil("anchors", value=["T2Sag", "FLAIR"]), r"\['FLAIR'\] are no sequences"),
        (spoil("anchors", value=[]), r"anchors \[\]"),
        (
            spoil("network", "sequences", value=["T2Sag"]),
            r"network\.sequences \['T2Sag'\]; expected the recipe's",
        ),
        (spoil("sequences", 1, "name", value="T2Sag"), "each once"),
        (spoil("sequences", 1, "name", value="T2 Sag"), "letters and digits"),
        (spoil("network", "channels", value=[8, 16]), "5 network.strides for 2 stages"),
        (spoil("inference", "patch_vox", value=[48, 48, 300]), "a multiple of 16 along axis 2"),
        (spoil("inference", "overlap", value=1), "below 1"),
        (spoil("inference", "threshold", value=1.5), "0 to 1"),
        (spoil("inference", "seed_threshold", value=1.0), "less than 1"),
        (spoil("inference", "seed_threshold_alone", value=1.0), "less than 1"),
        (spoil("grid", "window_vox", value=None), "centerline without grid.window_vox"),
        (spoil("grid", "spacing_mm", value=0), "spacing_mm of 0.05"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_say_where_and_what_is_expected(spoiled: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        recipe_from_json(spoiled, file="my.json")
    assert caught.value.file == "my.json"
    assert caught.value.expected and caught.value.remedy


def test_a_missing_key_is_named() -> None:
    spoiled = data()
    del spoiled["frame"]
    with pytest.raises(DataError, match=r"recipe lacks \['frame'\]"):
        recipe_from_json(spoiled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "number NaN"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_malformed_json(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_json(text, file="x.json")


def test_no_object_at_all() -> None:
    with pytest.raises(DataError, match="an object"):
        recipe_from_json([1, 2])


def test_unknown_names_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^ours: there is no .*cord-lesion-psir.*Did you mean 'cord-lesion'"):
        load_recipe("cord-leison", where="ours")
    with pytest.raises(DataError, match="Choose one of these names"):
        load_recipe("zzz")
    with pytest.raises(MissingInputError):
        load_recipe(tmp_path / "absent.json")
    with pytest.raises(MissingInputError):
        load_recipe("absent.json")


def test_a_binary_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_recipe(path)
