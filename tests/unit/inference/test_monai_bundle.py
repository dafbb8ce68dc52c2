from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bids_scseg.errors import DataError
from bids_scseg.inference import monai_bundle
from bids_scseg.inference.monai_bundle import export_monai, probe_case, read_config
from bids_scseg.inference.predict import load_network, predict_case

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

FILES = {
    "configs/metadata.json",
    "configs/inference.json",
    "configs/export.json",
    "models/model.ts",
    "models/model.pt",
    "docs/README.md",
}


@pytest.mark.parametrize(
    "spec",
    [{"impute": "voxel"}, {"skips": "anchor", "flips": True}],
    ids=["coverage", "anchor and flips"],
)
def test_a_bundle_that_monai_runs(make_bundle, tmp_path, spec):
    bundle, out = make_bundle(**spec), tmp_path / "out"
    done = export_monai(bundle, out)
    assert done.difference < 1e-5
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == FILES
    data = json.loads((out / "configs/metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert (data["num_channels"], data["spatial_shape"]) == (9, [8, 8, 8])
    assert data["channel_def"]["4"] == "coverage of B"
    assert "Not validated on patients." in (out / "docs/README.md").read_text()


def test_longer_cases_and_cases_of_few_sequences(make_bundle, tmp_path):
    bundle, out = make_bundle(), tmp_path / "out"
    export_monai(bundle, out)
    rng = np.random.default_rng(3)
    image = rng.standard_normal((3, 8, 8, 12)).astype(np.float32)
    coverage = np.ones(image.shape, bool)
    coverage[0] = False  # A is missing
    coverage[1, ..., 6:] = False
    image[1, 0, 0, 0] = np.nan
    folder = tmp_path / "cases" / "sub-1"
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image)
    np.save(folder / "coverage.npy", coverage)
    parser = read_config(out, cases_dir=str(tmp_path / "cases"), output_dir=str(tmp_path / "results"))
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("run")
    found = np.load(tmp_path / "results" / "sub-1_probability.npy")
    # windows of 8 with overlap 0.5 over 12: both place them at 0 and 4
    wanted = predict_case(
        load_network(bundle), bundle, image=image, coverage=coverage, available=(False, True, True)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-2)  # windows are blended a little otherwise
    assert found.shape == (8, 8, 12)


def test_weights_come_without_executing_pickles(make_bundle, tmp_path):
    bundle, out = make_bundle(), tmp_path / "out"
    export_monai(bundle, out)
    state = torch.load(out / "models/model.pt", weights_only=True)
    network = torch.jit.load(str(out / "models/model.ts"))
    assert set(state) == set(network.state_dict())
    own = load_network(bundle).inner.encoders["A"].state_dict()
    for name, value in own.items():
        prefix = "inner.network.encoders.A."
        stored = state[prefix + name]
        torch.testing.assert_close(stored.permute(0, 1, 4, 2, 3) if stored.ndim == 5 else stored, value)


def test_a_fixed_set_of_sequences(make_bundle, tmp_path):
    out = tmp_path / "out"
    export_monai(make_bundle(), out, sequences=("C", "B"))
    metadata = json.loads((out / "configs/metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 6
    assert "x[[1, 2]]" in (out / "configs/inference.json").read_text()


@pytest.mark.parametrize(
    ("names", "sequences", "availability"),
    [
        ("ABC", "", "any of these sequences"),
        ("ABC", "ABC", "fixed: all of these sequences"),
        ("A", "", "fixed: all of these sequences"),
    ],
    ids=["any", "all named", "one"],
)
def test_the_record_says_what_has_to_be_there(make_bundle, tmp_path, names, sequences, availability):
    done = export_monai(make_bundle(tuple(names)), tmp_path / "out", sequences=tuple(sequences))
    record = json.loads((tmp_path / "out/configs/export.json").read_text())["export"]
    assert record["availability"] == availability
    assert done.checked == (1 if sequences or len(names) == 1 else 4)


def test_what_was_written_is_checked_on_cpu_beside_a_gpu(make_bundle, tmp_path, monkeypatch):
    devices = []
    right = monai_bundle.read_config

    def watched(*given, **changes):
        parser = right(*given, **changes)
        devices.append(parser.get_parsed_content("device"))
        return parser

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(monai_bundle, "read_config", watched)
    export_monai(make_bundle(), tmp_path / "out")
    assert devices == [torch.device("cpu")] * 2
    assert right(tmp_path / "out").get_parsed_content("device") == torch.device("cuda:0")  # as users run it


def test_a_configuration_that_gives_other_numbers_is_an_error(make_bundle, tmp_path, monkeypatch):
    right = monai_bundle.inference_config

    def wrong(*given):
        config = right(*given)
        config["preprocessing"]["transforms"][2]["func"] = "$lambda x: x[[1, 0, 2]]"
        return config

    monkeypatch.setattr(monai_bundle, "inference_config", wrong)
    with pytest.raises(DataError, match="a case's probabilities differ"):
        export_monai(make_bundle(), tmp_path / "out")


def test_the_probe_has_a_missing_sequence_and_uncovered_places(make_bundle):
    image, coverage = probe_case(make_bundle(), ())
    assert coverage.any(axis=(1, 2, 3)).tolist() == [True, True, False]
    assert not coverage[:, :, :, -1].any()
    assert not image[~coverage].any()
