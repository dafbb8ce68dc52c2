"""Sessions whose graphs are run by plugins of Nipype, through the whole program."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from integration.checks import status
from integration.cohorts import STAR, add_session, describe, mask_path, rewrite

MULTIPROC = ("--plugin", "MultiProc", "--plugin-args", "n_procs=2")

#: Plays Slurm: ``sbatch`` runs the script at once and tells a number, ``squeue`` knows of no job any more.
SBATCH = """#!{python}
import subprocess, sys
from pathlib import Path
log = Path({log!r})
script = Path(sys.argv[-1])
done = subprocess.run(["bash", str(script)], capture_output=True)
with log.open("a") as handle:
    handle.write(" ".join(sys.argv[1:]) + "\\n")
print("Submitted batch job", len(log.read_text().splitlines()))
"""


def results(out: Path) -> dict[str, bytes]:
    """Images and tables of the session."""
    files = sorted((out / "sub-02" / "anat").glob("*"))
    return {path.name: path.read_bytes() for path in files if path.name.endswith((".tsv", "dseg.nii.gz"))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = describe(tmp_path_factory.mktemp("plugins") / "bids")
    add_session(root, "sub-02", [STAR])
    return root


@pytest.fixture(scope="module")
def masks(dataset) -> tuple[str, str]:
    return ("-d", f"labels={dataset / 'derivatives' / 'labels'}")


@pytest.fixture(scope="module")
def plain(run, dataset, masks, tmp_path_factory) -> Path:
    """Results without a plugin."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run(dataset, out, *masks).code == 0
    return out


def test_multiproc_gives_what_a_run_without_it_gives(run, dataset, masks, plain, tmp_path):
    out = tmp_path / "out"
    finished = run(dataset, out, *masks, *MULTIPROC)
    assert finished.code == 0, finished.err
    assert results(out) == results(plain)
    assert results(out)


def test_a_failure_under_multiproc_has_its_cause(run, dataset, tmp_path):
    bids = Path(shutil.copytree(dataset, tmp_path / "bids"))
    rewrite(mask_path(bids, "sub-02", STAR.rest), lambda data: np.zeros(data.shape, np.uint8))
    labels = f"labels={bids / 'derivatives' / 'labels'}"
    rows = []
    for name, asked in (("plain", ()), ("plugin", MULTIPROC)):
        out = tmp_path / name
        assert run(bids, out, "-d", labels, *asked).code == 1
        rows.append(status(out)["sub-02"])
    for key in ("state", "step", "cause", "remedy"):
        assert rows[0][key] == rows[1][key], key
    assert rows[0]["state"] == "refused"


@pytest.mark.slow
def test_slurm_gets_the_nodes_but_not_those_that_ask_the_inference_process(
    run, dataset, masks, plain, tmp_path, monkeypatch
):
    tools, log = tmp_path / "bin", tmp_path / "submitted.log"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(python=sys.executable, log=str(log)))
    (tools / "squeue").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    asked = ("--plugin", "SLURM", "--plugin-args", "sbatch_args=--time=10")
    finished = run(dataset, out, *masks, *asked)
    assert finished.code == 0, finished.err
    assert results(out) == results(plain)
    jobs = log.read_text().splitlines()
    assert all(line.startswith("--time=10 -o ") for line in jobs)
    for step, submitted in (("prepare", True), ("measure", True), ("write", True), ("segment", False)):
        assert any(f"-J {step}." in line or f".{step}." in line for line in jobs) is submitted, (step, jobs)
