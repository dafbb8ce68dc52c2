"""What a run may use at once: memory and devices. Bookkeeping only, so it can be tested without either."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device token: the inference process that owns the device.

    Attributes
    ----------
    address
        Socket of the process.
    description
        The device, for people and logs.
    """

    address: str
    description: str


@dataclass(slots=True, kw_only=True)
class Budget:
    """Memory and devices of a run, and which sessions hold them.

    Each device has one inference process, which serves one request at a time: however many sessions hold its
    token, never do two of them compute on it at once.

    Attributes
    ----------
    memory_gb
        What the sessions that run at once may need together.
    devices
        Tokens; empty: the sessions need none.
    """

    memory_gb: float = float("inf")
    devices: tuple[Device, ...] = ()
    _held: dict[str, tuple[float, Device | None]] = field(default_factory=dict)

    def fits(self, need_gb: float) -> bool:
        """Whether a session of that need may start now; one always may if nothing else runs."""
        held = sum(need for need, _ in self._held.values())
        return not self._held or held + need_gb <= self.memory_gb

    def take(self, label: str, need_gb: float = 0.0) -> Device | None:
        """Start a session: the device with the fewest sessions, the first of equals; None without devices."""
        device = min(self.devices, key=self._holders, default=None)
        self._held[label] = (need_gb, device)
        return device

    def give(self, label: str) -> None:
        """A session has ended."""
        self._held.pop(label, None)

    def clear(self) -> None:
        """No session runs any more."""
        self._held.clear()

    def _holders(self, device: Device) -> int:
        return sum(held == device for _, held in self._held.values())
