"""Training configurations: TOML files, parsed strictly into frozen records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from bids_scseg.errors import DataError
from bids_scseg.inference.facts import check_line, spdx
from bids_scseg.network.spec import total_stride
from bids_scseg.recipe.check import MAX_PATCH_VOX, check_network
from bids_scseg.recipe.model import NetworkSpec, Recipe
from bids_scseg.training.parse import check_choice, check_known, parse_record, read_mapping, within

LossName = Literal["dice-ce", "tversky", "focal-tversky"]
ArmKind = Literal["plain", "latent", "frozen", "distillation", "replicated"]


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
    ce_foreground
        Weight of a foreground voxel in the cross-entropy, background being 1 (the paper's). More of it keeps
        a training with single patches from ending where nothing is ever predicted.
    alpha, beta, gamma
        Tversky's weights of false positives and false negatives, and the focal exponent (Abraham & Khan 2019:
        0.3, 0.7, 0.75).
    output_weights
        Weights of the supervised outputs, full resolution first (2/3, 1/3, as in the paper).
    """

    name: LossName = "dice-ce"
    smooth: float = 1e-5
    ce_weight: float = 1.0
    ce_foreground: float = 1.0
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
        Patches per device and forward pass.
    accumulate
        Forward passes per iteration: an iteration sees batch x accumulate x devices patches.
    foreground
        Share of patches centred on the target (0.33: nnU-Net).
    sequence_dropout
        Probability that a random non-empty subset of the available sequences is kept; else all are.
    dropout_keeps
        Most sequences that such a subset has (0: no limit). Sequences that show lesions best otherwise keep
        the others from being learned.
    sequences
        The only sequences that are shown, others count as missing; empty: all of the network's.
    alone, alone_share
        Sequences of which one is shown alone in this share of the patches, where the case has one of them.
        Those that show lesions worst are otherwise seen too seldom by themselves.
    by_patch
        Whether a sequence that covers no voxel of a patch counts as missing there.
    exchange
        Probability that a sequence is shown in the place of one that is missing, in which lesions are bright
        (or dark) too.
    workers
        Background processes that draw patches (0: in the training process).
    window_vox
        Windows of the trained model at inference; zeros: as large as the patches.
    shown_lesions
        Whether patches are centred only on lesions that count with the sequences kept: covered by one of
        them, and not ignored as visible in none. Otherwise such a patch may teach nothing.
    """

    patch_vox: tuple[int, int, int] = (48, 48, 320)
    window_vox: tuple[int, int, int] = (0, 0, 0)
    batch: int = 2
    accumulate: int = 1
    foreground: float = 0.33
    sequence_dropout: float = 0.0
    dropout_keeps: int = 0
    sequences: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    alone_share: float = 0.0
    by_patch: bool = False
    exchange: float = 0.0
    workers: int = 0
    shown_lesions: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """What is added to the loop (the arms of Walsh et al. 2024, and a control).

    Attributes
    ----------
    kind
        ``plain``: nothing. With one sequence that is the paper's baseline, with several its mean imputation.
        ``latent``: noise on the bottleneck in training. ``frozen``: one encoder has the weights of another
        training and keeps them. ``distillation``: an L1 term draws the sequences' bottleneck features
        together. ``replicated``: one sequence goes through the fusion in every sequence's place.
    sequence
        Whose encoder is frozen, or which sequence is replicated; empty: the recipe's best anchor.
    source
        ``frozen``: folder of the checkpoint or bundle that has the encoder.
    weight
        ``distillation``: of the L1 term (0.1: the paper).
    logistic_share, logistic_scale, normal_sd
        ``latent``: each element gets Logistic(0, scale) noise with this probability, else Normal(0, sd)
        (0.25, 0.002, 0.4: the paper).
    """

    kind: ArmKind = "plain"
    sequence: str = ""
    source: str = ""
    weight: float = 0.1
    logistic_share: float = 0.25
    logistic_scale: float = 0.002
    normal_sd: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Probabilities and ranges of the cord-specific augmentation."""

    flip: float = 0.5  # per axis in ``flip_axes``
    flip_axes: tuple[int, ...] = (0, 1, 2)
    spatial: float = 0.5
    scale: float = 0.15
    rotation_deg: float = 30.0  # about S-I
    elastic: float = 0.0  # smooth displacements in plane
    elastic_mm: tuple[float, float] = (0.2, 0.8)  # standard deviation of each
    contrast: float = 0.0  # values near 0, the cord's, multiplied: its grey matter stands out more, or less
    contrast_factor: tuple[float, float] = (0.6, 1.7)
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
    renormalise: bool = False  # to the cord after all changes, by the recipe's rule; ``contrast`` comes last
    physical: float = 0.0  # coil, slices, fall-off along S-I and noise of native voxels
    slice_sd: float = 0.04  # of ``physical``: largest deviation of native slices' brightness, as a share
    level: float = 0.0  # last: both ends of the patch are raised by normal offsets with this deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class PaintConfig:
    """Lesions and tissues of other contrast in patches (`bids_scseg.training.paint`, `.appearance`).

    Attributes
    ----------
    probability
        Share of patches that get lesions.
    lesions
        Fewest and most of them.
    grey
        Share of patches that get horns of grey matter, which are no lesions.
    surroundings
        Share of patches in which what surrounds the cord is brightened or dimmed.
    wide
        Share of painted lesions with a section of a quarter to three fifths of the cord's.
    grey_contrast
        Least and largest contrast of the horns, in standard deviations of the cord.
    grey_front
        By how much, at most, anterior horns are stronger than the rest, as a share of it.
    contrast
        Least and largest contrast of visible lesions, in standard deviations of the cord around.
    least_contrast
        Contrast below which a voxel of a painted lesion does not count, in the same units.
    columns
        Share of painted lesions, wide ones apart, whose centres are drawn by the cord's columns.
    dark_fluid
        Share of axial T2- and T2*-weighted channels with surroundings as dark as the cord or darker.
    """

    probability: float = 0.0
    lesions: tuple[int, int] = (1, 3)
    grey: float = 0.0
    surroundings: float = 0.0
    wide: float = 0.0
    grey_contrast: tuple[float, float] = (0.3, 3.0)
    grey_front: float = 0.0
    contrast: tuple[float, float] = (2.0, 9.0)
    least_contrast: float = 0.7
    columns: float = 0.0
    dark_fluid: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """How held-out cases are used.

    Attributes
    ----------
    fraction
        Share of the subjects that is held out, unless ``subjects``, ``split`` or ``folds`` says which.
    test
        Share of the subjects that take part in nothing, for a test; a ``split`` names them itself.
    subjects
        The subjects that are held out, without ``sub-``.
    split
        JSON file with lists ``validation`` and, if wanted, ``training`` and ``test`` of subjects.
    folds, fold
        Parts that the subjects are dealt into, and the part (from 0) that is held out.
    sequences
        The only sequences that held-out cases are judged with, where they have them; empty: all.
    every
        Iterations between looks at the held-out cases (0: only at the end).
    cases
        Cases in each such look (0: all); the last look always takes all.
    thresholds
        Candidates for the bundle's threshold.
    min_volumes_mm3
        Candidates for the smallest instance that is kept.
    seed_thresholds
        Candidates for the probability that a kept instance reaches somewhere (0: no such rule).
    """

    fraction: float = 0.2
    test: float = 0.0
    subjects: tuple[str, ...] = ()
    split: str = ""
    folds: int = 0
    fold: int = 0
    sequences: tuple[str, ...] = ()
    every: int = 0
    cases: int = 0
    thresholds: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    min_volumes_mm3: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0)
    seed_thresholds: tuple[float, ...] = (0.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where examples come from, if not from prepared cases.

    Attributes
    ----------
    synthetic
        Whether sessions are drawn and prepared while the training runs.
    seed
        Of the sessions.
    live
        Sessions that patches come from at a time.
    patches
        Patches of each session on average, before the next takes its place.
    generators
        Processes that make sessions ahead; 0: whoever needs one makes it.
    held_out
        Synthetic sessions that are held out where no prepared cases are given for that.
    jitter_mm
        Standard deviation of errors added to centerlines, as a cord finder makes them.
    """

    synthetic: bool = False
    seed: int = 0
    live: int = 16
    patches: int = 64
    generators: int = 1
    held_out: int = 12
    jitter_mm: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Who stands behind the model, for its bundle; nothing of it changes the training.

    Attributes
    ----------
    license
        SPDX expression of the weights' licence; empty: not stated.
    authors
        Who made it.
    contact
        Mail address or page.
    """

    license: str = ""
    authors: tuple[str, ...] = ()
    contact: str = ""


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
    log_every
        Iterations between rows of the log.
    precision
        ``bf16-mixed`` or ``32-true``.
    deterministic
        Use only operations that give the same result every time (CPUs do anyway).
    threads
        CPU threads (0: leave as they are).
    accelerator
        ``auto``: GPUs where there are any.
    devices
        How many GPUs, or processes on CPU (0: every GPU, one process on CPU).
    tensorboard
        Write TensorBoard's files too, where it is installed.
    initial
        Name of a packaged model, or folder of a checkpoint or bundle, whose weights are the start; empty:
        random weights.
    network
        Fields of the recipe's network that are replaced.
    data, model, arm, loss, optimizer, sampling, paint, augment, validation
        See their types.
    """

    name: str
    recipe: str
    iterations: int = 250_000
    seed: int = 0
    checkpoint_every: int = 250
    log_every: int = 25
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    deterministic: bool = False
    threads: int = 0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    tensorboard: bool = True
    initial: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    arm: ArmConfig = field(default_factory=ArmConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    paint: PaintConfig = field(default_factory=PaintConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def load_config(name_or_path: str | Path) -> TrainingConfig:
    """Read a TOML configuration: a packaged one such as ``own`` by its name, or a file.

    A file with ``extends = "OTHER.toml"`` (a path from its own folder, or a packaged name) takes that one and
    changes it.

    Raises
    ------
    MissingInputError
        If there is no such configuration.
    DataError
        If it is not TOML, a key is unknown or missing, or a value is none that its field can have.
    """
    return config_from_mapping(read_mapping(name_or_path), file=name_or_path)


def config_from_mapping(data: Mapping[str, Any], *, file: object) -> TrainingConfig:
    """Build a configuration from plain data, as TOML gives them.

    Parameters
    ----------
    data
        Keys and tables of a configuration.
    file
        Where they come from, for messages.

    Raises
    ------
    DataError
        If a key is unknown (the message names the nearest valid one) or missing, or a value is none that its
        field can have.
    """
    config: TrainingConfig = parse_record(TrainingConfig, data, where=str(file), tables=_TABLES)
    names = [item.name for item in fields(NetworkSpec)]
    check_known(config.network, names, where=f"{file}: network", tables=_TABLES)
    for found, expected in _problems(config):
        raise DataError(found, file=file, expected=expected, remedy="correct the configuration")
    _check_model(config.model, file=file)
    return config


def _check_model(model: ModelConfig, *, file: object) -> None:
    """What the bundle would refuse is refused before the training, not after it."""
    if model.license:
        spdx(model.license)
    for key, lines in (("authors", model.authors), ("contact", (model.contact,) if model.contact else ())):
        for line in lines:
            check_line(line, where=f"model.{key}", file=file)


def configured_recipe(config: TrainingConfig, recipe: Recipe, *, file: object = None) -> Recipe:
    """The recipe that a run trains: its network and inference windows with the configuration's changes.

    Parameters
    ----------
    config, recipe
        The configuration, and the recipe that it names.
    file
        Where the configuration comes from, for messages.

    Raises
    ------
    DataError
        If the configuration names a field that a network does not have, or the result is inconsistent.
    """
    spec: NetworkSpec = _merge(recipe.network, config.network, file=file)
    check_network(spec, file=file)
    for name in spec.sequences:
        check_choice(name, recipe.sequence_names, where=within(file, "network.sequences"))
    if len(config.loss.output_weights) < spec.deep_supervision:
        raise DataError(
            f"{len(config.loss.output_weights)} weights for {spec.deep_supervision} supervised outputs",
            file=file,
            expected="one weight for each output",
        )
    if config.sampling.by_patch and spec.skips == "anchor":
        raise DataError(
            "sampling.by_patch with network.skips 'anchor'",
            file=file,
            expected="network.skips 'mean': an anchor that is missing in a patch can give no skips",
        )
    window = config.sampling.window_vox if any(config.sampling.window_vox) else config.sampling.patch_vox
    _check_sizes({"patch_vox": config.sampling.patch_vox, "window_vox": window}, spec, file=file)
    inference = replace(recipe.inference, patch_vox=window, by_patch=config.sampling.by_patch)
    return replace(recipe, network=spec, inference=inference)


def _check_sizes(sizes: Mapping[str, tuple[int, int, int]], spec: NetworkSpec, *, file: object) -> None:
    """Refuse what the network cannot take, or a bundle would refuse after the training (DataError)."""
    strides = total_stride(spec)
    for name, size in sizes.items():
        whole = all(one % stride == 0 for one, stride in zip(size, strides, strict=True))
        if not whole or not all(1 <= one <= MAX_PATCH_VOX for one in size):
            raise DataError(
                f"sampling.{name} is {list(size)}",
                file=file,
                expected=f"multiples of {list(strides)}, the network's strides in all, up to {MAX_PATCH_VOX}",
                remedy="correct the configuration",
            )


def _merge(spec: NetworkSpec, changes: Mapping[str, Any], *, file: object) -> NetworkSpec:
    whole = {**{item.name: getattr(spec, item.name) for item in fields(spec)}, **changes}
    merged: NetworkSpec = parse_record(NetworkSpec, whole, where=within(file, "[network]"), tables=_TABLES)
    return merged


_TABLES: dict[str, type[Any]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "arm": ArmConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "sampling": SamplingConfig,
    "paint": PaintConfig,
    "augment": AugmentConfig,
    "validation": ValidationConfig,
    "network": NetworkSpec,
}
# fields by the least value that makes sense, and probabilities
_AT_LEAST_ONE = (
    "iterations", "checkpoint_every", "log_every", "sampling.batch", "sampling.accumulate",
    "data.live", "data.patches",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "threads", "devices", "data.seed", "data.generators", "data.held_out", "data.jitter_mm",
    "loss.smooth", "loss.ce_weight", "loss.ce_foreground", "loss.overlap_weight", "loss.alpha", "loss.beta",
    "loss.gamma", "optimizer.lr", "optimizer.weight_decay", "optimizer.power", "optimizer.warmup",
    "optimizer.clip", "augment.bias_strength", "augment.rotation_deg", "augment.level",
    "paint.least_contrast", "sampling.dropout_keeps", "sampling.workers", "arm.weight",
    "arm.logistic_scale", "arm.normal_sd",
    "validation.every", "validation.cases", "validation.folds", "validation.fold",
)  # fmt: skip
_SHARES = (
    "optimizer.momentum", "sampling.foreground", "sampling.sequence_dropout",
    "sampling.exchange", "sampling.alone_share", "paint.probability", "paint.grey",
    "paint.surroundings", "paint.wide", "paint.columns", "paint.dark_fluid", "arm.logistic_share",
    "validation.fraction", "validation.test",
    "augment.flip", "augment.spatial", "augment.gamma", "augment.blur", "augment.bias",
    "augment.low_resolution", "augment.noise", "augment.invert",
    "augment.elastic", "augment.contrast", "augment.physical",
)  # fmt: skip
_BELOW_ONE = ("optimizer.ema", "augment.scale", "augment.slice_sd")
# ranges by the least value that makes sense, and whether that is one of them
_RANGES = {
    "elastic_mm": (0.0, True), "contrast_factor": (0.0, False), "gamma_range": (0.0, False),
    "blur_mm": (0.0, True), "low_resolution_factor": (1.0, True), "noise_sd": (0.0, True),
}  # fmt: skip


def _problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """What contradicts itself: what was found and what is expected."""
    for names, low, high, expected in (
        (_AT_LEAST_ONE, 1, math.inf, "at least 1, finite"),
        (_NOT_NEGATIVE, 0, math.inf, "at least 0, finite"),
        (_SHARES, 0, 1, "0 to 1"),
    ):
        for name in names:
            value = _field(config, name)
            if not low <= value <= high or value == math.inf:
                yield f"{name} is {value}", expected
    for name in _BELOW_ONE:
        if not 0 <= _field(config, name) < 1:
            yield f"{name} is {_field(config, name)}", "0 or more, less than 1"
    if not config.optimizer.lr:
        yield "optimizer.lr is 0", "more than 0"
    if config.sampling.alone_share and not config.sampling.alone:
        yield "sampling.alone_share without sampling.alone", "the sequences that are shown alone"
    yield from _size_problems(config.sampling)
    if not 1 <= config.paint.lesions[0] <= config.paint.lesions[1]:
        yield f"paint.lesions is {config.paint.lesions}", "fewest and most, at least 1"
    if not 0 <= config.paint.grey_contrast[0] <= config.paint.grey_contrast[1] < math.inf:
        yield f"paint.grey_contrast is {config.paint.grey_contrast}", "least and largest, at least 0"
    if not 0 < config.paint.contrast[0] <= config.paint.contrast[1] < math.inf:
        yield f"paint.contrast is {config.paint.contrast}", "least and largest, more than 0"
    if not 0 <= config.paint.grey_front < math.inf:
        yield f"paint.grey_front is {config.paint.grey_front}", "at least 0"
    if any(not math.isfinite(weight) or weight < 0 for weight in config.loss.output_weights):
        yield f"loss.output_weights is {config.loss.output_weights}", "weights of at least 0"
    yield from _augment_problems(config.augment)
    yield from _validation_problems(config.validation)
    if config.arm.kind == "frozen" and not config.arm.source:
        yield "arm.kind is 'frozen' without arm.source", "the folder of a checkpoint or bundle"


def _size_problems(config: SamplingConfig) -> Iterator[tuple[str, str]]:
    if min(config.patch_vox) < 1:
        yield f"sampling.patch_vox is {config.patch_vox}", "sizes of at least 1"
    if any(config.window_vox) and min(config.window_vox) < 1:
        yield f"sampling.window_vox is {config.window_vox}", "sizes of at least 1, or zeros alone"


def _augment_problems(config: AugmentConfig) -> Iterator[tuple[str, str]]:
    axes = config.flip_axes
    if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
        yield f"augment.flip_axes is {axes}", "some of 0, 1, 2, each once"
    for name, (least, included) in _RANGES.items():
        low, high = getattr(config, name)
        above = low >= least if included else low > least
        if not (above and low <= high and math.isfinite(high)):
            expected = f"the lowest and the highest, {'at least' if included else 'more than'} {least:g}"
            yield f"augment.{name} is {(low, high)}", expected


def _validation_problems(config: ValidationConfig) -> Iterator[tuple[str, str]]:
    chosen = [name for name in ("subjects", "split", "folds") if getattr(config, name)]
    if len(chosen) > 1:
        yield f"validation has {' and '.join(chosen)}", "one way to split the subjects"
    if not chosen and config.test and config.fraction + config.test >= 1:
        found = f"validation.fraction is {config.fraction} and validation.test is {config.test}"
        yield found, "less than 1 together: others are trained on"
    if config.folds == 1 or config.fold >= max(config.folds, 1):
        yield f"validation.fold {config.fold} of {config.folds} folds", "two folds or more, counted from 0"
    if not (config.thresholds and config.min_volumes_mm3 and config.seed_thresholds):
        expected = "at least one candidate each"
        yield "validation.thresholds, min_volumes_mm3 or seed_thresholds is empty", expected
    if not all(0 <= seed < 1 for seed in config.seed_thresholds):
        yield f"validation.seed_thresholds is {config.seed_thresholds}", "probabilities from 0 to less than 1"
    if not all(0 < threshold < 1 for threshold in config.thresholds):
        yield f"validation.thresholds is {config.thresholds}", "probabilities above 0 and below 1"
    if not all(0 <= volume < math.inf for volume in config.min_volumes_mm3):
        yield f"validation.min_volumes_mm3 is {config.min_volumes_mm3}", "volumes of at least 0"


def _field(config: TrainingConfig, name: str) -> float:
    table, _, key = name.rpartition(".")
    value: float = getattr(getattr(config, table) if table else config, key)
    return value
