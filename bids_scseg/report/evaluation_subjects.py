"""Which subjects an evaluation is over, and whether they were trained on: sentences, warnings, plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bids_scseg.bids.evaluate import FolderEvaluation
from bids_scseg.bids.split import label_of
from bids_scseg.report.flags import by_severity
from bids_scseg.report.records import Flag

#: Names in a sentence; the JSON has all.
MOST_NAMES = 12
SILENT = "its split does not say who was trained on"


def sentences(found: FolderEvaluation) -> tuple[str, ...]:
    """What is so and no warning: whose masks these are, and what is known of the training."""
    return (_whose(found), *(line for name in found.trainings for line in _known(found, name)))


def short_words(found: FolderEvaluation) -> str:
    """The same in a few words, for the head of a page."""
    selection = found.selection
    if selection.split is None:
        return "named ones" if selection.named else "all"
    return f"{selection.side} side of {selection.split.name}" + (", named ones" if selection.named else "")


def subject_flags(found: FolderEvaluation) -> tuple[Flag, ...]:
    """What a reader must know before trusting the numbers; serious ones first."""
    return by_severity(
        [*_missing(found), *(flag for name in found.trainings for flag in _trained(found, name))]
    )


def lines(found: FolderEvaluation) -> Iterable[str]:
    """Sentences and warnings for the screen."""
    yield from sentences(found)
    for flag in subject_flags(found):
        mark = "WARNING: " if flag.severity == "serious" else ""
        yield " ".join(filter(None, (f"{mark}{flag.title}.", flag.text, flag.remedy)))


def subjects_json(found: FolderEvaluation) -> dict[str, object]:
    """All of it as plain data."""
    selection = found.selection
    return {
        "chosen": None
        if selection.subjects is None
        else [f"sub-{name}" for name in sorted(selection.subjects)],
        "named": selection.named,
        "side": selection.side or None,
        "split": None if selection.split is None else str(selection.split),
        "without_reference": list(without_reference(found)),
        "on_no_side": list(_on_no_side(found)),
        "predictions": {name: _training_json(found, name) for name in found.trainings},
        "statements": list(lines(found)),
    }


def _training_json(found: FolderEvaluation, name: str) -> dict[str, object]:
    training, evaluated = found.trainings[name], found.evaluated(name)
    known = not training.unknown
    return {
        "evaluated": list(evaluated),
        "without_prediction": list(without_prediction(found, name)),
        "training_split": None if training.split is None else str(training.split),
        "same_weights": training.verified,
        "trained_on": list(training.on_side("training", evaluated)) if known else None,
        "threshold_chosen_on": list(training.on_side("validation", evaluated)) if known else None,
        "unknown": training.unknown or None,
    }


def without_reference(found: FolderEvaluation) -> tuple[str, ...]:
    """Subjects that were asked for and have no reference mask, sorted."""
    have = {label_of(subject) for subject in found.drawn}
    return tuple(f"sub-{name}" for name in sorted((found.selection.subjects or frozenset()) - have))


def without_prediction(found: FolderEvaluation, name: str) -> tuple[str, ...]:
    """Subjects with reference masks, none of which could be compared with a prediction, sorted."""
    wanted = {subject for subject in found.drawn if found.selection.holds(subject)}
    return tuple(sorted(wanted - set(found.evaluated(name))))


def _on_no_side(found: FolderEvaluation) -> tuple[str, ...]:
    """Subjects with reference masks of which the split that was given says nothing, sorted."""
    if found.selection.split is None:
        return ()
    known = set().union(*found.selection.sides.values())
    return tuple(subject for subject in found.drawn if label_of(subject) not in known)


def _whose(found: FolderEvaluation) -> str:
    selection, total = found.selection, len(found.drawn)
    chosen = sum(selection.holds(subject) for subject in found.drawn)
    if selection.subjects is None:
        return f"Subjects: all {total} with reference masks."
    words = f"Subjects: {chosen} of {total} with reference masks"
    if selection.split is None:
        return f"{words}, named by --participant-label."
    words += f", of the {selection.side} side of {selection.split}"
    words += ", named by --participant-label." if selection.named else "."
    others = _on_no_side(found)
    if others:
        words += f" On no side of it, and not evaluated: {_some(others)}."
    return words


def _known(found: FolderEvaluation, name: str) -> Iterable[str]:
    training, evaluated = found.trainings[name], found.evaluated(name)
    if training.on_side("training", evaluated):
        return  # a warning says so
    silent = "training" not in training.sides and not all(map(training.side_of, evaluated))
    reason = training.unknown or (SILENT if silent else "")
    if reason:
        yield (
            f"{name}: whether subjects evaluated were trained on is not known ({reason}). "
            "With --split and the training's folder, only subjects that it held out are evaluated."
        )
    else:
        yield f"{name}: no subject evaluated was trained on, by {_source(found, name)}."


def _source(found: FolderEvaluation, name: str) -> str:
    training = found.trainings[name]
    whose = "the weights beside it made the masks" if training.verified else "as --split says"
    return f"{training.split} ({whose})"


def _trained(found: FolderEvaluation, name: str) -> Iterable[Flag]:
    training, evaluated = found.trainings[name], found.evaluated(name)
    seen = training.on_side("training", evaluated)
    if seen:
        yield Flag(
            severity="serious",
            title=f"{name}: {len(seen)} of {len(evaluated)} subjects evaluated were trained on",
            text=f"By their labels, in {_source(found, name)}: {_some(seen)}. Scores of subjects that a "
            "model was trained on say nothing of others.",
            remedy=f"Evaluate the held-out subjects alone: --split {training.split}.",
        )
    chosen = training.on_side("validation", evaluated)
    if chosen:
        yield Flag(
            severity="caution",
            title=f"{name}: the threshold was chosen on {len(chosen)} of {len(evaluated)} subjects evaluated",
            text=f"They are the training's validation subjects, by {_source(found, name)}; so the scores are "
            "slightly optimistic.",
            remedy="Judge the model on subjects that took no part.",
        )
    if training.other_model:
        yield Flag(
            severity="serious",
            title=f"{name}: the split is of another model",
            text=f"The weights beside {found.selection.split} are not those that made these masks.",
            remedy="Give --split the training of the model that made them.",
        )


def _missing(found: FolderEvaluation) -> Iterable[Flag]:
    absent = without_reference(found)
    if absent:
        yield Flag(
            severity="caution",
            title=f"{len(absent)} of {len(found.selection.subjects or ())} subjects asked for have no "
            "reference mask",
            text=f"{_some(absent)}.",
        )
    if found.selection.subjects is None:
        return  # the files are listed; nobody was asked for by name
    for name in found.trainings:
        absent = without_prediction(found, name)
        if absent:
            yield Flag(
                severity="caution",
                title=f"{name}: {len(absent)} subjects asked for have no prediction that could be compared",
                text=f"{_some(absent)}; see Left out.",
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
