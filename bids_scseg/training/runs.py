"""The runs of an experiment: trained, judged, gone on with, one after another or several at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import statistics
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bids_scseg import __version__
from bids_scseg.errors import BusyError, DataError, MissingInputError, ScsegError, SessionError
from bids_scseg.files import is_full, write_error
from bids_scseg.measure.trials import TrialRow
from bids_scseg.processes import end_group, worker_pool
from bids_scseg.training.cases import TrainingCase, check_rules, load_cases
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.experiment import ExperimentConfig, Run, deciding, training_config
from bids_scseg.training.files import read_json, write_json
from bids_scseg.training.folder import SPLIT, STATE, Place, open_experiment
from bids_scseg.training.journal import LOG, read_rows
from bids_scseg.training.judge import Judge, judge_cases
from bids_scseg.training.parse import merge
from bids_scseg.training.train import train

TRAINED, EVALUATION, LOCK = "trained.json", "evaluation.json", ".lock"
TRACEBACK = "traceback.txt"  # of an error that nobody foresaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: words for its line, and the error if there was one."""

    run: Run
    words: str
    error: ScsegError | None = None


def run_all(
    place: Place,
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    progress: Callable[[Ending], None] = lambda ending: None,
    begun: Callable[[], None] = lambda: None,
) -> list[Ending]:
    """Train and judge runs; one that fails never stops the others, except those that need it.

    Parameters
    ----------
    place
        Where.
    runs
        Those wanted, needed ones first (:func:`plan_runs`).
    jobs
        Runs at once, each in a process of its own; 1 works in this one.
    progress
        Called as each run ends.
    begun
        Called once, before the first run, when the experiment's folder is there.

    Returns
    -------
    One ending per run, in the order of ending. A process that is killed (for want of memory) costs nobody
    else's run: those that were open are tried once more, each alone.
    """
    open_experiment(place)
    begun()
    endings: list[Ending] = []
    for ending in _in_turn(place, runs) if jobs <= 1 else _at_once(place, runs, jobs):
        endings.append(ending)
        progress(ending)
    return endings


def _in_turn(place: Place, runs: Sequence[Run]) -> Iterator[Ending]:
    for run in runs:
        yield do_run(place, run)


def _at_once(place: Place, runs: Sequence[Run], jobs: int) -> Iterator[Ending]:
    """Several runs at once; those that a killed process took along are tried once more, each alone.

    Then the others go on. A second death is that run's failure and nobody else's.
    """
    waiting = list(runs)
    while waiting:
        for run in (yield from _pooled(place, waiting, jobs)):
            if (yield from _pooled(place, [run], 1)):
                yield _killed(run)


def _pooled(place: Place, waiting: list[Run], jobs: int) -> Generator[Ending, None, list[Run]]:
    """Start every run whose need is met; those that start leave ``waiting``.

    Returns
    -------
    The runs that were open when a process was killed, which breaks the pool; none at the end.
    """
    open_: dict[Future[Ending], Run] = {}
    pids = set[int]()
    with suppress(BrokenProcessPool), worker_pool(jobs) as pool:
        while waiting or open_:
            unmet = {*waiting, *open_.values()}
            ready = [run for run in waiting if _need(place.config, run) not in unmet]
            for run in ready[: jobs - len(open_)]:
                open_[pool.submit(do_run, place, run)] = run
                waiting.remove(run)  # not before: a broken pool refuses, and every run gets an ending
            pids.update(pool._processes or {})
            done, _ = wait(open_, return_when=FIRST_COMPLETED)
            for future in done:
                ending = future.result()
                del open_[future]
                yield ending
    for pid in pids if open_ else ():
        end_group(pid)  # what drew patches for a killed run, and runs that would hold their locks
    return [*open_.values()]


def _killed(run: Run) -> Ending:
    error = SessionError(
        "the process was killed, alone too, most likely because memory ran out",
        remedy="free memory or take a larger machine; the same command goes on from the last checkpoint",
    )
    return Ending(run=run, words=f"{run.label}: {error}", error=error)


def _need(config: ExperimentConfig, run: Run) -> Run | None:
    needs = config.arm(run.arm).needs
    return Run(arm=needs, seed=run.seed) if needs else None


def do_run(place: Place, run: Run) -> Ending:
    """Train one run where that is not done, judge it where that is not done; errors end in the ending.

    A traceback that nobody foresaw is left in the run's folder.
    """
    try:
        with _lock(place.folder(run), run):
            words = _trained(place, run)
            words += "; " + _judged(place, run)
            (place.folder(run) / TRACEBACK).unlink(missing_ok=True)
        return Ending(run=run, words=f"{run.label}: {words}")
    except Exception as error:  # noqa: BLE001 - whatever it is, other runs go on
        known = error if isinstance(error, ScsegError) else _unforeseen(error, run, place.folder(run))
        return Ending(run=run, words=f"{run.label}: {known}", error=known)


def _unforeseen(error: Exception, run: Run, folder: Path) -> ScsegError:
    """An error that is none of ours, as one of ours."""
    if isinstance(error, OSError) and is_full(error):
        return write_error(error, error.filename or folder)
    if isinstance(error, MemoryError):
        return SessionError(
            f"memory ran out in {run.label}", file=folder,
            remedy="free memory or lower --jobs; the same command goes on from the last checkpoint",
        )  # fmt: skip
    with suppress(OSError):
        (folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    words = str(error).strip().splitlines() or [""]
    return SessionError(
        f"unexpected {type(error).__name__} in {run.label}: {words[-1]}", file=folder,
        remedy=f"please report it, with {TRACEBACK} of this folder",
    )  # fmt: skip


@contextmanager
def _lock(folder: Path, run: Run) -> Iterator[None]:
    """Hold a run for this process; the lock goes when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another process is working on {run.label}", file=folder, remedy="wait for it"
            ) from error
        yield


def run_config(place: Place, run: Run) -> TrainingConfig:
    """Training configuration of a run."""
    need = _need(place.config, run)
    config = training_config(
        place.config,
        place.config.arm(run.arm),
        seed=run.seed,
        source="" if need is None else str(place.folder(need)),
        split=str(place.out.resolve() / SPLIT),
        where=run.label,
    )
    if place.threads and not config.threads:
        return replace(config, threads=place.threads)
    return config


def _trained(place: Place, run: Run) -> str:
    folder, need = place.folder(run), _need(place.config, run)
    stated = _identity(place, run)
    done = read_json(folder / TRAINED)
    if done:
        if _with_defaults(done.get("configuration")) != stated:
            raise DataError(
                "was trained with another configuration of this arm",
                file=folder,
                remedy="take that configuration, or remove the folder to train anew",
            )
        return f"trained before in {done['seconds']:.0f} s"
    if need is not None and not (place.folder(need) / TRAINED).is_file():
        raise MissingInputError(
            f"{run.label} starts from {need.label}, which is not trained",
            file=place.folder(need),
            remedy=f"run --only {need.label} first",
        )
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    start = time.monotonic()
    train(run_config(place, run), place.cases, out=folder, facts={"experiment": place.config.name})
    seconds = round(_seconds(folder, time.monotonic() - start), 1)
    write_json(folder / TRAINED, {"configuration": stated, "seconds": seconds, "version": __version__})
    return f"trained in {seconds:.0f} s"


def _identity(place: Place, run: Run) -> dict[str, Any]:
    """What a run is, without folders and without what does not decide its weights."""
    plan = place.config.arm(run.arm)
    config = training_config(
        place.config, plan, seed=run.seed, source="needed", split="", where=run.label
    ).to_json()
    out: dict[str, Any] = json.loads(json.dumps(deciding(config), default=str))
    return out


def _with_defaults(recorded: object) -> dict[str, Any]:
    """A recorded configuration with the defaults of options that there were not when it was recorded."""
    blank = deciding(TrainingConfig(name="", recipe="").to_json())
    defaults: dict[str, Any] = json.loads(json.dumps(blank, default=str))
    return merge(defaults, recorded) if isinstance(recorded, Mapping) else {}


def _seconds(folder: Path, fallback: float) -> float:
    """Seconds of the loop by the log, which survives interruptions; else those of this process."""
    try:
        rows = [(int(row["iteration"]), float(row["seconds"])) for row in read_rows(folder / LOG)]
    except (OSError, KeyError, ValueError):
        return fallback
    steps = [after - before for (before, _), (after, _) in zip([(0, 0.0), *rows], rows, strict=False)]
    return sum(step * each for step, (_, each) in zip(steps, rows, strict=True)) or fallback


# -- judging ---------------------------------------------------------------------------------------


def _judged(place: Place, run: Run) -> str:
    folder = place.folder(run)
    known = read_json(folder / EVALUATION)
    trained = (folder / TRAINED).read_bytes()
    identity = hashlib.sha256(trained + (place.out / STATE).read_bytes()).hexdigest()
    if not known or known.get("identity") != identity:
        known = {"identity": identity, **_judge(place, run)}
        write_json(folder / EVALUATION, known)
    return ", ".join(
        f"{name}: F1 {_mean(known, name, 'f1')}, Dice {_mean(known, name, 'dice')} "
        f"at {known['settings'][name]['threshold']:g}"
        for name in known["settings"]
    ) or "no setting fits"  # fmt: skip


def _mean(known: Mapping[str, Any], setting: str, metric: str) -> str:
    values = [row[metric] for row in known["rows"] if row["setting"] == setting and row[metric] is not None]
    return f"{sum(values) / len(values):.3f}" if values else "undefined"


def _judge(place: Place, run: Run) -> dict[str, Any]:
    config = run_config(place, run)
    judge = Judge.open(place.folder(run) / "bundle", config, overlap=place.config.overlap)
    validation, test = _cases(place, judge.sequences)
    check_rules([*validation, *test], judge.recipe)
    start = time.monotonic()
    rows: list[TrialRow] = []
    settings: dict[str, Any] = {}
    for setting in place.config.settings:
        if not judge.can(setting):
            continue
        took: list[float] = []
        found, best = judge_cases(
            judge, test, validation=validation, setting=setting, profile=place.config.profile,
            arm=run.arm, seed=run.seed, progress=took.append,
        )  # fmt: skip
        if found:
            rows += found
            settings[setting.name] = {
                "threshold": found[0].threshold,
                "min_volume_mm3": found[0].min_volume_mm3,
                "validation": None if best is None else asdict(best),
                "cases": len(found),
                "left_out": len(test) - len(found),
                "seconds_per_case": round(statistics.median(took), 3),
            }
    return {
        "settings": settings,
        "parameters": judge.parameters,
        "flops": judge.flops,
        "patch_vox": list(judge.recipe.inference.patch_vox),
        "sequences": list(judge.sequences),
        "seconds": round(time.monotonic() - start, 1),
        "rows": [row.to_row() for row in rows],
    }


def _cases(place: Place, sequences: Sequence[str]) -> tuple[list[TrainingCase], list[TrainingCase]]:
    """Validation and test cases, with the channels that a model knows."""
    split = read_json(place.out / SPLIT)
    cases = load_cases(place.data, sequences=sequences)
    validation = [case for case in cases if case.subject in split["validation"]]
    if place.test is not None:
        return validation, load_cases(place.test, sequences=sequences)
    return validation, [case for case in cases if case.subject in split["test"]]
