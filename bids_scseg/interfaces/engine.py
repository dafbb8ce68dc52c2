"""Which network finds the lesions: that of a model bundle, or one that the Spinal Cord Toolbox brings."""

from __future__ import annotations

from pathlib import Path

from bids_scseg.errors import MissingToolError, UsageError
from bids_scseg.inference.bundle import NUMERICAL_VERSION, ModelBundle, load_bundle, packaged_models
from bids_scseg.interfaces.sct import (
    LESION_TASKS,
    SCT_RELEASE,
    TASK_MODELS,
    find_sct,
    sct_folder,
    sct_release,
    sct_sha256,
    task_models,
)
from bids_scseg.options import DEFAULT_MODEL
from bids_scseg.recipe.load import load_recipe

SCT_PREFIX = "sct:"
RECIPE = "cord-lesion"  # sequences, anchors and grid; its network is not used
#: By what SCT itself says of its maps, half of its five networks; never validated for fused values.
THRESHOLD = 0.5
SUMMARY = (
    "A network of the Spinal Cord Toolbox, run on each image by itself and fused. The fused value is no "
    "probability, and its threshold was not validated."
)
INSTEAD = f"use --model {DEFAULT_MODEL}"


def load_engine(name: str | Path) -> ModelBundle:
    """A model bundle, or the description of a network of SCT as if it were one.

    Parameters
    ----------
    name
        Name of a packaged model, path of a bundle, or ``sct:`` and a task such as ``lesion_ms``.

    Raises
    ------
    UsageError
        If there is no such task.
    MissingInputError, DataError
        As :func:`~bids_scseg.inference.bundle.load_bundle`.
    """
    text = str(name)
    return _sct_bundle(text) if is_sct(text) else load_bundle(name)


def is_sct(name: str) -> bool:
    """Whether a model's name asks for a network of SCT."""
    return name.startswith(SCT_PREFIX)


def lasting_name(name: str) -> str:
    """A model's name that means the same from any folder: a path becomes absolute, other names stay."""
    return name if name in packaged_models() or is_sct(name) else str(Path(name).expanduser().absolute())


def sct_task(name: str) -> str:
    """Task of ``sct_deepseg`` that a model's name asks for.

    Raises
    ------
    UsageError
        If it is none of those that this program knows.
    """
    task = name.removeprefix(SCT_PREFIX)
    if task not in LESION_TASKS:
        raise UsageError(
            f"--model {name}: there is no engine {task!r}",
            expected=", ".join([*(f"{SCT_PREFIX}{known}" for known in LESION_TASKS), *packaged_models()]),
            remedy="correct --model",
        )
    return task


def check_engine(bundle: ModelBundle) -> None:
    """Refuse a network of SCT that is not installed, before anything begins: SCT itself would download it.

    Raises
    ------
    MissingToolError
        If SCT is not installed, or the network is not.
    """
    if not bundle.engine:
        return
    task = sct_task(bundle.engine)
    if find_sct() is None:
        raise MissingToolError(
            f"--model {bundle.engine}: sct_deepseg is not on the PATH",
            expected=f"Spinal Cord Toolbox {SCT_RELEASE}",
            remedy=f"install it, or {INSTEAD}",
        )
    folder = sct_folder()
    models = None if folder is None else folder / "data" / "deepseg_models"
    if models is not None and models.is_dir() and not task_models(task):
        raise MissingToolError(
            f"--model {bundle.engine}: SCT has no network for {task}",
            file=models,
            expected=f"a folder *{TASK_MODELS[task][0]}* with source.json",
            remedy=f"install it while online: sct_deepseg {task} -install, or {INSTEAD}",
        )


def _sct_bundle(name: str) -> ModelBundle:
    task = sct_task(name)
    release = sct_release() or "unknown"
    recipe = load_recipe(RECIPE)
    facts = {"program": "Spinal Cord Toolbox", "release": release, "task": task}
    return ModelBundle(
        name=name,
        path=Path(name),
        recipe=recipe,
        network=recipe.network,
        threshold=THRESHOLD,
        provenance=tuple(sorted({**facts, **task_models(task)}.items())),
        weights_sha256=sct_sha256(task),
        numerical_version=NUMERICAL_VERSION,
        summary=SUMMARY,
        engine=name,
    )
