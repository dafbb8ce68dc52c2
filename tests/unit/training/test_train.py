from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bids_scseg.cli.tools import main
from bids_scseg.errors import DataError, OutputError
from bids_scseg.inference.bundle import load_bundle, load_weights, read_header
from bids_scseg.inference.describe import threshold_source
from bids_scseg.inference.predict import load_network, predict_case
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.checkpoint import TENSORS
from bids_scseg.training.config import (
    ArmConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    ValidationConfig,
    configured_recipe,
)
from bids_scseg.training.console import Console
from bids_scseg.training.ground import open_ground
from bids_scseg.training.train import WARNING, train, with_threshold
from bids_scseg.training.validate import Scores

NAMES = load_recipe("cord-lesion").sequence_names
SIZE = (16, 16, 32)
CONFIG = TrainingConfig(
    name="tiny",
    recipe="cord-lesion",
    iterations=2,
    precision="32-true",
    tensorboard=False,
    threads=1,
    network={"channels": [2, 2, 2, 2, 2], "skips": "mean"},
    optimizer=OptimizerConfig(name="adamw", lr=0.01),
    sampling=SamplingConfig(patch_vox=(16, 16, 16), batch=1, sequence_dropout=0.5),
    validation=ValidationConfig(fraction=0.3, thresholds=(0.4, 0.6), min_volumes_mm3=(0.0,)),
)


def write_cases(root: Path, count: int, *, lesions: bool = True) -> None:
    for number in range(count):
        folder = root / f"sub-{number}"
        folder.mkdir(parents=True)
        label = np.zeros(SIZE, np.uint8)
        if lesions:
            label[6:9, 6:9, 10:20] = 1
        available = np.array([True, number % 2 == 0, *([False] * 4)])
        coverage = np.broadcast_to(available[:, None, None, None], (6, *SIZE)).copy()
        image = (np.random.default_rng(number).standard_normal((6, *SIZE)) + 2 * label) * coverage
        for name, array in (("image", image.astype(np.float16)), ("coverage", coverage), ("label", label)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        record = {
            "case": folder.name,
            "subject": str(number),
            "sequences": list(NAMES),
            "available": available.tolist(),
        }
        (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")


def test_from_prepared_cases_to_a_bundle_that_predicts(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 6)
    model = ModelConfig(license="CC-BY-4.0", authors=("Ada", "Grace"), contact="group@example.org")
    config = replace(CONFIG, model=model)
    result = train(config, tmp_path / "data", out=tmp_path / "run", facts={"data": "made up"})
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert list(result.validation) == split["validation"]
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.threshold in CONFIG.validation.thresholds
    assert result.scores is not None
    assert result.scores.threshold == bundle.threshold
    assert bundle.recipe.inference.min_volume_mm3 == result.scores.min_volume_mm3
    assert bundle.facts.metrics["validation"]["threshold"] == bundle.threshold
    assert bundle.facts.training_data["subjects"] == len(split["training"])
    assert (bundle.facts.license, bundle.facts.authors) == ("CC-BY-4.0", ("Ada", "Grace"))
    assert bundle.facts.contact == "group@example.org"
    card = (bundle.path / "card.md").read_text()
    assert WARNING in "".join(card.splitlines()[:4])
    assert "made up" in card
    prob = predict_case(
        load_network(bundle),
        bundle,
        image=np.zeros((6, *SIZE), np.float32),
        coverage=np.ones((6, *SIZE), bool),
        available=(True, *(False,) * 5),
    )
    assert prob.shape == SIZE
    assert "candidates" in json.loads((tmp_path / "run" / "thresholds.json").read_text())


def test_the_card_states_what_was_done(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    sampling = replace(CONFIG.sampling, batch=2)
    train(replace(CONFIG, iterations=1), tmp_path / "data", out=tmp_path / "run")
    bundle = train(replace(CONFIG, sampling=sampling), tmp_path / "data", out=tmp_path / "run").bundle
    assert (
        "2 iterations, 3 patches of (16, 16, 16) voxels in all (1.5 an iteration on average)"
        in (bundle.path / "card.md").read_text()
    )
    made = dict(bundle.provenance)
    assert (made["iterations"], made["patches"], made["stored weights"]) == ("2", "3", "float16")


def test_weights_beyond_float16_do_not_cost_the_training(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    out = tmp_path / "run"
    train(replace(CONFIG, iterations=1), tmp_path / "data", out=out)
    with safe_open(out / TENSORS, framework="pt") as handle:
        stated = handle.metadata()
    tensors = load_file(out / TENSORS)
    name = next(key for key in tensors if key.startswith("weights.") and tensors[key].ndim > 1)
    tensors[name].view(-1)[0] = 70_000
    save_file(tensors, out / TENSORS, stated)
    stream = io.StringIO()
    bundle = train(replace(CONFIG, iterations=1), tmp_path / "data", out=out, display=Console(stream)).bundle
    words = "stored as float32, because a value is beyond the range of float16"
    assert f"weights are {words}\n" in stream.getvalue()
    assert f"- Weights: {words}." in (bundle.path / "card.md").read_text()
    assert dict(bundle.provenance)["stored weights"] == "float32"
    assert {kind for kind, _ in read_header(bundle.weights).values()} == {"F32"}
    assert load_weights(bundle)[name.removeprefix("weights.")].flat[0] == 70_000


def test_without_validation_the_recipes_threshold_stays(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 2)
    config = replace(CONFIG, iterations=1, validation=ValidationConfig(fraction=0.0))
    result = train(config, tmp_path / "data", out=tmp_path / "run")
    assert result.scores is None
    assert result.bundle.threshold == load_recipe("cord-lesion").inference.threshold


def test_held_out_subjects_without_lesions_leave_the_recipes_threshold(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    np.save(tmp_path / "data" / "sub-2" / "label.npy", np.zeros(SIZE, np.uint8), allow_pickle=False)
    validation = ValidationConfig(subjects=("2",), thresholds=(0.2, 0.4))
    config = replace(CONFIG, iterations=1, validation=validation)
    stream = io.StringIO()
    result = train(config, tmp_path / "data", out=tmp_path / "run", display=Console(stream))
    assert "the recipe's threshold stays" in stream.getvalue()
    assert result.bundle.threshold == load_recipe("cord-lesion").inference.threshold
    assert result.bundle.facts.calibration["set"] == "none"
    assert threshold_source(result.bundle)["source"] == "not calibrated"
    text = (tmp_path / "run" / "thresholds.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["chosen"]["sensitivity"] is None


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 2, lesions=False)
    with pytest.raises(DataError, match="no training case has a lesion"):
        train(CONFIG, tmp_path / "data", out=tmp_path / "run")


def test_sessions_with_several_cases_are_told(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 4)
    shutil.copytree(tmp_path / "data" / "sub-1", tmp_path / "data" / "backup" / "sub-1")
    stream = io.StringIO()
    train(CONFIG, tmp_path / "data", out=tmp_path / "run", display=Console(stream))
    assert "several cases, all used, their people taken for one: 1 (1)" in stream.getvalue()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["several"] == ["1"]


def test_cases_that_were_prepared_otherwise_are_refused(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    file = tmp_path / "data" / "sub-1" / "case.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "rules": {"normalize": "coverage"}}))
    with pytest.raises(DataError, match="sub-1 was prepared with normalize 'coverage'"):
        train(CONFIG, tmp_path / "data", out=tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 2)
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        train(CONFIG, tmp_path / "data", out=tmp_path / "run")


def test_a_summary_comes_before_the_first_step(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 4)
    stream = io.StringIO()
    train(CONFIG, tmp_path / "data", out=tmp_path / "run", display=Console(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1 of 4 subjects held out (25 %), 3 to train on"
    assert lines[1].startswith("training: ")
    assert "T2Sag" in lines[2]
    assert any(line.startswith("held out: ") for line in lines)
    assert lines[-1].startswith("2/2  loss")
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["subjects"] + data["validation"]["subjects"] == 4
    assert data["lesions"] == data["cases"]
    assert data["left out"] == []


def test_test_subjects_take_part_in_nothing(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 6)
    config = replace(CONFIG, validation=replace(CONFIG.validation, test=0.3))
    stream = io.StringIO()
    result = train(config, tmp_path / "data", out=tmp_path / "run", display=Console(stream))
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["test"]
    counts = {side: len(split[side]) for side in ("training", "validation", "test")}
    assert sum(counts.values()) == 6
    assert f"{counts['test']} set aside for a test (" in stream.getvalue().splitlines()[0]
    # weights, threshold and summary are those of a training that never had their cases
    for name in split["test"]:
        shutil.rmtree(tmp_path / "data" / f"sub-{name}")
    (tmp_path / "split.json").write_text(json.dumps({"validation": split["validation"]}))
    again = replace(config, validation=replace(CONFIG.validation, split=str(tmp_path / "split.json")))
    without = train(again, tmp_path / "data", out=tmp_path / "without")
    assert without.bundle.weights_sha256 == result.bundle.weights_sha256
    assert without.scores == result.scores
    assert result.bundle.facts.training_data["sides"] == counts
    assert {**without.bundle.facts.training_data, "sides": counts} == result.bundle.facts.training_data


def test_a_bundle_names_no_subject(tmp_path: Path) -> None:
    write_cases(tmp_path / "plain", 4)
    for number in range(4):
        folder = tmp_path / "data" / f"sub-{number}"
        shutil.copytree(tmp_path / "plain" / f"sub-{number}", folder)
        record = json.loads((folder / "case.json").read_text())
        record |= {"case": f"sub-Secret{number}", "subject": f"Secret{number}"}
        (folder / "case.json").write_text(json.dumps(record))
    shutil.copytree(tmp_path / "data" / "sub-0", tmp_path / "data" / "backup" / "sub-0")
    config = replace(
        CONFIG,
        network={**CONFIG.network, "sequences": ["STIR"]},
        validation=replace(CONFIG.validation, subjects=("Secret2",)),
    )
    result = train(config, tmp_path / "data", out=tmp_path / "run")
    own = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (len(own["left out"]), own["several"]) == (2, ["Secret0"])
    data = result.bundle.facts.training_data
    assert (data["left out"], data["several"]) == (2, 1)
    stated = json.loads(dict(result.bundle.provenance)["configuration"])
    assert stated["validation"]["subjects"] == 1
    for file in result.bundle.path.iterdir():
        assert b"Secret" not in file.read_bytes(), file.name


def test_a_training_goes_on_from_packaged_weights_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cases(tmp_path / "data", 4)
    (tmp_path / "ours.toml").write_text(
        'extends = "own-finetune"\nname = "ours"\niterations = 1\nprecision = "32-true"\n'
        "tensorboard = false\n[optimizer]\nlr = 1e-12\n"
        "[sampling]\npatch_vox = [16, 16, 16]\nwindow_vox = [16, 16, 16]\nworkers = 0\n"
        # such small cases have no cord to paint in
        "[paint]\nprobability = 0.0\ngrey = 0.0\nsurroundings = 0.0\n",
        encoding="utf-8",
    )
    assert main(["train", "ours.toml", "--data", "data", "--out", "run"]) == 0
    said = capsys.readouterr().err
    assert "of 4 subjects held out" in said.splitlines()[0]
    packaged, bundle = load_bundle("cord-lesion"), load_bundle(tmp_path / "run" / "bundle")
    line = f"cord-lesion, SHA-256 {packaged.weights_sha256}"
    assert dict(bundle.provenance)["initial weights"] == line
    assert line in (bundle.path / "card.md").read_text(encoding="utf-8")
    assert bundle.network == packaged.network
    ours, theirs = load_weights(bundle), load_weights(packaged)
    assert all(np.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["initial_sha256"] == packaged.weights_sha256


def test_what_a_run_began_with_stays_recorded_when_it_goes_on(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 4)
    first = train(CONFIG, tmp_path / "data", out=tmp_path / "first").bundle
    config = replace(CONFIG, iterations=1, initial=str(first.path))
    train(config, tmp_path / "data", out=tmp_path / "run")
    train(replace(CONFIG, seed=5), tmp_path / "data", out=tmp_path / "other")
    for file in (tmp_path / "other" / "bundle").iterdir():
        shutil.copy(file, first.path)
    result = train(replace(config, iterations=2), tmp_path / "data", out=tmp_path / "run")
    assert dict(result.bundle.provenance)["initial weights"] == f"bundle, SHA-256 {first.weights_sha256}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('initial = "cord-lesoin"', "ours.toml: initial: there is no model 'cord-lesoin'"),
        ('initial = "."', "no weights to start from"),
        ('recipe = "cord-lesoin"', "ours.toml: recipe: there is no recipe 'cord-lesoin'"),
        ('[sampling]\nsequences = ["T2sag", "STIR"]', "ours.toml: sampling.sequences: value 'T2sag'"),
    ],
)
def test_a_wrong_name_ends_the_command_before_the_data_are_read(
    tmp_path: Path,
    text: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.toml").write_text(f'extends = "own"\nname = "ours"\n{text}\n', encoding="utf-8")
    assert main(["train", "ours.toml", "--data", "nowhere", "--out", "run"]) in (65, 66)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_subjects_and_cases_alone(tmp_path: Path) -> None:
    """Dealt anew, a subject that was trained on would be held out, and choose the threshold."""
    write_cases(tmp_path / "data", 4)
    config = replace(CONFIG, iterations=1, validation=replace(CONFIG.validation, fraction=0.0, folds=2))
    train(config, tmp_path / "data", out=tmp_path / "run")
    split = (tmp_path / "run" / "split.json").read_text()
    more = replace(config, iterations=2)
    write_cases(tmp_path / "more", 5)
    with pytest.raises(DataError, match=r"begun with.*without.*new folder"):
        train(more, tmp_path / "more", out=tmp_path / "run")
    assert (tmp_path / "run" / "split.json").read_text() == split
    name = json.loads(split)["training"][0]
    label = tmp_path / "data" / f"sub-{name}" / "label.npy"
    before = label.read_bytes()
    np.save(label, np.zeros(SIZE, np.uint8), allow_pickle=False)
    with pytest.raises(DataError, match="other lesions"):
        train(more, tmp_path / "data", out=tmp_path / "run")
    label.write_bytes(before)
    assert train(more, tmp_path / "data", out=tmp_path / "run").validation == tuple(
        json.loads(split)["validation"]
    )


def test_a_model_of_one_sequence_leaves_out_cases_without_it(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 6)
    config = replace(
        CONFIG,
        network={**CONFIG.network, "sequences": ["STIR"]},
        validation=replace(CONFIG.validation, fraction=0.0, subjects=("0", "1")),
    )
    result = train(config, tmp_path / "data", out=tmp_path / "run")
    # STIR is there for subjects with even numbers
    assert json.loads((tmp_path / "run" / "data.json").read_text())["left out"] == ["sub-3", "sub-5", "sub-1"]
    assert result.validation == ("0",)
    assert result.bundle.network.sequences == ("STIR",)
    assert result.bundle.recipe.sequence_names == NAMES
    assert (
        predict_case(
            load_network(result.bundle),
            result.bundle,
            image=np.zeros((6, *SIZE), np.float32),
            coverage=np.ones((6, *SIZE), bool),
            available=(True, True, *(False,) * 4),
        ).shape
        == SIZE
    )


def test_the_control_ships_a_network_of_one_sequence(tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 4)
    config = replace(CONFIG, arm=ArmConfig(kind="replicated"))
    recipe = configured_recipe(config, load_recipe("cord-lesion"))
    with open_ground(config, tmp_path / "data", recipe=recipe, out=tmp_path / "ground") as ground:
        shown = [ground.source.sample(number).available for number in range(8)]
    # what it is shown is what stands in the place of all
    assert np.array_equal(shown, [[True] + [False] * 5] * 8)
    result = train(config, tmp_path / "data", out=tmp_path / "run")
    assert result.bundle.network.sequences == ("T2Sag",)
    load_network(result.bundle)


def test_the_command_trains_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "data", 4)
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "tiny"\nrecipe = "cord-lesion"\niterations = 1\nprecision = "32-true"\n'
        "tensorboard = false\nthreads = 1\n"
        '[network]\nchannels = [2, 2, 2, 2, 2]\nskips = "mean"\n'
        "[sampling]\npatch_vox = [16, 16, 16]\nbatch = 1\n",
        encoding="utf-8",
    )
    run = [str(config), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    seeded = [*run, "--seed", "3", "--deterministic"]
    assert main(["train", *seeded]) == 0
    said = capsys.readouterr().err
    weights = (tmp_path / "run" / "bundle" / "weights.safetensors").read_bytes()
    text = config.read_text(encoding="utf-8")
    config.write_text(text + "[validation]\nthresholds = [0.001, 0.01]\n", encoding="utf-8")
    # the choice alone is repeated
    assert main(["train", *seeded]) == 0
    said_again = capsys.readouterr().err
    assert re.search(r"threshold 0\.(001|01): .*\nthis is the (low|high)est candidate", said_again)
    assert (tmp_path / "run" / "bundle" / "weights.safetensors").read_bytes() == weights
    assert "training: " in said
    assert "model bundle: " in said
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["seed"], stored["deterministic"], stored["devices"]) == (3, True, 1)
    split = (tmp_path / "run" / "split.json").read_text()
    assert main(["train", *run, "--seed", "4"]) == 65
    assert (tmp_path / "run" / "split.json").read_text() == split
    assert "the run in this folder has seed 3" in capsys.readouterr().err


def test_the_chosen_rules_are_the_bundles() -> None:
    recipe = load_recipe("cord-lesion")
    scores = Scores(threshold=0.3, min_volume_mm3=7.0, seed_threshold=0.8, cases=())
    inference = with_threshold(recipe, scores).inference
    assert (inference.threshold, inference.min_volume_mm3, inference.seed_threshold) == (0.3, 7.0, 0.8)
    assert with_threshold(recipe, None) == recipe
