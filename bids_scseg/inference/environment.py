"""What surrounds this program: a container, and how one lets a GPU in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DOCKER_SIGNS = ("/.dockerenv", "/run/.containerenv")  # Docker; Podman
APPTAINER_SIGNS = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


def gpu_remedy(environment: Mapping[str, str] | None = None, *, root: Path = Path("/")) -> str:
    """What to do where no GPU is visible: the option that this kind of container needs, or none.

    Parameters
    ----------
    environment
        Environment variables; those of this process by default.
    root
        Where the signs of Docker and Podman are looked for.
    """
    given = os.environ if environment is None else environment
    if any(given.get(name) for name in APPTAINER_SIGNS):
        return "start the image with --nv (apptainer run --nv), on a machine with a GPU"
    if any((root / sign.lstrip("/")).exists() for sign in DOCKER_SIGNS):
        return "start the container with --gpus all, on a machine with a GPU and NVIDIA's container toolkit"
    return "check driver (nvidia-smi), CUDA_VISIBLE_DEVICES, and that torch is a CUDA build"


def gpu_problem(index: int) -> str | None:
    """Why a visible GPU cannot compute, found by letting it add two numbers; None if it can.

    A driver or GPU that this torch was not built for is visible all the same, and would fail at the first
    layer of the network.
    """
    import torch

    try:
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    except (RuntimeError, AssertionError) as error:  # a CPU build asserts
        words = " ".join(str(error).split("\n")[0].split())
        built = ", ".join(torch.cuda.get_arch_list()) or "no GPU at all"
        return f"{_gpu_name(index)} cannot be used by torch {torch.__version__}, built for {built} ({words})"
    return None


def _gpu_name(index: int) -> str:
    import torch

    try:
        major, minor = torch.cuda.get_device_capability(index)
        return f"the GPU {torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"
    except (RuntimeError, AssertionError):
        return f"GPU {index}"
