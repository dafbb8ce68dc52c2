from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_scseg.inference.bundle import save_bundle
from bids_scseg.inference.predict import load_network, predict_case
from bids_scseg.network.build import build_network
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import GridSpec, InferenceSpec, NetworkSpec
from bids_scseg.training.cases import TrainingCase
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.validate import (
    HeldOut,
    choose_threshold,
    end_of_candidates,
    predict,
    score_case,
)

SIZE = (16, 16, 32)
SPEC = InferenceSpec(patch_vox=(16, 16, 16), overlap=0.5, connectivity=26)
GRID = GridSpec(spacing_mm=0.5)


def case() -> TrainingCase:
    label = np.zeros(SIZE, np.uint8)
    label[2:6, 2:6, 2:6] = 1  # 64 voxels, 8 mm3; seen by A
    label[10:14, 10:14, 10:14] = 2  # seen by nobody
    label[2:6, 2:6, 26:30] = 3  # beyond coverage
    coverage = np.ones((1, *SIZE), bool)
    coverage[0, :, :, 24:] = False
    image = (label > 0).astype(np.float32)[None] * coverage
    return TrainingCase(
        name="c",
        subject="c",
        sequences=("A",),
        available=np.array([True]),
        image=image,
        coverage=coverage,
        label=label,
        visible={1: ("A",), 2: (), 3: ("A",)},
    )


class Echo(torch.nn.Module):
    """Calls bright voxels lesion."""

    spec = NetworkSpec(channels=(2, 2), strides=((1, 1, 1), (2, 2, 2)), sequences=("A",), skips="mean")

    def forward(
        self, images: torch.Tensor, available: torch.Tensor, coverage: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        assert available.dtype == torch.bool
        bright = images[:, :1] * 20 - 10
        return [torch.cat([-bright, bright], 1) / 2]


def score(
    prob: np.ndarray,
    threshold: float = 0.5,
    smallest: float = 0.0,
    seed: float = 0.0,
    spec: InferenceSpec = SPEC,
):
    return score_case(
        case(),
        prob.astype(np.float32),
        threshold=threshold,
        min_volume_mm3=smallest,
        seed_threshold=seed,
        spec=spec,
        grid=GRID,
        kept=np.array([True]),
    )


def test_the_seed_threshold_is_chosen_with_the_others() -> None:
    """A false component of 0.7 goes, one of 0.9 stays, whose outline is best drawn from 0.5."""
    prob = np.where(case().label == 1, 0.6, 0).astype(np.float32)
    prob[np.unravel_index(np.flatnonzero(case().label == 1)[0], prob.shape)] = 0.9
    false = np.zeros(SIZE, bool)
    false[13:15, :2, :2] = True  # touches no lesion
    prob[false] = 0.7
    config = ValidationConfig(thresholds=(0.5, 0.8), min_volumes_mm3=(0.0,), seed_thresholds=(0.0, 0.8))
    best, table = choose_threshold([case()], [prob], config=config, spec=SPEC, grid=GRID)
    assert (best.threshold, best.seed_threshold, best.precision) == (0.5, 0.8, 1.0)
    assert best.to_json()["seed_threshold"] == 0.8
    assert [(s.threshold, s.seed_threshold) for s in table] == [(0.5, 0.0), (0.5, 0.8), (0.8, 0.0)]


def test_one_sequence_alone_may_need_a_surer_lesion() -> None:
    prob = np.where(case().label == 1, 0.9, 0).astype(np.float32)
    one = replace(SPEC, seed_threshold_alone=0.95)
    assert score(prob, seed=0.8).found == 1
    assert score(prob, seed=0.8, spec=one).predicted == 0
    assert score(prob + 0.06 * (prob > 0), seed=0.8, spec=one).found == 1


def test_prediction_of_a_whole_case_is_the_networks() -> None:
    prob = predict(Echo(), case(), SPEC, kept=np.array([True]))
    covered = case().coverage[0]
    assert np.allclose(prob[covered], (case().label > 0)[covered], atol=0.01)
    assert not prob[~covered].any()


def test_counts_by_hand() -> None:
    prob = np.zeros(SIZE)
    prob[2:6, 2:6, 2:4] = 0.9  # half of lesion 1
    prob[0, 15, 20:23] = 0.6  # 3 voxels of nothing
    found = score(prob)
    assert (found.visible, found.visible_found) == (1, 1)
    assert (found.lesions, found.found) == (2, 1)  # lesion 3 is not covered
    assert (found.predicted, found.right) == (2, 1)
    # 32 voxels in common, 128 true and 35 predicted ones
    assert found.dice == pytest.approx(64 / (128 + 35))


def test_threshold_and_smallest_volume() -> None:
    prob = np.zeros(SIZE)
    prob[2:6, 2:6, 2:4] = 0.9
    prob[0, 15, 20:23] = 0.6  # 0.375 mm3
    assert score(prob, threshold=0.7).predicted == 1
    assert score(prob, smallest=0.5).predicted == 1


def test_the_threshold_that_separates_is_chosen() -> None:
    prob = np.zeros(SIZE, np.float32)
    prob[2:6, 2:6, 2:6] = 0.75
    prob[0, 15, 20:23] = 0.55
    config = ValidationConfig(thresholds=(0.3, 0.6, 0.9), min_volumes_mm3=(0.0,))
    best, table = choose_threshold([case()], [prob], config=config, spec=SPEC, grid=GRID)
    assert best.threshold == 0.6
    assert (best.sensitivity, best.precision, best.f1) == (1.0, 1.0, 1.0)
    assert best.sensitivity_all == 0.5
    assert len(table) == 3
    assert np.isnan(table[2].precision)
    assert table[2].f1 == 0.0
    assert end_of_candidates(best.threshold, config.thresholds) == ""
    assert end_of_candidates(best.threshold, (0.3, 0.6)) == "highest"
    assert end_of_candidates(best.threshold, (0.6, 0.9)) == "lowest"
    assert end_of_candidates(best.threshold, (0.6,)) == ""


def test_cases_without_lesions_choose_no_threshold() -> None:
    free = replace(case(), label=np.zeros(SIZE, np.uint8), visible={})
    prob = np.zeros(SIZE, np.float32)
    prob[2:6, 2:6, 2:6] = 0.65
    config = ValidationConfig(thresholds=(0.2, 0.6), min_volumes_mm3=(0.0,))
    spec = replace(SPEC, threshold=0.7, min_volume_mm3=3.0)
    best, table = choose_threshold([free], [prob], config=config, spec=spec, grid=GRID)
    assert (best.threshold, best.min_volume_mm3, best.lesions) == (0.7, 3.0, 0)
    assert [scores.threshold for scores in table] == [0.2, 0.6]


class Counting(torch.nn.Module):
    """Notes which sequences each window had; its parameter tells its device."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(Echo.spec, sequences=("A", "B"))
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[bool]] = []

    def forward(
        self, images: torch.Tensor, available: torch.Tensor, coverage: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        assert images.device == available.device == self.weight.device
        self.seen += available.tolist()
        return [torch.zeros(len(images), 2, *images.shape[2:])]


def two_sequences() -> TrainingCase:
    one = case()
    coverage = np.concatenate([one.coverage, np.zeros((1, *SIZE), bool)])
    coverage[1, :, :, 16:24] = True
    return TrainingCase(
        name="c",
        subject="c",
        sequences=("A", "B"),
        available=np.array([True, True]),
        image=np.concatenate([one.image, one.image]),
        coverage=coverage,
        label=one.label,
    )


def test_a_chosen_subset_is_what_the_network_sees() -> None:
    network = Counting()
    config = ValidationConfig(thresholds=(0.4, 0.6), min_volumes_mm3=(0.0,), sequences=("A",))
    look = HeldOut(cases=[two_sequences()], spec=SPEC, grid=GRID, config=config)
    scores = look(network, 1)
    assert {tuple(row) for row in network.seen} == {(True, False)}
    assert scores["visible"] == 2  # lesion 3 lies beyond the coverage of A
    network.seen.clear()
    predict(network, two_sequences(), SPEC, kept=np.array([True, True]))
    assert {tuple(row) for row in network.seen} == {(True, True)}


def test_by_patch_windows_have_what_covers_them() -> None:
    network = Counting()
    predict(network, two_sequences(), SPEC, kept=np.array([True, True]), by_patch=True)
    # windows start at slices 0, 8 and 16; B covers slices 16 to 24
    assert network.seen == [[True, False], [True, True], [True, True]]


def test_one_map_is_held_at_a_time() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def maps() -> Iterator[np.ndarray]:
        for _ in range(4):
            # the last one may still be known to the loop; those before it must be gone
            assert not any(one() is not None for one in alive[:-1])
            prob = np.zeros(SIZE, np.float32)
            alive.append(weakref.ref(prob))
            yield prob
            del prob

    config = ValidationConfig(thresholds=(0.3, 0.6), min_volumes_mm3=(0.0, 1.0))
    _, table = choose_threshold([case()] * 4, maps(), config=config, spec=SPEC, grid=GRID)
    assert [len(scores.cases) for scores in table] == [4] * 4
    look = HeldOut(cases=[case()], spec=SPEC, grid=GRID, config=config)
    best, table = look.calibrate(Echo())
    (prob,) = look.probabilities(Echo(), [case()])
    for scores in table:
        assert scores.cases == (score(prob, scores.threshold, scores.min_volume_mm3),)
    assert best in table


@pytest.mark.parametrize("skips", ["anchor", "mean"])
def test_a_threshold_is_chosen_on_what_the_app_predicts(tmp_path: Path, skips: str) -> None:
    """Windows, precision, mirrored copies and missing sequences are the app's, to the last digit."""
    recipe = load_recipe("cord-lesion")
    strides = ((1, 1, 1), (2, 2, 2), (1, 1, 2))
    spec = replace(recipe.network, channels=(3, 4, 5), strides=strides, skips=skips)
    inference = replace(recipe.inference, patch_vox=(8, 8, 16), overlap=0.25, flips=True)
    recipe = replace(recipe, network=spec, inference=inference)
    torch.manual_seed(5)
    network = build_network(spec, anchors=recipe.anchors).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bundle = save_bundle(
        tmp_path / "tiny", weights, recipe=recipe, threshold=0.5, provenance={}, card="tiny", dtype="float32"
    )
    kept = np.array([True, True, False, False, False, True])
    rng = np.random.default_rng(1)
    coverage = np.broadcast_to(kept[:, None, None, None], (6, 8, 8, 40)).copy()
    coverage[1, ..., 20:] = False
    coverage[:, :, :, 36:] = False
    image = np.where(coverage, rng.standard_normal(coverage.shape), 0).astype(np.float32)
    held_out = TrainingCase(
        name="c",
        subject="c",
        sequences=spec.sequences,
        available=np.ones(6, bool),
        image=image,
        coverage=coverage,
        label=np.zeros((8, 8, 40), np.uint8),
    )
    app = load_network(bundle)
    for by_patch in (False, True):
        found = predict(network, held_out, inference, kept=kept, by_patch=by_patch)
        wanted = predict_case(
            app, bundle, image=image, coverage=coverage, available=kept.tolist(), by_patch=by_patch
        )
        assert np.array_equal(found, wanted)
        assert found[..., :36].std() > 0.01
        assert not found[..., 36:].any()
