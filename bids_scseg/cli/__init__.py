"""Command lines: ``bids_scseg`` (the BIDS App) and ``scseg`` (the toolbox)."""
