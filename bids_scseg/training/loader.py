"""Batches in a fixed order, shared out to devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bids_scseg.errors import ScsegError
from bids_scseg.training.config import SamplingConfig
from bids_scseg.training.sample import Sample, Source

Numbered = tuple[int, Sample]
Example = Numbered | ScsegError


class Examples(Dataset[Example]):
    """A source as a dataset whose item ``n`` is example ``n``, with its number.

    What is wrong with an example takes its place: an error that is raised in a worker would lose its parts.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Example:
        try:
            return index, self.source.sample(index)
        except ScsegError as error:
            return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Numbers of the examples in each batch of one process.

    Devices take turns batch by batch: ``W`` devices with batches of ``B`` see in an iteration what one device
    sees in ``W`` accumulated batches of ``B``.

    Attributes
    ----------
    first
        Number of the first example that is not used up.
    batches
        Batches of this process.
    size
        Examples in a batch.
    rank, world
        This process among how many.
    """

    first: int
    batches: int
    size: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(self.batches):
            start = self.first + (turn * self.world + self.rank) * self.size
            yield list(range(start, start + self.size))


def collate(examples: list[Example]) -> dict[str, Tensor] | ScsegError:
    """Stack samples into a batch: ``image``, ``coverage``, ``label``, ``available``, ``index``.

    An error among them takes the batch's place; whoever uses the batch raises it.
    """
    samples = []
    for example in examples:
        if isinstance(example, ScsegError):
            return example
        samples.append(example)
    items = [item for _, item in samples]
    return {
        "image": torch.from_numpy(np.stack([item.image for item in items])),
        "coverage": torch.from_numpy(np.stack([item.coverage for item in items])),
        "label": torch.from_numpy(np.stack([item.label for item in items])).long(),
        "available": torch.from_numpy(np.stack([item.available for item in items])),
        "index": torch.tensor([number for number, _ in samples]),
    }


def make_loader(source: Source, order: Order, *, sampling: SamplingConfig) -> DataLoader[Example]:
    """Batches of a source in that order, drawn by ``sampling.workers`` background processes."""
    return DataLoader(
        Examples(source),
        batch_sampler=order,
        num_workers=sampling.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=6 if sampling.workers else None,
        persistent_workers=sampling.workers > 0,
        # forking after torch has computed can hang
        multiprocessing_context="spawn" if sampling.workers else None,
    )
