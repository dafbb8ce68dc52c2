"""From cord records to measured lesions: prepare, segment, measure."""

from __future__ import annotations

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bids_scseg.interfaces.measure import MeasureLesions
from bids_scseg.interfaces.prepare import PrepareSession
from bids_scseg.interfaces.segment import SegmentLesions
from bids_scseg.workflows.nodes import make_node

OUTPUTS = (
    "case_files", "geometry_file", "report_file", "probability_file", "labels_file", "table_file", "row_file",
    "landmarks_file",
)  # fmt: skip


def init_lesion_wf(
    *, prepare: PrepareSession, segment: SegmentLesions, measure: MeasureLesions, name: str = "lesions"
) -> Workflow:
    """Build the part of the graph that finds and measures lesions.

    Parameters
    ----------
    prepare, segment, measure
        The three interfaces with their own settings; files between them are connected here.

    Inputs
    ------
    inputnode.record_files
        One cord record per image.

    Outputs
    -------
    outputnode
        ``case_files``, ``geometry_file``, ``report_file`` (fit), ``probability_file``, ``labels_file``,
        ``table_file``, ``row_file``, ``landmarks_file``.
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=["record_files"]), name="inputnode")
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name="outputnode")
    prepared = make_node(prepare, name="prepare")
    segmented = make_node(segment, name="segment")
    measured = make_node(measure, name="measure")
    workflow.connect(
        [
            (inputnode, prepared, [("record_files", "record_files")]),
            (prepared, segmented, [("case_files", "case_files")]),
            (prepared, measured, [("case_files", "case_files"), ("report_file", "report_file")]),
            (segmented, measured, [("probability_file", "probability_file")]),
            (prepared, outputnode, [(name, name) for name in OUTPUTS[:3]]),
            (segmented, outputnode, [("probability_file", "probability_file")]),
            (measured, outputnode, [(name, name) for name in OUTPUTS[4:]]),
        ]
    )
    return workflow
