"""Checkpoints without pickles: one safetensors file with all that a run needs, renamed into place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.training.files import write_json

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"
PROGRESS = "progress"  # in the file's metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come.

    Attributes
    ----------
    step
        Optimizer steps.
    examples
        Examples that they used up, on all devices together.
    """

    step: int = 0
    examples: int = 0


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    *,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write weights, their moving average and the optimizer's state.

    The file is complete or the earlier one: it is written beside it, brought to the disk and renamed. The
    JSON file repeats how far the run has come, for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _prefixed("weights", network.state_dict())
    if average is not None:
        tensors |= _prefixed("average", average.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{number}.{key}": value for key, value in values.items() if isinstance(value, Tensor)
        }
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    stated = {"step": progress.step, "examples": progress.examples}
    temporary = folder / (TENSORS + ".new")
    # one entry: the file format keeps several in no fixed order, and equal runs should give equal bytes
    save_file(content, temporary, {PROGRESS: json.dumps(stated)})
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(folder / TENSORS)
    write_json(folder / STATE, stated)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in that folder can go on."""
    return (folder / TENSORS).is_file()


def load_checkpoint(
    folder: Path, network: nn.Module, *, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Progress:
    """Restore what :func:`save_checkpoint` wrote; no progress where the folder has no checkpoint.

    Raises
    ------
    DataError
        If the checkpoint belongs to another network or optimizer, or is damaged.
    """
    progress, file = read_progress(folder), folder / TENSORS
    if not file.is_file():
        return progress
    tensors = _read(file)
    _load(network, _section(tensors, "weights"), file=file)
    if average is not None:
        _load(average, _section(tensors, "average"), file=file)
    _load_optimizer(optimizer, _section(tensors, "optimizer"), file=file)
    return progress


def read_progress(folder: Path) -> Progress:
    """How far the checkpoint of a folder is, from its header alone; no progress where there is none.

    Raises
    ------
    DataError
        If it is damaged.
    """
    file = folder / TENSORS
    if not file.is_file():
        return Progress()
    try:
        with safe_open(file, framework="pt") as handle:
            stated: dict[str, str] = handle.metadata()
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    if PROGRESS in stated:
        return Progress(**json.loads(stated[PROGRESS]))
    # checkpoints of the first release state no examples
    return Progress(step=int(stated["step"]), examples=int(stated.get("examples", -1)))


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], *, file: Path) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if int(number) >= len(parameters) or not _fits(value, parameters[int(number)]):
            raise DataError(
                "the optimizer's state belongs to another network", file=file, remedy="use a new folder"
            )
        state.setdefault(int(number), {})[name] = _like(value, parameters[int(number)])
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether it can be state of that parameter: a number, or as large as it."""
    return value.ndim == 0 or value.shape == parameter.shape


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy laid out in memory as the parameter is: another layout could round otherwise."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)


def load_weights(folder: Path, network: nn.Module) -> None:
    """Start from the weights of a checkpoint (their average, where kept) or of a bundle."""
    _load(network, read_weights(folder), file=folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint (their average, where kept) or of a bundle by parameter name, float32.

    The folder may also be that of a run, whose bundle is in ``bundle/``.

    Raises
    ------
    DataError
        If the folder has none, or they are damaged.
    """
    tensors = _read(weights_file(folder))
    averaged = _section(_section(tensors, "average"), "module")
    weights = averaged or _section(tensors, "weights") or tensors
    return {key: value.float() for key, value in weights.items()}


def weights_file(folder: Path) -> Path:
    """The file that :func:`read_weights` reads.

    Raises
    ------
    DataError
        If the folder has none.
    """
    for name in (TENSORS, "weights.safetensors", "bundle/weights.safetensors"):
        file = folder / name
        if file.is_file():
            return file
    raise DataError("no weights to start from", file=folder, expected=f"{TENSORS} or weights.safetensors")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"not readable ({error})",
        file=file,
        expected="a checkpoint or weights in safetensors",
        remedy="remove it, or name another folder",
    )


def _load(network: nn.Module, tensors: Mapping[str, Tensor], *, file: Path) -> None:
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise DataError(
            "the weights belong to another network",
            file=file,
            expected="weights of the configured network",
            remedy="choose another folder, or the configuration that made these weights",
        ) from error


def _prefixed(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
