"""Application of a trained network to prepared cases and to single images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice, product
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError, ImageError, SessionError
from bids_scseg.inference.box import axis_map, footprint_mean, sample
from bids_scseg.inference.bundle import ModelBundle, load_weights
from bids_scseg.inference.device import resolve_device
from bids_scseg.network.build import SegmentationNet, build_network
from bids_scseg.network.spec import Size, total_stride
from bids_scseg.recipe.model import InferenceSpec, NetworkSpec
from bids_scseg.space.geometry import Geometry, Slab
from bids_scseg.space.grid import Grid

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Window = tuple[slice, slice, slice]

GAUSSIAN_SIGMA = 1 / 8  # of the patch size (nnU-Net)
GAUSSIAN_FLOOR = 1e-3  # of the peak: every voxel of a patch counts a little
VOXELS_AT_ONCE = 2**19  # of the windows that go through a network together, for the sake of memory
SI_FIRST = (2, 0, 1)  # axis order (S, R, A)
# A cord finder sees images as it was trained: outliers limited to this much of the 0.5-99.8 percentile range.
LOW_PERCENTILE, HIGH_PERCENTILE, HEADROOM = 0.5, 99.8, 1.3


class Network(Protocol):
    """What prediction needs of a network."""

    spec: NetworkSpec

    def __call__(self, images: Tensor, available: Tensor, coverage: Tensor | None = None) -> list[Tensor]:
        """Logits, full resolution first."""


class SIFirst(nn.Module):
    """A network that computes with the S-I axis first and looks like any other from outside.

    PyTorch's float32 convolutions on CPU choose a slow path for batches of one whose leading axes are small;
    with the long axis first they do not (1.5 times as fast for the paper's patch).

    Parameters
    ----------
    network
        A network in the natural axis order; its weights are copied, not shared.
    """

    def __init__(self, network: SegmentationNet) -> None:
        super().__init__()
        self.spec = network.spec
        strides = tuple(_reorder(stride) for stride in network.spec.strides)
        with torch.device("meta"):
            self.inner = build_network(replace(network.spec, strides=strides), anchors=network.anchors)
        state = {name: _kernel_si_first(weight) for name, weight in network.state_dict().items()}
        self.inner.load_state_dict(state, assign=True)
        self.inner.train(network.training)

    def forward(self, images: Tensor, available: Tensor, coverage: Tensor | None = None) -> list[Tensor]:
        """As :meth:`bids_scseg.network.build.SegmentationNet.forward`, in the natural axis order."""
        turned = None if coverage is None else coverage.permute(0, 1, 4, 2, 3)
        outputs: list[Tensor] = self.inner(images.permute(0, 1, 4, 2, 3).contiguous(), available, turned)
        return [logits.permute(0, 1, 3, 4, 2) for logits in outputs]


def _reorder(size: Size) -> Size:
    first, second, third = (size[axis] for axis in SI_FIRST)
    return first, second, third


def _kernel_si_first(weight: Tensor) -> Tensor:
    return (
        weight.detach().permute(0, 1, 4, 2, 3).contiguous() if weight.ndim == 5 else weight.detach().clone()
    )


def load_network(bundle: ModelBundle, device: str = "cpu") -> SegmentationNet | SIFirst:
    """Build a bundle's network in evaluation mode.

    Parameters
    ----------
    bundle
        The trained model.
    device
        ``cpu`` or ``cuda:N``.

    Returns
    -------
    A network as :func:`bids_scseg.network.build.build_network`; on CPU it computes with the S-I axis first.

    Raises
    ------
    MissingToolError
        If the device is absent.
    DataError
        If the weights do not fit the network.
    """
    target = torch.device(resolve_device(device).name)
    anchors = tuple(name for name in bundle.recipe.anchors if name in bundle.network.sequences)
    with torch.device("meta"):
        network = build_network(bundle.network, anchors=anchors)
    weights = {name: torch.from_numpy(array) for name, array in load_weights(bundle).items()}
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise DataError(
            f"weights do not fit the network: {str(error).splitlines()[-1].strip()}",
            file=bundle.weights,
            expected="the weights of the network in model.json",
            remedy="export the model again",
        ) from error
    network.requires_grad_(False).eval()
    return SIFirst(network) if target.type == "cpu" else network.to(target)


def predict_case(
    network: Network,
    bundle: ModelBundle,
    *,
    image: Floats,
    coverage: Bools,
    available: Sequence[bool],
    device: str = "cpu",
    sequences: tuple[str, ...] | None = None,
    by_patch: bool | None = None,
) -> Floats:
    """Probability of the target in one prepared case.

    Overlapping windows, weighted by a Gaussian, as :func:`monai.inferers.sliding_window_inference` does; ours
    because windows without data are skipped, availability can depend on the window, and importing monai
    costs more than a short prediction. Small windows go through the network in pairs.

    Parameters
    ----------
    network, bundle
        From :func:`load_network` and its bundle.
    image : (S, i, j, k) float32
        Prepared image, normalised as in training. Values that are not finite count as not covered.
    coverage : (S, i, j, k) bool
        Where each sequence has data.
    available
        (S,) which sequences are present. One that covers nothing counts as missing.
    device
        ``cpu`` (float32) or ``cuda:N`` (bfloat16, or float16 on older GPUs; float32 where that overflows).
    sequences
        Names of the channels; default: the recipe's. Channels that the network does not know are left out.
    by_patch
        Whether a sequence is missing in those windows that it does not cover; default: as the recipe says.

    Returns
    -------
    (i, j, k) float32 in 0-1: one minus the probability of background; 0 where no sequence has data.

    Raises
    ------
    DataError
        If shapes do not fit, or the anchor is missing in a network that needs it.
    SessionError
        If no sequence has data, or the device runs out of memory.
    """
    names = sequences or bundle.recipe.sequence_names
    values, covered = _channels(image, coverage, available, names=names, wanted=bundle.network.sequences)
    spec = bundle.recipe.inference
    by_patch = spec.by_patch if by_patch is None else by_patch
    try:
        probability = predict_volume(network, values, covered, spec=spec, device=device, by_patch=by_patch)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise SessionError(
            f"{device} ran out of memory",
            expected="about 4 GB of free GPU memory for a paper-size network",
            remedy="free the GPU, or use --device cpu",
        ) from error
    return probability


def _channels(
    image: Floats,
    coverage: Bools,
    available: Sequence[bool],
    *,
    names: tuple[str, ...],
    wanted: tuple[str, ...],
) -> tuple[Floats, Bools]:
    """Values and coverage in the network's channel order; a missing sequence covers nothing."""
    if image.ndim != 4 or image.shape != coverage.shape or not len(image) == len(available) == len(names):
        raise DataError(
            f"image {image.shape}, coverage {coverage.shape}, {len(available)} availability flags",
            expected=f"({len(names)}, i, j, k) twice and {len(names)} flags",
        )
    absent = [name for name in wanted if name not in names]
    if len(absent) == len(wanted):
        raise DataError(f"the case has {list(names)}", expected=f"some of {list(wanted)}")
    values = np.zeros((len(wanted), *image.shape[1:]), np.float32)
    covered = np.zeros(values.shape, bool)
    for channel, name in enumerate(wanted):
        if name in names and available[names.index(name)]:
            source = names.index(name)
            covered[channel] = coverage[source] & np.isfinite(image[source])
            np.copyto(values[channel], image[source], where=covered[channel])
    if not covered.any():
        raise SessionError(
            "no sequence has data",
            expected=f"data of at least one of {list(wanted)}",
            remedy="check the images, or choose a model for other sequences",
        )
    return values, covered


def predict_volume(
    network: Network, values: Floats, covered: Bools, *, spec: InferenceSpec, device: str, by_patch: bool
) -> Floats:
    """Foreground probability of a volume whose channels are the network's; training validates with it, too.

    Parameters
    ----------
    network
        On ``device``, in evaluation mode.
    values : (S, i, j, k) float32
        Normalised intensities, 0 where not covered.
    covered : (S, i, j, k) bool
        Where each sequence has data; one that covers nothing is missing.
    spec
        Patch, overlap, and whether to average over mirrored copies along R-L.
    device
        ``cpu`` (float32) or ``cuda:N`` (half precision).
    by_patch
        Whether a sequence is missing in those windows that it does not cover.

    Returns
    -------
    (i, j, k) float32 in 0-1; 0 where nothing is covered.
    """
    mirrors = (False, True) if spec.flips else (False,)
    total = np.zeros(values.shape[1:], np.float32)
    for mirror in mirrors:
        step = slice(None, None, -1 if mirror else 1)
        probability = _slide(
            network, values[:, step], covered[:, step], spec=spec, device=device, by_patch=by_patch
        )
        total += probability[step] / len(mirrors)
    total[~covered.any(axis=0)] = 0
    return total


def _slide(
    network: Network, values: Floats, covered: Bools, *, spec: InferenceSpec, device: str, by_patch: bool
) -> Floats:
    shape, patch = values.shape[1:], _patch_size(spec, network.spec)
    padded = [(0, 0), *(_padding(size, least) for size, least in zip(shape, patch, strict=True))]
    images = torch.from_numpy(np.pad(values, padded))
    coverage = torch.from_numpy(np.pad(covered, padded))
    present = coverage.flatten(1).any(1)
    weight = gaussian_weight(patch)
    total, weights = torch.zeros(images.shape[1:]), torch.zeros(images.shape[1:])
    every = windows(_size(images), patch, overlap=spec.overlap)
    filled = (window for window in every if bool(coverage[:, *window].any()))
    while group := tuple(islice(filled, windows_at_once(patch))):
        here = torch.stack([coverage[:, *window] for window in group])
        there = _availability(network, here, present) if by_patch else present.expand(len(here), -1)
        inputs = torch.stack([images[:, *window] for window in group])
        found = _foreground(network, inputs, there, here, device=device)
        for window, probability in zip(group, found, strict=True):
            total[window] += probability * weight
            weights[window] += weight
    out: Floats = (total / weights.clamp_min(torch.finfo(torch.float32).tiny)).numpy()
    inner = tuple(slice(low, low + size) for (low, _), size in zip(padded[1:], shape, strict=True))
    return np.ascontiguousarray(out[inner])


def _availability(network: Network, coverage: Tensor, present: Tensor) -> Tensor:
    """(B, S) sequences with data in a window; under ``skips: anchor`` all of the case, for its skips."""
    if network.spec.skips == "anchor":
        return present.expand(len(coverage), -1)
    return coverage.flatten(2).any(2)


def _foreground(
    network: Network, images: Tensor, available: Tensor, coverage: Tensor, *, device: str
) -> Tensor:
    """One minus the background probability (B, i, j, k) of some windows, float32 on CPU."""
    with torch.inference_mode():
        tensors = [part.to(device) for part in (images, available, coverage)]
        with _autocast(device):
            logits = network(*tensors)[0].float()
        if device != "cpu" and not bool(torch.isfinite(logits).all()):
            logits = network(*tensors)[0].float()  # beyond half precision: once more in float32
        background = torch.softmax(logits, dim=1)[:, 0]
        return torch.nan_to_num(1 - background, nan=0.0).cpu()


def _autocast(device: str) -> AbstractContextManager[object]:
    if device == "cpu":
        return nullcontext()
    return torch.autocast("cuda", dtype=half_precision(device))


def half_precision(device: str) -> torch.dtype:
    """What a GPU computes with: bfloat16 where its own hardware does, else float16.

    ``torch.cuda.is_bf16_supported`` would ask the current device, not this one, and take NVIDIA's emulation
    for support, which is slow (before Ampere, compute capability 8.0).

    Parameters
    ----------
    device
        ``cuda:N``.
    """
    if torch.version.hip:
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if native else torch.float16


def _patch_size(spec: InferenceSpec, network: NetworkSpec) -> Size:
    """The recipe's patch, enlarged to multiples of the network's stride."""
    first, second, third = (
        math.ceil(size / step) * step
        for size, step in zip(spec.patch_vox, total_stride(network), strict=True)
    )
    return first, second, third


def _padding(size: int, least: int) -> tuple[int, int]:
    """Zeros before and after, so that one patch fits; training pads short cases alike."""
    missing = max(0, least - size)
    return missing // 2, missing - missing // 2


def _size(images: Tensor) -> Size:
    return images.shape[1], images.shape[2], images.shape[3]


def window_starts(size: int, patch: int, *, overlap: float) -> list[int]:
    """First voxels of the windows along one axis.

    The fewest evenly spread windows of which neighbours overlap by at least the fraction ``overlap``;
    a size up to the patch gives one.
    """
    if size <= patch:
        return [0]
    step = max(1, int(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    return [round(number * (size - patch) / (count - 1)) for number in range(count)]


def windows_at_once(patch: Size) -> int:
    """How many windows a network is given together: two where they are small, which takes less time each."""
    return min(2, max(1, VOXELS_AT_ONCE // math.prod(patch)))


def windows(shape: Size, patch: Size, *, overlap: float) -> Iterator[Window]:
    """All windows over a volume that is at least one patch large."""
    along = [window_starts(size, step, overlap=overlap) for size, step in zip(shape, patch, strict=True)]
    for starts in product(*along):
        first, second, third = (slice(start, start + step) for start, step in zip(starts, patch, strict=True))
        yield first, second, third


def gaussian_weight(patch: Size) -> Tensor:
    """Weights of a patch's voxels, float32, largest in the middle (1), nowhere 0."""
    weight = torch.ones(1)
    for size in patch:
        offset = (torch.arange(size) - (size - 1) / 2) / (size * GAUSSIAN_SIGMA)
        weight = weight[..., None] * torch.exp(-0.5 * offset**2)
    return (weight[0] / weight.max()).clamp_min(GAUSSIAN_FLOOR)


# -- one image -------------------------------------------------------------------------------------


def find_cord(
    network: Network,
    bundle: ModelBundle,
    *,
    image: npt.NDArray[np.generic],
    affine: npt.ArrayLike,
    device: str = "cpu",
) -> Floats:
    """Probability of cord in a single image.

    Parameters
    ----------
    network, bundle
        A network of one sequence in the frame ``box``, such as ``cord-finder``.
    image : (i, j, k)
        Native image. Values that are not finite count as the least finite one.
    affine : (4, 4)
        Voxel index to world RAS mm.
    device
        As :func:`predict_case`.

    Returns
    -------
    (i, j, k) float32 in 0-1 on the image's own grid.

    Raises
    ------
    ImageError
        If the image is not three-dimensional or carries no contrast.
    DataError
        If the bundle is no cord finder.
    """
    from bids_scseg.preprocess.normalize import is_constant, zscore

    if bundle.recipe.frame != "box" or len(bundle.network.sequences) != 1:
        raise DataError(
            f"{bundle.name} is no finder", file=bundle.path, expected="frame box and one sequence"
        )
    if image.ndim != 3:
        raise ImageError(f"image of shape {image.shape}", expected="three dimensions")
    geometry = _box(bundle, Grid(shape=image.shape, affine=np.asarray(affine, dtype=np.float64)))
    volume, coverage = _to_box(_finite(image), geometry)
    if is_constant(volume, coverage):
        raise ImageError("the image carries no contrast", expected="an MR image")
    values = zscore(limit_outliers(volume, coverage), coverage)
    probability = predict_case(
        network,
        bundle,
        image=values[None],
        coverage=coverage[None],
        available=(True,),
        device=device,
        sequences=bundle.network.sequences,
    )
    return _from_box(probability, geometry)


def _box(bundle: ModelBundle, grid: Grid) -> Geometry:
    from bids_scseg.preprocess.frames import Estimates, SlabEstimate, fit_box

    key = bundle.network.sequences[0]
    estimate = SlabEstimate(slab=Slab(key=key, index=0, file="", grid=grid))
    return fit_box(Estimates(anchor=key, slabs=(estimate,)), bundle.recipe.grid)


def _to_box(image: Floats, geometry: Geometry) -> tuple[Floats, Bools]:
    native = geometry.slabs[0].grid
    mapping = axis_map(geometry.grid, native)
    if mapping is None:
        return geometry.apply([image], key=geometry.anchor)
    coverage = sample(np.ones(image.shape, np.float32), mapping, geometry.grid) > 0
    return sample(image, mapping, geometry.grid), coverage


def _from_box(volume: Floats, geometry: Geometry) -> Floats:
    native = geometry.slabs[0].grid
    mapping = axis_map(native, geometry.grid)
    if mapping is None:
        return geometry.restore(volume, geometry.slabs[0])
    return footprint_mean(volume, mapping, native, step_mm=float(geometry.grid.spacing.min()))


def _finite(image: npt.NDArray[np.generic]) -> Floats:
    values = np.array(image, dtype=np.float32)
    finite = np.isfinite(values)
    values[~finite] = values[finite].min() if finite.any() else 0
    return values


def limit_outliers(volume: Floats, coverage: Bools) -> Floats:
    """Clip covered values below the 0.5 percentile, and above 1.3 of the range from there to the 99.8 one."""
    low, high = np.percentile(volume[coverage], (LOW_PERCENTILE, HIGH_PERCENTILE))
    if high <= low:
        return volume
    return np.asarray(np.clip(volume, low, low + HEADROOM * (high - low)), np.float32)
