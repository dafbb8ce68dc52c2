"""``scseg train``: prepared cases to a model bundle whose threshold comes from held-out subjects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_scseg.inference.bundle import ModelBundle, find_bundle, save_bundle, stored_type
from bids_scseg.inference.facts import ModelFacts
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.arms import checked_recipe, judged_sequences, shipped_network, shown_sequences
from bids_scseg.training.cases import TrainingCase
from bids_scseg.training.checkpoint import weights_file
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.console import Display, Silent
from bids_scseg.training.files import write_json
from bids_scseg.training.fit import (
    INITIAL,
    Schedule,
    Trained,
    began_from,
    check_same_run,
    device_kind,
    fit,
    is_first_process,
    machine_in_words,
)
from bids_scseg.training.ground import Ground, described, open_ground
from bids_scseg.training.parse import within
from bids_scseg.training.summary import counted
from bids_scseg.training.validate import HeldOut, Scores

WARNING = "Not validated on patients; research use only."
FLOAT32 = "stored as float32, because a value is beyond the range of float16"


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
    data: Path | None,
    *,
    out: Path,
    loss: nn.Module | None = None,
    schedule: Schedule | None = None,
    facts: Mapping[str, str] | None = None,
    display: Display | None = None,
    file: object = None,
) -> Training:
    """Train on prepared cases or synthetic sessions; an interrupted run goes on from its checkpoint.

    With several devices, the processes beside the first end here when training is over.

    Parameters
    ----------
    config
        What to do.
    data
        Folder with prepared cases (``image.npy``, ``coverage.npy``, ``label.npy``, ``case.json`` each). Under
        ``data.synthetic``: cases that are all held out, or None.
    out
        Folder for logs, checkpoints, ``split.json``, ``thresholds.json`` and the bundle in ``bundle/``.
    loss, schedule
        Replace the configuration's.
    facts
        More lines for the card and the provenance, such as how the data were made.
    display
        Where the summary of the data and progress are shown; default: nowhere.
    file
        Where the configuration comes from, for messages.

    Raises
    ------
    UsageError
        If there is neither a folder nor ``data.synthetic``.
    MissingInputError
        If there are no cases, or one lacks a file; or there is nothing of the name in ``initial``.
    DataError
        If the configuration names what its recipe or network does not have, labels and images do not match,
        or nothing is left to train on.
    """
    recipe = checked_recipe(config, file=file)
    if config.initial:
        weights_file(find_bundle(config.initial, where=within(file, "initial")))
    display = display or Silent()
    check_same_run(out, config)
    with open_ground(config, data, recipe=recipe, out=out) as ground:
        if is_first_process():
            display.text(described(ground.summary))
        look = _held_out(config, ground.validation, recipe) if ground.validation else None
        trained = fit(
            config, ground.source, recipe=recipe, out=out, loss=loss, schedule=schedule, look=look,
            display=display, summary=ground.summary,
        )  # fmt: skip
    if not is_first_process():
        raise SystemExit(0)
    scores = _calibrate(trained, look, out=out, kind=device_kind(config)) if look else None
    bundle = export(
        trained, config, out=out / "bundle", scores=scores, data=counted(ground.summary),
        facts={**_beginning(out, config), **(facts or {})},
        record=_record(config, ground, scores=scores), display=display,
    )  # fmt: skip
    return Training(bundle=bundle, scores=scores, validation=ground.held_out)


def _held_out(config: TrainingConfig, cases: list[TrainingCase], recipe: Recipe) -> HeldOut:
    judged = replace(config.validation, sequences=judged_sequences(config, recipe))
    return HeldOut(
        cases=cases,
        spec=recipe.inference,
        grid=recipe.grid,
        config=judged,
        by_patch=config.sampling.by_patch,
    )


def _calibrate(trained: Trained, look: HeldOut, *, out: Path, kind: str) -> Scores:
    with machine_in_words(out):
        best, table = look.calibrate(trained.network.to(kind))
    trained.network.cpu()
    write_json(
        out / "thresholds.json",
        {"chosen": best.to_json(), "candidates": [scores.to_json() for scores in table]},
    )
    return best


def _record(config: TrainingConfig, ground: Ground, *, scores: Scores | None) -> ModelFacts:
    """What programs can read in the bundle about its making."""
    chosen: dict[str, object] = {"set": "none", "rule": "the recipe's: nobody with lesions was held out"}
    if scores is not None and scores.lesions:
        chosen = {
            "set": "validation",
            "rule": "largest lesion-wise F1 (walsh2024), then Dice",
            "subjects": len(ground.held_out),
        }
    return ModelFacts(
        preparation=ground.made.preparation,
        cord_method=ground.made.cord_method,
        license=config.model.license or None,
        authors=config.model.authors,
        contact=config.model.contact or None,
        training_data=counted(ground.summary),
        metrics={} if scores is None else {"validation": scores.to_json()},
        calibration=chosen,
    )


def export(
    trained: Trained,
    config: TrainingConfig,
    *,
    out: Path,
    scores: Scores | None,
    data: Mapping[str, object],
    facts: Mapping[str, str],
    record: ModelFacts | None = None,
    display: Display | None = None,
) -> ModelBundle:
    """Write the bundle of a trained network; threshold and smallest volume are those of ``scores``.

    Encoders that were never trained (sequences that training never showed) are folded away first. Weights are
    stored as float16; where one is beyond its range, all are float32, which ``display`` and the card say.
    """
    recipe = with_threshold(trained.recipe, scores)
    network = shipped_network(trained.network, config, recipe)
    spec = getattr(network, "spec", recipe.network)
    weights = {
        name: np.asarray(value.detach().float().cpu().contiguous())
        for name, value in network.state_dict().items()
    }
    dtype = stored_type(weights)
    if dtype == "float32":
        (display or Silent()).text(f"weights are {FLOAT32}")
    provenance: dict[str, object] = {
        "configuration": json.dumps(_stated(config), sort_keys=True),
        "iterations": trained.iterations,
        **({} if trained.examples is None else {"patches": trained.examples}),
        "seed": config.seed,
        "stored weights": dtype,
        "training data": json.dumps(dict(data), sort_keys=True, default=str),
        "torch": torch.__version__,
        **facts,
    }
    return save_bundle(
        out,
        weights,
        # a recipe's own network has all its sequences; the bundle's says which were trained
        recipe=replace(recipe, network=replace(spec, sequences=recipe.sequence_names)),
        network=spec,
        threshold=recipe.inference.threshold,
        provenance=provenance,
        card=default_card(recipe, config, trained=trained, scores=scores, facts=facts, dtype=dtype),
        dtype=dtype,
        facts=record,
    )


def _stated(config: TrainingConfig) -> dict[str, Any]:
    """The configuration without places on the machine that trained, and without subjects.

    Of folders and files the name is stated, of subjects who are held out by name their number.
    """
    stated = replace(
        config,
        recipe=Path(config.recipe).name,
        initial=Path(config.initial).name,
        arm=replace(config.arm, source=Path(config.arm.source).name),
        validation=replace(config.validation, split=Path(config.validation.split).name),
    ).to_json()
    validation = {**stated["validation"], "subjects": len(config.validation.subjects)}
    return {**stated, "validation": validation}


def _beginning(out: Path, config: TrainingConfig) -> dict[str, str]:
    """Whose weights the run began with, in a line for card and provenance; nothing where they were random."""
    if not config.initial:
        return {}
    known = began_from(out, config).get(INITIAL, "not recorded")
    return {"initial weights": f"{Path(config.initial).name}, SHA-256 {known}"}


def with_threshold(recipe: Recipe, scores: Scores | None) -> Recipe:
    """The recipe with the chosen thresholds and smallest volume."""
    if scores is None:
        return recipe
    spec = replace(
        recipe.inference,
        threshold=scores.threshold,
        seed_threshold=scores.seed_threshold,
        min_volume_mm3=scores.min_volume_mm3,
    )
    return replace(recipe, inference=spec)


def default_card(
    recipe: Recipe,
    config: TrainingConfig,
    *,
    trained: Trained,
    scores: Scores | None,
    facts: Mapping[str, str],
    dtype: str,
) -> str:
    """A model card with what the program knows; authors add the rest."""
    patches = f"patches of {config.sampling.patch_vox} voxels"
    if trained.examples is not None:
        # what was used up, not what is configured: a run may go on with other batches, on other devices
        patches = (
            f"{trained.examples} {patches} in all "
            f"({trained.examples / trained.iterations:g} an iteration on average)"
        )
    lines = [
        f"# {recipe.name}: {recipe.target} on {len(recipe.sequences)} sequence(s)",
        "",
        WARNING,
        "",
        f"- Training: {trained.iterations} iterations, {patches}, {config.optimizer.name}, learning rate "
        f"{config.optimizer.lr}, seed {config.seed}.",
        f"- Network: {recipe.network.family}, channels {recipe.network.channels}, "
        f"skips {recipe.network.skips}, imputation {recipe.network.impute}.",
        f"- Sequences: {', '.join(shown_sequences(config, recipe))}; arm: {config.arm.kind}.",
        *(f"- {key}: {value}" for key, value in facts.items()),
        f"- Weights: {FLOAT32 if dtype == 'float32' else dtype}.",
    ]
    if scores is not None:
        lines.append(f"- Held-out subjects at the chosen threshold: {json.dumps(scores.to_json())}.")
    return "\n".join(lines) + "\n"
