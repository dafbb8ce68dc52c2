"""The demo dataset and training sets: synthetic subjects as BIDS, with truth under ``derivatives/labels``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from bids_scseg.processes import worker_pool
from bids_scseg.synth.anatomy import draw_anatomy
from bids_scseg.synth.files import write_json, write_tsv
from bids_scseg.synth.lesions import Lesion, draw_lesions
from bids_scseg.synth.protocol import OVERLAP_MM, seam_heights
from bids_scseg.synth.scenario import SIX, SUBJECTS, Scenario, training_scenario
from bids_scseg.synth.session import Place, write_session
from bids_scseg.synth.subject import Anatomy, Rng

BIDS_VERSION = "1.10.0"
README = """# Synthetic spinal cord MRI

Every image in this dataset is computed: a procedural anatomy of the spine with multiple sclerosis lesions,
scanned by a simulated scanner. Nobody was scanned. The images serve demonstrations, tests and training of
software; they say nothing about patients.

Each participant shows one case that real folders have: several overlapping slabs, missing sequences, two
sessions, a lesion across the seam of two slabs, scans that are no part of the protocol (brain, after contrast
agent, phase, magnetisation transfer) and a repeated run. The `case` column of participants.tsv names it.

The truth is in derivatives/labels: the cord, the lesions and the discs on the lattice of each image; cord and
lesions at 0.5 mm; and for each lesion its size, position and contrast-to-noise ratio in each sequence. The
cord lies up to 2 mm apart between sequences; `SubjectMotion` in the sidecar of each cord mask is the rigid
transform from the scan's world to that of the truth at 0.5 mm.
"""
LABELS_README = """# Truth of the synthetic spinal cord dataset

`*_label-SC_mask`, `*_label-lesion_mask`, `*_seg-lesions_dseg`, `*_seg-discs_dseg`: voxels at least half
filled, on the lattice of the image that the sidecar's `Sources` names. Disc values are the number of the
vertebra below (3 is C2-C3). `*_res-iso_*_desc-truth_*`: at 0.5 mm, with the table of the lesions.
"""


def write_demo(
    out: Path,
    *,
    subjects: int = 3,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write a raw BIDS dataset of synthetic subjects with truth under ``derivatives/labels``.

    Parameters
    ----------
    out
        Folder, created where absent.
    subjects
        Number of subjects; they cycle through the special cases, all of which are there from 8 subjects on.
    seed
        The same seed gives the same bytes, whatever ``workers`` is.
    workers
        Processes.
    progress
        Called whenever a subject is written.
    """
    cases = [SUBJECTS[n % len(SUBJECTS)] for n in range(subjects)]
    labels = [f"{n:02d}" for n in range(1, subjects + 1)]
    write_descriptions(out, name="Synthetic spinal cord MRI", labels=labels, cases=[c[0].name for c in cases])
    _run(
        partial(_write_numbered, out, seed),
        [(number, label, case) for number, (label, case) in enumerate(zip(labels, cases, strict=True))],
        workers,
        progress,
    )


def write_training_set(
    out: Path,
    subjects: int,
    *,
    seed: int,
    workers: int = 1,
    sequences: tuple[str, ...] = SIX,
    first: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write many random subjects for training: all sequences, small fields of view, truth as in the demo.

    Parameters
    ----------
    out
        Folder, created where absent.
    subjects
        Number of subjects.
    seed
        Subject ``n`` depends on ``(seed, n)`` only, so sets can be extended.
    workers
        Processes.
    sequences
        Sequences of every session.
    first
        Number of the first subject, to extend a set (the participants table then lists all from 0 on).
    progress
        Called whenever a subject is written.
    """
    labels = [f"{n:04d}" for n in range(first + subjects)]
    write_descriptions(
        out, name="Synthetic spinal cord MRI for training", labels=labels, cases=["training"] * len(labels)
    )
    jobs = []
    for number in range(first, first + subjects):
        jobs.append((number, labels[number], (numbered_scenario(seed, number, sequences),)))
    _run(partial(_write_numbered, out, seed), jobs, workers, progress)


def numbered_scenario(seed: int, number: int, sequences: tuple[str, ...] = SIX) -> Scenario:
    """What the session of subject ``number`` of a training set has."""
    return training_scenario(np.random.default_rng([seed, number, 1]), sequences)


def write_subject(
    out: Path, label: str, *, seed: int | tuple[int, ...], sessions: tuple[Scenario, ...]
) -> None:
    """Write one subject: one session per scenario (session labels 1, 2, … where there are several).

    Parameters
    ----------
    out
        Root of the raw dataset.
    label
        Subject label without ``sub-``.
    seed
        Seeds the subject.
    sessions
        What each session has. Lesions stay between sessions; a later one may have more.
    """
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng)
    lesions: tuple[Lesion, ...] = ()
    for number, scenario in enumerate(sessions, start=1):
        lesions = session_lesions(rng, anatomy, scenario, lesions)
        place = Place(root=out, subject=label, session=str(number) if len(sessions) > 1 else None)
        write_session(place, rng, anatomy=anatomy, lesions=lesions, scenario=scenario)
    if len(sessions) > 1:
        rows: list[dict[str, object]] = [{"session_id": f"ses-{n}"} for n in range(1, len(sessions) + 1)]
        write_tsv(out / f"sub-{label}" / f"sub-{label}_sessions.tsv", ("session_id",), rows)


def write_descriptions(out: Path, *, name: str, labels: list[str], cases: list[str]) -> None:
    """Write descriptions, README files and participants of the dataset and its derivative."""
    maker = [{"Name": "bids_scseg synthetic spinal cord generator"}]
    common = {"BIDSVersion": BIDS_VERSION, "License": "CC0", "GeneratedBy": maker, "Authors": ["bids_scseg"]}
    write_json(out / "dataset_description.json", common | {"Name": name, "DatasetType": "raw"})
    labels_root = out / "derivatives" / "labels"
    links = {"DatasetLinks": {"raw": "../.."}, "SourceDatasets": [{"URL": "../.."}]}
    write_json(
        labels_root / "dataset_description.json",
        common | links | {"Name": f"{name}: truth", "DatasetType": "derivative"},
    )
    (out / "README").write_text(README, encoding="utf-8")
    (labels_root / "README").write_text(LABELS_README, encoding="utf-8")
    write_json(
        out / "participants.json",
        {
            "case": {"Description": "what this subject demonstrates"},
            "species": {"Description": "synthetic subjects are computed after human anatomy"},
        },
    )
    rows: list[dict[str, object]] = [
        {"participant_id": f"sub-{label}", "species": "homo sapiens", "case": case}
        for label, case in zip(labels, cases, strict=True)
    ]
    write_tsv(out / "participants.tsv", ("participant_id", "species", "case"), rows)


def session_lesions(
    rng: Rng, anatomy: Anatomy, scenario: Scenario, before: tuple[Lesion, ...] = ()
) -> tuple[Lesion, ...]:
    """Lesions of a session: drawn afresh, or those of the session before and, below them, new ones."""
    if not before:
        return draw_lesions(rng, anatomy, scenario.lesions, first_z_mm=_seam_z(scenario))
    wanted = scenario.lesions if scenario.lesions is not None else len(before)
    return draw_lesions(rng, anatomy, wanted, present=before)


def _seam_z(scenario: Scenario) -> float | None:
    """Height of the first seam: the middle of the overlap of the two uppermost slabs."""
    slabs = seam_heights(scenario.slabs)
    return slabs[0][0] + OVERLAP_MM / 2 if scenario.seam and len(slabs) > 1 else None


_Job = tuple[int, str, tuple[Scenario, ...]]


def _write_numbered(out: Path, seed: int, job: _Job) -> None:
    number, label, sessions = job
    write_subject(out, label, seed=(seed, number), sessions=sessions)


def _run(
    task: Callable[[_Job], None],
    jobs: Iterable[_Job],
    workers: int,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Run the jobs here, or in processes of their own (started afresh: forking threads is unsafe)."""
    if workers <= 1:
        for job in jobs:
            task(job)
            progress()
        return
    with worker_pool(workers) as pool:
        for _ in pool.map(task, jobs):
            progress()
