from __future__ import annotations

from pathlib import Path

import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.config import TrainingConfig, configured_recipe, load_config

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_fit_their_recipes(path: Path) -> None:
    config = load_config(path)
    recipe = configured_recipe(config, load_recipe(config.recipe))
    assert recipe.inference.patch_vox in (config.sampling.patch_vox, config.sampling.window_vox)


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
