"""Changes between the sessions of participants, from the outputs of the participant level.

Sessions that follow each other are aligned and their lesions matched, a pair at a time, in worker processes.
Alignments are kept in ``group/alignments.json`` under a checksum of all that they were made from. The file is
written every few pairs, so that a run that is ended early leaves the next one less to do.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from bids_scseg.processes import WorkerPool, end_with_parent
from bids_scseg.workflows.pair import SEED, PairJob, TimedSession, compare_pair, needs_alignment

LOG = logging.getLogger(__name__)

CACHE = "group/alignments.json"
SAVE_EVERY = 20  # new alignments, ours: about a minute of work, and the file is written whole each time
KILLED = "the worker was killed, most likely because memory ran out: lower --nprocs"
#: Findings of a pair, and its alignment for the cache.
Compared = tuple[PairFindings, Mapping[str, Any] | None]
#: A job with its place among all of them.
Numbered = tuple[int, PairJob]


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
    jobs: dict[int, PairJob] = {}
    keys: dict[int, str] = {}
    for number, pair in enumerate(pairs):
        if pair.refusal:
            continue
        job = PairJob(sessions=(timed[pair.labels[0]], timed[pair.labels[1]]))
        keys[number] = _key(job.sessions) if needs_alignment(job) else ""
        jobs[number] = replace(job, cached=known.get(keys[number]))
    wanted_keys = {key for key in keys.values() if key}
    slow = len(wanted_keys - known.keys())  # the others take no time
    with _keeping(out, {key: known[key] for key in wanted_keys & known.keys()}) as cache:
        found = _compare_all(pairs, jobs, keys, cache, min(workers, slow))
    lesions, table = tabulate(pairs, found, sessions=cohort.sessions, lesions=cohort.lesions)
    return CohortChanges(
        lesions=lesions, pairs=table, trajectories=trajectories, flags=flags_of(pairs, found)
    )


def _repeated(labels: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Those of subjects with several sessions."""
    counts = Counter(subject for subject, _ in labels)
    return [(subject, session) for subject, session in labels if counts[subject] > 1]


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
    pairs: Sequence[SessionPair],
    jobs: Mapping[int, PairJob],
    keys: Mapping[int, str],
    cache: _Cache,
    workers: int,
) -> list[PairFindings]:
    """Findings of all pairs, in their order; jobs and keys of those that may be compared, by number."""
    found = [PairFindings(state="refused", reason=pair.refusal) for pair in pairs]
    for number, (one, facts) in _each(jobs, workers):
        LOG.info("%s and %s: %s", *pairs[number].labels, one.reason or one.state)
        found[number] = one
        cache.keep(keys[number], facts)
    return found


def _each(jobs: Mapping[int, PairJob], workers: int) -> Iterator[tuple[int, Compared]]:
    """What is found for each job, as it comes; in worker processes where more than one has work.

    A worker that is killed breaks the pool: it is made anew, and the pairs that were being compared, which
    are suspects, are compared once more, each in a pool of its own. Only the pair that kills again is left
    with totals.
    """
    if workers < 2:
        yield from ((number, compare_pair(job)) for number, job in jobs.items())
        return
    waiting, suspects = deque(jobs.items()), list[Numbered]()
    while waiting:
        with _pool(workers) as pool:
            yield from _until_killed(pool, workers, waiting, suspects)
    for number, job in suspects:
        yield number, _alone(job)


def _until_killed(
    pool: ProcessPoolExecutor, workers: int, waiting: deque[Numbered], suspects: list[Numbered]
) -> Iterator[tuple[int, Compared]]:
    """Take from what waits until nothing does, or a worker is killed; what was running then is suspect.

    No more is handed to the pool than it has workers, else all that waits would be suspect.
    """
    running: dict[Future[Compared], Numbered] = {}
    broken = False
    while running or (waiting and not broken):
        while waiting and len(running) < workers and not broken:
            try:
                running[pool.submit(compare_pair, waiting[0][1])] = waiting[0]
                waiting.popleft()
            except BrokenProcessPool:
                broken = True
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            result = _result(future)
            if result is None:
                broken = True
                suspects.append(job)
            else:
                yield job[0], result


def _alone(job: PairJob) -> Compared:
    """Findings from a pool of one; totals only if that worker is killed too."""
    with _pool(1) as pool:
        found = _result(pool.submit(compare_pair, job))
    if found is not None:
        return found
    total = volume_change(*(session.sizes.values() for session in job.sessions))
    return PairFindings(state="totals only", reason=KILLED, total=total), None


def _result(future: Future[Compared]) -> Compared | None:
    """What a worker found; None if one was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers end at once if the run ends early."""
    context = multiprocessing.get_context("spawn")
    pool = WorkerPool(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()  # a scheduler that ends the run leaves little time to keep what was found
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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


@dataclass(slots=True, kw_only=True)
class _Cache:
    """Alignments of this run: those that it found, and those of its pairs that earlier runs found."""

    out: Path
    kept: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unsaved: int = 0

    def keep(self, key: str, facts: Mapping[str, Any] | None) -> None:
        """Take what a pair came to; without facts, what was known of it is worth nothing."""
        if not key or self.kept.get(key) == facts:
            return
        if facts:
            self.kept[key] = facts
        else:
            self.kept.pop(key, None)
        self.unsaved += 1
        if self.unsaved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write all of them; nothing where there is nothing and never was."""
        if self.kept or safe_join(self.out, CACHE).is_file():
            write_json(self.out, CACHE, dict(sorted(self.kept.items())))
        self.unsaved = 0


@contextmanager
def _keeping(out: Path, known: Mapping[str, Mapping[str, Any]]) -> Iterator[_Cache]:
    """A cache that is written at the end, also if that comes early."""
    cache = _Cache(out=out, kept=dict(known))
    try:
        yield cache
    finally:
        cache.save()
