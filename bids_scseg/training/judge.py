"""A trained model on test cases in prepared space, its threshold chosen on validation cases alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bids_scseg.inference.bundle import load_bundle, load_weights
from bids_scseg.inference.device import resolve_device
from bids_scseg.inference.predict import load_network
from bids_scseg.measure.instances import label_lesions
from bids_scseg.measure.overlap import OverlapScores, match_lesions, score_match
from bids_scseg.measure.trials import TrialRow
from bids_scseg.network.cost import forward_flops
from bids_scseg.recipe.model import InferenceSpec, Recipe
from bids_scseg.training.cases import TrainingCase, kept_sequences
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.sample import IGNORE
from bids_scseg.training.validate import end_of_candidates, predict

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Which sequences a model is given.

    Attributes
    ----------
    name
        For tables.
    sequences
        Names; empty: all that the model knows and a case has.
    """

    name: str
    sequences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Threshold and smallest volume that validation cases chose, and what they scored with them.

    Attributes
    ----------
    threshold, min_volume_mm3
        Chosen.
    f1, dice
        Means over the cases where they are defined, as the test will have them.
    cases
        Validation cases that the model could be given.
    at_end
        Whether the threshold is the lowest or highest of several candidates.
    """

    threshold: float
    min_volume_mm3: float
    f1: float
    dice: float
    cases: int
    at_end: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """One case in one setting.

    Attributes
    ----------
    truth : (i, j, k) bool
        Where the setting's sequences have data and the label counts.
    probability : (i, j, k) float32
        0 elsewhere.
    cord : (i, j, k), optional
        Share of cord.
    voxel_mm3
        Of the prepared grid.
    """

    truth: Bools
    probability: Floats
    cord: npt.NDArray[np.generic] | None
    voxel_mm3: float

    def predicted(self, spec: InferenceSpec) -> Bools:
        """(i, j, k) bool: the lesions that the app keeps."""
        lesions = label_lesions(
            self.probability,
            threshold=spec.threshold,
            connectivity=spec.connectivity,
            min_volume_mm3=spec.min_volume_mm3,
            seed_threshold=spec.seed_threshold,
            voxel_volume=self.voxel_mm3,
            cord=self.cord,
        )
        return np.asarray(lesions > 0, bool)

    def scores(self, predicted: Bools, *, profile: str) -> OverlapScores:
        """Agreement of a prediction with the truth; lesions of both are found anew by the profile."""
        match = match_lesions(self.truth, predicted, profile=profile, voxel_volume_mm3=self.voxel_mm3)
        return score_match(match, self.truth, predicted, voxel_volume_mm3=self.voxel_mm3)

    def cropped(self, threshold: float) -> Trial:
        """The same in the smallest R-L × A-P window that has all it takes from this threshold on."""
        there = self.truth | (self.probability >= threshold)
        if self.cord is not None:
            there |= np.asarray(self.cord) > 0
        if not there.any():
            return self
        window = _extent(there.any(axis=(1, 2))), _extent(there.any(axis=(0, 2)))
        return replace(
            self,
            truth=self.truth[window],
            probability=self.probability[window],
            cord=None if self.cord is None else self.cord[window],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """A trained model, ready to be judged.

    Attributes
    ----------
    network, recipe, sequences
        As shipped in the bundle.
    needs
        Sequences of which it must be given one; none: any will do.
    by_patch
        Whether sequences count as missing in windows that they do not cover.
    config
        Of its training; gives the candidates for threshold and smallest volume.
    parameters
        Number of weights.
    flops
        Operations of one patch as in :class:`bids_scseg.network.cost.Cost`.
    """

    network: nn.Module
    recipe: Recipe
    sequences: tuple[str, ...]
    needs: tuple[str, ...]
    by_patch: bool
    config: TrainingConfig
    parameters: int
    flops: int

    @classmethod
    def open(cls, bundle: Path, config: TrainingConfig, *, overlap: float | None = None) -> Judge:
        """Load a bundle onto the first GPU there is, else the CPU; ``overlap`` replaces the recipe's."""
        model = load_bundle(bundle)
        if config.threads:
            torch.set_num_threads(config.threads)
        names, recipe = model.network.sequences, model.recipe
        anchors = tuple(name for name in recipe.anchors if name in names)
        device = "cpu" if config.accelerator == "cpu" else resolve_device("auto").name
        network = load_network(model, device)
        return cls(
            network=network,
            recipe=recipe
            if overlap is None
            else replace(recipe, inference=replace(recipe.inference, overlap=overlap)),
            sequences=names,
            needs=anchors if model.network.skips == "anchor" else (),
            by_patch=config.sampling.by_patch,
            config=config,
            parameters=sum(int(array.size) for array in load_weights(model).values()),
            flops=forward_flops(model.network, recipe.inference.patch_vox),
        )

    def can(self, setting: Setting) -> bool:
        """Whether a setting asks something of this model that another one does not ask already."""
        if not setting.sequences:
            return len(self.sequences) > 1
        return set(setting.sequences) <= set(self.sequences)

    def usable(self, case: TrainingCase, setting: Setting) -> bool:
        """Whether a case has what setting and model need."""
        kept = kept_sequences(case, setting.sequences)
        there = {name for name, flag in zip(case.sequences, kept, strict=True) if flag}
        return bool(there) and (not self.needs or bool(there & {*self.needs}))

    def choose(self, cases: Sequence[TrainingCase], setting: Setting, *, profile: str) -> Choice | None:
        """The candidate with the best mean F1 (then Dice) on validation cases, by the rules of the test.

        None where no case with a lesion can be used.
        """
        config = self.config.validation
        candidates = [(t, v) for t in config.thresholds for v in config.min_volumes_mm3]
        found: list[list[OverlapScores]] = [[] for _ in candidates]
        usable = [case for case in cases if self.usable(case, setting)]
        for case in usable:
            trial = self.trial(case, setting).cropped(min(config.thresholds))
            for scores, (threshold, volume) in zip(found, candidates, strict=True):
                spec = replace(
                    self.recipe.inference, threshold=threshold, min_volume_mm3=volume, seed_threshold=0.0
                )
                scores.append(trial.scores(trial.predicted(spec), profile=profile))
        if not any(scores.truth_count for scores in found[0]):
            return None
        f1, dice = ([_mean(getattr(s, name) for s in scores) for scores in found] for name in ("f1", "dice"))
        best = max(range(len(candidates)), key=lambda n: (round(f1[n], 3), dice[n]))
        threshold, volume = candidates[best]
        return Choice(
            threshold=threshold, min_volume_mm3=volume, f1=f1[best], dice=dice[best], cases=len(usable),
            at_end=bool(end_of_candidates(threshold, config.thresholds)),
        )  # fmt: skip

    def trial(self, case: TrainingCase, setting: Setting) -> Trial:
        """A case, predicted from the setting's sequences."""
        kept, label = kept_sequences(case, setting.sequences), np.asarray(case.label)
        probability = predict(
            self.network, case, self.recipe.inference, kept=kept, by_patch=self.by_patch
        )  # fmt: skip
        counts = case.covered(kept) & (label != IGNORE)
        return Trial(
            truth=np.asarray(counts & (label > 0), bool),
            probability=np.where(counts, probability, np.float32(0)),
            cord=case.cord,
            voxel_mm3=self.recipe.grid.spacing_mm**3,
        )


def _extent(there: npt.ArrayLike) -> slice:
    """From the first to the last that is true."""
    true = np.flatnonzero(there)
    return slice(int(true[0]), int(true[-1]) + 1)


def _mean(values: Iterable[float]) -> float:
    """Mean of the defined values; 0 without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else 0.0


def judge_cases(
    judge: Judge,
    cases: Sequence[TrainingCase],
    *,
    validation: Sequence[TrainingCase],
    setting: Setting,
    profile: str,
    arm: str,
    seed: int,
    progress: Callable[[float], None] = lambda seconds: None,
) -> tuple[list[TrialRow], Choice | None]:
    """Score test cases in one setting; cases that lack what the model needs are left out.

    Truth and prediction are taken where the setting's sequences have data and the label counts. Lesions are
    found anew by the profile, as everywhere.

    Parameters
    ----------
    judge
        The model.
    cases, validation
        Test cases; validation cases, on which alone the threshold is chosen (without any: the bundle's).
    setting
        Which sequences it is given.
    profile
        Rules of the scores.
    arm, seed
        For the rows.
    progress
        Called after each test case with the seconds that its prediction took.

    Returns
    -------
    Rows, and what the validation cases said.
    """
    best = judge.choose(validation, setting, profile=profile)
    spec = replace(judge.recipe.inference, seed_threshold=0.0)  # rows are compared at a threshold alone
    if best is not None:
        spec = replace(spec, threshold=best.threshold, min_volume_mm3=best.min_volume_mm3)
    rows = []
    for case in cases:
        if not judge.usable(case, setting):
            continue
        start = time.perf_counter()
        trial = judge.trial(case, setting)
        seconds = time.perf_counter() - start
        predicted = trial.predicted(spec)
        rows.append(
            TrialRow(
                arm=arm, seed=seed, setting=setting.name, case=case.name, subject=case.subject,
                threshold=spec.threshold, min_volume_mm3=spec.min_volume_mm3,
                scores=trial.scores(predicted, profile=profile),
                shared_mm3=float((trial.truth & predicted).sum() * trial.voxel_mm3),
            )
        )  # fmt: skip
        progress(seconds)
    return rows, best
