"""An experiment's folder: one split and one data set for all runs, and what it was begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_scseg import NUMERICAL_VERSION
from bids_scseg.errors import DataError
from bids_scseg.files import lock
from bids_scseg.training.cases import find_cases, read_record
from bids_scseg.training.config import ValidationConfig
from bids_scseg.training.experiment import AvailabilityPlan, ExperimentConfig, Run, SplitPlan, deciding
from bids_scseg.training.files import digest, read_json, write_json
from bids_scseg.training.split import split_subjects

RUNS, CASES, SPLIT, STATE = "runs", "cases", "split.json", "experiment.json"
LOCK, LOCK_WAIT_S = ".opening.lock", 600.0  # thousands of cases on a slow disk are opened in less (ours)
DECIMALS = 4  # of coordinates and volumes in the checksum of the data: 0.1 µm
TEST_SEED = 104_729  # added to the split's seed where test subjects are drawn: another draw, ours


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
    other_people
        Whether subjects of ``test`` are other people than those of ``data`` even where labels are alike.
    """

    config: ExperimentConfig
    data: Path
    test: Path | None
    out: Path
    threads: int = 0
    other_people: bool = False

    @property
    def cases(self) -> Path:
        """Cases as training sees them."""
        return self.data if self.config.availability.share >= 1 else self.out / CASES

    def folder(self, run: Run) -> Path:
        """Folder of a run."""
        return self.out.resolve() / RUNS / run.arm / f"seed-{run.seed}"


def open_experiment(place: Place) -> dict[str, Any]:
    """Make or check the experiment's folder: its split, and what it was begun with.

    Processes that begin together, such as tasks of a cluster, do it one after another.

    Returns
    -------
    What ``experiment.json`` says.

    Raises
    ------
    MissingInputError
        If there are no cases.
    DataError
        If the folder belongs to an experiment with other data, another split or other shared settings, if
        test cases are training cases, or if subjects of both have the same labels and nobody said that they
        are other people.
    BusyError
        If another process takes too long over it.
    """
    if place.test is not None and place.test.resolve() == place.data.resolve():
        raise DataError("test cases are the training cases", file=place.test, expected="another folder")
    for folder in filter(None, (place.data, place.test)):
        if place.out.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                "lies among the prepared cases", file=place.out, expected="a folder elsewhere",
                remedy="name another folder for the experiment",
            )  # fmt: skip
    subjects, data = _survey(place.data)
    test = None if place.test is None else _survey(place.test)
    if place.test is not None and test is not None:
        _check_apart(place.data, place.test)
        if not place.other_people:
            _check_people(place.data, place.test, subjects & test[0])
    config = place.config
    stated = {
        "name": config.name,
        "data": data,
        "test": data if test is None else test[1],
        "split": asdict(config.split) if test is None else {**asdict(config.split), "test": 0.0},
        "training": deciding(config.training),
        "availability": asdict(config.availability),
        "profile": config.profile,
        "settings": [asdict(setting) for setting in config.settings],
        "overlap": config.overlap,
        "numerical_version": NUMERICAL_VERSION,
    }
    state: dict[str, Any] = json.loads(json.dumps(stated))
    with lock(place.out / LOCK, wait_s=LOCK_WAIT_S, what="another process is opening this experiment"):
        _begin(place, subjects, state)
    return state


def _begin(place: Place, subjects: set[str], state: Mapping[str, Any]) -> None:
    """Write what is not there yet; what is there stays as it is."""
    file = place.out / STATE
    if file.is_file():
        _check_state(file, state)
    if not (place.out / SPLIT).is_file():
        own_test = place.test is None
        write_json(place.out / SPLIT, _draw_split(subjects, place.config.split, own_test=own_test))
    if place.cases != place.data:
        _thin_out(place)
    if read_json(file) != state:
        write_json(file, state)


def _thin_out(place: Place) -> None:
    """Cases that stand for the data's with fewer sequences available: links, and a record of their own.

    What a session keeps depends on the seed and its name alone.
    """
    for folder in find_cases(place.data):
        record = read_record(folder)
        own = place.cases / folder.relative_to(place.data)
        own.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name != "case.json":
                with suppress(FileExistsError):  # from before, or by another process of this experiment
                    (own / file.name).symlink_to(file.resolve())
        thinned = {**record, "available": _left(record, folder.name, place.config.availability)}
        if read_json(own / "case.json") != thinned:  # other processes may be reading it
            write_json(own / "case.json", thinned)


def _left(record: Mapping[str, Any], name: str, plan: AvailabilityPlan) -> list[bool]:
    """Which sequences a session is left with: those drawn, or all that it has where none was."""
    rng = np.random.default_rng([plan.seed, *name.encode()])
    draws = rng.random(len(record["sequences"])) < plan.share
    kept = [
        bool(there and (sequence in plan.keep or drawn))
        for sequence, there, drawn in zip(record["sequences"], record["available"], draws, strict=True)
    ]
    return kept if any(kept) else record["available"]


def sequences_left(place: Place) -> dict[str, tuple[int, int]]:
    """Of each sequence, in how many training sessions it is left, and how many have it.

    Validation and test subjects do not count. Empty where the experiment takes no sequence away; the
    experiment must be open.
    """
    if place.cases == place.data:
        return {}
    training, out = set(read_json(place.out / SPLIT).get("training", ())), dict[str, tuple[int, int]]()
    for folder in find_cases(place.data):
        record = read_record(folder)
        if _subject(record, folder) in training:
            left = _left(record, folder.name, place.config.availability)
            for name, there, kept in zip(record["sequences"], record["available"], left, strict=True):
                before = out.get(name, (0, 0))
                out[name] = before[0] + bool(kept), before[1] + bool(there)
    return {name: counts for name, counts in out.items() if counts[1]}


def alike_labels(place: Place) -> int:
    """How many test subjects have the label of a training or validation subject, in an open experiment."""
    if place.test is None:
        return 0
    split = read_json(place.out / SPLIT)
    tested = {_subject(read_record(folder), folder) for folder in find_cases(place.test)}
    return len(tested & {*split.get("training", ()), *split.get("validation", ())})


def _subject(record: Mapping[str, Any], folder: Path) -> str:
    return str(record["subject"] or folder.name)


def _survey(root: Path) -> tuple[set[str], str]:
    """Subjects of the prepared cases in a folder, and a checksum of what they are."""
    subjects, found = set(), hashlib.sha256()
    for folder in find_cases(root):
        record = read_record(folder)
        subjects.add(_subject(record, folder))
        label = folder / "label.npy"
        found.update(folder.name.encode() + _content(record).encode())
        found.update(str(label.stat().st_size if label.is_file() else -1).encode())
    return subjects, found.hexdigest()


def _content(record: Mapping[str, Any]) -> str:
    """Checksum of a case's record, the same for the same data prepared anew.

    The fingerprint is left out: it has places and times of the source files.
    """
    return digest({key: _rounded(value) for key, value in record.items() if key != "fingerprint"})


def _rounded(value: Any) -> Any:
    """Plain data with numbers as they come out on any machine."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) + 0.0 if isinstance(value, float) else value


def _check_apart(data: Path, test: Path) -> None:
    """Refuse test cases that are training cases, in the same folder or copied (DataError)."""
    known = {_content(read_record(folder)): folder for folder in find_cases(data)}
    for folder in find_cases(test):
        twin = known.get(_content(read_record(folder)))
        if twin is not None and _digest(folder / "label.npy") == _digest(twin / "label.npy"):
            raise DataError(
                "a test case is a training case, too",
                file=folder,
                expected=f"other cases than {twin}",
                remedy="name folders of which neither holds cases of the other",
            )


def _check_people(data: Path, test: Path, shared: set[str]) -> None:
    """Refuse people who are trained on and tested, with another session for instance (DataError)."""
    if shared:
        some = sorted(shared)
        raise DataError(
            f"{len(some)} subjects are also in {data}: {', '.join(some[:5])}{', …' if len(some) > 5 else ''}",
            file=test,
            expected="other people than those to train on",
            remedy="leave them out of one of the two, or say --other-people if only the labels are alike",
        )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


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
