"""What a run stands on: where examples come from, who is held out, what people should know of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_scseg import files
from bids_scseg.errors import DataError, UsageError
from bids_scseg.inference.facts import join_origins, split_origins
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.arms import judged_sequences, shown_sampling, shown_sequences
from bids_scseg.training.cases import Made, TrainingCase, check_rules, kept_sequences, load_cases
from bids_scseg.training.checkpoint import STATE, has_checkpoint, read_progress
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.dataset import PreparedCases
from bids_scseg.training.files import read_json, write_json
from bids_scseg.training.fit import DATA, examples_in_all, is_first_process
from bids_scseg.training.sample import Source
from bids_scseg.training.split import Split, split_subjects, write_split
from bids_scseg.training.summary import describe, summarize
from bids_scseg.training.synthetic import (
    HELD_OUT_FIRST,
    cord_method,
    facts_of,
    generating,
    make_all,
    open_sessions,
)

SPLIT = "split.json"
#: What the summary of the training data says that no run that goes on may change.
DECIDING = ("cases", "available", "lesions", "lesion voxels", "lengths")
_BEGIN_ANEW = (
    "use a new folder (with this one as `initial`, training starts from its weights), or the data of the run"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a run stands on.

    Attributes
    ----------
    source
        Of the examples.
    validation
        Held-out cases.
    summary
        What both hold, as plain data.
    made
        How the cases were prepared: the version, where it is that of all; the origins of all their cords.
    """

    source: Source
    validation: list[TrainingCase]
    summary: Mapping[str, Any]
    made: Made

    @property
    def held_out(self) -> tuple[str, ...]:
        """Subjects that are held out."""
        return tuple(sorted({case.subject for case in self.validation}))


@contextmanager
def open_ground(config: TrainingConfig, data: Path | None, *, recipe: Recipe, out: Path) -> Iterator[Ground]:
    """Open the cases of a folder, or start drawing synthetic sessions, which ends with the context.

    Parameters
    ----------
    config
        Of the run.
    data
        Folder of prepared cases. Where the examples are synthetic: cases that are all held out, or None.
    recipe
        The configured one.
    out
        The run's folder, for ``split.json`` and synthetic sessions.

    Raises
    ------
    UsageError
        If there is no folder and examples are not synthetic.
    MissingInputError, DataError
        As :func:`bids_scseg.training.train.train`.
    """
    if is_first_process():
        _make_folder(out)
    if config.data.synthetic:
        with _synthetic(config, data, recipe=recipe, out=out) as ground:
            yield ground
    elif data is None:
        raise UsageError(
            "no prepared cases", expected="--data, or synthetic sessions (--synthetic, data.synthetic)"
        )
    else:
        yield _prepared(config, data, recipe=recipe, out=out)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(error, out) from error


def described(summary: Mapping[str, Any]) -> str:
    """A summary for people."""
    drawn = summary.get("synthetic")
    title = "training, first of the synthetic sessions" if drawn else "training"
    lines = [_described_sides(summary["sides"])] if summary.get("sides") else []
    lines += [describe(summary, title=title), describe(summary["validation"], title="held out")]
    if not summary["validation"]["lesions"]:
        lines.append("  nobody with lesions is held out: the recipe's threshold stays, not calibrated")
    if summary["left out"]:
        names = summary["left out"]
        some = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        lines.append(f"left out, with none of the sequences: {len(names)} ({some})")
    if summary.get("several"):
        names = summary["several"]
        some = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        lines.append(
            f"sessions with several cases, all used, their people taken for one: {len(names)} ({some})"
        )
    return "\n".join(lines)


def _described_sides(sides: Mapping[str, int]) -> str:
    """How many subjects are on each side: they are drawn one by one, so shares are not just as asked for."""
    whole, held, test = sum(sides.values()), sides["validation"], sides["test"]
    words = f"{held} of {whole} subjects held out ({100 * held / whole:.0f} %)"
    if test:
        words += f", {test} set aside for a test ({100 * test / whole:.0f} %)"
    return f"{words}, {sides['training']} to train on"


# -- prepared cases --------------------------------------------------------------------------------


def _prepared(config: TrainingConfig, data: Path, *, recipe: Recipe, out: Path) -> Ground:
    cases = load_cases(data, sequences=recipe.network.sequences)
    check_rules(cases, recipe)
    split = split_subjects({case.subject for case in cases}, config.validation, seed=config.seed)
    _check_same_subjects(out, split)
    training, held = (
        [case for case in cases if case.subject in names] for names in (split.training, split.validation)
    )
    training, without = _with_any(training, shown_sequences(config, recipe))
    held, judged_without = _with_any(held, judged_sequences(config, recipe))
    if not any(case.lesion_voxels.any() for case in training):
        raise DataError("no training case has a lesion", file=data, expected="labels with lesions")
    source = PreparedCases(
        cases=training,
        sampling=shown_sampling(config, recipe),
        augmentation=config.augment,
        painting=config.paint,
        seed=config.seed,
    )
    spacing = recipe.grid.spacing_mm
    summary = {
        **summarize(training, spacing_mm=spacing),
        "validation": summarize(held, spacing_mm=spacing),
        "left out": [case.name for case in (*without, *judged_without)],
        "several": _several(cases),
        "sides": {side: len(getattr(split, side)) for side in ("training", "validation", "test")},
    }
    _check_same_cases(out, summary)
    if is_first_process():
        write_split(out / SPLIT, split, seed=config.seed)
    return Ground(source=source, validation=held, summary=summary, made=_alike([*training, *held]))


def _check_same_subjects(out: Path, split: Split) -> None:
    """Refuse to go on with other training subjects: those of before might be held out now (DataError)."""
    before = read_json(out / SPLIT).get("training")
    if not has_checkpoint(out) or not isinstance(before, list) or set(before) == set(split.training):
        return
    gone, new = sorted(set(before) - set(split.training)), sorted(set(split.training) - set(before))
    words = [f"with {', '.join(gone)}"] * bool(gone) + [f"without {', '.join(new)}"] * bool(new)
    raise DataError(
        f"the run in this folder was begun {' and '.join(words)} among its training subjects",
        file=out,
        expected="the same training subjects",
        remedy=_BEGIN_ANEW,
    )


def _check_same_cases(out: Path, summary: Mapping[str, Any]) -> None:
    """Refuse to go on with other cases of the same subjects, or other labels (DataError)."""
    before = read_json(out / DATA)
    for key in DECIDING:
        if has_checkpoint(out) and key in before and before[key] != summary[key]:
            raise DataError(
                f"the run in this folder was begun on training data with other {key} ({before[key]})",
                file=out,
                expected=f"{summary[key]}, as the data have now",
                remedy=_BEGIN_ANEW,
            )


def _several(cases: list[TrainingCase]) -> list[str]:
    """Sessions that have more than one case: copies, or people of several places with one label."""
    counts = Counter((case.subject, case.session) for case in cases)
    return sorted("_".join(filter(None, key)) for key, count in counts.items() if count > 1)


def _with_any(
    cases: list[TrainingCase], names: tuple[str, ...]
) -> tuple[list[TrainingCase], list[TrainingCase]]:
    """Cases that have one of the sequences, and the others."""
    some = [case for case in cases if kept_sequences(case, names).any()]
    return some, [case for case in cases if not kept_sequences(case, names).any()]


def _alike(cases: list[TrainingCase]) -> Made:
    preparations, methods = {c.made.preparation for c in cases}, {c.made.cord_method for c in cases}
    origins = [origin for method in methods for origin in split_origins(method)]
    return Made(
        preparation=preparations.pop() if len(preparations) == 1 else None,
        cord_method=None if None in methods else join_origins(origins),
    )


# -- synthetic sessions ----------------------------------------------------------------------------


@contextmanager
def _synthetic(config: TrainingConfig, data: Path | None, *, recipe: Recipe, out: Path) -> Iterator[Ground]:
    source = open_sessions(config, recipe, out=out)
    first = source.first(int(read_json(out / STATE).get("examples", 0)))
    if is_first_process():
        source.sessions.sweep()
        source.sessions.retire(first)  # of before an interruption
    numbers = range(HELD_OUT_FIRST, HELD_OUT_FIRST + (config.data.held_out if data is None else 0))
    make_all(source.sessions, numbers, workers=config.data.generators)
    held = [source.case(number) for number in numbers]
    if data is not None:
        held = load_cases(data, sequences=recipe.network.sequences)
        check_rules(held, recipe)
    held, without = _with_any(held, judged_sequences(config, recipe))
    with generating(source, first=first) if is_first_process() else nullcontext():
        summary = read_json(out / DATA) if has_checkpoint(out) else {}
        if not summary:
            spacing = recipe.grid.spacing_mm
            summary = {
                **source.summary(),
                "validation": summarize(held, spacing_mm=spacing),
                "left out": [case.name for case in without],
            }
        # a run that goes on may be longer, or on other devices, than it was begun
        drawn = facts_of(source, examples=examples_in_all(config, read_progress(out)))
        summary = {**summary, "synthetic": drawn}
        made = Made(preparation=PREPARATION_VERSION, cord_method=cord_method(config.data.jitter_mm))
        ground = Ground(source=source, validation=held, summary=summary, made=made)
        if is_first_process():
            write_json(
                out / SPLIT, {"training": [], "validation": list(ground.held_out), "seed": config.seed}
            )
        yield ground
    if is_first_process():
        source.sessions.retire(HELD_OUT_FIRST)
        source.sessions.sweep()
