"""The error tree.

Every message says which file, what was found, what was expected, and what to do next.
Only the command line turns an error into an exit code; the code stands on the class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScsegError(Exception):
    """Root of all errors this program raises on purpose.

    Parameters
    ----------
    found
        What is wrong, in words (starts the message).
    file
        The file or folder concerned.
    expected
        What would have been right.
    remedy
        What the user can do next.
    """

    exit_code = 1

    def __init__(
        self,
        found: str,
        *,
        file: object = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.found = found
        self.file = None if file is None else str(file)
        self.expected = expected
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        message = f"{self.file}: {self.found}" if self.file else self.found
        if self.expected:
            message += f"; expected {self.expected}"
        if self.remedy:
            message += f". {self.remedy[0].upper()}{self.remedy[1:]}"
        return " ".join(message.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way between processes with all parts (keyword-only arguments do not, by default)."""
        return _rebuild, (type(self), self.found, self.file, self.expected, self.remedy)


def suggestion(value: object, choices: Iterable[object], *, cutoff: float = 0.5) -> str | None:
    """A question whether the choice that is most like the value was meant; None where none is like it."""
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else None


def _rebuild(
    cls: type[ScsegError], found: str, file: str | None, expected: str | None, remedy: str | None
) -> ScsegError:
    return cls(found, file=file, expected=expected, remedy=remedy)


class SessionError(ScsegError):
    """One session cannot be processed; others go on."""


class ImageError(SessionError):
    """An image cannot be read or is not what an image must be."""


class GeometryError(SessionError):
    """Fields of view, grids or transforms do not fit together."""


class CordNotFoundError(SessionError):
    """No spinal cord was found where one is needed."""


class UsageError(ScsegError):
    """The command line is wrong."""

    exit_code = 64


class UnknownLevelError(UsageError):
    """The analysis level is none of ours."""

    exit_code = 17


class InvalidDatasetError(ScsegError):
    """The input folder is not a BIDS dataset."""

    exit_code = 16


class NoMatchError(ScsegError):
    """The filters match nothing."""

    exit_code = 18


class DataError(ScsegError):
    """A recipe, model, filter or table is malformed."""

    exit_code = 65


class MissingInputError(ScsegError):
    """An input file or folder is absent."""

    exit_code = 66


class OutputError(ScsegError):
    """The output cannot be written."""

    exit_code = 73


class DiskFullError(OutputError):
    """There is no room left to write; nothing else of this run can be written either."""


class BusyError(ScsegError):
    """Somebody else works on the same output; try again later."""

    exit_code = 75


class MissingToolError(ScsegError):
    """An external program or a device is absent."""

    exit_code = 127
