"""What a training writes while it runs: logs, checkpoints, looks at held-out cases."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.training.checkpoint import Progress, save_checkpoint
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.console import Display

Look = Callable[[nn.Module, int], Mapping[str, float]]

LOG, VALIDATION = "log.csv", "validation.csv"


class Loop(Protocol):
    """What the journal needs of the module that is trained."""

    network: nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    terms: dict[str, float]

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        ...

    def move_average(self) -> None:
        """Follow the weights after a step."""
        ...


class Clock:
    """Tells waiting for data from the rest.

    The loop's time goes from the end of one batch to the end of the next; what lies before the next batch's
    start is waiting for data.
    """

    def __init__(self) -> None:
        self.waited = self.worked = 0.0
        self.ended: float | None = None
        self.started = 0.0

    def start(self) -> None:
        """A batch has arrived; waiting for the first one is no part of the loop (processes start)."""
        self.started = time.monotonic()
        if self.ended is not None:
            self.waited += self.started - self.ended

    def stop(self) -> None:
        """A batch is done."""
        self.ended = time.monotonic()
        self.worked += self.ended - self.started

    def pause(self) -> None:
        """Something else was done since; it counts nowhere."""
        self.ended = time.monotonic()

    def read(self) -> tuple[float, float]:
        """Seconds in all and the share of waiting since the last reading."""
        total = self.waited + self.worked
        share = self.waited / total if total else 0.0
        self.waited = self.worked = 0.0
        return total, share


class Journal(Callback):
    """Writes the log, the checkpoints, and what looks at held-out cases say."""

    def __init__(self, out: Path, *, config: TrainingConfig, look: Look | None, display: Display) -> None:
        self.out = out
        self.config = config
        self.look = look
        self.display = display
        self.clock = Clock()
        self.sums: dict[str, float] = {}
        self.batches = 0
        self.since = self.step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop log rows of iterations that an interrupted run made after its last checkpoint."""
        self.since = self.step = pl_module.progress.step
        if trainer.is_global_zero:
            for name in (LOG, VALIDATION):
                trim_rows(self.out / name, self.step)
            self.display.begin(self.step, self.config.iterations)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch has arrived."""
        self.clock.start()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an iteration: follow the average, log, save and look when due."""
        task: Loop = pl_module
        for key, value in task.terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.batches += 1
        step = task.progress.step
        if not math.isfinite(task.terms["loss"]):
            raise DataError(
                f"the loss is not finite in iteration {step}",
                file=self.out,
                expected="a finite loss",
                remedy="lower optimizer.lr or check the data, then start in a new folder",
            )
        self.clock.stop()
        if step > self.step:  # else batches are still being accumulated
            self.step = step
            # here and not in the module's own hook, which runs after this one: the checkpoint holds it
            task.move_average()
            self._after(trainer, task, step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the display."""
        if trainer.is_global_zero:
            self.display.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.display.end()

    def _after(self, trainer: Any, task: Loop, step: int) -> None:
        if trainer.is_global_zero:
            self.display.advance(step, task.terms["loss"])
        if step % self.config.log_every == 0 or step == self.config.iterations:
            self._log(trainer, task, step)
        if not trainer.is_global_zero:
            return
        if step % self.config.checkpoint_every == 0 or step == self.config.iterations:
            save_checkpoint(
                self.out,
                task.network,
                average=task.average,
                optimizer=task.optimizer,
                progress=task.progress,
            )
        every = self.config.validation.every
        if self.look is not None and every and step % every == 0:
            self._look(self.look, trainer, task, step)
        self.clock.pause()

    def _log(self, trainer: Any, task: Loop, step: int) -> None:
        total, waiting = self.clock.read()
        means = {key: self._mean(trainer, value / self.batches) for key, value in self.sums.items()}
        row: dict[str, Any] = {
            "iteration": step,
            **{key: round(value, 5) for key, value in means.items()},
            "lr": float(f"{task.optimizer.param_groups[0]['lr']:.4g}"),
            "seconds": round(total / (step - self.since), 4),
            "waiting": round(waiting, 4),
        }
        self.sums, self.batches, self.since = {}, 0, step
        if trainer.is_global_zero:
            self._write(LOG, row, trainer=trainer, prefix="training")

    def _mean(self, trainer: Any, value: float) -> float:
        """Mean over devices."""
        if trainer.world_size == 1:
            return value
        reduced = trainer.strategy.reduce(
            torch.tensor(value, device=trainer.strategy.root_device), reduce_op="mean"
        )
        return float(reduced)

    def _look(self, look: Look, trainer: Any, task: Loop, step: int) -> None:
        network: nn.Module = task.network if task.average is None else task.average.module
        network.eval()
        with torch.no_grad():
            scores = look(network, step)
        network.train()
        self._write(VALIDATION, {"iteration": step, **scores}, trainer=trainer, prefix="validation")

    def _write(self, name: str, row: Mapping[str, Any], *, trainer: Any, prefix: str) -> None:
        append_row(self.out / name, row)
        self.display.row(row)
        numbers = {f"{prefix}/{key}": value for key, value in row.items() if key != "iteration"}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=row["iteration"])
            logger.save()


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append a row to a CSV file, with a header where it is new; columns that are new are added to it.

    Every row has an ``iteration``.
    """
    header = _header(path)
    columns = [*header, *(key for key in row if key not in header)]
    if header and columns != header:
        _rewrite(path, read_rows(path), columns=columns)
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=columns)
        if not header:
            writer.writeheader()
        writer.writerow(row)


def trim_rows(path: Path, step: int) -> None:
    """Keep the rows up to an iteration, and those that can be read; no file where nothing is left.

    A run that was killed may have logged more than it saved, and its last row may be torn.
    """
    rows = [row for row in read_rows(path) if int(row["iteration"]) <= step]
    if rows:
        _rewrite(path, rows, columns=_header(path))
    else:
        path.unlink(missing_ok=True)


def _header(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows with a value for each column and a number of an iteration; none of a file that is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        text = handle.read()
    # what follows the last line end was torn off
    columns, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    whole = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    return [row for row in whole if row["iteration"].isdigit()]


def _rewrite(path: Path, rows: Sequence[Mapping[str, object]], *, columns: Sequence[str]) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
