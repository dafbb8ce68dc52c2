"""What is said where a GPU is missing or cannot compute."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there are GPUs, some of them broken."""

    def pretend(count: int, *, broken: tuple[int, ...]) -> None:
        def ones(*_: object, device: str) -> torch.Tensor:
            if int(device.removeprefix("cuda:")) in broken:
                raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with")
            return torch.zeros(1)

        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_auto_takes_the_first_gpu_that_works_and_says_which(gpus: Callable[..., None]) -> None:
    gpus(3, broken=(0,))
    device = resolve_device("auto")
    assert (device.name, device.description, device.visible) == ("cuda:1", "cuda:1 (card 1)", 3)
    warning = str(device.warning)
    assert warning.startswith("inference runs on cuda:1 (card 1) without cuda:0 (the GPU card 0 ")
    assert "uncorrectable ECC error encountered" in warning and "\n" not in warning


def test_auto_says_nothing_where_the_first_gpu_works(gpus: Callable[..., None]) -> None:
    gpus(2, broken=(1,))
    assert (resolve_device("auto").name, resolve_device("auto").warning) == ("cuda:0", None)


def test_auto_is_the_cpu_where_no_gpu_works_and_names_them_all(gpus: Callable[..., None]) -> None:
    gpus(2, broken=(0, 1))
    device = resolve_device("auto")
    assert device.name == "cpu"
    warning = str(device.warning)
    assert "card 0" in warning and "card 1" in warning
    assert warning.endswith(": inference runs on the CPU")


@pytest.mark.parametrize("choice", ["cuda", "cuda:0"])
def test_a_broken_gpu_that_was_asked_for_is_replaced_by_no_other(
    gpus: Callable[..., None], choice: str
) -> None:
    gpus(2, broken=(0,))
    with pytest.raises(MissingToolError, match="card 0"):
        resolve_device(choice)


def test_an_absent_gpu_is_told_with_the_container_s_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("APPTAINER_CONTAINER", "/image.sif")
    with pytest.raises(MissingToolError, match=r"cuda:1 is not there: no CUDA device is visible.*--nv"):
        resolve_device("cuda:1")
    assert "--nv" in str(resolve_device("auto").warning)
