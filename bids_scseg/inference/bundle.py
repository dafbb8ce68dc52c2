"""Model bundles: weights, recipe, threshold, provenance and checksum in one folder (no torch, no pickles)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bids_scseg import files
from bids_scseg.errors import DataError, MissingInputError, suggestion
from bids_scseg.inference.facts import ModelFacts, facts_from_json, facts_to_json, split_origins
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.load import (
    network_from_json,
    network_to_json,
    parse_json,
    recipe_from_json,
    recipe_to_json,
)
from bids_scseg.recipe.model import GridSpec, NetworkSpec, Recipe
from bids_scseg.recipe.study import Plan

FORMAT = 1  # of model.json
MODEL_FILE, WEIGHTS_FILE, CARD_FILE = "model.json", "weights.safetensors", "card.md"
ALLOWED_FILES = {MODEL_FILE, WEIGHTS_FILE, CARD_FILE}
# Two results are comparable only if this is the same; raise it when the same weights give other numbers.
NUMERICAL_VERSION = 1

_KEYS = {
    "format": int,
    "recipe": dict,
    "network": dict,
    "threshold": float,
    "provenance": dict,
    "weights_sha256": str,
    "numerical_version": int,
}
_OPTIONAL = {"facts": dict}  # since version 0.2: bundles of 0.1 lack them
_DECISIVE = ("patch_vox", "overlap", "flips")  # of the recipe's rules of inference, for the network's output
# Fields of format 1's first release; later ones enter checksums only where they differ from their default.
_FIRST_NETWORK = (
    "family",
    "channels",
    "strides",
    "sequences",
    "classes",
    "impute",
    "skips",
    "deep_supervision",
)
_FIRST_GRID = ("spacing_mm", "window_vox", "margin_mm")
# Bounds of what is read before anything is believed, ours: real ones are a hundredth of it.
MAX_TEXT_BYTES = 4_000_000  # of model.json and card.md
MAX_HEADER_BYTES = 16_000_000  # of the weights' list of names and shapes
_REINSTALL = "install the package again, or export the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBundle:
    """A trained model on disk.

    Attributes
    ----------
    name
        Name of the folder.
    path
        The folder, absolute.
    recipe
        What was trained.
    network
        The trained network; its sequences are some of the recipe's.
    threshold
        Probability from which a voxel counts, calibrated on validation data.
    provenance
        (what, value) pairs in alphabetic order: training data, seed, iterations, versions….
    weights_sha256
        SHA-256 of the weights file, hexadecimal.
    numerical_version
        Results with equal checksum and equal numerical version are comparable.
    summary
        First line of text of the model card (its heading, if it has no text).
    facts
        What is recorded of its training; bundles of version 0.1 record nothing there.
    engine
        Network of another program that is run instead, such as ``sct:lesion_ms``; this is then name and path
        as well, and there is no weights file. Empty: the bundle's own network.
    """

    name: str
    path: Path
    recipe: Recipe
    network: NetworkSpec
    threshold: float
    provenance: tuple[tuple[str, str], ...]
    weights_sha256: str
    numerical_version: int
    summary: str
    facts: ModelFacts = field(default_factory=ModelFacts)
    engine: str = ""

    @property
    def weights(self) -> Path:
        """Path of the weights file."""
        return self.path / WEIGHTS_FILE

    @property
    def inference_sha256(self) -> str:
        """Checksum of all that decides the network's output: weights, architecture, patches, frame and grid.

        Thresholds, smallest lesion and connectivity come later and are not among it.
        """
        recipe, default = recipe_to_json(self.recipe), NetworkSpec()
        decisive = {
            "weights": self.weights_sha256,
            "numerical_version": self.numerical_version,
            "network": _changed(
                network_to_json(self.network), network_to_json(default), first=_FIRST_NETWORK
            ),
            "inference": {name: getattr(self.recipe.inference, name) for name in _DECISIVE},
            **{name: recipe[name] for name in ("frame", "anchors")},
            "grid": _changed(asdict(self.recipe.grid), asdict(GridSpec()), first=_FIRST_GRID),
        }
        if self.recipe.inference.by_patch:
            decisive["by_patch"] = True
        if self.recipe.normalize != "coverage":
            decisive["normalize"] = self.recipe.normalize
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def packaged_models() -> dict[str, Path]:
    """Folders of the models that come with this package, by name."""
    root = Path(str(resources.files("bids_scseg"))) / "models"
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / MODEL_FILE).is_file()}


def load_bundle(name_or_path: str | Path) -> ModelBundle:
    """Read a bundle's description and verify its weights; nothing is executed and torch is not imported.

    Parameters
    ----------
    name_or_path
        Name of a packaged model such as ``cord-lesion``, or path of a bundle's folder.

    Raises
    ------
    MissingInputError
        If there is no such model, or a file of the bundle is missing.
    DataError
        If ``model.json`` is malformed, the checksum differs, or the folder holds any other file
        (a pickle, for one, could run code) or a link that leads out of it. What a killed writer left
        (``.NAME.tmp``) is passed over and never opened.
    """
    folder = find_bundle(name_or_path)
    _check_files(folder)
    model_file = folder / MODEL_FILE
    data = _read_model(model_file)
    checksum = sha256(folder / WEIGHTS_FILE)
    if checksum != data["weights_sha256"]:
        raise DataError(
            f"SHA-256 is {checksum}",
            file=folder / WEIGHTS_FILE,
            expected=data["weights_sha256"],
            remedy=_REINSTALL,
        )
    recipe = recipe_from_json(data["recipe"], file=model_file)
    return ModelBundle(
        name=folder.name,
        path=folder,
        recipe=recipe,
        network=_network(data["network"], recipe, file=model_file),
        threshold=_threshold(data["threshold"], file=model_file),
        provenance=_provenance(data["provenance"], file=model_file),
        weights_sha256=checksum,
        numerical_version=data["numerical_version"],
        summary=_first_line(folder / CARD_FILE),
        facts=facts_from_json(data.get("facts", {}), file=model_file),
    )


def find_bundle(name_or_path: str | Path, *, where: object = None) -> Path:
    """Absolute folder of a packaged model or of a path.

    Parameters
    ----------
    name_or_path
        As :func:`load_bundle`.
    where
        What names it, for the message if there is none.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    packaged = packaged_models()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)].resolve()
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        raise MissingInputError(
            f"there is no model {str(name_or_path)!r}",
            file=where,
            expected=f"one of {sorted(packaged)} or a model's folder",
            remedy=suggestion(name_or_path, packaged) or "check the name or path",
        )
    return folder.resolve()


def save_bundle(
    path: str | Path,
    weights: Mapping[str, npt.NDArray[Any]],
    *,
    recipe: Recipe,
    threshold: float,
    provenance: Mapping[str, object],
    card: str,
    network: NetworkSpec | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    facts: ModelFacts | None = None,
) -> ModelBundle:
    """Write a bundle and read it back; equal input gives equal bytes.

    Parameters
    ----------
    path
        Folder to write; created where needed. Files of an earlier bundle in it are replaced.
    weights
        Floating-point arrays by parameter name (a network's state dict as numpy arrays).
    recipe, threshold, network
        See :class:`ModelBundle`; the network defaults to the recipe's.
    provenance
        What the model was trained on and with; values are stored as text.
    card
        Model card in Markdown; its first line of text appears wherever the model is listed.
    dtype
        Type in which weights are stored.
    facts
        What is known of the training. Default: nothing but that this program's preparation was used.

    Raises
    ------
    DataError
        If weights are empty, not finite, or beyond the range of the stored type; or the result would
        not load.
    OutputError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    stored = {name: _stored(name, weights[name], np.dtype(dtype)) for name in sorted(weights)}
    if not stored:
        raise DataError("no weights to save", file=path)
    content = save(stored)
    model = {
        "format": FORMAT,
        "numerical_version": NUMERICAL_VERSION,
        "recipe": recipe_to_json(recipe),
        "network": network_to_json(network or recipe.network),
        "threshold": float(threshold),
        "provenance": {key: str(provenance[key]) for key in sorted(provenance)},
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "facts": facts_to_json(facts or ModelFacts(preparation=PREPARATION_VERSION)),
    }
    folder = Path(path)
    files.sweep(folder)
    files.write_bytes(folder / WEIGHTS_FILE, content)
    files.write_text(folder / CARD_FILE, card.strip() + "\n")
    text = json.dumps(model, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / MODEL_FILE, text + "\n")
    return load_bundle(folder)


def stored_type(weights: Mapping[str, npt.NDArray[Any]]) -> Literal["float16", "float32"]:
    """``float16``, or ``float32`` where a weight is beyond its range: a ``dtype`` for :func:`save_bundle`."""
    largest = max((np.abs(array).max() for array in weights.values() if array.size), default=0.0)
    return "float16" if largest <= np.finfo(np.float16).max else "float32"


def load_weights(bundle: ModelBundle) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of a bundle as float32 arrays by parameter name.

    Raises
    ------
    DataError
        If the file is no safetensors file or holds values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    read_header(bundle.weights)
    try:
        arrays = load_file(bundle.weights)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"not readable: {error}", file=bundle.weights, remedy=_REINSTALL) from error
    weights = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    broken = [name for name, array in weights.items() if not np.isfinite(array).all()]
    if broken:
        raise DataError(f"{broken[0]} has values that are not finite", file=bundle.weights, remedy=_REINSTALL)
    return weights


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type (``F16``, ``F32``…) and shape of each array of a safetensors file; no array is read.

    Raises
    ------
    DataError
        If it is no such file, or its header is too large to be one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise DataError(
                f"not readable: a header of {length} bytes",
                file=path,
                expected=f"at most {MAX_HEADER_BYTES}",
                remedy=_REINSTALL,
            )
        with safe_open(path, framework="numpy") as arrays:
            slices = {name: arrays.get_slice(name) for name in sorted(arrays.keys())}
            return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"not readable: {error}", file=path, remedy=_REINSTALL) from error


def mismatch(bundle: ModelBundle, *, preparation: int, cord_method: str) -> tuple[str, ...]:
    """What a run does otherwise than the training of its model; empty where nothing is known to differ.

    Parameters
    ----------
    bundle
        The lesion model.
    preparation
        Version of the preparation that the run uses: ``preprocess.PREPARATION_VERSION``.
    cord_method
        Where the run's cord masks come from: ``masks`` (given), ``cord-finder`` (``builtin``) or ``sct``;
        empty: not looked at.

    Returns
    -------
    One sentence for each difference. Models that do not record it give none.
    """
    facts, method = bundle.facts, RUN_METHODS.get(cord_method, cord_method)
    trained = split_origins(facts.cord_method)
    known = {*trained, *(covered for origin in trained for covered in _COVERED.get(origin, ()))}
    found = []
    if facts.preparation not in (None, preparation):
        found.append(
            f"model {bundle.name} was trained on images prepared by version {facts.preparation} of the "
            f"preparation, this program prepares by version {preparation}: its figures do not hold here"
        )
    if trained and method and method not in known:
        found.append(
            f"model {bundle.name} was trained with cords from {' and '.join(trained)}, here they come from "
            f"{method}: errors of those may mislead it"
        )
    return tuple(found)


def session_mismatch(bundle: ModelBundle, plan: Plan, *, cord_method: str) -> tuple[str, ...]:
    """:func:`mismatch` of one session with this program.

    Parameters
    ----------
    bundle
        The lesion model.
    plan
        Says which images have cord masks of the user's, and which of these the Spinal Cord Toolbox made.
    cord_method
        Where the cord masks of the others come from.
    """
    given, toolbox = {name for name, _ in plan.cord_masks}, set(plan.sct_masks)
    images = {file.relative for sequence in plan.sequences for file in sequence.files}
    methods = ["masks"] * bool(images & given - toolbox) + ["sct"] * bool(images & toolbox)
    methods += [cord_method] * bool(images - given)
    found = [
        text
        for method in methods
        for text in mismatch(bundle, preparation=PREPARATION_VERSION, cord_method=method)
    ]
    return tuple(dict.fromkeys(found))


RUN_METHODS = {"builtin": "cord-finder"}  # names of a run's methods that differ from those of CORD_ORIGINS
# the errors added to masks stand for a finder's: a warning in every run would soon be read by nobody
_COVERED = {"jittered-masks": ("masks", "cord-finder", "sct")}


def _changed(
    values: Mapping[str, object], defaults: Mapping[str, object], *, first: tuple[str, ...]
) -> dict[str, object]:
    """Without later fields at their default, so that new fields leave the checksums of older models alone."""
    return {key: value for key, value in values.items() if key in first or value != defaults[key]}


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stored(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    values = np.asarray(array)
    if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
        raise DataError(
            f"weights {name} are {values.dtype} or not finite", expected="finite floating-point numbers"
        )
    if values.size and np.abs(values).max() > np.finfo(dtype).max:
        raise DataError(
            f"weights {name} exceed {dtype}", expected="smaller values", remedy="pass dtype='float32'"
        )
    return np.ascontiguousarray(values, dtype=dtype)


def _check_files(folder: Path) -> None:
    present = {entry.name for entry in folder.iterdir() if not files.is_temporary(entry.name)}
    strangers = sorted(present - ALLOWED_FILES)
    if strangers:
        raise DataError(
            f"the model's folder holds {strangers[0]!r}",
            file=folder,
            expected=f"nothing but {sorted(ALLOWED_FILES)}: other files could run code",
            remedy="remove it",
        )
    for name in sorted(ALLOWED_FILES - present):
        raise MissingInputError(f"the model lacks {name}", file=folder, remedy=_REINSTALL)
    for name in sorted(ALLOWED_FILES):
        _check_file(folder / name)


def _check_file(path: Path) -> None:
    """Refuse links that lead elsewhere, and pipes and devices, from which reading may never end."""
    if path.resolve().parent != path.parent:
        raise DataError(
            f"is a link to {path.resolve()}",
            file=path,
            expected="a file in the model's own folder",
            remedy="copy the file itself into the folder (cp -L)",
        )
    if not path.is_file():
        raise DataError("is no regular file", file=path, expected="a file", remedy=_REINSTALL)
    if path.name != WEIGHTS_FILE and path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(
            f"is {path.stat().st_size} bytes long",
            file=path,
            expected=f"at most {MAX_TEXT_BYTES}",
            remedy=_REINSTALL,
        )


def _read_model(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as text: {error}", file=path, remedy=_REINSTALL) from error
    try:
        data = parse_json(text, file=path)
    except ValueError as error:  # integers of thousands of digits
        raise DataError(f"not JSON: {error}", file=path, remedy=_REINSTALL) from error
    if not isinstance(data, dict) or not set(_KEYS) <= set(data) <= {*_KEYS, *_OPTIONAL}:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise DataError(f"holds {found}", file=path, expected=f"the keys {sorted(_KEYS)}", remedy=_REINSTALL)
    for key, kind in {**_KEYS, **_OPTIONAL}.items():
        if key in data and type(data[key]) is not kind:
            raise DataError(
                f"{key} is {data[key]!r:.60}", file=path, expected=kind.__name__, remedy=_REINSTALL
            )
    if data["format"] != FORMAT:
        raise DataError(
            f"model format {data['format']}", file=path, expected=str(FORMAT), remedy="update this program"
        )
    return data


def _network(data: object, recipe: Recipe, *, file: Path) -> NetworkSpec:
    spec = network_from_json(data, file=file)
    strangers = [name for name in spec.sequences if name not in recipe.sequence_names]
    if strangers:
        raise DataError(
            f"network.sequences {strangers} are none of the recipe's",
            file=file,
            expected=f"some of {list(recipe.sequence_names)}",
            remedy=_REINSTALL,
        )
    return spec


def _threshold(value: float, *, file: Path) -> float:
    if not 0.0 <= value <= 1.0:
        raise DataError(f"threshold is {value}", file=file, expected="0 to 1", remedy=_REINSTALL)
    return value


def _provenance(data: Mapping[str, object], *, file: Path) -> tuple[tuple[str, str], ...]:
    for key, value in data.items():
        if not isinstance(value, str):
            raise DataError(
                f"provenance.{key} is {value!r:.60}", file=file, expected="a text", remedy=_REINSTALL
            )
    return tuple(sorted((key, str(value)) for key, value in data.items()))


def _first_line(path: Path) -> str:
    """First line of text, where a card says what to beware of; its heading if there is no text."""
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    text = [line for line in lines if not line.startswith("#")]
    return next(iter([*text, *lines]), "").strip("# ").replace("**", "")
