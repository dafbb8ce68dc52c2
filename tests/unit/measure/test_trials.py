from __future__ import annotations

import math

import numpy as np
import pytest

from bids_scseg.errors import DataError
from bids_scseg.measure.overlap import score
from bids_scseg.measure.trials import TRIAL_COLUMNS, TrialRow, summarise_trials

SHAPE = (4, 4, 20)


def masks(found: int, *, lesions: int = 4, false: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``lesions`` lesions of 2 voxels, of which the first ``found`` are found whole, and ``false`` others."""
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for n in range(lesions):
        truth[0, 0, 4 * n : 4 * n + 2] = True
        prediction[0, 0, 4 * n : 4 * n + 2] = n < found
    for n in range(false):
        prediction[3, 3, 4 * n : 4 * n + 2] = True
    return truth, prediction


def row(arm: str, seed: int, case: str, *, setting: str = "T2Sag", **counts: int) -> TrialRow:
    truth, prediction = masks(**counts)
    return TrialRow(
        arm=arm, seed=seed, setting=setting, case=case, subject=case, threshold=0.5, min_volume_mm3=0.0,
        scores=score(truth, prediction, profile="walsh2024", voxel_volume_mm3=1.0),
        shared_mm3=float((truth & prediction).sum()),
    )  # fmt: skip


def test_rows_survive_a_table() -> None:
    one = row("a", 1, "s1", found=2, false=1)
    cells = one.to_row()
    assert set(cells) == set(TRIAL_COLUMNS)
    assert TrialRow.from_row(cells) == one
    # a lesion-free image: undefined scores are None in the table and NaN again afterwards
    free = row("a", 1, "s2", found=0, lesions=0)
    assert free.to_row()["f1"] is None
    assert math.isnan(TrialRow.from_row(free.to_row()).scores.f1)
    with pytest.raises(DataError, match="no row of results"):
        TrialRow.from_row({"arm": "a"})


def test_means_are_over_images_and_seeds_and_undefined_images_are_counted() -> None:
    rows = [
        row("base", 0, "s1", found=4),  # F1 1
        row("base", 0, "s2", found=2),  # sensitivity 1/2, precision 1: F1 2/3
        row("base", 0, "s3", found=0, lesions=0, false=2),  # lesion-free, two false lesions
        row("base", 1, "s1", found=0),  # F1 0
        row("base", 1, "s2", found=4),
        row("base", 1, "s3", found=0, lesions=0),
    ]
    (found,) = summarise_trials(rows, baseline="base")
    assert (found.seeds, found.images, found.lesion_free) == ((0, 1), 3, 1)
    assert found.metrics["f1"].mean == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert found.metrics["f1"].subjects == 2
    assert found.undefined["f1"] == 2
    assert found.by_seed["f1"] == pytest.approx(((1 + 2 / 3) / 2, 0.5))
    assert found.metrics["false_positives_lesion_free"].mean == 1.0
    assert found.metrics["specificity"].mean == 0.5
    # pooled: 10 of 16 lesions found, 10 of 12 predictions right
    assert found.metrics["pooled_sensitivity"].mean == pytest.approx(10 / 16)
    assert found.metrics["pooled_precision"].mean == pytest.approx(10 / 12)
    assert found.comparisons == {}


def test_an_arm_is_compared_with_the_baseline_by_subject() -> None:
    rows = []
    for n in range(8):
        for seed in (0, 1):
            rows.append(row("base", seed, f"s{n}", found=1 + n % 2))
            rows.append(row("better", seed, f"s{n}", found=3 + n % 2))
            rows.append(row("same", seed, f"s{n}", found=1 + n % 2))
            rows.append(row("better", seed, f"s{n}", found=4, setting="all"))
    summaries = {(item.setting, item.arm): item for item in summarise_trials(rows, baseline="base")}
    assert list(summaries) == [("T2Sag", "base"), ("T2Sag", "better"), ("T2Sag", "same"), ("all", "better")]
    better = summaries["T2Sag", "better"].comparisons["f1"]
    # F1 with k of 4 found and nothing false is 2k / (4 + k): from 2/5 to 6/7 and from 2/3 to 1
    assert better.difference.mean == pytest.approx((6 / 7 - 2 / 5 + 1 - 2 / 3) / 2)
    assert better.test.n == 8
    assert better.test.p == pytest.approx(2 / 2**8, rel=0.6)
    # one of two tests was made (the same scores give none), so Holm leaves it alone
    assert better.p_holm == pytest.approx(better.test.p)
    assert summaries["T2Sag", "same"].comparisons["f1"].difference.mean == 0
    assert math.isnan(summaries["T2Sag", "same"].comparisons["f1"].p_holm)
    assert summaries["all", "better"].comparisons == {}


def test_nothing_gives_nothing() -> None:
    assert summarise_trials([], baseline="base") == ()
