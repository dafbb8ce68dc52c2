"""What all wrappers of our own functions share."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, isdefined, traits

from bids_scseg import files
from bids_scseg.errors import ScsegError
from bids_scseg.inference.protocol import error_from_json, error_to_json

FAILURE_FILE = "failure.json"


class VersionedInputSpec(BaseInterfaceInputSpec):
    """Inputs of every node: the numerical version is part of its hash, so new code recomputes."""

    code_version = traits.Str(desc="numerical version of this program")


class ScsegInterface(SimpleInterface):
    """A wrapper: unpack the inputs, one call, name the outputs.

    Subclasses implement ``_call(cwd) -> dict of outputs``. An error of ours is left as
    ``failure.json`` in the node's folder, because Nipype passes on nothing but a traceback as text.
    """

    def _call(self, cwd: Path) -> dict[str, Any]:
        raise TypeError(f"{type(self).__name__} does not define what it does")

    def _run_interface(self, runtime: Any) -> Any:
        (Path(runtime.cwd) / FAILURE_FILE).unlink(missing_ok=True)
        try:
            self._results.update(self._call(Path(runtime.cwd)))
        except ScsegError as error:
            save_failure(error, Path(runtime.cwd))
            raise
        except OSError as error:
            if not files.is_full(error):
                raise
            full = files.write_error(error, error.filename or runtime.cwd)
            save_failure(full, Path(runtime.cwd))
            raise full from error
        return runtime

    def given(self, name: str) -> Any:
        """Value of an input, None if undefined."""
        value = getattr(self.inputs, name)
        return value if isdefined(value) else None


def save_failure(error: ScsegError, folder: Path) -> None:
    """Write an error's class and parts beside the node's results; on a full disk there may be no room."""
    with suppress(OSError):
        (folder / FAILURE_FILE).write_text(json.dumps(error_to_json(error)), encoding="utf-8")


def load_failure(folder: Path) -> ScsegError | None:
    """The error that a node left; None if it left none."""
    try:
        data = json.loads((folder / FAILURE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # cut short on a full disk
        return None
    return error_from_json(data)
