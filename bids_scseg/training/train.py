"""``scseg train``: prepared cases to a model bundle whose threshold comes from held-out subjects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.inference.bundle import ModelBundle, save_bundle
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.config import TrainingConfig, configured_recipe
from bids_scseg.training.dataset import PreparedCases, TrainingCase, load_cases, split_subjects
from bids_scseg.training.fit import Schedule, Trained, fit
from bids_scseg.training.validate import HeldOut, Scores, choose_threshold, predict

WARNING = "Not validated on patients; research use only."


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What :func:`train` made.

    Attributes
    ----------
    bundle
        The model, with its threshold.
    scores
        On held-out cases at that threshold; None without any.
    validation
        Names of the held-out subjects.
    """

    bundle: ModelBundle
    scores: Scores | None
    validation: tuple[str, ...]


def train(
    config: TrainingConfig,
    data: Path,
    *,
    out: Path,
    loss: nn.Module | None = None,
    schedule: Schedule | None = None,
    facts: Mapping[str, str] | None = None,
) -> Training:
    """Train on the prepared cases of a folder; a run that was interrupted goes on from its checkpoint.

    Parameters
    ----------
    config
        What to do.
    data
        Folder with prepared cases (``image.npy``, ``coverage.npy``, ``label.npy``, ``case.json`` each).
    out
        Folder for logs, checkpoints, ``split.json``, ``thresholds.json`` and the bundle in ``bundle/``.
    loss, schedule
        Replace the configuration's.
    facts
        More lines for the card and the provenance, such as how the data were made.

    Raises
    ------
    MissingInputError
        If there are no cases, or one lacks a file.
    DataError
        If labels and images do not match, or nothing is left to train on.
    """
    recipe = configured_recipe(config, load_recipe(config.recipe))
    cases = load_cases(data, sequences=recipe.network.sequences)
    out.mkdir(parents=True, exist_ok=True)
    training, held = split_subjects(
        cases, config.validation.fraction, seed=config.seed, out=out / "split.json"
    )
    if not any(case.lesions for case in training):
        raise DataError("no training case has a lesion", file=data, expected="labels with lesions")
    source = PreparedCases(
        cases=training, sampling=config.sampling, augmentation=config.augment, seed=config.seed
    )
    look = (
        HeldOut(cases=held, spec=recipe.inference, grid=recipe.grid, config=config.validation)
        if held
        else None
    )
    trained = fit(config, source, recipe=recipe, out=out, loss=loss, schedule=schedule, look=look)
    scores = _calibrate(trained, held, config=config, out=out) if held else None
    bundle = export(
        trained, config, out=out / "bundle", scores=scores, data=source.summary(), facts=facts or {}
    )
    return Training(bundle=bundle, scores=scores, validation=tuple(sorted({case.subject for case in held})))


def _calibrate(
    trained: Trained, held: Sequence[TrainingCase], *, config: TrainingConfig, out: Path
) -> Scores:
    spec, grid = trained.recipe.inference, trained.recipe.grid
    probabilities = [predict(trained.network, case, spec, kept=case.available) for case in held]
    best, table = choose_threshold(held, probabilities, config=config.validation, spec=spec, grid=grid)
    rows = [scores.to_json() for scores in table]
    text = json.dumps({"chosen": best.to_json(), "candidates": rows}, indent=1)
    (out / "thresholds.json").write_text(text + "\n", encoding="utf-8")
    return best


def export(
    trained: Trained,
    config: TrainingConfig,
    *,
    out: Path,
    scores: Scores | None,
    data: Mapping[str, object],
    facts: Mapping[str, str],
) -> ModelBundle:
    """Write the bundle of a trained network; threshold and smallest volume are those of ``scores``."""
    recipe = with_threshold(trained.recipe, scores)
    weights = {
        name: np.asarray(value.detach().float().contiguous())
        for name, value in trained.network.state_dict().items()
    }
    # a bundle says where it started from, but no place on the machine that made it
    stated = replace(config, initial=Path(config.initial).name)
    provenance: dict[str, object] = {
        "configuration": json.dumps(stated.to_json(), sort_keys=True),
        "iterations": trained.iterations,
        "seed": config.seed,
        "training data": json.dumps(dict(data), sort_keys=True, default=str),
        "torch": torch.__version__,
        **facts,
    }
    return save_bundle(
        out,
        weights,
        recipe=recipe,
        network=recipe.network,
        threshold=recipe.inference.threshold,
        provenance=provenance,
        card=default_card(recipe, config, scores=scores, facts=facts),
    )


def with_threshold(recipe: Recipe, scores: Scores | None) -> Recipe:
    """The recipe with the chosen threshold and smallest volume."""
    if scores is None:
        return recipe
    spec = replace(recipe.inference, threshold=scores.threshold, min_volume_mm3=scores.min_volume_mm3)
    return replace(recipe, inference=spec)


def default_card(
    recipe: Recipe, config: TrainingConfig, *, scores: Scores | None, facts: Mapping[str, str]
) -> str:
    """A model card with what the program knows; authors add the rest."""
    lines = [
        f"# {recipe.name}: {recipe.target} on {len(recipe.sequences)} sequence(s)",
        "",
        WARNING,
        "",
        f"- Training: {config.iterations} iterations, batch {config.sampling.batch}, patches of "
        f"{config.sampling.patch_vox} voxels, {config.optimizer.name}, learning rate {config.optimizer.lr}, "
        f"seed {config.seed}.",
        f"- Network: {recipe.network.family}, channels {recipe.network.channels}, "
        f"skips {recipe.network.skips}, imputation {recipe.network.impute}.",
        *(f"- {key}: {value}" for key, value in facts.items()),
    ]
    if scores is not None:
        lines.append(f"- Held-out subjects at the chosen threshold: {json.dumps(scores.to_json())}.")
    return "\n".join(lines) + "\n"
