"""Reports drawn again from what a finished session left in its work folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bids_scseg.bids.names import session_names
from bids_scseg.errors import MissingInputError
from bids_scseg.files import sha256
from bids_scseg.interfaces.engine import load_engine
from bids_scseg.interfaces.measure import read_json
from bids_scseg.interfaces.outputs import RECORDS_FILE, ReportSession
from bids_scseg.options import RunOptions
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.job import record_outputs
from bids_scseg.workflows.session import WORKFLOW_NAME

FILES = {
    "geometry_file": "lesions/prepare/geometry.json",
    "report_file": "lesions/prepare/fit_report.json",
    "probability_file": "lesions/segment/probability.npy",
    "labels_file": "lesions/measure/labels.npy",
    "table_file": "lesions/measure/lesions.json",
    "row_file": "lesions/measure/session.json",
    "landmarks_file": "lesions/measure/landmarks.json",
}
ENGINE_FILE = "lesions/segment/engine.json"  # only where another program's network found the lesions


def rewrite_report(plan: Plan, options: RunOptions) -> Path:
    """Draw a session's report from its intermediate files; nothing is computed and no log is touched.

    Returns
    -------
    Path of the page.

    Raises
    ------
    MissingInputError
        If the session was not finished, its intermediate files are gone, or its model is another one.
    """
    folder = options.work / plan.label / WORKFLOW_NAME
    summary = _summary(plan, options)
    files: dict[str, Any] = {name: str(folder / path) for name, path in FILES.items()}
    if (folder / ENGINE_FILE).is_file():
        files["engine_file"] = str(folder / ENGINE_FILE)
    files["case_files"] = [str(path) for path in sorted(folder.glob("lesions/prepare/case/*"))]
    records = folder / "write" / RECORDS_FILE
    absent = [path for path in (records, *(folder / path for path in FILES.values())) if not path.is_file()]
    if absent:
        raise MissingInputError(
            "intermediate files of the session are gone",
            file=absent[0],
            expected="the work folder of the run that made the results",
            remedy="name it by --work-dir, or run without --reports-only",
        )
    _check_current(plan, read_json(files["row_file"]))
    files["record_files"] = _record_files(plan, records)
    run = {**summary["run"], "model_path": _model_path(summary, options)}
    page = ReportSession(plan=plan, options=options, run=run, written=summary["outputs"], **files)
    drawn = Path(page.run(cwd=str(folder)).outputs.html_file)
    record_outputs(options.output_dir, plan, drawn_again=True)
    return drawn


def _record_files(plan: Plan, records: Path) -> list[str]:
    """Cord record of each image of a plan; refused where the run had other images."""
    known = read_json(records)
    names = [file.relative for sequence in plan.sequences for file in sequence.files]
    if set(names) != set(known):
        raise MissingInputError(
            "the images of the session are not those of the results",
            file=next((name for name in sorted(set(names) ^ set(known))), None),
            remedy="run without --reports-only; finished steps are kept",
        )
    return [os.path.normpath(records.parent / known[name]) for name in names]


def _check_current(plan: Plan, row: dict[str, Any]) -> None:
    """Refuse to draw a page that would speak of corrections which the results do not have yet, or no more."""
    known = {item["sha256"] for item in (row.get("correction") or {}).get("files", [])}
    if plan.conflict or {sha256(Path(path)) for _, path in plan.corrections} != known:
        raise MissingInputError(
            "the corrected lesion masks are not those of the results",
            file=next((path for _, path in plan.corrections), None),
            remedy="run without --reports-only; the network does not run again",
        )


def _model_path(summary: dict[str, Any], options: RunOptions) -> str:
    """Folder of the model that made the results; the summary knows its checksum only."""
    bundle = load_engine(options.model)
    if bundle.weights_sha256 != summary.get("model_sha256"):
        raise MissingInputError(
            f"the session's results are not of the model {bundle.name}",
            file=bundle.path,
            expected=f"the model {summary.get('model')}",
            remedy="name it by --model, or run without --reports-only",
        )
    return str(bundle.path)


def _summary(plan: Plan, options: RunOptions) -> dict[str, Any]:
    """The session's summary, which is written last."""
    files = [file for sequence in plan.sequences for file in sequence.files][:1]
    name = session_names(files, subject=plan.subject, session=plan.session).summary if files else plan.label
    path = options.output_dir / name
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingInputError(
            "the session has no results yet",
            file=path,
            expected="its summary",
            remedy="run without --reports-only",
        ) from error
    return summary
