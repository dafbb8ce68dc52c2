from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bids_scseg.inference.bundle import load_bundle, packaged_models, save_bundle
from bids_scseg.inference.describe import describe, describe_text, notes, printable, threshold_source
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.preprocess import PREPARATION_VERSION

from .conftest import random_weights, small_recipe

FACTS = ModelFacts(
    preparation=PREPARATION_VERSION,
    cord_method="cord-finder",
    license="CC-BY-4.0",
    authors=("Ada", "Grace"),
    contact="group@example.org",
    training_data={"subjects": 50, "scanner": {"GE": 20, "Siemens": 30}},
    metrics={"validation": {"sensitivity": 0.75, "precision": None}},
    calibration={"set": "validation", "rule": "best F1", "subjects": 10},
)


@pytest.fixture
def bundle(tmp_path):
    recipe = small_recipe()
    return save_bundle(
        tmp_path / "ours",
        random_weights(recipe),
        recipe=replace(recipe, normalize="cord"),
        threshold=0.35,
        provenance={"seed": 4},
        card="# Ours\n\nFor tests only.",
        facts=FACTS,
    )


def test_everything_is_in_the_data(bundle):
    data = describe(bundle)
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
    assert data["license"] == "CC-BY-4.0"
    assert (data["authors"], data["contact"]) == (["Ada", "Grace"], "group@example.org")
    assert data["threshold"]["value"] == 0.35
    assert data["threshold"]["calibration"]["subjects"] == 10
    assert "threshold" not in data["inference"]  # one place, or two numbers may differ
    assert data["recipe"]["normalize"] == "cord"
    assert data["metrics"] == {"validation": {"sensitivity": 0.75, "precision": None}}
    assert data["training_data"]["subjects"] == 50
    assert data["checksums"]["weights_sha256"] == bundle.weights_sha256
    assert [row["name"] for row in data["sequences"] if row["used"]] == ["A", "B", "C"]
    # by hand, from channels 3, 4, 5: encoder (81+3+6)+(243+3+6) + (324+4+8)+(432+4+8) + (540+5+10)+(675+5+10)
    encoder = 90 + 252 + 336 + 444 + 555 + 690
    fusion = 15 * 5 + 5
    # up 5->4 by (1,1,2), 4->3 by (2,2,2); stages 8->4->4 and 6->3->3; heads 3->2 and 4->2
    decoder = (40 + 4) + (96 + 3) + (864 + 12) + (432 + 12) + (486 + 9) + (243 + 9) + 8 + 10
    assert data["weights"]["parameters"] == 3 * encoder + fusion + decoder
    assert data["weights"]["types"] == ["F16"]


def test_the_text_says_the_same(bundle):
    text = describe_text(bundle)
    for words in (
        "licence           CC-BY-4.0",
        "authors           Ada; Grace",
        "contact           group@example.org",
        "threshold         0.35 (calibrated on validation)",
        "calibration     rule: best F1",
        "cord masks        cord-finder: the built-in network",
        "metrics           validation: sensitivity 0.75, precision undefined",
        'training data     scanner: {"GE": 20, "Siemens": 30}',
        "intensities       cord",
        "For tests only.",
        bundle.weights_sha256,
    ):
        assert words in text
    assert "not recorded" not in text
    assert notes(bundle) == ()


def test_cords_of_several_origins_are_all_told(bundle):
    mixed = replace(bundle, facts=replace(FACTS, cord_method="masks+sct"))
    text = describe_text(mixed)
    assert "cord masks        masks: cord masks drawn by hand" in text
    assert "cord masks        sct: the Spinal Cord Toolbox" in text
    assert describe(mixed)["cord_method"] == "masks+sct"
    assert "not recorded" in describe_text(replace(bundle, facts=replace(FACTS, cord_method=None)))


def test_what_differs_from_this_program_is_said(bundle):
    old = replace(bundle, numerical_version=0, facts=replace(FACTS, preparation=PREPARATION_VERSION + 1))
    assert [note.split(" of ")[0] for note in notes(old)] == [
        f"it was trained on version {PREPARATION_VERSION + 1}",
        "it was saved under numerical version 0",
    ]


def test_bundles_of_the_first_release_say_what_they_know(bundle):
    configuration = json.dumps({"validation": {"thresholds": [0.3, 0.35]}})
    old = replace(
        bundle,
        facts=ModelFacts(),
        provenance=(("configuration", configuration), ("training data", '{"cases": 76}')),
    )
    assert describe(old)["training_data"] == {"cases": 76}
    assert threshold_source(old)["candidates"] == [0.3, 0.35]
    assert "not recorded" in str(threshold_source(replace(old, threshold=0.5))["source"])
    assert describe(replace(old, provenance=(("training data", "12 people"),)))["training_data"] == {
        "summary": "12 people"
    }
    assert len(notes(old)) == 3


def test_packaged_models_can_be_described():
    for name in packaged_models():
        text = describe_text(load_bundle(name))
        assert "Not validated on patients" in text


def test_words_of_a_model_do_not_steer_the_terminal(bundle):
    (bundle.path / "card.md").write_text("nice\x1b[2J\x07 model\r\n")
    assert "\x1b" not in describe_text(load_bundle(bundle.path))
    assert printable("a\tb\n\x00µ") == "a\tb\n\ufffdµ"


def test_describing_imports_no_torch():
    code = "import sys, bids_scseg.inference.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
