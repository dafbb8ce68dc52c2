"""How long a session will take, roughly: for the plan's table and for clusters, not for promises."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bids_scseg.recipe.model import Recipe
from bids_scseg.recipe.study import ImageFile, SequencePlan
from bids_scseg.space.grid import Grid

# Network, measured on two x86 cores in float32 with the paper's network (width 32, 48x48x320 patches):
# 1.96 s for one sequence and 6.04 s for six, that is a part for each encoder and a part for the decoder.
PATCH_SECONDS_ENCODER = (6.04 - 1.96) / 5
PATCH_SECONDS_DECODER = 1.96 - PATCH_SECONDS_ENCODER
MEASURED_WIDTH, MEASURED_PATCH = 32, 48 * 48 * 320
START_SECONDS = 8.0  # importing and loading weights (measured 3-5 s), graph (ours)
REGISTRATION_SECONDS = 11.0  # ANTs rigid, per pair of slabs (measured)
IMAGE_SECONDS, IMAGE_SECONDS_PER_MEGAVOXEL = 2.0, 1.5  # cord finder, resampling, restoring (ours)
REPORT_SECONDS = 8.0  # ours
LATE_SECONDS = 600.0  # another program's network on one whole image; a guess


def superior_range(grid: Grid) -> tuple[float, float]:
    """(low, high) world S in mm covered along the grid's S-I axis, through the centre of the volume."""
    axis = grid.canonical_axes()[2][0]
    centre = [(n - 1) / 2 for n in grid.shape]
    ends = [list(centre), list(centre)]
    ends[0][axis], ends[1][axis] = -0.5, grid.shape[axis] - 0.5
    low, high = sorted(float(point[2]) for point in grid.to_world(ends))
    return low, high


def estimate_seconds(sequences: Iterable[SequencePlan], recipe: Recipe, *, late: bool = False) -> float:
    """Seconds that a session takes on two CPU cores.

    The prepared length is at most the union of the images' extents along the body. The network's time grows
    with the number of patches along it, the square of its width and the number of sequences that are present;
    the rest with the number and size of the images and the number of slab registrations. Where another
    program segments each image (`late`), its guessed time stands for the network's. Nothing: 0.
    """
    present = list(sequences)
    files = [file for sequence in present for file in sequence.files]
    if not files:
        return 0.0
    voxels = sum(math.prod(file.grid.shape) for file in files if file.grid) / 1e6
    pairs = sum(len(sequence.files) - 1 for sequence in present if recipe.rule(sequence.name).register_slabs)
    network_seconds = LATE_SECONDS * len(files) if late else _network_seconds(files, len(present), recipe)
    seconds = (
        START_SECONDS
        + REPORT_SECONDS
        + IMAGE_SECONDS * len(files)
        + IMAGE_SECONDS_PER_MEGAVOXEL * voxels
        + REGISTRATION_SECONDS * pairs
        + network_seconds
    )
    return round(seconds)


def _work(recipe: Recipe) -> float:
    """Work of one patch relative to the measured network."""
    patch = math.prod(recipe.inference.patch_vox) / MEASURED_PATCH
    return patch * (recipe.network.channels[0] / MEASURED_WIDTH) ** 2


def _network_seconds(files: list[ImageFile], sequences: int, recipe: Recipe) -> float:
    patch = recipe.inference.patch_vox[2]
    step = max(1.0, patch * (1 - recipe.inference.overlap))
    slices = _union([superior_range(file.grid) for file in files if file.grid]) / recipe.grid.spacing_mm
    patches = 1 + math.ceil(max(0.0, slices - patch) / step)
    each = PATCH_SECONDS_DECODER + sequences * PATCH_SECONDS_ENCODER
    return patches * each * _work(recipe) * (2 if recipe.inference.flips else 1)


def _union(ranges: list[tuple[float, float]]) -> float:
    """Length covered by intervals, overlaps counted once, mm."""
    total, reached = 0.0, -math.inf
    for low, high in sorted(ranges):
        total += max(0.0, high - max(low, reached))
        reached = max(reached, high)
    return total
