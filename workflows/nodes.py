"""How nodes are made here."""

from __future__ import annotations

from nipype.interfaces.base import BaseInterface
from nipype.pipeline.engine import Node

from bids_scseg import NUMERICAL_VERSION

DEFAULT_GB = 0.2  # Nipype's own


def make_node(
    interface: BaseInterface, *, name: str, always: bool = False, mem_gb: float = DEFAULT_GB
) -> Node:
    """A node whose hash includes the numerical version of this program.

    Parameters
    ----------
    interface
        An interface with its inputs set.
    name
        Name of the node, shown as the step in progress and logs.
    always
        Run even if nothing changed (nodes that write outputs, which the user may have removed).
    mem_gb
        Largest memory that it will need, by estimate; no part of its hash.
    """
    if "code_version" in interface.inputs.copyable_trait_names():
        interface.inputs.code_version = NUMERICAL_VERSION
    return Node(interface, name=name, overwrite=True if always else None, mem_gb=mem_gb)
