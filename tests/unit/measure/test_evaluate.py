"""Evaluation of single images and of many: numbers worked by hand from boxes of known size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_scseg.errors import DataError
from bids_scseg.measure.evaluate import METRICS, ImageKey, LesionNames, evaluate_image
from bids_scseg.measure.evaluation import SIZE_BORDERS_MM3, evaluate_all, group_labels, size_class
from bids_scseg.space.grid import Grid

GRID = Grid(shape=(6, 6, 80), affine=np.diag([1.0, 1.0, 2.0, 1.0]))  # voxels of 2 mm³


def _column(*ranges):
    mask = np.zeros(GRID.shape, bool)
    for start, stop in ranges:
        mask[2:4, 2:4, start:stop] = True
    return mask


def _image(truth, prediction, *, subject="s1", image="", name="ours", groups=None, **more):
    key = ImageKey(prediction=name, image=image or subject, subject=subject, groups=groups or {})
    return evaluate_image(
        _column(*truth), _column(*prediction), grid=GRID, profile="walsh2024", key=key, **more
    )


def test_one_image_by_hand():
    # True: 10 slices (80 mm³) and 5 slices (40 mm³). Predicted: 5 slices inside the first, 4 elsewhere.
    probability = np.zeros(GRID.shape, np.float32)
    probability[2:4, 2:4, 10:15] = 0.8
    probability[2:4, 2:4, 60:64] = 0.6
    found = _image([(10, 20), (30, 35)], [(10, 15), (60, 64)], probability=probability)
    first, second, right, wrong = found.lesions
    assert [lesion.side for lesion in found.lesions] == ["truth", "truth", "prediction", "prediction"]
    assert (first.volume_mm3, first.matched, first.covered, first.best_iou) == (80, True, 0.5, 0.5)
    assert (second.volume_mm3, second.matched, second.covered, second.best_iou) == (40, False, 0, 0)
    assert (right.volume_mm3, right.matched, right.covered) == (40, True, 1)
    assert (wrong.matched, wrong.covered) == (False, 0)
    assert right.probability == pytest.approx(0.8)
    assert first.probability == pytest.approx(0.4)
    assert found.shared_mm3 == 40
    # The columns are two voxels wide: every voxel is surface. Truth to prediction, by slices: 0 five times, 2
    # to 10, and 32 to 40 mm (sum 210); back: 0 five times, 52, 54, 56, 58 (sum 220); 24 slices in all.
    assert found.distances.average == pytest.approx(430 / 24)
    assert found.distances.largest == 58
    assert set(found.values) == {metric.name for metric in METRICS}
    assert math.isnan(found.values["specificity"])  # not a lesion-free image


def test_lesion_free_images_are_scored_by_what_is_false():
    wrong, quiet = _image([], [(10, 20)]).values, _image([], []).values
    assert (wrong["specificity"], wrong["false_positives_lesion_free"]) == (0, 1)
    assert (quiet["specificity"], quiet["false_positives_lesion_free"]) == (1, 0)
    assert math.isnan(wrong["f1"])
    assert math.isnan(wrong["average_distance_mm"])


def test_places_come_from_the_number_with_most_voxels():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:4, 2:4, 10:13], labels[2:4, 2:4, 13:20] = 7, 9
    names = LesionNames(labels=labels, places={7: ("C2", "dorsal"), 9: ("C3", None)})
    found = _image([(10, 20), (30, 35)], [], truth_names=names)
    assert [(lesion.level, lesion.column) for lesion in found.lesions] == [("C3", None), (None, None)]


def _cohort(name="ours", shift=0):
    """Four subjects: F1 of 1, 2/3, 0 and undefined; the second with two images."""
    rows = [
        ("a", "a", [(10, 20)], [(10 + shift, 20 + shift)]),
        ("b", "b1", [(10, 20), (30, 40)], [(10, 20)]),
        ("b", "b2", [(10, 20), (30, 40)], [(10, 20)]),
        ("c", "c", [(10, 20)], []),
        ("d", "d", [], [(50, 60)]),
    ]
    return [
        _image(truth, prediction, subject=subject, image=image, name=name, groups={"sex": sex})
        for (subject, image, truth, prediction), sex in zip(rows, "MFFMF", strict=True)
    ]


def test_summary_by_hand():
    found = evaluate_all(_cohort(), space="native", by=["sex"])
    rows = {(row.value, row.metric): row for row in found.summary}
    f1 = rows["all", "f1"]
    assert f1.interval.mean == pytest.approx((1 + 2 / 3 + 2 / 3 + 0) / 4)
    assert (f1.images, f1.undefined, f1.interval.n, f1.interval.subjects) == (5, 1, 4, 3)
    assert rows["all", "sensitivity"].interval.mean == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert rows["all", "pooled_sensitivity"].interval.mean == pytest.approx(3 / 6)
    assert rows["all", "pooled_precision"].interval.mean == pytest.approx(3 / 4)
    pooled = rows["all", "pooled_f1"].interval
    assert pooled.mean == pytest.approx(0.6)
    assert pooled.low <= 0.6 <= pooled.high
    # Shared 80 mm³ three times; 480 mm³ true and 320 mm³ predicted in all.
    assert rows["all", "pooled_dice"].interval.mean == pytest.approx(2 * 240 / (480 + 320))
    assert rows["all", "specificity"].interval.mean == 0
    assert rows["all", "specificity"].undefined == 4
    assert rows["M", "f1"].interval.mean == pytest.approx(0.5)
    assert rows["F", "f1"].images == 3
    method = found.methods[0]
    assert (method.images, method.lesion_free, method.without_probability) == (5, 1, 5)
    assert method.volume.bias == pytest.approx((320 - 480) / 5)
    assert method.froc is None
    assert any("not known" in note for note in found.notes)
    assert any("no probability map" in note for note in found.notes)


def test_pooled_rows_count_the_images_of_subjects_who_are_left_out():
    """Two images of one subject, the second without lesions; a false lesion; nothing at all."""
    found = evaluate_all(
        [
            _image([(10, 20), (30, 40)], [(10, 20)], subject="s1", image="a"),
            _image([], [], subject="s1", image="b"),  # nothing to add, but of a subject who takes part
            _image([], [(10, 20)], subject="s2"),
            _image([], [], subject="s3"),
        ],
        space="native",
    )
    rows = {row.metric: row for row in found.summary if row.metric.startswith("pooled_")}
    counts = {name: (row.interval.mean, row.images, row.undefined) for name, row in rows.items()}
    # 160 mm³ true, 160 mm³ predicted, 80 mm³ shared
    assert counts == {
        "pooled_sensitivity": (0.5, 4, 2),
        "pooled_precision": (0.5, 4, 1),
        "pooled_f1": (0.5, 4, 0),
        "pooled_dice": (0.5, 4, 1),
    }
    assert rows["pooled_sensitivity"].interval.subjects == 1
    none = evaluate_all([_image([], [(10, 20)], subject=name) for name in "ab"], space="native")
    undefined = {row.metric: row.undefined for row in none.summary if row.metric.startswith("pooled_")}
    expected = {"pooled_sensitivity": 2, "pooled_precision": 0, "pooled_f1": 2, "pooled_dice": 0}
    assert undefined == expected


def test_strata_by_hand():
    found = evaluate_all(_cohort(), space="native")
    # True lesions have 80 mm³: six of them, three found. Predicted ones: four, three right.
    rows = {(row.by, row.measure): row for row in found.strata}
    assert set(rows) == {("size", "sensitivity"), ("size", "precision")}
    assert rows["size", "sensitivity"].stratum == "50 to 100 mm³"
    assert (rows["size", "sensitivity"].lesions, rows["size", "sensitivity"].matched) == (6, 3)
    assert (rows["size", "precision"].lesions, rows["size", "precision"].matched) == (4, 3)
    assert rows["size", "sensitivity"].interval.subjects == 3


def test_levels_go_from_top_to_bottom():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:, :, :25], labels[:, :, 25:45], labels[:, :, 45:] = 1, 2, 3
    names = LesionNames(
        labels=labels, places={1: ("T1", "dorsal"), 2: ("C7", "dorsal"), 3: ("L1", "central")}
    )
    image = _image([(10, 20), (30, 40), (50, 60)], [(10, 20)], truth_names=names)
    found = evaluate_all([image], space="native")
    levels = [(row.stratum, row.lesions, row.matched) for row in found.strata if row.by == "level"]
    assert levels == [("C7", 1, 0), ("T1", 1, 1), ("L1", 1, 0)]
    assert {row.stratum: row.lesions for row in found.strata if row.by == "column"} == {
        "central": 1,
        "dorsal": 2,
    }


def test_sizes_have_their_borders():
    assert [size_class(v) for v in (0, 19.9, 20, 499, 500)] == [
        "under 20 mm³", "under 20 mm³", "20 to 50 mm³", "200 to 500 mm³", "500 mm³ and more",
    ]  # fmt: skip


@pytest.mark.parametrize("spacing", [(1, 1, 5), (0.5, 0.5, 0.5), (0.4, 0.5, 1), (0.7, 1 / 0.7, 2)])
@pytest.mark.parametrize("degrees", [0, 3, 7, 20, 25])
def test_a_volume_on_a_border_is_on_it_whatever_the_header_rounds(spacing, degrees):
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [degrees, degrees / 2, 0], degrees=True)
    affine[:3, :3] = rotation.as_matrix() @ np.diag(spacing)
    volume = Grid(shape=(8, 8, 8), affine=affine.astype(np.float32)).voxel_volume
    for border in SIZE_BORDERS_MM3:
        voxels = round(border / np.prod(spacing))
        assert voxels * volume == pytest.approx(border, rel=1e-6)
        assert size_class(voxels * volume) == size_class(border)
        assert size_class((voxels - 1) * volume) != size_class(border)


def test_methods_are_compared_by_subject():
    many = range(8)
    base = [_image([(10, 30)], [(10, 11 + n)], subject=f"s{n}", name="base") for n in many]
    better = [_image([(10, 30)], [(10, 14 + n)], subject=f"s{n}", name="better") for n in many]
    found = evaluate_all(base + better, space="native", baseline="base")
    dice = next(row for row in found.comparisons if row.metric == "dice")
    # All eight differences are positive: p = 2 / 2⁸; one comparison, so Holm changes nothing.
    assert dice.test.p == dice.p_holm == pytest.approx(2 / 256)
    assert (dice.images, dice.undefined, dice.test.n) == (8, 0, 8)
    expected = np.mean([2 * (4 + n) / (24 + n) - 2 * (1 + n) / (21 + n) for n in many])
    assert dice.difference.mean == pytest.approx(expected)
    third = [_image([(10, 30)], [(10, 14 + n)], subject=f"s{n}", name="third") for n in many]
    corrected = evaluate_all(base + better + third, space="native", baseline="base").comparisons
    assert [row.p_holm for row in corrected if row.metric == "dice"] == pytest.approx([4 / 256, 4 / 256])


def test_two_images_of_a_subject_are_one_pair():
    found = evaluate_all(_cohort("base") + _cohort("ours", shift=3), space="native", baseline="base")
    dice = next(row for row in found.comparisons if row.metric == "dice")
    assert (dice.images, dice.undefined, dice.test.n) == (5, 1, 3)
    assert dice.test.reason.startswith("1 of 3 pairs differ")
    assert math.isnan(dice.p_holm)


def test_different_images_are_pointed_out():
    found = evaluate_all(_cohort("base") + _cohort("ours")[:3], space="native", baseline="base")
    assert any("(base 5, ours 3; 3 in common)" in note for note in found.notes)
    assert {row.images for row in found.comparisons} == {3}


def test_what_cannot_be_evaluated_says_so():
    with pytest.raises(DataError, match="0 profiles"):
        evaluate_all([], space="native")
    key = ImageKey(prediction="ours", image="x", subject="x")
    other = evaluate_image(_column(), _column(), grid=GRID, profile="msms", key=key)
    with pytest.raises(DataError, match="2 profiles"):
        evaluate_all([*_cohort(), other], space="native")
    with pytest.raises(DataError, match="nobody"):
        evaluate_all(_cohort(), space="native", baseline="nobody")
    with pytest.raises(DataError, match="age"):
        evaluate_all(_cohort(), space="native", by=["age"])


def test_numeric_columns_are_split_at_the_median():
    ages = {f"s{n}": str(20 + n) for n in range(8)} | {"s8": None}
    groups = group_labels(ages)
    assert groups["s3"] == "up to 23.5"
    assert groups["s4"] == "over 23.5"
    assert groups["s8"] == "n/a"
    assert group_labels({"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert group_labels({"a": "M", "b": ""}) == {"a": "M", "b": "n/a"}
    odd = {**ages, "odd": "nan"}
    assert group_labels(odd)["odd"] == "nan"  # a word, and then all are words: no median of it
    assert len(set(group_labels(odd).values())) == len(set(odd.values()))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_the_order_of_images_changes_nothing(seed, order):
    rng = np.random.default_rng(seed)
    images = [
        _image([(10, 10 + int(rng.integers(1, 30)))], [(20, 20 + int(rng.integers(1, 30)))], subject=f"s{n}")
        for n in range(4)
    ]
    one = evaluate_all(images, space="native").summary
    two = evaluate_all([images[n] for n in order], space="native").summary
    assert [row.interval.mean for row in one] == pytest.approx([r.interval.mean for r in two], nan_ok=True)
