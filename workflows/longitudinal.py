"""Changes between the sessions of participants, from the outputs of the participant level.

Sessions that follow each other are aligned and their lesions matched, a pair at a time, in worker processes.
Alignments are kept in ``group/alignments.json`` under a checksum of all that they were made from.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bids_scseg import files
from bids_scseg.bids.timepoints import (
    acquisition_times,
    find_session_files,
    raw_folder,
)
from bids_scseg.bids.write import safe_join, write_json
from bids_scseg.errors import DataError
from bids_scseg.measure.changes import (
    CohortChanges,
    PairFindings,
    flags_of,
    tabulate,
)
from bids_scseg.measure.cohort import CohortTables, SessionOutputs
from bids_scseg.measure.timeline import SessionPair, session_pairs
from bids_scseg.measure.volume_noise import volume_change
from bids_scseg.preprocess.realign import REALIGN_VERSION
from bids_scseg.processes import end_with_parent
from bids_scseg.workflows.pair import SEED, PairJob, TimedSession, compare_pair, needs_alignment

LOG = logging.getLogger(__name__)

CACHE = "group/alignments.json"
KILLED = "the worker was killed, most likely because memory ran out: lower --nprocs"
#: Findings of a pair, and its alignment for the cache.
Compared = tuple[PairFindings, Mapping[str, Any] | None]


def compare_sessions(
    out: Path,
    cohort: CohortTables,
    outputs: Sequence[SessionOutputs],
    *,
    dataset: Path | None = None,
    workers: int = 1,
) -> CohortChanges:
    """Compare the sessions of each participant that follow each other.

    Parameters
    ----------
    out
        Output folder of the participant level.
    cohort, outputs
        Its tables, and what they were built from.
    dataset
        The raw dataset: dates, and anchors that the outputs do not hold. Without it the dataset that the
        outputs name is looked for.
    workers
        Pairs compared at once.
    """
    raw = dataset or raw_folder(out)
    labels = [(item.subject, item.session) for item in outputs]
    times = {} if raw is None else acquisition_times(raw, _repeated(labels))
    pairs, trajectories = session_pairs(cohort.sessions, times)
    timed = _timed(out, cohort, outputs, raw, {label for pair in pairs for label in pair.labels})
    known = _read_cache(out)
    jobs: list[PairJob | None] = []
    keys: list[str] = []
    for pair in pairs:
        sessions = (timed[pair.labels[0]], timed[pair.labels[1]])
        job = None if pair.refusal else PairJob(sessions=sessions)
        key = "" if job is None or not needs_alignment(job) else _key(sessions)
        keys.append(key)
        jobs.append(None if job is None else replace(job, cached=known.get(key)))
    slow = len({key for key in keys if key} - known.keys())  # the others take no time
    found, aligned = _compare_all(pairs, jobs, min(workers, slow))
    _write_cache(out, {key: facts for key, facts in zip(keys, aligned, strict=True) if key and facts})
    lesions, table = tabulate(pairs, found, sessions=cohort.sessions, lesions=cohort.lesions)
    return CohortChanges(
        lesions=lesions, pairs=table, trajectories=trajectories, flags=flags_of(pairs, found)
    )


def _repeated(labels: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Those of subjects with several sessions."""
    subjects = [subject for subject, _ in labels]
    return [(subject, session) for subject, session in labels if subjects.count(subject) > 1]


def _timed(
    out: Path,
    cohort: CohortTables,
    outputs: Sequence[SessionOutputs],
    raw: Path | None,
    wanted: set[str],
) -> dict[str, TimedSession]:
    kinds = {
        (row["participant_id"], row["session_id"]): str(row["arc_origin"])
        for row in cohort.sessions.to_dict("records")
    }
    lesions: dict[tuple[object, object], list[dict[Hashable, Any]]] = {}
    for row in cohort.lesions.dropna(subset=["index", "volume_mm3"]).to_dict("records"):
        lesions.setdefault((row["participant_id"], row["session_id"]), []).append(row)
    found = {}
    for item in outputs:
        if item.label not in wanted:
            continue
        keys = (item.keys["participant_id"], item.keys["session_id"])
        own = lesions.get(keys, [])
        cord = cohort.maps.get(item.label, {})
        origin = cord.get("origin_s_mm")
        known = bool(cord.get("anatomical")) and isinstance(origin, int | float)
        found[item.label] = TimedSession(
            files=find_session_files(out, item.subject, item.session, raw=raw, table=item.lesions),
            sizes={int(row["index"]): (float(row["volume_mm3"]), float(row["length_mm"])) for row in own},
            centres={
                int(row["index"]): (
                    float(row["centre_x_mm"]),
                    float(row["centre_y_mm"]),
                    float(row["centre_z_mm"]),
                )
                for row in own
            },
            origin_s_mm=float(str(origin)) if known else None,
            origin_kind=kinds.get(keys, ""),
        )
    return found


# -- all pairs -------------------------------------------------------------------------------------


def _compare_all(
    pairs: Sequence[SessionPair], jobs: Sequence[PairJob | None], workers: int
) -> tuple[list[PairFindings], list[Mapping[str, Any] | None]]:
    """Findings and alignments of all pairs, in their order."""
    found: list[PairFindings] = []
    aligned: list[Mapping[str, Any] | None] = []
    results = _each([job for job in jobs if job is not None], workers)
    for pair, job in zip(pairs, jobs, strict=True):
        refused = PairFindings(state="refused", reason=pair.refusal), None
        one, facts = refused if job is None else next(results)
        LOG.info("%s and %s: %s", *pair.labels, one.reason or one.state)
        found.append(one)
        aligned.append(facts)
    return found, aligned


def _each(jobs: Sequence[PairJob], workers: int) -> Iterator[Compared]:
    """What is found for each job, in their order; in worker processes where more than one has work.

    A worker that is killed breaks the pool and takes all unfinished pairs with it: those are compared once
    more, each in a pool of its own, so that only the pair that kills again is left with totals.
    """
    if workers < 2:
        yield from map(compare_pair, jobs)
        return
    with _pool(workers) as pool:
        running = [_submit(pool, job) for job in jobs]
        for job, future in zip(jobs, running, strict=True):
            yield _result(future) or _alone(job)


def _alone(job: PairJob) -> Compared:
    """Findings from a pool of one; totals only if that worker is killed too."""
    with _pool(1) as pool:
        found = _result(_submit(pool, job))
    if found is not None:
        return found
    total = volume_change(*(session.sizes.values() for session in job.sessions))
    return PairFindings(state="totals only", reason=KILLED, total=total), None


def _submit(pool: ProcessPoolExecutor, job: PairJob) -> Future[Compared] | None:
    """The running job; None if the pool is broken already."""
    try:
        return pool.submit(compare_pair, job)
    except BrokenProcessPool:
        return None


def _result(future: Future[Compared] | None) -> Compared | None:
    """What a worker found; None if one was killed."""
    try:
        return None if future is None else future.result()
    except BrokenProcessPool:
        return None


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)


# -- cache -----------------------------------------------------------------------------------------


def _key(sessions: tuple[TimedSession, TimedSession]) -> str:
    """Checksum of all that an alignment depends on; empty if it cannot be made."""
    parts = ["realign", REALIGN_VERSION, version("antspyx"), str(SEED)]
    for session in sorted(sessions, key=lambda item: item.files.label):
        if session.files.geometry is None or session.files.image is None:
            return ""
        parts += [files.sha256(session.files.geometry), files.sha256(session.files.image)]
        parts.append(f"{session.origin_s_mm!r} {session.origin_kind}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_cache(out: Path) -> Mapping[str, Mapping[str, Any]]:
    """Alignments of earlier runs; nothing where there are none that can be read."""
    path = safe_join(out, CACHE)
    try:
        data = files.read_json(path) if path.is_file() else {}
    except DataError:
        return {}
    return {
        str(key): value
        for key, value in (data.items() if isinstance(data, dict) else ())
        if isinstance(value, dict)
    }


def _write_cache(out: Path, alignments: Mapping[str, Mapping[str, Any]]) -> None:
    if alignments or safe_join(out, CACHE).is_file():
        write_json(out, CACHE, alignments)
