from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.inference.bundle import load_bundle
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.arms import checked_recipe
from bids_scseg.training.config import (
    TrainingConfig,
    config_from_mapping,
    configured_recipe,
    load_config,
)
from bids_scseg.training.parse import find_config, merge, packaged_configs, read_mapping

ROOT = Path(__file__).resolve().parents[3]
# other files there hold experiments, or only what their neighbours extend
RUNS = [
    path
    for path in sorted((ROOT / "configs").rglob("*.toml"))
    if {"name", "recipe"} <= read_mapping(path).keys()
]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_configurations_fit_their_recipes(path: Path) -> None:
    config = load_config(path)
    recipe = configured_recipe(config, load_recipe(config.recipe))
    assert recipe.inference.patch_vox in (config.sampling.patch_vox, config.sampling.window_vox)


@pytest.mark.parametrize("name", packaged_configs())
def test_packaged_configurations_are_found_by_name_and_hold_out_a_test(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    recipe = checked_recipe(config, file=name)
    assert recipe.network.skips == "mean", "sessions without the anchor"
    assert (config.validation.fraction, config.validation.test) == (0.2, 0.2)
    assert config.validation.subjects == ()
    assert config.validation.split == config.arm.source == ""


def test_the_packaged_weights_fit_the_configuration_that_goes_on_from_them() -> None:
    config, bundle = load_config("own-finetune"), load_bundle("cord-lesion")
    assert config.initial == bundle.name
    assert checked_recipe(config).network == bundle.network


def test_the_other_begins_from_nothing_at_the_papers_scale() -> None:
    config, defaults = load_config("own"), TrainingConfig(name="own", recipe="cord-lesion")
    recipe = load_recipe("cord-lesion")
    assert (config.initial, config.iterations) == ("", 250_000)
    assert checked_recipe(config).network.channels == recipe.network.channels
    assert (config.loss, config.optimizer, config.augment) == (
        defaults.loss,
        defaults.optimizer,
        defaults.augment,
    )
    assert config.sampling.patch_vox == recipe.inference.patch_vox


def test_a_file_extends_a_packaged_configuration_by_its_name(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, 'extends = "own"\nname = "ours"\n[validation]\ntest = 0.3\n'))
    assert (config.name, config.validation.test) == ("ours", 0.3)
    assert config.network == load_config("own").network
    with pytest.raises(MissingInputError, match=r"'own'.*Did you mean 'own-finetune'"):
        load_config(write(tmp_path, 'extends = "own-fintune"\nname = "ours"\n'))


def test_a_file_in_the_folder_is_meant_by_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").write_text('name = "x"\nrecipe = "r"', encoding="utf-8")
    assert find_config("own") == packaged_configs()["own"]
    assert load_config("./own").name == load_config(Path("own")).name == "x"


def test_an_unknown_name_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(MissingInputError, match=r"^ownn: .*\['own', 'own-finetune'\]. Did you mean 'own'\?"):
        load_config("ownn")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('recipe = "cord-lesoin"', "recipe", "Did you mean 'cord-lesion'?"),
        ('[network]\nskips = "mena"', "[network]: skips", "Did you mean 'mean'?"),
        ("[network]\nchannels = 3", "[network]: channels", "value 3"),
        ('[network]\nsequences = ["T2sag"]', "network.sequences", "Did you mean 'T2Sag'?"),
        ('[sampling]\nsequences = ["T2sag", "STIR"]', "sampling.sequences", "Did you mean 'T2Sag'?"),
        (
            '[sampling]\nsequences = ["T2sag", "STIR"]',
            "sampling.sequences",
            "one of ['T2Sag', 'STIR', 'T2StarAx'",
        ),
        ('[sampling]\nalone = ["STIRX"]', "sampling.alone", "Did you mean 'STIR'?"),
        ('[validation]\nsequences = ["MP2RAG"]', "validation.sequences", "Did you mean 'MP2RAGE'?"),
        ('[arm]\nkind = "replicated"\nsequence = "T2sag"', "arm.sequence", "Did you mean 'T2Sag'?"),
        ("[sampling]\npatch_vox = [48, 48, 100]", "config.toml: sampling.patch_vox", "multiples of"),
    ],
)
def test_a_typo_in_a_value_is_named_with_its_file_and_the_nearest(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    file = write(tmp_path, f'extends = "own"\nname = "x"\n{text}')
    with pytest.raises(DataError) as caught:
        checked_recipe(load_config(file), file=file)
    assert str(caught.value).startswith(f"{tmp_path}/")
    assert f"config.toml: {place.removeprefix('config.toml: ')}" in str(caught.value)
    assert words in str(caught.value)


def test_shares_leave_somebody_to_train_on() -> None:
    data = {"name": "x", "recipe": "r", "validation": {"fraction": 0.5, "test": 0.5}}
    with pytest.raises(DataError, match=r"validation\.test is 0\.5; expected less than 1 together"):
        config_from_mapping(data, file="here")
    config_from_mapping(merge(data, {"validation": {"folds": 2}}), file="here")


def test_defaults_are_the_papers() -> None:
    config = TrainingConfig(name="a", recipe="cord-lesion")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 0.01, 0.99)
    assert (optimizer.weight_decay, optimizer.power, optimizer.clip) == (3e-5, 0.9, 12.0)
    assert config.iterations == 250_000
    assert config.loss.output_weights == (2 / 3, 1 / 3)


def test_values_arrive_with_their_types(tmp_path: Path) -> None:
    text = 'name = "x"\nrecipe = "cord-lesion"\n[sampling]\npatch_vox = [48, 48, 96]\n[optimizer]\nlr = 1\n'
    config = load_config(write(tmp_path, text))
    assert config.sampling.patch_vox == (48, 48, 96)
    assert config.optimizer.lr == 1.0
    assert isinstance(config.optimizer.lr, float)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('name = "x"', "recipe"),
        ('name = "x"\nrecipe = "r"\nspeed = 3', "speed"),
        ('name = "x"\nrecipe = "r"\nseed = "one"', "seed"),
        ('name = "x"\nrecipe = "r"\nseed = true', "seed"),
        ('name = "x"\nrecipe = "r"\n[sampling]\npatch_vox = [1, 2]', "patch_vox"),
        ('name = "x"\nrecipe = "r"\n[loss]\nname = "hinge"', "hinge"),
        ('name = "x"\nrecipe = "r"\nloss = 3', "loss"),
        ("name = ", "TOML"),
        ('name = "x"\nrecipe = "r"\nnetwork = 3', "network"),
        ('name = "x"\nrecipe = "r"\niterations = 0', "iterations is 0"),
        ('name = "x"\nrecipe = "r"\n[sampling]\nforeground = 1.5', "foreground is 1.5"),
        ('name = "x"\nrecipe = "r"\n[arm]\nkind = "frozen"', r"arm\.source"),
        ('name = "x"\nrecipe = "r"\n[sampling]\nalone_share = 0.5', "sampling.alone"),
        ('name = "x"\nrecipe = "r"\n[validation]\nfolds = 5\nfold = 5', "fold 5 of 5"),
        ('name = "x"\nrecipe = "r"\n[model]\nlicense = "ours"', "LicenseRef-ours"),
        ('name = "x"\nrecipe = "r"\n[model]\nauthors = ["Ada", ""]', r"model\.authors is ''"),
        ('name = "x"\nrecipe = "r"\n[model]\nauthors = "Ada"', "authors"),
        ('name = "x"\nrecipe = "r"\n[validation]\nfolds = 5\nsubjects = ["a"]', "one way to split"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


def test_network_changes_are_checked() -> None:
    recipe = load_recipe("cord-lesion")
    wide = TrainingConfig(name="a", recipe="cord-lesion", network={"channels": [4, 8, 16, 32, 40]})
    assert configured_recipe(wide, recipe).network.channels == (4, 8, 16, 32, 40)
    with pytest.raises(DataError, match="depth"):
        configured_recipe(TrainingConfig(name="a", recipe="r", network={"depth": 3}), recipe)
    with pytest.raises(DataError):
        configured_recipe(TrainingConfig(name="a", recipe="r", network={"channels": [4, 8]}), recipe)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("iteration = 5", ("'iteration'", "'iterations'")),
        ("[optimizer]\nlearning_rate = 1\nlrr = 2", ("'learning_rate'",)),
        ("[sampling]\npatch_voxels = [1, 1, 1]", ("sampling", "'patch_voxels'", "'patch_vox'")),
        ("[network]\nchanels = [1, 2]", ("network", "'chanels'", "'channels'")),
        ('[arm]\nkind = "distilation"', ("arm", "'distilation'", "'distillation'")),
        ("momentum = 0.9", ("'momentum'", "[optimizer]")),
    ],
)
def test_a_typo_is_named_with_the_nearest_key(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        load_config(write(tmp_path, f'name = "x"\nrecipe = "r"\n{text}'))
    assert all(word in str(caught.value) for word in words)
    assert "config.toml" in str(caught.value)


def test_overrides_are_laid_over_table_by_table() -> None:
    base = {"seed": 1, "sampling": {"batch": 2, "patch_vox": [1, 2, 3]}, "network": {"skips": "mean"}}
    over = {"seed": 2, "sampling": {"patch_vox": [4]}, "arm": {"kind": "latent"}}
    assert merge(base, over) == {
        "seed": 2,
        "sampling": {"batch": 2, "patch_vox": [4]},
        "network": {"skips": "mean"},
        "arm": {"kind": "latent"},
    }
    assert base["sampling"] == {"batch": 2, "patch_vox": [1, 2, 3]}
    assert merge(base, {"network": 3})["network"] == 3


def test_a_file_can_extend_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('recipe = "r"\nseed = 4\n[sampling]\nbatch = 3\n', encoding="utf-8")
    config = load_config(write(tmp_path, 'extends = "base.toml"\nname = "x"\nseed = 5\n'))
    assert (config.name, config.seed, config.sampling.batch) == ("x", 5, 3)
    (tmp_path / "base.toml").write_text('extends = "config.toml"', encoding="utf-8")
    with pytest.raises(DataError, match="extends itself"):
        read_mapping(tmp_path / "config.toml")
    (tmp_path / "base.toml").unlink()
    with pytest.raises(MissingInputError, match=r"base\.toml"):
        read_mapping(tmp_path / "config.toml")


def test_plain_data_make_a_configuration() -> None:
    config = config_from_mapping({"name": "x", "recipe": "r", "arm": {"kind": "latent"}}, file="here")
    assert config.arm.kind == "latent"
    with pytest.raises(DataError, match="here"):
        config_from_mapping({"name": "x"}, file="here")


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("validation", "thresholds", [20.0, 30.0]),
        ("validation", "thresholds", [0.0]),
        ("validation", "thresholds", [float("nan")]),
        ("validation", "min_volumes_mm3", [-5.0]),
        ("validation", "min_volumes_mm3", [float("inf")]),
        ("validation", "seed_thresholds", [1.0]),
        ("validation", "seed_thresholds", [-0.1]),
        ("augment", "level", -1.0),
        ("sampling", "window_vox", [-48, 48, 96]),
        ("sampling", "window_vox", [0, 48, 96]),
        ("sampling", "window_vox", [48, 48, 100]),
        ("sampling", "window_vox", [48, 48, 2048]),
        ("sampling", "patch_vox", [48, 48, 0]),
        ("sampling", "patch_vox", [48, 48, 100]),
        ("augment", "flip_axes", [3]),
        ("augment", "flip_axes", [0, 0]),
        ("augment", "scale", 1.0),
        ("augment", "scale", float("nan")),
        ("augment", "gamma_range", [-1.0, 1.5]),
        ("augment", "gamma_range", [0.7, float("inf")]),
        ("augment", "blur_mm", [1.0, 0.5]),
        ("augment", "noise_sd", [-0.3, -0.1]),
        ("augment", "contrast_factor", [0.0, 1.7]),
        ("augment", "elastic_mm", [float("nan"), 0.8]),
        ("augment", "low_resolution_factor", [0.5, 2.0]),
        ("loss", "alpha", -1.0),
        ("loss", "beta", float("inf")),
        ("loss", "output_weights", [-1.0, 2.0]),
        ("optimizer", "ema", 1.0),
        ("optimizer", "lr", 0.0),
        ("optimizer", "lr", float("inf")),
        ("optimizer", "weight_decay", float("nan")),
    ],
)
def test_impossible_values_are_refused_before_the_training(table: str, key: str, value: object) -> None:
    data = {"name": "x", "recipe": "cord-lesion", table: {key: value}}
    with pytest.raises(DataError, match=rf"{table}\.{key} is .*expected .*Correct the configuration"):
        configured_recipe(config_from_mapping(data, file="here"), load_recipe("cord-lesion"))
