"""A bundle's network as one graph without data-dependent steps, and as ONNX."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_scseg.errors import DataError, MissingToolError, OutputError
from bids_scseg.inference.bundle import CARD_FILE, ModelBundle, load_weights
from bids_scseg.inference.describe import describe
from bids_scseg.inference.predict import Network, load_network
from bids_scseg.inference.verify import bundle_anchors, probe_image, probe_patterns
from bids_scseg.network.build import Encoded, SegmentationNet, build_network, fold_missing
from bids_scseg.network.spec import Size, total_stride

ONNX_FILE, DESCRIPTION_FILE = "model.onnx", "export.json"
OPSET = 20  # of ONNX; onnxruntime reads it since 1.17
TOLERANCE = 1e-4  # largest difference of probabilities from PyTorch, ours; measured: 1e-6 to 1e-5
MOST_PATTERNS = (
    4  # choices of sequences that are compared; a forward pass of a paper-size network takes seconds
)

Floats = npt.NDArray[np.float32]
Run = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An export and how it compares with PyTorch.

    Attributes
    ----------
    path
        What was written.
    difference, tolerance
        Largest difference of probabilities, and what is allowed.
    checked
        Number of choices of sequences that were compared.
    """

    path: Path
    difference: float
    tolerance: float
    checked: int


class DenseNet(nn.Module):
    """The network with availability as arithmetic: the same steps whatever is available.

    :class:`SegmentationNet` leaves out the encoders of missing sequences; a graph cannot. Here every encoder
    runs, and flags decide what counts.

    Parameters
    ----------
    network
        In evaluation mode; shared, not copied.
    """

    def __init__(self, network: SegmentationNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, available: Tensor, coverage: Tensor | None = None) -> Tensor:
        """Foreground probability.

        Parameters
        ----------
        images : (B, S, i, j, k) float32
            Prepared images; channels of missing sequences are not looked at.
        available : (B, S) float32
            1 for sequences that are present, 0 for others; at least one.
        coverage : (B, S, i, j, k) float32, optional
            1 where a sequence has data; used by ``impute: voxel`` only.

        Returns
        -------
        (B, 1, i, j, k) float32: one minus the probability of background.
        """
        present = available > 0.5
        weights = self._skip_weights(present.to(images.dtype))
        features: list[Tensor] = []
        total: list[Tensor] = []
        for channel, (name, encoder) in enumerate(self.network.encoders.items()):
            there = present[:, channel, None, None, None, None]
            image = images[:, channel : channel + 1]
            keeps = self.network.spec.skips == "mean" or name in self.network.anchors
            skips, bottleneck = encoder(torch.where(there, image, 0.0), keeps)
            features.append(torch.where(there, bottleneck, 0.0))
            weighted = [skip * weights[:, channel, None, None, None, None] for skip in skips]
            pairs = zip(total, weighted, strict=True)
            total = [a + b for a, b in pairs] if total and weighted else total or weighted
        counts = present
        if self.network.spec.impute == "voxel" and coverage is not None:
            counts = self._coverage_weights(coverage > 0.5, present)
        # weights of places stand in for flags: pooling of fuse's own kind has no form in ONNX
        encoded = Encoded(features=torch.stack(features, dim=1), skips=total, available=counts)
        fused = self.network.fuse(encoded)
        logits = self.network.decode(fused, encoded.skips)[0]
        return 1 - torch.softmax(logits, dim=1)[:, :1]

    def _coverage_weights(self, coverage: Tensor, present: Tensor) -> Tensor:
        """As :func:`bids_scseg.network.fusion.coverage_weights`, for multiples of the stride."""
        flags = present[:, :, None, None, None].float()
        pooled = functional.avg_pool3d(coverage.float(), total_stride(self.network.spec)) * flags
        nobody = pooled.sum(1, keepdim=True) == 0
        return torch.where(nobody, flags, pooled).unsqueeze(2)

    def _skip_weights(self, flags: Tensor) -> Tensor:
        """(B, S): share of each sequence in the skips."""
        if self.network.spec.skips == "mean":
            return flags / flags.sum(1, keepdim=True)
        columns: list[Tensor] = [torch.zeros_like(flags[:, 0])] * flags.shape[1]
        unserved = torch.ones_like(flags[:, 0])
        for name in self.network.anchors:
            channel = self.network.spec.sequences.index(name)
            columns[channel] = flags[:, channel] * unserved
            unserved = unserved * (1 - flags[:, channel])
        return torch.stack(columns, dim=1)


def dense_network(bundle: ModelBundle, *, sequences: tuple[str, ...] = ()) -> DenseNet:
    """A bundle's network for export, float32 on CPU, in evaluation mode.

    Parameters
    ----------
    bundle
        The trained model.
    sequences
        Fixed set of available sequences: missing ones are folded into the weights. Empty: all, with flags.

    Raises
    ------
    DataError
        If the weights do not fit, or this network cannot work with these sequences.
    """
    network = build_network(bundle.network, anchors=bundle_anchors(bundle))
    weights = {name: torch.from_numpy(array) for name, array in load_weights(bundle).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            "the weights do not fit the network", file=bundle.weights, remedy="see scseg model verify"
        ) from error
    network.requires_grad_(False).eval()
    return DenseNet(fold_missing(network, sequences) if sequences else network)


def takes_coverage(bundle: ModelBundle) -> bool:
    """Whether the exported graph needs to know where sequences have data."""
    return bundle.network.impute == "voxel" and len(bundle.network.sequences) > 1


def export_onnx(bundle: ModelBundle, out: Path, *, sequences: tuple[str, ...] = ()) -> Exported:
    """Write ``model.onnx``, ``export.json`` (what it is, its inputs, the comparison) and the card.

    Parameters
    ----------
    bundle
        The model.
    out
        Folder, new or empty.
    sequences
        Fixed set of available sequences; empty: every set, by the input ``available``.

    Returns
    -------
    Exported, compared with PyTorch by onnxruntime on a fixed input of the size of the recipe's patch.

    Raises
    ------
    MissingToolError
        If the extra ``export`` is not installed.
    OutputError
        If the folder holds something.
    DataError
        If the graph cannot be made, or its numbers differ from PyTorch's.
    """
    check_installed("onnx", "onnxscript", "onnxruntime")
    network = dense_network(bundle, sequences=sequences)
    make_folder(out)
    path = out / ONNX_FILE
    names = input_names(bundle, sequences)
    _write_onnx(network, bundle, path, names=names)
    _stamp(path, bundle, network.network.spec.sequences)
    done = compare(bundle, path, _onnx_run(path), sequences=sequences)
    used, fixed = network.network.spec.sequences, "available" not in names
    record = export_record(bundle, done, sequences=used, form="onnx", fixed=fixed, names=names)
    write_json(out / DESCRIPTION_FILE, record)
    (out / CARD_FILE).write_bytes((bundle.path / CARD_FILE).read_bytes())
    return done


def input_names(bundle: ModelBundle, sequences: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    if sequences or len(bundle.network.sequences) == 1:
        return ("images",)
    return ("images", "available", "coverage") if takes_coverage(bundle) else ("images", "available")


class Fixed(nn.Module):
    """A :class:`DenseNet` all of whose sequences are available."""

    def __init__(self, inner: DenseNet) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Foreground probability (B, 1, i, j, k) of images (B, S, i, j, k)."""
        out: Tensor = self.inner(images, torch.ones_like(images[:, :, 0, 0, 0]))
        return out


def _write_onnx(network: DenseNet, bundle: ModelBundle, path: Path, *, names: tuple[str, ...]) -> None:
    module = network if len(names) > 1 else Fixed(network)
    shape = (1, len(network.network.spec.sequences), *bundle.recipe.inference.patch_vox)
    examples = {
        "images": torch.zeros(shape),
        "available": torch.ones(shape[:2]),
        "coverage": torch.ones(shape),
    }
    arguments = tuple(examples[name] for name in names)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                module.eval(),
                arguments,
                str(path),
                input_names=list(names),
                output_names=["probability"],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"this network cannot be written as ONNX ({type(error).__name__}: {str(error).splitlines()[0]})",
            file=bundle.path,
            expected=f"operations of ONNX opset {OPSET}",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _stamp(path: Path, bundle: ModelBundle, sequences: Sequence[str]) -> None:
    """Write what the model is into the ONNX file itself."""
    import onnx

    model = onnx.load(str(path))
    facts = {
        "name": bundle.name,
        "summary": bundle.summary,
        "license": bundle.facts.license or "",
        "authors": "; ".join(bundle.facts.authors),
        "contact": bundle.facts.contact or "",
        "recipe": f"{bundle.recipe.name} {bundle.recipe.version}",
        "sequences": " ".join(sequences),
        "threshold": str(bundle.threshold),
        "seed_threshold": str(bundle.recipe.inference.seed_threshold),
        "seed_threshold_alone": str(bundle.recipe.inference.seed_threshold_alone),
        "min_volume_mm3": str(bundle.recipe.inference.min_volume_mm3),
        "weights_sha256": bundle.weights_sha256,
        "inference_sha256": bundle.inference_sha256,
    }
    onnx.helper.set_model_props(model, facts)
    model.producer_name = "bids_scseg"
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _onnx_run(path: Path) -> Run:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(images: Floats, available: Floats, coverage: Floats) -> Floats:
        given = {"images": images, "available": available, "coverage": coverage}
        found: Any = session.run(["probability"], {name: given[name] for name in names})[0]
        return np.asarray(found, np.float32)

    return run


def compare(
    bundle: ModelBundle,
    path: Path,
    run: Run,
    *,
    sequences: tuple[str, ...] = (),
    flips: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Compare an export with the network that the program itself runs, on a fixed input.

    Parameters
    ----------
    bundle, path
        The model and what was written.
    run
        (images, available, coverage), float32 each, to the probability (1, 1, i, j, k).
    sequences
        Fixed set of available sequences; empty: several sets are compared.
    flips
        Whether ``run`` averages the copy mirrored along R-L in.
    tolerance
        Largest difference of probabilities that is allowed.

    Raises
    ------
    DataError
        If they differ by more.
    """
    reference, names = load_network(bundle), bundle.network.sequences
    coverage = _probe_coverage(bundle)
    images = probe_image(bundle, _patch(bundle)) * coverage
    patterns = [tuple(n in sequences for n in names)] if sequences else _patterns(bundle)
    worst = 0.0
    for flags in patterns:
        wanted = _probability(reference, images, flags, coverage, flips=flips)
        kept = [n for n, there in enumerate(flags) if there or not sequences]
        found = run(images[:, kept], np.array([flags], np.float32)[:, kept], coverage[:, kept])
        difference = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf)))
    if worst > tolerance:
        raise DataError(
            f"probabilities differ from PyTorch's by up to {worst:.2g}",
            file=path,
            expected=f"at most {tolerance:g}",
            remedy="do not use this export",
        )
    return Exported(path=path, difference=worst, tolerance=tolerance, checked=len(patterns))


def _patch(bundle: ModelBundle) -> Size:
    return bundle.recipe.inference.patch_vox


def _patterns(bundle: ModelBundle) -> list[tuple[bool, ...]]:
    """All sequences, some alone, and all but the first where the network can do without it."""
    singles = list(probe_patterns(bundle))
    names = bundle.network.sequences
    first = bundle_anchors(bundle)[:1] if bundle.network.skips == "anchor" else ()
    dropped = next((name for name in names if name not in first), None)
    rest = [tuple(name != dropped for name in names)] if dropped and len(names) > 2 else []
    return list(dict.fromkeys([singles[0], *rest, *singles[1:]]))[:MOST_PATTERNS]


def _probe_coverage(bundle: ModelBundle) -> Floats:
    """Ones, but zeros in the lower third of every second sequence: partial coverage must count."""
    shape = (1, len(bundle.network.sequences), *_patch(bundle))
    coverage = np.ones(shape, np.float32)
    coverage[:, 1::2, :, :, : shape[-1] // 3] = 0
    return coverage


def _probability(
    network: Network, images: Floats, flags: tuple[bool, ...], coverage: Floats, *, flips: bool
) -> Floats:
    """Foreground probability (1, 1, i, j, k) by the program's own network, as in its inference."""
    available = torch.tensor([flags])
    total = np.zeros((1, 1, *images.shape[2:]), np.float32)
    for step in (1, -1) if flips else (1,):
        given = [torch.from_numpy(part[:, :, ::step].copy()) for part in (images, coverage)]
        with torch.inference_mode():
            logits = network(given[0], available, given[1] > 0.5)[0]
        total += (1 - torch.softmax(logits, dim=1)[:, :1].numpy())[:, :, ::step]
    return np.asarray(total / (2 if flips else 1), np.float32)


def export_record(
    bundle: ModelBundle,
    done: Exported,
    *,
    sequences: tuple[str, ...],
    form: str,
    fixed: bool,
    names: tuple[str, ...] = (),
) -> dict[str, object]:
    """What an export is, its inputs ``names``, how it compares, and all that the bundle says of itself.

    ``fixed``: all ``sequences`` have to be there; else any of them may.
    """
    shape = [1, len(sequences), *_patch(bundle)]
    shapes = {"images": shape, "available": shape[:2], "coverage": shape}
    export = {
        "format": form,
        "sequences": list(sequences),
        "availability": "fixed: all of these sequences" if fixed else "any of these sequences",
        "inputs": {name: {"shape": shapes[name], "type": "float32"} for name in names},
        "outputs": {"probability": {"shape": [1, 1, *shape[2:]], "type": "float32"}},
        "comparison": {
            "with": f"PyTorch {torch.__version__}",
            "largest difference": done.difference,
            "allowed": done.tolerance,
            "choices of sequences": done.checked,
        },
    }
    facts = {key: value for key, value in describe(bundle).items() if key not in ("path", "card")}
    return {"export": export, "model": facts}


def check_installed(*modules: str) -> None:
    """Refuse to go on without modules of the extra ``export``.

    Raises
    ------
    MissingToolError
        Naming those that are absent.
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingToolError(
            f"{', '.join(missing)} not installed",
            expected="the extra 'export'",
            remedy="run: pip install 'bids_scseg[export]'",
        )


def make_folder(out: Path) -> None:
    """Make the folder of an export.

    Raises
    ------
    OutputError
        If it holds something, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        full = any(out.iterdir())
    except OSError as error:
        raise OutputError(f"cannot be made: {error}", file=out, remedy="name another folder") from error
    if full:
        raise OutputError("is not empty", file=out, expected="a new folder", remedy="name another folder")


def write_json(path: Path, data: object) -> None:
    """Write plain data as JSON, refusing numbers that are not finite."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
