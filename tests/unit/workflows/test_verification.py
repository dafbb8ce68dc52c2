"""After a run: the validator waits for nobody, and judges no folder that somebody is writing."""

from __future__ import annotations

import fcntl

import pytest
from file_systems import FLOCK, flock_of_nfs

from bids_scseg import files
from bids_scseg.bids.validator import Judgement
from bids_scseg.workflows import verification


@pytest.mark.parametrize("flock", [FLOCK, flock_of_nfs])
def test_the_validator_is_left_out_while_another_run_writes(tmp_path, monkeypatch, flock):
    monkeypatch.setattr(fcntl, "flock", flock)
    judged = Judgement(state="passed")
    monkeypatch.setattr(verification, "validate", lambda _: judged)
    with files.lock(tmp_path / "logs" / ".sub-02.lock"):
        assert "another run is writing" in verification._validate_after(tmp_path, ["sub-01"]).why
    assert verification._validate_after(tmp_path, ["sub-01"]) is judged
