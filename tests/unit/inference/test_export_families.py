"""Every network family can be written for other programs; what takes seconds for each is a slow test."""

from __future__ import annotations

import io
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from bids_scseg.inference.bundle import save_bundle
from bids_scseg.inference.export import compare, dense_network, export_onnx, quiet
from bids_scseg.inference.monai_bundle import StackedNet, export_monai
from bids_scseg.network.families import FAMILIES

from .conftest import random_weights, small_recipe

HAS_ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
VARIANTS = {
    **{name: {"family": name} for name in FAMILIES},
    "attention": {"fusion": "attention"},
    "attention-voxel": {"fusion": "attention", "impute": "voxel"},
    "swinunetr-anchor": {"family": "swinunetr", "skips": "anchor"},
}
LIMIT = 1e-5  # a tenth of what an export may differ; measured: up to 1.4e-6

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
each_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture
def bundle_of(tmp_path):
    def make(name):
        network = {"channels": (4, 4, 8), "strides": ((1, 1, 1), (2, 2, 2), (1, 1, 2)), **VARIANTS[name]}
        recipe = small_recipe(**network)
        # windows of 6 are shifted and padded in maps of 8 alone
        patch = (16, 16, 16) if network.get("family") == "swinunetr" else (8, 8, 8)
        recipe = replace(recipe, inference=replace(recipe.inference, patch_vox=patch))
        card = "# Small\n\nNot validated on patients."
        weights = random_weights(recipe)
        return save_bundle(
            tmp_path / "small", weights, recipe=recipe, threshold=0.4, provenance={}, card=card
        )

    return make


@each_variant
def test_availability_as_arithmetic_gives_the_networks_numbers(bundle_of, name):
    bundle = bundle_of(name)
    network = dense_network(bundle)

    def run(images, available, coverage):
        with torch.inference_mode():
            return network(*(torch.from_numpy(part) for part in (images, available, coverage))).numpy()

    done = compare(bundle, bundle.path, run, tolerance=LIMIT)
    assert done.checked == 4
    assert done.difference < LIMIT


@each_variant
def test_a_script_is_bound_to_no_device(bundle_of, name):
    """Traced on CPU, run on another device: meta computes shapes alone and refuses what is not on it."""
    bundle, file = bundle_of(name), io.BytesIO()
    network = StackedNet(dense_network(bundle), flips=False).eval()
    stacked = torch.ones(1, 3 * network.count, *bundle.recipe.inference.patch_vox)
    with quiet(), torch.no_grad():
        torch.jit.save(torch.jit.trace(network, stacked, check_trace=False), file)
        file.seek(0)
        script = torch.jit.load(file)
        # weights alone: loaded with map_location="meta", plain numbers in the graph have no value
        for module in script.modules():
            for key, weight in list(module.named_parameters(recurse=False)):
                setattr(module, key, weight.to("meta"))
        found = script(stacked.to("meta"))
    assert {weight.device.type for weight in script.parameters()} == {"meta"}
    assert (found.device.type, found.shape) == ("meta", (1, 1, *stacked.shape[2:]))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="the extra 'export' is not installed")
@each_variant
def test_onnx(bundle_of, tmp_path, name):
    bundle = bundle_of(name)
    done = export_onnx(bundle, tmp_path / "any")
    assert (done.checked, done.difference < LIMIT) == (4, True)
    if bundle.network.impute == "mean":
        assert export_onnx(bundle, tmp_path / "two", sequences=("A", "B")).difference < LIMIT


@pytest.mark.slow
@each_variant
def test_monai(bundle_of, tmp_path, name):
    bundle = bundle_of(name)
    done = export_monai(bundle, tmp_path / "any")
    assert (done.checked, done.difference < LIMIT) == (4, True)
    if bundle.network.impute == "mean":
        assert export_monai(bundle, tmp_path / "two", sequences=("A", "B")).difference < LIMIT
