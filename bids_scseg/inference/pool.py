"""The inference processes of a run: one for each device, so that several are used and none twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType

from bids_scseg.errors import MissingToolError
from bids_scseg.inference.client import InferenceServer, KilledAtStartError
from bids_scseg.inference.device import device_tokens


class InferencePool:
    """Inference processes as a context manager.

    Parameters
    ----------
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` and ``cuda`` take all devices that are visible,
        and ``auto`` does without those that cannot be used.
    threads, deterministic
        As for :class:`~bids_scseg.inference.client.InferenceServer`.
    at_most
        Number of sessions that may run at once.

    Attributes
    ----------
    servers
        One for each device in use; valid inside the context.
    left_out
        Why devices are not in use that ``auto`` would have taken.

    Raises
    ------
    As :class:`~bids_scseg.inference.client.InferenceServer`, on entry.
    """

    def __init__(
        self, device: str = "auto", *, threads: int = 0, at_most: int = 1, deterministic: bool = False
    ) -> None:
        self.servers: tuple[InferenceServer, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self._device, self._threads, self._at_most = device, threads, at_most
        self._deterministic = deterministic
        self._stack = ExitStack()

    def __enter__(self) -> InferencePool:
        with ExitStack() as stack:
            first = stack.enter_context(self._server(self._device))
            tokens = device_tokens(
                self._device, visible=first.visible, at_most=self._at_most, first=first.device
            )
            others = [self._server(token) for token in tokens[1:]]
            self.servers = (first, *self._start(others, stack))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def description(self) -> str:
        """The devices, for people and logs."""
        return ", ".join(server.description for server in self.servers)

    @property
    def warning(self) -> str | None:
        """What to tell the user about the choice of devices, in one line, or None."""
        first = next((server.warning for server in self.servers if server.warning), None)
        without = f"inference runs without {', '.join(self.left_out)}" if self.left_out else None
        return "; ".join(filter(None, [first, without])) or None

    def _start(self, servers: list[InferenceServer], stack: ExitStack) -> list[InferenceServer]:
        """Start further processes side by side; those that are in use."""
        with ThreadPoolExecutor(max(1, len(servers))) as threads:
            started = [threads.submit(stack.enter_context, server) for server in servers]
        running, left_out = [], []
        for server, future in zip(servers, started, strict=True):
            try:
                running.append(future.result())
            except (MissingToolError, KilledAtStartError) as error:
                if self._device != "auto":
                    raise
                left_out.append(f"{server.device} ({error.found})")
        self.left_out = tuple(left_out)
        return running

    def _server(self, token: str) -> InferenceServer:
        return InferenceServer(token, threads=self._threads, deterministic=self._deterministic)
