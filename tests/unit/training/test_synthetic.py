from __future__ import annotations

import json
import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_scseg.cli.tools import main
from bids_scseg.errors import DataError, UsageError
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import Recipe
from bids_scseg.training import synthetic
from bids_scseg.training.cases import load_case
from bids_scseg.training.config import (
    DataConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    ValidationConfig,
    configured_recipe,
)
from bids_scseg.training.synthetic import HELD_OUT_FIRST, Sessions, generate, open_sessions
from bids_scseg.training.train import train

SIZE = (16, 16, 24)
CONFIG = TrainingConfig(
    name="tiny",
    recipe="cord-lesion",
    iterations=6,
    checkpoint_every=3,
    precision="32-true",
    tensorboard=False,
    threads=1,
    data=DataConfig(synthetic=True, live=2, patches=2, generators=0, held_out=2),
    network={"channels": [2, 2, 2, 2, 2], "skips": "mean"},
    optimizer=OptimizerConfig(name="adamw", lr=0.01),
    sampling=SamplingConfig(patch_vox=(16, 16, 16), batch=1),
    validation=ValidationConfig(thresholds=(0.5,), min_volumes_mm3=(0.0,)),
)
RECIPE = configured_recipe(CONFIG, load_recipe("cord-lesion"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Small cases of noise in the place of drawn sessions; how often each number was made."""
    counts: Counter[int] = Counter()

    def make(sessions: Sessions, number: int, path: Path) -> None:
        counts[number] += 1
        rng = np.random.default_rng([sessions.seed, number])
        names = sessions.recipe.sequence_names
        label = np.zeros(SIZE, np.uint8)
        label[6:9, 6:9, 10:20] = 1
        path.mkdir(parents=True)
        np.save(path / "image.npy", rng.standard_normal((6, *SIZE)).astype(np.float16), allow_pickle=False)
        np.save(path / "coverage.npy", np.ones((6, *SIZE), bool), allow_pickle=False)
        np.save(path / "label.npy", label, allow_pickle=False)
        record = {"case": f"s{number}", "subject": f"s{number}", "sequences": names, "available": [True] * 6}
        (path / "case.json").write_text(json.dumps(record))

    monkeypatch.setattr(Sessions, "_make", make)
    return counts


def there(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))


def test_an_example_depends_on_its_number_alone(tmp_path: Path, made: Counter[int]) -> None:
    forward = open_sessions(CONFIG, RECIPE, out=tmp_path / "a")
    backward = open_sessions(CONFIG, RECIPE, out=tmp_path / "b")
    wanted = {n: forward.sample(n) for n in range(8)}
    for n in reversed(range(8)):
        np.testing.assert_array_equal(backward.sample(n).image, wanted[n].image)
    other = replace(backward, sessions=replace(backward.sessions, seed=1, folder=tmp_path / "c"), open_={})
    (tmp_path / "c").mkdir()
    assert any((other.sample(n).image != wanted[n].image).any() for n in range(3))


def test_sessions_come_and_go(tmp_path: Path, made: Counter[int]) -> None:
    data = replace(CONFIG.data, live=4, patches=20)
    source = open_sessions(replace(CONFIG, data=data), RECIPE, out=tmp_path)
    used = Counter[int]()
    for n in range(200):
        rng = np.random.default_rng([CONFIG.seed, n])
        used[n // 20 + int(rng.integers(4))] += 1
        source.sample(n)
    assert set(made) == set(range(max(used) + 1))
    assert set(made.values()) == {1}  # nothing was made twice, nothing removed that was still needed
    assert max(there(tmp_path / "sessions")) == max(used)
    assert min(there(tmp_path / "sessions")) >= source.first(199) - 2
    # in the middle of the run each gives 20 patches, give or take: 4 windows of 20 draws with chance 1/4
    middle = [used[n] for n in range(4, 9)]
    assert 12 < np.mean(middle) < 28


def test_who_comes_first_makes_a_session_and_others_wait(tmp_path: Path, made: Counter[int]) -> None:
    sessions = open_sessions(CONFIG, RECIPE, out=tmp_path).sessions
    slow = Sessions._make

    def make(self: Sessions, number: int, path: Path) -> None:
        started.set()
        assert go.wait(20)
        slow(self, number, path)

    started, go = threading.Event(), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sessions, "_make", make)
        threads = [threading.Thread(target=sessions.ensure, args=(5,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert started.wait(20)
        assert not (sessions.path(5) / "case.json").is_file()
        go.set()
        for thread in threads:
            thread.join(20)
    assert made == {5: 1}


def test_what_a_killed_maker_left_is_no_session(tmp_path: Path, made: Counter[int]) -> None:
    sessions = open_sessions(CONFIG, RECIPE, out=tmp_path).sessions
    half = sessions.folder / ".0000000003.99.new"
    half.mkdir()
    (half / "case.json").touch()
    assert sessions.oldest(7) == 7
    sessions.ensure(3)
    sessions.sweep()
    assert not half.exists()
    assert there(sessions.folder) == [3]


def test_generators_stay_a_little_ahead(
    tmp_path: Path, made: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = open_sessions(CONFIG, RECIPE, out=tmp_path).sessions
    parent, turns = os.getppid(), iter([True] * 8 + [False])
    monkeypatch.setattr(synthetic, "POLL_S", 0.0)
    monkeypatch.setattr("os.getppid", lambda: parent if next(turns) else -1)
    generate(sessions, 10, 1, 2, 5, parent)  # the second of two: 11, 13, and never 15 or more
    assert there(sessions.folder) == [11, 13, 15]  # the oldest that is there is 11
    sessions.ensure(HELD_OUT_FIRST)
    sessions.retire(15)
    assert there(sessions.folder) == [15, HELD_OUT_FIRST]
    assert sessions.oldest(0) == 15


def test_a_training_on_drawn_sessions(tmp_path: Path, made: Counter[int]) -> None:
    result = train(CONFIG, None, out=tmp_path / "run")
    facts = result.bundle.facts
    # six examples, two of each session on average: the last are drawn from sessions 2 and 3
    assert facts.training_data["synthetic"]["sessions"] == 4
    assert facts.training_data["subjects"] == 2
    assert (facts.preparation, facts.cord_method) == (PREPARATION_VERSION, "jittered-masks")
    assert result.validation == (f"s{HELD_OUT_FIRST}", f"s{HELD_OUT_FIRST + 1}")
    assert json.loads((tmp_path / "run" / "split.json").read_text())["validation"] == list(result.validation)
    assert there(tmp_path / "run" / "sessions") == [HELD_OUT_FIRST, HELD_OUT_FIRST + 1]
    assert result.scores is not None


def test_a_run_that_is_made_longer_counts_the_sessions_of_all_its_parts(
    tmp_path: Path, made: Counter[int]
) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, held_out=0))
    train(replace(config, iterations=2), None, out=tmp_path / "run")
    longer = train(config, None, out=tmp_path / "run").bundle.facts.training_data
    whole = train(config, None, out=tmp_path / "whole").bundle.facts.training_data
    assert longer == whole


def test_an_interrupted_run_ends_alike(tmp_path: Path, made: Counter[int]) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, held_out=0))
    train(config, None, out=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stop"):
        train(config, None, out=tmp_path / "parts", schedule=stopping(config, at=4))
    before = json.loads((tmp_path / "parts" / "data.json").read_text())
    train(config, None, out=tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "data.json").read_text()) == before
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def stopping(config: TrainingConfig, *, at: int):  # type: ignore[no-untyped-def]
    from bids_scseg.training.fit import polynomial

    factor = polynomial(config.optimizer, config.iterations)

    def schedule(step: int) -> float:
        if step == at:
            raise RuntimeError("stop")
        return factor(step)

    return schedule


def test_prepared_cases_can_be_held_out(tmp_path: Path, made: Counter[int]) -> None:
    sessions = Sessions(folder=tmp_path / "data", recipe=RECIPE, seed=9, jitter_mm=0.0)
    (tmp_path / "data").mkdir()
    sessions.ensure(1)
    result = train(CONFIG, tmp_path / "data", out=tmp_path / "run")
    assert result.validation == ("s1",)
    assert there(tmp_path / "run" / "sessions") == []


def test_the_command(tmp_path: Path, made: Counter[int], capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "tiny"\nrecipe = "cord-lesion"\niterations = 1\nprecision = "32-true"\n'
        "tensorboard = false\nthreads = 1\n"
        "[data]\nlive = 1\ngenerators = 0\nheld_out = 1\n"
        '[network]\nchannels = [2, 2, 2, 2, 2]\nskips = "mean"\n'
        "[sampling]\npatch_vox = [16, 16, 16]\nbatch = 1\n"
        "[validation]\nthresholds = [0.5]\n",
        encoding="utf-8",
    )
    assert main(["train", str(config), "--synthetic", "--out", str(tmp_path / "run")]) == 0
    assert "training, first of the synthetic sessions: 1 cases" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["live"] == 1
    assert main(["train", str(config), "--out", str(tmp_path / "none")]) == 64
    assert "--synthetic" in capsys.readouterr().err


def test_without_cases_and_without_synthesis_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prepared cases"):
        train(replace(CONFIG, data=DataConfig()), None, out=tmp_path / "run")


def test_a_recipe_that_nobody_can_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cord-finder has \['image'\]"):
        open_sessions(CONFIG, load_recipe("cord-finder"), out=tmp_path)


def test_a_drawn_session_is_a_case_like_any_other(tmp_path: Path) -> None:
    """The real thing, with one sequence to save time."""
    recipe = one_sequence(RECIPE, "T2Sag")
    sessions = Sessions(folder=tmp_path, recipe=recipe, seed=3, jitter_mm=0.4)
    case = load_case(sessions.ensure(1), sequences=("T2Sag",))
    assert case.subject == "synthetic-3-0001"
    assert case.made.preparation == PREPARATION_VERSION
    assert case.image.dtype == np.float16
    assert case.coverage.any()
    assert set(case.lesions) <= set(case.visible)  # what is known of each lesion covers those in the label
    assert case.lesions
    # lesions lie in the cord's surroundings, the middle of the grid
    places = np.argwhere(np.asarray(case.label) > 0)
    assert (np.abs(places[:, :2].mean(axis=0) - np.array(case.label.shape[:2]) / 2) < 10).all()


def one_sequence(recipe: Recipe, name: str) -> Recipe:
    rules = tuple(rule for rule in recipe.sequences if rule.name == name)
    network = replace(recipe.network, sequences=(name,))
    return replace(recipe, sequences=rules, anchors=(name,), network=network)
