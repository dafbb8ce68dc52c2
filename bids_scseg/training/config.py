"""Training configurations: TOML files, parsed strictly into frozen records."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.check import check_network
from bids_scseg.recipe.model import NetworkSpec, Recipe

LossName = Literal["dice-ce", "tversky", "focal-tversky"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The loss.

    Attributes
    ----------
    name
        ``dice-ce`` (the paper's cross-entropy + soft Dice), ``tversky`` or ``focal-tversky``.
    smooth
        Added to numerator and denominator of the overlap term (1e-5, nnU-Net; 0: Dice without smoothing).
    ce_weight, overlap_weight
        Weights of cross-entropy and of the overlap term.
    alpha, beta, gamma
        Tversky's weights of false positives and false negatives, and the focal exponent (Abraham & Khan 2019:
        0.3, 0.7, 0.75).
    output_weights
        Weights of the supervised outputs, full resolution first (2/3, 1/3: SPEC).
    """

    name: LossName = "dice-ce"
    smooth: float = 1e-5
    ce_weight: float = 1.0
    overlap_weight: float = 1.0
    alpha: float = 0.3
    beta: float = 0.7
    gamma: float = 0.75
    output_weights: tuple[float, ...] = (2 / 3, 1 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule (defaults: Walsh et al. 2024; power and clip: nnU-Net).

    Attributes
    ----------
    name
        ``sgd`` (Nesterov) or ``adamw``.
    lr, momentum, weight_decay
        As in PyTorch; momentum is not used by ``adamw``.
    power
        Exponent of the polynomial decay.
    warmup
        Iterations of linear warm-up.
    clip
        Largest gradient norm.
    ema
        Decay of the moving average of the weights that is kept and shipped; 0: the weights themselves.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.99
    weight_decay: float = 3e-5
    power: float = 0.9
    warmup: int = 0
    clip: float = 12.0
    ema: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Which patches are drawn.

    Attributes
    ----------
    patch_vox
        Size along grid axes (R, A, S).
    batch
        Patches per iteration.
    foreground
        Share of patches centred on the target (0.33: nnU-Net).
    sequence_dropout
        Probability that a random non-empty subset of the available sequences is kept; else all are.
    workers
        Background processes that draw patches (0: in the training process).
    window_vox
        Windows of the trained model at inference; zeros: as large as the patches.
    """

    patch_vox: tuple[int, int, int] = (48, 48, 320)
    window_vox: tuple[int, int, int] = (0, 0, 0)
    batch: int = 2
    foreground: float = 0.33
    sequence_dropout: float = 0.0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Probabilities and ranges of the cord-specific augmentation (SPEC §4)."""

    flip: float = 0.5  # per axis in ``flip_axes``
    flip_axes: tuple[int, ...] = (0, 1, 2)
    spatial: float = 0.5
    scale: float = 0.15
    rotation_deg: float = 30.0  # about S-I
    gamma: float = 0.3
    gamma_range: tuple[float, float] = (0.7, 1.5)
    blur: float = 0.3
    blur_mm: tuple[float, float] = (0.5, 1.0)
    bias: float = 0.2
    bias_strength: float = 0.3
    low_resolution: float = 0.25
    low_resolution_factor: tuple[float, float] = (1.0, 2.0)
    noise: float = 0.15
    noise_sd: tuple[float, float] = (0.0, 0.3)  # in units of the normalised image
    invert: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """How held-out cases are used.

    Attributes
    ----------
    fraction
        Share of the subjects that is held out.
    every
        Iterations between looks at the held-out cases (0: only at the end).
    cases
        Cases in each such look (0: all); the last look always takes all.
    thresholds
        Candidates for the bundle's threshold.
    min_volumes_mm3
        Candidates for the smallest instance that is kept.
    """

    fraction: float = 0.2
    every: int = 0
    cases: int = 0
    thresholds: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    min_volumes_mm3: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One training.

    Attributes
    ----------
    name
        Of the run.
    recipe
        Name of the recipe or path of its JSON file.
    iterations
        Optimizer steps.
    seed
        Of weights, splits, patches and augmentations.
    checkpoint_every
        Iterations between checkpoints.
    precision
        ``bf16-mixed`` or ``32-true``.
    threads
        CPU threads (0: leave as they are).
    initial
        Folder of a checkpoint or bundle whose weights are the start; empty: random weights.
    network
        Fields of the recipe's network that are replaced.
    loss, optimizer, sampling, augment, validation
        See their types.
    """

    name: str
    recipe: str
    iterations: int = 250_000
    seed: int = 0
    checkpoint_every: int = 250
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    threads: int = 0
    initial: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def load_config(path: Path | str) -> TrainingConfig:
    """Read a TOML configuration.

    Raises
    ------
    MissingInputError
        If there is no such file.
    DataError
        If it is not TOML, a key is unknown or missing, or a value has another type than its field.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingInputError("no such training configuration", file=file, expected="a TOML file")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(
            f"not valid TOML ({error})", file=file, expected="a training configuration"
        ) from error
    config: TrainingConfig = _record(TrainingConfig, data, where=str(file))
    return config


def configured_recipe(config: TrainingConfig, recipe: Recipe) -> Recipe:
    """The recipe that a run trains: its network and inference windows with the configuration's changes.

    Raises
    ------
    DataError
        If the configuration names a field that a network does not have, or the result is inconsistent.
    """
    spec: NetworkSpec = _merge(recipe.network, config.network)
    check_network(spec)
    if len(config.loss.output_weights) < spec.deep_supervision:
        raise DataError(
            f"{len(config.loss.output_weights)} weights for {spec.deep_supervision} supervised outputs",
            expected="one weight for each output",
        )
    window = config.sampling.window_vox if any(config.sampling.window_vox) else config.sampling.patch_vox
    inference = replace(recipe.inference, patch_vox=window)
    return replace(recipe, network=spec, inference=inference)


def _merge(spec: NetworkSpec, changes: Mapping[str, Any]) -> NetworkSpec:
    current = {item.name: getattr(spec, item.name) for item in fields(spec)}
    merged: NetworkSpec = _record(NetworkSpec, {**current, **changes}, where="network")
    return merged


def _record(kind: type[Any], data: Mapping[str, Any], *, where: str) -> Any:
    """Build a dataclass from plain data; every key must be a field and every value of its type."""
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise DataError(f"unknown keys {unknown}", file=where, expected=f"keys among {sorted(known)}")
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(data))
    if missing:
        raise DataError(f"keys {missing} are missing", file=where, expected="all required keys")
    return kind(**{key: _value(hints[key], value, where=f"{where}: {key}") for key, value in data.items()})


def _value(kind: Any, value: Any, *, where: str) -> Any:
    """Check one value against its type, turning lists into tuples and tables into records."""
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        _expect(isinstance(value, Mapping), value, kind=kind, where=where)
        return _record(kind, value, where=where)
    if origin is Literal:
        _expect(value in get_args(kind), value, kind=kind, where=where)
        return value
    if origin is tuple:
        return _items(kind, value, where=where)
    if origin in (Union, UnionType) or kind is Any or origin is not None:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        value,
        kind=kind,
        where=where,
    )
    return value


def _items(kind: Any, value: Any, *, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list | tuple), value, kind=kind, where=where)
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    _expect(len(kinds) == len(value), value, kind=kind, where=where)
    return tuple(_value(one, item, where=where) for one, item in zip(kinds, value, strict=True))


def _expect(right: bool, value: Any, *, kind: Any, where: str) -> None:
    if not right:
        name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise DataError(f"value {value!r}", file=where, expected=name)
