from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bids_scseg.errors import DataError, ImageError, MissingToolError, SessionError, UsageError
from bids_scseg.inference import predict
from bids_scseg.inference.bundle import ModelBundle, save_bundle
from bids_scseg.inference.device import resolve_device
from bids_scseg.inference.predict import (
    SIFirst,
    find_cord,
    gaussian_weight,
    limit_outliers,
    load_network,
    predict_case,
    window_starts,
    windows,
    windows_at_once,
)
from bids_scseg.network.build import build_network
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import InferenceSpec, NetworkSpec, Recipe

STRIDES = ((1, 1, 1), (2, 2, 2), (1, 1, 2))
SHAPE = (8, 8, 40)


def tiny_recipe(name: str = "cord-lesion", **changes: Any) -> Recipe:
    """A packaged recipe with a network of a few weights."""
    recipe = load_recipe(name)
    network = replace(recipe.network, channels=(3, 4, 5), strides=STRIDES, **changes)
    inference = replace(recipe.inference, patch_vox=(8, 8, 16))
    return replace(recipe, network=network, inference=inference)


def tiny_bundle(folder: Path, recipe: Recipe, network: NetworkSpec | None = None) -> ModelBundle:
    """A bundle with random weights."""
    torch.manual_seed(5)
    built = build_network(network or recipe.network)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: tensor.numpy() for name, tensor in built.state_dict().items()}
    return save_bundle(
        folder,
        weights,
        recipe=recipe,
        threshold=0.5,
        provenance={},
        card="tiny",
        network=network,
        dtype="float32",
    )


@pytest.fixture
def bundle(tmp_path: Path) -> ModelBundle:
    return tiny_bundle(tmp_path / "tiny", tiny_recipe())


def case(shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    """Arguments of predict_case: three of six sequences, one of them partly covered."""
    rng = np.random.default_rng(1)
    available = (True, True, False, False, False, True)
    coverage = np.zeros((6, *shape), bool)
    coverage[list(available)] = True
    coverage[1, ..., shape[2] // 2 :] = False
    image = np.where(coverage, rng.standard_normal(coverage.shape), 0).astype(np.float32)
    return {"image": image, "coverage": coverage, "available": available}


class Constant:
    """A network that answers by a rule and counts the windows that it is given."""

    spec = tiny_recipe().network

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        self.rule = rule
        self.calls = 0
        self.available: list[list[bool]] = []

    def __call__(self, images: Tensor, available: Tensor, coverage: Tensor | None = None) -> list[Tensor]:
        self.calls += len(images)
        self.available += available.tolist()
        lesion = self.rule(images)
        return [torch.stack([torch.zeros_like(lesion), lesion], dim=1)]


# -- windows -------------------------------------------------------------------------------------------------


@given(st.integers(1, 900), st.sampled_from([16, 48, 320]), st.floats(0, 0.9))
def test_windows_cover_everything_and_overlap_enough(size: int, patch: int, overlap: float) -> None:
    starts = window_starts(max(size, patch), patch, overlap=overlap)
    assert starts[0] == 0
    assert starts[-1] + patch == max(size, patch)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(1, int(patch * (1 - overlap))) + 0.5).all()


def test_windows_by_hand() -> None:
    assert window_starts(320, 320, overlap=0.5) == [0]
    assert window_starts(480, 320, overlap=0.5) == [0, 160]
    assert window_starts(700, 320, overlap=0.5) == [0, 127, 253, 380]  # 380/160 -> 3 steps of 126.7
    assert len(list(windows((96, 48, 480), (48, 48, 320), overlap=0.5))) == 3 * 2


def test_gaussian_weight_is_symmetric_positive_and_largest_in_the_middle() -> None:
    weight = gaussian_weight((4, 6, 9))
    assert weight.shape == (4, 6, 9)
    assert weight.max() == 1
    assert weight.min() >= 1e-3
    for axis in range(3):
        torch.testing.assert_close(weight, weight.flip(axis))
    # along S-I, one voxel off the middle: exp(-0.5 * (1 / (9 / 8))**2) = exp(-0.39506) = 0.67364
    assert float(weight[1, 2, 5] / weight[1, 2, 4]) == pytest.approx(0.67364, abs=1e-4)


def test_agrees_with_monai() -> None:
    """Scan positions are the same here; MONAI integrates its Gaussian over voxels, ours is sampled."""
    from monai.inferers.utils import sliding_window_inference

    recipe = tiny_recipe()
    bundle = _bare_bundle(recipe)
    network = Constant(lambda images: images[:, 0].cumsum(-1) / 8)
    arguments = case((8, 8, 32))
    found = predict_case(network, bundle, **arguments)

    def probability(patch: Tensor) -> Tensor:
        return torch.sigmoid(patch[:, :1].cumsum(-1) / 8)

    expected = sliding_window_inference(
        torch.from_numpy(arguments["image"])[None], (8, 8, 16), 1, probability, overlap=0.5, mode="gaussian"
    )
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=0.02)


def _bare_bundle(recipe: Recipe) -> ModelBundle:
    return ModelBundle(
        name="bare",
        path=Path("bare"),
        recipe=recipe,
        network=recipe.network,
        threshold=0.5,
        provenance=(),
        weights_sha256="",
        numerical_version=1,
        summary="",
    )


# -- cases ---------------------------------------------------------------------------------------------------


def test_probability_has_the_cases_shape(bundle: ModelBundle) -> None:
    found = predict_case(load_network(bundle), bundle, **case())
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    assert found.std() > 0


def test_si_first_is_the_same_function(bundle: ModelBundle) -> None:
    turned = load_network(bundle)
    assert isinstance(turned, SIFirst)
    plain = build_network(bundle.network, anchors=bundle.recipe.anchors).eval()
    plain.load_state_dict(
        {
            name: weight.permute(0, 1, 3, 4, 2) if weight.ndim == 5 else weight
            for name, weight in turned.inner.state_dict().items()
        }
    )
    images, available = torch.randn(2, 6, 8, 4, 16), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            turned(images, available)[0], plain(images, available)[0], rtol=1e-4, atol=1e-4
        )


def test_what_a_case_does_not_have_does_not_matter(bundle: ModelBundle) -> None:
    network, arguments = load_network(bundle), case()
    clean = predict_case(network, bundle, **arguments)
    soiled = arguments["image"].copy()
    soiled[~np.array(arguments["available"])] = np.nan
    np.testing.assert_array_equal(predict_case(network, bundle, **{**arguments, "image": soiled}), clean)


def test_values_that_are_not_finite_count_as_not_covered(bundle: ModelBundle) -> None:
    network, arguments = load_network(bundle), case()
    broken = arguments["image"].copy()
    broken[0, 2, 2, 2], broken[1, 3, 3, 3], broken[5, 4, 4, 4] = np.nan, np.inf, -np.inf
    found = predict_case(network, bundle, **{**arguments, "image": broken})
    assert np.isfinite(found).all()
    zeroed = np.where(np.isfinite(broken), broken, 0)
    np.testing.assert_array_equal(found, predict_case(network, bundle, **{**arguments, "image": zeroed}))


def test_nothing_is_predicted_where_nothing_was_measured() -> None:
    arguments = case()
    arguments["coverage"][:, 0] = False
    network = Constant(lambda images: torch.full_like(images[:, 0], 20.0))
    found = predict_case(network, _bare_bundle(tiny_recipe()), **arguments)
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1:], 1, atol=1e-6)


def test_windows_without_data_are_skipped() -> None:
    arguments = case((8, 8, 64))
    arguments["coverage"][..., 16:] = False
    network = Constant(lambda images: images[:, 0])
    predict_case(network, _bare_bundle(tiny_recipe()), **arguments)
    assert network.calls == 2  # windows at 0 and 8 of 0, 8, … 48


def test_windows_together_give_what_each_gives_alone(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**case((8, 8, 72)), "by_patch": True}  # an odd number of windows, of different sequences
    network = load_network(bundle)
    together = predict_case(network, bundle, **given)
    monkeypatch.setattr("bids_scseg.inference.predict.VOXELS_AT_ONCE", 1)
    assert windows_at_once((8, 8, 16)) == 1
    alone = predict_case(network, bundle, **given)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_large_windows_go_one_by_one() -> None:
    assert windows_at_once((48, 48, 96)) == 2
    assert windows_at_once((64, 96, 128)) == 1
    assert windows_at_once((400, 400, 400)) == 1


@pytest.mark.parametrize("shape", [(8, 8, 5), (3, 4, 16), (9, 8, 17)])
def test_any_size_is_padded_and_cut_again(bundle: ModelBundle, shape: tuple[int, int, int]) -> None:
    assert predict_case(load_network(bundle), bundle, **case(shape)).shape == shape


def test_padding_and_cutting_keep_places() -> None:
    arguments = case((6, 8, 11))
    network = Constant(lambda images: images[:, 0])
    found = predict_case(network, _bare_bundle(tiny_recipe()), **arguments)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-arguments["image"][0])), atol=1e-5)


def test_mirrored_copies_are_averaged() -> None:
    recipe = tiny_recipe()
    mirrored = replace(recipe, inference=replace(recipe.inference, flips=True))
    arguments = case((8, 8, 16))
    network = Constant(lambda images: torch.arange(8.0)[None, :, None, None].expand_as(images[:, 0]) - 4)
    found = predict_case(network, _bare_bundle(mirrored), **arguments)[:, 0, 0]
    sigmoid = 1 / (1 + np.exp(-(np.arange(8.0) - 4)))
    np.testing.assert_allclose(found, (sigmoid + sigmoid[::-1]) / 2, atol=1e-6)


def test_availability_by_case_or_by_window() -> None:
    bundle, arguments = _bare_bundle(tiny_recipe()), case((8, 8, 48))
    by_case, by_patch = (Constant(lambda images: images[:, 0]) for _ in range(2))
    predict_case(by_case, bundle, **arguments)
    predict_case(by_patch, bundle, **arguments, by_patch=True)
    assert {tuple(row) for row in by_case.available} == {arguments["available"]}
    assert by_patch.available[0] == list(arguments["available"])
    assert by_patch.available[-1] == [True, False, False, False, False, True]  # the second ends half way


def test_a_network_of_fewer_sequences_takes_its_own(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    bundle = tiny_bundle(tmp_path, recipe, replace(recipe.network, sequences=("MP2RAGE",)))
    network, arguments = load_network(bundle), case()
    found = predict_case(network, bundle, **arguments)
    alone = {key: value[5:] for key, value in arguments.items()}
    np.testing.assert_array_equal(found, predict_case(network, bundle, **alone, sequences=("MP2RAGE",)))


def test_a_case_without_data_is_refused(bundle: ModelBundle) -> None:
    arguments = case()
    with pytest.raises(SessionError, match="no sequence has data"):
        predict_case(load_network(bundle), bundle, **{**arguments, "available": (False,) * 6})
    with pytest.raises(SessionError, match="no sequence has data"):
        predict_case(
            load_network(bundle), bundle, **{**arguments, "coverage": np.zeros_like(arguments["coverage"])}
        )


def test_shapes_must_fit(bundle: ModelBundle) -> None:
    arguments = case()
    with pytest.raises(DataError, match="6 flags"):
        predict_case(load_network(bundle), bundle, **{**arguments, "available": (True,)})
    with pytest.raises(DataError, match="some of"):
        predict_case(load_network(bundle), bundle, **arguments, sequences=tuple("abcdef"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    small = build_network(replace(recipe.network, channels=(2, 4, 5)))
    weights = {name: tensor.numpy() for name, tensor in small.state_dict().items()}
    bundle = save_bundle(tmp_path, weights, recipe=recipe, threshold=0.5, provenance={}, card="")
    with pytest.raises(DataError, match="do not fit the network"):
        load_network(bundle)


# -- device --------------------------------------------------------------------------------------------------


def test_devices_are_explicit() -> None:
    assert resolve_device("cpu").name == "cpu"
    assert resolve_device("cpu").warning is None
    with pytest.raises(UsageError):
        resolve_device("gpu")
    with pytest.raises(MissingToolError, match="cuda:99"):
        resolve_device("cuda:99")


def test_each_gpu_computes_in_what_its_own_hardware_has(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = {"cuda:0": (7, 5), "cuda:1": (8, 0), "cuda:2": (9, 0)}
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[str(device)])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # it counts emulation
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: (kind, dtype))
    assert predict._autocast("cuda:0") == ("cuda", torch.float16)
    assert predict._autocast("cuda:1") == predict._autocast("cuda:2") == ("cuda", torch.bfloat16)


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpus_of_amd_are_asked_their_way(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert predict.half_precision("cuda:0") == dtype


def test_what_is_beyond_float16_is_computed_once_more_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_autocast", lambda _: torch.autocast("cpu", dtype=torch.float16))
    images = torch.full((1, 6, 4, 4, 8), 1e3)
    network = Constant(lambda images: torch.nn.functional.linear(images[:, 0], torch.eye(8) * 1e3))  # 1e6
    found = predict._foreground(  # "cpu:0" computes here and is not taken for the CPU
        network, images, torch.ones(1, 6, dtype=torch.bool), images > 0, device="cpu:0"
    )
    assert network.calls == 2
    assert (found == 1).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_without_a_gpu_is_the_cpu_with_a_warning() -> None:
    device = resolve_device("auto")
    assert device.name == "cpu"
    assert device.warning is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_and_cpu_agree(bundle: ModelBundle) -> None:
    arguments = case()
    on_cpu = predict_case(load_network(bundle), bundle, **arguments)
    on_gpu = predict_case(load_network(bundle, "cuda:0"), bundle, **arguments, device="cuda:0")
    assert np.abs(on_cpu - on_gpu).max() < 0.05


# -- cord ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finder() -> ModelBundle:
    recipe = load_recipe("cord-finder")
    inference = InferenceSpec(patch_vox=(8, 8, 16), overlap=0.25)
    network = replace(recipe.network, channels=(3, 4, 5), strides=STRIDES)
    return _bare_bundle(replace(recipe, network=network, inference=inference))


class Bright(Constant):
    """Calls everything above the mean cord."""

    def __init__(self) -> None:
        super().__init__(lambda images: 20 * images[:, 0])


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA", "PIR"])
def test_cord_comes_back_to_its_place_in_any_orientation(finder: ModelBundle, orientation: str) -> None:
    import nibabel as nib

    image = np.zeros((20, 24, 30), np.float32)
    image[8:12, 10:16, :] = 100
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-10, 5, 30)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    turned = nib.Nifti1Image(image, affine).as_reoriented(turn)
    data = np.asarray(turned.dataobj, np.float32)
    found = find_cord(Bright(), finder, image=data, affine=turned.affine)
    assert found.shape == data.shape
    np.testing.assert_array_equal(found > 0.5, data > 50)


def test_images_without_contrast_are_refused(finder: ModelBundle) -> None:
    with pytest.raises(ImageError, match="no contrast"):
        find_cord(Bright(), finder, image=np.ones((9, 9, 9)), affine=np.eye(4))
    with pytest.raises(ImageError, match="three dimensions"):
        find_cord(Bright(), finder, image=np.ones((9, 9, 9, 2)), affine=np.eye(4))


def test_only_finders_find(bundle: ModelBundle) -> None:
    with pytest.raises(DataError, match="no finder"):
        find_cord(Bright(), bundle, image=np.ones((9, 9, 9)), affine=np.eye(4))


def test_values_that_are_not_finite_do_not_spread(finder: ModelBundle) -> None:
    image = np.random.default_rng(0).random((12, 12, 20)).astype(np.float32)
    image[3, 3, 3], image[4, 4, 4] = np.nan, np.inf
    assert np.isfinite(find_cord(Bright(), finder, image=image, affine=np.eye(4))).all()


def test_outliers_are_limited() -> None:
    volume = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    volume[0, 0, 1] = 1e6
    limited = limit_outliers(volume, np.ones(volume.shape, bool))
    # percentiles 0.005 and 0.998: low + 1.3 * range = 0.005 + 1.3 * 0.993 = 1.296
    assert limited.max() == pytest.approx(1.296, abs=0.005)
    assert limited.min() == pytest.approx(0.005, abs=0.002)
