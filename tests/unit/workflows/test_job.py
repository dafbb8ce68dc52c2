"""What a session's worker notes while it runs: memory by step, and the room on a full disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bids_builders import image, lattice, study
from unit_jobs import job

from bids_scseg.bids.plan import make_plan
from bids_scseg.errors import DiskFullError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.workflows import job as job_module
from bids_scseg.workflows.cord import init_cord_wf
from bids_scseg.workflows.job import StepWatch, run_job

MEGABYTES = 200


class Step:
    """Stands for a node of the graph."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder

    def output_dir(self) -> str:
        return str(self._folder / self.name)


def test_memory_is_noted_for_the_step_that_took_it(tmp_path):
    steps = []
    watch = StepWatch(steps.append)
    for name, megabytes in (("small", 0), ("large", MEGABYTES), ("after", 0)):
        watch(Step(name, tmp_path), "start")
        block = np.ones(megabytes * 1_000_000, np.uint8)
        del block
        watch(Step(name, tmp_path), "end")
    memory = dict(watch.memory())
    assert list(memory) == ["start", "small", "large", "after"]
    assert steps == ["small", "large", "after"]
    assert memory["large"] - memory["small"] > 0.9 * MEGABYTES / 1e3
    assert memory["large"] - memory["after"] > 0.9 * MEGABYTES / 1e3


def test_a_full_disk_is_told_with_what_is_there_and_what_is_needed(tmp_path, monkeypatch):
    """And what the broken step has left makes room for the logs."""
    half = tmp_path / "out" / "work" / "sub-1" / "prepare"

    def fail(_, __, watch):
        watch(Step("prepare", half.parent), "start")
        half.mkdir(parents=True)
        (half / "image.npy").write_bytes(b"half")
        watch(Step("prepare", half.parent), "exception")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job_module, "_run_graph", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.24e6))
    given = job("1")
    options = replace(given.options, output_dir=tmp_path / "out")
    given = replace(given, plan=replace(given.plan, anchor="T2Sag"), options=options, disk_gb=0.031)
    outcome = run_job(given, progress=lambda _: None)
    assert outcome.cause == (
        "the disk is full; 1.2 MB are free; expected about 31 MB for a session like this"
    )
    assert (outcome.state, outcome.step, outcome.ends_run) == ("failed", "prepare", True)
    assert "run the same command again" in outcome.remedy
    assert not half.exists()


def test_a_full_disk_between_steps_takes_no_results(tmp_path, monkeypatch):
    whole = tmp_path / "out" / "work" / "sub-1" / "prepare"

    def fail(_, __, watch):
        watch(Step("prepare", whole.parent), "start")
        whole.mkdir(parents=True)
        watch(Step("prepare", whole.parent), "end")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job_module, "_run_graph", fail)
    given = job("1")
    options = replace(given.options, output_dir=tmp_path / "out")
    given = replace(given, plan=replace(given.plan, anchor="T2Sag"), options=options)
    assert run_job(given, progress=lambda _: None).ends_run
    assert whole.exists()


def test_an_error_of_ours_about_a_full_disk_keeps_its_file(tmp_path):
    error = DiskFullError("cannot be written (x)", file="/out/mask.nii.gz", remedy="free space")
    given = job("1")
    given = replace(given, options=replace(given.options, output_dir=tmp_path), disk_gb=0.02)
    found = job_module._with_room(error, given)
    assert (found.file, found.remedy) == ("/out/mask.nii.gz", "free space")
    assert "MB are free" in found.found and found.expected == "about 20 MB for a session like this"


def test_nodes_of_the_graph_carry_their_estimates():
    plan = make_plan(study(image("acq-sag_T2w", lattice(slices=200))), load_recipe("cord-lesion"))
    need = dict(plan.node_memory)["cord"]
    common = {"bundle": "b", "bundle_sha256": "0", "socket": "s", "mem_gb": need}
    graph = init_cord_wf(images=[__file__], masks={}, method="builtin", **common)
    assert graph.get_node("find_cord_01").mem_gb == need > 0.3
