"""A trained model on test cases in prepared space, its threshold chosen on validation cases alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from bids_scseg.measure.overlap import match_lesions, score_match
from bids_scseg.measure.trials import TrialRow
from bids_scseg.recipe.model import InferenceSpec, Recipe
from bids_scseg.training.cases import TrainingCase, kept_sequences
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.sample import IGNORE
from bids_scseg.training.validate import Scores, choose_threshold, predict

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """A trained model, ready to be judged.

    Attributes
    ----------
    network, recipe, sequences
        As shipped in the bundle.
    needs
        Sequence without which it cannot work; None: any will do.
    by_patch
        Whether sequences count as missing in windows that they do not cover.
    config
        Of its training; gives the candidates for threshold and smallest volume.
    parameters
        Number of weights.
    """

    network: nn.Module
    recipe: Recipe
    sequences: tuple[str, ...]
    needs: str | None
    by_patch: bool
    config: TrainingConfig
    parameters: int

    @classmethod
    def open(cls, bundle: Path, config: TrainingConfig, *, overlap: float | None = None) -> Judge:
        """Load a bundle onto the first GPU there is, else the CPU; ``overlap`` replaces the recipe's."""
        model = load_bundle(bundle)
        if config.threads:
            torch.set_num_threads(config.threads)
        names, recipe = model.network.sequences, model.recipe
        anchors = [name for name in recipe.anchors if name in names]
        device = "cpu" if config.accelerator == "cpu" else resolve_device("auto").name
        network = load_network(model, device)
        return cls(
            network=network,
            recipe=recipe
            if overlap is None
            else replace(recipe, inference=replace(recipe.inference, overlap=overlap)),
            sequences=names,
            needs=anchors[0] if anchors and model.network.skips == "anchor" else None,
            by_patch=config.sampling.by_patch,
            config=config,
            parameters=sum(int(array.size) for array in load_weights(model).values()),
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
        return bool(there) and (self.needs is None or self.needs in there)

    def calibrate(self, cases: Sequence[TrainingCase], setting: Setting) -> Scores | None:
        """Threshold and smallest volume with the best F1 on validation cases; None without any."""
        usable = [case for case in cases if self.usable(case, setting)]
        if not usable:
            return None
        maps = [self.probability(case, setting) for case in usable]
        validation = replace(self.config.validation, sequences=setting.sequences)
        return choose_threshold(
            usable, maps, config=validation, spec=self.recipe.inference, grid=self.recipe.grid
        )[0]

    def probability(self, case: TrainingCase, setting: Setting) -> Floats:
        """(i, j, k) float32 from the setting's sequences."""
        kept = kept_sequences(case, setting.sequences)
        return predict(self.network, case, self.recipe.inference, kept=kept, by_patch=self.by_patch)


def judge_cases(
    judge: Judge,
    cases: Sequence[TrainingCase],
    *,
    validation: Sequence[TrainingCase],
    setting: Setting,
    profile: str,
    arm: str,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[TrialRow], Scores | None]:
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
        Called after each case.

    Returns
    -------
    Rows, and what the validation cases said.
    """
    best = judge.calibrate(validation, setting)
    spec = judge.recipe.inference
    if best is not None:
        spec = replace(spec, threshold=best.threshold, min_volume_mm3=best.min_volume_mm3)
    volume = judge.recipe.grid.spacing_mm**3
    rows = []
    for case in cases:
        if not judge.usable(case, setting):
            continue
        truth, predicted = masks(
            case, judge.probability(case, setting), setting=setting, spec=spec, volume=volume
        )
        match = match_lesions(truth, predicted, profile=profile, voxel_volume_mm3=volume)
        rows.append(
            TrialRow(
                arm=arm, seed=seed, setting=setting.name, case=case.name, subject=case.subject,
                threshold=spec.threshold, min_volume_mm3=spec.min_volume_mm3,
                scores=score_match(match, truth, predicted, voxel_volume_mm3=volume),
                shared_mm3=float((truth & predicted).sum() * volume),
            )
        )  # fmt: skip
        progress()
    return rows, best


def masks(
    case: TrainingCase, probability: Floats, *, setting: Setting, spec: InferenceSpec, volume: float
) -> tuple[Bools, Bools]:
    """Truth and prediction (i, j, k) bool, both within what the setting covers and the label counts."""
    label = np.asarray(case.label)
    counts = case.covered(kept_sequences(case, setting.sequences)) & (label != IGNORE)
    predicted = label_lesions(
        np.where(counts, probability, np.float32(0)),
        threshold=spec.threshold,
        connectivity=spec.connectivity,
        min_volume_mm3=spec.min_volume_mm3,
        voxel_volume=volume,
        cord=case.cord,
    )
    return np.asarray(counts & (label > 0), bool), np.asarray(predicted > 0, bool)
