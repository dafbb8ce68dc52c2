"""The Spinal Cord Toolbox, release 7.3, as an external program.

It lives in its own environment and is never imported. Arguments go to it as a list, without a shell.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    File,
    InputMultiPath,
    TraitedSpec,
    traits,
)

from bids_scseg.errors import ImageError, MissingInputError, MissingToolError, SessionError
from bids_scseg.files import sha256
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec, save_failure
from bids_scseg.space.nifti import read_values

SCT_RELEASE = "7.3"
TIMEOUT_S = 1800  # ours: the task takes under a minute on two cores; a hang must not last for ever
SPINE_TIMEOUT_S = 7200  # ours: labelling the spine runs a larger network on the whole image
#: What release 7.3 adds to the stem of ``-o`` for the disc labels: single voxels, numbered from C1 downwards
#: (3 is C2-C3), on the image's grid. Up to 7.1 task and ending were ``totalspineseg`` and ``_step1_levels``.
DISCS_ENDING = "_totalspineseg_discs"
DISCS_RECORD = "discs.json"
SCT_LEVELS = "Spinal Cord Toolbox"  # how the words for levels begin where the toolbox found them
NO_LEVELS = "give labels of yours with --derivatives, or use --levels none"
#: Task of ``sct_deepseg`` → parts of the names of the folders in which its networks are installed.
TASK_MODELS = {
    "lesion_ms": ("ms_lesion",),
    "spinalcord": ("contrast_agnostic", "spinalcord"),
    "spine": ("totalspineseg", "spine"),
}
LESION_TASKS = ("lesion_ms",)
CORD_TASK = "spinalcord"
CORD_FILE = "cord.nii.gz"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
MARK = "SCSEG_TOOL"  # variable by whose value the processes of one call are known
END_TRIES, END_PAUSE_S = 50, 0.1  # for 5 s; a process that the kernel holds (a dead disk) ends when it can
MISSING_MODEL_SIGNS = ("not installed", "download", "urlopen", "connectionerror", "max retries")


class SCTDeepSegInputSpec(CommandLineInputSpec):
    """``sct_deepseg TASK -i IMG -o OUT.nii.gz`` (an ``-o`` without extension fails in 7.3)."""

    task = traits.Enum("spinalcord", "lesion_ms", argstr="%s", position=0, usedefault=True, desc="task")
    in_file = File(exists=True, argstr="-i %s", position=1, mandatory=True, desc="image")
    engine_sha256 = traits.Str(desc="checksum of SCT's release and its network's")
    out_file = File(CORD_FILE, argstr="-o %s", position=2, usedefault=True, desc="segmentation")
    timeout_s = traits.Int(TIMEOUT_S, usedefault=True, nohash=True, desc="seconds until it counts as hanging")
    threads = traits.Int(0, usedefault=True, nohash=True, desc="CPUs that it may take; 0: it decides")


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
            runtime.stdout, runtime.stderr = run_deepseg(
                shlex.split(self.cmdline),
                cwd,
                out_file=self.inputs.out_file,
                timeout_s=self.inputs.timeout_s,
                file=str(self.inputs.in_file),
                threads=self.inputs.threads,
            )
        except (SessionError, MissingToolError) as error:
            save_failure(error, cwd)
            raise
        runtime.returncode = 0
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        return {"out_file": str(Path.cwd() / self.inputs.out_file)}


class LabelDiscsInputSpec(VersionedInputSpec):
    """The anchor's images, uppermost first."""

    in_files = InputMultiPath(File(exists=True), mandatory=True, desc="images")
    engine_sha256 = traits.Str(desc="checksum of SCT's release and its network's")
    timeout_s = traits.Int(
        SPINE_TIMEOUT_S, usedefault=True, nohash=True, desc="seconds until it counts as hanging"
    )
    threads = traits.Int(0, usedefault=True, nohash=True, desc="CPUs that it may take; 0: it decides")


class LabelDiscsOutputSpec(TraitedSpec):
    """Label images, and what the user should know."""

    label_files = traits.List(File(exists=True), desc="disc labels, as many as could be made")
    warnings = traits.List(traits.Str, desc="why an image has no labels")
    record_file = File(exists=True, desc="discs.json: the same")
    levels_from = traits.Str(desc="who labelled them: the toolbox with its release, in words")


class LabelDiscs(ScsegInterface):
    """Label intervertebral discs with SCT's spine model.

    Levels are no condition of a session: where the toolbox fails, the session goes on by distance, with a
    warning.
    """

    input_spec = LabelDiscsInputSpec
    output_spec = LabelDiscsOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        files, problems = [], []
        for number, image in enumerate(self.inputs.in_files, start=1):
            try:
                limits = {"timeout_s": self.inputs.timeout_s, "threads": self.inputs.threads}
                files.append(str(label_discs(Path(image), cwd, number=number, **limits)))
            except (SessionError, MissingToolError) as error:
                problems.append(f"no vertebral levels from SCT: {error}")
        record = cwd / DISCS_RECORD
        record.write_text(json.dumps({"warnings": problems}), encoding="utf-8")
        return {
            "label_files": files,
            "warnings": problems,
            "record_file": str(record),
            "levels_from": f"{SCT_LEVELS} {sct_release() or 'of unknown release'} (sct_deepseg spine)",
        }


def run_deepseg(
    command: list[str], cwd: Path, *, out_file: str, file: str, timeout_s: int = TIMEOUT_S, threads: int = 0
) -> tuple[str, str]:
    """:func:`run_tool`, and a look whether ``out_file`` is in ``cwd`` then.

    Raises
    ------
    MissingToolError, SessionError
        As :func:`run_tool`; SessionError also without the file.
    """
    words = run_tool(command, cwd, timeout_s=timeout_s, file=file, threads=threads)
    if not (cwd / out_file).is_file():
        raise SessionError(
            f"{command[0]} ended well but wrote no {out_file}",
            file=file,
            remedy=f"check that SCT {SCT_RELEASE} is installed, or use --cord builtin",
        )
    return words


def segment_cord(image: Path, folder: Path, *, threads: int = 0) -> Path:
    """The cord in an image, found as :class:`SCTDeepSeg` does, without a graph.

    Parameters
    ----------
    image
        A NIfTI file.
    folder
        Where SCT works and writes.
    threads
        CPUs that it may take; 0: it decides.

    Returns
    -------
    The mask's file, on the image's lattice.

    Raises
    ------
    MissingToolError, SessionError
        As :func:`run_deepseg`.
    """
    command = ["sct_deepseg", CORD_TASK, "-i", str(image), "-o", CORD_FILE]
    run_deepseg(command, folder, out_file=CORD_FILE, file=str(image), threads=threads)
    return folder / CORD_FILE


def cord_source(method: str) -> str:
    """What finds the cord in images without a mask of the user's: ``sct`` or ``builtin``.

    Parameters
    ----------
    method
        ``--cord``; ``auto``: SCT where it is installed; the name of a folder: the built-in finder.

    Raises
    ------
    MissingToolError
        If SCT is asked for and not installed.
    """
    if method == "auto":
        return "sct" if find_sct() else "builtin"
    if method == "sct" and not find_sct():
        raise MissingToolError(
            "sct_deepseg is not on the PATH",
            expected=f"Spinal Cord Toolbox {SCT_RELEASE}",
            remedy="install it, or use --cord builtin",
        )
    return "sct" if method == "sct" else "builtin"


def level_source(method: str, *, labelled: bool) -> str:
    """Where a session's levels come from: ``labels``, ``sct`` or ``none``.

    Parameters
    ----------
    method
        ``--levels``; ``auto``: labels where there are some, else SCT where it is installed.
    labelled
        Whether the user has labels of the session.
    """
    if method != "auto":
        return method
    return "labels" if labelled else "sct" if find_sct() else "none"


def labels_words(labels: Sequence[str], folders: Sequence[tuple[str, Path]]) -> str:
    """Whose labels a session's levels follow, in words for tables and texts.

    Parameters
    ----------
    labels
        The user's label images that serve.
    folders
        Derivatives folders (name, path) that were given.

    Returns
    -------
    Such as ``labels of the derivatives discs``; empty without labels.
    """
    if not labels:
        return ""
    names = [name for name, folder in folders if any(Path(file).is_relative_to(folder) for file in labels)]
    known = names or sorted({Path(file).parent.name for file in labels})
    return f"labels of the derivatives {' and '.join(known)}"


def label_discs(
    image: Path, folder: Path, *, number: int, timeout_s: int = SPINE_TIMEOUT_S, threads: int = 0
) -> Path:
    """``sct_deepseg spine -i IMAGE -o OUT.nii.gz``; the label image, whose name says discs.

    Raises
    ------
    MissingToolError
        If SCT is not installed.
    SessionError
        If it fails, writes nothing, or finds no disc.
    """
    stem = f"image-{number}_label-discs"
    command = ["sct_deepseg", "spine", "-i", str(image), "-o", f"{stem}.nii.gz"]
    run_tool(command, folder, timeout_s=timeout_s, file=str(image), instead=NO_LEVELS, threads=threads)
    found = folder / f"{stem}{DISCS_ENDING}.nii.gz"
    if not found.is_file():
        raise SessionError(
            f"sct_deepseg spine ended well but wrote no {found.name}",
            file=image,
            remedy=f"check that SCT {SCT_RELEASE} is installed, or {NO_LEVELS}",
        )
    try:
        discs = read_values(found)[0]
    except (ImageError, MissingInputError) as error:
        raise SessionError(
            f"the output of sct_deepseg spine cannot be read ({error.found})", file=image, remedy=NO_LEVELS
        ) from error
    if not discs.any():
        raise SessionError("sct_deepseg spine found no disc", file=image)
    return found


def find_sct() -> str | None:
    """Path of ``sct_deepseg``; None where SCT is not installed."""
    return shutil.which("sct_deepseg")


def sct_folder() -> Path | None:
    """Where SCT is installed: above the folder of its programs, which may be links; None where it is not."""
    program = find_sct()
    if program is None:
        return None
    folders = [Path(program).parent.parent, *Path(program).resolve().parents]
    return next((folder for folder in folders if _version_file(folder)), folders[0])


def sct_release() -> str | None:
    """Installed release by its version file; None where SCT or that file is absent.

    Its own ``sct_version`` prints a commit instead for most ways of installing.
    """
    folder = sct_folder()
    path = None if folder is None else _version_file(folder)
    return None if path is None else path.read_text(encoding="utf-8").strip()


def _version_file(folder: Path) -> Path | None:
    places = (folder / "spinalcordtoolbox" / "version.txt", folder / "version.txt")
    return next((path for path in places if path.is_file()), None)


def sct_models() -> dict[str, str]:
    """Installed models of ``sct_deepseg`` → SHA-256 of the file that says which release each of them is."""
    folder = sct_folder()
    sources = sorted(folder.glob("data/deepseg_models/*/source.json")) if folder else []
    return {path.parent.name: sha256(path) for path in sources}


def task_models(task: str) -> dict[str, str]:
    """Installed networks of a task → checksum of the file that says which release each of them is.

    All that are installed, where none bears a known name and the task is not one of lesions: which of them
    runs is SCT's affair, and a result must not outlive it.
    """
    models, parts = sct_models(), TASK_MODELS[task]
    own = {name: checksum for name, checksum in models.items() if any(part in name for part in parts)}
    return own if own or task in LESION_TASKS else models


def sct_sha256(task: str) -> str:
    """Checksum of SCT's release and of a task's networks: what decides on the output for an image."""
    identity = {"task": task, "release": sct_release() or "unknown", "models": task_models(task)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def run_tool(
    command: list[str],
    cwd: Path,
    *,
    timeout_s: int,
    file: str,
    instead: str = "use --cord builtin",
    threads: int = 0,
) -> tuple[str, str]:
    """Run an external program; return its standard output and error.

    Parameters
    ----------
    command
        Its words.
    cwd
        Where it runs.
    timeout_s
        Seconds until it counts as hanging.
    file
        The image concerned, for messages.
    instead
        What else a user can do.
    threads
        CPUs that it may take; 0: it decides.

    Raises
    ------
    MissingToolError
        If it is not on the PATH.
    SessionError
        If it fails, with the last line that it wrote, or does not end in time: it is killed then, and so is
        what it started itself, as launchers do.
    """
    # SCT decides by the mere presence of this variable, also when it says 0.
    environment = {key: value for key, value in os.environ.items() if key != "SCT_USE_GPU"}
    if threads > 0:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    try:
        done = _run(command, cwd, environment, timeout_s=timeout_s)
    except FileNotFoundError as error:
        raise MissingToolError(
            f"{command[0]} is not on the PATH",
            expected=f"Spinal Cord Toolbox {SCT_RELEASE}",
            remedy=f"install it, or {instead}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SessionError(
            f"{command[0]} did not end within {timeout_s} s",
            file=file,
            remedy=f"{instead}, or run the command by hand to see how long it takes",
        ) from error
    if done.returncode != 0:
        raise _failure(command[0], done, file, instead)
    return done.stdout, done.stderr


def _run(
    command: list[str], cwd: Path, environment: dict[str, str], *, timeout_s: int
) -> subprocess.CompletedProcess[str]:
    """:func:`subprocess.run`, but on a timeout or an interruption nothing that the command started goes on.

    It stays in this process's group, by which a run ends what a killed worker had started; what belongs to
    the command is known by a mark in its environment, also where a launcher has ended before its child.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        command, cwd=cwd, env=environment | {MARK: mark}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            _end_marked(f"{MARK}={mark}".encode())
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _end_marked(mark: bytes) -> None:
    """Kill all processes with such a variable in their environment, again if one starts another meanwhile."""
    for _ in range(END_TRIES):
        found = [pid for pid, environment in _environments() if mark in environment.split(b"\0")]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(END_PAUSE_S)


def _environments() -> Iterator[tuple[int, bytes]]:
    """Number and environment of each process of this user; of none where there is no ``/proc``."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # others' processes, and those that have just ended
            yield int(file.parent.name), file.read_bytes()


def _failure(name: str, done: subprocess.CompletedProcess[str], file: str, instead: str) -> SessionError:
    words = f"{done.stdout}\n{done.stderr}".strip()
    last = words.splitlines()[-1] if words else "no message"
    if any(sign in words.lower() for sign in MISSING_MODEL_SIGNS):
        remedy = f"install the model while online: {name} {done.args[1]} -install"
    else:
        remedy = f"run the command by hand to see all it says, or {instead}"
    return SessionError(f"{name} failed with exit code {done.returncode}: {last}", file=file, remedy=remedy)
