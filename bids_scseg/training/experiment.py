"""What an experiment is: its arms, seeds, split and settings; read, checked, planned run by run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_scseg.errors import DataError, UsageError, suggestion
from bids_scseg.measure.overlap import find_profile
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.arms import checked_recipe
from bids_scseg.training.config import TrainingConfig, config_from_mapping
from bids_scseg.training.judge import Setting
from bids_scseg.training.parse import check_choice, find_config, merge, parse_record, read_mapping

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# keys that decide where and how fast a training runs, but not what comes out
FREE = ("threads", "accelerator", "tensorboard", "checkpoint_every", "log_every", "model")


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
        The training configuration that all arms share: its file, from the experiment's own folder, or the
        name of a packaged one; its ``name`` and ``seed`` do not count.
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
    unequal
        Whether arms may be trained for other numbers of iterations than the baseline.
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
    unequal: bool = False
    notes: tuple[str, ...] = ()

    def arm(self, name: str) -> ArmPlan:
        """The arm of that name (UsageError if there is none)."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        raise UsageError(
            f"no arm {name!r}", expected=f"one of {', '.join(names)}", remedy=suggestion(name, names)
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int

    @property
    def label(self) -> str:
        """``ARM:SEED``, as on the command line."""
        return f"{self.arm}:{self.seed}"


def load_experiment(path: Path) -> ExperimentConfig:
    """Read an experiment's TOML file (``extends`` works as in training configurations).

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is malformed: unknown keys, wrong types, names that clash or are absent, training
        configurations that are none or do not fit their recipe, arms with other iterations than the
        baseline (unless ``unequal``).
    """
    config: ExperimentConfig = parse_record(ExperimentConfig, read_mapping(path), where=str(path))
    if config.base:
        shared = read_mapping(find_config(config.base, folder=path.parent))
        base = {k: v for k, v in shared.items() if k not in ("name", "seed")}
        config = replace(config, training=merge(base, config.training))
    names = [arm.name for arm in config.arms]
    check_choice(config.baseline, tuple(names), where=f"{path}: baseline")
    for arm in config.arms:
        if arm.needs:
            check_choice(arm.needs, tuple(names), where=f"{path}: arm {arm.name}: needs")
    for found, expected in _problems(config, names):
        raise DataError(found, file=path, expected=expected, remedy="correct the experiment")
    find_profile(config.profile)
    base_config(config, where=path)
    iterations = {}
    for arm in config.arms:
        where = f"{path}: arm {arm.name}"
        training = arm_config(config, arm, where=where)
        checked_recipe(training, file=where)
        iterations[arm.name] = training.iterations
    _check_budget(config, iterations, path)
    _check_sequences(config, path)
    return config


def _check_budget(config: ExperimentConfig, iterations: Mapping[str, int], path: Path) -> None:
    """Refuse an arm with other iterations than the baseline (DataError), unless the experiment is unequal."""
    expected = iterations[config.baseline]
    for name, found in iterations.items():
        if found != expected and not config.unequal:
            raise DataError(
                f"{found} iterations",
                file=f"{path}: arm {name}",
                expected=f"{expected}, as the baseline has",
                remedy="take iterations out of the arm, or say unequal = true in the experiment",
            )


def _check_sequences(config: ExperimentConfig, path: Path) -> None:
    """Refuse names of no sequence (DataError): runs would train without them, and no setting would fit."""
    known = load_recipe(str(config.training["recipe"])).sequence_names
    for setting in config.settings:
        for name in setting.sequences:
            check_choice(name, known, where=f"{path}: settings, {setting.name}: sequences")
    for name in config.availability.keep:
        check_choice(name, known, where=f"{path}: availability: keep")


def _problems(config: ExperimentConfig, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            yield f"arm {name!r}", "different names of letters, digits, '-', '_', '+' and '.'"
    for arm in config.arms:
        if arm.needs and config.arm(arm.needs).needs:
            yield f"{arm.name} needs {arm.needs!r}", "an arm that needs no other"
        if set(arm.paper) - {"f1", "dice"}:
            yield f"paper of {arm.name} is {dict(arm.paper)}", "f1 and dice"
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        yield f"seeds {list(config.seeds)}", "different whole numbers from 0 on"
    if len({setting.name for setting in config.settings}) < max(len(config.settings), 1):
        yield "settings", "at least one, with different names"
    shares = {"validation": config.split.validation, "test": config.split.test}
    for key, share in shares.items():
        if not 0 <= share < 1:
            yield f"split.{key} {share}", "0 or more, less than 1"
    if not 0 <= config.availability.share <= 1:
        yield f"availability.share {config.availability.share}", "0 to 1"
    if not 0 <= config.overlap < 1:
        yield f"overlap {config.overlap}", "0 or more, less than 1"
    for key in ("name", "seed"):
        if key in config.training:
            yield f"training.{key}", "no such key: the experiment sets it"


def training_config(
    config: ExperimentConfig, arm: ArmPlan, *, seed: int, source: str, split: str, where: object
) -> TrainingConfig:
    """The configuration of one run."""
    own: dict[str, Any] = {"name": f"{config.name}-{arm.name}", "seed": seed}
    if arm.needs:
        own["arm"] = {"source": source}
    if split:
        own["validation"] = {"split": split}
    out = config_from_mapping(merge(merge(config.training, arm.training), own), file=where)
    if out.data.synthetic:
        raise DataError(
            "data.synthetic", file=where, expected="false: all runs of an experiment share prepared cases"
        )
    if out.devices != 1:
        raise DataError(
            f"devices {out.devices}",
            file=where,
            expected="1: runs of an experiment are independent",
            remedy="give each device runs of its own with --only ARM:SEED",
        )
    return out


def base_config(config: ExperimentConfig, *, where: object) -> TrainingConfig:
    """The training configuration that all arms share, under the experiment's name."""
    return config_from_mapping(merge(config.training, {"name": config.name}), file=where)


def arm_config(config: ExperimentConfig, arm: ArmPlan, *, where: object) -> TrainingConfig:
    """The configuration of an arm: its first seed's, with words for the run that it starts from."""
    source = f"the run of {arm.needs} with the same seed"
    return training_config(config, arm, seed=config.seeds[0], source=source, split="", where=where)


def deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """A training configuration without what decides where and how fast it runs, but not what comes out."""
    kept = {key: value for key, value in training.items() if key not in FREE}
    if isinstance(kept.get("sampling"), Mapping):
        kept["sampling"] = {key: value for key, value in kept["sampling"].items() if key != "workers"}
    return kept


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
