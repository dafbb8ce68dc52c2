"""A model as a MONAI bundle: TorchScript with all it needs, state dict, configuration, documentation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.inference.bundle import ModelBundle
from bids_scseg.inference.describe import card_text, describe, training_data
from bids_scseg.inference.export import (
    TOLERANCE,
    DenseNet,
    Exported,
    compare,
    dense_network,
    export_record,
    make_folder,
    quiet,
    write_json,
)
from bids_scseg.inference.predict import load_network, predict_case
from bids_scseg.inference.verify import probe_image

SCRIPT_FILE, STATE_FILE = "models/model.ts", "models/model.pt"
METADATA_FILE, INFERENCE_FILE, README_FILE = (
    "configs/metadata.json",
    "configs/inference.json",
    "docs/README.md",
)
# where exports are checked, whatever the machine has: on a GPU, convolutions in TF32 alone would change
# probabilities by more than is allowed
CHECK_DEVICE = "$torch.device('cpu')"
BLOCKS = ("image", "coverage", "available")  # of the network's input channels, one channel per sequence each

Floats = npt.NDArray[np.float32]


class StackedNet(nn.Module):
    """A :class:`~bids_scseg.inference.export.DenseNet` with one input, as MONAI's inferers want it.

    Parameters
    ----------
    inner
        The network.
    flips
        Whether the mirrored copy along the first axis (R-L) is averaged in, window by window.
    """

    def __init__(self, inner: DenseNet, *, flips: bool) -> None:
        super().__init__()
        self.inner = inner
        self.flips = flips
        self.count = len(inner.network.spec.sequences)

    def forward(self, stacked: Tensor) -> Tensor:
        """Foreground probability.

        Parameters
        ----------
        stacked : (B, 3 S, i, j, k) float32
            Prepared images; 1 where a sequence has data; 1 in all voxels if a sequence is available.

        Returns
        -------
        (B, 1, i, j, k) float32
        """
        images, coverage, flags = torch.split(stacked, self.count, dim=1)
        coverage = torch.where(torch.isfinite(images), coverage, 0.0)
        images = torch.where(coverage > 0.5, images, 0.0)
        available = flags.amax(dim=(2, 3, 4))
        out: Tensor = self.inner(images, available, coverage)
        if self.flips:
            mirrored: Tensor = self.inner(images.flip(2), available, coverage.flip(2))
            out = (out + mirrored.flip(2)) / 2
        return out


def export_monai(bundle: ModelBundle, out: Path, *, sequences: tuple[str, ...] = ()) -> Exported:
    """Write a MONAI bundle and compare it, read back from disk, with the program's own network, on CPU.

    Parameters
    ----------
    bundle
        The model.
    out
        Folder, new or empty.
    sequences
        Fixed set of available sequences; empty: every set.

    Returns
    -------
    Exported

    Raises
    ------
    OutputError
        If the folder holds something.
    DataError
        If the network cannot be traced, or numbers differ.
    """
    dense = dense_network(bundle, sequences=sequences)
    names = dense.network.spec.sequences
    network = StackedNet(dense, flips=bundle.recipe.inference.flips).eval()
    make_folder(out)
    for folder in ("configs", "models", "docs"):
        (out / folder).mkdir()
    _write_weights(network, bundle, out)
    write_json(out / METADATA_FILE, metadata(bundle, names))
    write_json(out / INFERENCE_FILE, inference_config(bundle, names))
    done = _compare(bundle, out, network, sequences=sequences)
    (out / README_FILE).write_text(_readme(bundle, names, done), "utf-8")
    fixed = bool(sequences) or len(names) == 1
    record = export_record(bundle, done, sequences=names, form="monai", fixed=fixed)
    write_json(out / "configs/export.json", record)
    return done


def _write_weights(network: StackedNet, bundle: ModelBundle, out: Path) -> None:
    torch.save(network.state_dict(), out / STATE_FILE)
    shape = (1, len(BLOCKS) * network.count, *bundle.recipe.inference.patch_vox)
    try:
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                network, torch.ones(shape), check_trace=False
            )
            torch.jit.save(traced, str(out / SCRIPT_FILE))
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"this network cannot be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})",
            file=bundle.path,
            expected="a network that TorchScript can express",
        ) from error


def _compare(bundle: ModelBundle, out: Path, network: StackedNet, *, sequences: tuple[str, ...]) -> Exported:
    """Numbers of the script as MONAI's configuration loads it, of the state dict, and of a whole case."""
    _compare_states(out, network)
    parser = read_config(out, device=CHECK_DEVICE)
    with quiet():
        script = parser.get_parsed_content("network")

    def run(images: Floats, available: Floats, coverage: Floats) -> Floats:
        flags = np.broadcast_to(available[:, :, None, None, None], images.shape)
        stacked = torch.from_numpy(np.concatenate([images, coverage, flags], axis=1, dtype=np.float32))
        with torch.inference_mode():
            return np.asarray(script(stacked))

    done = compare(bundle, out, run, sequences=sequences, flips=bundle.recipe.inference.flips)
    worst = max(done.difference, _compare_case(bundle, out, sequences=sequences))
    return Exported(path=out, difference=worst, tolerance=done.tolerance, checked=done.checked)


def _compare_states(out: Path, network: StackedNet) -> None:
    stored = torch.load(out / STATE_FILE, map_location="cpu", weights_only=True)
    with quiet():
        script = torch.jit.load(  # type: ignore[no-untyped-call]
            str(out / SCRIPT_FILE), map_location="cpu"
        ).state_dict()
    for name, value in network.state_dict().items():
        if not (torch.equal(stored[name], value) and torch.equal(script[name], value)):
            raise DataError(f"{name} is not what was written", file=out, expected="equal weights")


def read_config(out: Path, **changes: object) -> Any:
    """MONAI's parser of an exported bundle, with some entries replaced."""
    from monai.bundle.config_parser import ConfigParser

    parser = ConfigParser()
    parser.read_meta(str(out / METADATA_FILE))
    parser.read_config(str(out / INFERENCE_FILE))
    for key, value in {"bundle_root": str(out), **changes}.items():
        parser[key] = value
    return parser


def _compare_case(bundle: ModelBundle, out: Path, *, sequences: tuple[str, ...]) -> float:
    """Largest difference between MONAI's run of the configuration and ours, on a case of one window."""
    image, coverage = probe_case(bundle, sequences)
    flags = [bool(part.any()) for part in coverage]
    wanted = predict_case(load_network(bundle), bundle, image=image, coverage=coverage, available=flags)
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name) / "case"
        folder.mkdir()
        np.save(folder / "image.npy", image, allow_pickle=False)
        np.save(folder / "coverage.npy", coverage, allow_pickle=False)
        parser = read_config(out, cases_dir=name, output_dir=name, device=CHECK_DEVICE)
        parser.get_parsed_content("run")
        found = np.load(Path(name) / "case_probability.npy", allow_pickle=False)
    difference = float(np.nan_to_num(np.abs(found - wanted).max(), nan=np.inf))
    if difference > TOLERANCE:
        raise DataError(
            f"a case's probabilities differ by up to {difference:.2g}", file=out, expected=f"{TOLERANCE:g}"
        )
    return difference


def probe_case(bundle: ModelBundle, sequences: tuple[str, ...]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """A fixed prepared case of one window, (S, i, j, k) image and coverage, in the recipe's channel order.

    It lacks one sequence where the model can do without; the upper end and a corner are not covered.
    """
    names, known = bundle.recipe.sequence_names, bundle.network.sequences
    wanted = set(sequences or (known if len(known) == 1 else known[:-1]))
    probe = probe_image(bundle, bundle.recipe.inference.patch_vox)[0]
    image = np.zeros((len(names), *probe.shape[1:]), np.float32)
    coverage = np.zeros(image.shape, bool)
    for channel, name in enumerate(names):
        if name in wanted:
            image[channel], coverage[channel] = probe[known.index(name)], True
    coverage[:, :, :, -3:] = False
    coverage[:, :2, :2] = False
    return np.where(coverage, image, 0), coverage


# -- documents -------------------------------------------------------------------------------------


def inference_config(bundle: ModelBundle, names: tuple[str, ...]) -> dict[str, object]:
    """``inference.json``: prepared cases below ``cases_dir`` to probabilities in ``output_dir``."""
    rules = bundle.recipe.inference
    channels = [bundle.recipe.sequence_names.index(name) for name in names]
    both, new = ["image", "coverage"], "available"
    transforms: list[dict[str, object]] = [
        {"_target_": "LoadImaged", "keys": both, "reader": "NumpyReader", "channel_dim": 0},
        {"_target_": "EnsureChannelFirstd", "keys": both, "channel_dim": 0},
        {"_target_": "Lambdad", "keys": both, "func": f"$lambda x: x[{channels}]"},
        {"_target_": "EnsureTyped", "keys": both, "dtype": "$torch.float32", "track_meta": False},
        {"_target_": "CopyItemsd", "keys": "coverage", "names": new},
        {
            "_target_": "Lambdad",
            "keys": new,
            "func": "$lambda x: x.amax(dim=(1, 2, 3), keepdim=True).expand_as(x)",
        },
        {"_target_": "ConcatItemsd", "keys": [*both, new], "name": "input"},
    ]
    return {
        "imports": ["$import pathlib", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "cases_dir": "$@bundle_root + '/cases'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "threshold": bundle.threshold,
        "seed_threshold": rules.seed_threshold,
        "seed_threshold_alone": rules.seed_threshold_alone,
        "min_volume_mm3": rules.min_volume_mm3,
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$@bundle_root + '/{SCRIPT_FILE}'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(rules.patch_vox),
            "sw_batch_size": 1,
            "overlap": rules.overlap,
            "mode": "gaussian",
            "sigma_scale": 0.125,
        },
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "cases": "$sorted(p.parent for p in pathlib.Path(@cases_dir).glob('**/image.npy'))",
        "load": "$lambda p: @preprocessing({'image': p / 'image.npy', 'coverage': p / 'coverage.npy'})",
        "infer": "$lambda d: @inferer(d['input'][None].to(@device), @network)[0, 0].cpu() "
        "* d['coverage'].amax(dim=0)",
        "save": "$lambda p, x: numpy.save(pathlib.Path(@output_dir) / (p.name + '_probability.npy'), "
        "x.numpy(), allow_pickle=False)",
        "initialize": ["$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)"],
        "run": ["$[@save(p, torch.inference_mode()(@infer)(@load(p))) for p in @cases]"],
    }


def metadata(bundle: ModelBundle, names: tuple[str, ...]) -> dict[str, object]:
    """``metadata.json``."""
    import monai

    patch, channels = list(bundle.recipe.inference.patch_vox), [f"{b} of {n}" for b in BLOCKS for n in names]
    common = {"type": "image", "spatial_shape": patch, "dtype": "float32", "is_patch_data": True}
    facts = describe(bundle)
    return {
        "version": bundle.recipe.version,
        "changelog": {bundle.recipe.version: f"export of weights {bundle.weights_sha256}"},
        "monai_version": str(monai.__version__).partition("+")[0],
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": bundle.name,
        "task": f"segmentation: {bundle.recipe.target}",
        "description": bundle.summary,
        "authors": "; ".join(bundle.facts.authors) or "see docs/README.md",
        "contact": bundle.facts.contact or "see docs/README.md",
        "copyright": bundle.facts.license or "not recorded",
        "intended_use": "research only",
        "data_source": "see docs/README.md",
        "data_type": "numpy: prepared cases",
        "references": list(bundle.recipe.references),
        "training_data": training_data(bundle),
        "eval_metrics": facts["metrics"],
        "weights_sha256": bundle.weights_sha256,
        "network_data_format": {
            "inputs": {
                "image": {
                    **common,
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": len(channels),
                    "value_range": [-100, 100],
                    "channel_def": {str(n): name for n, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    **common,
                    "format": "segmentation",
                    "num_channels": 1,
                    "value_range": [0, 1],
                    "channel_def": {"0": f"probability of {bundle.recipe.target}"},
                }
            },
        },
    }


def _readme(bundle: ModelBundle, names: tuple[str, ...], done: Exported) -> str:
    rules = bundle.recipe.inference
    usage = f"""\

# This export

Sequences: {", ".join(names)}. Licence of the weights: {bundle.facts.license or "not recorded"}.

It takes **prepared cases** (folders with `image.npy` and `coverage.npy`, as bids_scseg writes them), not
native images: preparation, lesion numbering and the way back to native space are bids_scseg's.

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --cases_dir CASES --output_dir OUT

Result: `OUT/<case>_probability.npy`, (i, j, k) float32, on the prepared grid. The model's threshold is
{bundle.threshold}, its seed threshold {rules.seed_threshold} (0: none; {rules.seed_threshold_alone} where one
sequence alone sees, 0: as elsewhere), its smallest lesion {rules.min_volume_mm3} mm3,
connectivity {rules.connectivity}.

- `models/model.ts`: TorchScript with everything it needs, loaded by `torch.jit.load`.
- `models/model.pt`: the same weights as a plain state dict: `torch.load(..., weights_only=True)`.

On a fixed input and on CPU, probabilities differ from bids_scseg's own by at most {done.difference:.1e}. On
a GPU they may differ more: PyTorch computes convolutions in TF32 there unless
`torch.backends.cudnn.allow_tf32` is False. In cases longer than one window MONAI places windows otherwise
(the last one moved back, ours evenly spread), so results there differ a little.
"""
    return card_text(bundle).strip() + "\n" + usage
