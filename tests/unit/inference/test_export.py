from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from bids_scseg.errors import DataError, MissingToolError, OutputError
from bids_scseg.inference import export
from bids_scseg.inference.export import compare, dense_network, export_onnx, make_folder
from bids_scseg.inference.predict import load_network

HAS_ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra 'export' is not installed")

NETWORKS = [
    {"skips": "mean", "impute": "mean"},
    {"skips": "mean", "impute": "voxel"},
    {"skips": "anchor", "impute": "mean"},
]


def torch_run(network):
    def run(images, available, coverage):
        with torch.inference_mode():
            tensors = [torch.from_numpy(part) for part in (images, available, coverage)]
            return network(*tensors).numpy()

    return run


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: "-".join(spec.values()))
def test_availability_as_arithmetic_gives_the_networks_numbers(make_bundle, spec):
    bundle = make_bundle(**spec)
    done = compare(bundle, bundle.path, torch_run(dense_network(bundle)), tolerance=1e-6)
    assert done.checked == 4  # all, all but one, two alone
    assert done.difference < 1e-6


def test_missing_sequences_are_not_looked_at(make_bundle):
    network = dense_network(make_bundle())
    images = torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([[1.0, 0.0, 1.0]])
    wanted = network(images, flags)
    images[:, 1] = torch.nan
    torch.testing.assert_close(network(images, flags), wanted, rtol=0, atol=0)


def test_items_of_a_batch_have_their_own_sequences(make_bundle):
    bundle = make_bundle(skips="anchor")
    network = dense_network(bundle)
    images = torch.randn(3, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.float32)
    together = network(images, flags)
    for item in range(3):
        alone = (
            1 - load_network(bundle)(images[item : item + 1], flags[item : item + 1] > 0)[0].softmax(1)[:, :1]
        )
        torch.testing.assert_close(together[item : item + 1], alone, rtol=0, atol=1e-6)


def test_a_difference_is_an_error(make_bundle):
    bundle = make_bundle()
    right = torch_run(dense_network(bundle))

    with pytest.raises(DataError, match=r"differ from PyTorch's by up to 0\.0002"):
        compare(bundle, bundle.path, lambda *given: right(*given) + np.float32(2e-4))
    # one that ignores what is missing, one that has no numbers, one of another shape
    for wrong in (
        lambda images, available, coverage: right(images, np.ones_like(available), coverage),
        lambda *given: right(*given) * np.nan,
        lambda *given: right(*given)[:, :, 1:],
    ):
        with pytest.raises(DataError, match="differ"):
            compare(bundle, bundle.path, wrong)


def test_partial_coverage_is_among_what_is_compared(make_bundle):
    bundle = make_bundle(impute="voxel")
    right = torch_run(dense_network(bundle))
    with pytest.raises(DataError, match="differ"):
        compare(
            bundle, bundle.path, lambda images, available, _: right(images, available, np.ones_like(images))
        )


@needs_onnx
@pytest.mark.parametrize("spec", NETWORKS[1:], ids=lambda spec: "-".join(spec.values()))
def test_onnx_with_flags(make_bundle, tmp_path, spec):
    import onnx
    import onnxruntime

    bundle = make_bundle(**spec)
    done = export_onnx(bundle, tmp_path / "out")
    assert done.difference < 1e-5
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    inputs = record["export"]["inputs"]
    assert list(inputs) == ["images", "available", "coverage"][: 3 if spec["impute"] == "voxel" else 2]
    assert record["export"]["availability"] == "any of these sequences"
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {n: v["shape"] for n, v in inputs.items()}
    facts = {entry.key: entry.value for entry in onnx.load(str(done.path)).metadata_props}
    assert facts["weights_sha256"] == bundle.weights_sha256
    assert facts["sequences"] == "A B C"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "export.json", "card.md"}


@needs_onnx
def test_onnx_for_a_fixed_set_of_sequences(make_bundle, tmp_path):
    import onnxruntime

    bundle = make_bundle()
    done = export_onnx(bundle, tmp_path / "out", sequences=("C", "A"))
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [("images", [1, 2, 8, 8, 8])]
    record = json.loads((tmp_path / "out" / "export.json").read_text())["export"]
    assert record["sequences"] == ["A", "C"]  # channel order, whatever the order on the command line
    assert record["availability"].startswith("fixed")
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        logits = load_network(bundle)(torch.from_numpy(images), torch.tensor([[True, False, True]]))[0]
    found = session.run(None, {"images": images[:, [0, 2]]})[0]
    np.testing.assert_allclose(found, 1 - logits.softmax(1)[:, :1].numpy(), atol=1e-5)


@needs_onnx
def test_naming_all_sequences_fixes_them(make_bundle, tmp_path):
    export_onnx(make_bundle(), tmp_path / "out", sequences=("A", "B", "C"))
    record = json.loads((tmp_path / "out" / "export.json").read_text())["export"]
    assert list(record["inputs"]) == ["images"]
    assert record["availability"] == "fixed: all of these sequences"


def test_sequences_that_a_network_cannot_do_without(make_bundle):
    with pytest.raises(DataError, match="anchor"):
        replace_anchor = replace((bundle := make_bundle(skips="anchor")).recipe, anchors=("B",))
        dense_network(replace(bundle, recipe=replace_anchor), sequences=("A",))
    with pytest.raises(DataError, match=r"available sequences \['X'\]"):
        dense_network(make_bundle(), sequences=("X",))


def test_what_is_not_installed_is_named(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingToolError, match=r"onnxruntime not installed.*bids_scseg\[export\]") as caught:
        export_onnx(make_bundle(), tmp_path / "out")
    assert caught.value.exit_code == 127
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        make_folder(tmp_path)
    with pytest.raises(OutputError, match="cannot be made"):
        make_folder(tmp_path / "mine" / "out")


def test_weights_of_another_network_are_not_exported(make_bundle):
    bundle = make_bundle()
    with pytest.raises(DataError, match="do not fit"):
        dense_network(replace(bundle, network=replace(bundle.network, channels=(3, 4, 6))))


def test_warnings_and_levels_come_back_after_an_export():
    import logging

    log = logging.getLogger("torch.onnx")
    before = log.level
    with pytest.raises(RuntimeError), export.quiet():
        raise RuntimeError
    assert log.level == before
