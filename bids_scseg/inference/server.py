"""The inference process: loads each model once and serves every session of a run, one request at a time.

Run as ``python -m bids_scseg.inference.server --socket PATH --device cpu --threads N``; the module
:mod:`bids_scseg.inference.client` does so. It ends on a ``shutdown`` request, at the end of its standard
input, and when its parent dies.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import re
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, ImageError, OutputError, ScsegError, SessionError
from bids_scseg.files import write_atomically
from bids_scseg.inference.bundle import MODEL_FILE, WEIGHTS_FILE, ModelBundle, find_bundle, load_bundle
from bids_scseg.inference.device import Device, resolve_device
from bids_scseg.inference.protocol import (
    ACCEPTED,
    LOG_FILE,
    ConnectionEnded,
    Reply,
    encode,
    failure,
    receive,
    send,
    success,
)
from bids_scseg.space.nifti import read_image

LOG = logging.getLogger(__name__)

BACKLOG = 1024  # waiting clients
REQUEST_SECONDS = 30.0  # within which a client that connected must have sent its line
WATCH_SECONDS = 1.0  # between looks at standard input and parent
GZIP_LEVEL = 1  # of files in the work folder
#: How torch, its allocators and CUDA's libraries say it.
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE
)
ON_GPU = re.compile(r"CUDA|CUDNN|CUBLAS", re.IGNORECASE)
#: How torch begins what CUDA (or AMD's HIP) reports; newer versions have a class of their own for it.
GPU_ERROR = re.compile(r"(CUDA|HIP) error")
LOST_GPU = 70  # exit status of a process that cannot use its GPU any more (EX_SOFTWARE)
UNEXPECTED = (OSError, ValueError, RuntimeError, MemoryError, LookupError, TypeError, ArithmeticError)

Message = Mapping[str, object]
Stamp = tuple[int, ...]


class GpuLostError(Exception):
    """CUDA reported an error after which, mostly, nothing in this process works on the GPU any more."""


@dataclass(slots=True)
class _Loaded:
    bundle: ModelBundle
    network: Any
    stamp: Stamp


@dataclass(slots=True)
class Worker:
    """Carries out requests, keeping the networks it has loaded.

    Attributes
    ----------
    device
        Where it computes.
    loads
        How many times weights were loaded.
    """

    device: Device
    loads: int = 0
    _models: dict[Path, _Loaded] = field(default_factory=dict)

    def serve(self, message: Message) -> dict[str, object]:
        """Carry out one request; the answer to send. Errors become answers.

        Raises
        ------
        GpuLostError
            If the GPU failed: every later request would, so this process ends, and the client starts another.
        """
        start = time.monotonic()
        try:
            self._reset_peak()
            self._task(_text(message, "task"))(message)
        except ScsegError as error:
            return failure(error)
        except UNEXPECTED as error:
            LOG.exception("request failed")
            if _is_gpu_lost(error):
                words = str(error).partition("\n")[0]
                LOG.error("the inference process gives up: %s", words)  # the end of its log, for the client
                raise GpuLostError(words) from error
            return failure(_unexpected(error))
        reply = Reply(
            seconds=time.monotonic() - start, peak_memory_gb=self._peak_gb(), device=self.device.description
        )
        return success(reply)

    def _task(self, name: str) -> Callable[[Message], None]:
        tasks: dict[str, Callable[[Message], None]] = {
            "segment": self._segment,
            "cord": self._cord,
            "ping": lambda _: None,
        }
        if name not in tasks:
            raise DataError(f"unknown task {name!r}", expected=f"one of {sorted(tasks)}")
        return tasks[name]

    def _segment(self, message: Message) -> None:
        from bids_scseg.inference.predict import predict_case
        from bids_scseg.preprocess.case import PreparedCase

        case = PreparedCase.load(Path(_text(message, "case")))
        model = self._model(_text(message, "bundle"))
        probability = predict_case(
            model.network,
            model.bundle,
            image=case.image,
            coverage=case.coverage,
            available=case.available,
            sequences=case.sequences,
            device=self.device.name,
        )
        write_atomically(Path(_text(message, "output")), _array(probability))

    def _cord(self, message: Message) -> None:
        from bids_scseg.inference.predict import find_cord

        source, output = Path(_text(message, "image")), Path(_text(message, "output"))
        data, grid = read_image(source)
        model = self._model(_text(message, "bundle"))
        try:
            found = find_cord(
                model.network, model.bundle, image=data, affine=grid.affine, device=self.device.name
            )
        except ImageError as error:
            raise type(error)(
                error.found, file=source, expected=error.expected, remedy=error.remedy
            ) from error
        write_atomically(output, _array(found) if output.suffix == ".npy" else _volume(found, grid.affine))

    def _model(self, name: str) -> _Loaded:
        from bids_scseg.inference.predict import load_network

        folder = find_bundle(name)
        stamp = _stamp(folder)
        model = self._models.get(folder)
        if model is None or model.stamp != stamp:
            bundle = load_bundle(folder)
            model = _Loaded(bundle=bundle, network=load_network(bundle, self.device.name), stamp=stamp)
            self._models[folder] = model
            self.loads += 1
        return model

    def _reset_peak(self) -> None:
        if self.device.name != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device.name)
        # Linux: 5 resets the high-water mark of resident memory
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_gb(self) -> float:
        if self.device.name != "cpu":
            import torch

            return float(torch.cuda.max_memory_allocated(self.device.name)) / 1e9
        return peak_memory_gb()


def peak_memory_gb() -> float:
    """Largest resident memory of this process since the last reset, GB of 1e9 bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _is_gpu_lost(error: BaseException) -> bool:
    """Whether an error is one of CUDA's own (illegal access, failed launch, ECC), and not want of memory."""
    import torch

    own = isinstance(error, getattr(torch, "AcceleratorError", ())) or (
        isinstance(error, RuntimeError) and GPU_ERROR.match(str(error)) is not None
    )
    return own and not OUT_OF_MEMORY.search(str(error))


def _unexpected(error: BaseException) -> ScsegError:
    """An error that is none of ours, with the place where it arose: the log goes with the run."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if OUT_OF_MEMORY.search(text) or isinstance(error, MemoryError):
        if ON_GPU.search(text):
            return SessionError(
                f"inference ran out of the GPU's memory ({text})",
                remedy="end other programs on it, take a larger one, or use --device cpu",
            )
        return SessionError("inference ran out of memory", remedy="give the run more memory")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "bids_scseg" in Path(frame.filename).parts] or frames
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return SessionError(
        f"inference failed ({text}){place}", remedy="run again; if it fails again, please report it"
    )


def _text(message: Message, key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"request without {key}", expected="a text")
    return value


def _stamp(folder: Path) -> Stamp:
    """Changes when a bundle's files change."""
    try:
        stats = [(folder / name).stat() for name in (MODEL_FILE, WEIGHTS_FILE)]
    except FileNotFoundError:
        return ()
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size, stat.st_ino))


def _array(data: npt.NDArray[Any]) -> Callable[[BinaryIO], object]:
    return lambda stream: np.save(stream, data, allow_pickle=False)


def _volume(data: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Callable[[BinaryIO], object]:
    """Writes a gzipped image without a time stamp: the same values, the same bytes."""
    import nibabel as nib

    image: Any = nib.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    return lambda stream: stream.write(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))


# -- the process -----------------------------------------------------------------------------------


def listen(address: str) -> socket.socket:
    """A listening socket; an earlier one of that name is replaced.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(address).unlink(missing_ok=True)
        listener.bind(address)
        Path(address).chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OutputError(
            f"cannot listen: {error}", file=address, expected="a short path in a writable folder"
        ) from error
    return listener


def serve_forever(listener: socket.socket, worker: Worker) -> None:
    """Answer one client after another until one asks for ``shutdown``."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(REQUEST_SECONDS)
            # a client that goes away has no use for its answer
            with suppress(ConnectionEnded, OSError):
                if not _answer(connection, worker):
                    return


def _answer(connection: socket.socket, worker: Worker) -> bool:
    """Serve one client; whether to go on."""
    with connection.makefile("rb") as stream:
        try:
            message = receive(stream)
        except ValueError as error:
            message = {"task": f"malformed ({error})"}
    send(connection, ACCEPTED)
    ends = message.get("task") == "shutdown"
    send(connection, {"ok": True} if ends else worker.serve(message))
    return not ends


def watch_parent(address: str) -> None:
    """End this process, whatever it is doing, when standard input ends or the parent changes."""
    parent = os.getppid()
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], WATCH_SECONDS)
        if readable and not os.read(0, 4096):
            break
    remove_socket(address)
    os._exit(0)


def remove_socket(address: str) -> None:
    """Remove the socket and the private folder around it, as a run that was killed can no longer do it."""
    path = Path(address)
    for file in (path, path.with_name(LOG_FILE)):
        with suppress(OSError):
            file.unlink()
    with suppress(OSError):
        path.parent.rmdir()  # does so only if it is empty


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; the exit status."""
    parser = argparse.ArgumentParser(prog="bids_scseg.inference.server", description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    threading.Thread(target=watch_parent, args=(options.socket,), daemon=True).start()
    try:
        device = _start(options.device, threads=options.threads, deterministic=options.deterministic)
        listener = listen(options.socket)
    except ScsegError as error:
        os.write(1, encode(failure(error)))
        return error.exit_code
    _announce({"ok": True, "device": device.name, **asdict(device)})
    with listener:
        try:
            serve_forever(listener, Worker(device=device))
        except GpuLostError:
            os._exit(LOST_GPU)  # at once: whatever tidies up would ask the GPU and may hang
    Path(options.socket).unlink(missing_ok=True)
    return 0


def _start(token: str, *, threads: int, deterministic: bool) -> Device:
    import torch

    if threads > 0:
        torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return resolve_device(token)


def _announce(message: Message) -> None:
    """Say on standard output that the process is ready; what libraries print later goes to standard error."""
    os.write(1, encode(message))
    os.dup2(2, 1)


if __name__ == "__main__":
    sys.exit(main())
