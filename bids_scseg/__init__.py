"""Spinal cord lesion segmentation from every MR sequence that a session has, as a BIDS App."""

__version__ = "0.1.0"

#: Raised whenever the same input gives other numbers; part of every node's hash and of every result.
NUMERICAL_VERSION = "1"
