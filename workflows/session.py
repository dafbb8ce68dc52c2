"""The graph of one session: cord → prepare → segment → measure → write → report."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bids_scseg.bids.memory import LATE_GB
from bids_scseg.interfaces.engine import load_engine
from bids_scseg.interfaces.measure import MeasureLesions
from bids_scseg.interfaces.outputs import ReportSession, WriteResults
from bids_scseg.interfaces.prepare import PrepareSession
from bids_scseg.interfaces.sct import DISCS_RECORD, LabelDiscs, labels_words, level_source, sct_sha256
from bids_scseg.interfaces.segment import SegmentLesions
from bids_scseg.recipe.load import recipe_to_json
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.cord import init_cord_wf
from bids_scseg.workflows.job import SessionJob
from bids_scseg.workflows.nodes import DEFAULT_GB, make_node
from bids_scseg.workflows.segment import OUTPUTS, LesionEngine, init_lesion_wf, sct_engine

WORKFLOW_NAME = "session"
DISCS_TO_MEASURE = (
    ("label_files", "landmark_files"), ("levels_from", "levels_from"),
    ("warnings", "level_warnings"),
)  # fmt: skip


def init_session_wf(*, job: SessionJob, base_dir: Path) -> Workflow:
    """Build the graph of one session.

    Parameters
    ----------
    job
        Plan, options, models and the address of the inference process.
    base_dir
        The session's own work folder.

    Returns
    -------
    Workflow whose last nodes write into ``job.options.output_dir``.
    """
    plan = job.plan
    files = [(sequence.name, file) for sequence in plan.sequences for file in sequence.files]
    images = [file.path for _, file in files]
    by_name = {file.relative: file.path for _, file in files}
    memory = defaultdict(lambda: DEFAULT_GB, plan.node_memory)
    cord = init_cord_wf(
        images=images,
        masks={by_name[name]: mask for name, mask in plan.cord_masks if name in by_name},
        method=job.cord_method,
        bundle=job.cord_path,
        bundle_sha256=job.cord_sha256,
        sct_sha256=job.cord_sha256,
        socket=job.socket,
        deterministic=job.options.deterministic,
        mem_gb=memory["cord"],
    )
    for name in [name for name in cord.list_node_names() if name.startswith("sct_cord")]:
        cord.get_node(name).inputs.threads = sct_threads(job)
    lesions = _lesion_wf(
        job, images=images, keys=[key for key, _ in files], names=[f.relative for _, f in files]
    )
    levels = level_source(job.options.levels, labelled=bool(plan.labels))
    labels = list(plan.labels) if levels == "labels" else []
    lesions.get_node("measure").inputs.landmark_files = labels
    lesions.get_node("measure").inputs.levels_from = labels_words(labels, job.options.derivatives)
    outputs = Node(IdentityInterface(fields=["record_files", *OUTPUTS]), name="results")
    inputs = _output_inputs(job)
    write = make_node(WriteResults(**inputs), name="write", always=True, mem_gb=memory["write"])
    report = make_node(ReportSession(**inputs), name="report", always=True, mem_gb=memory["report"])

    workflow = Workflow(name=WORKFLOW_NAME, base_dir=str(base_dir))
    names = ["record_files", *OUTPUTS]
    workflow.connect(
        [
            (cord, lesions, [("outputnode.record_files", "inputnode.record_files")]),
            (cord, outputs, [("outputnode.record_files", "record_files")]),
            (lesions, outputs, [(f"outputnode.{name}", name) for name in OUTPUTS]),
            (outputs, write, [(name, name) for name in names]),
            (outputs, report, [(name, name) for name in names]),
            (write, report, [("written", "written")]),
        ]
    )
    if levels == "sct":
        anchor = [file.path for name, file in files if name == plan.anchor]
        label = LabelDiscs(in_files=anchor, engine_sha256=sct_sha256("spine"))
        discs = make_node(label, name="sct_discs", mem_gb=LATE_GB)
        discs.inputs.threads = sct_threads(job)
        found = [(key, f"measure.{name}") for key, name in DISCS_TO_MEASURE]
        workflow.connect([(discs, lesions, found)])
    else:  # what an earlier run could not label is no warning of this one
        (base_dir / WORKFLOW_NAME / "sct_discs" / DISCS_RECORD).unlink(missing_ok=True)
    return workflow


def sct_threads(job: SessionJob) -> int:
    """CPUs for one call of SCT: those of the run, shared by the sessions that it works on at once."""
    return max(1, job.options.threads // job.options.workers)


def _lesion_wf(job: SessionJob, *, images: list[str], keys: list[str], names: list[str]) -> Workflow:
    bundle = load_engine(job.model_path)
    rules = bundle.recipe.inference
    if bundle.engine:
        engine = sct_engine(bundle, images=images, keys=keys, names=names, threads=sct_threads(job))
    else:
        engine = _own_engine(job)
    prepare = PrepareSession(
        in_files=images,
        keys=keys,
        names=names,
        recipe=json.dumps(recipe_to_json(bundle.recipe), sort_keys=True),
        label=job.plan.label,
        seed=job.options.random_seed,
    )
    if job.plan.geometry:
        prepare.inputs.given_file = job.plan.geometry
    measure = MeasureLesions(
        threshold=job.threshold,
        seed_threshold=job.seed_threshold,
        seed_threshold_alone=job.seed_threshold_alone,
        min_volume_mm3=job.min_volume_mm3,
        connectivity=rules.connectivity,
        model=bundle.name,
        model_sha256=bundle.weights_sha256,
        warnings=list(job.plan.warnings),
    )
    if job.plan.corrections:  # the network's answer stays as it is: nothing before this node changes
        measure.inputs.correction_files = [path for _, path in job.plan.corrections]
        measure.inputs.correction_images = [image for image, _ in job.plan.corrections]
    return init_lesion_wf(prepare=prepare, engine=engine, measure=measure, memory=dict(job.plan.node_memory))


def _own_engine(job: SessionJob) -> LesionEngine:
    segment = SegmentLesions(bundle=job.model_path, bundle_sha256=job.model_sha256, socket=job.socket)
    if job.options.deterministic:  # left undefined otherwise, so that hashes of earlier runs hold
        segment.inputs.deterministic = True
    return LesionEngine(segment=segment)


def _output_inputs(job: SessionJob) -> dict[str, object]:
    return {
        "plan": job.plan,
        "options": job.options,
        "run": {
            "model_path": job.model_path,
            "threshold": job.threshold,
            "seed_threshold": job.seed_threshold,
            "seed_threshold_alone": job.seed_threshold_alone,
            "min_volume_mm3": job.min_volume_mm3,
            "cord_method": job.cord_method,
            "device": job.device,
            "started": job.started,
            "seed": str(job.options.random_seed),
            "versions": dict(job.versions),
        },
    }


def read_warnings(base_dir: Path, plan: Plan) -> tuple[str, ...]:
    """Warnings of a session that has run: plan, fit, SCT's levels, landmarks, corrected lesions."""
    warnings = list(plan.warnings)
    for pattern, key in (
        ("**/fit_report.json", "warnings"),
        (f"**/{DISCS_RECORD}", "warnings"),
        ("**/landmarks.json", "problems"),
    ):
        for path in sorted((base_dir / WORKFLOW_NAME).glob(pattern))[:1]:
            warnings += json.loads(path.read_text(encoding="utf-8")).get(key, [])
    for path in sorted((base_dir / WORKFLOW_NAME).glob("**/measure/session.json"))[:1]:
        correction = json.loads(path.read_text(encoding="utf-8")).get("correction") or {}
        warnings += correction.get("notes", [])
    return tuple(warnings)
