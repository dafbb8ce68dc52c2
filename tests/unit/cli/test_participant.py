"""What a run decides before it starts: folders, method for cords, what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from bids_scseg import files
from bids_scseg.bids import checksums
from bids_scseg.cli import participant
from bids_scseg.errors import DiskFullError, MissingToolError, UsageError
from bids_scseg.measure.strata import STRATUM_KEYS, assign_strata
from bids_scseg.options import RunOptions
from bids_scseg.recipe.load import load_recipe
from bids_scseg.workflows import status
from bids_scseg.workflows.job import SessionOutcome
from bids_scseg.workflows.status import Derived

OPTIONS = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant", nprocs=8)


def test_derivatives_of_one_name_are_refused(tmp_path):
    folders = [tmp_path / name / "labels" for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    options = replace(
        OPTIONS, output_dir=tmp_path / "out", derivatives=tuple(("labels", folder) for folder in folders)
    )
    with pytest.raises(UsageError, match="two derivatives folders are called 'labels'"):
        participant.check_folders(options, tmp_path / "raw")


def test_a_derivatives_folder_called_sct_does_not_hide_the_method(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError):
        participant.load_models(replace(OPTIONS, cord="sct", derivatives=(("sct", tmp_path),)))


def test_a_run_says_which_release_of_sct_finds_the_cords(tmp_path, monkeypatch):
    """By which sessions of two releases fall into two strata."""
    program = tmp_path / "bin" / "sct_deepseg"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    facts = []
    for release in ("7.2", "7.3"):
        (tmp_path / "version.txt").write_text(release)
        models = participant.load_models(replace(OPTIONS, cord="sct"))
        facts.append(participant.run_facts(OPTIONS, models, device="cpu"))
    assert [one["libraries"]["Spinal Cord Toolbox"] for one in facts] == ["7.2", "7.3"]
    found = [one["cord_sha256"] for one in facts]
    assert found[0] != found[1] and all(len(checksum) == 64 for checksum in found)
    frame = [{"state": "done", **dict.fromkeys(STRATUM_KEYS, "x"), "cord_sha256": one} for one in found]
    assert len(assign_strata(pd.DataFrame(frame))[1]) == 2


def test_a_session_whose_log_finds_no_room_has_failed_and_ends_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise DiskFullError("cannot be written (x)", file=tmp_path, remedy="free space")

    monkeypatch.setattr(participant, "write_outcome", full)
    done = SessionOutcome(label="sub-1", state="done")
    derived = Derived(tmp_path)
    logged = participant._logged(tmp_path, done, {}, derived)
    assert (logged.state, logged.step, logged.ends_run) == ("failed", "log", True)
    assert logged.file == str(tmp_path)
    own = SessionOutcome(label="sub-1", state="failed", cause="its own", ends_run=True)
    assert participant._logged(tmp_path, own, {}, derived) is own
    busy = SessionOutcome(label="sub-1", state="busy")
    assert participant._logged(tmp_path, busy, {}, derived) is busy


def test_a_lock_that_another_run_holds_changes_no_outcome(tmp_path):
    """The tables of all sessions are made by that run, or by the next."""
    done = SessionOutcome(label="sub-1", state="done")
    derived = Derived(tmp_path)
    with files.lock(tmp_path / status.LOCK), files.lock(tmp_path / checksums.LOCK):
        assert participant._logged(tmp_path, done, {}, derived) is done
        derived.renew(now=True)
    assert (tmp_path / "logs" / "sub-1.json").is_file()
    assert not (tmp_path / "logs" / "status.tsv").exists()
    derived.renew(now=True)
    assert "sub-1\tdone" in (tmp_path / "logs" / "status.tsv").read_text()


def test_earlier_results_of_a_failed_session_are_told(tmp_path):
    """Their place follows from the label: no search through the folders of all subjects."""
    summary = tmp_path / "sub-1" / "ses-2" / "anat" / "sub-1_ses-2_summary.json"
    summary.parent.mkdir(parents=True)
    summary.touch()
    for label, told in (("sub-1_ses-2", True), ("sub-1", False)):
        failed = SessionOutcome(label=label, state="failed", cause="x")
        participant.write_failure_page(tmp_path, failed, {"started": "2026-01-01"})
        page = (tmp_path / f"{label}.html").read_text()
        assert ("of an earlier run of this session are still in place" in page) is told


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (0.8, 0.95)), ({"seed_threshold": 0.0}, (0, 0)), ({"seed_threshold": 0.6}, (0.6, 0)),
     ({"threshold": 0.9}, (0, 0.95)), ({"threshold": 0.7}, (0.8, 0.95)), ({"seed_threshold": 0.2}, (0, 0)),
     ({"threshold": 0.96}, (0, 0))],
)  # fmt: skip
def test_the_seed_threshold_is_the_models_or_the_users_and_none_below_the_threshold(options, expected):
    """Below it every lesion reaches it: such sessions are measured as those without one."""
    recipe = load_recipe("cord-lesion")
    recipe = replace(
        recipe, inference=replace(recipe.inference, seed_threshold=0.8, seed_threshold_alone=0.95)
    )
    models = SimpleNamespace(lesion=SimpleNamespace(recipe=recipe, threshold=0.3))
    given = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant", **options)
    assert participant._seed_thresholds(given, models) == expected
