"""Starting the inference process and asking it (no torch in this module, so no torch in its users)."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bids_scseg.errors import MissingToolError, OutputError, ScsegError, SessionError
from bids_scseg.inference.protocol import (
    LOG_FILE,
    ConnectionEnded,
    Reply,
    decode,
    error_from_json,
    receive,
    send,
)

MAX_ADDRESS = 100  # bytes; the system's limit for AF_UNIX is 107
START_SECONDS = 900.0  # importing torch from a slow shared disk, or on a crowded machine, takes minutes
RESTART_SECONDS = START_SECONDS + 60.0  # that a client waits for a process that was killed to come back
MAX_TURNS = 20  # times that a request loses its place because the process died over another (ours)
STOP_SECONDS = 5.0
ENDED = (ConnectionEnded, OSError, ValueError)


def request_segmentation(address: str, *, bundle: Path, case: Path, output: Path) -> Reply:
    """Segment a prepared case.

    Parameters
    ----------
    address
        Socket of the inference process.
    bundle
        Model bundle's folder.
    case
        Folder of the prepared case.
    output
        ``.npy`` to write: (i, j, k) float32 probability in prepared space.

    Raises
    ------
    ScsegError
        Of the class that the inference process raised.
    SessionError
        If the process died over this request twice, or cannot be reached.
    """
    return request(address, task="segment", bundle=bundle, case=case, output=output)


def request_cord(address: str, *, bundle: Path, image: Path, output: Path) -> Reply:
    """Find the cord in an image.

    Parameters
    ----------
    address
        Socket of the inference process.
    bundle
        Cord finder's folder.
    image
        NIfTI file.
    output
        ``.nii.gz``, ``.nii`` or ``.npy`` to write: float32 probability on the image's grid.

    Raises
    ------
    As :func:`request_segmentation`.
    """
    return request(address, task="cord", bundle=bundle, image=image, output=output)


def request(address: str, *, task: str, **paths: Path) -> Reply:
    """Send one request and wait for the answer; the process serves one request at a time.

    Parameters
    ----------
    address
        Socket of the inference process.
    task
        ``segment``, ``cord`` or ``ping``.
    paths
        Files and folders of the task.

    Raises
    ------
    As :func:`request_segmentation`.
    """
    message = {"task": task, **{key: str(path.absolute()) for key, path in paths.items()}}
    died = False
    for _ in range(MAX_TURNS):
        with _connect(address) as connection, connection.makefile("rb") as stream:
            try:
                send(connection, message)
                receive(stream)  # our turn has come
            except ENDED:
                continue  # the process died over another request: ask the next one
            try:
                return _reply(receive(stream))
            except ENDED as error:
                if died:
                    raise _fatal(task, address) from error
                died = True  # killed by chance, or by this request: asked once more, it tells
    raise SessionError(
        f"the inference process died before {task!r} began{_last_words(address)}", remedy="run again"
    )


def _fatal(task: str, address: str) -> SessionError:
    return SessionError(
        f"the inference process ended twice during {task!r}{_last_words(address)}",
        expected="an answer",
        remedy="if it was killed for want of memory, give the run more; after a CUDA error, try another GPU, "
        "or --device cpu",
    )


def _last_words(address: str) -> str:
    """How the log of the process behind a socket ends; it goes with the run, so messages hold it."""
    words = _tail(Path(address).with_name(LOG_FILE))
    return f" (its log ends with: {words})" if words else ""


def _reply(answer: dict[str, object]) -> Reply:
    if answer.get("ok") is not True:
        error = answer.get("error")
        raise error_from_json(error if isinstance(error, dict) else {"found": "malformed answer"})
    return Reply(
        seconds=float(str(answer["seconds"])),
        peak_memory_gb=float(str(answer["peak_memory_gb"])),
        device=str(answer["device"]),
    )


def _connect(address: str) -> socket.socket:
    """Connect, waiting for a process that is being restarted."""
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            # the folder goes with the run; without it there is nothing to wait for
            if time.monotonic() > deadline or not Path(address).parent.is_dir():
                raise SessionError(
                    f"the inference process cannot be reached ({error.strerror}){_last_words(address)}",
                    file=address,
                    remedy="run again",
                ) from error
            time.sleep(0.2)
        else:
            return connection


class KilledAtStartError(ScsegError):
    """The inference process was killed before it was ready."""


class InferenceServer:
    """The inference process of a run, as a context manager.

    One that is killed (for want of memory, say) is started again, as long as it starts; the request over
    which it died is asked once more.

    Parameters
    ----------
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    threads
        Threads of the network; 0 leaves the choice to torch.
    log
        File that its messages are appended to; None: a file that is removed at the end.
    deterministic
        Whether it keeps to algorithms that give the same bits each time.

    Attributes
    ----------
    address
        Socket for :func:`request_segmentation` and :func:`request_cord`; valid inside the context.
    device
        ``cpu`` or ``cuda:N`` as chosen; valid inside the context.
    description
        The same for people.
    warning
        What to tell the user about that choice, or None.
    visible
        Number of CUDA devices that it sees.

    Raises
    ------
    MissingToolError
        On entry, if the device is absent or the process cannot start.
    UsageError
        On entry, if the device is malformed.
    """

    def __init__(
        self, device: str = "auto", *, threads: int = 0, log: Path | None = None, deterministic: bool = False
    ) -> None:
        self.device = device
        self.visible = 0
        self._deterministic = deterministic
        self.description = ""
        self.warning: str | None = None
        self.address = ""
        self.restarts = 0
        self._token = device
        self._threads = threads
        self._log = log
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> InferenceServer:
        self._closing.clear()
        self._folder = short_folder()
        self.address = str(self._folder / "s")
        try:
            self._launch_patiently()
        except BaseException:
            self._clean()
            raise
        self._watch = threading.Thread(target=self._restart_when_killed, daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._stop()
        if self._watch is not None:
            self._watch.join()
        self._stop()  # one that was started again in between
        self._clean()

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid if self._process is not None else 0

    def _launch_patiently(self) -> None:
        """Start it, once more if it is killed as it starts: as with what it is asked later."""
        try:
            self._launch()
        except KilledAtStartError:
            if self._closing.is_set():
                raise
            self._launch()

    def _launch(self) -> None:
        log = self._log_file()
        arguments = ["--socket", self.address, "--device", self._token, "--threads", str(self._threads)]
        arguments += ["--deterministic"] * self._deterministic
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bids_scseg.inference.server", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=self._environment(),
            )
        try:
            # __exit__ sets it, then stops the process that it finds: either this one, or it is set by now.
            if self._closing.is_set():
                raise KilledAtStartError("the run ended as the inference process started")
            self._greet(self._process, log)
        except BaseException:
            self._stop()
            raise

    def _greet(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Read whether the process is ready."""
        line = _first_line(process)
        if not line:
            status = _status(process)
            if status is not None and status < 0:
                raise KilledAtStartError(
                    f"the inference process was killed as it started (signal {-status})",
                    remedy="free memory, lower --nprocs, or run on a larger machine",
                )
            raise MissingToolError(
                f"the inference process did not start (exit status {status}): {_tail(log) or 'no message'}",
                expected="a working torch",
                remedy="check the installation: python -c 'import torch'",
            )
        message = decode(line)
        if message.get("ok") is not True:
            error = message.get("error")
            raise error_from_json(error if isinstance(error, dict) else {"found": "malformed greeting"})
        self.device, self.description = str(message["device"]), str(message["description"])
        warning = message.get("warning")
        self.warning = None if warning is None else str(warning)
        self.visible = int(str(message.get("visible", 0)))

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self._folder is not None:  # where torch would make one of its own, and leave it behind
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(self._folder)
        if self._threads > 0:
            environment |= {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if self._deterministic:
            environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch asks for it
        return environment

    def _log_file(self) -> Path:
        if self._log is not None:
            return self._log
        if self._folder is None:
            raise OutputError("the inference process has no folder", expected="use inside the context")
        return self._folder / LOG_FILE

    def _restart_when_killed(self) -> None:
        while self._process is not None:
            self._process.wait()
            if self._closing.is_set():
                return
            self.restarts += 1
            _close_pipes(self._process)
            try:
                self._launch_patiently()
            except (ScsegError, OSError, ValueError):
                self._clean()  # without the folder nobody waits for it
                return

    def _stop(self) -> None:
        """End the process: by closing its input, then by force."""
        process = self._process
        if process is None:
            return
        _close_pipes(process)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _clean(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """First line of a process's output; empty if it ends or takes too long."""
    if process.stdout is None:
        return b""
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    return process.stdout.readline() if readable else b""


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Exit status of a process that has ended or is about to; None if it goes on."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(STOP_SECONDS)
    return None


def _tail(log: Path) -> str:
    """Last line of a log that says something; empty if none does."""
    lines: list[str] = []
    with suppress(OSError):  # it may go at any moment
        lines = log.read_text("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _temporary_folders() -> tuple[str, ...]:
    """Where a socket may lie; every guess may fail for a user without home on a read-only system."""
    found = ["/tmp", "/dev/shm", os.path.expanduser("~")]  # noqa: S108, PTH111 - Path.home() may raise
    with suppress(OSError):
        found.insert(0, tempfile.gettempdir())
    return tuple(found)


def short_folder() -> Path:
    """A new private folder (mode 0700) whose path is short enough for a socket in it.

    Raises
    ------
    OutputError
        If there is none.
    """
    for parent in _temporary_folders():
        if len(os.fsencode(parent)) > MAX_ADDRESS - 20:
            continue
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="scseg-", dir=parent))
    raise OutputError(
        "no folder for the inference process's socket",
        expected=f"a writable temporary folder with a path under {MAX_ADDRESS - 20} bytes",
        remedy="set TMPDIR to one, or add --tmpfs /tmp to a container with a read-only root",
    )
