"""What a run shows: bars on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from bids_scseg.workflows.job import SessionOutcome

UNDONE = ("failed", "refused", "busy")
WARNINGS_SHOWN = 20  # in the summary; a cohort may have hundreds


class Console:
    """Progress of a run.

    On a terminal every running session has a bar of its own above one for the whole run; elsewhere
    (a log file, a cluster job) each session writes a line when it starts and one when it ends.

    Parameters
    ----------
    total
        Number of sessions.
    steps
        Number of steps of one session, for its bar.
    stream
        Where to write; standard error by default.
    """

    def __init__(self, total: int, *, steps: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._steps = total, steps
        self._ended = 0
        self._bars: dict[str, Any] = {}
        self._seen: set[str] = set()
        self._overall = self._bar("sessions", total) if self._stream.isatty() and total else None

    def step(self, label: str, step: str) -> None:
        """A session entered a step."""
        if self._overall is None:
            if label not in self._seen:
                self._seen.add(label)
                self.line(f"{label}: started")
            return
        if label not in self._bars:
            self._bars[label] = self._bar(label, self._steps)
        bar = self._bars[label]
        bar.set_postfix_str(step.replace("_", " "), refresh=False)
        bar.update(1 if bar.n < bar.total - 1 else 0)

    def end(self, outcome: SessionOutcome) -> None:
        """A session ended."""
        self._ended += 1
        bar = self._bars.pop(outcome.label, None)
        if bar is not None:
            bar.close()
        self.line(f"[{self._ended}/{self._total}] {describe(outcome)}")
        if self._overall is not None:
            self._overall.update(1)

    def line(self, text: str) -> None:
        """One line, above the bars if there are any."""
        if self._overall is not None:
            self._overall.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Take the bars away."""
        for bar in (*self._bars.values(), self._overall):
            if bar is not None:
                bar.close()

    def _bar(self, label: str, total: int) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, desc=label, file=self._stream, leave=label == "sessions", dynamic_ncols=True)


def describe(outcome: SessionOutcome) -> str:
    """One line about how a session ended."""
    if outcome.ok:
        flags = (
            f", {len(outcome.warnings)} warning{'s' * (len(outcome.warnings) != 1)}"
            if outcome.warnings
            else ""
        )
        return f"{outcome.label}: done in {outcome.seconds:.0f} s{flags}"
    where = f" in {outcome.step}" if outcome.step and outcome.step != "start" else ""
    parts = [f"{outcome.label}: {outcome.state}{where}: {outcome.cause}"]
    if outcome.file:
        parts.append(f"file: {outcome.file}")
    if outcome.remedy:
        parts.append(f"what to do: {outcome.remedy}")
    return "; ".join(" ".join(part.split()) for part in parts)


def summary(outcomes: Sequence[SessionOutcome], *, total: int, output_dir: object) -> str:
    """The last words of a run."""
    counts = {state: sum(o.state == state for o in outcomes) for state in ("done", *UNDONE)}
    left = total - len(outcomes)
    words = [f"{counts['done']} of {total} sessions done"]
    words += [f"{counts[state]} {state}" for state in UNDONE if counts[state]]
    if left:
        words.append(f"{left} not started")
    lines = [", ".join(words) + f"; results in {output_dir}"]
    lines += [f"  {describe(outcome)}" for outcome in outcomes if not outcome.ok]
    warned = [(outcome.label, text) for outcome in outcomes for text in outcome.warnings]
    lines += [f"  warning: {label}: {' '.join(text.split())}" for label, text in warned[:WARNINGS_SHOWN]]
    if len(warned) > WARNINGS_SHOWN:
        lines.append(f"  {len(warned) - WARNINGS_SHOWN} more warnings in logs/status.tsv and in the reports")
    return "\n".join(lines)
