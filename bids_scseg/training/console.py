"""What a person sees while a training runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol, TextIO

from tqdm import tqdm


class Display(Protocol):
    """Where a training shows how far it is."""

    def text(self, text: str) -> None:
        """Show some lines."""
        ...

    def begin(self, step: int, total: int) -> None:
        """The loop starts after ``step`` of ``total`` iterations."""
        ...

    def advance(self, step: int, loss: float) -> None:
        """An iteration is done."""
        ...

    def row(self, row: Mapping[str, object]) -> None:
        """A row of a log is written."""
        ...

    def end(self) -> None:
        """The loop is over."""
        ...


class Silent:
    """Shows nothing."""

    def text(self, text: str) -> None:
        """Show nothing."""

    def begin(self, step: int, total: int) -> None:
        """Show nothing."""

    def advance(self, step: int, loss: float) -> None:
        """Show nothing."""

    def row(self, row: Mapping[str, object]) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class Console:
    """Shows progress on a stream.

    Parameters
    ----------
    stream
        On a terminal there is a bar, elsewhere a line for each row of a log.
    every_s
        Fewest seconds between two plain lines of the training log.
    """

    def __init__(self, stream: TextIO, *, every_s: float = 10.0) -> None:
        self.stream = stream
        self.every_s = every_s
        self.total = 0
        self.bar: tqdm[None] | None = None
        self.last = float("-inf")

    def text(self, text: str) -> None:
        """Write lines."""
        tqdm.write(text, file=self.stream)
        self.stream.flush()

    def begin(self, step: int, total: int) -> None:
        """Start the bar, on a terminal."""
        self.total = total
        if step:
            self.text(f"goes on after iteration {step} of {total}")
        if self.stream.isatty():
            self.bar = tqdm(total=total, initial=step, file=self.stream, unit="it", dynamic_ncols=True)

    def advance(self, step: int, loss: float) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()

    def row(self, row: Mapping[str, object]) -> None:
        """Write a line; rows of the training log only now and then, and none beside a bar."""
        held_out = "loss" not in row
        due = time.monotonic() - self.last >= self.every_s or row["iteration"] == self.total
        if held_out or (self.bar is None and due):
            rest = "  ".join(f"{key} {value}" for key, value in row.items() if key != "iteration")
            self.text(f"{'held-out cases at ' if held_out else ''}{row['iteration']}/{self.total}  {rest}")
            self.last = self.last if held_out else time.monotonic()

    def end(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
