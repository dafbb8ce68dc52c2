"""Lesions by a network of the Spinal Cord Toolbox: each image by itself, then one map by late fusion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from bids_scseg.bids.masks import same_lattice
from bids_scseg.errors import ImageError, MissingInputError, ScsegError, SessionError
from bids_scseg.inference.protocol import error_to_json
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.interfaces.engine import INSTEAD
from bids_scseg.interfaces.prepare import Native, load_case
from bids_scseg.interfaces.sct import SCT_RELEASE, run_tool
from bids_scseg.preprocess.late import fuse_maps
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_image, read_values

RECORD_FILE, VALUES_FILE = "lesion_map.json", "lesions.npy"
MAP_FILE, MAP_SIDECAR = "lesions.nii.gz", "lesions.json"  # SCT writes the second beside the first
TIMEOUT_S = 7200  # ours: five networks over a whole image, on a busy machine
RANGE_TOLERANCE = 1e-3  # values beyond 0-1 by more are no map of lesions; rounding stays far below
COMMAND = "sct_deepseg {task} -i IMAGE -o {file} -soft-ms-lesion"
MEANING = {
    "soft": "mean over SCT's networks (folds) of the softmax of lesion where it exceeds that of background, "
    "else 0; no calibrated probability",
    "binary": "1 where most of SCT's networks (folds) say lesion, else 0, because the soft output held no "
    "fractions",
}
FUSED = (
    "Mean of what the Spinal Cord Toolbox says of each image by itself, at each place over the sequences "
    "that cover it. No probability"
)

Volume = npt.NDArray[np.float32]
Kind = Literal["soft", "binary"]


class MapRecord(TypedDict):
    """What SCT said of one image; file names are relative to the record's folder."""

    map: str | None
    grid: dict[str, Any] | None
    kind: Kind | None
    sha256: str | None
    model_url: list[str]
    problem: dict[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call of SCT may take; ``threads`` 0: it decides."""

    timeout_s: int = TIMEOUT_S
    threads: int = 0


class SegmentImageInputSpec(VersionedInputSpec):
    """An image and the network; which release of SCT and of its network is part of the hash."""

    in_file = File(exists=True, mandatory=True, desc="image")
    task = traits.Str(mandatory=True, desc="task of sct_deepseg")
    engine_sha256 = traits.Str(mandatory=True, desc="checksum of SCT's release and its network's")
    after = File(nohash=True, desc="geometry: a session that cannot be prepared need not be segmented")
    timeout_s = traits.Int(TIMEOUT_S, usedefault=True, nohash=True, desc="seconds until it counts as hanging")
    threads = traits.Int(0, usedefault=True, nohash=True, desc="CPUs that it may take; 0: it decides")


class SegmentImageOutputSpec(TraitedSpec):
    """A record, see :class:`MapRecord`."""

    record_file = File(exists=True, desc="lesion_map.json")


class SegmentImage(ScsegInterface):
    """Run a lesion network of SCT on one image."""

    input_spec = SegmentImageInputSpec
    output_spec = SegmentImageOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        image = Path(self.inputs.in_file)
        limits = Limits(timeout_s=self.inputs.timeout_s, threads=self.inputs.threads)
        record = record_map(image, cwd, task=self.inputs.task, limits=limits)
        return {"record_file": record}


class FuseMapsInputSpec(VersionedInputSpec):
    """The prepared case and one record per image."""

    case_files = InputMultiPath(File(exists=True), mandatory=True, desc="the prepared case")
    record_files = InputMultiPath(File(exists=True), mandatory=True, desc="maps of the images")
    keys = traits.List(traits.Str, mandatory=True, desc="sequence of each image")
    names = traits.List(traits.Str, mandatory=True, desc="each image's path relative to the dataset")
    engine = traits.Str(mandatory=True, desc="name of the engine")
    release = traits.Str(mandatory=True, desc="release of SCT")


class FuseMapsOutputSpec(TraitedSpec):
    """One map, and what its values mean."""

    probability_file = File(exists=True, desc="fused values in prepared space, float32 .npy")
    engine_file = File(exists=True, desc="who found the lesions, JSON")


class FuseMaps(ScsegInterface):
    """Bring the maps of a session's images to prepared space and average them by coverage."""

    input_spec = FuseMapsInputSpec
    output_spec = FuseMapsOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        case, _ = load_case(self.inputs.case_files)
        records = [read_map_record(Path(path)) for path in self.inputs.record_files]
        maps = _by_sequence(records, self.inputs.record_files, self.inputs.keys, self.inputs.names)
        np.save(cwd / "probability.npy", fuse_maps(case, maps), allow_pickle=False)
        facts = engine_facts(
            records, self.inputs.names, engine=self.inputs.engine, release=self.inputs.release
        )
        (cwd / "engine.json").write_text(json.dumps(facts), encoding="utf-8")
        return {
            "probability_file": str(cwd / "probability.npy"),
            "engine_file": str(cwd / "engine.json"),
        }


def record_map(image: Path, folder: Path, *, task: str, limits: Limits) -> str:
    """Segment one image and record it; an image that cannot be read makes a record with a problem.

    Returns
    -------
    Path of the record.

    Raises
    ------
    MissingToolError, SessionError
        As :func:`segment_image`.
    """
    try:
        grid = read_image(image)[1]
    except ImageError as error:  # the cord's node says so too, and the session's other images go on
        return _write_record(folder, problem=error)
    values, kind = segment_image(image, grid, folder, task=task, limits=limits)
    np.save(folder / VALUES_FILE, values, allow_pickle=False)
    return _write_record(folder, values=values, grid=grid, kind=kind, urls=_model_urls(folder))


def segment_image(image: Path, grid: Grid, folder: Path, *, task: str, limits: Limits) -> tuple[Volume, Kind]:
    """Values of SCT's network for one image.

    Asked for its soft output first. Releases that crop cast it to integers, which leaves next to nothing of a
    lesion: where it holds no value between 0 and 1, the network is asked again for its mask, which serves.

    Parameters
    ----------
    image, grid
        The image and its lattice.
    folder
        Where SCT writes; its files of an earlier call are replaced.
    task
        Of ``sct_deepseg``.
    limits
        For one call.

    Returns
    -------
    values : (i, j, k) float32
        In 0-1, on the image's lattice.
    kind
        ``soft`` or ``binary``.

    Raises
    ------
    MissingToolError
        If SCT is not on the PATH.
    SessionError
        If it fails, hangs, writes nothing, or what it writes is no map of the image.
    """
    soft = _call_sct(image, grid, folder, task=task, limits=limits, more=("-soft-ms-lesion",))
    if ((soft > 0) & (soft < 1)).any():
        return soft, "soft"
    return _call_sct(image, grid, folder, task=task, limits=limits), "binary"


def _call_sct(
    image: Path, grid: Grid, folder: Path, *, task: str, limits: Limits, more: tuple[str, ...] = ()
) -> Volume:
    found = folder / MAP_FILE
    for earlier in (found, folder / MAP_SIDECAR):
        earlier.unlink(missing_ok=True)
    # -i takes any number of files, so another option must follow its own.
    command = ["sct_deepseg", task, "-i", str(image), "-o", MAP_FILE, *more]
    run_tool(
        command, folder, timeout_s=limits.timeout_s, file=str(image), instead=INSTEAD, threads=limits.threads
    )
    if not found.is_file():
        raise SessionError(
            f"sct_deepseg {task} ended well but wrote no {MAP_FILE}",
            file=image,
            remedy=f"check that SCT {SCT_RELEASE} is installed, or {INSTEAD}",
        )
    return _read_map(found, grid, image=image, task=task)


def _read_map(file: Path, grid: Grid, *, image: Path, task: str) -> Volume:
    """Values of a map on its image's lattice, in 0-1.

    Raises
    ------
    SessionError
        If the file is none.
    """
    try:
        values, own = read_values(file)
    except (ImageError, MissingInputError) as error:
        raise _useless(f"cannot be read ({error.found})", image, task) from error
    if not same_lattice(own, grid):
        raise _useless(
            f"has shape {own.shape} or another affine", image, task, expected="the image's lattice"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # false for NaN as well
        raise _useless(f"holds values from {low:g} to {high:g}", image, task, expected="0 to 1")
    return np.clip(values, 0, 1)


def _useless(found: str, image: Path, task: str, *, expected: str | None = None) -> SessionError:
    return SessionError(
        f"the output of sct_deepseg {task} {found}",
        file=image,
        expected=expected,
        remedy=f"check that SCT {SCT_RELEASE} is installed, or {INSTEAD}",
    )


def _write_record(
    folder: Path,
    *,
    values: Volume | None = None,
    grid: Grid | None = None,
    kind: Kind | None = None,
    urls: list[str] | None = None,
    problem: ScsegError | None = None,
) -> str:
    record = MapRecord(
        map=None if values is None else VALUES_FILE,
        grid=None if grid is None else grid.to_json(),
        kind=kind,
        sha256=None if values is None else hashlib.sha256(values.tobytes()).hexdigest(),
        model_url=urls or [],
        problem=None if problem is None else error_to_json(problem),
    )
    path = folder / RECORD_FILE
    path.write_text(json.dumps(record), encoding="utf-8")
    return str(path)


def read_map_record(path: Path) -> MapRecord:
    """Read the record of one image's map."""
    record: MapRecord = json.loads(path.read_text(encoding="utf-8"))
    return record


def _model_urls(folder: Path) -> list[str]:
    """Where SCT has its network from, by the JSON file that it writes beside a map; empty without one."""
    try:
        data = json.loads((folder / MAP_SIDECAR).read_text(encoding="utf-8"))
        urls = data["GeneratedBy"][0]["ModelURL"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    given = urls if isinstance(urls, list) else [urls]
    return [url for url in given if isinstance(url, str)]


def _by_sequence(
    records: Sequence[MapRecord], files: Sequence[str], keys: Sequence[str], names: Sequence[str]
) -> dict[str, list[Native]]:
    maps: dict[str, list[Native]] = {}
    for record, file, key, name in zip(records, files, keys, names, strict=True):
        if record["map"] is not None and record["grid"] is not None:
            values = np.load(Path(file).parent / record["map"], allow_pickle=False)
            maps.setdefault(key, []).append((values, Grid.from_json(record["grid"]), name))
    return maps


def engine_facts(
    records: Sequence[MapRecord], names: Sequence[str], *, engine: str, release: str
) -> dict[str, object]:
    """Who found the lesions and what the values mean, as plain data for sidecars, summary and report."""
    task = engine.partition(":")[2]
    kinds = {name: record["kind"] for name, record in zip(names, records, strict=True) if record["kind"]}
    served = [kind for kind in MEANING if kind in kinds.values()]
    urls = sorted({url for record in records for url in record["model_url"]})
    return {
        "name": engine,
        "program": "Spinal Cord Toolbox",
        "release": release,
        "command": COMMAND.format(task=task, file=MAP_FILE),
        "meaning": f"{FUSED}: of each image, " + "; or ".join(MEANING[kind] for kind in served)
        if served
        else FUSED,
        "outputs": kinds,
        "model_urls": urls,
    }
