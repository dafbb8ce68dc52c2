"""``scseg experiment``: several arms, several seeds, one split, one budget; judged alike and compared."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import logging
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_scseg import NUMERICAL_VERSION, __version__
from bids_scseg.errors import BusyError, DataError, MissingInputError, ScsegError, SessionError, UsageError
from bids_scseg.measure.overlap import find_profile
from bids_scseg.measure.trials import TrialRow
from bids_scseg.training.cases import TrainingCase, find_cases, load_cases
from bids_scseg.training.checkpoint import write_json
from bids_scseg.training.config import (
    TrainingConfig,
    ValidationConfig,
    _record,
    config_from_mapping,
    merge,
    read_mapping,
)
from bids_scseg.training.judge import Judge, Setting, judge_cases
from bids_scseg.training.split import split_subjects
from bids_scseg.training.train import train

RUNS, CASES, SPLIT, STATE = "runs", "cases", "split.json", "experiment.json"
TRAINED, EVALUATION, LOCK = "trained.json", "evaluation.json", ".lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
FREE = ("threads", "accelerator", "tensorboard", "checkpoint_every", "log_every")
TEST_SEED = 104_729  # added to the split's seed where test subjects are drawn: another draw, ours


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPlan:
    """One arm.

    Attributes
    ----------
    name
        For folders and tables.
    title
        For people.
    training
        What it changes in the experiment's training configuration.
    needs
        Arm whose run of the same seed is trained first and gives ``arm.source``.
    optional
        Whether it runs only when it is asked for.
    paper
        Published values, ``f1`` and ``dice``, to be shown beside those of the first setting.
    """

    name: str
    title: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    optional: bool = False
    paper: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How subjects are shared out, once for all runs: shares of the subjects, and the seed of the draw."""

    validation: float = 0.2
    test: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityPlan:
    """Sequences that training sessions are left with, drawn once for all runs.

    Attributes
    ----------
    keep
        Sequences that stay wherever they are.
    share
        Probability that each other sequence of a session stays; 1: training has what there is.
    seed
        Of the draw, with the session's name.
    """

    keep: tuple[str, ...] = ()
    share: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """A comparison.

    Attributes
    ----------
    name, title
        For folders; for people.
    base
        File of the training configuration that all arms share, from the experiment's own folder; its ``name``
        and ``seed`` do not count.
    training
        What is changed in it, or all of it.
    availability
        Which sequences training sessions are left with.
    arms
        Each changes it.
    baseline
        Arm that the others are compared with.
    seeds
        Of each arm.
    split
        How subjects are shared out. Test subjects are taken from the data only where no other test cases are
        given.
    settings
        Which sequences the models are given in the test; empty sequences: all that they know.
    profile
        Rules of the scores.
    overlap
        Of neighbouring windows in the test.
    notes
        Paragraphs for the report: what the data are, what they can show.
    """

    name: str
    arms: tuple[ArmPlan, ...]
    baseline: str
    training: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    base: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    availability: AvailabilityPlan = field(default_factory=AvailabilityPlan)
    split: SplitPlan = field(default_factory=SplitPlan)
    settings: tuple[Setting, ...] = (Setting(name="T2Sag", sequences=("T2Sag",)), Setting(name="all"))
    profile: str = "walsh2024"
    overlap: float = 0.25
    notes: tuple[str, ...] = ()

    def arm(self, name: str) -> ArmPlan:
        """The arm of that name (UsageError if there is none)."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise UsageError(f"no arm {name!r}", expected=f"one of {', '.join(arm.name for arm in self.arms)}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int

    @property
    def label(self) -> str:
        """``ARM:SEED``, as on the command line."""
        return f"{self.arm}:{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an experiment reads and writes; travels to worker processes.

    Attributes
    ----------
    config
        Its configuration.
    data, test
        Prepared cases; None: test subjects are taken from ``data``.
    out
        The experiment's folder.
    threads
        CPU threads of a run whose configuration does not say (0: torch's choice).
    """

    config: ExperimentConfig
    data: Path
    test: Path | None
    out: Path
    threads: int = 0

    @property
    def cases(self) -> Path:
        """Cases as training sees them."""
        return self.data if self.config.availability.share >= 1 else self.out / CASES

    def folder(self, run: Run) -> Path:
        """Folder of a run."""
        return self.out.resolve() / RUNS / run.arm / f"seed-{run.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: words for its line, and the error if there was one."""

    run: Run
    words: str
    error: ScsegError | None = None


# -- configuration ---------------------------------------------------------------------------------


def load_experiment(path: Path) -> ExperimentConfig:
    """Read an experiment's TOML file (``extends`` works as in training configurations).

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is malformed: unknown keys, wrong types, names that clash or are absent, training
        configurations that are none.
    """
    config: ExperimentConfig = _record(ExperimentConfig, read_mapping(path), where=str(path))
    if config.base:
        base = {k: v for k, v in read_mapping(path.parent / config.base).items() if k not in ("name", "seed")}
        config = replace(config, training=merge(base, config.training))
    names = [arm.name for arm in config.arms]
    for found, expected in _problems(config, names):
        raise DataError(found, file=path, expected=expected, remedy="correct the experiment")
    find_profile(config.profile)
    for arm in config.arms:
        _training(
            config, arm, seed=config.seeds[0], source="somewhere", split="", where=f"{path}: arm {arm.name}"
        )
    return config


def _problems(config: ExperimentConfig, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            yield f"arm {name!r}", "different names of letters, digits, '-', '_', '+' and '.'"
    if config.baseline not in names:
        yield f"baseline {config.baseline!r}", f"one of {list(names)}"
    for arm in config.arms:
        if arm.needs and (arm.needs not in names or config.arm(arm.needs).needs):
            yield f"{arm.name} needs {arm.needs!r}", "an arm that needs no other"
        if set(arm.paper) - {"f1", "dice"}:
            yield f"paper of {arm.name} is {dict(arm.paper)}", "f1 and dice"
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        yield f"seeds {list(config.seeds)}", "different whole numbers from 0 on"
    if len({setting.name for setting in config.settings}) < max(len(config.settings), 1):
        yield "settings", "at least one, with different names"
    if not 0 <= config.availability.share <= 1:
        yield f"availability.share {config.availability.share}", "0 to 1"
    if not 0 <= config.overlap < 1:
        yield f"overlap {config.overlap}", "0 or more, less than 1"
    for key in ("name", "seed"):
        if key in config.training:
            yield f"training.{key}", "no such key: the experiment sets it"


def _training(
    config: ExperimentConfig, arm: ArmPlan, *, seed: int, source: str, split: str, where: object
) -> TrainingConfig:
    """The configuration of one run."""
    own: dict[str, Any] = {"name": f"{config.name}-{arm.name}", "seed": seed}
    if arm.needs:
        own["arm"] = {"source": source}
    if split:
        own["validation"] = {"split": split}
    out = config_from_mapping(merge(merge(config.training, arm.training), own), file=where)
    if out.devices != 1:
        raise DataError(
            f"devices {out.devices}",
            file=where,
            expected="1: runs of an experiment are independent",
            remedy="give each device runs of its own with --only ARM:SEED",
        )
    return out


def plan_runs(
    config: ExperimentConfig, *, arms: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[Run, ...]:
    """The runs that are wanted, those that others need first; seed by seed, so comparisons come early.

    Parameters
    ----------
    config
        The experiment.
    arms
        Names; empty: all that are not optional.
    only
        ``ARM:SEED`` each; overrules ``arms``.
    """
    if only:
        return tuple(dict.fromkeys(_parse_run(config, text) for text in only))
    wanted = [config.arm(name).name for name in arms] or [arm.name for arm in config.arms if not arm.optional]
    needed = dict.fromkeys([config.baseline, *(config.arm(name).needs for name in wanted)])
    order = [name for name in dict.fromkeys([*needed, *wanted]) if name]
    return tuple(Run(arm=name, seed=seed) for seed in config.seeds for name in order)


def _parse_run(config: ExperimentConfig, text: str) -> Run:
    name, _, seed = text.rpartition(":")
    if not seed.isdigit() or not name:
        raise UsageError(f"--only {text}", expected="ARM:SEED, such as baseline:0")
    if int(seed) not in config.seeds:
        raise UsageError(f"--only {text}", expected=f"a seed among {list(config.seeds)}")
    return Run(arm=config.arm(name).name, seed=int(seed))


# -- one split and one data set for all runs -------------------------------------------------------


def open_experiment(place: Place) -> dict[str, Any]:
    """Make or check the experiment's folder: its split, and what it was begun with.

    Returns
    -------
    What ``experiment.json`` says.

    Raises
    ------
    MissingInputError
        If there are no cases.
    DataError
        If the folder belongs to an experiment with other data, another split or other shared settings, or if
        the test cases are the training cases.
    """
    if place.test is not None and place.test.resolve() == place.data.resolve():
        raise DataError("test cases are the training cases", file=place.test, expected="another folder")
    for folder in filter(None, (place.data, place.test)):
        if place.out.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                "lies among the prepared cases", file=place.out, expected="a folder elsewhere",
                remedy="name another folder for the experiment",
            )  # fmt: skip
    subjects, digest = _survey(place.data)
    test = None if place.test is None else _survey(place.test)
    config = place.config
    stated = {
        "name": config.name,
        "data": digest,
        "test": digest if test is None else test[1],
        "split": asdict(config.split) if test is None else {**asdict(config.split), "test": 0.0},
        "training": _deciding(config.training),
        "availability": asdict(config.availability),
        "profile": config.profile,
        "settings": [asdict(setting) for setting in config.settings],
        "overlap": config.overlap,
        "numerical_version": NUMERICAL_VERSION,
    }
    state: dict[str, Any] = json.loads(json.dumps(stated))
    file = place.out / STATE
    if file.is_file():
        _check_state(file, state)
    place.out.mkdir(parents=True, exist_ok=True)
    if not (place.out / SPLIT).is_file():
        write_json(place.out / SPLIT, _draw_split(subjects, config.split, own_test=test is None))
    if place.cases != place.data:
        _thin_out(place)
    write_json(file, state)
    return state


def _thin_out(place: Place) -> None:
    """Cases that stand for the data's with fewer sequences available: links, and a record of their own.

    What a session keeps depends on the seed and its name alone.
    """
    plan = place.config.availability
    for folder in find_cases(place.data):
        record = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        own = place.cases / folder.relative_to(place.data)
        own.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name != "case.json":
                with suppress(FileExistsError):  # from before, or by another process of this experiment
                    (own / file.name).symlink_to(file.resolve())
        rng = np.random.default_rng([plan.seed, *folder.name.encode()])
        draws = rng.random(len(record["sequences"])) < plan.share
        kept = [
            bool(there and (name in plan.keep or drawn))
            for name, there, drawn in zip(record["sequences"], record["available"], draws, strict=True)
        ]
        write_json(own / "case.json", {**record, "available": kept if any(kept) else record["available"]})


def _deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """A training configuration without what decides where and how fast it runs, but not what comes out."""
    kept = {key: value for key, value in training.items() if key not in FREE}
    if isinstance(kept.get("sampling"), Mapping):
        kept["sampling"] = {key: value for key, value in kept["sampling"].items() if key != "workers"}
    return kept


def _survey(root: Path) -> tuple[set[str], str]:
    """Subjects of the prepared cases in a folder, and a checksum of what they are."""
    subjects, found = set(), hashlib.sha256()
    for folder in find_cases(root):
        content = (folder / "case.json").read_bytes()
        subjects.add(str(json.loads(content).get("subject") or folder.name))
        label = folder / "label.npy"
        found.update(folder.name.encode() + hashlib.sha256(content).digest())
        found.update(str(label.stat().st_size if label.is_file() else -1).encode())
    return subjects, found.hexdigest()


def _draw_split(subjects: set[str], plan: SplitPlan, *, own_test: bool) -> dict[str, list[str]]:
    test: tuple[str, ...] = ()
    if own_test:
        held = split_subjects(subjects, ValidationConfig(fraction=plan.test), seed=plan.seed + TEST_SEED)
        test = held.validation
    rest = subjects - set(test)
    split = split_subjects(rest, ValidationConfig(fraction=plan.validation), seed=plan.seed)
    if not split.validation or not split.training or (own_test and not test):
        raise DataError(
            f"{len(subjects)} subjects",
            expected="enough for training, validation and test",
            remedy="prepare more subjects, or give test cases with --test",
        )
    return {"training": list(split.training), "validation": list(split.validation), "test": list(test)}


def _check_state(file: Path, state: Mapping[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"malformed ({error})", file=file, remedy="name another folder") from error
    for key, value in state.items():
        if before.get(key) != value:
            raise DataError(
                f"this folder's experiment has another {key}: {_short(before.get(key))}",
                file=file,
                expected=_short(value),
                remedy="name another folder, or take the configuration and the cases that it was begun with",
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}…"


# -- runs ------------------------------------------------------------------------------------------


def run_all(
    place: Place,
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    progress: Callable[[Ending], None] = lambda ending: None,
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

    Returns
    -------
    One ending per run, in the order of ending.
    """
    open_experiment(place)
    endings: list[Ending] = []
    for ending in _in_turn(place, runs) if jobs <= 1 else _at_once(place, runs, jobs):
        endings.append(ending)
        progress(ending)
    return endings


def _in_turn(place: Place, runs: Sequence[Run]) -> Iterator[Ending]:
    for run in runs:
        yield do_run(place, run)


def _at_once(place: Place, runs: Sequence[Run], jobs: int) -> Iterator[Ending]:
    """Start every run whose need is met; a killed process fails its run and those that were under way."""
    context = multiprocessing.get_context("spawn")
    waiting, ended = list(runs), set[Run]()
    open_: dict[Future[Ending], Run] = {}
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        try:
            while waiting or open_:
                ready = [
                    run for run in waiting if _need(place.config, run) not in {*waiting, *open_.values()}
                ]
                for run in ready[: jobs - len(open_)]:
                    waiting.remove(run)
                    open_[pool.submit(do_run, place, run)] = run
                done, _ = wait(open_, return_when=FIRST_COMPLETED)
                for future in done:
                    run = open_.pop(future)
                    ended.add(run)
                    yield _outcome(future, run)
        except BrokenProcessPool:
            for run in (*open_.values(), *waiting):
                yield _killed(run)
        except BaseException:
            for process in (pool._processes or {}).values():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _outcome(future: Future[Ending], run: Run) -> Ending:
    try:
        return future.result()
    except BrokenProcessPool:
        return _killed(run)


def _killed(run: Run) -> Ending:
    error = SessionError(
        "the process was killed, most likely because memory ran out",
        remedy="lower --jobs; the same command goes on from the last checkpoint",
    )
    return Ending(run=run, words=f"{run.label}: {error}", error=error)


def _need(config: ExperimentConfig, run: Run) -> Run | None:
    needs = config.arm(run.arm).needs
    return Run(arm=needs, seed=run.seed) if needs else None


def do_run(place: Place, run: Run) -> Ending:
    """Train one run where that is not done, judge it where that is not done; errors end in the ending."""
    try:
        with _lock(place.folder(run), run):
            words = _trained(place, run)
            words += "; " + _judged(place, run)
        return Ending(run=run, words=f"{run.label}: {words}")
    except ScsegError as error:
        return Ending(run=run, words=f"{run.label}: {error}", error=error)


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
    config = _training(
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
    done = read_state(folder / TRAINED)
    if done:
        if done.get("configuration") != stated:
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
    config = _training(
        place.config, plan, seed=run.seed, source="needed", split="", where=run.label
    ).to_json()
    out: dict[str, Any] = json.loads(json.dumps(_deciding(config), default=str))
    return out


def _seconds(folder: Path, fallback: float) -> float:
    """Seconds of the loop by the log, which survives interruptions; else those of this process."""
    path = folder / "log.csv"
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [(int(row["iteration"]), float(row["seconds"])) for row in csv.DictReader(handle)]
    except (OSError, KeyError, ValueError):
        return fallback
    steps = [after - before for (before, _), (after, _) in zip([(0, 0.0), *rows], rows, strict=False)]
    return sum(step * each for step, (_, each) in zip(steps, rows, strict=True)) or fallback


# -- judging ---------------------------------------------------------------------------------------


def _judged(place: Place, run: Run) -> str:
    folder = place.folder(run)
    known = read_state(folder / EVALUATION)
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
    start = time.monotonic()
    rows: list[TrialRow] = []
    settings: dict[str, Any] = {}
    for setting in place.config.settings:
        if not judge.can(setting):
            continue
        found, best = judge_cases(
            judge, test, validation=validation, setting=setting, profile=place.config.profile,
            arm=run.arm, seed=run.seed,
        )  # fmt: skip
        if found:
            rows += found
            settings[setting.name] = {
                "threshold": found[0].threshold,
                "min_volume_mm3": found[0].min_volume_mm3,
                "validation": None if best is None else best.to_json(),
                "cases": len(found),
                "left_out": len(test) - len(found),
            }
    return {
        "settings": json.loads(json.dumps(settings).replace("NaN", "null")),
        "parameters": judge.parameters,
        "sequences": list(judge.sequences),
        "seconds": round(time.monotonic() - start, 1),
        "rows": [row.to_row() for row in rows],
    }


def _cases(place: Place, sequences: Sequence[str]) -> tuple[list[TrainingCase], list[TrainingCase]]:
    """Validation and test cases, with the channels that a model knows."""
    split = read_state(place.out / SPLIT)
    cases = load_cases(place.data, sequences=sequences)
    validation = [case for case in cases if case.subject in split["validation"]]
    if place.test is not None:
        return validation, load_cases(place.test, sequences=sequences)
    return validation, [case for case in cases if case.subject in split["test"]]


def read_state(path: Path) -> dict[str, Any]:
    """A JSON object that this program wrote; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
