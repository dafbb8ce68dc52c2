"""Agreement of two segmentations: overlap of masks and of lesions.

The rules by which a lesion counts as found live in :mod:`bids_scseg.measure.profiles`; every result names its
profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, GeometryError
from bids_scseg.measure.profiles import PROFILES, Match, Profile

Mask = npt.NDArray[Any]
NAN = float("nan")

#: Of a voxel. Headers hold rounded numbers: a component of 3 mm³ has 3.0000000000000004 or 2.9999997 by them.
ROUNDING_VOX = 1e-4

#: False positives per image at which the challenge's FROC reads the sensitivity (specification).
FROC_RATES = (0.25, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScores:
    """Agreement of one prediction with one truth.

    Attributes
    ----------
    profile
        Name of the rules.
    dice
        2|A∩B| / (|A|+|B|) of the masks as given.
    truth_mm3, predicted_mm3, difference_mm3
        Volumes of the masks as given; predicted minus truth.
    truth_count, predicted_count, count_difference
        Lesions after the profile's labelling; predicted minus truth.
    found, false_positives
        True lesions found; predicted lesions that are none.
    sensitivity, precision, f1
        Lesion-wise; NaN where undefined (see :func:`score`).
    """

    profile: str
    dice: float
    truth_mm3: float
    predicted_mm3: float
    difference_mm3: float
    truth_count: int
    predicted_count: int
    count_difference: int
    found: int
    false_positives: int
    sensitivity: float
    precision: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LesionMatch:
    """Lesions of truth and prediction under one profile, and which of them match.

    Attributes
    ----------
    profile
        The rules.
    truth, prediction : (i, j, k) int32
        Lesion numbers 1, 2, … of each.
    table : (true + 1, predicted + 1) int64
        Voxels in common; index 0 is background.
    found : (true,) bool
        True lesions that are found.
    right : (predicted,) bool
        Predicted lesions that are none of the false ones.
    """

    profile: Profile
    truth: npt.NDArray[np.int32]
    prediction: npt.NDArray[np.int32]
    table: npt.NDArray[np.int64]
    found: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrocCurve:
    """Sensitivity against false positives, as the cut of lesion probabilities falls.

    Attributes
    ----------
    cuts : (n,) float64
        Probabilities from the highest down: lesions from that probability on are kept.
    false_positives : (n,) float64
        False lesions per image.
    sensitivity : (n,) float64
        Share of all true lesions that are found; NaN without true lesions.
    score
        Mean over :data:`FROC_RATES` of the highest sensitivity that any cut reaches without exceeding the
        rate; NaN without true lesions.
    """

    cuts: npt.NDArray[np.float64]
    false_positives: npt.NDArray[np.float64]
    sensitivity: npt.NDArray[np.float64]
    score: float


def score(truth: Mask, prediction: Mask, *, profile: str | Profile, voxel_volume_mm3: float) -> OverlapScores:
    """Compare a prediction with the truth, on the lattice of the truth.

    Parameters
    ----------
    truth, prediction : (i, j, k) bool or int
        Masks: nonzero is lesion. Lesions are found anew by the profile's connectivity.
    profile
        A profile or its name: ``walsh2024``, ``anima``, ``neuropoly``, ``msms``, ``panoptica``.
    voxel_volume_mm3
        mm³ per voxel.

    Returns
    -------
    OverlapScores. Empty masks: Dice and F1 of two empty masks are the profile's ``both_empty``; with an empty
    truth and a prediction they are its ``truth_empty``; with an empty prediction alone they are 0.
    Sensitivity is NaN without true lesions; precision is NaN without predicted ones, and where
    ``truth_empty`` is.

    Raises
    ------
    GeometryError
        If the shapes differ.
    DataError
        If no profile has that name.
    """
    match = match_lesions(truth, prediction, profile=profile, voxel_volume_mm3=voxel_volume_mm3)
    return score_match(match, truth, prediction, voxel_volume_mm3=voxel_volume_mm3)


def match_lesions(
    truth: Mask, prediction: Mask, *, profile: str | Profile, voxel_volume_mm3: float
) -> LesionMatch:
    """Find the lesions of both masks and match them by a profile; parameters and errors as in :func:`score`.

    Without lesions on a side, its lists are empty.
    """
    if truth.shape != prediction.shape:
        raise GeometryError(f"prediction of shape {prediction.shape}", expected=f"the truth's {truth.shape}")
    rules = profile if isinstance(profile, Profile) else find_profile(profile)
    true = find_instances(truth > 0, profile=rules, voxel_volume_mm3=voxel_volume_mm3)
    predicted = find_instances(prediction > 0, profile=rules, voxel_volume_mm3=voxel_volume_mm3)
    table = overlap_table(true, predicted)
    found, right = rules.match(table)
    return LesionMatch(profile=rules, truth=true, prediction=predicted, table=table, found=found, right=right)


def score_match(
    match: LesionMatch, truth: Mask, prediction: Mask, *, voxel_volume_mm3: float
) -> OverlapScores:
    """Scores of lesions that are matched already; the masks give Dice and volumes. See :func:`score`."""
    rules, found, correct = match.profile, match.found, match.right
    is_truth, is_predicted = truth > 0, prediction > 0
    volumes = float(is_truth.sum() * voxel_volume_mm3), float(is_predicted.sum() * voxel_volume_mm3)
    sensitivity, precision, f1 = _detection(found, correct, rules)
    return OverlapScores(
        profile=rules.name,
        dice=_dice(is_truth, is_predicted, rules),
        truth_mm3=volumes[0],
        predicted_mm3=volumes[1],
        difference_mm3=volumes[1] - volumes[0],
        truth_count=found.size,
        predicted_count=correct.size,
        count_difference=correct.size - found.size,
        found=int(found.sum()),
        false_positives=int((~correct).sum()),
        sensitivity=sensitivity,
        precision=precision,
        f1=f1,
    )


def find_profile(name: str) -> Profile:
    """The profile of that name (DataError if there is none)."""
    if name not in PROFILES:
        raise DataError(f"no metrics profile {name!r}", expected=f"one of {', '.join(PROFILES)}")
    return PROFILES[name]


def find_instances(
    mask: npt.NDArray[np.bool_], *, profile: Profile, voxel_volume_mm3: float
) -> npt.NDArray[np.int32]:
    """Lesions of a mask by a profile: components of its connectivity larger than its smallest volume.

    Parameters
    ----------
    mask : (i, j, k) bool
        Lesion.
    profile
        Rules. Its smallest volume is compared up to the rounding of headers (a ten-thousandth of a voxel).
    voxel_volume_mm3
        mm³ per voxel.

    Returns
    -------
    (i, j, k) int32, 0 background, then 1, 2, …
    """
    found: npt.NDArray[np.int32] = cc3d.connected_components(
        mask.astype(np.uint8), connectivity=profile.connectivity
    ).astype(np.int32)
    sizes = np.bincount(found.ravel()) * voxel_volume_mm3
    keep = sizes > profile.drop_up_to_mm3 + ROUNDING_VOX * voxel_volume_mm3
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return numbers[found]


def overlap_table(truth: npt.NDArray[np.int32], prediction: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(lesions of the truth + 1, lesions of the prediction + 1) voxel counts; index 0 is background."""
    rows, columns = int(truth.max(initial=0)) + 1, int(prediction.max(initial=0)) + 1
    pairs = truth.ravel().astype(np.int64) * columns + prediction.ravel()
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns).astype(np.int64)


def _dice(truth: npt.NDArray[np.bool_], prediction: npt.NDArray[np.bool_], rules: Profile) -> float:
    true, predicted = int(truth.sum()), int(prediction.sum())
    if true == 0:
        return rules.both_empty if predicted == 0 else rules.truth_empty
    return 2 * int((truth & prediction).sum()) / (true + predicted)


def _detection(
    found: npt.NDArray[np.bool_], correct: npt.NDArray[np.bool_], rules: Profile
) -> tuple[float, float, float]:
    if found.size == 0:
        precision = NAN if correct.size == 0 else rules.truth_empty
        return NAN, precision, rules.both_empty if correct.size == 0 else rules.truth_empty
    sensitivity = float(found.mean())
    precision = float(correct.mean()) if correct.size else NAN
    return sensitivity, precision, _f1(sensitivity, precision)


def _f1(sensitivity: float, precision: float) -> float:
    """Harmonic mean; 0 where both are 0 or nothing was predicted although something is there."""
    if np.isnan(sensitivity):
        return NAN
    if np.isnan(precision) or sensitivity + precision == 0:
        return 0.0
    return 2 * sensitivity * precision / (sensitivity + precision)


def froc_curve(
    tables: Sequence[npt.NDArray[np.int64]], scores: Sequence[Sequence[float]], *, match: Match
) -> FrocCurve:
    """Free-response curve by any profile's rule; a lesion below the cut counts as background.

    Parameters
    ----------
    tables : (true + 1, predicted + 1) int64 each
        Overlap of every image, as :func:`overlap_table` gives it.
    scores
        Per image, the probability of each predicted lesion in order of number.
    match
        Rule of a profile.

    Returns
    -------
    FrocCurve; without any predicted lesion its arrays are empty and the score is 0, without true lesions NaN.
    """
    values = [np.asarray(list(score), dtype=np.float64) for score in scores]
    cuts = np.unique(np.concatenate([*values, np.zeros(0)]))[::-1]
    total = sum(table.shape[0] - 1 for table in tables)
    found, false = np.zeros(cuts.size), np.zeros(cuts.size)
    for table, value in zip(tables, values, strict=True):
        own = np.unique(value)[::-1]
        counts = np.array([(0, 0), *(_count_from(table, value >= cut, match) for cut in own)])
        step = np.searchsorted(-own, -cuts, side="right")  # an image changes at its own cuts only
        found += counts[step, 0]
        false += counts[step, 1]
    rate = false / max(len(tables), 1)
    sensitivity = found / total if total else np.full(cuts.size, NAN)
    reached = [float(sensitivity[rate <= limit].max(initial=0.0)) for limit in FROC_RATES]
    return FrocCurve(
        cuts=cuts,
        false_positives=rate,
        sensitivity=sensitivity,
        score=float(np.mean(reached)) if total else NAN,
    )


def _count_from(table: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_], match: Match) -> tuple[int, int]:
    """(true lesions found, false lesions) if only the kept predicted lesions were there."""
    columns = np.concatenate([[True], kept])
    reduced = table[:, columns]
    reduced[:, 0] += table[:, ~columns].sum(axis=1)
    found, right = match(reduced)
    return int(found.sum()), int((~right).sum())
