"""Nipype graph builders and the runner of sessions; import as ``bids_scseg.workflows``."""

if __name__ != "bids_scseg.workflows":
    raise ImportError(
        f"import bids_scseg.workflows, not {__name__}: the folder at the top level is its source"
    )
