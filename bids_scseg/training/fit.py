"""The training loop: a network, a source of examples, a loss and a schedule, put together."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from bids_scseg.network.build import build_network
from bids_scseg.recipe.model import Recipe
from bids_scseg.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from bids_scseg.training.config import OptimizerConfig, TrainingConfig, configured_recipe
from bids_scseg.training.losses import build_loss
from bids_scseg.training.sample import Sample, Source

Schedule = Callable[[int], float]
Look = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gives.

    Attributes
    ----------
    network
        In evaluation mode, float32; the moving average of the weights where one is kept.
    recipe
        With the network and patch that were trained.
    iterations
        Optimizer steps in all.
    """

    network: nn.Module
    recipe: Recipe
    iterations: int


def fit(
    config: TrainingConfig,
    data: Source,
    *,
    recipe: Recipe,
    out: Path,
    loss: nn.Module | None = None,
    schedule: Schedule | None = None,
    look: Look | None = None,
) -> Trained:
    """Train a network, going on where a checkpoint in ``out`` stopped.

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

    Raises
    ------
    DataError
        If the configuration, the data or the checkpoint do not fit together.
    """
    recipe = configured_recipe(config, recipe)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "config.json", config.to_json())
    _write(out / "data.json", data.summary())
    if config.threads:
        torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    # what Lightning says about devices and tips on every start is noise here
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    task = _task(config, recipe=recipe, loss=loss, schedule=schedule)
    start = load_checkpoint(out, task.network, average=task.average, optimizer=task.optimizer)
    task.start = start
    if start < config.iterations:
        _run(task, data, config=config, out=out, look=look)
    network: nn.Module = task.network if task.average is None else task.average.module
    return Trained(network=network.float().eval(), recipe=recipe, iterations=config.iterations)


def polynomial(config: OptimizerConfig, iterations: int) -> Schedule:
    """Linear warm-up, then ``(1 - step / iterations) ** power``."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        return float(warm * max(0.0, 1 - step / iterations) ** config.power)

    return factor


class SegmentationTask(lightning.LightningModule):
    """One optimizer step: forward, loss, learning rate, moving average."""

    def __init__(
        self, network: nn.Module, loss: nn.Module, *, config: TrainingConfig, schedule: Schedule
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.config = config
        self.schedule = schedule
        self.start = 0
        decay = config.optimizer.ema
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None  # type: ignore[no-untyped-call]
        self.optimizer = _optimizer(network, config.optimizer)

    @property
    def step(self) -> int:
        """Optimizer steps so far, those before a restart included."""
        return self.start + int(self.global_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        image = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        outputs = self.network(image, batch["available"], batch["coverage"])
        loss: Tensor = self.loss(outputs, batch["label"])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer, made beforehand so that a checkpoint can be loaded into it."""
        return self.optimizer

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Set the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * self.schedule(self.step)

    def move_average(self) -> None:
        """Follow the weights after a step."""
        if self.average is not None:
            self.average.update_parameters(self.network)


class Examples(Dataset[Sample]):
    """A source as a dataset whose item ``n`` is example ``n``."""

    def __init__(self, source: Source, *, length: int) -> None:
        self.source = source
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.source.sample(index)


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Stack samples into a batch."""
    return {
        "image": torch.from_numpy(np.stack([item.image for item in samples])),
        "coverage": torch.from_numpy(np.stack([item.coverage for item in samples])),
        "label": torch.from_numpy(np.stack([item.label for item in samples])).long(),
        "available": torch.from_numpy(np.stack([item.available for item in samples])),
    }


class Journal(Callback):
    """Writes the log, the checkpoints, and what looks at held-out cases say."""

    def __init__(self, out: Path, *, config: TrainingConfig, look: Look | None) -> None:
        self.out = out
        self.config = config
        self.look = look
        self.losses: list[float] = []
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every 25 iterations; checkpoint and look when due."""
        task: SegmentationTask = pl_module
        # here and not in the module's own hook, which runs after this one: the checkpoint holds the average
        task.move_average()
        self.losses.append(float(outputs["loss"]))
        step = task.step
        if step % 25 == 0:
            self._log(task, step)
        if step % self.config.checkpoint_every == 0 or step == self.config.iterations:
            save_checkpoint(self.out, task.network, average=task.average, optimizer=task.optimizer, step=step)
        every = self.config.validation.every
        if self.look is not None and every and step % every == 0:
            self._look(self.look, task, step)

    def _log(self, task: SegmentationTask, step: int) -> None:
        now = time.monotonic()
        row = {
            "iteration": step,
            "loss": round(sum(self.losses) / len(self.losses), 5),
            "lr": task.optimizer.param_groups[0]["lr"],
            "seconds": round((now - self.since) / len(self.losses), 4),
        }
        append_row(self.out / "log.csv", row)
        self.losses, self.since = [], now

    def _look(self, look: Look, task: SegmentationTask, step: int) -> None:
        network = task.network if task.average is None else task.average.module
        network.eval()
        with torch.no_grad():
            append_row(self.out / "validation.csv", {"iteration": step, **look(network, step)})
        network.train()
        self.since = time.monotonic()


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append a row to a CSV file, with a header where it is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _task(
    config: TrainingConfig, *, recipe: Recipe, loss: nn.Module | None, schedule: Schedule | None
) -> SegmentationTask:
    network = build_network(recipe.network, anchors=recipe.anchors)
    if config.initial:
        load_weights(Path(config.initial), network)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in the stubs
    return SegmentationTask(
        network,
        loss or build_loss(config.loss),
        config=config,
        schedule=schedule or polynomial(config.optimizer, config.iterations),
    )


def _run(
    task: SegmentationTask, data: Source, *, config: TrainingConfig, out: Path, look: Look | None
) -> None:
    trainer = lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=config.precision,
        max_steps=config.iterations - task.start,
        gradient_clip_val=config.optimizer.clip or None,
        callbacks=[Journal(out, config=config, look=look)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, _loader(data, config=config, start=task.start))


def _loader(data: Source, *, config: TrainingConfig, start: int) -> DataLoader[Sample]:
    sampling = config.sampling
    total = config.iterations * sampling.batch
    return DataLoader(
        Examples(data, length=total),
        batch_size=sampling.batch,
        sampler=range(start * sampling.batch, total),
        num_workers=sampling.workers,
        collate_fn=collate,
        prefetch_factor=6 if sampling.workers else None,
        persistent_workers=sampling.workers > 0,
        # forking after torch has computed can hang
        multiprocessing_context="spawn" if sampling.workers else None,
    )


def _optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
