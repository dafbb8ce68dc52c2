"""The training loop: a network, a source of examples, an arm, a loss and a schedule, put together."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from bids_scseg.errors import DataError, ScsegError, SessionError
from bids_scseg.inference.bundle import find_bundle, sha256
from bids_scseg.network.build import build_network
from bids_scseg.options import available_cpus
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.arms import Arm, build_arm, network_anchors
from bids_scseg.training.checkpoint import (
    Progress,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    read_progress,
    read_weights,
    weights_file,
)
from bids_scseg.training.config import OptimizerConfig, TrainingConfig, configured_recipe
from bids_scseg.training.console import Display, Silent
from bids_scseg.training.files import read_json, write_json
from bids_scseg.training.journal import Journal, Look
from bids_scseg.training.loader import Example, Order, make_loader
from bids_scseg.training.losses import build_loss
from bids_scseg.training.sample import Source

Schedule = Callable[[int], float]

CONFIG, DATA = "config.json", "data.json"
# what a run that goes on may change: how long, how fast and where it runs, and how it is watched
FREE = (
    "iterations", "checkpoint_every", "log_every", "threads", "accelerator", "devices", "deterministic",
    "tensorboard", "model.license", "model.authors", "model.contact",
    "data.generators", "sampling.batch", "sampling.accumulate", "sampling.workers", "validation.every",
    "validation.cases", "validation.thresholds", "validation.min_volumes_mm3",
    "validation.seed_thresholds", "validation.sequences",
    # places: folders may move; who is trained on (ground.py) and which weights they hold is compared instead
    "validation.split", "arm.source",
)  # fmt: skip
SOURCE = "source_sha256"  # in config.json: of the weights in arm.source
INITIAL = "initial_sha256"  # in config.json: of the file that ``initial`` leads to, as the run began

NO_MEMORY = re.compile(
    r"out of (shared )?memory|can(not|'t) allocate memory|alloc_failed|MemoryError", re.IGNORECASE
)
WORKER_ENDED = re.compile(r"DataLoader worker \(pid")  # torch's words for one that was killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gives.

    Attributes
    ----------
    network
        In evaluation mode, float32, on CPU; the moving average of the weights where one is kept.
    recipe
        With the network and patch that were trained.
    iterations
        Optimizer steps in all.
    examples
        Patches that they used up, on all devices together; None: not known.
    """

    network: nn.Module
    recipe: Recipe
    iterations: int
    examples: int | None = None


def fit(
    config: TrainingConfig,
    data: Source,
    *,
    recipe: Recipe,
    out: Path,
    loss: nn.Module | None = None,
    schedule: Schedule | None = None,
    look: Look | None = None,
    display: Display | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a network, going on where a checkpoint in ``out`` stopped.

    On CPU, a run that was killed and goes on ends with the same bits as one that was not: checkpoints hold
    weights, average and optimizer, and all that is random depends on the seed and the number of the example
    or of the iteration, never on what was drawn before.

    Parameters
    ----------
    config
        What to do.
    data
        Where examples come from.
    recipe
        The task; the configuration's changes to its network are applied here.
    out
        Folder for ``config.json``, ``data.json``, ``log.csv``, ``validation.csv`` and the checkpoint.
    loss
        Takes (outputs, label); default: the configuration's.
    schedule
        Iteration to learning-rate factor; default: polynomial decay after linear warm-up.
    look
        Called with (network, iteration) every ``config.validation.every`` iterations; its result is logged.
    display
        Where progress is shown; default: nowhere.
    summary
        What ``data.json`` says; default: the source's own summary.

    Raises
    ------
    DataError
        If the configuration, the data or the checkpoint do not fit together.
    KeyboardInterrupt
        After SIGINT or SIGTERM, however Lightning ended; the last checkpoint stays.
    """
    recipe = configured_recipe(config, recipe)
    if is_first_process():
        _open_folder(out, config, summary=data.summary() if summary is None else summary)
    if config.threads:
        torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    task = _task(config, data, recipe=recipe, loss=loss, schedule=schedule)
    found = load_checkpoint(out, task.network, average=task.average, optimizer=task.optimizer)
    task.start = _counted(found, config)
    if task.start.step < config.iterations:
        _run(task, config=config, out=out, look=look, display=display or Silent())
    network: nn.Module = task.network if task.average is None else task.average.module
    return Trained(
        network=network.float().eval(),
        recipe=recipe,
        iterations=config.iterations,
        examples=examples_in_all(config, task.start),
    )


def is_first_process() -> bool:
    """Whether this is the process that writes, among those of a run on several devices."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def polynomial(config: OptimizerConfig, iterations: int) -> Schedule:
    """Linear warm-up, then ``(1 - step / iterations) ** power``."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        return float(warm * max(0.0, 1 - step / iterations) ** config.power)

    return factor


class SegmentationTask(lightning.LightningModule):
    """One optimizer step: forward, loss, learning rate, moving average."""

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        *,
        config: TrainingConfig,
        arm: Arm,
        schedule: Schedule,
        loader: Callable[[Progress, int, int], DataLoader[Example]],
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.config = config
        self.arm = arm
        self.schedule = schedule
        self.loader = loader
        self.start = Progress()
        self.terms: dict[str, float] = {}
        decay = config.optimizer.ema
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None  # type: ignore[no-untyped-call]
        if self.average is not None:
            self.average.requires_grad_(False)
        self.optimizer = _optimizer(network, config.optimizer)

    @property
    def progress(self) -> Progress:
        """Optimizer steps and examples so far, those before a restart included."""
        steps = int(self.global_step)
        each = examples_per_step(self.config, self.trainer.world_size)
        return Progress(step=self.start.step + steps, examples=self.start.examples + steps * each)

    def train_dataloader(self) -> DataLoader[Example]:
        """This process's share of the batches that are left."""
        return self.loader(self.start, self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        image = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        outputs, term = self.arm.forward(self.network, {**batch, "image": image})
        loss: Tensor = self.loss(outputs, batch["label"])
        self.terms = {"loss": float(loss.detach())}
        if term is None:
            return loss
        self.terms |= {"loss": float((loss + term).detach()), "arm": float(term.detach())}
        return loss + term

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer, made beforehand so that a checkpoint can be loaded into it."""
        return self.optimizer

    def on_train_batch_start(self, batch: dict[str, Tensor] | ScsegError, batch_idx: int) -> None:
        """Set the learning rate, and the seed of whatever a network draws by itself."""
        if isinstance(batch, ScsegError):
            raise batch
        step = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * self.schedule(step)
        turn = batch_idx % self.config.sampling.accumulate
        state = np.random.SeedSequence([self.config.seed, step, turn, self.trainer.global_rank])
        torch.manual_seed(int(state.generate_state(1)[0]))

    def move_average(self) -> None:
        """Follow the weights after a step."""
        if self.average is not None:
            self.average.update_parameters(self.network)


def examples_per_step(config: TrainingConfig, world: int) -> int:
    """Examples that an optimizer step uses up, on all devices together."""
    return config.sampling.batch * config.sampling.accumulate * world


def examples_in_all(config: TrainingConfig, start: Progress) -> int:
    """Examples that a run which goes on from ``start`` has used up at its end, on all devices together."""
    start = _counted(start, config)
    left = config.iterations - start.step
    # a run that is over needs none of its devices any more
    return start.examples + (left * examples_per_step(config, devices(config)["devices"]) if left else 0)


def _counted(progress: Progress, config: TrainingConfig) -> Progress:
    """With the number of examples, which checkpoints of the first release lack: one device used them."""
    if progress.examples >= 0:
        return progress
    return Progress(step=progress.step, examples=progress.step * examples_per_step(config, 1))


def _task(
    config: TrainingConfig,
    data: Source,
    *,
    recipe: Recipe,
    loss: nn.Module | None,
    schedule: Schedule | None,
) -> SegmentationTask:
    arm = build_arm(config, recipe)
    network = build_network(recipe.network, anchors=network_anchors(recipe))
    if config.initial:
        load_weights(find_bundle(config.initial), network)
    arm.prepare(network)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in the stubs
    return SegmentationTask(
        network,
        loss or build_loss(config.loss),
        config=config,
        arm=arm,
        schedule=schedule or polynomial(config.optimizer, config.iterations),
        loader=lambda start, rank, world: _loader(data, config, start=start, rank=rank, world=world),
    )


def _loader(
    data: Source, config: TrainingConfig, *, start: Progress, rank: int, world: int
) -> DataLoader[Example]:
    order = Order(
        first=start.examples,
        batches=(config.iterations - start.step) * config.sampling.accumulate,
        size=config.sampling.batch,
        rank=rank,
        world=world,
    )
    return make_loader(data, order, sampling=config.sampling)


def _run(
    task: SegmentationTask, *, config: TrainingConfig, out: Path, look: Look | None, display: Display
) -> None:
    # what Lightning says about devices, workers and tips on every start is noise here
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = lightning.Trainer(
            **devices(config),
            precision=config.precision,
            max_steps=config.iterations - task.start.step,
            accumulate_grad_batches=config.sampling.accumulate,
            gradient_clip_val=config.optimizer.clip or None,
            deterministic=config.deterministic,
            benchmark=not config.deterministic and torch.cuda.is_available(),
            use_distributed_sampler=False,
            default_root_dir=out,
            callbacks=[Journal(out, config=config, look=look, display=display)],
            logger=_loggers(config, out, step=task.start.step),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with machine_in_words(out), _interrupted():
            trainer.fit(task)


@contextmanager
def _interrupted() -> Iterator[None]:
    """Give back as KeyboardInterrupt what Lightning turns into the end of the process.

    After SIGTERM it ends with no exit code at all, which would read as success.
    """
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


@contextmanager
def machine_in_words(out: Path) -> Iterator[None]:
    """Turn what torch says about memory and killed workers into a SessionError with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, MemoryError) or NO_MEMORY.search(str(error))
        if not short and not WORKER_ENDED.search(str(error)):
            raise
        raise SessionError(
            "memory ran out" if short else "a process that draws patches was killed, most likely for memory",
            file=out,
            remedy="free memory (in a container shared memory, too), or lower sampling.workers or "
            "sampling.batch; the same command goes on from the last checkpoint",
        ) from error


def device_kind(config: TrainingConfig) -> str:
    """``cuda`` where the configuration allows a GPU and one is visible, else ``cpu``."""
    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def devices(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of Lightning's trainer: kind and number of devices, and how they work together."""
    gpus = torch.cuda.device_count() if device_kind(config) == "cuda" else 0
    if config.accelerator == "gpu" and not gpus:
        raise DataError("no GPU is visible", expected="accelerator 'auto' or 'cpu', or a GPU")
    count = config.devices or max(gpus, 1)
    if gpus and count > gpus:
        raise DataError(f"devices is {count}", expected=f"at most {gpus}, the GPUs that are visible")
    if not gpus and count > max(available_cpus(), 2):
        raise DataError(
            f"devices is {count}, and no GPU is visible",
            expected=f"at most {available_cpus()}, the CPU's cores",
        )
    # an encoder gets no gradient where no example of a batch has its sequence
    strategy = "ddp_find_unused_parameters_true" if count > 1 else "auto"
    return {"accelerator": "gpu" if gpus else "cpu", "devices": count, "strategy": strategy}


def _loggers(config: TrainingConfig, out: Path, *, step: int) -> Any:
    if not config.tensorboard or importlib.util.find_spec("tensorboard") is None:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    # what an interrupted run logged after its last checkpoint is dropped
    return TensorBoardLogger(out, name="", version="tensorboard", purge_step=step + 1)


def _optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def _open_folder(out: Path, config: TrainingConfig, *, summary: Mapping[str, Any]) -> None:
    check_same_run(out, config)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG, {**config.to_json(), **_source(config), **began_from(out, config)})
    write_json(out / DATA, summary)


def check_same_run(out: Path, config: TrainingConfig) -> None:
    """Refuse to go on in a folder with another training than that of its checkpoint (DataError)."""
    reached = read_progress(out).step
    if reached > config.iterations:
        raise DataError(
            f"the run in this folder has made {reached} iterations",
            file=out,
            expected=f"at most {config.iterations}, as in the configuration",
            remedy=f"set iterations to {reached} for the model as it is, or use a new folder",
        )
    file = out / CONFIG
    if not has_checkpoint(out) or not file.is_file():
        return
    blank = json.loads(json.dumps(TrainingConfig(name="", recipe="").to_json(), default=str))
    known = _flat(json.loads(file.read_text(encoding="utf-8")))
    before = _flat(blank) | known  # options that the run did not know were off
    now = _flat(json.loads(json.dumps({**config.to_json(), **_source(config)}, default=str)))
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key] and key not in FREE:
            raise DataError(
                f"the run in this folder has {key} {before[key]!r}",
                file=file.parent,
                expected=f"{now[key]!r}, as in the configuration",
                remedy="use a new folder, or the configuration of the run",
            )


def _source(config: TrainingConfig) -> dict[str, str]:
    """Checksum of the weights that an arm takes from elsewhere, wherever they lie; nothing without any."""
    if config.arm.kind != "frozen":
        return {}
    found = hashlib.sha256()
    for name, value in sorted(read_weights(Path(config.arm.source)).items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return {SOURCE: found.hexdigest()}


def began_from(out: Path, config: TrainingConfig) -> dict[str, str]:
    """Checksum of the file whose weights a run began with, whatever it holds by now; nothing without any."""
    if not config.initial:
        return {}
    if has_checkpoint(out):
        known = read_json(out / CONFIG).get(INITIAL)
        return {INITIAL: known} if isinstance(known, str) else {}
    return {INITIAL: sha256(weights_file(find_bundle(config.initial)))}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        whole = isinstance(value, Mapping) and key != "network"
        out |= _flat(value, f"{prefix}{key}.") if whole else {prefix + key: value}
    return out
