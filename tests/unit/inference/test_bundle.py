from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.inference.bundle import (
    ModelBundle,
    _first_line,
    find_bundle,
    load_bundle,
    load_weights,
    packaged_models,
    save_bundle,
    sha256,
)
from bids_scseg.recipe.load import load_recipe

WEIGHTS = {"b": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "a": np.array([0.5], np.float32)}


def write(folder: Path, **changes: Any) -> ModelBundle:
    arguments: dict[str, Any] = {
        "recipe": load_recipe("cord-lesion"),
        "threshold": 0.4,
        "provenance": {"seed": 3, "data": "synthetic"},
        "card": "# Six sequences\n\nNot validated on patients.",
    }
    return save_bundle(folder, WEIGHTS, **{**arguments, **changes})


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(tmp_path: Path) -> None:
    bundle = write(tmp_path / "mine")
    assert bundle == load_bundle(tmp_path / "mine") == load_bundle(str(tmp_path / "mine"))
    assert (bundle.name, bundle.threshold, bundle.summary) == ("mine", 0.4, "Not validated on patients.")
    assert bundle.recipe == load_recipe("cord-lesion")
    assert bundle.network == bundle.recipe.network
    assert bundle.provenance == (("data", "synthetic"), ("seed", "3"))
    assert bundle.weights_sha256 == sha256(bundle.weights)


def test_whatever_decides_the_networks_output_is_in_the_checksum(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    rules, spec = bundle.recipe.inference, bundle.network

    def changed(**rule: Any) -> ModelBundle:
        return replace(bundle, recipe=replace(bundle.recipe, inference=replace(rules, **rule)))

    others = [
        changed(overlap=0.25),
        changed(flips=True),
        replace(bundle, network=replace(spec, impute="voxel")),
        replace(bundle, recipe=replace(bundle.recipe, anchors=bundle.recipe.anchors[::-1])),
        replace(bundle, weights_sha256="0" * 64),
    ]
    assert len({bundle.inference_sha256, *(other.inference_sha256 for other in others)}) == 6
    later = [
        changed(threshold=0.9),
        changed(min_volume_mm3=7.0),
        replace(bundle, threshold=0.9, name="other"),
    ]
    assert {other.inference_sha256 for other in later} == {bundle.inference_sha256}


def test_weights_are_stored_in_half_precision_and_read_as_single(tmp_path: Path) -> None:
    weights = load_weights(write(tmp_path))
    assert sorted(weights) == ["a", "b"]
    for name, array in weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, WEIGHTS[name].astype(np.float16).astype(np.float32))
    exact = load_weights(write(tmp_path, dtype="float32"))
    np.testing.assert_array_equal(exact["b"], WEIGHTS["b"])


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    backwards = dict(reversed(WEIGHTS.items()))
    save_bundle(
        tmp_path / "two",
        backwards,
        recipe=load_recipe("cord-lesion"),
        threshold=0.4,
        provenance={"data": "synthetic", "seed": 3},
        card="# Six sequences\n\nNot validated on patients.",
    )
    for name in ("model.json", "weights.safetensors", "card.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_network_may_use_some_of_the_recipes_sequences(tmp_path: Path) -> None:
    recipe = load_recipe("cord-lesion")
    single = replace(recipe.network, sequences=("T2Sag",))
    assert write(tmp_path, network=single).network == single
    with pytest.raises(DataError, match=r"\['FLAIR'\] are none of the recipe's"):
        write(tmp_path, network=replace(recipe.network, sequences=("FLAIR",)))


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    content = bytearray(bundle.weights.read_bytes())
    content[-1] ^= 1
    bundle.weights.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256") as caught:
        load_bundle(tmp_path)
    assert caught.value.expected == bundle.weights_sha256


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "model.pth", "data.bin", "run.py", ".hidden"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="other files could run code"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "card.md"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingInputError, match=f"lacks {name}"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"threshold": "0.5"}, "threshold is '0.5'; expected float"),
        ({"format": 2}, "model format 2"),
        ({"extra": 1}, "expected the keys"),
        ({"provenance": {"seed": 3}}, "provenance.seed is 3"),
        ({"recipe": {"name": "x"}}, "recipe lacks"),
        ({"network": {"colour": 1}}, "unknown key 'colour'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_malformed_model_json(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_bundle(tmp_path)
    assert caught.value.file == str(tmp_path.resolve() / "model.json")


def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    bundle.weights.write_bytes(b"PK\x03\x04 anything else")
    rewrite(tmp_path, weights_sha256=sha256(bundle.weights))
    with pytest.raises(DataError, match="not readable"):
        load_weights(load_bundle(tmp_path))


@pytest.mark.parametrize(
    "values", [np.array([np.nan]), np.array([1e6]), np.array([1])], ids=["nan", "beyond float16", "integers"]
)
def test_unusable_weights_are_not_saved(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(DataError):
        save_bundle(
            tmp_path, {"a": values}, recipe=load_recipe("cord-lesion"), threshold=0.5, provenance={}, card=""
        )
    with pytest.raises(DataError, match="no weights"):
        save_bundle(tmp_path, {}, recipe=load_recipe("cord-lesion"), threshold=0.5, provenance={}, card="")


def test_unknown_models_are_a_clear_error() -> None:
    with pytest.raises(MissingInputError, match="there is no model 'cord-leison'"):
        find_bundle("cord-leison")


def test_packaged_models_load() -> None:
    for name, folder in packaged_models().items():
        bundle = load_bundle(name)
        assert bundle.name == name
        assert bundle.path == folder.resolve()
        assert "not validated on patients" in bundle.summary.lower()


def test_reading_a_bundle_imports_no_torch() -> None:
    modules = "bids_scseg.inference.bundle, bids_scseg.inference.client"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_card_says_first_is_its_text_not_its_heading(tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# A model\n\n**Not validated on patients.** Made for tests.\n")
    assert _first_line(card) == "Not validated on patients. Made for tests."
    card.write_text("# A model\n")
    assert _first_line(card) == "A model"
