"""Cord masks of a session, one node per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_scseg.bids.masks import is_correction
from bids_scseg.bids.memory import LATE_GB
from bids_scseg.interfaces.cord import FindCord, UseCordMask
from bids_scseg.interfaces.sct import SCTDeepSeg
from bids_scseg.report.methods import BY_HAND
from bids_scseg.workflows.nodes import DEFAULT_GB, make_node


def init_cord_wf(
    *,
    images: Sequence[str],
    masks: Mapping[str, str],
    method: str,
    bundle: str,
    bundle_sha256: str,
    socket: str,
    sct_sha256: str = "",
    deterministic: bool = False,
    mem_gb: float = DEFAULT_GB,
    name: str = "cord",
) -> Workflow:
    """Build the part of the graph that gives every image a cord record.

    Parameters
    ----------
    images
        Paths of the session's images.
    masks
        Image path → path of the user's cord mask; these always win.
    method
        ``sct`` or ``builtin``, for the other images.
    bundle, bundle_sha256, socket
        Built-in finder: its bundle, and the inference process.
    sct_sha256
        Checksum of SCT's release and network, where it finds the cords.
    deterministic
        Whether that process keeps to repeatable bits; results of one that does not are not taken then.
    mem_gb
        Largest memory that a node will need.

    Outputs
    -------
    outputnode.record_files
        One ``cord.json`` per image, in the order of ``images``.
    """
    workflow = Workflow(name=name)
    outputnode = Node(IdentityInterface(fields=["record_files"]), name="outputnode")
    merge = Node(Merge(len(images)), name="merge_cords")
    for number, image in enumerate(images, start=1):
        stem = f"{number:02d}"
        if image in masks:
            last = make_node(_given_mask(image, masks[image]), name=f"given_cord_{stem}", mem_gb=mem_gb)
        elif method == "sct":
            tool = SCTDeepSeg(in_file=image, engine_sha256=sct_sha256)
            segment = make_node(tool, name=f"sct_cord_{stem}", mem_gb=LATE_GB)
            clean = UseCordMask(in_file=image, source="sct_deepseg spinalcord", found=True)
            last = make_node(clean, name=f"clean_cord_{stem}", mem_gb=mem_gb)
            workflow.connect(segment, "out_file", last, "mask_file")
        else:
            finder = FindCord(in_file=image, bundle=bundle, bundle_sha256=bundle_sha256, socket=socket)
            if deterministic:
                finder.inputs.deterministic = True
            last = make_node(finder, name=f"find_cord_{stem}", mem_gb=mem_gb)
        workflow.connect(last, "record_file", merge, f"in{number}")
    workflow.connect(merge, "out", outputnode, "record_files")
    return workflow


def _given_mask(image: str, mask: str) -> UseCordMask:
    """The interface for a mask of the user's."""
    name = Path(mask).name
    if not is_correction(name):
        return UseCordMask(in_file=image, mask_file=mask, source=f"given mask {name}")
    return UseCordMask(in_file=image, mask_file=mask, source=f"{BY_HAND} {name}", corrected=True)
