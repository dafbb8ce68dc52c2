"""The Spinal Cord Toolbox, release 7.3, as an external program.

It lives in its own environment and is never imported. Arguments go to it as a list, without a shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from nipype.interfaces.base import CommandLine, CommandLineInputSpec, File, TraitedSpec, traits

from bids_scseg.errors import MissingToolError, SessionError
from bids_scseg.interfaces.base import save_failure

SCT_RELEASE = "7.3"
TIMEOUT_S = 1800  # ours: the task takes under a minute on two cores; a hang must not last for ever
MISSING_MODEL_SIGNS = ("not installed", "download", "urlopen", "connectionerror", "max retries")


class SCTDeepSegInputSpec(CommandLineInputSpec):
    """``sct_deepseg TASK -i IMG -o OUT.nii.gz`` (an ``-o`` without extension fails in 7.3)."""

    task = traits.Enum("spinalcord", "lesion_ms", argstr="%s", position=0, usedefault=True, desc="task")
    in_file = File(exists=True, argstr="-i %s", position=1, mandatory=True, desc="image")
    out_file = File("cord.nii.gz", argstr="-o %s", position=2, usedefault=True, desc="segmentation")
    timeout_s = traits.Int(TIMEOUT_S, usedefault=True, nohash=True, desc="seconds until it counts as hanging")


class SCTDeepSegOutputSpec(TraitedSpec):
    """One mask."""

    out_file = File(exists=True, desc="segmentation on the image's grid")


class SCTDeepSeg(CommandLine):
    """Segment the cord with SCT's contrast-agnostic model."""

    _cmd = "sct_deepseg"
    input_spec = SCTDeepSegInputSpec
    output_spec = SCTDeepSegOutputSpec

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        cwd = Path(runtime.cwd)
        try:
            runtime.stdout, runtime.stderr = run_tool(
                shlex.split(self.cmdline), cwd, timeout_s=self.inputs.timeout_s, file=str(self.inputs.in_file)
            )
            if not (cwd / self.inputs.out_file).is_file():
                raise SessionError(
                    f"{self._cmd} ended well but wrote no {self.inputs.out_file}",
                    file=self.inputs.in_file,
                    remedy=f"check that SCT {SCT_RELEASE} is installed, or use --cord builtin",
                )
        except (SessionError, MissingToolError) as error:
            save_failure(error, cwd)
            raise
        runtime.returncode = 0
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        return {"out_file": str(Path.cwd() / self.inputs.out_file)}


def find_sct() -> str | None:
    """Path of ``sct_deepseg``; None where SCT is not installed."""
    return shutil.which("sct_deepseg")


def run_tool(command: list[str], cwd: Path, *, timeout_s: int, file: str) -> tuple[str, str]:
    """Run an external program; return its standard output and error.

    Raises
    ------
    MissingToolError
        If it is not on the PATH.
    SessionError
        If it fails or does not end in time; the message holds the last line it wrote.
    """
    # SCT decides by the mere presence of this variable, also when it says 0.
    environment = {key: value for key, value in os.environ.items() if key != "SCT_USE_GPU"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MissingToolError(
            f"{command[0]} is not on the PATH",
            expected=f"Spinal Cord Toolbox {SCT_RELEASE}",
            remedy="install it, or use --cord builtin",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SessionError(
            f"{command[0]} did not end within {timeout_s} s",
            file=file,
            remedy="use --cord builtin or your own mask",
        ) from error
    if done.returncode != 0:
        raise _failure(command[0], done, file)
    return done.stdout, done.stderr


def _failure(name: str, done: subprocess.CompletedProcess[str], file: str) -> SessionError:
    words = f"{done.stdout}\n{done.stderr}".strip()
    last = words.splitlines()[-1] if words else "no message"
    if any(sign in words.lower() for sign in MISSING_MODEL_SIGNS):
        remedy = "install the model while online: sct_deepseg spinalcord -install"
    else:
        remedy = "run the command by hand to see all it says, or use --cord builtin"
    return SessionError(f"{name} failed with exit code {done.returncode}: {last}", file=file, remedy=remedy)
