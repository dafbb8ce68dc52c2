"""Shared fixtures: where optional data lies, and a fast, repeatable hypothesis profile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ROOT = Path(__file__).resolve().parents[1]


def _data(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / "data" / name))
    if not folder.is_dir():
        pytest.skip(f"{name} is not here (set {variable} to its folder)")
    return folder


@pytest.fixture(scope="session")
def real_dev() -> Path:
    """A BIDS dataset of real spinal cord scans with cord masks."""
    return _data("BIDS_SCSEG_REAL_DEV", "real-dev")


@pytest.fixture(scope="session")
def sct_reference() -> Path:
    """Reference outputs of the Spinal Cord Toolbox."""
    return _data("BIDS_SCSEG_SCT_REFERENCE", "sct-reference")
