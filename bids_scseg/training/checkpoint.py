"""Checkpoints without pickles: tensors in safetensors, the step in JSON, written by atomic rename."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bids_scseg.errors import DataError

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    *,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Write weights, their moving average and the optimizer's state after ``step`` iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _prefixed("weights", network.state_dict())
    if average is not None:
        tensors |= _prefixed("average", average.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items() if _is_tensor(value)}
    temporary = folder / (TENSORS + ".new")
    save_file(
        {key: value.detach().contiguous().clone() for key, value in tensors.items()},
        temporary,
        {"step": str(step)},
    )
    temporary.replace(folder / TENSORS)
    _write_json(folder / STATE, {"step": step})


def load_checkpoint(
    folder: Path, network: nn.Module, *, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> int:
    """Restore what :func:`save_checkpoint` wrote; the step, or 0 where the folder has no checkpoint.

    Raises
    ------
    DataError
        If the checkpoint belongs to another network.
    """
    file = folder / TENSORS
    if not file.is_file():
        return 0
    tensors = load_file(file)
    _load(network, _section(tensors, "weights"), file=file)
    if average is not None:
        _load(average, _section(tensors, "average"), file=file)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _section(tensors, "optimizer").items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return _step(file)


def load_weights(folder: Path, network: nn.Module) -> None:
    """Start from the weights of a checkpoint (their average, where kept) or of a bundle."""
    for name in (TENSORS, "weights.safetensors"):
        file = folder / name
        if file.is_file():
            tensors = load_file(file)
            averaged = _section(_section(tensors, "average"), "module")
            weights = averaged or _section(tensors, "weights") or tensors
            _load(network, {key: value.float() for key, value in weights.items()}, file=file)
            return
    raise DataError("no weights to start from", file=folder, expected=f"{TENSORS} or weights.safetensors")


def _step(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        metadata: dict[str, str] = handle.metadata()
    return int(metadata["step"])


def _load(network: nn.Module, tensors: dict[str, Tensor], *, file: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            "the weights belong to another network",
            file=file,
            expected="weights of the configured network",
            remedy="choose another folder, or the configuration that made these weights",
        ) from error


def _prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
