"""Whether a network specification and a recipe are consistent in themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bids_scseg.errors import DataError
from bids_scseg.recipe.model import GridSpec, InferenceSpec, NetworkSpec, Recipe

# Far beyond any network of this field (ours): a description from elsewhere must not ask for terabytes.
MAX_STAGES, MAX_CHANNELS, MAX_STRIDE, MAX_CLASSES, MAX_SEQUENCES = 12, 4096, 16, 64, 64
MAX_PATCH_VOX, MAX_WINDOW_VOX, MAX_MARGIN_MM = 1024, 2048, 1000.0
SPACING_MM = (0.05, 20.0)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")  # sequence names become BIDS labels and module names


def check_network(spec: NetworkSpec, *, file: object = None) -> None:
    """Refuse a network specification that cannot be built.

    Parameters
    ----------
    spec
        What to check.
    file
        Where it comes from, for the message.

    Raises
    ------
    DataError
        With the first contradiction found.
    """
    _refuse_first(_network_problems(spec), file=file)


def check_recipe(recipe: Recipe, *, file: object = None) -> None:
    """Refuse a recipe whose parts contradict each other.

    Parameters
    ----------
    recipe
        What to check.
    file
        Where it comes from, for the message.

    Raises
    ------
    DataError
        With the first contradiction found.
    """
    _refuse_first(_recipe_problems(recipe), file=file)
    check_network(recipe.network, file=file)
    _refuse_first(_inference_problems(recipe.inference, recipe.network), file=file)


def _refuse_first(problems: Iterator[tuple[str, str]], *, file: object) -> None:
    for found, expected in problems:
        raise DataError(found, file=file, expected=expected, remedy="correct the recipe")


def _network_problems(spec: NetworkSpec) -> Iterator[tuple[str, str]]:
    yield from _names_problems(spec.sequences, what="network.sequences")
    yield from _size_problems(spec)
    if len(spec.channels) < 2 or min(spec.channels, default=0) < 1:
        yield f"network.channels {spec.channels}", "at least two stages of at least one channel"
    if len(spec.strides) != len(spec.channels):
        yield (
            f"{len(spec.strides)} network.strides for {len(spec.channels)} stages",
            "one for each stage",
        )
    if spec.strides[0] != (1, 1, 1):
        yield (
            f"network.strides start with {spec.strides[0]}",
            "(1, 1, 1), full resolution",
        )
    if any(min(stride) < 1 for stride in spec.strides):
        yield f"network.strides {spec.strides}", "strides of at least 1"
    if spec.classes < 2:
        yield f"network.classes is {spec.classes}", "at least 2, background included"
    if not 1 <= spec.deep_supervision < len(spec.channels):
        yield (
            f"network.deep_supervision is {spec.deep_supervision}",
            f"1 to {len(spec.channels) - 1}, the number of decoder resolutions",
        )


def _size_problems(spec: NetworkSpec) -> Iterator[tuple[str, str]]:
    sizes = {
        "stages": (len(spec.channels), MAX_STAGES),
        "channels": (max(spec.channels, default=0), MAX_CHANNELS),
        "strides": (max((size for stride in spec.strides for size in stride), default=0), MAX_STRIDE),
        "classes": (spec.classes, MAX_CLASSES),
        "sequences": (len(spec.sequences), MAX_SEQUENCES),
    }
    for name, (found, most) in sizes.items():
        if found > most:
            yield f"network.{name}: {found}", f"at most {most}"


def _grid_problems(grid: GridSpec) -> Iterator[tuple[str, str]]:
    low, high = SPACING_MM
    if not low <= grid.spacing_mm <= high or not 0 <= grid.margin_mm <= MAX_MARGIN_MM:
        yield f"grid {grid}", f"spacing_mm of {low} to {high}, margin_mm of 0 to {MAX_MARGIN_MM:g}"
    if grid.window_vox is not None and not all(1 <= size <= MAX_WINDOW_VOX for size in grid.window_vox):
        yield f"grid.window_vox {grid.window_vox}", f"two sizes of 1 to {MAX_WINDOW_VOX}"


def _recipe_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    names = recipe.sequence_names
    yield from _names_problems(names, what="sequences")
    if not recipe.anchors or len(set(recipe.anchors)) != len(recipe.anchors):
        yield f"anchors {list(recipe.anchors)}", "at least one sequence name, each once"
    strangers = [name for name in recipe.anchors if name not in names]
    if strangers:
        yield f"anchors {strangers} are no sequences of the recipe", f"names among {list(names)}"
    if recipe.network.sequences != names:
        yield (
            f"network.sequences {list(recipe.network.sequences)}",
            f"the recipe's sequences in the same order, {list(names)}",
        )
    yield from _grid_problems(recipe.grid)
    if recipe.frame == "centerline" and recipe.grid.window_vox is None:
        yield "frame centerline without grid.window_vox", "two sizes in voxels"


def _names_problems(names: tuple[str, ...], *, what: str) -> Iterator[tuple[str, str]]:
    if not names or len(set(names)) != len(names):
        yield f"{what} {list(names)}", "at least one sequence name, each once"
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"{what} contains {name!r}", "letters and digits, a letter first"


def _inference_problems(spec: InferenceSpec, network: NetworkSpec) -> Iterator[tuple[str, str]]:
    for axis, size in enumerate(spec.patch_vox):
        multiple = 1
        for stride in network.strides:
            multiple *= stride[axis]
        if not 1 <= size <= MAX_PATCH_VOX or size % multiple:
            expected = f"a multiple of {multiple} along axis {axis}, at most {MAX_PATCH_VOX}"
            yield f"inference.patch_vox {spec.patch_vox}", expected
    if spec.by_patch and network.skips == "anchor":
        yield (
            "inference.by_patch with network.skips 'anchor'",
            "network.skips 'mean': an anchor that is missing in a window can give no skips",
        )
    if not 0.0 <= spec.overlap < 1.0:
        yield f"inference.overlap is {spec.overlap}", "at least 0 and below 1"
    if not 0.0 <= spec.threshold <= 1.0:
        yield f"inference.threshold is {spec.threshold}", "0 to 1"
    if not 0.0 <= spec.seed_threshold < 1.0:
        yield f"inference.seed_threshold is {spec.seed_threshold}", "0 or more, less than 1"
    if spec.seed_threshold_alone and not spec.seed_threshold <= spec.seed_threshold_alone < 1.0:
        expected = "0, or at least inference.seed_threshold and less than 1"
        yield f"inference.seed_threshold_alone is {spec.seed_threshold_alone}", expected
    if spec.min_volume_mm3 < 0:
        yield f"inference.min_volume_mm3 is {spec.min_volume_mm3}", "at least 0"
