from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.inference.bundle import (
    MAX_HEADER_BYTES,
    MAX_TEXT_BYTES,
    ModelBundle,
    _first_line,
    find_bundle,
    load_bundle,
    load_weights,
    mismatch,
    packaged_models,
    read_header,
    save_bundle,
    session_mismatch,
    sha256,
    stored_type,
)
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import InferenceSpec, NetworkSpec, Recipe, SequenceRule
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan

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
        replace(bundle, recipe=replace(bundle.recipe, normalize="coverage")),
        changed(by_patch=True),
        replace(bundle, recipe=replace(bundle.recipe, grid=replace(bundle.recipe.grid, spacing_mm=0.4))),
    ]
    assert len({bundle.inference_sha256, *(other.inference_sha256 for other in others)}) == 9
    later = [
        changed(threshold=0.9),
        changed(min_volume_mm3=7.0),
        changed(seed_threshold=0.95),
        changed(seed_threshold_alone=0.95),
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


@pytest.mark.parametrize(
    "name", ["weights.pt", "weights.pkl", "model.pth", "data.bin", "run.py", ".hidden", "x.tmp"]
)
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="other files could run code"):
        load_bundle(tmp_path)


def test_what_a_killed_writer_left_is_passed_over_unread_and_goes_with_the_next(tmp_path: Path) -> None:
    bundle, remains = write(tmp_path), tmp_path / ".weights.safetensors.0123456789ab.tmp"
    os.mkfifo(remains)  # opening it would wait for ever
    assert load_bundle(tmp_path) == bundle
    remains.unlink()
    remains.write_bytes(b"half of the weights")
    assert write(tmp_path) == bundle
    assert not remains.exists()


KILLED = """
import os, signal, sys
import numpy as np
from bids_scseg.inference.bundle import save_bundle
from bids_scseg.recipe.load import load_recipe

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
recipe = load_recipe("cord-lesion")
weights = {"a": np.ones(3, np.float32)}
save_bundle(sys.argv[1], weights, recipe=recipe, threshold=0.4, provenance={}, card="none")
"""


def test_the_same_command_succeeds_after_a_kill_while_weights_were_written(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (remains,) = tmp_path.iterdir()
    assert remains.name.startswith(".weights.safetensors.")
    bundle = write(tmp_path)
    assert bundle == load_bundle(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.json", "weights.safetensors", "card.md"}


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


def test_weights_are_stored_as_small_as_their_values_allow() -> None:
    largest = float(np.finfo(np.float16).max)
    small = {"a": np.array([-largest]), "b": np.zeros((0, 3))}
    assert stored_type(small) == "float16"
    assert stored_type({**small, "c": np.array([1.0, -1.01 * largest])}) == "float32"


def test_unknown_models_are_a_clear_error() -> None:
    with pytest.raises(MissingInputError, match=r"no model 'cord-leison'.*Did you mean 'cord-lesion'"):
        find_bundle("cord-leison")
    with pytest.raises(MissingInputError, match=r"^ours\.toml: initial: there is no model"):
        find_bundle("nowhere", where="ours.toml: initial")


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


def plain_bundle(**changes: Any) -> ModelBundle:
    """A bundle of nothing but defaults, apart from what is stated here."""
    rules = [SequenceRule(name=n, suffixes=(f"{n}w",), planes=("sag",)) for n in ("A", "B")]
    network = NetworkSpec(
        channels=(2, 4),
        strides=((1, 1, 1), (2, 2, 2)),
        sequences=("A", "B"),
        skips="mean",
        deep_supervision=1,
    )
    recipe = Recipe(
        name="t", version="1", frame="centerline", target="lesion", sequences=tuple(rules),
        anchors=("A", "B"), network=network, inference=InferenceSpec(patch_vox=(8, 8, 8)),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "t", "path": Path("t"), "recipe": recipe, "network": network, "threshold": 0.5,
        "provenance": (), "weights_sha256": "0" * 64, "numerical_version": 1, "summary": "",
    }  # fmt: skip
    return ModelBundle(**{**fields, **changes})


def test_checksums_of_the_first_release_stay() -> None:
    # computed by version 0.1.0; results in work folders are found again by this number
    expected = "a753cace3994b5fd26cd98c2c49d1e99ac6a36f526bfe34f24014b5365c4a5bd"
    assert plain_bundle().inference_sha256 == expected
    assert plain_bundle(facts=ModelFacts(preparation=7, license="MIT")).inference_sha256 == expected


def test_what_is_known_of_the_training_is_kept(tmp_path: Path) -> None:
    facts = ModelFacts(
        preparation=3,
        cord_method="masks",
        license="cc-by-4.0",
        training_data={"subjects": 50},
        metrics={"test": {"dice": float("nan")}},
        calibration={"set": "validation"},
    )
    bundle = write(tmp_path, facts=facts)
    assert bundle.facts == replace(facts, license="CC-BY-4.0", metrics={"test": {"dice": None}})
    assert load_bundle(tmp_path) == bundle
    # facts that do not say it: it is not known; no facts at all: this program trained on its own preparation
    assert write(tmp_path, facts=ModelFacts(license="MIT")).facts.preparation is None
    assert write(tmp_path).facts == ModelFacts(preparation=PREPARATION_VERSION)
    with pytest.raises(DataError, match="SPDX"):
        write(tmp_path, facts=ModelFacts(license="ask us"))


def test_bundles_without_facts_load(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "model.json"
    data = json.loads(path.read_text())
    del data["facts"]
    path.write_text(json.dumps(data))
    assert load_bundle(tmp_path).facts == ModelFacts()
    rewrite(tmp_path, facts=[])
    with pytest.raises(DataError, match="facts is \\[\\]; expected dict"):
        load_bundle(tmp_path)
    rewrite(tmp_path, facts={"cord_method": "by eye"})
    with pytest.raises(DataError, match="one of"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "card.md"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / name)
    (tmp_path / "model" / name).symlink_to(tmp_path / name)
    with pytest.raises(DataError, match="is a link to"):
        load_bundle(tmp_path / "model")


def test_a_link_to_the_whole_folder_is_fine(tmp_path: Path) -> None:
    bundle = write(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert load_bundle(tmp_path / "link") == bundle


def test_pipes_and_folders_in_place_of_files(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "card.md").unlink()
    os.mkfifo(tmp_path / "card.md")  # reading it would never end
    with pytest.raises(DataError, match="no regular file"):
        load_bundle(tmp_path)
    (tmp_path / "card.md").unlink()
    (tmp_path / "card.md").mkdir()
    with pytest.raises(DataError, match="no regular file"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"format": ' + "1" * 5000 + "}", "\ufeff{}", '{"a": NaN}', '{"a": 1, "a": 2}'],
)
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DataError):
        load_bundle(tmp_path)


def test_oversize_files_are_not_read(tmp_path: Path) -> None:
    bundle = write(tmp_path)
    with (tmp_path / "card.md").open("ab") as stream:
        stream.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(DataError, match="bytes long"):
        load_bundle(tmp_path)
    bundle.weights.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(DataError, match="a header of 16000001 bytes"):
        read_header(bundle.weights)


def test_the_header_tells_types_and_shapes(tmp_path: Path) -> None:
    assert read_header(write(tmp_path).weights) == {"a": ("F16", (1,)), "b": ("F16", (2, 3))}


@pytest.mark.parametrize(
    ("trained", "run", "differs"),
    [
        ("masks", "masks", False),
        ("masks", "builtin", True),
        ("masks", "sct", True),
        ("cord-finder", "builtin", False),
        ("cord-finder", "cord-finder", False),
        ("cord-finder", "masks", True),
        ("sct", "sct", False),
        ("sct", "builtin", True),
        ("jittered-masks", "masks", False),
        ("jittered-masks", "builtin", False),
        (None, "builtin", False),
        ("masks", "", False),
        ("cord-finder+masks", "masks", False),
        ("cord-finder+masks", "builtin", False),
        ("cord-finder+masks", "sct", True),
        ("cord-finder+jittered-masks", "sct", False),
    ],
)
def test_cords_from_elsewhere_are_named(trained: str | None, run: str, differs: bool) -> None:
    bundle = plain_bundle(facts=ModelFacts(preparation=1, cord_method=trained))
    found = mismatch(bundle, preparation=1, cord_method=run)
    assert len(found) == differs
    if differs:
        assert f"trained with cords from {trained.replace('+', ' and ')}, here" in found[0]


def test_another_preparation_is_named() -> None:
    bundle = plain_bundle(facts=ModelFacts(preparation=1, cord_method="sct"))
    assert mismatch(bundle, preparation=1, cord_method="sct") == ()
    (text,) = mismatch(bundle, preparation=2, cord_method="sct")
    assert "by version 1" in text
    assert "by version 2" in text
    assert len(mismatch(bundle, preparation=2, cord_method="masks")) == 2
    assert mismatch(plain_bundle(), preparation=2, cord_method="sct") == ()


def session(*names: str, masked: tuple[str, ...] = ()) -> Plan:
    files = tuple(ImageFile(path=f"/data/{n}", relative=n, entities=(), suffix="T2w") for n in names)
    return Plan(
        subject="1",
        session=None,
        dataset="/data",
        recipe="t",
        sequences=(SequencePlan(name="A", files=files),),
        missing=(),
        anchor="A",
        cord_masks=tuple((name, f"/masks/{name}") for name in masked),
    )


def test_a_session_has_the_cords_of_its_images() -> None:
    bundle = plain_bundle(facts=ModelFacts(preparation=PREPARATION_VERSION, cord_method="masks"))
    assert session_mismatch(bundle, session("a", "b", masked=("a", "b")), cord_method="builtin") == ()
    (text,) = session_mismatch(bundle, session("a", "b", masked=("a",)), cord_method="builtin")
    assert "here they come from cord-finder" in text
    other = replace(
        bundle, facts=replace(bundle.facts, preparation=PREPARATION_VERSION + 1, cord_method="sct")
    )
    texts = session_mismatch(other, session("a", "b", masked=("a",)), cord_method="builtin")
    assert len(texts) == 3  # the preparation once, masks, finder
    assert session_mismatch(bundle, session(), cord_method="builtin") == ()


def test_given_masks_of_the_toolbox_count_as_its_own() -> None:
    toolbox = plain_bundle(facts=ModelFacts(preparation=PREPARATION_VERSION, cord_method="sct"))
    drawn = plain_bundle(facts=ModelFacts(preparation=PREPARATION_VERSION, cord_method="masks"))
    plan = replace(session("a", "b", masked=("a", "b")), sct_masks=("a", "b"))
    assert session_mismatch(toolbox, plan, cord_method="builtin") == ()
    (text,) = session_mismatch(drawn, plan, cord_method="builtin")
    assert "here they come from sct" in text
    half = replace(plan, sct_masks=("a",))
    (text,) = session_mismatch(toolbox, half, cord_method="sct")
    assert "here they come from masks" in text


def test_the_packaged_models_origin_of_cords_is_read_as_before() -> None:
    bundle = load_bundle("cord-lesion")
    assert bundle.facts.cord_method == "jittered-masks"
    plan = replace(session("a", "b", "c", masked=("a", "b")), sct_masks=("a",))
    for method in ("builtin", "sct"):
        assert [t for t in session_mismatch(bundle, plan, cord_method=method) if "cords from" in t] == []
