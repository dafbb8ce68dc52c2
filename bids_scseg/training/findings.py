"""What an experiment found: tables, JSON and one page, from whichever of its runs are finished."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bids_scseg import __version__
from bids_scseg.bids.write import TableValue, write_tsv
from bids_scseg.measure.statistics import Interval
from bids_scseg.measure.trials import TRIAL_COLUMNS, TrialRow, TrialSummary, summarise_trials
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import Recipe
from bids_scseg.report.experiment import ArmCost, ArmLabel, ExperimentPage, RunLine, write_experiment_page
from bids_scseg.training.config import TrainingConfig, configured_recipe
from bids_scseg.training.experiment import (
    ArmPlan,
    ExperimentConfig,
    Run,
    arm_config,
    base_config,
    deciding,
    plan_runs,
)
from bids_scseg.training.files import read_json, write_json
from bids_scseg.training.folder import SPLIT, Place, alike_labels, sequences_left
from bids_scseg.training.journal import LOG, read_rows
from bids_scseg.training.runs import EVALUATION, TRAINED

RESULTS, SUMMARY, SUMMARY_JSON, PAGE = "results.tsv", "summary.tsv", "summary.json", "report.html"
SHOWN = ("f1", "dice", "sensitivity", "precision", "pooled_sensitivity", "pooled_precision", "pooled_dice",
         "false_positives_lesion_free", "specificity")  # fmt: skip
TESTED = ("f1", "dice")
COSTS = ("parameters", "flops", "seconds_per_case")


def write_findings(place: Place, *, wanted: Sequence[Run] = ()) -> tuple[TrialSummary, ...]:
    """Write ``results.tsv``, ``summary.tsv``, ``summary.json`` and ``report.html`` of the finished runs.

    Parameters
    ----------
    place
        The experiment.
    wanted
        Runs that were to be done; those that are not finished are named in the page.
    """
    rows, facts = collect(place)
    costs = arm_costs(facts)
    summaries = summarise_trials(rows, baseline=place.config.baseline)
    write_tsv(place.out, RESULTS, [row.to_row() for row in rows], columns=TRIAL_COLUMNS)
    lines = [_summary_row(item, place.config, costs[item.arm]) for item in summaries]
    write_tsv(place.out, SUMMARY, lines, columns=_summary_columns())
    write_json(place.out / SUMMARY_JSON, _json(summaries, facts, place.config, costs))
    write_experiment_page(place.out / PAGE, _page(place, summaries, facts, wanted))
    return summaries


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunFacts:
    """What is known of a finished run beside its scores; no operations where it was judged without them."""

    run: Run
    seconds: float
    parameters: int
    flops: int | None
    sequences: tuple[str, ...]
    settings: Mapping[str, Any]
    log: tuple[tuple[int, float], ...]


def collect(place: Place) -> tuple[list[TrialRow], list[RunFacts]]:
    """Rows and facts of all finished runs of an experiment, in the order of its arms and seeds."""
    rows: list[TrialRow] = []
    facts: list[RunFacts] = []
    for arm in place.config.arms:
        for seed in place.config.seeds:
            run = Run(arm=arm.name, seed=seed)
            folder = place.folder(run)
            known, trained = read_json(folder / EVALUATION), read_json(folder / TRAINED)
            if not known or not trained:
                continue
            rows += [TrialRow.from_row(row) for row in known["rows"]]
            facts.append(
                RunFacts(
                    run=run, seconds=float(trained["seconds"]), parameters=int(known["parameters"]),
                    flops=known.get("flops"), sequences=tuple(known["sequences"]),
                    settings=known["settings"], log=_log(folder),
                )
            )  # fmt: skip
    return rows, facts


def _log(folder: Path) -> tuple[tuple[int, float], ...]:
    """(iteration, loss) of a training."""
    try:
        return tuple((int(row["iteration"]), float(row["loss"])) for row in read_rows(folder / LOG))
    except (OSError, KeyError, ValueError):
        return ()


def arm_costs(facts: Sequence[RunFacts]) -> dict[str, ArmCost]:
    """What each arm's network costs, by arm; seconds are the median over the runs that recorded them."""
    out = {}
    for name in dict.fromkeys(fact.run.arm for fact in facts):
        mine = [fact for fact in facts if fact.run.arm == name]
        took: dict[str, list[float]] = {}
        for fact in mine:
            for setting, found in fact.settings.items():
                if found.get("seconds_per_case") is not None:
                    took.setdefault(setting, []).append(float(found["seconds_per_case"]))
        out[name] = ArmCost(
            parameters=mine[0].parameters,
            flops=next((fact.flops for fact in mine if fact.flops is not None), None),
            seconds={setting: statistics.median(values) for setting, values in took.items()},
        )
    return out


def _cost(cost: ArmCost, setting: str) -> dict[str, TableValue]:
    return dict(zip(COSTS, (cost.parameters, cost.flops, cost.seconds.get(setting)), strict=True))


# -- what runs share, and what arms have of their own ----------------------------------------------


def shared_facts(config: ExperimentConfig, arms: Sequence[ArmPlan]) -> dict[str, str]:
    """What the runs of these arms share, in words; where arms differ, which has what."""
    configs = {arm.name: arm_config(config, arm, where=arm.name) for arm in arms}
    recipes = {name: _recipe(found) for name, found in configs.items()}
    equal = len({found.iterations for found in configs.values()}) == 1
    words = {
        "recipe": {name: recipe.name for name, recipe in recipes.items()},
        "iterations of every run" if equal else "iterations": {
            name: f"{found.iterations}" for name, found in configs.items()
        },
        "patches": {
            name: f"{' × '.join(map(str, found.sampling.patch_vox))} voxels of "
            f"{recipes[name].grid.spacing_mm:g} mm, "
            f"{found.sampling.batch * found.sampling.accumulate} per iteration"
            for name, found in configs.items()
        },
        "channels": {name: _word(recipe.network.channels) for name, recipe in recipes.items()},
        "optimizer": {
            name: f"{found.optimizer.name}, learning rate {found.optimizer.lr:g}"
            for name, found in configs.items()
        },
    }
    return {what: _alike(by_arm) for what, by_arm in words.items()} | {
        "seeds": _word(config.seeds),
        "profile of the scores": config.profile,
    }


def own_facts(config: ExperimentConfig, arms: Sequence[ArmPlan]) -> dict[str, str]:
    """Every field that an arm has otherwise than the training configuration that all arms share."""
    base = _fields(base_config(config, where=config.name))
    out = {}
    for arm in arms:
        mine = _fields(arm_config(config, arm, where=arm.name))
        changed = [f"{key}: {_word(value)}" for key, value in mine.items() if value != base[key]]
        out[f"arm {arm.name} alone"] = "; ".join(changed) or "nothing of its own"
    return out


def _fields(config: TrainingConfig) -> dict[str, Any]:
    """What decides a run's weights, by dotted names; the network as it comes out, whoever says it."""
    stated = {key: value for key, value in deciding(config.to_json()).items() if key not in ("name", "seed")}
    return _flat({**stated, "network": asdict(_recipe(config).network)})


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return out


def _recipe(config: TrainingConfig) -> Recipe:
    return configured_recipe(config, load_recipe(config.recipe))


def _alike(by_arm: Mapping[str, str]) -> str:
    """The value that all arms have; else each value with its arms."""
    arms: dict[str, list[str]] = {}
    for name, value in by_arm.items():
        arms.setdefault(value, []).append(name)
    if len(arms) == 1:
        return next(iter(arms))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in arms.items())


def _word(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(f"({_word(item)})" if isinstance(item, tuple | list) else _word(item)
                         for item in value) or "none"  # fmt: skip
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _summary_columns() -> list[str]:
    out = ["setting", "arm", "title", "seeds", "images", "lesion_free"]
    for metric in SHOWN:
        out += [metric, f"{metric}_low", f"{metric}_high", f"{metric}_undefined"]
    for metric in TESTED:
        difference = f"{metric}_minus_baseline"
        out += [f"{metric}_by_seed", difference, f"{difference}_low", f"{difference}_high"]
        out += [f"{metric}_p", f"{metric}_p_holm", f"{metric}_paper"]
    return [*out, *COSTS]


def _summary_row(item: TrialSummary, config: ExperimentConfig, cost: ArmCost) -> dict[str, TableValue]:
    arm = config.arm(item.arm)
    out: dict[str, TableValue] = {
        "setting": item.setting,
        "arm": item.arm,
        "title": arm.title or arm.name,
        "seeds": ",".join(map(str, item.seeds)),
        "images": item.images,
        "lesion_free": item.lesion_free,
        **_cost(cost, item.setting),
    }
    for metric in SHOWN:
        found = item.metrics.get(metric)
        if found is not None:
            out |= _interval(metric, found) | {f"{metric}_undefined": item.undefined.get(metric, 0)}
    for metric in TESTED:
        out[f"{metric}_by_seed"] = ",".join(f"{value:.4f}" for value in item.by_seed.get(metric, ()))
        if metric in arm.paper and item.setting == config.settings[0].name:
            out[f"{metric}_paper"] = _finite(float(arm.paper[metric]))
        against = item.comparisons.get(metric)
        if against is not None:
            out |= _interval(f"{metric}_minus_baseline", against.difference)
            out |= {f"{metric}_p": _finite(against.test.p), f"{metric}_p_holm": _finite(against.p_holm)}
    return {name: out.get(name) for name in _summary_columns()}


def _interval(name: str, found: Interval) -> dict[str, TableValue]:
    return {name: _finite(found.mean), f"{name}_low": _finite(found.low), f"{name}_high": _finite(found.high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(
    summaries: Sequence[TrialSummary], facts: Sequence[RunFacts], config: ExperimentConfig,
    costs: Mapping[str, ArmCost],
) -> dict[str, Any]:  # fmt: skip
    """Everything of the tables and more, without NaN."""
    return {
        "name": config.name,
        "baseline": config.baseline,
        "profile": config.profile,
        "version": __version__,
        "arms": [{"name": arm.name, "title": arm.title, "paper": dict(arm.paper)} for arm in config.arms],
        "summaries": [
            _plain(_record(item) | _cost(costs[item.arm], item.setting)) for item in summaries
        ],
        "runs": [
            _plain({**asdict(fact.run), "seconds": fact.seconds, "parameters": fact.parameters,
                    "flops": fact.flops, "sequences": fact.sequences, "settings": fact.settings})
            for fact in facts
        ],
    }  # fmt: skip


def _record(item: TrialSummary) -> dict[str, Any]:
    return {
        "arm": item.arm,
        "setting": item.setting,
        "seeds": item.seeds,
        "images": item.images,
        "lesion_free": item.lesion_free,
        "undefined": item.undefined,
        "metrics": {name: asdict(found) for name, found in item.metrics.items()},
        "by_seed": item.by_seed,
        "comparisons": {name: asdict(found) for name, found in item.comparisons.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _page(
    place: Place, summaries: tuple[TrialSummary, ...], facts: Sequence[RunFacts], wanted: Sequence[Run]
) -> ExperimentPage:
    config, done = place.config, {fact.run for fact in facts}
    arms = {run.arm for run in (*plan_runs(config), *done)}
    shown = [arm for arm in config.arms if arm.name in arms]
    everything = "every sequence that they know and a session has"
    settings = {
        item.name: f"{', '.join(item.sequences)} alone" if item.sequences else everything
        for item in config.settings
    }
    return ExperimentPage(
        title=config.title or config.name,
        arms=tuple(
            ArmLabel(name=arm.name, title=arm.title or arm.name,
                     paper={key: float(value) for key, value in arm.paper.items()})
            for arm in config.arms
        ),
        baseline=config.baseline,
        summaries=summaries,
        settings=settings,
        published=config.settings[0].name,
        runs=tuple(_line(fact) for fact in facts),
        missing=tuple(run.label for run in wanted if run not in done),
        costs=arm_costs(facts),
        facts=shared_facts(config, shown) | _split_facts(place) | own_facts(config, shown),
        notes=config.notes,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        version=__version__,
    )  # fmt: skip


def _split_facts(place: Place) -> dict[str, str]:
    split = read_json(place.out / SPLIT)
    counts = {side: len(split.get(side, ())) for side in ("training", "validation", "test")}
    test = str(counts["test"]) if place.test is None else "a data set of their own"
    out = {"subjects": f"training {counts['training']}, validation {counts['validation']}, test {test}"}
    alike = alike_labels(place)
    if alike:
        out["labels of test subjects"] = (
            f"{alike} are also labels in training or validation; said to be other people (--other-people)"
        )
    left = left_words(sequences_left(place))
    return out | ({"sequences left in training sessions": left} if left else {})


def left_words(counts: Mapping[str, tuple[int, int]]) -> str:
    """In words, what :func:`sequences_left` counted."""
    return ", ".join(f"{name} {kept} of {there}" for name, (kept, there) in counts.items())


def _line(fact: RunFacts) -> RunLine:
    return RunLine(
        arm=fact.run.arm,
        seed=fact.run.seed,
        seconds=fact.seconds,
        parameters=fact.parameters,
        sequences=fact.sequences,
        thresholds={
            name: f"probability {found['threshold']:g}, {found['min_volume_mm3']:g} mm³"
            + ("" if found["validation"] else " (no validation case)")
            + (" (the last candidate)" if (found["validation"] or {}).get("at_end") else "")
            + (f" ({found['left_out']} test cases left out)" if found.get("left_out") else "")
            for name, found in fact.settings.items()
        },
        log=fact.log,
    )
