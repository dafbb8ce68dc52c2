"""Cord masks, one image at a time: from the user, from SCT, or from the built-in network.

Each node leaves a record beside its files. An image in which no cord is found, that cannot be read, or on
which the built-in network fails is a record with a problem, not a failure: the session's other images go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import Directory, File, TraitedSpec, traits

from bids_scseg.bids.corrections import read_cord
from bids_scseg.bids.masks import same_lattice
from bids_scseg.errors import CordNotFoundError, ImageError, MissingInputError, ScsegError, SessionError
from bids_scseg.inference.client import request, request_cord
from bids_scseg.inference.protocol import error_to_json
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.preprocess.cordmask import clean_cord, credible_cord, cut_below, near
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_image, read_values

RECORD_FILE = "cord.json"
NETWORK = "built-in network"  # as the source of a mask


class CordRecord(TypedDict):
    """What is known about the cord in one image; file names are relative to the record's folder.

    ``cut_mm`` is how much of what a program found was cut off at the lower end as no cord, mm along S-I.

    It does not say where the image is: hashes know its content alone, so the record outlives its place.
    """

    source: str
    mask: str | None
    weights: str | None
    sha256: str | None
    cut_mm: float
    problem: dict[str, object] | None


class CordOutputSpec(TraitedSpec):
    """A record, see :class:`CordRecord`."""

    record_file = File(exists=True, desc="cord.json")


class UseCordMaskInputSpec(VersionedInputSpec):
    """An image and a mask that somebody else made."""

    in_file = File(exists=True, mandatory=True, desc="image")
    mask_file = File(exists=True, mandatory=True, desc="cord mask or probability on the image's grid")
    source = traits.Str(mandatory=True, desc="who made the mask, in words")
    corrected = traits.Bool(desc="true: a reader's, which may lie on another lattice and must be in order")
    found = traits.Bool(desc="true: a program found it, so it is held against what a cord can be")


class UseCordMask(ScsegInterface):
    """Take a cord mask from a file."""

    input_spec = UseCordMaskInputSpec
    output_spec = CordOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        image, mask = Path(self.inputs.in_file), Path(self.inputs.mask_file)
        corrected, found = bool(self.given("corrected")), bool(self.given("found"))
        record = record_cord(image, mask, cwd, source=self.inputs.source, corrected=corrected, found=found)
        return {"record_file": record}


class FindCordInputSpec(VersionedInputSpec):
    """An image and the finder's bundle."""

    in_file = File(exists=True, mandatory=True, desc="image")
    bundle = traits.Str(mandatory=True, nohash=True, desc="folder of the cord finder")
    bundle_sha256 = traits.Str(mandatory=True, desc="checksum of all that decides its output")
    socket = traits.Str(mandatory=True, nohash=True, desc="address of the inference process")
    deterministic = traits.Bool(desc="true: must not be taken from a run whose bits depend on threads")


class FindCordOutputSpec(CordOutputSpec):
    """A record, and for how long it holds."""

    run_folder = Directory(exists=True, desc="set if the record holds for this run only, with which it goes")


class FindCord(ScsegInterface):
    """Segment the cord with the built-in network.

    Where the network fails on the image (for want of memory, say), the image has a problem as long as the
    run lasts: the next run finds the run's folder gone and asks again. Where the inference process itself is
    gone, the node fails.
    """

    input_spec = FindCordInputSpec
    output_spec = FindCordOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        image, found, address = Path(self.inputs.in_file), cwd / "probability.nii.gz", self.inputs.socket
        try:
            request_cord(address, bundle=Path(self.inputs.bundle), image=image, output=found)
        except ImageError as error:
            return {"record_file": write_record(cwd, source=NETWORK, problem=error)}
        except SessionError as error:
            if not _answers(address, error):
                raise
            problem = type(error)(
                error.found, file=error.file or image, expected=error.expected, remedy=error.remedy
            )
            record = write_record(cwd, source=NETWORK, problem=problem)
            return {"record_file": record, "run_folder": Path(address).parent}
        return {"record_file": record_cord(image, found, cwd, source=NETWORK, found=True)}

    def _list_outputs(self) -> dict[str, Any]:
        if not self._results:  # asked for by Nipype where what an earlier run left does not hold any more
            raise FileNotFoundError("the record of an earlier run")  # upon which it runs the node
        return dict(super()._list_outputs())


def _answers(address: str, error: SessionError) -> bool:
    """Whether the inference process goes on after an error, which then is about one image alone."""
    if error.file == address:  # it could not be reached, after long waiting
        return False
    try:
        request(address, task="ping")
    except ScsegError:
        return False
    return True


def record_cord(
    image_file: Path,
    mask_file: Path,
    folder: Path,
    *,
    source: str,
    corrected: bool = False,
    found: bool = False,
) -> Path:
    """Clean a cord mask and record it.

    Parameters
    ----------
    image_file, mask_file
        Image, and mask or probability on its grid.
    folder
        Where ``cord.json``, ``mask.nii.gz`` and ``weights.nii.gz`` go.
    source
        Who made the mask, in words.
    corrected
        Whether a reader made it, see :func:`.corrections.read_cord`.
    found
        Whether a program found it, see :func:`.cordmask.credible_cord`.

    Returns
    -------
    Path of the record. A mask that cannot be used makes a record with a problem.

    Raises
    ------
    DataError, GeometryError, ImageError
        If a mask that a reader corrected cannot be used: nothing else may take its place in silence.
    """
    own = _readers_mask(image_file, mask_file) if corrected else None
    try:
        grid = read_image(image_file)[1]
        weights = _on_grid(mask_file, grid) if own is None else own
        cleaned = mask = clean_cord(weights, grid, file=image_file)
        if found:
            mask = credible_cord(cleaned, weights, grid, file=image_file)
    except (ImageError, CordNotFoundError) as error:
        return write_record(folder, source=source, problem=error)
    _save(mask.astype(np.uint8), grid, folder / "mask.nii.gz")
    weights = np.clip(weights, 0, 1).astype(np.float32)
    _save(weights if not found else near(weights, mask), grid, folder / "weights.nii.gz")
    return write_record(folder, source=source, problem=None, cut_mm=cut_below(cleaned, mask, grid))


def _readers_mask(image_file: Path, mask_file: Path) -> npt.NDArray[np.float32] | None:
    """A corrected mask on its image's lattice; None where the image itself cannot be read."""
    try:
        grid = read_image(image_file)[1]
    except ImageError:
        return None
    return read_cord(mask_file, grid)


def _on_grid(mask_file: Path, grid: Grid) -> npt.NDArray[np.float32]:
    try:
        data, own = read_values(mask_file)
    except (ImageError, MissingInputError) as error:
        raise ImageError(
            f"cord mask cannot be read ({error.found})",
            file=mask_file,
            expected=error.expected or "a NIfTI volume",
            remedy="make it again, or remove it from the derivatives folder",
        ) from error
    if not same_lattice(own, grid):
        raise ImageError(
            f"cord mask of shape {own.shape} is not on the image's grid",
            file=mask_file,
            expected=f"shape {grid.shape} and the image's affine",
            remedy="resample the mask to the image",
        )
    return data


def _save(data: npt.NDArray[Any], grid: Grid, path: Path) -> None:
    nib.Nifti1Image(data, grid.affine).to_filename(path)


def load_volume(path: Path) -> npt.NDArray[np.float32]:
    """A mask or map that an earlier node wrote, (i, j, k) float32."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)


def write_record(folder: Path, *, source: str, problem: ScsegError | None, cut_mm: float = 0.0) -> Path:
    """Write ``cord.json``; with the checksum of its files, so whatever reads the record notices a change."""
    files = folder / "mask.nii.gz", folder / "weights.nii.gz"
    there = problem is None
    record = CordRecord(
        source=source,
        mask=files[0].name if there else None,
        weights=files[1].name if there else None,
        sha256=_checksum(files) if there else None,
        cut_mm=round(cut_mm, 3),
        problem=None if problem is None else error_to_json(problem),
    )
    path = folder / RECORD_FILE
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def _checksum(files: Iterable[Path]) -> str:
    """SHA-256 of volumes' values (files differ by the time that gzip writes into them)."""
    found = hashlib.sha256()
    for file in files:
        found.update(load_volume(file).tobytes())
    return found.hexdigest()


def read_record(path: Path) -> CordRecord:
    """Read what :func:`write_record` wrote."""
    record: CordRecord = json.loads(path.read_text(encoding="utf-8"))
    return record
