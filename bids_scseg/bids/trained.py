"""What is known of the training of the model that made predictions: which subjects it was trained on.

A bundle names no subject. But a mask's sidecar holds the checksum of the weights that made it, the log of a
run the model's folder, and a training leaves its split beside its bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bids_scseg import files
from bids_scseg.bids.names import sidecar
from bids_scseg.bids.split import MODEL_FILE, SIDES, Selection, Sides, find_split, label_of, read_split
from bids_scseg.errors import DataError, MissingInputError

#: Where a training puts its bundle, below its folder.
BUNDLE = "bundle"
#: The weights' checksum in the words of a mask's sidecar (``SessionResults.provenance``).
CHECKSUM = re.compile(r"\blesion model .*\bSHA-256 ([0-9a-f]{64})\b")

NOT_SAID = "the masks do not say which model made them"
SEVERAL = "the masks are of several models"
NOT_FOUND = "no split of its training was found by the logs of the predictions' folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is known of the training of a method's model.

    Attributes
    ----------
    split, sides
        File of its split, and what that says; None and empty where not known.
    verified
        Whether the weights that made the masks are those beside the split; else somebody said so.
    unknown
        Why it is not known; empty where it is.
    other_model
        Whether the split that was given is of other weights than those that made the masks.
    """

    split: Path | None = None
    sides: Sides = field(default_factory=lambda: MappingProxyType({}), hash=False)
    verified: bool = False
    unknown: str = ""
    other_model: bool = False

    def side_of(self, subject: str) -> str:
        """Side of a subject, with prefix or without; empty where it is on none, or nothing is known."""
        label = label_of(subject)
        return next((side for side in SIDES if label in self.sides.get(side, ())), "")

    def on_side(self, side: str, subjects: Iterable[str]) -> tuple[str, ...]:
        """Those of some subjects that are on a side, sorted."""
        return tuple(sorted({subject for subject in subjects if self.side_of(subject) == side}))


def training_of(folder: Path, masks: Sequence[Path], selection: Selection) -> Training:
    """What is known of the training of the model that made some masks.

    Parameters
    ----------
    folder
        Of the predictions; an output folder of this program has logs.
    masks
        Masks that are evaluated.
    selection
        Its split is taken for this model's, unless checksums say otherwise.

    Returns
    -------
    Training; a split that was found by checksum comes before one that was given.
    """
    made = {made_by(mask) for mask in masks}
    own = made.pop() if len(made) == 1 else None
    found = _recorded_split(folder, own) if own else None
    if found is not None:
        return Training(split=found[0], sides=found[1], verified=True)
    unknown = SEVERAL if len(made) > 1 else NOT_FOUND if own else NOT_SAID
    if selection.split is None:
        return Training(unknown=unknown)
    beside = checksum_beside(selection.split)
    if own and beside and own != beside:
        return Training(unknown=unknown, other_model=True)
    return Training(split=selection.split, sides=selection.sides, verified=bool(own) and own == beside)


def made_by(mask: Path) -> str | None:
    """Checksum of the weights that made a mask, as its sidecar says; None where it does not."""
    try:
        said = files.read_json(mask.with_name(sidecar(mask.name)))
    except DataError:
        return None  # no sidecar, or not ours
    made = said.get("GeneratedBy") if isinstance(said, dict) else None
    for entry in made if isinstance(made, list) else ():
        words = entry.get("Description") if isinstance(entry, dict) else None
        found = CHECKSUM.search(words) if isinstance(words, str) else None
        if found:
            return found[1]
    return None


def checksum_beside(split: Path) -> str | None:
    """Checksum of the weights in the bundle of a split's training; None where there is none."""
    for folder in (split.parent / BUNDLE, split.parent):
        checksum = _checksum(folder)
        if checksum:
            return checksum
    return None


def _checksum(bundle: Path) -> str | None:
    """The weights' checksum in a bundle's description; the weights are not read."""
    try:
        said = files.read_json(bundle / MODEL_FILE)
    except DataError:
        return None
    checksum = said.get("weights_sha256") if isinstance(said, dict) else None
    return checksum if isinstance(checksum, str) else None


def _recorded_split(folder: Path, checksum: str) -> tuple[Path, Sides] | None:
    """Split beside the model of a run in this folder; only where the model is the one that made the masks."""
    for model in dict.fromkeys(_recorded_models(folder)):
        if _checksum(model) == checksum:
            try:
                split = find_split(model)
                return split, read_split(split)
            except (MissingInputError, DataError):
                continue
    return None


def _recorded_models(folder: Path) -> Iterable[Path]:
    for log in sorted((folder / "logs").glob("run-*.toml")):
        try:
            model = files.read_toml(log).get("model")
        except DataError:
            continue
        if isinstance(model, str):
            yield Path(model).expanduser()
