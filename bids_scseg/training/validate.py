"""Held-out cases: lesion-wise scores, and the threshold that is chosen on them and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bids_scseg.inference.predict import Network, SIFirst, predict_volume
from bids_scseg.measure.instances import label_lesions, seed_thresholds
from bids_scseg.measure.overlap import overlap_table
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.network.build import SegmentationNet
from bids_scseg.recipe.model import GridSpec, InferenceSpec
from bids_scseg.training.cases import TrainingCase, kept_sequences
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.dataset import crop
from bids_scseg.training.sample import IGNORE, Sample

PROFILE = PROFILES["walsh2024"]
Floats = npt.NDArray[np.float32]
Rules: TypeAlias = tuple[float, float, float]  # threshold, smallest volume in mm³, seed threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseScore:
    """Lesion-wise counts and voxel overlap of one case at one threshold.

    Attributes
    ----------
    visible, visible_found
        True lesions visible in at least one available sequence (all of them where that is not known), and
        how many of them are found.
    lesions, found
        The same for all true lesions.
    predicted, right
        Predicted lesions, and those that are none of the false ones.
    dice
        NaN where truth and prediction are both empty.
    """

    visible: int
    visible_found: int
    lesions: int
    found: int
    predicted: int
    right: int
    dice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Sums over cases; ratios are NaN where nothing is counted."""

    threshold: float
    min_volume_mm3: float
    seed_threshold: float = 0.0
    cases: tuple[CaseScore, ...]

    @property
    def lesions(self) -> int:
        """True lesions; without any, no threshold can be chosen."""
        return sum(case.lesions for case in self.cases)

    @property
    def sensitivity(self) -> float:
        """Share of the visible lesions that are found."""
        return _ratio(sum(c.visible_found for c in self.cases), sum(c.visible for c in self.cases))

    @property
    def sensitivity_all(self) -> float:
        """Share of all lesions that are found."""
        return _ratio(sum(c.found for c in self.cases), sum(c.lesions for c in self.cases))

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are right."""
        return _ratio(sum(c.right for c in self.cases), sum(c.predicted for c in self.cases))

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity (visible lesions) and precision; 0 where either is undefined."""
        low = min(np.nan_to_num(self.sensitivity), np.nan_to_num(self.precision))
        return (
            0.0 if low <= 0 else 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)
        )

    @property
    def dice(self) -> float:
        """Mean over the cases where it is defined."""
        known = [c.dice for c in self.cases if not np.isnan(c.dice)]
        return float(np.mean(known)) if known else float("nan")

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        return {
            "threshold": self.threshold,
            "seed_threshold": self.seed_threshold,
            "min_volume_mm3": self.min_volume_mm3,
            "sensitivity": round(self.sensitivity, 4),
            "sensitivity_all": round(self.sensitivity_all, 4),
            "precision": round(self.precision, 4),
            "f1": round(self.f1, 4),
            "dice": round(self.dice, 4),
            "visible": sum(c.visible for c in self.cases),
            "predicted": sum(c.predicted for c in self.cases),
        }


def predict(
    network: nn.Module,
    case: TrainingCase,
    spec: InferenceSpec,
    *,
    kept: npt.NDArray[np.bool_],
    by_patch: bool = False,
) -> Floats:
    """Foreground probability (i, j, k) of a case from the sequences ``kept``, as the app computes it.

    The same windows, precision and mirrored copies on the network's device: a threshold that is chosen on
    other probabilities would be another one. With ``by_patch``, a sequence that covers no voxel of a window
    counts as missing there.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    whole = _whole(case, spec, kept=kept)
    covered = whole.coverage & whole.available[:, None, None, None]
    fast = isinstance(network, SegmentationNet) and device.type == "cpu"
    return predict_volume(
        SIFirst(cast(SegmentationNet, network)) if fast else cast(Network, network),
        np.where(covered, whole.image, np.float32(0)),
        covered,
        spec=spec,
        device=str(device),
        by_patch=by_patch,
    )


def _whole(case: TrainingCase, spec: InferenceSpec, *, kept: npt.NDArray[np.bool_]) -> Sample:
    size = case.label.shape
    return crop(case, (size[0] // 2, size[1] // 2, size[2] // 2), (size[0], size[1], size[2]), kept=kept)


def score_case(
    case: TrainingCase,
    prob: Floats,
    *,
    threshold: float,
    min_volume_mm3: float,
    seed_threshold: float = 0.0,
    spec: InferenceSpec,
    grid: GridSpec,
    kept: npt.NDArray[np.bool_],
) -> CaseScore:
    """Compare one probability map with the case's lesion instances, by the rules of ``walsh2024``.

    Predicted lesions are those that the app keeps: where the case has its cord, those beside it are dropped.
    Lesions that lie outside the coverage of every kept sequence count nowhere.
    """
    rules = (threshold, min_volume_mm3, seed_threshold)
    return score_candidates(case, prob, candidates=[rules], spec=spec, grid=grid, kept=kept)[0]


def score_candidates(
    case: TrainingCase,
    prob: Floats,
    *,
    candidates: Iterable[Rules],
    spec: InferenceSpec,
    grid: GridSpec,
    kept: npt.NDArray[np.bool_],
) -> list[CaseScore]:
    """:func:`score_case` for several rules; the truth is looked at once."""
    truth = _countable(case, kept=kept)
    numbers = np.flatnonzero(np.bincount(truth.ravel(), minlength=2)[1:]) + 1
    dense = np.zeros(int(truth.max(initial=0)) + 1, np.int32)
    dense[numbers] = np.arange(1, len(numbers) + 1)
    shown = np.array([_is_visible(case, int(n), kept) for n in numbers], bool)
    lesions = dense[truth]
    prob = np.where(case.label == IGNORE, np.float32(0), prob)
    out = []
    for threshold, min_volume_mm3, seed_threshold in candidates:
        predicted = label_lesions(
            prob,
            threshold=threshold,
            connectivity=spec.connectivity,
            min_volume_mm3=min_volume_mm3,
            seed_threshold=_seeds(case, kept, threshold=seed_threshold, alone=spec.seed_threshold_alone),
            voxel_volume=grid.spacing_mm**3,
            cord=case.cord,
        )
        found, right = PROFILE.match(overlap_table(lesions, predicted))
        out.append(
            CaseScore(
                visible=int(shown.sum()),
                visible_found=int(found[shown].sum()),
                lesions=len(numbers),
                found=int(found.sum()),
                predicted=len(right),
                right=int(right.sum()),
                dice=_dice(truth > 0, predicted > 0),
            )
        )
    return out


def _seeds(
    case: TrainingCase, kept: npt.NDArray[np.bool_], *, threshold: float, alone: float
) -> float | Floats:
    if not alone or not kept.any():
        return threshold
    coverage = np.stack([np.asarray(case.coverage[case.channel(int(n))]) for n in np.flatnonzero(kept)])
    return seed_thresholds(coverage, threshold=threshold, alone=alone)


def _countable(case: TrainingCase, *, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    label = np.asarray(case.label)
    return np.where(case.covered(kept) & (label != IGNORE), label, 0).astype(np.int32)


def _is_visible(case: TrainingCase, lesion: int, kept: npt.NDArray[np.bool_]) -> bool:
    if lesion not in case.visible:
        return True
    names = {case.sequences[n] for n in np.flatnonzero(kept)}
    return bool(names & set(case.visible[lesion]))


def choose_threshold(
    cases: Iterable[TrainingCase],
    probabilities: Iterable[Floats],
    *,
    config: ValidationConfig,
    spec: InferenceSpec,
    grid: GridSpec,
) -> tuple[Scores, list[Scores]]:
    """The candidate with the best lesion-wise F1 (then Dice) on held-out cases, and all candidates.

    ``probabilities`` come from the sequences ``config.sequences`` of each case (empty: all available ones);
    one at a time is asked for, scored with every candidate and let go. Cases without lesions tell no
    candidate from another: the first item then has thresholds and smallest volume of ``spec``, and is none
    of the candidates.
    """
    candidates = [
        (threshold, volume, seed)
        for threshold in config.thresholds
        for volume in config.min_volumes_mm3
        for seed in sorted({seed if seed > threshold else 0.0 for seed in config.seed_thresholds})
    ]
    default = (spec.threshold, spec.min_volume_mm3, spec.seed_threshold)
    scored: list[list[CaseScore]] = [[] for _ in candidates]
    plain: list[CaseScore] = []  # at the default, until a case has lesions
    lesions = False
    for case, prob in zip(cases, probabilities, strict=True):
        kept = kept_sequences(case, config.sequences)
        found = score_candidates(case, prob, candidates=candidates, spec=spec, grid=grid, kept=kept)
        for scores, score in zip(scored, found, strict=True):
            scores.append(score)
        lesions = lesions or any(score.lesions for score in found)
        if not lesions:
            plain += score_candidates(case, prob, candidates=[default], spec=spec, grid=grid, kept=kept)
    table = [_scores(rules, scores) for rules, scores in zip(candidates, scored, strict=True)]
    if not lesions:
        return _scores(default, plain), table
    return max(table, key=lambda scores: (round(scores.f1, 3), np.nan_to_num(scores.dice))), table


def _scores(rules: Rules, cases: Iterable[CaseScore]) -> Scores:
    threshold, volume, seed = rules
    return Scores(threshold=threshold, min_volume_mm3=volume, seed_threshold=seed, cases=tuple(cases))


def end_of_candidates(threshold: float, thresholds: Sequence[float]) -> str:
    """``lowest`` or ``highest`` where a chosen threshold is that end of several candidates, else empty."""
    if len(thresholds) < 2:
        return ""
    return {min(thresholds): "lowest", max(thresholds): "highest"}.get(threshold, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Looks at held-out cases during training, with ``config.sequences`` of each."""

    cases: Sequence[TrainingCase]
    spec: InferenceSpec
    grid: GridSpec
    config: ValidationConfig
    by_patch: bool = False

    def __call__(self, network: nn.Module, iteration: int) -> Mapping[str, float]:
        """Best scores over the thresholds, on the first ``config.cases`` cases."""
        some = list(self.cases)[: self.config.cases or None]
        quick = replace(
            self.config,
            min_volumes_mm3=self.config.min_volumes_mm3[:1],
            seed_thresholds=self.config.seed_thresholds[:1],
        )
        best, _ = choose_threshold(
            some, self.probabilities(network, some), config=quick, spec=self.spec, grid=self.grid
        )
        return best.to_json()

    def calibrate(self, network: nn.Module) -> tuple[Scores, list[Scores]]:
        """The best candidate on all cases, and all candidates."""
        maps = self.probabilities(network, self.cases)  # one at a time: together they could fill the memory
        return choose_threshold(self.cases, maps, config=self.config, spec=self.spec, grid=self.grid)

    def probabilities(self, network: nn.Module, cases: Iterable[TrainingCase]) -> Iterator[Floats]:
        """Foreground probability of each case, predicted when it is asked for."""
        for case in cases:
            kept = kept_sequences(case, self.config.sequences)
            yield predict(network, case, self.spec, kept=kept, by_patch=self.by_patch)


def _dice(truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> float:
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else float("nan")


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
