"""``scseg model``: what reaches the user, and exit codes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from bids_scseg.cli import participant
from bids_scseg.cli.tools import main
from bids_scseg.inference.bundle import load_bundle, packaged_models, save_bundle
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.options import RunOptions
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.study import ImageFile, Plan, SequencePlan, Study

BROKEN = {"a": np.zeros(3, np.float32)}


@pytest.fixture
def folder(tmp_path):
    """A bundle that loads but whose weights are no network's."""
    path = tmp_path / "mine"
    save_bundle(
        path,
        BROKEN,
        recipe=load_recipe("cord-lesion"),
        threshold=0.4,
        provenance={},
        card="# Mine\n\nFor \x1b[31mtests.",
        facts=ModelFacts(preparation=PREPARATION_VERSION, license="MIT", cord_method="masks"),
    )
    return path


@pytest.mark.parametrize("name", sorted(packaged_models()))
def test_info_of_packaged_models(name, capsys):
    assert main(["model", "info", name]) == 0
    text = capsys.readouterr().out
    assert load_bundle(name).weights_sha256 in text
    assert main(["model", "info", name, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["name"] == name
    assert data["card"] in text


def test_info_of_a_folder(folder, capsys):
    assert main(["model", "info", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "licence           MIT" in text
    assert "\x1b" not in text


def test_verify_says_what_failed_and_what_was_not_looked_at(folder, capsys):
    assert main(["model", "verify", str(folder)]) == 65
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "fail", "skip", "skip"]
    assert "of the network is missing" in lines[1]
    assert "names, shapes and types of the weights: failed" in err


def test_a_bundle_is_told_whose_it_is(folder, capsys):
    wanted = ["--license", "CC-BY-4.0", "--authors", "Ada", "Grace H.", "--contact", "https://example.org"]
    assert main(["model", "set", str(folder), *wanted]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "licence: CC-BY-4.0",
        "authors: Ada; Grace H.",
        "contact: https://example.org",
    ]
    assert main(["model", "info", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "authors           Ada; Grace H." in text
    assert "cord masks        masks" in text  # what was recorded before


def test_what_cannot_be_set(folder, capsys):
    assert main(["model", "set", str(folder)]) == 64
    assert main(["model", "set", "cord-lesion", "--license", "MIT"]) == 64
    assert main(["model", "set", str(folder), "--license", "ours"]) == 65
    assert "LicenseRef-ours" in capsys.readouterr().err
    assert load_bundle(folder).facts.license == "MIT"


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_foreign_file_is_a_clear_error(folder, capsys, command):
    os.mkfifo(folder / "weights.pkl")
    assert main(["model", command, str(folder)]) == 65
    out, err = capsys.readouterr()
    assert "could run code" in out + err


@pytest.mark.parametrize("command", [["info"], ["verify"], ["export", "--format", "onnx", "--out", "x"]])
def test_an_unknown_model_is_named(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["model", command[0], "cord-leison", *command[1:]]) == 66
    assert "cord-lesion" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["info"], ["export", "cord-lesion"], ["export", "x", "--format", "tf", "--out", "y"]]
)
def test_wrong_usage(arguments, capsys):
    assert main(["model", *arguments]) == 64
    assert capsys.readouterr().err.startswith("scseg: ")


def test_export_refuses_a_full_folder(folder, capsys):
    before = sorted(folder.iterdir())
    code = main(["model", "export", "cord-finder", "--format", "monai", "--out", str(folder)])
    assert code == 73
    assert "not empty" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_export_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else find_spec(name))
    out = tmp_path / "out"
    assert main(["model", "export", "cord-finder", "--format", "onnx", "--out", str(out)]) == 127
    assert "pip install 'bids_scseg[export]'" in capsys.readouterr().err


def test_a_run_that_differs_from_its_models_training_warns_in_its_plans(folder, tmp_path, monkeypatch):
    bundle = load_bundle(folder)
    facts = replace(bundle.facts, preparation=PREPARATION_VERSION + 1)
    models = participant.Models(lesion=replace(bundle, facts=facts), cord=None, cord_method="builtin")
    image = ImageFile(path="/data/a", relative="a", entities=(), suffix="T2w")
    plan = Plan(
        subject="1",
        session=None,
        dataset="/data",
        recipe="cord-lesion",
        sequences=(SequencePlan(name="T2Sag", files=(image,)),),
        missing=(),
        anchor="T2Sag",
        warnings=("two files fit",),
    )
    monkeypatch.setattr(participant, "make_plan", lambda *_, **__: plan)
    options = RunOptions(bids_dir=tmp_path, output_dir=tmp_path / "out", level="participant")
    study = Study(subject="1", session=None, dataset="/data", images=(image,))
    (found,) = participant.session_plans(options, models, [study], filters=None)
    assert "prepared by version" in found.warnings[0]
    assert "cords from masks, here they come from cord-finder" in found.warnings[1]
    assert found.warnings[2:] == ("two files fit",)
