"""One tiny dataset, two tiny models, one inference process and one good run for the whole folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from integration.checks import Result, call
from integration.cohorts import STAR, TWO_SLABS, add_session, describe, tiny_finder, tiny_model

from bids_scseg.bids.validator import Judgement
from bids_scseg.cli import participant
from bids_scseg.inference.client import InferenceServer
from bids_scseg.workflows import job, verification
from bids_scseg.workflows.job import run_job


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A lesion model with random weights that finds something."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def finder(tmp_path_factory) -> Path:
    """A cord finder that finds no cord."""
    return tiny_finder(tmp_path_factory.mktemp("models") / "blind", bias=-20.0)


@pytest.fixture(scope="session")
def server() -> Iterator[InferenceServer]:
    """One inference process: importing torch takes longer than all the sessions here."""
    with InferenceServer("cpu", threads=1) as running:
        yield running


class SharedServer:
    """Stands where a run would start an inference process of its own."""

    warning = None

    def __init__(self, server: InferenceServer) -> None:
        self.servers = (server,)
        self.description = server.description

    def __call__(self, device: str, *, threads: int, at_most: int, deterministic: bool) -> SharedServer:
        return self

    def __enter__(self) -> SharedServer:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def sessions_here(jobs, *, workers, stop_on_first_crash, progress, budget):
    """As ``run_sessions``, in this process and one after another."""
    for given in jobs:
        device = budget.take(given.plan.label)
        if device is not None:  # none where another program does all the work
            given = replace(given, socket=device.address, device=device.description)
        outcome = run_job(given, progress=lambda step, label=given.plan.label: progress(label, step))
        yield outcome
        if outcome.ends_run or (stop_on_first_crash and not outcome.ok):
            return


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run(server, model, finder) -> Run:
    """Run the participant level in this process with the shared inference process and the tiny models."""

    def participant_level(bids: Path, out: Path, *more: object, cord: str = "builtin") -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(participant, "InferencePool", SharedServer(server))
            patch.setattr(job, "LOCK_WAIT_S", 0.0)
            patch.setattr(verification, "validate", lambda _: Judgement(state="not run", why="slow"))
            patch.setattr(participant, "run_sessions", sessions_here)
            patch.setattr(participant, "CORD_FINDER", str(finder))
            return call(bids, out, "participant", "--model", model, "--cord", cord, *more)

    return participant_level


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Two sessions of one subject and one of another, with cord masks in ``derivatives/labels``."""
    root = describe(tmp_path_factory.mktemp("cohort") / "bids")
    add_session(root, "sub-01_ses-1", [*TWO_SLABS, STAR])
    add_session(root, "sub-01_ses-2", [STAR])
    add_session(root, "sub-02", [STAR])
    return root


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    bids: Path
    out: Path
    result: Result

    @property
    def labels(self) -> str:
        """The option that hands over the cord masks."""
        return f"labels={self.bids / 'derivatives' / 'labels'}"


@pytest.fixture(scope="session")
def good(run, cohort, tmp_path_factory) -> Finished:
    """All sessions of the cohort, done; not to be changed."""
    out = tmp_path_factory.mktemp("good") / "out"
    labels = f"labels={cohort / 'derivatives' / 'labels'}"
    result = run(cohort, out, "-d", labels, "--output-spaces", "all")
    return Finished(cohort, out, result)


@pytest.fixture
def again(good, tmp_path) -> Finished:
    """The same with its work folder elsewhere, to be run again and changed."""
    out = Path(shutil.copytree(good.out, tmp_path / "out"))
    return Finished(good.bids, out, good.result)
