"""How much memory each node of a session's graph will need, from the sizes of its images: for scheduling.

Nodes of a session run one after another in one worker process, so the session needs the largest of them. The
networks of this program run in the inference process, which is one for all sessions and counts by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bids_scseg.bids.estimate import MEASURED_PATCH, MEASURED_WIDTH, superior_range
from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, SequencePlan

NODES = ("cord", "prepare", "segment", "measure", "write", "report")
# Measured with the real program (benchmarks/memory.py; figures in docs/reliability.md), with room to spare.
BASE_GB = 0.35  # a worker with its libraries
GB_PER_MEGAVOXEL = {"cord": 0.02, "prepare": 0.02, "write": 0.02, "report": 0.02}
GB_PER_IMAGE = {"write": 0.05, "report": 0.03}
# For each megavoxel of the prepared grid and sequence of the recipe.
GB_PER_PREPARED = {"prepare": 0.015, "segment": 0.01, "measure": 0.025, "write": 0.015, "report": 0.015}
REGISTRATION_GB = 0.1  # ANTs, with two slabs
RESTORE_GB = 0.4  # the anchor's images from the prepared grid, where they lie obliquely to it
SMALLEST_GB = BASE_GB + RESTORE_GB  # no session needs less
LATE_GB = 4.0  # another program's network on one whole image, below the worker; a guess
# The inference process: torch, and the paper's network (measured: 1.4 GB; encoders run one after another).
INFERENCE_BASE_GB, NETWORK_GB = 0.6, 1.4
LEAST_INFERENCE_GB = 2.0  # with the cord finder on large images (1.2 GB was the largest seen)
WINDOW_VOX = (96, 96)  # across, where a recipe leaves it to the images


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the needs of a session grow with.

    Attributes
    ----------
    images
        Number of images.
    largest, total
        Voxels of the largest of them, and of all.
    prepared
        Voxels of the prepared grid times the recipe's sequences.
    registered
        Whether slabs are registered.
    """

    images: int
    largest: float
    total: float
    prepared: float
    registered: bool


def node_memory(
    sequences: Iterable[SequencePlan], recipe: Recipe, *, late: bool = False
) -> tuple[tuple[str, float], ...]:
    """(node, GB) that a session's worker will need at most in each kind of node, in the order of running.

    Parameters
    ----------
    sequences
        Those that are present with their images; none: nothing.
    recipe
        For its grid, its sequences, and which slabs are registered.
    late
        Whether another program, which runs below the worker, segments each image by itself.
    """
    sizes = session_sizes(sequences, recipe)
    if not sizes.images:
        return ()
    return tuple((node, round(_need(node, sizes, late=late), 2)) for node in NODES)


def inference_gb(recipe: Recipe) -> float:
    """GB that the inference process will need at most with a recipe's network, on a CPU."""
    patch = math.prod(recipe.inference.patch_vox) / MEASURED_PATCH
    network = NETWORK_GB * patch * recipe.network.channels[0] / MEASURED_WIDTH
    return max(LEAST_INFERENCE_GB, round(INFERENCE_BASE_GB + network, 1))


def session_sizes(sequences: Iterable[SequencePlan], recipe: Recipe) -> Sizes:
    """The numbers that :func:`node_memory` goes by."""
    present = list(sequences)
    files = [file for sequence in present for file in sequence.files]
    voxels = [math.prod(file.grid.shape) for file in files if file.grid is not None]
    return Sizes(
        images=len(files),
        largest=max(voxels, default=0),
        total=sum(voxels),
        prepared=prepared_voxels(files, recipe) * len(recipe.sequence_names),
        registered=any(len(item.files) > 1 and recipe.rule(item.name).register_slabs for item in present),
    )


def prepared_voxels(files: Iterable[ImageFile], recipe: Recipe) -> float:
    """Voxels of the prepared grid: at most the extent of all images along the body, times the window."""
    ranges = [superior_range(file.grid) for file in files if file.grid is not None]
    if not ranges:
        return 0.0
    length = max(high for _, high in ranges) - min(low for low, _ in ranges)
    across = math.prod(recipe.grid.window_vox or WINDOW_VOX)
    return across * (length + 2 * recipe.grid.margin_mm) / recipe.grid.spacing_mm


def _need(node: str, sizes: Sizes, *, late: bool) -> float:
    voxels = sizes.largest if node == "cord" else sizes.total
    need = BASE_GB + GB_PER_MEGAVOXEL.get(node, 0.0) * voxels / 1e6
    need += GB_PER_IMAGE.get(node, 0.0) * sizes.images + GB_PER_PREPARED.get(node, 0.0) * sizes.prepared / 1e6
    extra = {
        "prepare": REGISTRATION_GB if sizes.registered else 0.0,
        "segment": LATE_GB if late else 0.0,
        "write": RESTORE_GB,
    }
    return need + extra.get(node, 0.0)
