"""Which device computes: an explicit choice, checked at the start, without silent fallback."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bids_scseg.errors import MissingToolError, UsageError
from bids_scseg.inference.environment import gpu_problem, gpu_remedy

_CHOICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that is there.

    Attributes
    ----------
    name
        ``cpu`` or ``cuda:N``.
    description
        For people and logs.
    warning
        What the user should know about the choice; None if it was explicit or is the best one.
    visible
        Number of CUDA devices that are there.
    """

    name: str
    description: str
    warning: str | None = None
    visible: int = 0


def resolve_device(choice: str) -> Device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there and computes.

    ``auto`` is the first GPU that can be used, else the CPU; ``cuda`` is ``cuda:0``.

    Imports torch: call it in the process that computes.

    Raises
    ------
    UsageError
        If the choice is none of these.
    MissingToolError
        If a device was asked for by name and is absent, or cannot be used by this torch.
    """
    if not _CHOICE.fullmatch(choice):
        raise UsageError(
            f"device {choice!r}", expected="auto, cpu, cuda or cuda:N", remedy="correct --device"
        )
    import torch

    if choice == "cpu":
        return _cpu(torch.get_num_threads())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice == "auto":
        return _first_usable(count)
    index = int(choice.partition(":")[2] or 0)
    if index >= count:
        seen = f"{count} CUDA devices are visible" if count else "no CUDA device is visible"
        raise MissingToolError(
            f"device {choice} is not there: {seen}", remedy=f"use --device cpu, or {gpu_remedy()}"
        )
    problem = gpu_problem(index)
    if problem is not None:
        raise MissingToolError(
            problem, remedy="use --device cpu, or install the build of torch that this GPU and driver need"
        )
    return _gpu(index, visible=count)


def device_tokens(choice: str, *, visible: int, at_most: int, first: str = "cuda:0") -> tuple[str, ...]:
    """Devices that a run uses, one inference process for each.

    Parameters
    ----------
    choice
        As for :func:`resolve_device`. ``cpu`` and ``cuda:N`` name one device; ``auto`` and ``cuda`` mean all
        that are visible.
    visible
        Number of CUDA devices that are there.
    at_most
        Number of sessions that may run at once: more devices than that would stand idle.
    first
        What ``choice`` became as a single device: those before it cannot be used, and if it is the CPU, none.
    """
    if choice not in ("auto", "cuda") or first == "cpu" or visible < 2:
        return (choice,)
    start = int(first.partition(":")[2] or 0)
    return tuple(f"cuda:{number}" for number in range(start, min(visible, start + max(1, at_most))))


def _first_usable(count: int) -> Device:
    """The first of the visible GPUs that can be used, else the CPU; the warning says what was passed over."""
    import torch

    problems: list[str] = []
    for index in range(count):
        problem = gpu_problem(index)
        if problem is None:
            device = _gpu(index, visible=count)
            without = ", ".join(f"cuda:{n} ({why})" for n, why in enumerate(problems))
            warning = f"inference runs on {device.description} without {without}" if without else None
            return replace(device, warning=warning)
        problems.append(problem)
    warning = f"no CUDA device is visible: inference runs on the CPU. For a GPU: {gpu_remedy()}"
    if problems:
        warning = f"{'; '.join(dict.fromkeys(problems))}: inference runs on the CPU"
    return _cpu(torch.get_num_threads(), warning=warning)


def _gpu(index: int, *, visible: int) -> Device:
    import torch

    name = f"cuda:{index}"
    return Device(name=name, description=f"{name} ({torch.cuda.get_device_name(index)})", visible=visible)


def _cpu(threads: int, *, warning: str | None = None) -> Device:
    return Device(name="cpu", description=f"CPU ({threads} threads)", warning=warning)
