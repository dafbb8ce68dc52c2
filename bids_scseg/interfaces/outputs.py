"""The last steps of a session: derivatives and the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from bids_scseg.bids.derivatives import SessionResults, write_results
from bids_scseg.bids.header import read_image
from bids_scseg.bids.names import session_names
from bids_scseg.errors import ImageError
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec
from bids_scseg.interfaces.cord import load_volume, read_record
from bids_scseg.interfaces.engine import load_engine
from bids_scseg.interfaces.measure import read_json, write_json
from bids_scseg.interfaces.prepare import load_case
from bids_scseg.recipe.study import Plan
from bids_scseg.report.assemble import ReportInput, assemble_report
from bids_scseg.report.session import write_session_report
from bids_scseg.space.grid import Grid

RECORDS_FILE = "records.json"

NativeCord = tuple[npt.NDArray[np.float32], Grid, npt.NDArray[np.bool_] | None, str]


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
        engine = _engine(self)
        results = SessionResults(
            plan=self.inputs.plan,
            geometry=geometry,
            labels=np.load(self.inputs.labels_file, allow_pickle=False),
            probability=np.load(self.inputs.probability_file, allow_pickle=False),
            lesions=read_json(self.inputs.table_file),
            summary={
                **read_json(self.inputs.row_file),
                "fit": fit,
                "run": run,
                **({"engine": engine} if engine else {}),
            },
            engine=engine,
            cords={
                name: (cord, grid, who) for name, (_, grid, cord, who) in natives.items() if cord is not None
            },
            anchor_images=[natives[slab.file][0] for slab in geometry.slabs_of(geometry.anchor)],
            sequences=case.sequences,
        )
        # Which of the cord records in the work folder are of this run, for reports drawn again later.
        write_json(cwd / RECORDS_FILE, [os.path.relpath(path, cwd) for path in self.inputs.record_files])
        options = self.inputs.options
        return {
            "written": list(write_results(options.output_dir, results, output_spaces=options.output_spaces))
        }


def _engine(node: ScsegInterface) -> dict[str, Any]:
    """Whose network found the lesions; empty for this program's own."""
    file = node.given("engine_file")
    return read_json(file) if file else {}


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
        marks, fit = read_json(self.inputs.landmarks_file), read_json(self.inputs.report_file)
        report = assemble_report(
            ReportInput(
                plan=plan,
                case=load_case(self.inputs.case_files)[0],
                bundle=load_engine(run["model_path"]),
                engine=_engine(self),
                labels=np.load(self.inputs.labels_file, allow_pickle=False),
                probability=np.load(self.inputs.probability_file, allow_pickle=False),
                lesions=read_json(self.inputs.table_file),
                measures=read_json(self.inputs.row_file),
                fit={**fit, "warnings": [*fit["warnings"], *marks.get("problems", [])]},
                levels=[(name, top) for name, top, _, _ in marks["levels"]],
                origin="" if marks["kind"] == "field of view" else marks["kind"],
                natives=read_natives(plan, self.inputs.record_files),
                run={key: str(value) for key, value in run.items() if key != "versions"},
                versions=run["versions"],
                links=[
                    (Path(path).name, path)
                    for path in self.inputs.written
                    if path.endswith((".nii.gz", ".tsv"))
                ],
            )
        )
        anchor = next(sequence.files for sequence in plan.sequences if sequence.name == report.anchor)
        page = out / session_names(anchor, subject=plan.subject, session=plan.session).report
        write_session_report(report, page, figures_dir=out / "figures")
        return {"html_file": str(page)}


def read_natives(plan: Plan, records: list[str]) -> dict[str, NativeCord]:
    """Native images of a session with their cord masks.

    Returns
    -------
    Relative path → (volume, lattice, cord mask or None, who made it); unreadable images are left out.
    """
    names = {file.path: file.relative for sequence in plan.sequences for file in sequence.files}
    found: dict[str, NativeCord] = {}
    for path in map(Path, records):
        record = read_record(path)
        if record["image"] not in names:
            continue  # a report drawn again after files were renamed
        try:
            data, grid = read_image(record["image"])
        except ImageError:
            continue  # the cord node has recorded it, and the fit report names it
        mask = record["mask"]
        cord = None if mask is None else load_volume(path.parent / mask) > 0
        found[names[record["image"]]] = (data, grid, cord, record["source"])
    return found
