"""What client and server of the inference process say to each other: JSON lines, no pickles.

The client sends one request. The server answers ``{"accepted": true}`` when its turn has come, and the
result when it is done: a client that loses the connection before its turn may ask again.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO

from bids_scseg import errors
from bids_scseg.errors import ScsegError

LOG_FILE = "log"  # of the process, beside its socket
MAX_LINE = 1_000_000  # bytes; messages hold paths and numbers only


class ConnectionEnded(Exception):
    """The other side closed the connection before a whole line had come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a finished request cost.

    Attributes
    ----------
    seconds
        Wall-clock time of the request, loading of weights included, waiting not.
    peak_memory_gb
        Largest resident memory of the process during the request, or GPU memory on a GPU; GB of 1e9 bytes.
    device
        Where it ran.
    """

    seconds: float
    peak_memory_gb: float
    device: str


def error_to_json(error: ScsegError) -> dict[str, object]:
    """An error's class and parts."""
    parts = {"found": error.found, "file": error.file, "expected": error.expected, "remedy": error.remedy}
    return {"class": type(error).__name__, **parts}


def error_from_json(data: Mapping[str, object]) -> ScsegError:
    """The same error again; an unknown class becomes :class:`ScsegError`."""
    kind = getattr(errors, str(data.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, ScsegError)):
        kind = ScsegError
    parts = {key: None if data.get(key) is None else str(data[key]) for key in ("expected", "remedy")}
    return kind(
        str(data.get("found")), file=data.get("file"), expected=parts["expected"], remedy=parts["remedy"]
    )


ACCEPTED: dict[str, object] = {"accepted": True}


def success(reply: Reply) -> dict[str, object]:
    """Message of a finished request."""
    return {"ok": True, **asdict(reply)}


def failure(error: ScsegError) -> dict[str, object]:
    """Message of a failed request."""
    return {"ok": False, "error": error_to_json(error)}


def send(connection: socket.socket, message: Mapping[str, object]) -> None:
    """Send one message."""
    connection.sendall(encode(message))


def encode(message: Mapping[str, object]) -> bytes:
    """One message as a line."""
    return json.dumps(message).encode() + b"\n"


def receive(stream: BinaryIO) -> dict[str, object]:
    """Receive one message.

    Raises
    ------
    ConnectionEnded
        If the other side closes before a whole line has come.
    ValueError
        If the line is too long or no JSON object.
    """
    line = stream.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        if len(line) >= MAX_LINE:
            raise ValueError("message too long")
        raise ConnectionEnded
    return decode(line)


def decode(line: bytes) -> dict[str, object]:
    """Message of a line; ValueError if it is no JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("message is no object")
    return message
