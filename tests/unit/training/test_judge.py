from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_cases import NAMES, SIZE, make_case

from bids_scseg.recipe.load import load_recipe
from bids_scseg.training import judge as module
from bids_scseg.training.cases import TrainingCase
from bids_scseg.training.config import TrainingConfig, ValidationConfig
from bids_scseg.training.judge import Judge, Setting, judge_cases

#: Two lesions of make_case(): rows 6 to 8, slices 5 to 7 and 30 to 33.
FIRST, SECOND = (slice(6, 9), slice(6, 9), slice(5, 8)), (slice(6, 9), slice(6, 9), slice(30, 34))
ALL = Setting(name="all")
Maps = dict[str, npt.NDArray[np.float32]]


def make_judge(needs: tuple[str, ...] = (), volumes: tuple[float, ...] = (0.0, 2.0)) -> Judge:
    config = ValidationConfig(thresholds=(0.2, 0.5, 0.8), min_volumes_mm3=volumes)
    return Judge(
        network=torch.nn.Identity(),
        recipe=load_recipe("cord-lesion"),
        sequences=NAMES,
        needs=needs,
        by_patch=False,
        config=TrainingConfig(name="tiny", recipe="cord-lesion", validation=config),
        parameters=0,
        flops=0,
    )


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Maps:
    """Probability maps by case, in the place of what a network would say."""
    known: Maps = {}
    monkeypatch.setattr(module, "predict", lambda network, case, spec, **_: known[case.name])
    return known


def probability(**where: float) -> npt.NDArray[np.float32]:
    out = np.zeros(SIZE, np.float32)
    places = {"first": FIRST, "second": SECOND, "noise": (slice(1, 3), slice(1, 3), slice(20, 22))}
    for name, value in where.items():
        out[places[name]] = value
    return out


def test_the_choice_is_by_the_mean_over_images_of_all_lesions(
    maps: Maps,
) -> None:
    # In two cases a low threshold finds everything; in one it adds a false lesion of 1 mm3. A choice by
    # counts of visible lesions would not see the faint one.
    cases = [replace(make_case(name), visible={1: ("T2Sag",), 2: ()}) for name in ("01", "02", "03")]
    maps["sub-01"] = maps["sub-02"] = probability(first=0.9, second=0.3)
    maps["sub-03"] = probability(first=0.9, second=0.9, noise=0.3)
    best = make_judge().choose(cases, ALL, profile="walsh2024")
    assert best is not None
    assert (best.threshold, best.min_volume_mm3) == (0.2, 2.0)
    assert (best.f1, best.dice, best.cases, best.at_end) == (1.0, 1.0, 3, True)
    best = make_judge(volumes=(0.0,)).choose(cases, ALL, profile="walsh2024")
    assert best is not None
    assert best.threshold == 0.2
    assert best.f1 == pytest.approx((1 + 1 + 0.8) / 3)


def test_cases_without_lesions_choose_nothing(maps: Maps) -> None:
    free = make_case(label=np.zeros(SIZE, np.uint8))
    maps["sub-01"] = probability(noise=0.9)
    assert make_judge().choose([free], ALL, profile="walsh2024") is None
    assert make_judge().choose([], ALL, profile="walsh2024") is None


def test_the_test_uses_what_validation_chose(maps: Maps) -> None:
    maps["sub-01"] = probability(first=0.6, second=0.6, noise=0.3)
    maps["sub-02"] = probability(first=0.6, second=0.3)
    validation = [make_case("01")]
    took: list[float] = []
    rows, best = judge_cases(
        make_judge(),
        [make_case("02")],
        validation=validation,
        setting=ALL,
        profile="walsh2024",
        arm="a",
        seed=0,
        progress=took.append,
    )
    assert len(took) == 1  # seconds of the test case, not of those that choose
    assert best is not None
    assert best.threshold == rows[0].threshold == 0.2
    assert rows[0].min_volume_mm3 == 2.0
    assert rows[0].scores.f1 == 1.0
    assert rows[0].shared_mm3 == pytest.approx((27 + 36) / 8)


def test_any_of_the_anchors_is_enough() -> None:
    case: TrainingCase = make_case()
    assert make_judge(("T2Sag", "STIR")).usable(case, Setting(name="s", sequences=("STIR",)))
    assert not make_judge(("T2Sag",)).usable(case, Setting(name="s", sequences=("STIR",)))
    assert make_judge().usable(case, Setting(name="s", sequences=("STIR",)))
    assert not make_judge().usable(case, Setting(name="m", sequences=("MP2RAGE",)))


def test_a_crop_changes_no_prediction(maps: Maps) -> None:
    cord = np.zeros(SIZE, np.float32)
    cord[5:10, 5:10, 3:36] = 1.0
    rng = np.random.default_rng(0)
    noise = rng.random(SIZE, np.float32) * (rng.random(SIZE) < 0.1)
    noise[:3] = noise[12:] = noise[:, :4] = noise[:, 11:] = 0
    maps["sub-01"] = noise
    trial = make_judge().trial(replace(make_case(), cord=cord), ALL)
    small = trial.cropped(0.5)
    assert small.truth.shape == (9, 7, SIZE[2])
    spec = replace(load_recipe("cord-lesion").inference, threshold=0.5, min_volume_mm3=0.0)
    one, two = trial.predicted(spec), small.predicted(spec)
    assert one.sum() == two.sum() > 0
    scores = [t.scores(t.predicted(spec), profile="walsh2024") for t in (trial, small)]
    assert scores[0] == scores[1]
