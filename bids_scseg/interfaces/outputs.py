"""The last steps of a session: derivatives and the report."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from bids_scseg.bids.derivatives import SessionResults, write_results
from bids_scseg.bids.names import session_names
from bids_scseg.bids.verify import verify_written
from bids_scseg.errors import ImageError
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.interfaces.cord import load_volume, read_record
from bids_scseg.interfaces.engine import load_engine
from bids_scseg.interfaces.measure import landmarks_from_json, read_json, write_json
from bids_scseg.interfaces.prepare import load_case
from bids_scseg.measure.cordmap import cord_map
from bids_scseg.measure.landmarks import Landmarks
from bids_scseg.measure.quality import quality_columns, quality_row, scanner_row
from bids_scseg.preprocess.case import PreparedCase
from bids_scseg.recipe.study import ImageFile, Plan
from bids_scseg.report.assemble import NativeCord, ReportInput, assemble_report
from bids_scseg.report.history import read_history
from bids_scseg.report.quality import read_outliers
from bids_scseg.report.session import write_session_report
from bids_scseg.space.geometry import Geometry
from bids_scseg.space.nifti import read_image

RECORDS_FILE = "records.json"


class ResultInputSpec(VersionedInputSpec):
    """Results of the earlier nodes, and the run."""

    record_files = InputMultiPath(File(exists=True), mandatory=True, desc="cord records")
    case_files = InputMultiPath(File(exists=True), mandatory=True, desc="the prepared case")
    geometry_file = File(exists=True, mandatory=True, desc="geometry")
    report_file = File(exists=True, mandatory=True, desc="fit report")
    probability_file = File(exists=True, mandatory=True, desc="lesion probability in prepared space")
    labels_file = File(exists=True, mandatory=True, desc="lesion numbers in prepared space")
    table_file = File(exists=True, mandatory=True, desc="lesion table")
    row_file = File(exists=True, mandatory=True, desc="session row")
    landmarks_file = File(exists=True, mandatory=True, desc="landmarks")
    engine_file = File(exists=True, desc="whose network found the lesions, where it is not this program's")
    plan = traits.Any(mandatory=True, desc="Plan of the session")
    options = traits.Any(mandatory=True, desc="RunOptions")
    run = traits.Dict(mandatory=True, desc="facts of the run")


class WriteResultsOutputSpec(TraitedSpec):
    """What was written."""

    written = traits.List(traits.Str, desc="paths relative to the output folder")


class WriteResults(ScsegInterface):
    """Write the session's derivatives."""

    input_spec = ResultInputSpec
    output_spec = WriteResultsOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        natives = read_natives(self.inputs.plan, self.inputs.record_files)
        case, geometry = load_case(self.inputs.case_files)
        fit = read_json(self.inputs.report_file)
        # The bundle's path is this machine's; its name and checksum are in the row.
        run = {key: value for key, value in self.inputs.run.items() if key != "model_path"}
        labels = np.load(self.inputs.labels_file, allow_pickle=False)
        marks = landmarks_from_json(read_json(self.inputs.landmarks_file))
        measures = read_json(self.inputs.row_file)
        engine = _engine(self)
        results = SessionResults(
            plan=self.inputs.plan,
            geometry=geometry,
            labels=labels,
            probability=np.load(self.inputs.probability_file, allow_pickle=False),
            lesions=read_json(self.inputs.table_file),
            summary={
                **measures,
                **scanner_row(self.inputs.plan),
                **_for_cohorts(case, labels, geometry, marks, fit=fit, measures=measures),
                "fit": fit,
                "run": run,
                **({"engine": engine} if engine else {}),
            },
            engine=engine,
            cords={
                name: (native.cord, native.grid, native.source)
                for name, native in natives.items()
                if native.cord is not None
            },
            anchor_images=[natives[slab.file].image for slab in geometry.slabs_of(geometry.anchor)],
            sequences=case.sequences,
        )
        # Which of the cord records in the work folder are of this run, for reports drawn again later.
        names = [file.relative for file in _images(self.inputs.plan)]
        places = [os.path.relpath(path, cwd) for path in self.inputs.record_files]
        write_json(cwd / RECORDS_FILE, dict(zip(names, places, strict=True)))
        options = self.inputs.options
        return {
            "written": list(write_results(options.output_dir, results, output_spaces=options.output_spaces))
        }


def _engine(node: ScsegInterface) -> dict[str, Any]:
    """Whose network found the lesions; empty for this program's own."""
    file = node.given("engine_file")
    return read_json(file) if file else {}


def _for_cohorts(
    case: PreparedCase,
    labels: npt.NDArray[np.int32],
    geometry: Geometry,
    marks: Landmarks,
    *,
    fit: dict[str, Any],
    measures: dict[str, Any],
) -> dict[str, object]:
    """What the group level needs beyond the session's row: quality, and lesions in cord coordinates."""
    cord = np.zeros(geometry.grid.shape, np.float32) if case.cord is None else case.cord
    shared: dict[str, Any] = {"coverage": case.coverage, "cord": cord, "geometry": geometry}
    quality = quality_row(case.image, labels, sequences=case.sequences, fit=fit, measures=measures, **shared)
    return {**quality, "cord_map": cord_map(labels, landmarks=marks, **shared)}


class ReportSessionInputSpec(ResultInputSpec):
    """The same, after the derivatives are there."""

    written = traits.List(traits.Str, mandatory=True, desc="derivatives, to link to")


class ReportSessionOutputSpec(TraitedSpec):
    """One page."""

    html_file = File(exists=True, desc="the report")


class ReportSession(ScsegInterface):
    """Write the session's report."""

    input_spec = ReportSessionInputSpec
    output_spec = ReportSessionOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        plan, run, out = self.inputs.plan, self.inputs.run, Path(self.inputs.options.output_dir)
        case = load_case(self.inputs.case_files)[0]
        marks, fit = read_json(self.inputs.landmarks_file), read_json(self.inputs.report_file)
        landmarks = landmarks_from_json(marks)
        report = assemble_report(
            ReportInput(
                plan=plan,
                case=case,
                bundle=load_engine(run["model_path"]),
                engine=_engine(self),
                labels=np.load(self.inputs.labels_file, allow_pickle=False),
                probability=np.load(self.inputs.probability_file, allow_pickle=False),
                lesions=read_json(self.inputs.table_file),
                measures={**_quality(out, plan, case), **read_json(self.inputs.row_file)},
                outliers=read_outliers(out, plan.label),
                fit={**fit, "warnings": [*fit["warnings"], *marks.get("problems", [])]},
                levels=landmarks.ranges,
                origin=landmarks.kind if landmarks.anatomical else "",
                natives=read_natives(plan, self.inputs.record_files),
                run={**_words(run), "verified": verify_written(out, self.inputs.written)},
                versions=run["versions"],
                links=[
                    (Path(path).name, path)
                    for path in self.inputs.written
                    if path.endswith((".nii.gz", ".tsv"))
                ],
            )
        )
        report = replace(report, history=read_history(out, plan.label))
        anchor = next(sequence.files for sequence in plan.sequences if sequence.name == report.anchor)
        page = out / session_names(anchor, subject=plan.subject, session=plan.session).report
        write_session_report(report, page, figures_dir=out / "figures")
        return {"html_file": str(page)}


def _quality(out: Path, plan: Plan, case: PreparedCase) -> dict[str, Any]:
    """Quality of the session, as its summary has it."""
    files = next(sequence.files for sequence in plan.sequences)
    names = session_names(files, subject=plan.subject, session=plan.session)
    summary = read_json(out / names.summary)
    return {column.name: summary.get(column.name) for column in quality_columns(case.sequences)}


def _words(run: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in run.items() if key != "versions"}


def read_natives(plan: Plan, records: list[str]) -> dict[str, NativeCord]:
    """Native images of a session with their cord masks.

    Parameters
    ----------
    plan
        Of the session; it says where the images are now.
    records
        Cord record of each image, in the plan's order.

    Returns
    -------
    Relative path → image and cord; unreadable images are left out.
    """
    found: dict[str, NativeCord] = {}
    for file, path in zip(_images(plan), map(Path, records), strict=True):
        record = read_record(path)
        try:
            data, grid = read_image(file.path)
        except ImageError:
            continue  # the cord node has recorded it, and the fit report names it
        mask = record["mask"]
        cord = None if mask is None else load_volume(path.parent / mask) > 0
        cut_mm = record.get("cut_mm", 0.0)  # work folders of earlier versions do not say
        found[file.relative] = NativeCord(data, grid, cord, record["source"], cut_mm)
    return found


def _images(plan: Plan) -> list[ImageFile]:
    """Images of a plan in the order of their cord records."""
    return [file for sequence in plan.sequences for file in sequence.files]
