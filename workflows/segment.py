"""From cord records to measured lesions: prepare, segment, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_scseg.inference.bundle import ModelBundle
from bids_scseg.interfaces.engine import sct_task
from bids_scseg.interfaces.measure import MeasureLesions
from bids_scseg.interfaces.prepare import PrepareSession
from bids_scseg.interfaces.sct_lesion import FuseMaps, SegmentImage
from bids_scseg.interfaces.segment import SegmentLesions
from bids_scseg.workflows.nodes import DEFAULT_GB, make_node

OUTPUTS = (
    "case_files", "geometry_file", "report_file", "probability_file", "labels_file", "table_file", "row_file",
    "landmarks_file", "engine_file",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionEngine:
    """What finds the lesions of a session.

    Attributes
    ----------
    segment
        Makes one map of the prepared case.
    images
        Nodes that run on single images before it, in the images' order; none for a network of our own.
    """

    segment: SegmentLesions | FuseMaps
    images: tuple[SegmentImage, ...] = ()


def sct_engine(
    bundle: ModelBundle,
    *,
    images: Sequence[str],
    keys: Sequence[str],
    names: Sequence[str],
    threads: int = 0,
) -> LesionEngine:
    """The engine of a network of the Spinal Cord Toolbox: each image by itself, then late fusion.

    Parameters
    ----------
    bundle
        Description of the network, with its engine.
    images, keys, names
        Path, sequence and relative path of each image of the session.
    threads
        CPUs that one call may take; 0: SCT decides.
    """
    task, release = sct_task(bundle.engine), dict(bundle.provenance).get("release", "unknown")
    return LesionEngine(
        segment=FuseMaps(keys=list(keys), names=list(names), engine=bundle.engine, release=release),
        images=tuple(
            SegmentImage(in_file=image, task=task, engine_sha256=bundle.weights_sha256, threads=threads)
            for image in images
        ),
    )


def init_lesion_wf(
    *,
    prepare: PrepareSession,
    engine: LesionEngine,
    measure: MeasureLesions,
    memory: Mapping[str, float],
    name: str = "lesions",
) -> Workflow:
    """Build the part of the graph that finds and measures lesions.

    Parameters
    ----------
    prepare, engine, measure
        The interfaces with their own settings; files between them are connected here.
    memory
        Largest memory of each kind of node, GB; of those that it lacks nothing is known.

    Inputs
    ------
    inputnode.record_files
        One cord record per image.

    Outputs
    -------
    outputnode
        ``case_files``, ``geometry_file``, ``report_file`` (fit), ``probability_file``, ``labels_file``,
        ``table_file``, ``row_file``, ``landmarks_file``; ``engine_file`` where another program's network
        found the lesions, else undefined.
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=["record_files"]), name="inputnode")
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name="outputnode")
    need = {node: memory.get(node, DEFAULT_GB) for node in ("prepare", "segment", "measure")}
    prepared = make_node(prepare, name="prepare", mem_gb=need["prepare"])
    segmented = make_node(engine.segment, name="segment", mem_gb=need["segment"])
    measured = make_node(measure, name="measure", mem_gb=need["measure"])
    workflow.connect(
        [
            (inputnode, prepared, [("record_files", "record_files")]),
            (prepared, segmented, [("case_files", "case_files")]),
            (prepared, measured, [("case_files", "case_files"), ("report_file", "report_file")]),
            (segmented, measured, [("probability_file", "probability_file")]),
            (prepared, outputnode, [(name, name) for name in OUTPUTS[:3]]),
            (segmented, outputnode, [("probability_file", "probability_file")]),
            (measured, outputnode, [(name, name) for name in OUTPUTS[4:8]]),
        ]
    )
    if engine.images:
        merge = Node(Merge(len(engine.images)), name="merge_maps")
        for number, interface in enumerate(engine.images, start=1):
            node = make_node(interface, name=f"sct_lesions_{number:02d}", mem_gb=need["segment"])
            workflow.connect(prepared, "geometry_file", node, "after")
            workflow.connect(node, "record_file", merge, f"in{number}")
        workflow.connect(merge, "out", segmented, "record_files")
        workflow.connect(segmented, "engine_file", outputnode, "engine_file")
    return workflow
