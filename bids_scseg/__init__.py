"""Spinal cord lesion segmentation from every MR sequence that a session has, as a BIDS App."""

__version__ = "0.1.0"
