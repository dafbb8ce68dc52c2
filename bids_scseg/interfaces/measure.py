"""From lesion probabilities to numbered lesions and their tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from bids_scseg import __version__
from bids_scseg.bids.corrections import read_drawn
from bids_scseg.bids.masks import point_kind, same_lattice
from bids_scseg.errors import ImageError, MissingInputError
from bids_scseg.files import sha256
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.interfaces.prepare import load_case
from bids_scseg.measure.corrections import Corrected, Drawn, correct_lesions
from bids_scseg.measure.extent import beyond_masks, most_beyond
from bids_scseg.measure.instances import Labels, label_lesions, seed_thresholds
from bids_scseg.measure.landmarks import Landmarks, Level, fit_landmarks, label_points
from bids_scseg.measure.lesions import lesion_table
from bids_scseg.measure.session import MODEL_ORIGIN, Provenance, session_row
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.nifti import read_image


class MeasureLesionsInputSpec(VersionedInputSpec):
    """Everything from the threshold on: a new threshold re-runs this and what follows, never inference."""

    case_files = InputMultiPath(File(exists=True), mandatory=True, desc="the prepared case")
    probability_file = File(exists=True, mandatory=True, desc="lesion probability in prepared space")
    report_file = File(exists=True, mandatory=True, desc="fit report")
    landmark_files = InputMultiPath(File(exists=True), desc="disc or vertebra labels")
    levels_from = traits.Str("", usedefault=True, desc="who made these labels, in words")
    correction_files = InputMultiPath(File(exists=True), desc="lesion masks that a reader corrected")
    correction_images = traits.List(traits.Str, desc="image that each was drawn on; empty: none alone")
    threshold = traits.Float(mandatory=True, desc="probability from which a voxel is lesion")
    seed_threshold = traits.Float(0.0, usedefault=True, desc="lesions that never reach it are dropped")
    seed_threshold_alone = traits.Float(
        0.0, usedefault=True, desc="the same where one sequence alone covers a voxel; 0: as elsewhere"
    )
    min_volume_mm3 = traits.Float(0.0, usedefault=True, desc="smaller lesions are dropped")
    connectivity = traits.Enum(26, 18, 6, usedefault=True, desc="neighbourhood of one lesion")
    model = traits.Str(mandatory=True, desc="name of the model")
    model_sha256 = traits.Str(mandatory=True, desc="checksum of its weights")
    warnings = traits.List(traits.Str, desc="warnings of the plan")
    level_warnings = traits.List(traits.Str, desc="why SCT could not label an image")


class MeasureLesionsOutputSpec(TraitedSpec):
    """Lesion numbers and their tables."""

    labels_file = File(exists=True, desc="lesion numbers in prepared space, int32 .npy")
    table_file = File(exists=True, desc="lesion table, JSON records")
    row_file = File(exists=True, desc="session row, JSON")
    landmarks_file = File(exists=True, desc="landmarks, JSON")


class MeasureLesions(ScsegInterface):
    """Number the lesions once, in prepared space, and measure them."""

    input_spec = MeasureLesionsInputSpec
    output_spec = MeasureLesionsOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        case, geometry = load_case(self.inputs.case_files)
        probability = np.load(self.inputs.probability_file, allow_pickle=False)
        cord = np.zeros(geometry.grid.shape, np.float32) if case.cord is None else case.cord
        labels = label_lesions(
            probability,
            threshold=self.inputs.threshold,
            connectivity=self.inputs.connectivity,
            seed_threshold=seed_thresholds(
                case.coverage,
                threshold=self.inputs.seed_threshold,
                alone=self.inputs.seed_threshold_alone,
            ),
            min_volume_mm3=self.inputs.min_volume_mm3,
            voxel_volume=geometry.grid.voxel_volume,
            cord=cord,
        )
        corrected = self._corrected(labels, geometry)
        labels = labels if corrected is None else corrected.labels
        marks, unread = read_landmarks(self.given("landmark_files") or [], geometry)
        if marks.anatomical or marks.levels:
            marks = replace(marks, source=self.inputs.levels_from)
        shared: dict[str, Any] = {
            "coverage": case.coverage, "cord": cord, "geometry": geometry, "anchor": geometry.anchor,
            "sequences": case.sequences, "landmarks": marks,
        }  # fmt: skip
        table = lesion_table(labels, probability, image=case.image, **shared)
        told = [*(self.given("warnings") or []), *(self.given("level_warnings") or [])]
        flags = [*told, *read_json(self.inputs.report_file)["warnings"], *unread]
        flags += extent_notes(marks, geometry, cord)
        if corrected is not None:
            flags += correction_notes(corrected)
        origin = MODEL_ORIGIN if corrected is None else corrected.origin
        row: dict[str, object] = {
            **session_row(
                table, labels, probability, provenance=self._provenance(origin), flags=flags, **shared
            )
        }
        if corrected is not None:
            row["correction"] = correction_record(self.inputs.correction_files, corrected)
        np.save(cwd / "labels.npy", labels, allow_pickle=False)
        return {
            "labels_file": str(cwd / "labels.npy"),
            "table_file": write_json(cwd / "lesions.json", json.loads(table.to_json(orient="records"))),
            "row_file": write_json(cwd / "session.json", row),
            "landmarks_file": write_json(
                cwd / "landmarks.json", {**landmarks_json(marks), "problems": unread}
            ),
        }

    def _corrected(self, labels: Labels, geometry: Geometry) -> Corrected | None:
        """The lesions as a reader's masks have them; None where nobody corrected them."""
        files = self.given("correction_files")
        if not files:
            return None
        drawn = []
        for file, image in zip(files, self.inputs.correction_images, strict=True):
            values, grid = read_drawn(file)
            slab = geometry.lattice_in_world(grid, file=image)
            drawn.append(Drawn(values=values, slab=replace(slab, file=str(file))))
        return correct_lesions(labels, drawn, geometry, connectivity=self.inputs.connectivity)

    def _provenance(self, origin: str) -> Provenance:
        return Provenance(
            mask_origin=origin,
            threshold=self.inputs.threshold,
            model=self.inputs.model,
            model_sha256=self.inputs.model_sha256,
            version=__version__,
        )


def correction_record(files: Sequence[str], corrected: Corrected) -> dict[str, object]:
    """What was corrected by whose masks, as plain data for the session's row, sidecars and report."""
    return {
        "origin": corrected.origin,
        "files": [{"file": Path(file).name, "sha256": sha256(Path(file))} for file in files],
        "kept": corrected.kept,
        "redrawn": corrected.redrawn,
        "beyond": corrected.beyond,
        "outside_mm3": corrected.outside_mm3,
        "notes": correction_notes(corrected),
    }


def correction_notes(corrected: Corrected) -> list[str]:
    """What a reader of the results must know of a correction, one sentence each."""
    notes = []
    if corrected.beyond:
        count = f"{corrected.beyond} lesion{'s' * (corrected.beyond != 1)}"
        notes.append(f"{count} of the model lie beyond the field of view of the corrected mask and stand")
    if corrected.outside_mm3 > 0:
        notes.append(
            f"{corrected.outside_mm3:.0f} mm³ of the corrected mask lie outside the window round the cord "
            "and are not counted"
        )
    return notes


def extent_notes(marks: Landmarks, geometry: Geometry, cord: npt.NDArray[np.generic]) -> list[str]:
    """That images may show cord beyond the masks, in a sentence; nothing where it may well be none."""
    most = most_beyond(beyond_masks(geometry, cord, levels=marks.ranges))
    return [] if most is None or most.perhaps_no_cord else [most.sentence]


def read_landmarks(files: list[str], geometry: Geometry) -> tuple[Landmarks, list[str]]:
    """Landmarks from disc and vertebra label images, told apart by their names.

    A label image on the lattice of a slab was drawn on that slab, and moves with it; the anchor's slabs come
    first, because slabs of two sequences may share a lattice. Labels found twice count as first found.

    Returns
    -------
    landmarks, warnings
        Label images that cannot be used are left out and named in the warnings.
    """
    points: dict[Any, dict[int, Any]] = {"discs": {}, "vertebrae": {}}
    warnings = []
    slabs = [*geometry.slabs_of(geometry.anchor), *geometry.slabs]
    for file in files:
        kind = point_kind(Path(file).name) or "vertebrae"
        try:
            data, grid = read_image(file)
        except (ImageError, MissingInputError) as error:
            warnings.append(f"labels not used: {error}")
            continue
        xfm = next((slab.xfm for slab in slabs if same_lattice(grid, slab.grid)), None)
        points[kind] = label_points(data, grid, xfm=xfm) | points[kind]
    return fit_landmarks(points, geometry=geometry, key=geometry.anchor), warnings


def landmarks_json(marks: Landmarks) -> dict[str, object]:
    """Landmarks as plain data."""
    levels = [[level.name, level.top_s_mm, level.bottom_s_mm, level.approximate] for level in marks.levels]
    known = {"origin_s_mm": marks.origin_s_mm, "kind": marks.kind, "levels": levels}
    return {**known, "source": marks.source}


def landmarks_from_json(data: dict[str, Any]) -> Landmarks:
    """Inverse of :func:`landmarks_json`."""
    return Landmarks(
        origin_s_mm=data["origin_s_mm"],
        kind=data["kind"],
        source=data.get("source", ""),
        levels=tuple(
            Level(name=name, top_s_mm=top, bottom_s_mm=bottom, approximate=approximate)
            for name, top, bottom, approximate in data["levels"]
        ),
    )


def read_json(path: str | Path) -> Any:
    """A JSON file of a previous node."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: Path, data: object) -> str:
    """Write a JSON file for the next node; numbers that are not finite become null."""
    path.write_text(json.dumps(_plain(data), allow_nan=False), encoding="utf-8")
    return str(path)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data")
