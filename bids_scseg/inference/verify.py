"""Whether a bundle is what it says: every check of loading, and that its network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, ScsegError
from bids_scseg.inference.bundle import ModelBundle, find_bundle, load_bundle, load_weights, read_header
from bids_scseg.inference.describe import notes

STORED = {"F16", "F32"}  # types that save_bundle writes
PROBE_SEED = 20240  # of the fixed input, ours
PROBE_STRIDES = 2  # sides of that input in total strides: normalisation needs more than one bottleneck voxel
UNEXPECTED = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What it is, in a few words.
    state
        ``pass``, ``fail``, ``skip`` (an earlier failure leaves nothing to look at) or ``note``.
    text
        What was found.
    """

    name: str
    state: str
    text: str = ""


def verify(name_or_path: str | Path) -> tuple[ModelBundle | None, tuple[Check, ...]]:
    """Look at everything that can be wrong with a bundle without cases to judge it on.

    Nothing in the folder is executed: JSON and safetensors are data, any other file is refused unread.

    Parameters
    ----------
    name_or_path
        Name of a packaged model, or path of a bundle's folder.

    Returns
    -------
    bundle
        None if it does not load.
    checks
        In order; it is sound if none of them is ``fail``.

    Raises
    ------
    MissingInputError
        If there is no such model at all.
    """
    folder = find_bundle(name_or_path)
    bundle: list[ModelBundle] = []
    steps: dict[str, Callable[[], str]] = {
        "files, description, checksum": lambda: _load(folder, bundle),
        "names, shapes and types of the weights": lambda: _fit(bundle[0]),
        "weights are finite": lambda: _finite(bundle[0]),
        "forward pass on a fixed input": lambda: _probe(bundle[0]),
    }
    checks: list[Check] = []
    for name, look in steps.items():
        checks.append(_check(name, look, broken=any(check.state == "fail" for check in checks)))
    found = bundle[0] if bundle else None
    checks += [Check(name="note", state="note", text=text) for text in (notes(found) if found else ())]
    return found, tuple(checks)


def _check(name: str, look: Callable[[], str], *, broken: bool) -> Check:
    if broken:
        return Check(name=name, state="skip")
    try:
        return Check(name=name, state="pass", text=look())
    except ScsegError as error:
        return Check(name=name, state="fail", text=str(error))
    except UNEXPECTED as error:  # a foreign description may ask for what no network can be
        return Check(
            name=name, state="fail", text=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        )


def _load(folder: Path, into: list[ModelBundle]) -> str:
    into.append(load_bundle(folder))
    return f"SHA-256 {into[0].weights_sha256}"


def _fit(bundle: ModelBundle) -> str:
    header, wanted = read_header(bundle.weights), network_shapes(bundle)
    for problem in shape_problems({name: shape for name, (_, shape) in header.items()}, wanted):
        raise DataError(problem, file=bundle.weights, expected="the weights of the network in model.json")
    strange = sorted(name for name, (kind, _) in header.items() if kind not in STORED)
    if strange:
        raise DataError(
            f"{strange[0]} is stored as {header[strange[0]][0]}",
            file=bundle.weights,
            expected=f"one of {sorted(STORED)}",
        )
    return f"{len(wanted)} arrays"


def network_shapes(bundle: ModelBundle) -> Shapes:
    """Shape of each of the network's weights by name; no memory is taken for them."""
    import torch

    from bids_scseg.network.build import build_network

    with torch.device("meta"):
        network = build_network(bundle.network, anchors=bundle_anchors(bundle))
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def bundle_anchors(bundle: ModelBundle) -> tuple[str, ...]:
    """The recipe's anchors among the network's sequences."""
    return tuple(name for name in bundle.recipe.anchors if name in bundle.network.sequences)


def shape_problems(found: Shapes, wanted: Shapes) -> Iterator[str]:
    """What keeps stored arrays from being a network's weights, in words."""
    for name in sorted(set(wanted) - set(found)):
        yield f"{name} of the network is missing"
    for name in sorted(set(found) - set(wanted)):
        yield f"{name} is no part of the network"
    for name in sorted(set(found) & set(wanted)):
        if found[name] != wanted[name]:
            yield f"{name} has shape {found[name]}, the network's has {wanted[name]}"


def _finite(bundle: ModelBundle) -> str:
    weights = load_weights(bundle)
    return f"{sum(array.size for array in weights.values()):,} numbers"


def _probe(bundle: ModelBundle) -> str:
    """Logits of the fixed input for all sequences together and for each that can stand alone."""
    import torch

    from bids_scseg.inference.predict import load_network

    network = load_network(bundle)
    image = torch.from_numpy(probe_image(bundle))
    low, high = np.inf, -np.inf
    for flags in probe_patterns(bundle):
        with torch.inference_mode():
            logits = network(image, torch.tensor([flags]), torch.ones_like(image, dtype=torch.bool))[0]
        wanted = (1, bundle.network.classes, *image.shape[2:])
        if tuple(logits.shape) != wanted:
            raise DataError(f"output of shape {tuple(logits.shape)}", expected=str(wanted))
        if not bool(torch.isfinite(logits).all()):
            raise DataError(
                f"numbers that are not finite for {_words(bundle, flags)}", expected="finite logits"
            )
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
    if low == high:
        raise DataError(f"the same number {low} everywhere", expected="an output that depends on the input")
    return f"{len(probe_patterns(bundle))} choices of sequences, logits {low:.3f} to {high:.3f}"


def _words(bundle: ModelBundle, flags: tuple[bool, ...]) -> str:
    names = [name for name, there in zip(bundle.network.sequences, flags, strict=True) if there]
    return " + ".join(names)


def probe_image(bundle: ModelBundle, size: tuple[int, int, int] | None = None) -> npt.NDArray[np.float32]:
    """A fixed input (1, S, i, j, k) float32 with normally distributed values; by default a small one."""
    from bids_scseg.network.spec import total_stride

    i, j, k = size or tuple(PROBE_STRIDES * step for step in total_stride(bundle.network))
    shape = (1, len(bundle.network.sequences), i, j, k)
    return np.random.default_rng(PROBE_SEED).standard_normal(shape, dtype=np.float32)


def probe_patterns(bundle: ModelBundle) -> tuple[tuple[bool, ...], ...]:
    """Choices of available sequences: all, then each alone as far as the network can work with it."""
    names = bundle.network.sequences
    alone = names if bundle.network.skips == "mean" else (bundle_anchors(bundle) or names[:1])
    singles = [tuple(other == name for other in names) for name in alone]
    return tuple(dict.fromkeys([(True,) * len(names), *singles]))
