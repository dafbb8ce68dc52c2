"""From native images and cord records to the prepared case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, InputMultiPath, OutputMultiPath, TraitedSpec, traits

from bids_scseg.bids.given import read_geometry
from bids_scseg.errors import CordNotFoundError, DataError, ImageError, ScsegError, SessionError
from bids_scseg.files import sha256
from bids_scseg.inference.protocol import error_from_json
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.interfaces.cord import load_volume, read_record
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.preprocess.reuse import prepare_given
from bids_scseg.recipe.load import recipe_from_json
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.grid import Grid
from bids_scseg.space.nifti import read_image

CASE_FILES = ("case.json", "image.npy", "coverage.npy", "cord.npy", "cord_share.npy")

Native = tuple[npt.NDArray[np.float32], Grid, str]
Problem = tuple[str, ScsegError]  # of an image: sequence, and what is wrong


class PrepareSessionInputSpec(VersionedInputSpec):
    """Cord records, their images, and the sequence that each image serves."""

    record_files = InputMultiPath(File(exists=True), mandatory=True, desc="one cord record per image")
    in_files = InputMultiPath(File(exists=True), mandatory=True, desc="image of each record")
    keys = traits.List(traits.Str, mandatory=True, desc="sequence of each image")
    names = traits.List(traits.Str, mandatory=True, desc="each image's path relative to the dataset")
    recipe = traits.Str(mandatory=True, desc="recipe as JSON")
    label = traits.Str(mandatory=True, desc="sub-X[_ses-Y]")
    seed = traits.Int(0, usedefault=True, desc="of the registration")
    given_file = File(exists=True, desc="geometry of an earlier run, to be applied instead of a fit")


class PrepareSessionOutputSpec(TraitedSpec):
    """The case, its geometry, and how well the fit went."""

    case_files = OutputMultiPath(File(exists=True), desc="the prepared case")
    geometry_file = File(exists=True, desc="geometry as JSON")
    report_file = File(exists=True, desc="fit report as JSON")


class PrepareSession(ScsegInterface):
    """Fit the session's geometry, or take a given one, and apply it once."""

    input_spec = PrepareSessionInputSpec
    output_spec = PrepareSessionOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        images, cords, problems = load_session(
            [Path(path) for path in self.inputs.record_files],
            [Path(path) for path in self.inputs.in_files],
            keys=self.inputs.keys,
            names=self.inputs.names,
        )
        recipe = recipe_from_json(json.loads(self.inputs.recipe))
        given = self.given("given_file")
        try:
            if given is None:
                case, report = prepare_session(images, cords, recipe, seed=self.inputs.seed)
            else:
                case, report = prepare_given(read_geometry(given), images, cords, recipe)
        except CordNotFoundError as error:
            raise cause_of(problems) or error from error
        case.save(cwd / "case")
        data = report.to_json()
        data["warnings"] = [*(f"{key}: {problem}" for key, problem in problems), *report.warnings]
        unread = {key: problem.found for key, problem in problems if key not in images}
        data["dropped"] = [*unread.items(), *report.dropped]
        if given is not None:
            data["geometry"] = {"file": Path(given).name, "sha256": sha256(Path(given))}
        return {
            "case_files": [str(cwd / "case" / name) for name in CASE_FILES if (cwd / "case" / name).exists()],
            "geometry_file": _write(cwd / "geometry.json", case.geometry.to_json() if case.geometry else {}),
            "report_file": _write(cwd / "fit_report.json", data),
        }


def _write(path: Path, data: object) -> str:
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def load_session(
    records: Sequence[Path], files: Sequence[Path], *, keys: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, list[Native]], dict[str, list[npt.NDArray[np.float32] | None]], list[Problem]]:
    """Read a session's images and cord masks.

    Parameters
    ----------
    records, files
        Cord records, and the image of each. Records do not say where: a dataset may be moved.
    keys, names
        Sequence and name of each image.

    Returns
    -------
    images, cords, problems
        By sequence name, as :func:`~bids_scseg.preprocess.prepare.prepare_session` takes them; images that
        cannot be read are left out. The problems say why, and why images have no cord.
    """
    images: dict[str, list[Native]] = {}
    cords: dict[str, list[npt.NDArray[np.float32] | None]] = {}
    problems: list[Problem] = []
    for path, file, key, name in zip(records, files, keys, names, strict=True):
        record = read_record(path)
        try:
            data, grid = read_image(file)
        except ImageError as error:
            problems.append((key, error))
            continue
        if record["problem"] is not None:
            problems.append((key, _found_here(error_from_json(record["problem"]), file)))
        images.setdefault(key, []).append((data, grid, name))
        cords.setdefault(key, []).append(load_weights(path))
    return images, cords, problems


def _found_here(problem: ScsegError, file: Path) -> ScsegError:
    """A recorded problem of an image with the image's present place."""
    if problem.file is None or Path(problem.file).name != file.name:
        return problem
    return type(problem)(problem.found, file=file, expected=problem.expected, remedy=problem.remedy)


def cause_of(problems: Sequence[Problem]) -> ScsegError | None:
    """Why a session has no image to work with, as one error; None where nothing is known."""
    if len(problems) < 2:
        return problems[0][1] if problems else None
    reasons = "; ".join(f"{Path(error.file or key).name}: {error.found}" for key, error in problems)
    remedies = dict.fromkeys(error.remedy for _, error in problems if error.remedy)
    images_alone = all(isinstance(error, ImageError | CordNotFoundError) for _, error in problems)
    return (CordNotFoundError if images_alone else SessionError)(
        f"no image of this session can be used ({reasons})",
        file=", ".join(dict.fromkeys(error.file for _, error in problems if error.file)),
        expected="an image in which the cord is found",
        remedy="; ".join(remedies),
    )


def load_weights(record_file: Path) -> npt.NDArray[np.float32] | None:
    """Cord probability of a record, (i, j, k) float32 on the image's grid; None where no cord was found."""
    name = read_record(record_file)["weights"]
    return None if name is None else load_volume(record_file.parent / name)


def load_case(case_files: Sequence[str]) -> tuple[PreparedCase, Geometry]:
    """The prepared case whose files these are, and its geometry.

    Raises
    ------
    DataError
        If the case has no geometry.
    """
    folder = Path(case_files[0]).parent
    case = PreparedCase.load(folder)
    if case.geometry is None:
        raise DataError("the prepared case has no geometry", file=folder, expected="one in case.json")
    return case, case.geometry
