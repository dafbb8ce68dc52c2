from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_scseg import errors
from bids_scseg.errors import (
    DataError,
    ImageError,
    MissingToolError,
    ScsegError,
    SessionError,
)
from bids_scseg.inference import client
from bids_scseg.inference.bundle import save_bundle
from bids_scseg.inference.client import (
    InferenceServer,
    KilledAtStartError,
    request,
    request_cord,
    request_segmentation,
    short_folder,
)
from bids_scseg.inference.device import Device
from bids_scseg.inference.protocol import error_from_json, error_to_json
from bids_scseg.inference.server import (
    LOST_GPU,
    GpuLostError,
    Worker,
    listen,
    peak_memory_gb,
    remove_socket,
)
from bids_scseg.network.build import build_network
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.recipe.load import load_recipe


def bundle(folder: Path, name: str) -> Path:
    """A bundle with a small random network."""
    recipe = load_recipe(name)
    strides = ((1, 1, 1), (2, 2, 2), (1, 1, 2))
    recipe = replace(
        recipe,
        network=replace(recipe.network, channels=(3, 4, 5), strides=strides),
        inference=replace(recipe.inference, patch_vox=(8, 8, 16)),
    )
    torch.manual_seed(2)
    weights = {key: value.numpy() for key, value in build_network(recipe.network).state_dict().items()}
    return save_bundle(folder / name, weights, recipe=recipe, threshold=0.5, provenance={}, card=name).path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: bundle(folder, name) for name in ("cord-lesion", "cord-finder")}


@pytest.fixture(scope="module")
def server() -> Iterator[InferenceServer]:
    with InferenceServer("cpu", threads=1) as running:
        yield running


def prepared(folder: Path) -> Path:
    names = load_recipe("cord-lesion").sequence_names
    available = (True, False, False, False, True, False)
    coverage = np.zeros((6, 8, 8, 20), bool)
    coverage[list(available)] = True
    image = np.where(coverage, np.random.default_rng(0).standard_normal(coverage.shape), 0).astype(np.float32)
    PreparedCase(image=image, coverage=coverage, available=available, sequences=names).save(folder)
    return folder


def picture(path: Path) -> Path:
    data = np.random.default_rng(0).random((16, 16, 20)).astype(np.float32)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


# -- in this process -----------------------------------------------------------------------------------------


def worker() -> Worker:
    return Worker(device=Device(name="cpu", description="CPU"))


def test_weights_are_loaded_once_until_they_change(tmp_path: Path, models: dict[str, Path]) -> None:
    serving = worker()
    message = {
        "task": "segment",
        "bundle": str(models["cord-lesion"]),
        "case": str(prepared(tmp_path / "case")),
    }
    for number in range(2):
        assert serving.serve({**message, "output": str(tmp_path / f"{number}.npy")})["ok"] is True
    assert serving.loads == 1
    os.utime(models["cord-lesion"] / "weights.safetensors")
    assert serving.serve({**message, "output": str(tmp_path / "2.npy")})["ok"] is True
    assert serving.loads == 2


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({}, "DataError"),
        ({"task": "dance"}, "DataError"),
        ({"task": "segment", "bundle": "x"}, "DataError"),
        ({"task": "cord", "image": "/absent.nii.gz", "output": "/x", "bundle": "x"}, "MissingInputError"),
        ({"task": "segment", "case": "/absent", "bundle": "x", "output": "/x"}, "MissingInputError"),
    ],
)
def test_errors_become_answers(message: dict[str, str], kind: str) -> None:
    answer = worker().serve(message)
    assert answer["ok"] is False
    error = answer["error"]
    assert isinstance(error, dict) and error["class"] == kind


def test_unforeseen_errors_become_answers_too(tmp_path: Path, models: dict[str, Path]) -> None:
    case = prepared(tmp_path / "case")
    (case / "image.npy").write_bytes(b"nonsense")
    answer = worker().serve(
        {
            "task": "segment",
            "case": str(case),
            "bundle": str(models["cord-lesion"]),
            "output": str(tmp_path / "p.npy"),
        }
    )
    assert answer["ok"] is False
    assert not (tmp_path / "p.npy").exists()


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
            "of the GPU's memory",
            "cpu",
        ),
        (RuntimeError("CUDA error: out of memory"), "of the GPU's memory", "--device cpu"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "of the GPU's memory", "--device cpu"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
            "out of memory",
            "give the run more",
        ),
        (MemoryError(), "out of memory", "give the run more"),
        (RuntimeError("shapes differ"), "inference failed (RuntimeError: shapes differ) at ", "report it"),
    ],
)
def test_what_a_library_raises_is_told_without_a_log(
    error: Exception, words: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(Worker, "_task", lambda *_: fail)
    found = worker().serve({"task": "segment"})["error"]
    assert isinstance(found, dict)
    assert words in found["found"] and remedy in found["remedy"]
    assert "log" not in found["remedy"]


ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ILLEGAL),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("HIP error: unspecified launch failure"),
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure"),
    ],
)
def test_after_an_error_of_cuda_itself_nothing_is_answered(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(Worker, "_task", lambda *_: fail)
    with pytest.raises(GpuLostError, match=r"^\w+ error: [a-zA-Z ]+$"):
        worker().serve({"task": "segment"})


@pytest.mark.parametrize(
    "kind",
    [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ScsegError)],
)
def test_errors_survive_the_way(kind: type[ScsegError]) -> None:
    error = kind("found", file="f", expected="e", remedy="r")
    again = error_from_json(error_to_json(error))
    assert type(again) is kind
    assert str(again) == str(error)


def test_unknown_error_classes_become_the_root() -> None:
    assert type(error_from_json({"class": "annotations", "found": "x"})) is ScsegError


@pytest.mark.parametrize(("at", "value"), [(70, 9999), (40, 9), (42, -5)], ids=["type", "order", "size"])
def test_a_header_that_makes_no_sense_is_an_answer_and_not_the_end_of_the_process(
    tmp_path: Path, models: dict[str, Path], at: int, value: int
) -> None:
    content = bytearray(gzip.decompress(picture(tmp_path / "i.nii.gz").read_bytes()))
    content[at : at + 2] = value.to_bytes(2, "little", signed=True)
    (tmp_path / "i.nii.gz").write_bytes(gzip.compress(bytes(content)))
    paths = {"bundle": str(models["cord-finder"]), "image": str(tmp_path / "i.nii.gz")}
    answer = worker().serve({"task": "cord", "output": str(tmp_path / "o.npy"), **paths})
    error = answer["error"]
    assert isinstance(error, dict)
    assert isinstance(error_from_json(error), ImageError)


def test_the_same_values_give_the_same_bytes(tmp_path: Path, models: dict[str, Path]) -> None:
    message = {
        "task": "cord",
        "bundle": str(models["cord-finder"]),
        "image": str(picture(tmp_path / "i.nii.gz")),
    }
    for name in ("a.nii.gz", "b.nii.gz"):
        assert worker().serve({**message, "output": str(tmp_path / name)})["ok"] is True
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[4:8] == bytes(4)  # no time stamp


def test_peak_memory_is_plausible() -> None:
    assert 0.01 < peak_memory_gb() < 1000


# -- the process ---------------------------------------------------------------------------------------------


def test_a_case_is_segmented(server: InferenceServer, tmp_path: Path, models: dict[str, Path]) -> None:
    output = tmp_path / "p.npy"
    reply = request_segmentation(
        server.address, bundle=models["cord-lesion"], case=prepared(tmp_path / "case"), output=output
    )
    found = np.load(output, allow_pickle=False)
    assert (found.shape, found.dtype) == ((8, 8, 20), np.float32)
    assert reply.seconds > 0 and reply.peak_memory_gb > 0
    assert reply.device == server.description == "CPU (1 threads)"
    assert server.device == "cpu" and server.warning is None


def test_a_cord_is_found(server: InferenceServer, tmp_path: Path, models: dict[str, Path]) -> None:
    image, output = picture(tmp_path / "i.nii.gz"), tmp_path / "o.nii.gz"
    request_cord(server.address, bundle=models["cord-finder"], image=image, output=output)
    found, source = nib.load(output), nib.load(image)
    assert found.shape == source.shape
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, source.affine)


def test_errors_come_back_as_the_same_class(
    server: InferenceServer, tmp_path: Path, models: dict[str, Path]
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nonsense")
    with pytest.raises(ImageError) as caught:
        request_cord(server.address, bundle=models["cord-finder"], image=bad, output=tmp_path / "o.nii.gz")
    assert caught.value.file == str(bad)
    with pytest.raises(DataError, match="unknown task"):
        request(server.address, task="dance")


def test_clients_that_misbehave_do_no_harm(server: InferenceServer) -> None:
    for content in (b"", b"{half", b"not json\n", b"[1]\n", b"\xff\xfe\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(server.address)
            connection.sendall(content)
    assert request(server.address, task="ping").device


def test_concurrent_clients_are_all_served(
    server: InferenceServer, tmp_path: Path, models: dict[str, Path]
) -> None:
    case = prepared(tmp_path / "case")
    outputs = [tmp_path / f"{number}.npy" for number in range(4)]
    threads = [
        threading.Thread(
            target=request_segmentation,
            args=(server.address,),
            kwargs={"bundle": models["cord-lesion"], "case": case, "output": output},
        )
        for output in outputs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *others = [np.load(output, allow_pickle=False) for output in outputs]
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_the_socket_is_private(server: InferenceServer) -> None:
    assert Path(server.address).parent.stat().st_mode & 0o777 == 0o700
    assert len(server.address) < 100


def test_a_killed_process_comes_back_and_leaves_nothing_behind() -> None:
    with InferenceServer("cpu", threads=1) as running:
        address, first = running.address, running.pid
        os.kill(first, signal.SIGKILL)
        assert request(address, task="ping").device  # waits for the restart
        assert running.restarts == 1
        second = running.pid
        assert second != first
    assert not Path(address).parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    with pytest.raises(SessionError, match="cannot be reached"):
        request(address, task="ping")


def test_a_request_over_which_the_process_was_killed_is_asked_once_more(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    with InferenceServer("cpu", threads=1) as running:
        os.kill(running.pid, signal.SIGSTOP)  # so that the request is under way
        answers: list[object] = []
        output = tmp_path / "o.npy"
        asked = {"bundle": models["cord-finder"], "image": picture(tmp_path / "i.nii.gz"), "output": output}
        thread = threading.Thread(target=lambda: answers.append(request_cord(running.address, **asked)))
        thread.start()
        time.sleep(0.3)
        os.kill(running.pid, signal.SIGKILL)
        thread.join(120)
        assert len(answers) == 1 and output.is_file()


def test_a_request_that_kills_the_process_twice_fails(tmp_path: Path) -> None:
    """A stand-in that takes each request and goes away without an answer."""
    address, seen = str(short_folder() / "s"), []

    def deadly(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(4096))
                connection.sendall(b'{"accepted": true}\n')

    Path(address).with_name("log").write_text("loading\nCUDA error: device lost\n\n")
    with listen(address) as listener:
        thread = threading.Thread(target=deadly, args=(listener,))
        thread.start()
        words = r"ended twice during 'cord' \(its log ends with: CUDA error: device lost\)"
        with pytest.raises(SessionError, match=words):
            request(address, task="cord", image=tmp_path / "i.nii.gz")
        thread.join()
    assert len(seen) == 2
    remove_socket(address)
    assert not Path(address).parent.exists()


#: The process, whose GPU fails whenever it segments, and once as it looks for a cord.
WITH_A_BROKEN_GPU = f"""
import sys
from pathlib import Path
from bids_scseg.inference import server

def task(worker, name):
    return run if name in ("segment", "cord") else lambda _: None

def run(message):
    if message["task"] == "segment" or not Path(message["output"]).exists():
        Path(message["output"]).touch()
        raise RuntimeError({ILLEGAL!r})

server.Worker._task = task
sys.exit(server.main())
"""


def test_a_process_that_lost_its_gpu_makes_way_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], subprocess.Popen

    def popen(arguments: list[str], **options: object) -> subprocess.Popen[bytes]:
        own = arguments[arguments.index("--socket") :]
        started.append(start([sys.executable, "-P", "-c", WITH_A_BROKEN_GPU, *own], **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(client.subprocess, "Popen", popen)
    with InferenceServer("cpu", threads=1) as running:
        # Paths need only be absolute: the stand-in writes there that it was asked.
        assert request(running.address, task="cord", output=tmp_path / "cord").device  # asked once more
        assert running.restarts == 1
        words = (
            r"ended twice during 'segment' \(its log ends with: .*: CUDA error: an illegal memory access was"
        )
        with pytest.raises(SessionError, match=words):
            request(running.address, task="segment", output=tmp_path / "lesions")
        assert request(running.address, task="ping").device  # others are served
    assert [process.returncode for process in started[:-1]] == [LOST_GPU] * 3


def test_an_absent_device_fails_at_the_start() -> None:
    with pytest.raises(MissingToolError, match="cuda:99"), InferenceServer("cuda:99"):
        pass


READY = """echo '{"ok": true, "device": "cpu", "description": "CPU", "warning": null, "visible": 0}'; cat"""
KILLED, BROKEN = "kill -KILL $$", "exit 3"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let shell scripts stand for the process, one for each start; those that are still to come."""

    def arrange(*scripts: str) -> list[str]:
        left, start = list(scripts), subprocess.Popen

        def popen(_: object, **options: object) -> subprocess.Popen[bytes]:
            return start(["sh", "-c", left.pop(0)], **options)  # type: ignore[call-overload]

        monkeypatch.setattr(client.subprocess, "Popen", popen)
        return left

    return arrange


def test_a_process_that_is_killed_as_it_starts_is_started_once_more(
    scripted: Callable[..., list[str]],
) -> None:
    left = scripted(KILLED, READY)
    with InferenceServer("cpu") as server:
        assert (server.description, left) == ("CPU", [])


def test_one_that_is_killed_twice_is_an_error_about_memory(scripted: Callable[..., list[str]]) -> None:
    left = scripted(KILLED, KILLED, READY)
    server = InferenceServer("cpu")
    with pytest.raises(KilledAtStartError, match=r"killed as it started \(signal 9\)\. Free memory"), server:
        pass
    assert left == [READY]
    assert not Path(server.address).parent.exists()


def test_one_that_ends_by_itself_is_not_started_again(scripted: Callable[..., list[str]]) -> None:
    left = scripted(BROKEN, READY)
    with pytest.raises(MissingToolError, match=r"did not start \(exit status 3\)"), InferenceServer("cpu"):
        pass
    assert left == [READY]


def test_a_process_that_is_started_again_as_the_run_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, start = threading.Event(), threading.Event(), subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def popen(_: object, **options: object) -> subprocess.Popen[bytes]:
        if started:  # the end of the run comes before there is a process that it could stop
            begun.set()
            go.wait(20)
        started.append(start(["sh", "-c", READY], **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(client.subprocess, "Popen", popen)
    server = InferenceServer("cpu")
    server.__enter__()
    os.kill(server.pid, signal.SIGKILL)
    assert begun.wait(20)
    ending = threading.Thread(target=server.__exit__, args=(None, None, None), daemon=True)
    ending.start()
    time.sleep(0.3)
    assert ending.is_alive()
    go.set()
    ending.join(15)
    assert not ending.is_alive()
    assert len(started) == 2 and started[1].poll() is not None
    assert not Path(server.address).parent.exists()


def test_a_long_temporary_folder_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = short_folder()
    assert len(str(folder)) < 100
    folder.rmdir()


def test_the_process_ends_with_its_input() -> None:
    with InferenceServer("cpu", threads=1) as running:
        process = running._process
        assert process is not None and process.stdin is not None
        running._closing.set()
        process.stdin.close()
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() == 0
