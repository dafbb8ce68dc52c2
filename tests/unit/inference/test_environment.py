"""What is said where a GPU is missing or cannot compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bids_scseg.errors import MissingToolError
from bids_scseg.inference.device import resolve_device
from bids_scseg.inference.environment import gpu_problem, gpu_remedy


def test_the_remedy_names_the_option_of_the_container(tmp_path: Path) -> None:
    assert "--nv" in gpu_remedy({"SINGULARITY_CONTAINER": "/a.sif"}, root=tmp_path)
    assert "--nv" in gpu_remedy({"APPTAINER_CONTAINER": "/a.sif"}, root=tmp_path)
    outside = gpu_remedy({}, root=tmp_path)
    assert "nvidia-smi" in outside and "--nv" not in outside and "--gpus" not in outside
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    assert "--gpus all" in gpu_remedy({}, root=tmp_path)
    (tmp_path / ".dockerenv").touch()
    assert "--gpus all" in gpu_remedy({}, root=tmp_path)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is visible and that this torch was not built for."""

    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCompile with"
        )

    monkeypatch.setattr(torch, "ones", refuse)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("old_gpu")
def test_a_gpu_of_another_build_is_named_with_what_torch_was_built_for() -> None:
    problem = gpu_problem(0)
    assert problem is not None and "\n" not in problem
    assert problem.startswith("the GPU Tesla K80 (compute capability 3.7) cannot be used by torch")
    assert "built for sm_75, sm_90 (CUDA error: no kernel image is available" in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_a_problem_too() -> None:
    # A CPU build raises AssertionError or RuntimeError at the first use; both must end in words.
    assert gpu_problem(0)


@pytest.mark.usefixtures("old_gpu")
def test_an_unsupported_gpu_is_refused_by_name_and_left_aside_otherwise() -> None:
    with pytest.raises(
        MissingToolError, match=r"Tesla K80 .* Use --device cpu, or install the build of torch"
    ):
        resolve_device("cuda")
    device = resolve_device("auto")
    assert device.name == "cpu"
    assert device.warning is not None
    assert "Tesla K80" in device.warning and device.warning.endswith(": inference runs on the CPU")


def test_an_absent_gpu_is_told_with_the_container_s_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("APPTAINER_CONTAINER", "/image.sif")
    with pytest.raises(MissingToolError, match=r"cuda:1 is not there: no CUDA device is visible.*--nv"):
        resolve_device("cuda:1")
    assert "--nv" in str(resolve_device("auto").warning)
