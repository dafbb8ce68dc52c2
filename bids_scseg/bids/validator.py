"""The BIDS validator, where its Python package is installed; it works offline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

TOOL = "bids-validator-deno"
TIMEOUT_S = 600  # ours: it needs about a millisecond for each file
SHOWN = 20  # errors that are kept; a wrong file name often comes a hundred times


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the validator said of a dataset.

    Attributes
    ----------
    state
        ``passed`` (no errors), ``failed``, or ``not run``.
    why
        Why it was not run.
    errors, warnings
        How many.
    messages
        The first errors: code and file.
    """

    state: Literal["passed", "failed", "not run"]
    why: str = ""
    errors: int = 0
    warnings: int = 0
    messages: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def find_validator() -> str | None:
    """Path of the validator: of this Python's environment, else of the PATH; None where there is none."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(TOOL, path=beside) or shutil.which(TOOL)


def validate(folder: Path) -> Judgement:
    """Run the validator over a dataset; whatever keeps it from answering makes it ``not run``."""
    tool = find_validator()
    if tool is None:
        return Judgement(state="not run", why=f"{TOOL} is not installed")
    try:
        done = subprocess.run(
            [tool, str(folder), "--json"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        issues = json.loads(done.stdout)["issues"]["issues"]
        kinds = [(str(issue["severity"]), _message(issue)) for issue in issues]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        return Judgement(
            state="not run", why=f"{TOOL} gave no answer ({type(error).__name__}: {error})"[:300]
        )
    errors = [message for severity, message in kinds if severity == "error"]
    return Judgement(
        state="failed" if errors else "passed",
        errors=len(errors),
        warnings=sum(severity == "warning" for severity, _ in kinds),
        messages=tuple(errors[:SHOWN]),
    )


def _message(issue: dict[str, object]) -> str:
    return " ".join(str(issue.get(key, "")) for key in ("code", "subCode", "location")).strip()
